// Scripts for the page of a job: the log, the charts, the trail (the job's events) and the previews of files.
"use strict";

// The maximum number of log lines in the page, and of points in each chart.
const MAX_LINES = 5000;
const MAX_POINTS = 1000;

const log = document.getElementById("log");
if (log) {
  const searchField = document.getElementById("log-find");
  const follow = document.getElementById("log-follow");
  const earlier = document.querySelector(".log-more");
  const results = document.getElementById("log-found");
  const shownIds = new Set();
  // True if the page shows an earlier part of the log, which does not adjoin the newest lines.
  let showsEarlierPart = false;
  // The lease and the line number, from the id of a line: `L<lease>-<number>`.
  const position = (line) => {
    const [, lease, number] = line.id.match(/^L(\d+)-(\d+)$/);
    return [Number(lease), Number(number)];
  };
  const matches = (line) =>
    !searchField.value ||
    line.querySelector("code").textContent.toLowerCase().includes(searchField.value.toLowerCase());
  // The elements of the lines in an HTML text.
  const parseLines = (html) => {
    const box = document.createElement("template");
    box.innerHTML = html;
    return [...box.content.children].filter((n) => n.matches(".line"));
  };
  // The lines that the page does not show yet. Marks these lines as shown.
  const unseen = (lines) => lines.filter((line) => !shownIds.has(line.id) && shownIds.add(line.id));
  const removeLine = (line) => {
    shownIds.delete(line.id);
    line.remove();
  };
  // Hides the button for earlier lines at the beginning of the log.
  const updateEarlier = () => {
    const first = log.firstElementChild;
    earlier.hidden = !first || position(first)[1] === 0;
  };
  // Marks the text of the search field in the lines that are shown. The browser paints the marks over the text, so the
  // lines themselves stay as they are.
  let isMarking = false;
  const markHits = () => {
    if (!window.Highlight || isMarking) return;
    isMarking = true;
    requestAnimationFrame(() => {
      isMarking = false;
      markNow();
    });
  };
  const markNow = () => {
    const text = searchField.value.toLowerCase();
    const hits = new Highlight();
    const addHits = (node) => {
      const inNode = node.data.toLowerCase();
      // A few capital letters are longer in lower case: there, the positions would be others.
      if (inNode.length !== node.data.length) return;
      for (let at = inNode.indexOf(text); at >= 0; at = inNode.indexOf(text, at + text.length)) {
        const range = new Range();
        range.setStart(node, at);
        range.setEnd(node, Math.min(at + text.length, node.length));
        hits.add(range);
      }
    };
    for (const code of text ? document.querySelectorAll("#log .line:not(.miss) code, #log-found .line code") : []) {
      const nodes = document.createTreeWalker(code, NodeFilter.SHOW_TEXT);
      while (nodes.nextNode()) addHits(nodes.currentNode);
    }
    CSS.highlights.set("hit", hits);
  };
  const applyFilter = (lines) => {
    lines.forEach((line) => line.classList.toggle("miss", !matches(line)));
    markHits();
  };
  const scrollToEnd = () => {
    log.scrollTop = log.scrollHeight;
  };
  const fetchLines = async (address) => {
    const answer = await fetch(address);
    if (!answer.ok) throw new Error("the log cannot be read now");
    return answer.text();
  };
  const fetchPart = (lease, from) => fetchLines(`${log.dataset.part}?lease=${lease}&from=${Math.max(0, from)}`);

  document.addEventListener("live:log", (event) => {
    const lines = unseen(parseLines(event.detail));
    applyFilter(lines);
    if (showsEarlierPart) {
      lines.forEach((line) => shownIds.delete(line.id));
      return;
    }
    log.append(...lines);
    // If the reader follows the log, the oldest lines are removed. Otherwise the newest lines are removed, so that the
    // lines on the screen do not move.
    while (log.childElementCount > MAX_LINES) removeLine(follow.checked ? log.firstElementChild : log.lastElementChild);
    updateEarlier();
    if (follow.checked) scrollToEnd();
  });
  searchField.addEventListener("input", () => applyFilter([...log.children]));
  for (const [id, name] of [
    ["log-wrap", "wrap"],
    ["log-times", "times"],
  ]) {
    const box = document.getElementById(id);
    const apply = () => {
      log.classList.toggle(name, box.checked);
      results.classList.toggle(name, box.checked);
    };
    box.addEventListener("change", apply);
    apply();
  }
  follow.addEventListener("change", () => {
    if (!follow.checked) return;
    // Without a line number in its address, the page shows the end of the log.
    if (showsEarlierPart) {
      history.replaceState(null, "", location.pathname);
      location.reload();
      return;
    }
    scrollToEnd();
  });
  // Scrolling up stops following the log.
  log.addEventListener(
    "wheel",
    (event) => {
      if (event.deltaY < 0) follow.checked = false;
    },
    { passive: true },
  );
  const showReadError = () => {
    results.hidden = false;
    results.textContent = "The log cannot be read now. Try again.";
  };
  document.getElementById("log-earlier").addEventListener("click", async () => {
    const [lease, number] = position(log.firstElementChild);
    const html = await fetchPart(lease, number - 500).catch(() => null);
    if (html === null) {
      showReadError();
      return;
    }
    const lines = unseen(parseLines(html));
    const height = log.scrollHeight;
    follow.checked = false;
    applyFilter(lines);
    log.prepend(...lines);
    log.scrollTop += log.scrollHeight - height;
    updateEarlier();
  });
  document.getElementById("log-search").addEventListener("submit", async (event) => {
    event.preventDefault();
    if (!searchField.value) return;
    results.hidden = false;
    results.innerHTML = '<p class="hint">Searching…</p>';
    try {
      results.innerHTML = await fetchLines(
        `${event.target.dataset.search}?text=${encodeURIComponent(searchField.value)}`,
      );
      // A found line may also be in the log above, and an id must be unique in the page.
      results.querySelectorAll(".line").forEach((line) => line.removeAttribute("id"));
      markHits();
    } catch (e) {
      results.textContent = `The search failed: ${e.message}. Try again.`;
    }
  });
  // Shows the line that the address names: `#L<lease>-<number>`.
  const showTarget = async () => {
    const target = location.hash.match(/^#L(\d+)-(\d+)$/);
    if (!target) return;
    follow.checked = false;
    document.getElementById("tab-log").checked = true;
    if (!document.getElementById(target[0].slice(1))) {
      const html = await fetchPart(target[1], Number(target[2]) - 100).catch(() => null);
      if (html === null) {
        showReadError();
        return;
      }
      const lines = parseLines(html);
      showsEarlierPart = true;
      [...log.children].forEach(removeLine);
      const added = unseen(lines);
      applyFilter(added);
      log.append(...added);
      updateEarlier();
    }
    log.querySelectorAll(".target").forEach((line) => line.classList.remove("target"));
    const line = document.getElementById(target[0].slice(1));
    line?.classList.add("target");
    line?.scrollIntoView({ block: "center" });
  };
  addEventListener("hashchange", showTarget);
  showTarget();
}

// The chosen tab is part of the address: `#receipt`.
const chooseTab = () => {
  const tab = document.getElementById(`tab-${location.hash.slice(1)}`);
  if (tab?.name === "tab") tab.checked = true;
};
for (const tab of document.querySelectorAll("input[name=tab]")) {
  tab.addEventListener("change", () => history.replaceState(null, "", `#${tab.id.slice("tab-".length)}`));
}
addEventListener("hashchange", chooseTab);
chooseTab();

const charts = document.getElementById("metrics");
if (charts) {
  const series = new Map();
  let lease = null;
  const short = (n) => Number(n.toPrecision(4)).toString();
  // Adds a chart to the page.
  const newSeries = (name) => {
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
  // Adds the values of one message to the charts. Of many points, every second one is dropped.
  const addMetrics = (metrics) => {
    // The charts show the newest attempt. A newer lease clears the charts, and metrics of an older lease are ignored.
    if (lease !== null && metrics.lease < lease) return;
    if (lease !== metrics.lease) {
      lease = metrics.lease;
      series.clear();
      charts.replaceChildren();
    }
    for (const [name, value] of metrics.values) {
      if (!Number.isFinite(value) || (series.size >= 24 && !series.has(name))) continue;
      if (!series.has(name)) series.set(name, newSeries(name));
      const { points } = series.get(name);
      if (points.length && points[points.length - 1][0] >= metrics.at) continue;
      points.push([metrics.at, value]);
      if (points.length > MAX_POINTS) series.get(name).points = points.filter((_, i) => i % 2 === 0);
    }
  };
  let isScheduled = false;
  const redraw = () => {
    isScheduled = false;
    series.forEach(draw);
  };
  const scheduleDraw = () => {
    if (!isScheduled) {
      isScheduled = true;
      requestAnimationFrame(redraw);
    }
  };
  // Metrics that arrive before the past metrics have been loaded.
  const queued = [];
  let isLoaded = false;
  document.addEventListener("live:metrics", (event) => {
    const metrics = JSON.parse(event.detail);
    if (isLoaded) {
      addMetrics(metrics);
      scheduleDraw();
    } else queued.push(metrics);
  });
  // Shows an error, and returns an empty list of metrics.
  const showReadError = () => {
    charts.nextElementSibling.textContent = "The earlier metrics cannot be read now: reload the page.";
    return [];
  };
  fetch(charts.dataset.from)
    .then((answer) => (answer.ok ? answer.json() : showReadError()))
    .catch(showReadError)
    .then((past) => {
      past.forEach(addMetrics);
      queued.forEach(addMetrics);
      isLoaded = true;
      if (series.size) scheduleDraw();
    });
}

// A menu filters the trail by the names of the events.
const trail = document.getElementById("trail");
const eventFilter = document.getElementById("trail-filter");
if (trail && eventFilter) {
  const apply = () => {
    const names = (trail.querySelector(".trail")?.dataset.names || "").split(" ").filter(Boolean);
    for (const name of names)
      if (![...eventFilter.options].some((o) => o.value === name)) eventFilter.add(new Option(name, name));
    for (const row of trail.querySelectorAll("tr[data-event]"))
      row.hidden = Boolean(eventFilter.value) && row.dataset.event !== eventFilter.value;
    for (const row of trail.querySelectorAll("tr.group")) row.hidden = Boolean(eventFilter.value);
  };
  eventFilter.addEventListener("change", apply);
  trail.addEventListener("part-filled", apply);
  apply();
}

// The tab's title shows the job's state. Whoever asks for it gets a notification of the browser when the job ends.
const summary = document.getElementById("summary");
if (summary) {
  const notify = document.getElementById("notify");
  const title = document.title;
  const isOver = (state) => ["Completed", "Failed", "Cancelled", "Settled"].includes(state);
  let last;
  const showState = () => {
    const badge = document.getElementById("state");
    const state = badge?.dataset.state;
    if (!state) return;
    const news = `${badge.textContent.trim()} · ${title}`;
    document.title = news;
    if (notify) notify.hidden = isOver(state) || !("Notification" in window) || Notification.permission === "denied";
    if (notify?.disabled && isOver(state) && !isOver(last)) {
      try {
        new Notification(news);
      } catch {
        // Some phones have no notifications of a page. The title tells.
      }
    }
    if (isOver(state)) delete document.documentElement.dataset.keepLive;
    last = state;
  };
  notify?.addEventListener("click", async () => {
    if ((await Notification.requestPermission()) !== "granted") return showState();
    notify.disabled = true;
    // The page stays connected while its tab is hidden.
    document.documentElement.dataset.keepLive = "yes";
    notify.textContent = "You will be told when it ends";
  });
  summary.addEventListener("part-filled", showState);
  showState();
}

// The preview of a text file is fetched when it is opened, and shown as plain text.
document.addEventListener(
  "toggle",
  async (event) => {
    const box = event.target;
    if (!box.open || !box.dataset?.preview || box.dataset.read) return;
    box.dataset.read = "yes";
    const answer = await fetch(box.dataset.preview).catch(() => null);
    box.querySelector("pre").textContent = answer?.ok
      ? await answer.text()
      : "The file cannot be read now. Close this preview and open it again.";
    if (!answer?.ok) delete box.dataset.read;
  },
  true,
);
