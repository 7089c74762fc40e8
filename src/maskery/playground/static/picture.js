// The picture that a text is read with: dropped, pasted or chosen, and the heat drawn over it.

import { sendPicture } from "./api.js";
import { byId, complain, TOUCH } from "./dom.js";

const HEAT = [224, 90, 20]; // red, green, blue; its strength is the reader's to choose

/**
 * @param {object} page {refresh(), busy(on), limit in bytes}
 * @returns {object} {id(), show(file), draw(grid), again()}
 */
export function setUpPicture(page) {
  let id = null;
  let kept; // the file, for a server that was started again

  async function show(file) {
    if (!file) return;
    complain("picture", null);
    if (file.size > page.limit) {
      complain("picture", `the picture has ${file.size} bytes; at most ${page.limit} are taken`);
      return;
    }
    page.busy(true);
    try {
      id = (await sendPicture(file)).picture;
    } catch (error) {
      page.busy(false);
      complain("picture", error.message);
      return;
    }
    kept = file;
    const image = byId("picture-shown");
    URL.revokeObjectURL(image.src);
    image.src = URL.createObjectURL(file);
    image.alt = `The picture ${file.name}`;
    drawBox();
    page.refresh();
  }

  function drawBox() {
    draw(null);
    byId("picture-stage").hidden = !id;
    byId("picture-hint").hidden = Boolean(id);
    byId("picture-remove").hidden = !id;
    byId("picture-file").setAttribute("aria-label", id ? "Choose another picture" : "Choose a picture");
  }

  const drop = byId("picture").querySelector(".drop");
  if (TOUCH) byId("picture-hint").textContent = "Tap to choose a picture";
  byId("picture-strength").addEventListener("input", strengthen);
  strengthen();
  byId("picture-file").addEventListener("change", (event) => show(event.target.files[0]));
  byId("picture-remove").addEventListener("click", () => {
    id = null;
    byId("picture-file").value = "";
    complain("picture", null);
    drawBox();
    byId("picture-file").focus();
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

function strengthen() {
  const strength = byId("picture-strength").querySelector("input").value;
  byId("picture-heat").style.opacity = strength / 100;
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
    pixels.data.set([...HEAT, Math.round(255 * value)], 4 * index);
  });
  context.putImageData(pixels, 0, 0);
}
