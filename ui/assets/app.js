// The little that pages need beyond htmx: ticking times and costs, the log's tools, the state of the connection.
"use strict";

const ago = (ms) => {
  // What lies ahead says its date.
  if (ms < -5000) return null;
  const s = Math.max(0, Math.floor(ms / 1000));
  if (s < 5) return "just now";
  if (s < 60) return `${s} s ago`;
  if (s < 3600) return `${Math.floor(s / 60)} min ago`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ago`;
  return null;
};

const span = (ms) => {
  const s = Math.max(0, Math.floor(ms / 1000));
  const two = (n) => String(n).padStart(2, "0");
  if (s < 60) return `${s}.${Math.floor((ms % 1000) / 100)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${two(s % 60)} s`;
  return `${Math.floor(s / 3600)} h ${two(Math.floor((s % 3600) / 60))} min`;
};

const dollars = (micros) => {
  const text = (micros / 1e6).toFixed(6).replace(/0{1,4}$/, "");
  return `$${text}`;
};

const tick = () => {
  const now = Date.now();
  for (const time of document.querySelectorAll("time[datetime]")) {
    const text = ago(now - Date.parse(time.dateTime));
    if (text && time.textContent !== text) time.textContent = text;
  }
  for (const node of document.querySelectorAll("[data-since]")) {
    node.textContent = span(now - Number(node.dataset.since));
  }
  for (const node of document.querySelectorAll("[data-cost-since]")) {
    const cost = Math.floor(((now - Number(node.dataset.costSince)) * Number(node.dataset.rate)) / 3.6e6);
    node.textContent = dollars(Math.max(0, Math.min(cost, Number(node.dataset.most))));
  }
};
setInterval(tick, 500);

const log = document.getElementById("log");
if (log) {
  const find = document.getElementById("log-find");
  const follow = document.getElementById("log-follow");
  const matches = (line) => !find.value || line.textContent.toLowerCase().includes(find.value.toLowerCase());
  const filter = (lines) => lines.forEach((line) => line.classList.toggle("miss", !matches(line)));
  find.addEventListener("input", () => filter(log.querySelectorAll(".line")));
  for (const [id, name] of [["log-wrap", "wrap"], ["log-times", "times"]]) {
    const box = document.getElementById(id);
    const apply = () => log.classList.toggle(name, box.checked);
    box.addEventListener("change", apply);
    apply();
  }
  const seen = new Set();
  new MutationObserver((changes) => {
    const added = changes.flatMap((c) => [...c.addedNodes]).filter((n) => n.classList);
    // A stream that had to begin anew says again what was said: each line is kept once.
    for (const line of added) {
      if (seen.has(line.id)) line.remove();
      seen.add(line.id);
    }
    filter(added);
    if (follow.checked) log.scrollTop = log.scrollHeight;
  }).observe(log, { childList: true });
}

// A row that is replaced under a finger that is down would lose the click: it keeps still until the finger is up.
let pressed = false;
for (const [name, down] of [["pointerdown", true], ["pointerup", false], ["pointercancel", false]]) {
  document.addEventListener(name, () => { setTimeout(() => { pressed = down; }, down ? 0 : 100); }, true);
}
document.body.addEventListener("htmx:sseBeforeMessage", (event) => {
  if (pressed && event.target.closest("[data-rows]")) event.preventDefault();
});

const offline = document.getElementById("offline");
document.body.addEventListener("htmx:sseError", () => { offline.hidden = false; });
document.body.addEventListener("htmx:sseOpen", () => {
  offline.hidden = true;
});

document.body.addEventListener("submit", (event) => {
  const question = event.target.dataset.confirm;
  if (question && !window.confirm(question)) event.preventDefault();
});
