// The cards under the text: what stands behind each mask, the word that was asked for, and the
// masks filled together.

import { make, percent, TOUCH } from "./dom.js";

// What a full bar may stand for.
const SCALES = [0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1];

/**
 * @param {object} shown {columns, fills, asked, masks, words, state, actions}
 * @returns {HTMLElement[]} one card a mask
 */
export function maskCards(shown) {
  const scale = scaleOf(shown.fills);
  return shown.masks.map((index, number) => maskCard({ ...shown, scale }, index, number));
}

/** What a full bar stands for, in all cards alike. */
function scaleOf(fills) {
  const tops = fills.flatMap((fill) => fill.masks.map((mask) => mask[0]?.probability ?? 0));
  const largest = Math.max(...tops);
  return SCALES.find((scale) => scale >= largest) ?? 1;
}

function maskCard(shown, index, number) {
  const { columns, words, masks, actions, state, scale } = shown;
  const original = words[index].typed ? "" : words[index].word;
  const lists = columns.map((column, place) =>
    make(
      "div",
      {},
      columns.length > 1 ? make("h3", { text: column.label }) : null,
      bars(shown, place, number, original, (token) => actions.put(index, token)),
    ),
  );
  const title = masks.length > 1 ? `Mask ${number + 1}` : "Predictions";
  const more = make("button", {
    class: "quiet",
    type: "button",
    text: state.topK < 100 ? "More" : "Fewer",
    on: { click: actions.more },
  });
  return make(
    "article",
    { class: "card mask-card" },
    make(
      "h2",
      {},
      title,
      original ? make("small", { text: `hides “${original}”` }) : null,
      make("small", { class: "scale", text: `a full bar is ${percent(scale).replace(".0%", "%")}` }),
    ),
    make("div", { class: "columns" }, ...lists),
    make("div", { class: "after-bars" }, more, number === 0 ? askForm(shown) : null),
    number === 0 ? askedList(shown) : null,
  );
}

function bars({ fills, columns, scale }, place, number, original, put) {
  const candidates = fills[place]?.masks[number] ?? [];
  const first = fills[0]?.masks[number] ?? [];
  const before = new Map(first.map((one) => [one.token, one.probability]));
  const rows = candidates.map((one) => {
    const isOriginal = original && one.token.toLowerCase() === original.toLowerCase();
    return make(
      "li",
      { class: isOriginal ? "original" : null },
      make(
        "button",
        { type: "button", title: TOUCH ? null : "Put it into the text", on: { click: () => put(one.token) } },
        make("span", { class: "token", text: one.token || "␣" }),
        make(
          "span",
          { class: "track", "aria-hidden": "true" },
          make("i", { css: { "--share": (one.probability / scale).toFixed(4) } }),
        ),
        make(
          "span",
          { class: "share", text: percent(one.probability) },
          place > 0 ? " " : null,
          place > 0 ? change(one.probability, before.get(one.token)) : null,
        ),
      ),
    );
  });
  // With a second column, each leaves room for the differences, so that all bars are as long.
  return make("ol", { class: columns.length > 1 ? "bars beside" : "bars" }, ...rows);
}

/** The difference to the first column, in percentage points. */
function change(now, before) {
  if (before === undefined) return make("span", { class: "change up", text: "new" });
  const points = 100 * (now - before);
  if (Math.abs(points) < 0.05) return make("span", { class: "change", text: "±0.0" });
  const text = `${points < 0 ? "−" : "+"}${Math.abs(points).toFixed(1)}`;
  return make("span", { class: `change ${points < 0 ? "down" : "up"}`, text });
}

function askForm({ asked, state, actions }) {
  const wrong = typeof asked === "string" ? asked : null;
  const input = make("input", {
    type: "text",
    id: "ask-word",
    maxlength: "100",
    autocomplete: "off",
    value: state.asked,
    placeholder: "a word",
    "aria-invalid": wrong ? "true" : null,
    "aria-describedby": wrong ? "ask-error" : null,
  });
  const submit = (event) => {
    event.preventDefault();
    actions.askWord(input.value.trim());
  };
  return make(
    "form",
    { class: "ask", on: { submit } },
    make("label", { for: "ask-word", text: "How likely is" }),
    input,
    make("button", { class: "quiet", type: "submit", text: "Ask" }),
    wrong ? make("p", { id: "ask-error", class: "error", role: "alert", text: wrong }) : null,
  );
}

function askedList({ columns, asked }) {
  if (!asked.length || typeof asked === "string") return null;
  const rows = columns.map((column, place) => {
    const found = asked[place]?.words[0];
    if (!found) return null;
    const pieces = found.pieces.length > 1 ? ` (${found.pieces.join(" ")})` : "";
    const label = columns.length > 1 ? `${column.label}: ` : "";
    return make(
      "li",
      {},
      make("span", { text: label }),
      make("b", { text: found.word }),
      ` ${percent(found.probability)}`,
      make("span", { text: pieces }),
    );
  });
  return make("div", { role: "status" }, make("ul", { class: "asked" }, ...rows));
}

/** The card of joint fillings, or null where there is one mask. */
export function togetherCard(columns, joints) {
  const lists = columns.map((column, place) => {
    const rows = (joints[place]?.completions ?? []).map((one) =>
      make(
        "li",
        {},
        make("span", { text: one.tokens.join(" · ") }),
        make("span", { text: percent(Math.exp(one.log_probability)) }),
      ),
    );
    return make(
      "div",
      {},
      columns.length > 1 ? make("h3", { text: column.label }) : null,
      make("ol", { class: "joint" }, ...rows),
    );
  });
  if (!joints.some((joint) => joint?.completions.length)) return null;
  return make(
    "article",
    { class: "card" },
    make("h2", {}, "Together", make("small", { text: "each mask given those before it" })),
    make("div", { class: "columns" }, ...lists),
  );
}
