// Colours behind words: how surprising each is, how much a prediction hangs on it, or how likely it
// does not belong to the picture. Each is {colours, legend}; of a word it is {value, amount from 0 to
// 1, tone, about}, or null where nothing is known.

import { gather } from "./words.js";
import { percent, TOUCH } from "./dom.js";

const FULL_SURPRISE = 14; // nats at which the colour is full
const FULL_DIFFERENCE = 5;

export function surprisal(spans, _words, answer) {
  const colours = gather(spans, answer.words).map((group) => {
    if (!group.length) return null;
    const nats = -group.reduce((sum, one) => sum + one.log_probability, 0);
    const about = `${nats.toFixed(2)} nats, ${percent(Math.exp(-nats))}`;
    return { value: nats, amount: share(nats / FULL_SURPRISE), about };
  });
  return { colours, unit: "nats", legend: { low: "expected: 0", high: `${FULL_SURPRISE} nats or more` } };
}

/** The second of two minus the first: green where the second is less surprised. */
export function difference(first, second) {
  const colours = first.map((one, index) => {
    const other = second[index];
    if (!one || !other) return null;
    const gain = one.value - other.value;
    return {
      value: gain,
      amount: share(Math.abs(gain) / FULL_DIFFERENCE),
      tone: gain < 0 ? "var(--less)" : "var(--more)",
      about: `${Math.abs(gain).toFixed(2)} nats ${gain < 0 ? "more" : "less"} surprised`,
    };
  });
  const legend = {
    low: `${FULL_DIFFERENCE} nats more or beyond`,
    high: `${FULL_DIFFERENCE} nats less`,
    both: true,
  };
  return { colours, unit: "nats", legend };
}

export function influence(spans, _words, answer) {
  const sums = gather(spans, answer.words).map((group) =>
    group.length ? group.reduce((sum, one) => sum + one.weight, 0) : null,
  );
  const largest = Math.max(...sums.map((sum) => sum ?? 0), 1e-9);
  const colours = sums.map((sum) =>
    sum === null
      ? null
      : {
          value: sum,
          amount: share(sum / largest),
          about: `${percent(sum)} of what “${answer.token}” hangs on`,
        },
  );
  const legend = { low: "0%", high: `${percent(largest)} of what “${answer.token}” hangs on` };
  return { colours, unit: "share", legend };
}

export function replaced(spans, _words, answer) {
  const colours = gather(spans, answer.words).map((group) => {
    if (!group.length) return null;
    const chance = Math.max(...group.map((one) => one.probability));
    const about = `${percent(chance)} likely not to belong here`;
    return { value: chance, amount: share(chance), tone: "var(--less)", about };
  });
  const legend = { low: "belongs: 0%", high: "does not: 100%", tone: "var(--less)" };
  return { colours, unit: "probability", legend };
}

/** By word, a grid to draw over the picture. */
export function where(spans, _words, answer) {
  const colours = gather(spans, answer.words).map((group) =>
    group.length ? { value: null, amount: 0, about: hottest(group[0].heat), grid: group[0].heat } : null,
  );
  return { colours, unit: "", legend: { low: "little", high: "a word's strongest place" } };
}

/** The middle of the hottest patch, as shares of width and height. */
function hottest(grid) {
  const flat = grid.flat();
  const place = flat.indexOf(Math.max(...flat));
  const [down, across] = [Math.floor(place / grid[0].length), place % grid[0].length];
  const left = Math.round((100 * (across + 0.5)) / grid[0].length);
  const top = Math.round((100 * (down + 0.5)) / grid.length);
  return `the model looks ${left}% from the left, ${top}% from the top`;
}

/** What the heat over a picture is of. */
export function matchLabel(answer) {
  const said = `${TOUCH ? "tap" : "point at"} a word to see where the model looks for it`;
  return answer.match === null ? said : `${said} · the text fits the picture: ${percent(answer.match)}`;
}

const share = (value) => Math.min(1, Math.max(0, value));
