// Colours behind words: how surprising each is, how much a prediction hangs on it, or how likely it
// does not belong to the picture.

import { gather } from "./words.js";
import { percent } from "./dom.js";

const FULL_SURPRISE = 14; // nats at which the colour is full
const FULL_DIFFERENCE = 5;

/** By word: {amount from 0 to 100, tone, about}; null where nothing is known. */
export function surprisal(spans, words, found) {
  return gather(spans, found).map((group, index) => {
    if (!group.length) return null;
    const nats = -group.reduce((sum, one) => sum + one.log_probability, 0);
    const about = `${words[index].word}: ${nats.toFixed(2)} nats, ${percent(Math.exp(-nats))}`;
    return { value: nats, amount: scale(nats / FULL_SURPRISE), about };
  });
}

/** The second of two minus the first: green where the second is less surprised. */
export function difference(words, first, second) {
  return first.map((one, index) => {
    const other = second[index];
    if (!one || !other) return null;
    const gain = one.value - other.value;
    const about =
      `${words[index].word}: ${Math.abs(gain).toFixed(2)} nats ` +
      `${gain < 0 ? "more" : "less"} surprising`;
    return {
      value: gain,
      amount: scale(Math.abs(gain) / FULL_DIFFERENCE),
      tone: gain < 0 ? "var(--less)" : "var(--more)",
      about,
    };
  });
}

export function influence(spans, words, answer) {
  const sums = gather(spans, answer.words).map((group) =>
    group.length ? group.reduce((sum, one) => sum + one.weight, 0) : null,
  );
  const largest = Math.max(...sums.map((sum) => sum ?? 0), 1e-9);
  return sums.map((sum, index) =>
    sum === null
      ? null
      : {
          value: sum,
          amount: scale(sum / largest),
          about: `${words[index].word}: ${percent(sum)} of what “${answer.token}” hangs on`,
        },
  );
}

export function replaced(spans, words, found) {
  return gather(spans, found).map((group, index) => {
    if (!group.length) return null;
    const chance = Math.max(...group.map((one) => one.probability));
    return {
      value: chance,
      amount: scale(chance),
      tone: "var(--less)",
      about: `${words[index].word}: ${percent(chance)} likely not to belong here`,
    };
  });
}

/** By word, a grid to draw over the picture. */
export function where(spans, words, answer) {
  return gather(spans, answer.words).map((group, index) =>
    group.length
      ? { value: 0, amount: 0, about: `${words[index].word}: where the model looks`, grid: group[0].heat }
      : null,
  );
}

/** What the heat over a picture is of. */
export function matchLabel(answer) {
  const said = "point at a word to see where the model looks for it";
  return answer.match === null ? said : `${said} · the text fits the picture: ${percent(answer.match)}`;
}

function scale(share) {
  return Math.round(72 * Math.min(1, Math.max(0, share)));
}
