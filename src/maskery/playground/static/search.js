// Searching the gallery with words.

import { ask } from "./api.js";
import { byId, complain, make, percent } from "./dom.js";

/** @param {number} size pictures in the gallery; 0 for none */
export function setUpSearch(size) {
  byId("search").hidden = !size;
  byId("search-size").textContent = `${size.toLocaleString("en")} pictures`;
  byId("search-text").addEventListener("input", () => complain("search", null));
  byId("search-form").addEventListener("submit", (event) => {
    event.preventDefault();
    find(byId("search-text").value.trim(), size);
  });
}

async function find(text, size) {
  if (!text) {
    complain("search", "describe what the pictures should show");
    byId("search-text").focus();
    return;
  }
  byId("search-found").textContent = `searching for “${text}”`;
  try {
    const { hits } = await ask("search", { text }, "search");
    byId("search-hits").replaceChildren(...hits.map(cell));
    byId("search-found").textContent = `“${text}”: the best ${hits.length} of ${size.toLocaleString("en")}, best first`;
    complain("search", null);
  } catch (error) {
    if (error.name === "AbortError") return;
    byId("search-hits").replaceChildren();
    byId("search-found").textContent = "";
    complain("search", error.message);
  }
}

function cell(hit) {
  // What they are sorted by, so that the order explains itself.
  const score = hit.score === null ? hit.similarity.toFixed(3) : hit.score.toFixed(2);
  const what = hit.score === null ? "similarity" : "score";
  const match = hit.match === null ? "" : ` · fits ${percent(hit.match)}`;
  return make(
    "li",
    {},
    // Its name stands below it.
    make("img", { src: `/api/thumbnail/${hit.picture}`, alt: "", loading: "lazy" }),
    make("span", {}, make("span", { class: "hidden", text: `${what} ` }), score + match),
    make("small", { text: hit.name, title: hit.name }),
  );
}
