// What the page shows, kept in the address so that a link shows the same.

export const VIEWS = ["plain", "surprisal", "influence", "where", "replaced"];
const EXAMPLE = "The universe is change; our life is what our thoughts make it.";

/** What a fresh page, or a link, starts from. */
export function read(hash) {
  const given = new URLSearchParams(hash.replace(/^#/, ""));
  const text = given.get("t") ?? EXAMPLE;
  const hidden = given.has("t") ? numbers(given.get("m")) : [1];
  const view = VIEWS.includes(given.get("v")) ? given.get("v") : "plain";
  const topK = Math.min(100, Math.max(1, Number.parseInt(given.get("k") ?? "10", 10) || 10));
  const chosen = Math.max(0, Number.parseInt(given.get("c") ?? "0", 10) || 0);
  const asked = (given.get("w") ?? "").slice(0, 100);
  return { text, hidden: new Set(hidden), view, topK, chosen, asked };
}

/** The address of a state. */
export function write(state) {
  const said = new URLSearchParams({ t: state.text });
  if (state.hidden.size) said.set("m", [...state.hidden].sort((a, b) => a - b).join("."));
  if (state.view !== "plain") said.set("v", state.view);
  if (state.topK !== 10) said.set("k", String(state.topK));
  if (state.chosen) said.set("c", String(state.chosen));
  if (state.asked) said.set("w", state.asked);
  return `#${said}`;
}

function numbers(list) {
  return (list ?? "")
    .split(".")
    .map((number) => Number.parseInt(number, 10))
    .filter((number) => number >= 0);
}
