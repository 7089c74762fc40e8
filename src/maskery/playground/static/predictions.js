// The cards under the text: what stands behind each mask, the word that was asked for, and the
// masks filled together.

import { make, percent } from "./dom.js";

/**
 * @param {object} shown {columns, fills, masks, words, state, actions}
 * @returns {HTMLElement[]} one card a mask
 */
export function maskCards(shown) {
  return shown.masks.map((index, number) => maskCard(shown, index, number));
}

function maskCard(shown, index, number) {
  const { columns, fills, words, masks, actions, state } = shown;
  const original = words[index].typed ? "" : words[index].word;
  const lists = columns.map((column, place) =>
    make(
      "div",
      {},
      columns.length > 1 ? make("h3", { text: column.label }) : null,
      bars(fills, place, number, original, (token) => actions.put(index, token)),
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
    ),
    make("div", { class: "columns" }, ...lists),
    make("div", { class: "after-bars" }, more, number === 0 ? askForm(shown) : null),
    number === 0 ? askedList(shown) : null,
  );
}

function bars(fills, place, number, original, put) {
  const candidates = fills[place]?.masks[number] ?? [];
  const first = fills[0]?.masks[number] ?? [];
  const largest = Math.max(...fills.map((fill) => fill?.masks[number]?.[0]?.probability ?? 0), 1e-9);
  const before = new Map(first.map((one) => [one.token, one.probability]));
  const rows = candidates.map((one) => {
    const isOriginal = original && one.token.toLowerCase() === original.toLowerCase();
    return make(
      "li",
      { class: isOriginal ? "original" : null },
      make(
        "button",
        { type: "button", title: "Put it into the text", on: { click: () => put(one.token) } },
        make("span", { class: "token", text: one.token || "␣" }),
        make(
          "span",
          { class: "track", "aria-hidden": "true" },
          make("i", { css: { "--share": (one.probability / largest).toFixed(4) } }),
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
  return make("ol", { class: "bars" }, ...rows);
}

/** The difference to the first column, in percentage points. */
function change(now, before) {
  if (before === undefined) return make("span", { class: "change up", text: "new" });
  const points = 100 * (now - before);
  if (Math.abs(points) < 0.05) return make("span", { class: "change", text: "±0.0" });
  const text = `${points < 0 ? "−" : "+"}${Math.abs(points).toFixed(1)}`;
  return make("span", { class: `change ${points < 0 ? "down" : "up"}`, text });
}

function askForm({ state, actions }) {
  const input = make("input", {
    type: "text",
    id: "ask-word",
    maxlength: "100",
    autocomplete: "off",
    value: state.asked,
    placeholder: "a word",
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
  );
}

function askedList({ columns, fills, state }) {
  if (!state.asked) return null;
  const rows = columns.map((column, place) => {
    const found = fills[place]?.words[0];
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
  return make("ul", { class: "asked" }, ...rows);
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
