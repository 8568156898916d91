// The market page: searches that the browser remembers, and a notification when a machine that matches is free.
"use strict";

// Searches that were saved: their names and addresses, newest first. They stay in this browser.
const SAVED = "gpubnb-searches";
const MAX_SAVED = 12;
const searches = document.getElementById("searches");
const readSearches = () => {
  try {
    const saved = JSON.parse(localStorage.getItem(SAVED)) ?? [];
    return saved.filter(({ name, query }) => typeof name === "string" && typeof query === "string");
  } catch {
    return [];
  }
};
const writeSearches = (saved) => {
  try {
    localStorage.setItem(SAVED, JSON.stringify(saved.slice(0, MAX_SAVED)));
  } catch {
    // A browser that keeps nothing for the site shows no searches.
  }
  showSearches();
};
// The name of a search: its values, such as "RTX 4090, 0.5, free".
const nameOf = (query) => {
  const filters = [...new URLSearchParams(query)].filter(([name]) => !["view", "page"].includes(name));
  return filters.map(([, value]) => value).join(", ");
};
const showSearches = () => {
  const saved = readSearches();
  const query = new URLSearchParams(location.search).toString();
  const isKnown = saved.some((search) => search.query === query);
  const chips = saved.map(({ name, query }) => {
    const chip = document.createElement("span");
    chip.className = "chip";
    const link = document.createElement("a");
    link.href = `/market?${query}`;
    link.textContent = name;
    const forget = document.createElement("button");
    forget.type = "button";
    forget.className = "link";
    forget.textContent = "×";
    forget.ariaLabel = `Forget the search ${name}`;
    forget.addEventListener("click", () => writeSearches(readSearches().filter((other) => other.query !== query)));
    chip.append(link, forget);
    return chip;
  });
  if (nameOf(query) && !isKnown) {
    const save = document.createElement("button");
    save.type = "button";
    save.className = "button small";
    save.textContent = "Save this search";
    save.addEventListener("click", () => writeSearches([{ name: nameOf(query), query }, ...readSearches()]));
    chips.push(save);
  }
  searches.replaceChildren(...chips);
  searches.hidden = chips.length === 0;
};
showSearches();

// Tells the person when a machine of this search is free, also while the tab is hidden.
const tellWhenFree = document.getElementById("tell-when-free");
const freeCount = () => parseInt(document.getElementById("free-now")?.textContent ?? "0", 10) || 0;
const showTellWhenFree = () => {
  const isAsked = tellWhenFree.disabled;
  if (isAsked && freeCount() > 0) {
    try {
      new Notification("A machine is free", { body: document.getElementById("matches").textContent.trim() });
    } catch {
      // Some phones have no notifications of a page. The title tells.
    }
    document.title = `Free now · ${document.title}`;
    tellWhenFree.disabled = false;
    tellWhenFree.textContent = "Tell me when one is free";
    delete document.documentElement.dataset.keepLive;
  }
  const canTell = "Notification" in window && Notification.permission !== "denied";
  // The button keeps its place, so that nothing on the page moves.
  tellWhenFree.classList.toggle("unseen", !canTell || (freeCount() > 0 && !tellWhenFree.disabled));
};
tellWhenFree.addEventListener("click", async () => {
  if ((await Notification.requestPermission()) !== "granted") return showTellWhenFree();
  tellWhenFree.disabled = true;
  document.documentElement.dataset.keepLive = "yes";
  tellWhenFree.textContent = "You will be told when one is free";
  showTellWhenFree();
});
document.addEventListener("part-filled", showTellWhenFree);
showTellWhenFree();
