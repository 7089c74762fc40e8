// Taking along what is shown: a link, the figures as CSV, the page as a picture.

import { byId } from "./dom.js";
import { paint } from "./paint.js";

const HEAD = ["what", "model", "place", "word", "rank", "token", "value", "unit"];

/**
 * @param {function} shown what the page shows: {columns, fills, joints, asked, heats, masks, words}
 * @param {function} hasPicture whether a picture is part of it, which no link can hold
 * @param {function} announce says what was done
 */
export function setUpSave(shown, hasPicture, announce) {
  byId("share").addEventListener("click", async () => {
    const without = hasPicture() ? "; it holds text and view, not the picture" : "";
    try {
      await navigator.clipboard.writeText(location.href);
      announce(`Link copied${without}`);
    } catch {
      announce(`The browser copies nothing here: copy the address above${without}`);
    }
  });
  byId("save-csv").addEventListener("click", () => {
    const text = table(shown()).map((row) => row.map(field).join(",")).join("\r\n");
    save(new Blob([`${text}\r\n`], { type: "text/csv" }), "csv");
    announce("Saved maskery.csv");
  });
  byId("save-png").addEventListener("click", async () => {
    save(await paint(document.body), "png");
    announce("Saved maskery.png");
  });
}

function save(blob, ending) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = `maskery.${ending}`;
  link.click();
  URL.revokeObjectURL(link.href);
}

/** The rows of the table; places count words from 1. */
function table(shown) {
  return [HEAD, ...predictions(shown), ...together(shown), ...askedFor(shown), ...colours(shown)];
}

function predictions({ columns, fills, masks, words }) {
  return fills.flatMap((fill, column) =>
    fill.masks.flatMap((candidates, number) =>
      candidates.map((one, rank) => {
        const index = masks[number];
        const start = ["prediction", columns[column].label, index + 1, words[index].word];
        return [...start, rank + 1, one.token, one.probability, "probability"];
      }),
    ),
  );
}

function together({ columns, joints }) {
  return joints.flatMap((joint, column) =>
    joint.completions.map((one, rank) => {
      const start = ["together", columns[column].label, "", "", rank + 1];
      return [...start, one.tokens.join(" · "), Math.exp(one.log_probability), "probability"];
    }),
  );
}

function askedFor({ columns, asked, masks }) {
  if (typeof asked === "string") return [];
  return asked.flatMap((answer, column) =>
    answer.words.map((one) => {
      const start = ["asked", columns[column].label, masks[0] + 1, ""];
      return [...start, "", one.word, one.probability, "probability"];
    }),
  );
}

function colours({ state, heats, words }) {
  return heats.flatMap((heat) =>
    heat.colours.flatMap((colour, index) =>
      colour
        ? [[state.view, heat.model, index + 1, words[index].word, "", colour.about, colour.value ?? "", heat.unit]]
        : [],
    ),
  );
}

/** A field in quotes; spreadsheets must not take a longer one for a formula. */
function field(value) {
  const text = String(value);
  const formula = typeof value === "string" && /^[=+\-@\t\r]./.test(text);
  return `"${(formula ? `'${text}` : text).replaceAll('"', '""')}"`;
}
