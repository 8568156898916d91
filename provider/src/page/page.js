// Replaces the parts of the page that change, while the owner looks at the page.
const lost = document.getElementById("lost");
const INTERVAL = 3000;

// Keeps the log at its end, unless the owner has scrolled up, and the orders while the owner is about to give one.
function replace(html) {
  const box = document.createElement("template");
  box.innerHTML = html;
  for (const part of [...box.content.children]) {
    const shown = document.getElementById(part.id);
    if (!shown || (shown.contains(document.activeElement) && part.id === "now")) continue;
    const log = shown.querySelector("pre");
    const isAtEnd = log && log.scrollHeight - log.scrollTop - log.clientHeight < 20;
    const top = log?.scrollTop;
    shown.replaceWith(part);
    const replaced = part.querySelector("pre");
    if (replaced) replaced.scrollTop = isAtEnd ? replaced.scrollHeight : top;
  }
}

// After so many failures the worker is gone. Another program may use its port then.
const MOST_FAILURES = 5;
let failures = 0;

async function refresh() {
  try {
    const response = await fetch("now", { signal: AbortSignal.timeout(10000) });
    if (!response.ok) throw new Error(response.status);
    replace(await response.text());
    failures = 0;
  } catch {
    failures += 1;
  }
  lost.hidden = failures === 0;
  if (failures < MOST_FAILURES) setTimeout(refresh, INTERVAL);
}

const log = document.querySelector("#log pre");
log.scrollTop = log.scrollHeight;
setTimeout(refresh, INTERVAL);
