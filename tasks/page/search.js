"use strict";
// Everything that comes from the collection or the user is written as text, never as HTML.

const element = (id) => document.getElementById(id);
const PAGE_SIZE = 24, SAMPLE = 96;
const state = { about: {}, mode: "browse", text: "", picture: null, shown: PAGE_SIZE, request: 0, results: [] };
const NAMES = (() => {
  try { return new Intl.DisplayNames(["en"], { type: "language" }); } catch { return null; }
})();

const languageName = (code) => {
  try { return (code && NAMES && NAMES.of(code)) || code || "caption"; } catch { return code; }
};
const pictureAddress = (id, size) => `/api/images/${encodeURIComponent(id)}?size=${size}`;
const count = (number) => number.toLocaleString("en");

async function ask(address, options) {
  let answer;
  try {
    answer = await fetch(address, options);
  } catch {
    throw new Error("The server does not answer. Is it still running?");
  }
  const content = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(typeof content.detail === "string" ? content.detail : `The server says ${answer.status}.`);
  return content;
}

// The caption in the language of the page's reader or of the query, else the first, else the name of the file.
function words(picture) {
  const codes = Object.keys(picture.captions);
  const asked = state.mode === "text" ? codes.find((code) => picture.captions[code].toLowerCase().includes(state.text.toLowerCase())) : null;
  const scripted = state.mode === "text" ? codes.find((code) => sameScript(picture.captions[code], state.text)) : null;
  const own = codes.find((code) => navigator.language.split("-")[0] === code);
  const chosen = asked ?? scripted ?? own ?? codes[0];
  return chosen === undefined ? { text: picture.name, code: "" } : { text: picture.captions[chosen], code: chosen };
}

const SCRIPTS = [/\p{Script=Hiragana}|\p{Script=Katakana}/u, /\p{Script=Han}/u, /\p{Script=Cyrillic}/u, /\p{Script=Arabic}/u, /\p{Script=Hangul}/u];
function sameScript(caption, text) {
  const script = SCRIPTS.find((each) => each.test(text));
  return script !== undefined && script.test(caption);
}

function make(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function card(picture, number) {
  const item = make("li"), button = make("button", "card"), shot = make("span", "shot"), image = make("img");
  const caption = words(picture), label = make("span", "words", caption.text);
  button.type = "button";
  image.alt = caption.text;
  image.loading = "lazy";
  image.decoding = "async";
  image.addEventListener("error", () => image.classList.add("lost"));
  image.src = pictureAddress(picture.id, "small");
  label.lang = caption.code;
  label.dir = "auto";
  label.setAttribute("aria-hidden", "true");
  shot.append(image);
  button.append(shot, label);
  if (picture.score !== undefined) button.append(scoreLine(picture, number));
  button.addEventListener("click", () => open(picture));
  item.append(button);
  return item;
}

function scoreText(picture) {
  const similarity = `similarity ${picture.similarity.toFixed(3)}`;
  return picture.match == null ? similarity : `match ${(100 * picture.match).toFixed(1)} %, ${similarity}`;
}

// The bar compares with the other results: what orders them is no probability.
function scoreLine(picture, number) {
  const line = make("span", "score"), meter = make("meter");
  const [best, last] = [state.results[0], state.results.at(-1)].map((each) => each.score);
  meter.value = best > last ? 0.05 + 0.95 * (picture.score - last) / (best - last) : 1;
  meter.setAttribute("aria-hidden", "true");
  line.title = scoreText(picture);
  const value = picture.match == null ? picture.similarity.toFixed(3) : `${(100 * picture.match).toFixed(1)} %`;
  line.append(make("span", "", number + 1), meter, make("span", "value", value));
  return line;
}

function show(pictures, message, hasMore) {
  state.results = pictures;
  element("results").replaceChildren(...pictures.map(card));
  element("results").classList.remove("waiting");
  element("status").textContent = message;
  element("more").hidden = !hasMore;
  document.body.classList.toggle("searched", state.mode !== "browse");
}

function tell(error) {
  const problem = element("problem");
  problem.hidden = !error;
  problem.textContent = error ? error.message : "";
  element("results").classList.remove("waiting");
}

async function run() {
  const request = ++state.request;
  const waiting = setTimeout(() => element("results").classList.add("waiting"), 150);
  try {
    const answer = await { browse, text: searchText, picture: searchPicture }[state.mode]();
    if (request !== state.request) return;
    tell(null);
    const hasMore = answer.pictures.length >= state.shown && state.shown < answer.limit;
    show(answer.pictures, answer.message, hasMore);
  } catch (error) {
    if (request !== state.request) return;
    if (state.shown === PAGE_SIZE) show([], "", false); // what stands there answers another search
    tell(error);
  } finally {
    clearTimeout(waiting);
  }
}

async function browse() {
  const answer = await ask(sampleAddress(state.shown));
  return { pictures: answer.images, limit: Math.min(answer.total, SAMPLE), message: `${count(answer.total)} pictures, some of them below` };
}

// Mixed: neighbours in a folder are often alike.
const sampleAddress = (shown) => `/api/images?count=${Math.min(shown, SAMPLE)}&mixed=true`;

async function searchText() {
  const body = { text: state.text, k: Math.min(state.shown, state.about.max_results) };
  if (!element("rerank").checked) body.rerank = 0;
  return found(await ask("/api/search/text", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) }));
}

async function searchPicture() {
  const k = Math.min(state.shown, state.about.max_results);
  return found(await ask(`/api/search/image?k=${k}`, { method: "POST", headers: { "Content-Type": state.picture.type || "application/octet-stream" }, body: state.picture }));
}

function found(answer) {
  const twice = answer.num_reranked ? ` \u00b7 ${answer.num_reranked} of them re-ranked` : "";
  const message = `${count(answer.results.length)} of ${count(state.about.num_images)} pictures \u00b7 ${Math.max(1, Math.round(answer.milliseconds))} ms${twice}`;
  return { pictures: answer.results, limit: Math.min(state.about.max_results, state.about.num_images), message };
}

function start(mode, value) {
  Object.assign(state, { mode, shown: PAGE_SIZE, text: mode === "text" ? value : "", picture: mode === "picture" ? value : null });
  const asked = element("asked");
  if (asked.src) URL.revokeObjectURL(asked.src);
  asked.hidden = mode !== "picture";
  if (mode === "picture") {
    asked.src = URL.createObjectURL(value);
    asked.alt = "The picture that is searched by";
    element("query").value = "";
  } else {
    asked.removeAttribute("src");
  }
  document.title = value && mode === "text" ? `${value} - Rosetta-VL` : "Rosetta-VL: find pictures";
  element("title").textContent = { browse: "Find a picture, in your own words", text: `Pictures for \u201c${value}\u201d`, picture: "Pictures like yours" }[mode];
  return run();
}

function startText(text, keepsAddress) {
  element("query").value = text;
  if (!keepsAddress) history.pushState(null, "", text ? `/?q=${encodeURIComponent(text)}` : "/");
  return start(text ? "text" : "browse", text);
}

function startPicture(file) {
  if (!file) return;
  if (file.size > state.about.max_upload_bytes) {
    tell(new Error(`This picture has ${(file.size / 2 ** 20).toFixed(1)} MB; allowed are ${(state.about.max_upload_bytes / 2 ** 20).toFixed(0)} MB.`));
    return;
  }
  history.pushState(null, "", "/");
  start("picture", file);
}

function open(picture) {
  const dialog = element("details"), captions = element("details-captions");
  element("details-image").src = pictureAddress(picture.id, "large");
  element("details-image").alt = words(picture).text;
  element("details-name").textContent = picture.name;
  element("details-score").textContent = picture.similarity === undefined ? "" : scoreText(picture);
  captions.replaceChildren();
  for (const [code, text] of Object.entries(picture.captions)) {
    const value = make("dd", "", text);
    value.lang = code;
    value.dir = "auto";
    captions.append(make("dt", "", languageName(code)), value);
  }
  element("similar").onclick = async () => {
    dialog.close();
    try {
      startPicture(await (await fetch(pictureAddress(picture.id, "large"))).blob());
    } catch (error) { tell(error); }
  };
  dialog.showModal();
}

// A few captions of the collection, each in another language, so that the first click finds something.
function offerExamples(pictures) {
  const codes = state.about.languages, chosen = [];
  for (const picture of pictures) {
    const code = codes.length ? codes[chosen.length % codes.length] : "", text = picture.captions[code];
    if (text && text.length <= 22 && chosen.length < 8) chosen.push({ code, text });
  }
  element("examples").replaceChildren(...chosen.map(({ code, text }) => {
    const item = make("li"), button = make("button", "", text);
    button.type = "button";
    button.lang = code;
    button.addEventListener("click", () => startText(text));
    item.append(button);
    return item;
  }));
}

function listen() {
  element("search").addEventListener("submit", (event) => {
    event.preventDefault();
    startText(element("query").value.trim());
  });
  element("file").addEventListener("change", (event) => { startPicture(event.target.files[0]); event.target.value = ""; });
  element("rerank").addEventListener("change", () => { if (state.mode === "text") run(); });
  element("more").addEventListener("click", () => { state.shown += PAGE_SIZE; run(); });
  element("details").addEventListener("click", (event) => { if (event.target === element("details")) element("details").close(); });
  addEventListener("popstate", () => startText(new URLSearchParams(location.search).get("q") || "", true));
  addEventListener("keydown", (event) => {
    if (event.key === "/" && !/^(INPUT|TEXTAREA)$/.test(document.activeElement.tagName) && !element("details").open) {
      event.preventDefault();
      element("query").focus();
      element("query").select();
    }
  });
  addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])].find((each) => each.type.startsWith("image/"));
    if (file) startPicture(file);
  });
  let depth = 0;
  const hasFile = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  const cover = (isShown) => { element("drop").hidden = !isShown; if (!isShown) depth = 0; };
  addEventListener("dragenter", (event) => { if (hasFile(event)) { depth += 1; cover(true); } });
  addEventListener("dragleave", () => { depth -= 1; if (depth <= 0) cover(false); });
  addEventListener("dragover", (event) => { if (hasFile(event)) event.preventDefault(); });
  addEventListener("drop", (event) => { if (hasFile(event)) { event.preventDefault(); cover(false); startPicture(event.dataTransfer.files[0]); } });
}

async function begin() {
  listen();
  try {
    state.about = await ask("/api/health");
    element("about").textContent = `${state.about.model} \u00b7 ${count(state.about.num_images)} pictures`;
    element("foot").textContent = state.about.languages.length ? `captions in ${state.about.languages.map(languageName).join(", ")}` : "";
    element("rerank-option").hidden = !state.about.has_fusion || !state.about.num_candidates;
    element("query").maxLength = state.about.max_text_length;
    offerExamples((await ask(sampleAddress(SAMPLE))).images);
  } catch (error) { tell(error); }
  startText(new URLSearchParams(location.search).get("q") || "", true);
  if (matchMedia("(hover: hover)").matches) element("query").focus();
}

begin();
