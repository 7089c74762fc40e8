// The text: its words as buttons, their colours with a legend, and the note on one of them.

import { byId, make, TOUCH } from "./dom.js";

const SWATCHES = 5; // colours of a legend
let shown = { state: {}, words: [], seen: { masks: [] }, drawOver: () => {} };
let heats = []; // {name, label, colours, legend} for each column
let noted = null; // the index of the word that the note is about

/**
 * Draw a text without colours.
 * @param {object} next {state, words, seen, drawOver(grid)}
 * @param {number|null} focus the word to go to, if not the one that has the focus
 */
export function drawWords(next, focus) {
  const box = byId("words");
  const had = focus ?? (box.contains(document.activeElement) ? current() : null);
  if (next.state.text !== shown.state.text) noted = null;
  shown = next;
  const verb = TOUCH ? "tap" : "press";
  box.setAttribute("aria-label", `The text; ${verb} a word to hide it`);
  box.replaceChildren(...pieces(wordButton));
  if (!shown.words.length) box.append(make("span", { class: "empty", text: invitation() }));
  drawHeat([]);
  if (had !== null) box.querySelector(`[data-index="${Math.min(had, shown.words.length - 1)}"]`)?.focus();
}

const invitation = () => (TOUCH ? "Tap Write, and write something." : "Press E and write something.");

/** The text in pieces: strings as they are, words as a function draws them. */
function pieces(draw) {
  const { words, state } = shown;
  const parts = [];
  let done = 0;
  words.forEach((word, index) => {
    parts.push(state.text.slice(done, word.start), draw(word, index));
    done = word.end;
  });
  return [...parts, state.text.slice(done)];
}

function wordButton(word, index) {
  const { masks } = shown.seen;
  const chosen = shown.state.chosen;
  const place = masks.indexOf(index);
  const attributes = {
    type: "button",
    class: place < 0 ? "word" : `word mask${masks.length > 1 && place === chosen ? " chosen" : ""}`,
    "data-index": index,
    "aria-pressed": String(place >= 0),
    tabindex: index === (masks[chosen] ?? 0) ? "0" : "-1",
    text: place < 0 ? word.word : masks.length > 1 ? `mask ${place + 1}` : "mask",
  };
  if (place >= 0) attributes.title = word.typed ? "A mask that was written" : `Bring back “${word.word}”`;
  return make("button", attributes);
}

/** Colour the words, and tell what the colours are. */
export function drawHeat(next) {
  heats = next;
  const [main, ...others] = heats;
  for (const button of byId("words").querySelectorAll(".word")) {
    const colour = main?.colours[Number(button.dataset.index)];
    if (button.getAttribute("aria-pressed") === "false") paint(button, colour);
  }
  byId("heat-name").hidden = !main;
  byId("heat-name").replaceChildren(...(main ? heading(main) : []));
  byId("other-heats").replaceChildren(...others.flatMap(reading));
  drawNote();
}

/** The text once more, coloured, not to be clicked. */
function reading(heat) {
  const words = pieces((word, index) => {
    if (shown.seen.masks.includes(index)) return make("span", { text: "[mask]" });
    const about = heat.colours[index]?.about;
    const span = make("span", { text: word.word, title: about && `${word.word}: ${about}` });
    paint(span, heat.colours[index]);
    return span;
  });
  const name = make("p", { class: "heat-name" }, ...heading(heat));
  return [name, make("p", { class: "reading" }, ...words)];
}

function heading({ label, legend }) {
  return [label ? make("span", { text: label }) : null, legendOf(legend)].filter(Boolean);
}

function legendOf({ low, high, tone, both }) {
  const swatches = Array.from({ length: SWATCHES }, (_, index) => {
    const place = both ? (2 * index) / (SWATCHES - 1) - 1 : index / (SWATCHES - 1);
    const side = place < 0 ? "var(--less)" : "var(--more)";
    const swatch = make("i", { "aria-hidden": "true" });
    paint(swatch, { amount: Math.abs(place), tone: both ? side : tone });
    return swatch;
  });
  const colours = make("span", { class: "swatches" }, ...swatches);
  return make("span", { class: "legend" }, make("span", { text: low }), colours, make("span", { text: high }));
}

function paint(element, colour) {
  element.classList.toggle("heated", Boolean(colour));
  if (!colour) return;
  element.style.setProperty("--amount", colour.amount.toFixed(3));
  if (colour.tone) element.style.setProperty("--tone", colour.tone);
}

/** Point at a word: the note tells what is known about it. */
export function point(index) {
  noted = index;
  drawNote();
}

/** Whether a word has something to tell that is not told yet. */
export const untold = (index) => noted !== index && heats.some((heat) => heat.colours[index]);

export const pointedAt = () => noted;

function drawNote() {
  const word = shown.words[noted];
  byId("about-word").textContent = word ? note(word) : "";
  shown.drawOver(word && heats[0]?.colours[noted]?.grid);
}

function note(word) {
  const hidden = shown.seen.masks.includes(noted) && !word.typed;
  const told = heats.flatMap(({ name, colours }) => {
    const about = colours[noted]?.about;
    return about ? [name ? `${name} ${about}` : about] : [];
  });
  if (hidden) return [`hides “${word.word}”`, ...told].join(" · ");
  return told.length ? `${word.word}: ${told.join(" · ")}` : "";
}

/** The index of the word that has the focus. */
export const current = () => Number(document.activeElement?.dataset?.index ?? 0);

/** Arrows, Home and End go from word to word. */
export function moveFocus(event) {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  const ends = { Home: 0, End: shown.words.length - 1 };
  if (!step && !(event.key in ends)) return;
  const target = step ? current() + step : ends[event.key];
  const buttons = byId("words").querySelectorAll(".word");
  const next = buttons[Math.min(Math.max(target, 0), buttons.length - 1)];
  for (const button of buttons) button.tabIndex = button === next ? 0 : -1;
  next?.focus();
  event.preventDefault();
}
