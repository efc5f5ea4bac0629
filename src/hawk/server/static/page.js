// The page: reads the form, draws one picture or a race of two, and keeps what was drawn in this browser.

import { Panel, bytesOf } from "./panel.js";
import { textOf } from "./png.js";
import { follow, reach, refusal } from "./stream.js";

const PARTIALS = 7, KEPT = 18, STORE = "hawk-history";
const NUMBERS = ["guidance_scale", "temperature", "top_k", "top_p"], LONGEST = 4000;
const METHODS = {
  hawk: "many tokens per forward: guesses from the cell above and from earlier forwards",
  scd: "many tokens per forward: guesses from earlier forwards, at first from noise",
  ar: "plain decoding: one token per forward",
};
const at = (id) => document.getElementById(id);

let facts = null; // what /live/about says
let running = null; // the AbortController of the drawing under way
let panels = [];

// --- the form ---------------------------------------------------------------------------------------------------

function headers() {
  const key = at("key").value.trim();
  if (!/^[\x21-\x7e]*$/.test(key)) throw new Error("An API key has no other characters than those of ASCII.");
  return key ? { authorization: `Bearer ${key}` } : {};
}

async function readFacts() {
  const answer = await reach("/live/about", { headers: headers() });
  if (answer.status === 401) {
    at("key-label").hidden = false;
    at("settings").open = true;
    const given = at("key").value.trim();
    throw new Error(given ? "The API key is wrong." : "This server asks for an API key: enter it under Settings.");
  }
  if (!answer.ok) throw await refusal(answer);
  facts = await answer.json();
  at("model").textContent = `${facts.model}, ${facts.width} x ${facts.height} pixels. Type what to draw, and watch the picture appear as its tokens are committed.`;
  at("method").replaceChildren(...facts.methods.map(({ name }) => new Option(name, name, name === "hawk", name === "hawk")));
  const suggestions = [...facts.prompts].sort(() => Math.random() - 0.5).slice(0, 8);
  at("chips").replaceChildren(...suggestions.map((text) => button(text, () => ((at("prompt").value = text), draw(false)))));
  at("chips").hidden = !suggestions.length;
  reset();
}

function reset() {
  for (const name of NUMBERS) at(name).value = facts?.[name] ?? "";
  at("seed").value = at("negative_prompt").value = "";
  if (facts) at("method").value = "hawk";
  explain();
}

function explain() {
  const chosen = facts?.methods.find(({ name }) => name === at("method").value);
  at("method-why").textContent = chosen ? (METHODS[chosen.name] ?? chosen.summary) : "";
}

/** What the form asks for; throws an Error for what is no number. The server checks the rest. */
function asked() {
  const seed = at("seed").value.trim();
  if (!/^\d*$/.test(seed)) throw new Error("The seed must be a whole number of 0 or more, or empty.");
  const body = { prompt: at("prompt").value, negative_prompt: at("negative_prompt").value, method: at("method").value };
  for (const name of NUMBERS) {
    if (at(name).validity.badInput) throw new Error(`${name.replace("_", " ")} must be a number.`);
    if (at(name).value !== "") body[name] = Number(at(name).value);
  }
  return { body, seed };
}

// --- drawing ----------------------------------------------------------------------------------------------------

async function draw(race) {
  if (running) return;
  clear();
  if (!at("prompt").value.trim()) {
    fail(new Error("Say what to draw, as in: a red apple on a blue background."));
    at("prompt").focus();
    return;
  }
  running = new AbortController();
  busy(true);
  try {
    if (!facts) await readFacts();
    const { body, seed } = asked();
    const drawing = race ? contest(body, seed || String(Math.floor(Math.random() * 2 ** 31))) : single(body, seed);
    await drawing;
  } catch (error) {
    fail(error);
    if (!panels.some(({ pictured, drawn }) => pictured || drawn)) at("stage").hidden = true;
  } finally {
    running = null;
    busy(false);
  }
}

async function single(body, seed) {
  const title = body.prompt;
  panels = [new Panel(at("panels"), facts, title, "waiting")];
  at("stage").hidden = false;
  say(`Drawing ${title}`);
  await watch(panels[0], { ...body, partials: PARTIALS }, seed);
  say(`Drawn: ${title}, in ${panels[0].drawn.nfe} forwards`);
  finished(panels[0], body);
}

/** Plain decoding and another method from one seed, at the same time; each clock counts its own steps alone. */
async function contest(body, seed) {
  const rival = body.method === "ar" ? "hawk" : body.method;
  panels = [
    new Panel(at("panels"), facts, "Plain decoding", "one token per forward"),
    new Panel(at("panels"), facts, rival === "hawk" ? "Hawk" : rival, "many tokens per forward"),
  ];
  at("stage").hidden = false;
  say("The race begins");
  const methods = ["ar", rival];
  const ended = await Promise.allSettled(
    panels.map((panel, i) => watch(panel, { ...body, method: methods[i], partials: PARTIALS }, seed)),
  );
  const failed = ended.find(({ status }) => status === "rejected");
  if (failed) throw failed.reason;
  const [plain, other] = panels.map(({ drawn }) => drawn);
  const same = plain.tokens_sha256 === other.tokens_sha256;
  const times = (plain.seconds / other.seconds).toFixed(1);
  at("verdict").textContent = same
    ? `Identical: all ${panels[0].size} tokens. ${panels[1].title} took ${other.seconds.toFixed(1)} s and ${other.nfe} forwards, plain decoding ${plain.seconds.toFixed(1)} s and ${plain.nfe} forwards: ${times} times as fast.`
    : `The pictures differ: rounding let a near-tie between two tokens fall the other way. ${times} times as fast.`;
  at("verdict").hidden = false;
  say(at("verdict").textContent);
  finished(panels[1], { ...body, method: rival });
}

async function watch(panel, body, seed) {
  const waiting = [];
  await follow("/live/draw", withSeed(body, seed), headers(), running.signal, {
    accepted: (data) => {
      panel.accepted(data);
      hint(data.hint);
    },
    step: (data) => panel.step(data),
    partial: (data) => waiting.push(panel.partial(data)),
    drawn: (data) => waiting.push(panel.finish(data)),
  });
  await Promise.all(waiting);
  if (!panel.drawn) throw new Error("The connection ended before the picture was finished: draw it again.");
}

/** The body as JSON text. A seed may have more digits than a number of JavaScript holds. */
function withSeed(body, seed) {
  const text = JSON.stringify(body);
  return seed ? `{"seed":${BigInt(seed)},${text.slice(1)}` : text;
}

// --- after a drawing --------------------------------------------------------------------------------------------

function finished(panel, body) {
  const link = `data:image/png;base64,${panel.drawn.picture}`;
  at("download").href = link;
  at("download").download = `${body.prompt.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 60) || "hawk"}-${panel.seed}.png`;
  const steps = panel.steps.length;
  Object.assign(at("replay"), { max: steps, value: steps });
  const kinds = panel.kinds().map(({ kind, label, count }) => {
    const entry = document.createElement("li"), mark = document.createElement("i");
    mark.className = kind;
    entry.append(mark, `${label}: ${count}`);
    return entry;
  });
  at("legend").replaceChildren(...kinds);
  at("overlay").checked = false;
  at("look").hidden = false;
  look();
  keep(link, body.prompt);
}

function look() {
  const panel = panels.at(-1), step = Number(at("replay").value), sources = at("overlay").checked;
  at("legend").hidden = !sources;
  const { committed, fresh } = panel.show(step, sources);
  at("replay-text").value = `Forward ${step} of ${panel.steps.length} committed ${fresh} ${fresh === 1 ? "token" : "tokens"}; ${committed} of ${panel.size} are there.`;
}

// --- history and settings of a picture --------------------------------------------------------------------------

function kept() {
  try {
    const found = JSON.parse(localStorage.getItem(STORE));
    return Array.isArray(found) ? found.filter(({ link }) => String(link).startsWith("data:image/png;base64,")) : [];
  } catch {
    return []; // storage is off, or something else wrote there
  }
}

function keep(link, prompt) {
  let entries = [{ link, prompt }, ...kept()].slice(0, KEPT);
  for (; entries.length; entries = entries.slice(0, -1)) {
    try {
      localStorage.setItem(STORE, JSON.stringify(entries));
      break;
    } catch {
      // the store is full, or off: the oldest picture makes room
    }
  }
  if (!entries.length) hint("This browser keeps no history: its storage is full or off.");
  list();
}

function list() {
  const entries = kept();
  at("past").hidden = !entries.length;
  at("history").replaceChildren(
    ...entries.map(({ link, prompt }) => {
      const entry = document.createElement("li"), image = new Image(), name = document.createElement("span");
      image.src = link;
      image.alt = "";
      name.textContent = prompt;
      const again = button("", () => restore(bytesOf(link.slice(link.indexOf(",") + 1)).buffer));
      again.title = `Settings of: ${prompt}`;
      again.append(image, name);
      entry.append(again);
      return entry;
    }),
  );
}

/** Put the prompt and the settings of a PNG file of Hawk's into the form. */
function restore(buffer) {
  clear(false);
  try {
    const text = textOf(buffer), settings = settingsOf(text);
    at("prompt").value = oneLine(text.prompt);
    at("negative_prompt").value = oneLine(text.negative_prompt ?? "");
    at("seed").value = text.seed ?? "";
    at("guidance_scale").value = settings.cfg_scale ?? "";
    for (const name of NUMBERS.slice(1)) at(name).value = settings[name] ?? "";
    if (facts?.methods.some(({ name }) => name === text.method)) at("method").value = text.method;
    explain();
    at("settings").open = true;
    at("draw").focus();
    say(`The settings of the picture are in the form: ${text.prompt}`);
    const size = `${settings.width} x ${settings.height}`, own = facts && `${facts.width} x ${facts.height}`;
    if (facts && text.model && text.model !== facts.model) hint(`This picture was drawn by another model: ${text.model}.`);
    else if (facts && settings.width && size !== own) hint(`This picture has ${size} pixels; this page draws ${own}.`);
  } catch (error) {
    fail(error);
  }
}

/** The settings in a PNG's text; throws an Error where it is not text that Hawk wrote. */
function settingsOf(text) {
  let settings = null;
  try {
    settings = JSON.parse(text.settings);
  } catch {
    // no text, or no JSON text: refused below
  }
  if (!("prompt" in text) || settings === null || typeof settings !== "object" || !("temperature" in settings))
    throw new Error("This PNG carries no settings of Hawk's.");
  if (text.prompt.length > LONGEST) throw new Error(`The prompt of this PNG has more than ${LONGEST} characters.`);
  return settings;
}

/** A prompt as a field of one line holds it. */
function oneLine(text) {
  return text.replace(/\s*[\r\n]+\s*/g, " ");
}

// --- small parts ------------------------------------------------------------------------------------------------

function button(text, act) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  made.addEventListener("click", act);
  return made;
}

function busy(is) {
  for (const name of ["draw", "race"]) at(name).disabled = is;
  at("stop").hidden = !is;
}

function clear(pictures = true) {
  for (const name of ["error", "hint"]) at(name).hidden = true;
  for (const field of document.querySelectorAll("[aria-invalid]")) field.removeAttribute("aria-invalid");
  if (!pictures) return;
  panels = [];
  at("panels").replaceChildren();
  for (const name of ["stage", "verdict", "look"]) at(name).hidden = true;
}

function fail(error) {
  const stopped = error.name === "AbortError";
  at("error").textContent = stopped ? "Stopped." : error.message;
  at("error").hidden = false;
  if (at("form").elements[error.param]) at("form").elements[error.param].setAttribute("aria-invalid", "true");
}

function hint(text) {
  at("hint").textContent = text;
  at("hint").hidden = !text;
}

function say(text) {
  at("status").textContent = text;
}

at("form").addEventListener("submit", (event) => (event.preventDefault(), draw(false)));
at("race").addEventListener("click", () => draw(true));
at("stop").addEventListener("click", () => running?.abort());
at("reset").addEventListener("click", reset);
at("method").addEventListener("change", explain);
at("key").addEventListener("change", () => {
  sessionStorage.setItem("hawk-key", at("key").value);
  readFacts().then(() => clear(false), fail);
});
for (const name of ["overlay", "replay"]) at(name).addEventListener("input", look);
at("forget").addEventListener("click", () => (localStorage.removeItem(STORE), list()));
at("file").addEventListener("change", async () => {
  const file = at("file").files[0];
  if (file) restore(await file.arrayBuffer());
});
document.addEventListener("keydown", (event) => event.key === "Escape" && running?.abort());
document.addEventListener("dragover", (event) => (event.preventDefault(), document.body.classList.add("over")));
document.addEventListener("dragleave", (event) => event.relatedTarget || document.body.classList.remove("over"));
document.addEventListener("drop", async (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  const file = event.dataTransfer.files[0];
  if (file) restore(await file.arrayBuffer());
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => panels.at(-1)?.drawn && look());

at("key").value = sessionStorage.getItem("hawk-key") ?? "";
list();
readFacts().catch(fail);
