// The page: one state, drawn anew whenever it changes, and the questions it asks.

import { ask, info } from "./api.js";
import { byId, make } from "./dom.js";
import * as heat from "./heat.js";
import { maskCards, togetherCard } from "./predictions.js";
import { setUpPicture } from "./picture.js";
import { setUpSearch } from "./search.js";
import { read, write } from "./state.js";
import { setUpShare } from "./share.js";
import { setUpTheme } from "./theme.js";
import { cut, hide, replace } from "./words.js";

const ASK_AFTER = 120; // milliseconds without a change
let server; // what /api/info said
let state = read(location.hash);
let picture; // the picture that was dropped: {id, show, draw, clear}
let words = []; // of state.text
let seen; // the text as the model gets it: {masked, masks, spans}
let answers = { fills: [], joints: [], heats: [] };
let about = []; // by word, what the line under the text says
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

function question(column, more) {
  const asked = { model: column.model, text: seen.masked, ...more };
  return column.picture ? { ...asked, picture: column.picture } : asked;
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
  drawWords(focus);
  drawControls();
  clearTimeout(waiting);
  turn += 1;
  waiting = setTimeout(askAll, now ? 0 : ASK_AFTER, turn);
}

async function askAll(mine) {
  busy(true);
  try {
    await Promise.all([askFills(mine), askHeat(mine)]);
    if (mine === turn) complain(null);
  } catch (error) {
    if (error.name !== "AbortError" && mine === turn) complain(error.message);
  } finally {
    if (mine === turn) busy(false);
  }
}

async function askFills(mine) {
  if (!seen.masks.length) {
    answers = { ...answers, fills: [], joints: [] };
    drawAnswers();
    return;
  }
  const wanted = { top_k: state.topK, words: state.asked ? [state.asked] : [] };
  const each = columns();
  const fills = await Promise.all(
    each.map((column, place) => ask("fill", question(column, wanted), `fill ${place}`)),
  );
  if (mine !== turn) return;
  answers = { ...answers, fills, joints: [] };
  drawAnswers();
  if (seen.masks.length < 2) return;
  const together = { top_k: 5, together: true };
  const joints = await Promise.all(
    each.map((column, place) => ask("fill", question(column, together), `joint ${place}`)),
  );
  if (mine !== turn) return;
  answers = { ...answers, joints };
  drawAnswers();
}

async function askHeat(mine) {
  if (state.view === "plain" || seen.masks.length === words.length) return;
  if (state.view === "where") {
    await askWhere(mine);
    return;
  }
  const each = columns();
  const name = { surprisal: "score", influence: "saliency", replaced: "replaced" }[state.view];
  const more = state.view === "influence" ? { mask: state.chosen } : {};
  const found = await Promise.all(
    each.map((column, place) => ask(name, question(column, more), `heat ${place}`)),
  );
  if (mine !== turn) return;
  const draw = { surprisal: scores, influence: heat.influence, replaced: wrong }[state.view];
  answers.heats = found.map((answer, place) => ({
    label: each[place].label + total(answer),
    colours: draw(seen.spans, words, answer),
  }));
  if (state.view === "surprisal" && answers.heats.length === 2) {
    const [one, other] = answers.heats;
    const label = `difference: green where ${each[1].label} is less surprised`;
    answers.heats.push({ label, colours: heat.difference(words, one.colours, other.colours) });
  }
  drawHeat();
}

/** Where the model looks for each word; the words that are hidden are shown to it. */
async function askWhere(mine) {
  const model = server.models.findIndex((one) => one.pictures);
  const question = { model, text: state.text, picture: picture.id() };
  const found = await ask("explain", question, "heat 0");
  if (mine !== turn) return;
  const { spans } = hide(state.text, words, new Set());
  answers.heats = [{ label: heat.matchLabel(found), colours: heat.where(spans, words, found) }];
  drawHeat();
}

const scores = (spans, list, answer) => heat.surprisal(spans, list, answer.words);
const wrong = (spans, list, answer) => heat.replaced(spans, list, answer.words);

function total(answer) {
  if (answer.log_probability === undefined) return "";
  const each = answer.log_probability / answer.tokens;
  return ` · ${answer.log_probability.toFixed(1)} nats, ${each.toFixed(2)} a token`;
}

// Drawing

function drawWords(focus) {
  const box = byId("words");
  const had = focus ?? (box.contains(document.activeElement) ? current() : null);
  const parts = [];
  let done = 0;
  words.forEach((word, index) => {
    if (word.start > done) parts.push(document.createTextNode(state.text.slice(done, word.start)));
    parts.push(wordButton(word, index));
    done = word.end;
  });
  parts.push(document.createTextNode(state.text.slice(done)));
  box.replaceChildren(...parts);
  if (!words.length) box.append(make("span", { class: "empty", text: "Press E and write something." }));
  if (had !== null) box.querySelector(`[data-index="${Math.min(had, words.length - 1)}"]`)?.focus();
  byId("other-heats").replaceChildren();
  byId("heat-name").hidden = true;
  byId("legend").hidden = true;
  about = [];
}

function wordButton(word, index) {
  const place = seen.masks.indexOf(index);
  const first = index === (seen.masks[state.chosen] ?? 0);
  const attributes = {
    type: "button",
    class: place < 0 ? "word" : `word mask${seen.masks.length > 1 && place === state.chosen ? " chosen" : ""}`,
    "data-index": index,
    "aria-pressed": String(place >= 0),
    tabindex: first ? "0" : "-1",
    text: place < 0 ? word.word : seen.masks.length > 1 ? `mask ${place + 1}` : "mask",
  };
  if (place >= 0) attributes.title = word.typed ? "A mask that was written" : `Bring back “${word.word}”`;
  return make("button", attributes);
}

function drawHeat() {
  const [main, ...others] = answers.heats;
  for (const button of byId("words").querySelectorAll(".word")) {
    const colour = main?.colours[Number(button.dataset.index)];
    const shown = colour && button.getAttribute("aria-pressed") === "false";
    button.classList.toggle("heated", Boolean(shown));
    if (!shown) continue;
    paint(button, colour);
  }
  about = main ? main.colours.map((colour) => colour?.about ?? "") : [];
  byId("heat-name").hidden = !main;
  byId("heat-name").textContent = main?.label ?? "";
  byId("other-heats").replaceChildren(...others.flatMap(reading));
  byId("legend").hidden = !main || ["influence", "where"].includes(state.view);
  const ends = { surprisal: ["expected", "surprising"], replaced: ["belongs", "does not"] };
  [byId("legend-low").textContent, byId("legend-high").textContent] = ends[state.view] ?? ["", ""];
}

/** The text once more, coloured, not to be clicked. */
function reading({ label, colours }) {
  const parts = [];
  let done = 0;
  words.forEach((word, index) => {
    parts.push(state.text.slice(done, word.start));
    const hidden = seen.masks.includes(index);
    const span = make("span", { text: hidden ? "[mask]" : word.word });
    const colour = colours[index];
    if (colour && !hidden) {
      span.className = "heated";
      span.title = colour.about;
      paint(span, colour);
    }
    parts.push(span);
    done = word.end;
  });
  parts.push(state.text.slice(done));
  return [make("p", { class: "heat-name", text: label }), make("p", { class: "reading" }, ...parts)];
}

function paint(element, colour) {
  element.style.setProperty("--amount", colour.amount);
  if (colour.tone) element.style.setProperty("--tone", colour.tone);
  else element.style.removeProperty("--tone");
}

function drawControls() {
  for (const button of byId("views").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(button.dataset.view === state.view));
    if (button.dataset.view === "influence") button.disabled = !seen.masks.length;
    if (button.dataset.view === "where") button.disabled = !picture.id();
  }
}

function drawAnswers() {
  const shown = { columns: columns(), fills: answers.fills, masks: seen.masks, words, state, actions };
  const asking = document.activeElement?.id === "ask-word";
  if (!seen.masks.length) {
    const hint = words.length ? "Press a word to hide it; what a model would put there stands here." : "";
    byId("answers").replaceChildren(make("p", { class: "empty", text: hint }));
  } else if (answers.fills.length) {
    byId("answers").replaceChildren(...maskCards(shown));
  }
  if (asking) byId("ask-word")?.focus();
  const joint = togetherCard(shown.columns, answers.joints);
  byId("together").replaceChildren(...(joint ? [joint] : []));
}

function busy(on) {
  byId("progress").classList.toggle("on", on);
  byId("answers").setAttribute("aria-busy", String(on));
}

function complain(message) {
  byId("error").hidden = !message;
  byId("error").textContent = message ?? "";
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

const current = () => Number(document.activeElement?.dataset?.index ?? 0);

function writeMode(on) {
  byId("writing").hidden = !on;
  byId("words").hidden = on;
  byId("mode-write").setAttribute("aria-pressed", String(on));
  byId("mode-mask").setAttribute("aria-pressed", String(!on));
  if (on) {
    const area = byId("writing");
    area.value = state.text;
    area.maxLength = server.limits.characters;
    area.focus();
    area.setSelectionRange(area.value.length, area.value.length);
    for (const id of ["other-heats", "heat-name", "legend"]) byId(id).hidden = true;
    grow(area);
    return;
  }
  byId("other-heats").hidden = false;
  const text = byId("writing").value;
  if (text !== state.text) change({ text, hidden: new Set(), chosen: 0 }, { focus: 0 });
  else change({}, { focus: 0 });
}

/** Where the browser does not size a text field by its content itself. */
function grow(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + 2}px`;
}

function moveFocus(event) {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  const ends = { Home: 0, End: words.length - 1 };
  if (!step && !(event.key in ends)) return;
  const target = step ? current() + step : ends[event.key];
  const buttons = byId("words").querySelectorAll(".word");
  const next = buttons[Math.min(Math.max(target, 0), buttons.length - 1)];
  for (const button of buttons) button.tabIndex = button === next ? 0 : -1;
  next?.focus();
  event.preventDefault();
}

function tell(event) {
  const index = event.target.closest?.(".word")?.dataset.index;
  const word = index === undefined ? null : words[Number(index)];
  const hidden = word && seen.masks.includes(Number(index)) && !word.typed;
  picture.draw(answers.heats[0]?.colours[Number(index)]?.grid);
  byId("about-word").textContent = hidden ? `hides “${word.word}”` : (about[Number(index)] ?? "");
}

function listen() {
  const box = byId("words");
  box.addEventListener("click", (event) => {
    const button = event.target.closest(".word");
    if (button) toggle(Number(button.dataset.index));
  });
  box.addEventListener("keydown", moveFocus);
  for (const kind of ["mouseover", "focusin"]) box.addEventListener(kind, tell);
  byId("views").addEventListener("click", (event) => {
    const view = event.target.closest("button")?.dataset.view;
    if (view) change({ view }, { now: true });
  });
  byId("mode-write").addEventListener("click", () => writeMode(true));
  byId("mode-mask").addEventListener("click", () => writeMode(false));
  byId("writing").addEventListener("input", (event) => grow(event.target));
  byId("writing").addEventListener("keydown", (event) => {
    const ends = event.key === "Escape" || (event.key === "Enter" && (event.ctrlKey || event.metaKey));
    if (ends) writeMode(false);
  });
  document.addEventListener("keydown", (event) => {
    const writing = event.target.closest?.("input, textarea");
    if (event.key !== "e" || writing || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    writeMode(true);
  });
  document.addEventListener("paste", (event) => {
    if (event.target.closest?.("input, textarea")) return;
    const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
    const text = event.clipboardData.getData("text/plain").slice(0, server.limits.characters);
    if (file && !byId("picture").hidden) picture.show(file);
    else if (text.trim()) change({ text: text.trim(), hidden: new Set(), chosen: 0 });
  });
  addEventListener("hashchange", () => change(read(location.hash)));
  setUpShare(byId("share"));
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
    complain(error.message);
    return false;
  }
  complain(null);
  drawModels();
  return true;
}

async function start() {
  if (!(await meet())) {
    addEventListener("back", start, { once: true });
    return;
  }
  const refresh = () => change({}, { now: true });
  picture = setUpPicture({ refresh, busy, complain, limit: server.limits.picture_bytes });
  setUpSearch(server.gallery, complain);
  listen();
  addEventListener("back", async () => (await meet()) && picture.again());
  if (byId("views").querySelector(`[data-view=${state.view}]`).hidden) state.view = "plain";
  change({}, { now: true });
}

setUpTheme(byId("theme"));
start();
