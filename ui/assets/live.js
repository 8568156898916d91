// The page's one connection for server-sent events. Each event replaces a part of the page that changed. A hidden tab
// closes the connection; when the tab is shown again, a new connection resumes after the last event received.
"use strict";

const page = document.querySelector("[data-live]");
const offline = document.getElementById("offline");
const reconnecting = offline.textContent;
// In milliseconds: how long a tab may be hidden before its connection is closed, how long a connection may be lost
// before the page says so, and how long to wait before the next attempt.
const HIDDEN = 10000;
const LOST = 1500;
const RETRY = 4000;

// Replacing a part while the pointer is down would lose the click: new content waits until the pointer is up.
let pressed = false;
const late = new Map();
const catchUp = () => {
  const parts = [...late];
  late.clear();
  parts.forEach(([id, html]) => fill(id, html));
};
for (const [name, down] of [
  ["pointerdown", true],
  ["pointerup", false],
  ["pointercancel", false],
  ["contextmenu", false],
]) {
  document.addEventListener(
    name,
    (event) =>
      setTimeout(
        () => {
          pressed = down && event.button === 0;
          if (!pressed) catchUp();
        },
        down ? 0 : 100,
      ),
    true,
  );
}
addEventListener("blur", () => {
  pressed = false;
  catchUp();
});
document.addEventListener("focusout", () => setTimeout(catchUp, 0));

// A part is left as it is while somebody types into it, and while one of its fields was refused and is not corrected.
const busy = (part) => {
  if (part.querySelector("[aria-invalid]")) return true;
  const field = document.activeElement;
  return field && part.contains(field) && field.matches("input:not([type=checkbox]), select, textarea");
};
document.addEventListener("input", (event) => event.target.removeAttribute?.("aria-invalid"));
const shown = new Map();
const fill = (id, html) => {
  const part = document.getElementById(id);
  // A new connection sends every part again, so the same content may arrive twice.
  if (!part || (shown.get(id) === html && part.childNodes.length)) return;
  if ((pressed && part.querySelector("a, button")) || busy(part)) {
    late.set(id, html);
    return;
  }
  late.delete(id);
  shown.set(id, html);
  const focus = part.contains(document.activeElement) ? document.activeElement.dataset.keep : null;
  const open = [...part.querySelectorAll("details[open]")].map((d) => d.id || d.closest("[id]")?.id);
  const closed = [...part.querySelectorAll("details[id]:not([open])")].map((d) => d.id);
  const ticked = new Set([...part.querySelectorAll("input[type=checkbox]:checked")].map((box) => box.value));
  part.innerHTML = html;
  if (ticked.size)
    for (const box of part.querySelectorAll("input[type=checkbox]")) box.checked ||= ticked.has(box.value);
  for (const id of closed) document.getElementById(id)?.removeAttribute("open");
  for (const id of open) {
    const box = id && document.getElementById(id);
    (box?.matches?.("details") ? box : box?.querySelector("details"))?.setAttribute("open", "");
  }
  if (focus) part.querySelector(`[data-keep="${focus}"]`)?.focus();
  part.dispatchEvent(new CustomEvent("filled", { bubbles: true }));
};

let source = null;
let heard = null;
let lost = null;
const close = () => {
  source?.close();
  source = null;
  clearTimeout(lost);
  lost = null;
};
const open = () => {
  if (!page || source) return;
  const address = new URL(page.dataset.live, location.href);
  if (heard) address.searchParams.set("from", heard);
  source = new EventSource(address);
  source.onopen = () => {
    clearTimeout(lost);
    lost = null;
    offline.hidden = true;
  };
  source.onerror = () => {
    lost ??= setTimeout(() => {
      offline.textContent = reconnecting;
      offline.hidden = false;
    }, LOST);
    // The browser does not retry when the answer is not an event stream, for example while the market is starting or
    // has too many connections.
    if (source && source.readyState === EventSource.CLOSED) {
      source = null;
      setTimeout(open, RETRY);
    }
  };
  const on = (name, take) =>
    source.addEventListener(name, (event) => {
      if (event.lastEventId) heard = event.lastEventId;
      take(event.data);
    });
  // The server could not read a part. The page says so where it reports a lost connection, until the next part arrives.
  on("problem", (data) => {
    offline.textContent = data;
    offline.hidden = false;
  });
  on("part", (data) => {
    offline.hidden = true;
    const cut = data.indexOf("\n");
    fill(data.slice(0, cut), data.slice(cut + 1));
  });
  for (const name of ["log", "metrics"])
    on(name, (data) => document.dispatchEvent(new CustomEvent(`said:${name}`, { detail: data })));
};
let sleep = null;
document.addEventListener("visibilitychange", () => {
  clearTimeout(sleep);
  if (document.hidden) sleep = setTimeout(close, HIDDEN);
  else open();
});
addEventListener("pagehide", close);
addEventListener("pageshow", open);
