// The page: one state, drawn anew whenever it changes, and the questions it asks.

import { ask, info, startedBy } from "./api.js";
import { announce, byId, complain, make, TOUCH } from "./dom.js";
import * as heat from "./heat.js";
import { maskCards, togetherCard } from "./predictions.js";
import { setUpPicture } from "./picture.js";
import { setUpSave } from "./save.js";
import { setUpSearch } from "./search.js";
import { read, write } from "./state.js";
import { drawHeat, drawWords, moveFocus, point, pointedAt, untold } from "./text.js";
import { setUpTheme } from "./theme.js";
import { cut, hide, replace } from "./words.js";

const ASK_AFTER = 120; // milliseconds without a change
// By view that colours words: what is asked, and how it is drawn.
const HEATS = {
  surprisal: ["score", heat.surprisal],
  influence: ["saliency", heat.influence],
  replaced: ["replaced", heat.replaced],
};
let server; // what /api/info said
let state = read(location.hash);
let picture; // the picture that was dropped: {id, show, draw, again}
let words = []; // of state.text
let seen; // the text as the model gets it: {masked, masks, spans}
// `of`: the text that the predictions are of
let answers = { of: null, fills: [], joints: [], asked: [], heats: [] };
let turn = 0; // counts the changes, so that late answers are dropped
let waiting;

/** What is asked side by side: each model, and one model with and without its picture. */
function columns() {
  const seeing = server.models.flatMap((model, index) => (model.pictures ? [index] : []));
  const plain = server.models.map((model, index) => ({ model: index, label: model.name }));
  if (!picture.id() || !seeing.length) return plain;
  if (server.models.length > 1) {
    return plain.map((one) => (seeing.includes(one.model) ? { ...one, picture: picture.id() } : one));
  }
  return [
    { model: 0, label: "with the picture", picture: picture.id() },
    { model: 0, label: "without" },
  ];
}

/** Ask one thing of every column. */
function askEach(name, more, kind) {
  return Promise.all(
    columns().map((column, place) => {
      const asked = { model: column.model, text: seen.masked, ...more };
      const question = column.picture ? { ...asked, picture: column.picture } : asked;
      return ask(name, question, `${kind} ${place}`);
    }),
  );
}

/** Take a change: draw at once what is known, and ask for the rest. */
function change(next, { focus = null, now = false } = {}) {
  state = { ...state, ...next };
  words = cut(state.text);
  state.hidden = new Set([...state.hidden].filter((index) => index < words.length));
  seen = hide(state.text, words, state.hidden);
  state.chosen = Math.min(state.chosen, Math.max(0, seen.masks.length - 1));
  const needs = { influence: seen.masks.length, where: picture.id() };
  if (state.view in needs && !needs[state.view]) state.view = "plain";
  history.replaceState(null, "", write(state));
  answers.heats = [];
  drawWords({ state, words, seen, drawOver: picture.draw }, focus);
  drawControls();
  drawStale(seen.masked);
  clearTimeout(waiting);
  turn += 1;
  busy(true);
  waiting = setTimeout(askAll, now ? 0 : ASK_AFTER, turn);
}

async function askAll(mine) {
  try {
    await Promise.all([askFills(mine), askHeat(mine)]);
    if (mine === turn) complain("text", null);
  } catch (error) {
    if (error.name === "AbortError" || mine !== turn) return;
    complain("text", error.message);
    if (answers.of !== seen.masked) drawAnswers({ fills: [], joints: [], asked: [] });
  } finally {
    if (mine === turn) busy(false);
  }
}

async function askFills(mine) {
  if (!seen.masks.length) {
    drawAnswers({ fills: [], joints: [], asked: [] });
    return;
  }
  const fills = await askEach("fill", { top_k: state.topK }, "fill");
  if (mine !== turn) return;
  drawAnswers({ fills, joints: [], asked: [] });
  if (state.asked) await askWord(mine);
  if (seen.masks.length < 2 || mine !== turn) return;
  const joints = await askEach("fill", { top_k: 5, together: true }, "joint");
  if (mine === turn) drawAnswers({ joints });
}

/** How likely a word is; what is wrong with it is said beside its field. */
async function askWord(mine) {
  let asked;
  try {
    asked = await askEach("fill", { top_k: 1, words: [state.asked] }, "asked");
  } catch (error) {
    if (error.name === "AbortError" || mine !== turn) return;
    asked = error.message;
  }
  if (mine === turn) drawAnswers({ asked });
}

async function askHeat(mine) {
  if (state.view === "plain" || seen.masks.length === words.length) return;
  const heats = await (state.view === "where" ? askWhere() : askColours());
  if (mine !== turn) return;
  answers.heats = heats;
  drawHeat(heats);
}

async function askColours() {
  const [name, draw] = HEATS[state.view];
  const each = columns();
  const found = await askEach(name, state.view === "influence" ? { mask: state.chosen } : {}, "heat");
  const heats = found.map((answer, place) => ({
    name: each.length > 1 ? each[place].label : "",
    model: each[place].label,
    label: each[place].label + total(answer),
    ...draw(seen.spans, words, answer),
  }));
  if (state.view !== "surprisal" || heats.length < 2) return heats;
  const [one, other] = heats;
  const label = `difference: green where ${other.name} is less surprised`;
  return [...heats, { name: other.name, model: "difference", label, ...heat.difference(one.colours, other.colours) }];
}

/** Where the model looks for each word; the words that are hidden are shown to it. */
async function askWhere() {
  const model = server.models.findIndex((one) => one.pictures);
  const found = await ask("explain", { model, text: state.text, picture: picture.id() }, "heat 0");
  const { spans } = hide(state.text, words, new Set());
  const about = { name: "", model: server.models[model].name, label: heat.matchLabel(found) };
  return [{ ...about, ...heat.where(spans, words, found) }];
}

function total(answer) {
  if (answer.log_probability === undefined) return "";
  const each = answer.log_probability / answer.tokens;
  return ` · ${answer.log_probability.toFixed(1)} nats, ${each.toFixed(2)} a token`;
}

// Drawing

function drawControls() {
  const missing = {
    influence: seen.masks.length ? null : "hide a word first",
    where: picture.id() ? null : "choose a picture first",
  };
  for (const button of byId("views").querySelectorAll("button")) {
    const { view } = button.dataset;
    button.setAttribute("aria-pressed", String(view === state.view));
    button.disabled = Boolean(missing[view]);
    button.title = missing[view] ?? "";
  }
  byId("picture-strength").hidden = state.view !== "where";
}

/** What the predictions are shown with. */
function context() {
  return { ...answers, columns: columns(), masks: seen.masks, words, state, actions };
}

function drawAnswers(found) {
  answers = { ...answers, ...found, of: seen.masked };
  const shown = context();
  const asking = document.activeElement?.id === "ask-word";
  const hint = `${TOUCH ? "Tap" : "Press"} a word to hide it; what a model would put there stands here.`;
  const empty = seen.masks.length || !words.length ? [] : [make("p", { class: "empty", text: hint })];
  byId("answers").replaceChildren(...(answers.fills.length ? maskCards(shown) : empty));
  byId("answers").classList.toggle("many", seen.masks.length > 1 && shown.columns.length === 1);
  if (asking) byId("ask-word")?.focus();
  const joint = togetherCard(shown.columns, answers.joints);
  byId("together").replaceChildren(...(joint ? [joint] : []));
  drawStale(seen.masked);
}

/** Predictions of a text that is no longer there are pale, and cannot be put into this one. */
function drawStale(masked) {
  for (const id of ["answers", "together"]) {
    byId(id).inert = answers.of !== null && answers.of !== masked;
  }
}

function busy(on) {
  byId("progress").classList.toggle("on", on);
  byId("answers").setAttribute("aria-busy", String(on));
}

// What people do

const actions = {
  put(index, token) {
    const next = replace(state.text, words, state.hidden, index, token);
    change(next, { focus: index, now: true });
  },
  more() {
    const topK = state.topK >= 100 ? 10 : state.topK < 25 ? 25 : state.topK < 50 ? 50 : 100;
    change({ topK }, { now: true });
  },
  askWord(asked) {
    change({ asked }, { now: true });
  },
};

function toggle(index) {
  if (words[index].typed) {
    change({ chosen: seen.masks.indexOf(index) }, { focus: index });
    return;
  }
  const hidden = new Set(state.hidden);
  if (!hidden.delete(index)) hidden.add(index);
  const masks = hide(state.text, words, hidden).masks;
  const chosen = Math.max(0, masks.indexOf(index));
  change({ hidden, chosen }, { focus: index });
}

function writeMode(on) {
  const area = byId("writing");
  area.hidden = !on;
  for (const id of ["words", "other-heats", "about-word"]) byId(id).hidden = on;
  byId("mode-write").setAttribute("aria-pressed", String(on));
  byId("mode-mask").setAttribute("aria-pressed", String(!on));
  if (on) {
    area.value = state.text;
    area.maxLength = server.limits.characters;
    area.focus();
    area.setSelectionRange(area.value.length, area.value.length);
    byId("heat-name").hidden = true;
    grow(area);
    return;
  }
  const text = area.value;
  if (text !== state.text) change({ text, hidden: new Set(), chosen: 0 }, { focus: 0 });
  else change({}, { focus: 0 });
}

/** Where the browser does not size a text field by its content itself. */
function grow(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + 2}px`;
}

function writing(event) {
  grow(event.target);
  complain("text", null);
  drawStale(event.target.value === state.text ? seen.masked : null);
}

const wordAt = (event) => {
  const index = event.target.closest?.(".word")?.dataset.index;
  return index === undefined ? null : Number(index);
};

function listenToWords(box) {
  let told = null; // by a finger: whether the word was the one pointed at when it came down
  box.addEventListener("pointerdown", (event) => {
    told = event.pointerType === "touch" ? !untold(wordAt(event)) : true;
  });
  box.addEventListener("click", (event) => {
    const index = wordAt(event);
    if (index === null) return;
    // A finger cannot hover: its first tap on a coloured word tells, the next one hides.
    const hides = told ?? true;
    told = null;
    if (hides) toggle(index);
    else point(index);
  });
  box.addEventListener("keydown", moveFocus);
  for (const kind of ["mouseover", "focusin"]) {
    box.addEventListener(kind, (event) => {
      const index = wordAt(event);
      if (index !== null && index !== pointedAt()) point(index);
    });
  }
}

function listenToKeys(event) {
  const typing = event.target.closest?.("input, textarea");
  if (event.key !== "e" || typing || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  writeMode(true);
}

function paste(event) {
  if (event.target.closest?.("input, textarea")) return;
  const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
  const text = event.clipboardData.getData("text/plain").slice(0, server.limits.characters);
  if (file && !byId("picture").hidden) picture.show(file);
  else if (text.trim()) change({ text: text.trim(), hidden: new Set(), chosen: 0 });
}

function listen() {
  listenToWords(byId("words"));
  byId("views").addEventListener("click", (event) => {
    const view = event.target.closest("button")?.dataset.view;
    if (view) change({ view }, { now: true });
  });
  byId("mode-write").addEventListener("click", () => writeMode(true));
  byId("mode-mask").addEventListener("click", () => writeMode(false));
  byId("writing").addEventListener("input", writing);
  byId("writing").addEventListener("keydown", (event) => {
    const ends = event.key === "Escape" || (event.key === "Enter" && (event.ctrlKey || event.metaKey));
    if (ends) writeMode(false);
  });
  document.addEventListener("keydown", listenToKeys);
  document.addEventListener("paste", paste);
  addEventListener("hashchange", () => change(read(location.hash)));
}

function drawModels() {
  const names = server.models.map((model) => make("span", { text: model.name }));
  byId("models").replaceChildren(...names.flatMap((name, i) => (i ? [make("i", { text: "beside" }), name] : [name])));
  document.title = `${server.models.map((model) => model.name).join(" · ")} · Maskery`;
  const show = (view, shown) => (byId("views").querySelector(`[data-view=${view}]`).hidden = !shown);
  const sees = server.models.some((model) => model.pictures);
  byId("picture").hidden = !sees;
  show("where", sees);
  show("replaced", server.models.every((model) => model.detects));
}

/** Ask what is served, now and whenever the server is back; returns whether it answers. */
async function meet() {
  try {
    server = await info();
  } catch (error) {
    complain("text", error.message);
    return false;
  }
  startedBy(server.command);
  for (const field of ["text", "picture", "search"]) complain(field, null);
  drawModels();
  return true;
}

async function start() {
  if (!(await meet())) {
    addEventListener("back", start, { once: true });
    return;
  }
  const refresh = () => change({}, { now: true });
  picture = setUpPicture({ refresh, busy, limit: server.limits.picture_bytes });
  setUpSearch(server.gallery);
  setUpSave(context, () => Boolean(picture.id()), announce);
  listen();
  for (const button of document.querySelectorAll("button:disabled")) button.disabled = false;
  addEventListener("back", async () => (await meet()) && picture.again());
  if (byId("views").querySelector(`[data-view=${state.view}]`).hidden) state.view = "plain";
  change({}, { now: true });
}

setUpTheme(byId("theme"));
start();
