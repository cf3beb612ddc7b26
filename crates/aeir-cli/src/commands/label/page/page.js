"use strict";

const get = id => document.getElementById(id);
let images = [];
let searchable = 0;
let at = 0;
let busy = false;
/* What each answer took the place of, the latest last. */
const before = [];
/* Left for later in this sitting. */
const skipped = new Set();

async function ask(address, options) {
  const response = await fetch(address, options);
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(body.error || `the program answered ${response.status}`);
  return body;
}

function answered() {
  return images.filter(image => image.answer !== null).length;
}

function choice(sentence, key) {
  const button = document.createElement("button");
  button.type = "button";
  if (key) {
    const mark = document.createElement("kbd");
    mark.textContent = key;
    button.append(mark);
  }
  button.append(sentence);
  const own = images[at].answer;
  button.setAttribute("aria-pressed", String(own !== null && own.includes(sentence)));
  button.addEventListener("click", () => give([sentence]));
  return button;
}

function show() {
  const image = images[at];
  get("which").textContent = `Image ${at + 1} of ${images.length}`;
  get("image").src = `/image/${at}`;
  get("image").alt = `Image ${at + 1}, ${image.name}`;
  get("name").textContent = image.name;
  get("count").textContent = `${answered()} of ${images.length} images answered`;
  get("bar").max = images.length;
  get("bar").value = answered();
  const own = image.answer || [];
  const others = own.filter(sentence => !image.candidates.includes(sentence));
  get("choices").replaceChildren(
    ...image.candidates.map((sentence, place) => choice(sentence, String(place + 1))),
    ...others.map(sentence => choice(sentence, "")));
  get("none").setAttribute("aria-pressed", String(image.answer !== null && own.length === 0));
  get("undo").disabled = before.length === 0;
  get("back").disabled = at === 0;
  get("on").disabled = at === images.length - 1;
  get("words").value = "";
  get("found").replaceChildren();
  get("counted").textContent = `${searchable} sentences can be searched`;
}

/* Moves, and lets a screen reader read where to. */
function go(place) {
  at = Math.max(0, Math.min(images.length - 1, place));
  show();
  get("which").focus({ preventScroll: true });
}

function move(by) {
  get("told").textContent = "";
  go(at + by);
}

/* The next image without an answer, those that were skipped at the end. */
function next() {
  const open = images.map((_, step) => (at + 1 + step) % images.length).filter(place => images[place].answer === null);
  const place = open.find(place => !skipped.has(place)) ?? open[0];
  if (place === undefined) {
    show();
    get("told").textContent = "All images are answered. End the program with Ctrl-C in its terminal.";
  } else {
    go(place);
  }
}

async function put(place, sentences) {
  await ask("/api/answer", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ image: place, sentences }),
  });
  images[place].answer = sentences;
}

/* One answer at a time, so that a held key does not answer the next image too. */
async function alone(work) {
  if (busy) return;
  busy = true;
  get("failed").textContent = "";
  try {
    await work();
  } catch (error) {
    get("failed").textContent = `Not saved: ${error.message}`;
  } finally {
    busy = false;
  }
}

function give(sentences) {
  return alone(async () => {
    const place = at;
    const old = images[place].answer;
    await put(place, sentences);
    before.push({ place, sentences: old });
    skipped.delete(place);
    get("told").textContent = `Saved image ${place + 1}: ${sentences.length ? sentences.join("; ") : "none fits"}`;
    next();
  });
}

function undo() {
  return alone(async () => {
    const last = before[before.length - 1];
    if (!last) return;
    await put(last.place, last.sentences);
    before.pop();
    get("told").textContent = `Took back the answer to image ${last.place + 1}`;
    go(last.place);
  });
}

function skip() {
  if (busy) return;
  skipped.add(at);
  get("told").textContent = `Left image ${at + 1} for later`;
  next();
}

let asked = 0;
async function search() {
  const words = get("words").value;
  const number = ++asked;
  if (words.trim() === "") {
    get("found").replaceChildren();
    get("counted").textContent = `${searchable} sentences can be searched`;
    return;
  }
  try {
    const found = await ask(`/api/sentences?words=${encodeURIComponent(words)}`);
    if (number !== asked) return;
    get("found").replaceChildren(...found.sentences.map(sentence => choice(sentence, "")));
    const shown = found.sentences.length < found.count ? `, ${found.sentences.length} of them shown` : "";
    get("counted").textContent = `${found.count} found${shown}`;
  } catch (error) {
    get("failed").textContent = `Not found: ${error.message}`;
  }
}

const keys = {
  "0": () => give([]),
  s: skip,
  S: skip,
  u: undo,
  U: undo,
  ArrowLeft: () => move(-1),
  ArrowRight: () => move(1),
  "/": () => get("words").focus(),
};

document.addEventListener("keydown", event => {
  if (images.length === 0 || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (event.target === get("words")) {
    if (event.key === "Escape") get("which").focus();
    return;
  }
  const candidate = /^[1-9]$/.test(event.key) ? images[at].candidates[event.key - 1] : undefined;
  const work = candidate === undefined ? keys[event.key] : () => give([candidate]);
  if (!work) return;
  event.preventDefault();
  work();
});

get("none").addEventListener("click", () => give([]));
get("skip").addEventListener("click", skip);
get("undo").addEventListener("click", undo);
get("back").addEventListener("click", () => move(-1));
get("on").addEventListener("click", () => move(1));
get("words").addEventListener("input", search);
get("image").addEventListener("error", () => {
  get("failed").textContent = "This image can't be read any more: skip it.";
});

ask("/api/plan").then(plan => {
  images = plan.images;
  searchable = plan.searchable;
  get("desk").hidden = false;
  get("searching").hidden = searchable === 0;
  const open = images.findIndex(image => image.answer === null);
  go(Math.max(0, open));
  if (open < 0) get("told").textContent = "All images are answered.";
}).catch(error => {
  get("count").textContent = `The plan could not be read: ${error.message}`;
});
