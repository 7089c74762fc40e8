// A text as words that can be hidden. A word is what a person would click on: letters and digits
// with their apostrophes, one ideograph, or one mark of punctuation.

const WORD = /\[MASK\]|\p{Script=Han}|[\p{L}\p{M}\p{N}]+(?:['’][\p{L}\p{M}]+)*|[^\s]/gu;
export const MASK = "[MASK]";

/** The words of a text: {start, end, word, typed}; `typed` marks a [MASK] that was written. */
export function cut(text) {
  return Array.from(text.matchAll(WORD), (match) => ({
    start: match.index,
    end: match.index + match[0].length,
    word: match[0],
    typed: match[0] === MASK,
  }));
}

/** The text as the model gets it, and where each word lies in it, in code points. */
export function hide(text, words, hidden) {
  let masked = "";
  let done = 0;
  const spans = [];
  const masks = [];
  words.forEach((word, index) => {
    masked += text.slice(done, word.start);
    const start = masked.length;
    const isMask = word.typed || hidden.has(index);
    masked += isMask ? MASK : word.word;
    if (isMask) masks.push(index);
    spans.push([start, masked.length]);
    done = word.end;
  });
  masked += text.slice(done);
  // The server counts characters, JavaScript counts halves of those beyond the first 65,536.
  const points = codePoints(masked);
  return { masked, masks, spans: spans.map(([start, end]) => [points[start], points[end]]) };
}

/** From each index into a string to the number of characters before it. */
function codePoints(text) {
  const points = new Array(text.length + 1);
  let count = 0;
  for (let index = 0; index < text.length; count += 1) {
    const width = text.codePointAt(index) > 0xffff ? 2 : 1;
    for (let part = 0; part < width; part += 1) points[index + part] = count;
    index += width;
  }
  points[text.length] = count;
  return points;
}

/** For each word, those of the server's words that start inside it. */
export function gather(spans, found) {
  const groups = spans.map(() => []);
  let place = 0;
  for (const one of found) {
    while (place < spans.length && spans[place][1] <= one.start) place += 1;
    if (place < spans.length && spans[place][0] <= one.start) groups[place].push(one);
  }
  return groups;
}

/** The same text with one word replaced, and the hidden words that stay hidden. */
export function replace(text, words, hidden, index, replacement) {
  const word = words[index];
  const changed = text.slice(0, word.start) + replacement + text.slice(word.end);
  const grown = cut(changed).length - words.length;
  const kept = [...hidden].filter((one) => one !== index);
  return { text: changed, hidden: new Set(kept.map((one) => (one > index ? one + grown : one))) };
}
