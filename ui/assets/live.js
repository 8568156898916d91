// The connection of an open page for live updates, as server-sent events. Each event replaces a part of the page that
// changed. The connection of a hidden tab is closed, unless the person asked to be told of
// changes. When the tab is shown again, a new connection resumes after the
// last event that the page received.
"use strict";

const page = document.querySelector("[data-live]");
const offline = document.getElementById("offline");
// The page contains the message for a lost connection.
const reconnecting = offline.textContent;
// The time after which the connection of a hidden tab is closed, the time after which a lost connection is reported,
// and the pause before the next attempt to connect.
const HIDDEN_MS = 10000;
const LOST_MS = 1500;
const RETRY_MS = 4000;

// True if nobody looks at the page, and nobody asked to be told of its changes.
const isAway = () => document.hidden && !document.documentElement.dataset.keepLive;

// Replacing a part while the pointer is down would lose the click, so the new content is postponed until the pointer is
// up again.
let isPointerDown = false;
const postponed = new Map();
const fillPostponed = () => {
  const parts = [...postponed];
  postponed.clear();
  parts.forEach(([id, html]) => fillPart(id, html));
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
          isPointerDown = down && event.button === 0;
          if (!isPointerDown) fillPostponed();
        },
        down ? 0 : 100,
      ),
    true,
  );
}
addEventListener("blur", () => {
  isPointerDown = false;
  fillPostponed();
});
document.addEventListener("focusout", () => setTimeout(fillPostponed, 0));

// True while the user types into a field of the part, and while a field that the server refused is not corrected. Such
// a part is not replaced.
const isEdited = (part) => {
  if (part.querySelector("[aria-invalid]")) return true;
  const texts = part.querySelectorAll("input:not([type=checkbox], [type=radio], [type=hidden]), textarea");
  if ([...texts].some((field) => field.value !== field.defaultValue)) return true;
  const field = document.activeElement;
  return field && part.contains(field) && field.matches("input:not([type=checkbox]), select, textarea");
};
document.addEventListener("input", (event) => event.target.removeAttribute?.("aria-invalid"));
// The content that each part shows, by the id of the part.
const contents = new Map();
// Replaces the content of a part. Keeps the focus, open details and ticked boxes.
const fillPart = (id, html) => {
  const part = document.getElementById(id);
  // A new connection sends every part again, so the content may be the same.
  if (!part || (contents.get(id) === html && part.childNodes.length)) return;
  if ((isPointerDown && part.querySelector("a, button")) || isEdited(part)) {
    postponed.set(id, html);
    return;
  }
  postponed.delete(id);
  contents.set(id, html);
  const focus = part.contains(document.activeElement) ? document.activeElement.dataset.keep : null;
  const open = [...part.querySelectorAll("details[open]")].map((d) => d.id || d.closest("[id]")?.id);
  const closed = [...part.querySelectorAll("details[id]:not([open])")].map((d) => d.id);
  const ticked = new Set([...part.querySelectorAll("input[type=checkbox]:checked")].map((box) => box.value));
  part.innerHTML = html;
  // The parts inside are new, too: what they showed before is forgotten.
  for (const inner of part.querySelectorAll("[id]")) contents.delete(inner.id);
  if (ticked.size)
    for (const box of part.querySelectorAll("input[type=checkbox]")) box.checked ||= ticked.has(box.value);
  for (const id of closed) document.getElementById(id)?.removeAttribute("open");
  for (const id of open) {
    const box = id && document.getElementById(id);
    (box?.matches?.("details") ? box : box?.querySelector("details"))?.setAttribute("open", "");
  }
  if (focus) part.querySelector(`[data-keep="${focus}"]`)?.focus();
  part.dispatchEvent(new CustomEvent("part-filled", { bubbles: true }));
};

// The connection, the id of the last event, and the timer that reports a lost connection.
let source = null;
let lastId = null;
let lostTimer = null;
const disconnect = () => {
  source?.close();
  source = null;
  clearTimeout(lostTimer);
  lostTimer = null;
};
const connect = () => {
  if (!page || source) return;
  const address = new URL(page.dataset.live, location.href);
  if (lastId) address.searchParams.set("from", lastId);
  source = new EventSource(address);
  source.onopen = () => {
    clearTimeout(lostTimer);
    lostTimer = null;
    offline.hidden = true;
  };
  source.onerror = () => {
    lostTimer ??= setTimeout(() => {
      offline.textContent = reconnecting;
      offline.hidden = false;
    }, LOST_MS);
    // The browser itself does not try again if the answer was not an event stream, for example because the market is
    // starting or the page has too many connections.
    if (source && source.readyState === EventSource.CLOSED) {
      source = null;
      setTimeout(connect, RETRY_MS);
    }
  };
  const listen = (name, handle) =>
    source.addEventListener(name, (event) => {
      if (event.lastEventId) lastId = event.lastEventId;
      handle(event.data);
    });
  // The server could not render the page. The message is shown until the next part arrives.
  listen("problem", (data) => {
    offline.textContent = data;
    offline.hidden = false;
  });
  listen("part", (data) => {
    offline.hidden = true;
    const lineEnd = data.indexOf("\n");
    fillPart(data.slice(0, lineEnd), data.slice(lineEnd + 1));
  });
  for (const name of ["log", "metrics"])
    listen(name, (data) => document.dispatchEvent(new CustomEvent(`live:${name}`, { detail: data })));
};
let hiddenTimer = null;
document.addEventListener("visibilitychange", () => {
  clearTimeout(hiddenTimer);
  if (isAway()) hiddenTimer = setTimeout(disconnect, HIDDEN_MS);
  else connect();
});
addEventListener("pagehide", disconnect);
addEventListener("pageshow", connect);
