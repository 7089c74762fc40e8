// Searching the gallery with words.

import { ask } from "./api.js";
import { byId, make, percent } from "./dom.js";

/**
 * @param {number} size pictures in the gallery; 0 for none
 * @param {function} complain shows an error
 */
export function setUpSearch(size, complain) {
  byId("search").hidden = !size;
  byId("search-size").textContent = `${size.toLocaleString("en")} pictures`;
  byId("search-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    const text = byId("search-text").value.trim();
    if (!text) return;
    try {
      const { hits } = await ask("search", { text }, "search");
      byId("search-hits").replaceChildren(...hits.map(cell));
      complain(null);
    } catch (error) {
      if (error.name !== "AbortError") complain(error.message);
    }
  });
}

function cell(hit) {
  const score = hit.match === null ? hit.similarity.toFixed(3) : percent(hit.match);
  return make(
    "li",
    {},
    make("img", { src: `/api/thumbnail/${hit.picture}`, alt: hit.name, loading: "lazy" }),
    make("span", { text: score }),
    make("small", { text: hit.name }),
  );
}
