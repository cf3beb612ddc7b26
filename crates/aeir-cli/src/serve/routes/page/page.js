"use strict";

// What is asked, what was found, and the page between the two. No framework, nothing from other origins.

const at = (id) => document.getElementById(id);

/** The query: any of a text, an image from outside, an item of the index; and terms to take away. */
const asked = { text: "", image: null, item: null, minus: [] };
/** The last answer's results, and which of them is looked at. */
let found = [];
let looked = 0;
let card = null;
let key = sessionStorage.getItem("key") || "";
/** The request under way: a newer one ends it. */
let running = null;
/** Addresses of pictures that were fetched with the key, given back when they are shown no more. */
let held = [];

// ---- errors are shown, never swallowed

function tell(message, hint) {
  const lines = [message, hint].filter(Boolean).map((text) => make("p", { text }));
  at("alert").replaceChildren(...lines);
  at("alert").hidden = lines.length === 0;
}

addEventListener("error", (event) => tell("This page has a fault: " + event.message));
addEventListener("unhandledrejection", (event) => tell("This page has a fault: " + event.reason));

/** A refusal of the server, or no answer at all. */
class Refused extends Error {
  constructor(status, body) {
    super(body.error || "the server answered " + status);
    this.status = status;
    this.hint = body.hint || (body.flag ? "The server's limit is set by " + body.flag + "." : "");
  }
}

async function ask(path, options = {}) {
  const headers = key ? { ...options.headers, Authorization: "Bearer " + key } : options.headers;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, { error: "The server does not answer.", hint: "Is `aeir serve` still running?" });
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => ({}));
  if (response.status === 401) unlock(key ? "That is not the key." : "");
  throw new Refused(response.status, body);
}

// ---- small helpers

function make(tag, { text, attributes = {}, classes = "", on = {} } = {}, ...children) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (classes) node.className = classes;
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  for (const [name, handler] of Object.entries(on)) node.addEventListener(name, handler);
  node.append(...children);
  return node;
}

const count = (number, one, many) => number.toLocaleString("en") + " " + (number === 1 ? one : many);
const percent = (share) => (share > 0 && share < 0.01 ? "<1" : Math.round(100 * share)) + " %";
/** A text that fits a heading. */
const short = (text) => (text.length > 120 ? text.slice(0, 119) + "…" : text);
/** What a file's name says of its picture. */
const spoken = (name) => name.replace(/^.*[\\/]/, "").replace(/\.[a-z0-9]{2,5}$/i, "").replace(/[_-]+/g, " ");

/** Names and values as parts of a list; what is no text as JSON writes it. */
const list = (facts) => Object.entries(facts).flatMap(([name, value]) =>
  [make("dt", { text: name }), make("dd", { text: typeof value === "string" ? value : JSON.stringify(value) })]);

/** Puts an item's picture into an image; what is wrong with it beside it. */
async function show(image, id, size, failed) {
  const address = "v1/items/" + id + "/thumbnail" + (size ? "?size=" + size : "");
  const explain = async () => {
    const why = await ask(address).then(() => "The picture can't be shown.", (error) => error.message);
    failed(why);
  };
  if (document.body.dataset.locked === "no") {
    image.addEventListener("error", explain, { once: true });
    image.src = address;
    return;
  }
  try {
    const local = URL.createObjectURL(await (await ask(address)).blob());
    held.push(local);
    image.src = local;
  } catch (error) {
    failed(error.message);
  }
}

// ---- the query

function describe() {
  const parts = [];
  if (asked.image) parts.push("your image");
  if (asked.item) parts.push("“" + spoken(asked.item.name) + "”");
  let words = asked.text ? "“" + short(asked.text) + "”" : "";
  if (parts.length) words = (words ? words + ", like " : "Like ") + parts.join(" and ");
  if (asked.minus.length) words += ", less " + asked.minus.map((term) => "“" + short(term) + "”").join(" and ");
  return words;
}

/** A part of the query beside its text, with a button to leave it out. */
function part(label, classes, picture, remove) {
  const button = make("button", {
    text: "×",
    attributes: { type: "button", "aria-label": "Leave out " + label },
    on: { click: () => { remove(); parts(); at("text").focus(); if (!empty()) search(); else start(); } },
  });
  return make("div", { classes: "part " + classes, attributes: { role: "listitem" } },
    ...(picture ? [picture] : []), make("span", { text: label }), button);
}

function parts() {
  const shown = [];
  if (asked.image) {
    const picture = make("img", { attributes: { alt: "", src: asked.image.address } });
    shown.push(part(asked.image.name, "pictured", picture, forget));
  }
  if (asked.item) {
    const picture = make("img", { attributes: { alt: "" } });
    show(picture, asked.item.id, 0, () => picture.remove());
    shown.push(part("like " + spoken(asked.item.name), "pictured", picture, () => { asked.item = null; }));
  }
  asked.minus.forEach((term, place) =>
    shown.push(part(term, "less", null, () => asked.minus.splice(place, 1))));
  at("parts").replaceChildren(...shown);
  at("parts").hidden = shown.length === 0;
}

const empty = () => !asked.text && !asked.image && !asked.item;

function forget() {
  if (asked.image) URL.revokeObjectURL(asked.image.address);
  asked.image = null;
}

function take(file) {
  if (!file) return;
  if (!file.type.startsWith("image/")) {
    tell("“" + file.name + "” is no image.", "JPEG, PNG, WebP, GIF and BMP can be searched with.");
    return;
  }
  forget();
  asked.image = { file, name: file.name || "pasted image", address: URL.createObjectURL(file) };
  asked.item = null;
  parts();
  search();
}

function less() {
  const term = at("minus").value.trim();
  if (!term) return;
  asked.minus.push(term);
  at("minus").value = "";
  parts();
  if (!empty()) search();
}

function like(result) {
  forget();
  asked.text = at("text").value = "";
  asked.minus = [];
  asked.item = { id: result.id, name: result.name };
  parts();
  at("results-heading").focus({ preventScroll: true });
  scrollTo({ top: 0 });
  search();
}

function body() {
  const form = new FormData();
  if (asked.text) form.set("text", asked.text);
  if (asked.image) form.set("image", asked.image.file);
  if (asked.item) form.set("item", asked.item.id);
  asked.minus.forEach((term) => form.append("minus", term));
  form.set("k", at("count").value);
  form.set("duplicates", at("collapse").checked ? "collapse" : "keep");
  form.set("plain", at("plain").checked);
  return form;
}

/** The query as an address, so that back and forward work. An image from outside has none. */
function address() {
  const query = new URLSearchParams();
  if (asked.text) query.set("q", asked.text);
  if (asked.item) { query.set("like", asked.item.id); query.set("name", asked.item.name); }
  asked.minus.forEach((term) => query.append("less", term));
  const text = query.toString();
  return text ? "?" + text : location.pathname;
}

function fromAddress() {
  const query = new URLSearchParams(location.search);
  forget();
  asked.text = at("text").value = query.get("q") || "";
  asked.minus = query.getAll("less");
  asked.item = query.get("like") ? { id: query.get("like"), name: query.get("name") || query.get("like") } : null;
  parts();
  if (empty()) start(); else search(false);
}

// ---- searching

async function search(remember = true) {
  asked.text = at("text").value.trim();
  tell("");
  if (empty()) {
    at("status").textContent = "Describe an image first, or choose one.";
    at("text").focus();
    return;
  }
  if (remember && address() !== location.search) history.pushState(null, "", address());
  at("results-heading").textContent = describe();
  document.title = describe() + " · aeir";
  const request = begin("Searching…");
  try {
    const answer = await (await ask("v1/search", { method: "POST", body: body(), signal: request.signal })).json();
    results(answer.results);
    at("status").textContent = summary(answer);
  } catch (error) {
    failed(error);
  } finally {
    end(request);
  }
}

/** Before anything is asked: some images of the index, to look around from. */
async function start() {
  document.title = "aeir: find images";
  at("results-heading").textContent = "Find images";
  const request = begin("");
  try {
    await introduce();
    const answer = await (await ask("v1/items?sample=12", { signal: request.signal })).json();
    results(answer.items);
    at("status").textContent = "Type what they should show, drop or paste an image, or begin from one of these.";
  } catch (error) {
    failed(error);
  } finally {
    end(request);
  }
}

function begin(message) {
  running?.abort();
  running = new AbortController();
  at("results").setAttribute("aria-busy", "true");
  at("status").textContent = message;
  return running;
}

function end(request) {
  if (running !== request) return;
  running = null;
  at("results").removeAttribute("aria-busy");
}

function failed(error) {
  if (error.name === "AbortError") return;
  results([]);
  at("status").textContent = "";
  // The dialog for the key has said it.
  if (error.status === 401) return;
  tell(error.message.charAt(0).toUpperCase() + error.message.slice(1), error.hint);
}

function summary(answer) {
  const shown = count(answer.results.length, "image", "images") + " in " + Math.max(1, Math.round(answer.took_ms)) + " ms";
  if (answer.confidence === undefined) return shown + ".";
  const share = percent(answer.confidence);
  if (answer.confidence < 0.05) {
    return shown + ". Probably none of them fits: only " + share + " of this domain's own sentences find nothing better.";
  }
  return shown + ". The best match is at least as good as that of " + share + " of this domain's own sentences.";
}

// ---- results

function results(items) {
  held.forEach((local) => URL.revokeObjectURL(local));
  held = [];
  found = items;
  at("results").replaceChildren(...items.map(tile));
  parts();
}

/** How good a match is: a percentage where it is calibrated, else the bare score. */
function measure(result) {
  if (result.score === undefined) return null;
  const calibrated = result.confidence !== undefined;
  const share = calibrated ? result.confidence : Math.min(1, Math.max(0, result.score));
  const figure = calibrated ? percent(share) : result.score.toFixed(3);
  const meaning = calibrated
    ? share < 1 ? percent(share) + " of this domain's own sentences find no better match" : "No sentence of this domain finds a better match"
    : "Similarity " + figure;
  const fill = make("i");
  fill.style.width = (100 * share).toFixed(1) + "%";
  return { figure, meaning, bar: make("div", { classes: "measure", attributes: { title: meaning } },
    make("div", { classes: "track", attributes: { "aria-hidden": "true" } }, fill),
    make("span", { attributes: { "aria-hidden": "true" }, text: figure }),
    make("span", { classes: "hidden", text: meaning })) };
}

function tile(result, place) {
  const image = make("img", { attributes: { alt: spoken(result.name), decoding: "async" } });
  const picture = make("button", {
    classes: "picture",
    attributes: { type: "button", "aria-haspopup": "dialog" },
    on: { click: () => look(place) },
  }, image);
  show(image, result.id, 0, (why) => {
    image.remove();
    picture.append(make("span", { classes: "missing", text: why }));
  });
  if (result.duplicates?.length) {
    picture.append(make("span", { classes: "same", text: "+" + result.duplicates.length + " the same" }));
  }
  const more = make("button", {
    classes: "plain",
    text: "More like this",
    attributes: { type: "button", "aria-label": "More like " + spoken(result.name) },
    on: { click: () => like(result) },
  });
  const score = measure(result);
  return make("li", { classes: "found" }, picture, make("div", { classes: "text" },
    make("div", { classes: "name", text: result.name, attributes: { title: result.name } }),
    ...(score ? [score.bar] : []), more));
}

/** Opens one result, large. */
function look(place) {
  const result = found[place];
  if (!result) return;
  looked = place;
  const image = make("img", { attributes: { alt: spoken(result.name), id: "view-image" } });
  at("view-image").replaceWith(image);
  show(image, result.id, 1024, (why) => { image.alt = why; });
  at("view-name").textContent = result.name;
  const score = measure(result);
  at("view-score").textContent = score ? "Rank " + result.rank + ". " + score.meaning + "." : "";
  at("view-facts").replaceChildren(...list(result.metadata || {}));
  at("view-back").disabled = place === 0;
  at("view-next").disabled = place === found.length - 1;
  const same = (result.duplicates || []).map((other) => {
    const small = make("img", { attributes: { alt: spoken(other.name), title: other.name } });
    show(small, other.id, 0, (why) => { small.alt = why; });
    return make("li", {}, small);
  });
  at("view-strip").replaceChildren(...same);
  at("view-same").hidden = same.length === 0;
  if (!at("view").open) at("view").showModal();
}

// ---- the index and its key

async function introduce() {
  if (card) return;
  card = await (await ask("v1/model")).json();
  at("about").textContent = count(card.items, "image", "images") + " in " + card.name;
  at("upload").hidden = !card.takes_images;
  at("plain-field").hidden = !card.correction;
  const facts = {
    Index: card.name + ", state " + card.generation,
    Images: card.items.toLocaleString("en"),
    "Written by": card.index_written_by,
    Method: card.method,
    "Serves the domain": card.domain,
    "Compares by": card.head === "cosine" ? "cosine" : "cosine, then " + card.head,
    "Vector length": card.dimension,
    "Hubness correction": card.correction || "none",
    "Sentences for confidence": card.bank_sentences ? card.bank_sentences.toLocaleString("en") : "none",
    Fingerprint: card.fingerprint,
  };
  at("card-facts").replaceChildren(...list(facts));
  at("card-scores").textContent = card.bank_sentences
    ? "How a match compares with the best matches of " + card.bank_sentences.toLocaleString("en") + " sentences of this domain: at 80 %, " +
      "four in five of them find no better one. Below 5 % it is probably none. It is not the chance of being right. Searches by image show " +
      "the bare similarity."
    : "This index has no sentences to compare with, so the bare similarity is shown. An index made with --query-bank shows how good a match is.";
}

function unlock(why) {
  at("lock-wrong").textContent = why;
  if (!at("lock").open) at("lock").showModal();
}

// ---- what a user does

at("search").addEventListener("submit", (event) => { event.preventDefault(); search(); });
at("upload").addEventListener("click", () => at("file").click());
at("file").addEventListener("change", () => { take(at("file").files[0]); at("file").value = ""; });
at("add-minus").addEventListener("click", less);
at("minus").addEventListener("keydown", (event) => {
  if (event.key === "Enter") { event.preventDefault(); less(); }
});
for (const id of ["count", "collapse", "plain"]) at(id).addEventListener("change", () => { if (!empty()) search(false); });
at("home").addEventListener("click", (event) => {
  event.preventDefault();
  history.pushState(null, "", location.pathname);
  fromAddress();
  at("text").focus();
});
addEventListener("popstate", fromAddress);

at("view-close").addEventListener("click", () => at("view").close());
at("view-back").addEventListener("click", () => look(looked - 1));
at("view-next").addEventListener("click", () => look(looked + 1));
at("view-like").addEventListener("click", () => { at("view").close(); like(found[looked]); });
at("view").addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") look(looked - 1);
  if (event.key === "ArrowRight") look(looked + 1);
});
at("card-open").addEventListener("click", () => at("card").showModal());
at("card-close").addEventListener("click", () => at("card").close());
for (const id of ["view", "card"]) {
  at(id).addEventListener("click", (event) => { if (event.target === at(id)) at(id).close(); });
}
at("unlock").addEventListener("submit", () => {
  key = at("key").value.trim();
  at("key").value = "";
  sessionStorage.setItem("key", key);
  tell("");
  introduce().then(fromAddress, failed);
});

addEventListener("keydown", (event) => {
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement?.tagName || "");
  if (event.key === "/" && !typing && !document.querySelector("dialog[open]")) {
    event.preventDefault();
    at("text").focus();
    at("text").select();
  }
});
addEventListener("paste", (event) => {
  const file = [...(event.clipboardData?.files || [])].find((file) => file.type.startsWith("image/"));
  if (file) { event.preventDefault(); take(file); }
});
let dragged = 0;
const carries = (event) => event.dataTransfer?.types.includes("Files");
addEventListener("dragenter", (event) => { if (carries(event)) { dragged += 1; at("drop").hidden = false; } });
addEventListener("dragleave", (event) => { if (carries(event) && --dragged <= 0) { dragged = 0; at("drop").hidden = true; } });
addEventListener("dragover", (event) => { if (carries(event)) event.preventDefault(); });
addEventListener("drop", (event) => {
  if (!carries(event)) return;
  event.preventDefault();
  dragged = 0;
  at("drop").hidden = true;
  take(event.dataTransfer.files[0]);
});

introduce().then(fromAddress, failed);
