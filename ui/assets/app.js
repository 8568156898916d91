// Scripts for every page: updating times and costs, uploading the files of a job, and asking for confirmation before an
// action that cannot be undone.
"use strict";

// The age of a time, for example "5 min ago". Null for a time in the future or more than a day ago: its date stays.
const ago = (ms) => {
  if (ms < -5000) return null;
  const s = Math.max(0, Math.floor(ms / 1000));
  if (s < 5) return "just now";
  if (s < 60) return `${s} s ago`;
  if (s < 3600) return `${Math.floor(s / 60)} min ago`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ago`;
  return null;
};

// A duration, for example "3 min 07 s".
const duration = (ms) => {
  const s = Math.max(0, Math.floor(ms / 1000));
  const twoDigits = (n) => String(n).padStart(2, "0");
  if (s < 60) return `${s}.${Math.floor((ms % 1000) / 100)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${twoDigits(s % 60)} s`;
  return `${Math.floor(s / 3600)} h ${twoDigits(Math.floor((s % 3600) / 60))} min`;
};

// An amount, given in micro-dollars.
const dollars = (micros) => {
  const text = (micros / 1e6).toFixed(6).replace(/0{1,4}$/, "");
  return `$${text}`;
};

// Updates relative times, durations of running jobs, and costs of running jobs.
const tick = () => {
  const now = Date.now();
  for (const time of document.querySelectorAll("time[datetime]")) {
    const text = ago(now - Date.parse(time.dateTime));
    if (text && time.textContent !== text) time.textContent = text;
  }
  for (const node of document.querySelectorAll("[data-since]")) {
    node.textContent = duration(now - Number(node.dataset.since));
  }
  for (const node of document.querySelectorAll("[data-cost-since]")) {
    const cost = Math.floor(((now - Number(node.dataset.costSince)) * Number(node.dataset.rate)) / 3.6e6);
    node.textContent = dollars(Math.max(0, Math.min(cost, Number(node.dataset.most))));
  }
};
setInterval(tick, 500);

// A button that copies the text of another element.
document.addEventListener("click", async (event) => {
  const button = event.target.closest?.("[data-copy]");
  if (!button) return;
  await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent.trim());
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = "Copy"), 2000);
});

// The available money in the menu: first as it was on the last page, then as it is. A browser may keep nothing.
const keepBalance = (text) => {
  try {
    if (text === undefined) return sessionStorage.getItem("balance") ?? "";
    sessionStorage.setItem("balance", text);
  } catch {
    // Then the menu is without the amount for a moment.
  }
  return text ?? "";
};
const balance = document.getElementById("balance");
if (balance) {
  balance.textContent = keepBalance();
  fetch("/wallet/balance").then(
    async (response) => {
      if (response.ok && !response.redirected) balance.textContent = keepBalance(await response.text());
    },
    () => {},
  );
} else {
  // Nobody is signed in.
  keepBalance("");
}

// A button that shows the password in a field, and hides it again.
document.addEventListener("click", (event) => {
  const button = event.target.closest?.("[data-show]");
  if (!button) return;
  const field = document.getElementById(button.dataset.show);
  const isHidden = field.type === "password";
  field.type = isHidden ? "text" : "password";
  button.textContent = isHidden ? "Hide the password" : "Show the password";
});

// A password that is sent in a field of text would be kept by the browser among the texts of forms.
document.addEventListener("submit", (event) => {
  for (const button of event.target.querySelectorAll("[data-show]"))
    document.getElementById(button.dataset.show).type = "password";
});

// A button that goes back to the page with the form, whose fields the browser has kept.
document.addEventListener("click", (event) => {
  if (event.target.closest?.("[data-back]")) history.back();
});

// Conditions on the machine that the market chooses say nothing where the person names one. Simulated GPUs concern
// only jobs with a GPU.
const jobForm = document.getElementById("job-form");
if (jobForm) {
  const fit = () => {
    const { machine, gpus } = jobForm.elements;
    for (const set of jobForm.querySelectorAll(".market-chooses")) {
      set.disabled = machine.value !== "";
      set.hidden = machine.value !== "";
    }
    const simulated = jobForm.querySelector(".if-gpus");
    simulated.hidden = Number(gpus.value || gpus.placeholder) === 0;
  };
  jobForm.addEventListener("change", fit);
  fit();
}

// The address of a list has only the filters that are set. Where a form says so, a change applies at once; but not a
// change of a choice by keys, which may pass over other choices.
for (const form of document.querySelectorAll("form.filters[method=get]")) {
  form.addEventListener("formdata", ({ formData }) => {
    for (const [name, value] of [...formData]) if (!value) formData.delete(name);
  });
  if (!("apply" in form.dataset)) continue;
  let isPointer = false;
  form.addEventListener("pointerdown", () => (isPointer = true));
  form.addEventListener("keydown", () => (isPointer = false));
  form.addEventListener("change", ({ target }) => {
    if (isPointer || target.tagName !== "SELECT") form.requestSubmit();
  });
}

// Each file for a job is uploaded when it is chosen. After the upload, a hidden field of the form names the file.
const dropArea = document.getElementById("drop");
if (dropArea) {
  const files = document.getElementById("files");
  const fileList = document.getElementById("given");
  const submitButton = document.querySelector("#job-form button.primary");
  // A UUID of version 7 (RFC 9562): it begins with 48 bits of milliseconds, and the other bits are random.
  const uuid = () => {
    const bytes = crypto.getRandomValues(new Uint8Array(16));
    let ms = Date.now();
    for (let i = 5; i >= 0; i -= 1) {
      bytes[i] = ms % 256;
      ms = Math.floor(ms / 256);
    }
    bytes[6] = (bytes[6] & 0x0f) | 0x70;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    const hex = [...bytes].map((b) => b.toString(16).padStart(2, "0")).join("");
    return hex.replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
  };
  let uploads = 0;
  const countUploads = (change) => {
    uploads += change;
    submitButton.disabled = uploads > 0;
  };
  // Uploads a file, and adds it to the list with its progress and a button to remove it.
  const upload = (file) => {
    const id = uuid();
    const row = document.createElement("li");
    const name = document.createElement("code");
    name.textContent = file.name;
    const status = document.createElement("span");
    const remove = document.createElement("button");
    Object.assign(remove, { type: "button", className: "link", textContent: "Remove" });
    remove.dataset.dropFile = "";
    row.append(name, " ", status, remove);
    fileList.append(row);
    const request = new XMLHttpRequest();
    request.open("PUT", `/api/v1/inputs/${id}`);
    request.setRequestHeader("x-csrf-token", dropArea.dataset.csrf);
    request.upload.onprogress = (e) => {
      if (e.lengthComputable) status.textContent = `${Math.floor((e.loaded / e.total) * 100)} % `;
    };
    request.onloadend = () => {
      countUploads(-1);
      if (request.status === 200 || request.status === 201) {
        status.textContent = "";
        const field = document.createElement("input");
        Object.assign(field, { type: "hidden", name: "input", value: `${id} ${file.name}` });
        row.prepend(field);
        return;
      }
      let message = "The file could not be sent. Remove it and try again.";
      try {
        message = JSON.parse(request.responseText).detail || message;
      } catch {
        // The answer is not JSON, so the general message stays.
      }
      status.className = "error";
      status.textContent = message;
    };
    remove.addEventListener("click", () => request.abort());
    countUploads(1);
    request.send(file);
  };
  dropArea.hidden = false;
  files.addEventListener("change", () => {
    [...files.files].forEach(upload);
    files.value = "";
  });
  for (const name of ["dragover", "dragleave", "drop"]) {
    dropArea.addEventListener(name, (event) => {
      event.preventDefault();
      dropArea.classList.toggle("over", name === "dragover");
      if (name === "drop") [...event.dataTransfer.files].forEach(upload);
    });
  }
  fileList.addEventListener("click", (event) => {
    if (event.target.matches("[data-drop-file]")) event.target.closest("li").remove();
  });
}

// The slider of the page "time travel" shows a sequence of the log while it moves. When it is released, the page shows
// the market at this sequence.
const slider = document.getElementById("slider");
if (slider) {
  const [seq, at] = [document.getElementById("seq"), document.getElementById("at")];
  slider.addEventListener("input", () => {
    seq.value = slider.value;
    at.textContent = slider.value;
  });
  slider.addEventListener("change", () => {
    slider.form.elements.time.value = "";
    slider.form.requestSubmit();
  });
}
// A page that waits for work of the server reloads itself. The attribute is the waiting time in milliseconds.
const reloading = document.querySelector("[data-again]");
if (reloading) setTimeout(() => location.reload(), Number(reloading.dataset.again));

// Another template keeps what was typed and uploaded, but for the fields of the present template and for secrets, which
// must not be in an address.
document.querySelector("nav.picker")?.addEventListener("click", ({ target }) => {
  const link = target.closest("a");
  const form = document.getElementById("job-form");
  if (!link || !form) return;
  // The address without what an earlier press put there.
  const address = new URL((link.dataset.href ??= link.href));
  const isKept = (name) => name && !/^(parameter\..*|again|template|command|image|workdir|env|csrf|job)$/.test(name);
  for (const [name, value] of new URLSearchParams(location.search)) {
    if (isKept(name) && name !== "machine" && name !== "input") address.searchParams.set(name, value);
  }
  for (const field of form.elements) {
    const isChanged =
      field.type === "checkbox"
        ? field.checked !== field.defaultChecked
        : field.tagName === "SELECT"
          ? !field.selectedOptions[0]?.defaultSelected
          : field.value !== field.defaultValue;
    if (field.name === "input") address.searchParams.append("input", field.value);
    else if (isKept(field.name) && isChanged) {
      address.searchParams.set(field.name, field.type === "checkbox" && !field.checked ? "" : field.value);
    }
  }
  link.href = address;
});

// A form, or one of its buttons, with the attribute `data-confirm` asks this question before the form is submitted.
document.body.addEventListener("submit", (event) => {
  const question = event.submitter?.dataset.confirm ?? event.target.dataset.confirm;
  if (question && !window.confirm(question)) event.preventDefault();
});

// The menu of the account: a press outside of it, or Escape, closes it. It chooses the colours, too.
const menu = document.querySelector("details.menu");
if (menu) {
  document.addEventListener("click", ({ target }) => menu.contains(target) || menu.removeAttribute("open"));
  menu.addEventListener("keydown", ({ key }) => {
    if (key !== "Escape") return;
    menu.removeAttribute("open");
    menu.querySelector("summary").focus();
  });
  const root = document.documentElement;
  const themes = [...menu.querySelectorAll("[data-choose-theme]")];
  const showTheme = () => {
    for (const theme of themes) theme.ariaPressed = String(theme.dataset.chooseTheme === (root.dataset.theme ?? ""));
  };
  for (const theme of themes) {
    theme.addEventListener("click", () => {
      const chosen = theme.dataset.chooseTheme;
      if (chosen) root.dataset.theme = chosen;
      else delete root.dataset.theme;
      try {
        localStorage.setItem("gpubnb-theme", chosen);
      } catch {
        // The choice lasts until the page is left.
      }
      showTheme();
    });
  }
  showTheme();
}

// The dialog that finds anything: Ctrl-K, Cmd-K, or `/` outside of a field. The arrow keys choose a result, Enter opens
// it. Without scripts, the link leads to a page with the same results.
const finder = document.getElementById("find");
const finderInput = finder.querySelector("input");
const finderResults = document.getElementById("find-results");
let findTimer = null;
let findNumber = 0;
let shownText = null;
// Chooses a result, which a screen reader then says.
const choose = (link) => {
  finderResults.querySelector("[aria-selected=true]")?.setAttribute("aria-selected", "false");
  link?.setAttribute("aria-selected", "true");
  link?.scrollIntoView({ block: "nearest" });
  if (link) finderInput.setAttribute("aria-activedescendant", link.id);
  else finderInput.removeAttribute("aria-activedescendant");
};
const showResults = async () => {
  const number = ++findNumber;
  const text = finderInput.value;
  clearTimeout(findTimer);
  try {
    const answer = await fetch(`/find?part=1&q=${encodeURIComponent(text)}`);
    if (number !== findNumber) return;
    if (!answer.ok) throw new Error();
    finderResults.innerHTML = await answer.text();
    shownText = text;
    finderResults.querySelector("ul")?.setAttribute("role", "listbox");
    finderResults.querySelector("ul")?.setAttribute("aria-label", "Results");
    finderResults.querySelectorAll("li").forEach((item) => item.setAttribute("role", "presentation"));
    finderResults.querySelectorAll("a").forEach((link, place) => {
      link.id = `found-${place}`;
      link.setAttribute("role", "option");
    });
    choose(finderResults.querySelector("a"));
  } catch {
    if (number === findNumber) finderResults.textContent = "The market did not answer. Type to try again.";
  }
};
const openFinder = () => {
  if (finder.open) return;
  finder.showModal();
  finderInput.select();
  showResults();
};
const moveChoice = (step) => {
  const links = [...finderResults.querySelectorAll("a")];
  const chosen = links.findIndex((link) => link.ariaSelected === "true");
  choose(links[Math.min(Math.max(chosen + step, 0), links.length - 1)]);
};
document.querySelector("a.find").addEventListener("click", (event) => {
  if (event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  openFinder();
});
document.addEventListener("keydown", (event) => {
  const isTyping = event.target.matches("input, textarea, select, [contenteditable]");
  const isShortcut = event.key.toLowerCase() === "k" && (event.ctrlKey || event.metaKey);
  if (!isShortcut && (event.key !== "/" || isTyping || event.ctrlKey || event.metaKey || event.altKey)) return;
  event.preventDefault();
  openFinder();
});
finderInput.addEventListener("input", () => {
  clearTimeout(findTimer);
  findTimer = setTimeout(showResults, 120);
});
// The results may be those of an earlier text.
const openChoice = async () => {
  if (shownText !== finderInput.value) await showResults();
  finderResults.querySelector("[aria-selected=true]")?.click();
};
finder.addEventListener("keydown", (event) => {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (step) moveChoice(step);
  else if (event.key === "Enter" && event.target === finderInput) openChoice();
  else return;
  event.preventDefault();
});
// A press outside of the dialog closes it.
finder.addEventListener("click", ({ target }) => target === finder && finder.close());

// If htmx cannot fetch a part of the page, an error message takes the place of the part.
for (const failed of ["htmx:sendError", "htmx:responseError", "htmx:timeout"]) {
  document.addEventListener(failed, ({ detail }) => {
    const error = document.createElement("p");
    error.className = "error";
    error.role = "alert";
    error.textContent = "The market did not answer. Change a field to try again.";
    detail.target?.replaceChildren(error);
  });
}
