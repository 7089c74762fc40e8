// The picture that a text is read with: dropped, pasted or chosen, and the heat drawn over it.

import { sendPicture } from "./api.js";
import { byId } from "./dom.js";

const HEAT = [224, 122, 40]; // red, green, blue
const STRONGEST = 200; // of 255

/**
 * @param {object} page {refresh(), busy(on), complain(message), limit in bytes}
 * @returns {object} {id(), show(file), draw(grid), again()}
 */
export function setUpPicture(page) {
  let id = null;
  let kept; // the file, for a server that was started again

  async function show(file) {
    if (!file) return;
    if (file.size > page.limit) {
      page.complain(`the picture has ${file.size} bytes; at most ${page.limit} are taken`);
      return;
    }
    page.busy(true);
    try {
      id = (await sendPicture(file)).picture;
    } catch (error) {
      page.busy(false);
      page.complain(error.message);
      return;
    }
    kept = file;
    const image = byId("picture-shown");
    URL.revokeObjectURL(image.src);
    image.src = URL.createObjectURL(file);
    drawBox();
    page.refresh();
  }

  function drawBox() {
    draw(null);
    byId("picture-stage").hidden = !id;
    byId("picture-hint").hidden = Boolean(id);
    byId("picture-remove").hidden = !id;
  }

  const drop = byId("picture").querySelector(".drop");
  byId("picture-file").addEventListener("change", (event) => show(event.target.files[0]));
  byId("picture-remove").addEventListener("click", () => {
    id = null;
    byId("picture-file").value = "";
    drawBox();
    page.refresh();
  });
  for (const kind of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", kind === "dragover");
      if (kind === "drop" && !byId("picture").hidden) show(event.dataTransfer.files[0]);
    });
  }
  const again = () => (id ? show(kept) : page.refresh());
  return { id: () => id, show, draw, again };
}

/** Heat over the picture: rows of values from 0 to 1; nothing to clear it. */
function draw(grid) {
  const canvas = byId("picture-heat");
  canvas.hidden = !grid;
  if (!grid) return;
  canvas.height = grid.length;
  canvas.width = grid[0].length;
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(canvas.width, canvas.height);
  grid.flat().forEach((value, index) => {
    pixels.data.set([...HEAT, Math.round(STRONGEST * value)], 4 * index);
  });
  context.putImageData(pixels, 0, 0);
}
