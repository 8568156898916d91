// The page of a job: its log, its charts, and its trail of events.
"use strict";

// Bounds on the page, whatever a job writes: the lines of its log that are kept, and the points of each chart.
const KEPT = 5000;
const POINTS = 1000;

const log = document.getElementById("log");
if (log) {
  const find = document.getElementById("log-find");
  const follow = document.getElementById("log-follow");
  const more = document.querySelector(".log-more");
  const found = document.getElementById("log-found");
  const seen = new Set();
  let away = false;
  const place = (line) => {
    const [, lease, number] = line.id.match(/^L(\d+)-(\d+)$/);
    return [Number(lease), Number(number)];
  };
  const matches = (line) =>
    !find.value || line.querySelector("code").textContent.toLowerCase().includes(find.value.toLowerCase());
  const read = (html) => {
    const box = document.createElement("template");
    box.innerHTML = html;
    return [...box.content.children].filter((n) => n.matches(".line"));
  };
  const fresh = (lines) => lines.filter((line) => !seen.has(line.id) && seen.add(line.id));
  const drop = (line) => {
    seen.delete(line.id);
    line.remove();
  };
  const edges = () => {
    const first = log.firstElementChild;
    more.hidden = !first || place(first)[1] === 0;
  };
  const filter = (lines) => lines.forEach((line) => line.classList.toggle("miss", !matches(line)));
  const end = () => {
    log.scrollTop = log.scrollHeight;
  };
  const fetchLines = async (address) => {
    const answer = await fetch(address);
    if (!answer.ok) throw new Error("the log cannot be read now");
    return answer.text();
  };
  const part = (lease, from) => fetchLines(`${log.dataset.part}?lease=${lease}&from=${Math.max(0, from)}`);

  document.addEventListener("said:log", (event) => {
    const lines = fresh(read(event.detail));
    filter(lines);
    // The page shows an earlier part of the log, and the new lines at the end do not adjoin it.
    if (away) {
      lines.forEach((line) => seen.delete(line.id));
      return;
    }
    log.append(...lines);
    // A reader who does not follow the log keeps the lines on screen, and the newest lines are dropped instead.
    while (log.childElementCount > KEPT) drop(follow.checked ? log.firstElementChild : log.lastElementChild);
    edges();
    if (follow.checked) end();
  });
  find.addEventListener("input", () => filter([...log.children]));
  for (const [id, name] of [
    ["log-wrap", "wrap"],
    ["log-times", "times"],
  ]) {
    const box = document.getElementById(id);
    const apply = () => {
      log.classList.toggle(name, box.checked);
      found.classList.toggle(name, box.checked);
    };
    box.addEventListener("change", apply);
    apply();
  }
  follow.addEventListener("change", () => {
    if (!follow.checked) return;
    // The page shows an earlier part. Loaded without a line number in its address, it begins at the end of the log.
    if (away) {
      history.replaceState(null, "", location.pathname);
      location.reload();
      return;
    }
    end();
  });
  // Scrolling up stops following.
  log.addEventListener(
    "wheel",
    (event) => {
      if (event.deltaY < 0) follow.checked = false;
    },
    { passive: true },
  );
  const unread = () => {
    found.hidden = false;
    found.textContent = "The log cannot be read now. Try again.";
  };
  document.getElementById("log-earlier").addEventListener("click", async () => {
    const [lease, number] = place(log.firstElementChild);
    const html = await part(lease, number - 500).catch(() => null);
    if (html === null) {
      unread();
      return;
    }
    const lines = fresh(read(html));
    const height = log.scrollHeight;
    follow.checked = false;
    log.prepend(...lines);
    log.scrollTop += log.scrollHeight - height;
    edges();
  });
  document.getElementById("log-search").addEventListener("submit", async (event) => {
    event.preventDefault();
    if (!find.value) return;
    found.hidden = false;
    found.innerHTML = '<p class="hint">Searching…</p>';
    try {
      found.innerHTML = await fetchLines(`${event.target.dataset.search}?text=${encodeURIComponent(find.value)}`);
      // A line that was found may be in the log above as well, and an id must be unique in the page.
      found.querySelectorAll(".line").forEach((line) => line.removeAttribute("id"));
    } catch (e) {
      found.textContent = `Nothing found: ${e.message}. Try again.`;
    }
    find.value = "";
    filter([...log.children]);
  });
  const jump = async () => {
    const target = location.hash.match(/^#L(\d+)-(\d+)$/);
    if (!target) return;
    follow.checked = false;
    document.getElementById("tab-log").checked = true;
    if (!document.getElementById(target[0].slice(1))) {
      const html = await part(target[1], Number(target[2]) - 100).catch(() => null);
      if (html === null) {
        unread();
        return;
      }
      const lines = read(html);
      away = true;
      [...log.children].forEach(drop);
      log.append(...fresh(lines));
      edges();
    }
    log.querySelectorAll(".target").forEach((line) => line.classList.remove("target"));
    const line = document.getElementById(target[0].slice(1));
    line?.classList.add("target");
    line?.scrollIntoView({ block: "center" });
  };
  addEventListener("hashchange", jump);
  jump();
}

const charts = document.getElementById("metrics");
if (charts) {
  const series = new Map();
  let lease = null;
  const short = (n) => Number(n.toPrecision(4)).toString();
  const make = (name) => {
    const figure = document.createElement("figure");
    figure.className = "chart";
    figure.innerHTML =
      "<figcaption><b></b> <span></span></figcaption>" +
      '<svg viewBox="0 0 320 90" preserveAspectRatio="none" role="img"><polyline/></svg>';
    figure.querySelector("b").textContent = name;
    charts.append(figure);
    return { points: [], figure };
  };
  const draw = ({ points, figure }) => {
    const values = points.map(([, v]) => v);
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const [from, to] = [points[0][0], points[points.length - 1][0]];
    const x = (t) => (to > from ? ((t - from) / (to - from)) * 320 : 0);
    const y = (v) => (high > low ? 86 - ((v - low) / (high - low)) * 82 : 45);
    const line = points.map(([t, v]) => `${x(t).toFixed(1)},${y(v).toFixed(1)}`);
    if (line.length === 1) line.push(`320,${y(values[0]).toFixed(1)}`);
    figure.querySelector("polyline").setAttribute("points", line.join(" "));
    figure.querySelector("span").textContent =
      `${short(values[values.length - 1])} now, ${short(low)} to ${short(high)}`;
    figure
      .querySelector("svg")
      .setAttribute(
        "aria-label",
        `${figure.querySelector("b").textContent}: ${figure.querySelector("span").textContent}`,
      );
  };
  const take = (said) => {
    // The charts show the newest attempt: a newer lease clears them, and readings of an older lease are ignored.
    if (lease !== null && said.lease < lease) return;
    if (lease !== said.lease) {
      lease = said.lease;
      series.clear();
      charts.replaceChildren();
    }
    for (const [name, value] of said.values) {
      if (!Number.isFinite(value) || (series.size >= 24 && !series.has(name))) continue;
      if (!series.has(name)) series.set(name, make(name));
      const { points } = series.get(name);
      if (points.length && points[points.length - 1][0] >= said.at) continue;
      points.push([said.at, value]);
      if (points.length > POINTS) series.get(name).points = points.filter((_, i) => i % 2 === 0);
    }
  };
  let waiting = false;
  const redraw = () => {
    waiting = false;
    series.forEach(draw);
  };
  const soon = () => {
    if (!waiting) {
      waiting = true;
      requestAnimationFrame(redraw);
    }
  };
  const early = [];
  let ready = false;
  document.addEventListener("said:metrics", (event) => {
    const said = JSON.parse(event.detail);
    if (ready) {
      take(said);
      soon();
    } else early.push(said);
  });
  const unread = () => {
    charts.nextElementSibling.textContent = "What was measured before cannot be read now: open the page again.";
    return [];
  };
  fetch(charts.dataset.from)
    .then((answer) => (answer.ok ? answer.json() : unread()))
    .catch(unread)
    .then((past) => {
      past.forEach(take);
      early.forEach(take);
      ready = true;
      if (series.size) soon();
    });
}

// The trail can be filtered by the name of its events.
const trail = document.getElementById("trail");
const kind = document.getElementById("trail-filter");
if (trail && kind) {
  const apply = () => {
    const names = (trail.querySelector(".trail")?.dataset.names || "").split(" ").filter(Boolean);
    for (const name of names) if (![...kind.options].some((o) => o.value === name)) kind.add(new Option(name, name));
    for (const row of trail.querySelectorAll("tr[data-event]"))
      row.hidden = Boolean(kind.value) && row.dataset.event !== kind.value;
    for (const row of trail.querySelectorAll("tr.group")) row.hidden = Boolean(kind.value);
  };
  kind.addEventListener("change", apply);
  trail.addEventListener("filled", apply);
  apply();
}

// A text file that the job left is fetched when its preview is opened, and shown as plain text.
document.addEventListener(
  "toggle",
  async (event) => {
    const box = event.target;
    if (!box.open || !box.dataset?.preview || box.dataset.read) return;
    box.dataset.read = "yes";
    const answer = await fetch(box.dataset.preview).catch(() => null);
    box.querySelector("pre").textContent = answer?.ok
      ? await answer.text()
      : "It cannot be read now. Close this, and open it again.";
    if (!answer?.ok) delete box.dataset.read;
  },
  true,
);
