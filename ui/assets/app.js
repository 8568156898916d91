// Scripts for every page: ticking times and costs, uploads of a job's files, and a question before an action that
// cannot be undone.
"use strict";

const ago = (ms) => {
  // A time in the future keeps its date.
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

// Files for a job are uploaded as soon as they are chosen. The form then names them.
const drop = document.getElementById("drop");
if (drop) {
  const files = document.getElementById("files");
  const given = document.getElementById("given");
  const send = document.querySelector("#job-form button.primary");
  // A UUID of version 7 (RFC 9562): 48 bits of milliseconds, the rest random.
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
  let onTheWay = 0;
  const wait = (more) => {
    onTheWay += more;
    send.disabled = onTheWay > 0;
  };
  const put = (file) => {
    const id = uuid();
    const row = document.createElement("li");
    const name = document.createElement("code");
    name.textContent = file.name;
    const how = document.createElement("span");
    const remove = document.createElement("button");
    Object.assign(remove, { type: "button", className: "link", textContent: "Remove" });
    remove.dataset.dropFile = "";
    row.append(name, " ", how, remove);
    given.append(row);
    const request = new XMLHttpRequest();
    request.open("PUT", `/api/v1/inputs/${id}`);
    request.setRequestHeader("x-csrf-token", drop.dataset.csrf);
    request.upload.onprogress = (e) => {
      if (e.lengthComputable) how.textContent = `${Math.floor((e.loaded / e.total) * 100)} % `;
    };
    request.onloadend = () => {
      wait(-1);
      if (request.status === 200 || request.status === 201) {
        how.textContent = "";
        const field = document.createElement("input");
        Object.assign(field, { type: "hidden", name: "input", value: `${id} ${file.name}` });
        row.prepend(field);
        return;
      }
      let why = "The file could not be sent. Remove it and try again.";
      try {
        why = JSON.parse(request.responseText).detail || why;
      } catch {
        // The answer is not JSON, so the general sentence stays.
      }
      how.className = "error";
      how.textContent = why;
    };
    remove.addEventListener("click", () => request.abort());
    wait(1);
    request.send(file);
  };
  drop.hidden = false;
  files.addEventListener("change", () => {
    [...files.files].forEach(put);
    files.value = "";
  });
  for (const name of ["dragover", "dragleave", "drop"]) {
    drop.addEventListener(name, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", name === "dragover");
      if (name === "drop") [...event.dataTransfer.files].forEach(put);
    });
  }
  given.addEventListener("click", (event) => {
    if (event.target.matches("[data-drop-file]")) event.target.closest("li").remove();
  });
}

// The slider of the time travel page shows its sequence number while it moves, and loads that page when released.
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
// A page that shows work in progress on the server reloads itself.
const again = document.querySelector("[data-again]");
if (again) setTimeout(() => location.reload(), Number(again.dataset.again));

document.body.addEventListener("submit", (event) => {
  const question = event.target.dataset.confirm;
  if (question && !window.confirm(question)) event.preventDefault();
});

// A part of the page that could not be fetched shows an error in its place.
for (const failed of ["htmx:sendError", "htmx:responseError", "htmx:timeout"]) {
  document.addEventListener(failed, ({ detail }) => {
    const said = document.createElement("p");
    said.className = "error";
    said.role = "alert";
    said.textContent = "The market did not answer. It is asked again when you change something.";
    detail.target?.replaceChildren(said);
  });
}
