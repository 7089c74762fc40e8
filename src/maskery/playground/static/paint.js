// The page as a picture: what stands on it is painted once more, where it stands.
// Browsers let no page take a picture of itself, and a drawing of its markup may not be read back.

const SCALE = 2; // pixels of the picture for each of the page's
const LARGEST = 16_000; // pixels of a side: browsers paint nothing beyond
const LEFT_OUT = ".hidden, .skip, .tools, .done, .progress, footer, input[type=range]";

/** @returns {Promise<Blob>} a PNG of an element */
export function paint(root) {
  const box = root.getBoundingClientRect();
  const scale = Math.min(SCALE, LARGEST / Math.max(box.width, box.height));
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [Math.ceil(box.width * scale), Math.ceil(box.height * scale)];
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  context.fillStyle = getComputedStyle(document.body).backgroundColor;
  context.fillRect(0, 0, box.width, box.height);
  context.translate(-box.left, -box.top);
  paintInside(context, root);
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}

function paintInside(context, element) {
  const style = getComputedStyle(element);
  if (style.visibility === "hidden" || element.matches(LEFT_OUT)) return;
  const box = element.getBoundingClientRect();
  if (!box.width) return;
  context.save();
  context.globalAlpha *= Number(style.opacity);
  paintBox(context, box, style);
  if (style.overflow !== "visible") context.clip();
  if (element.matches("img, canvas")) context.drawImage(element, box.left, box.top, box.width, box.height);
  if (element.matches("textarea, input[type=text], input[type=search]")) paintValue(context, element, box, style);
  for (const child of element.childNodes) {
    if (child.nodeType === Node.TEXT_NODE) paintText(context, child, style);
    else if (child.nodeType === Node.ELEMENT_NODE) paintInside(context, child);
  }
  context.restore();
}

/** The ground and the frame of an element; its outline stays the path, to be clipped to. */
function paintBox(context, box, style) {
  context.beginPath();
  context.roundRect(box.left, box.top, box.width, box.height, Number.parseFloat(style.borderRadius) || 0);
  context.fillStyle = style.backgroundColor;
  context.fill();
  if (style.borderTopStyle === "solid" && style.borderLeftStyle === "solid") {
    context.strokeStyle = style.borderTopColor;
    context.stroke();
  }
}

/** A text, word by word, since the browser alone knows where its lines end. */
function paintText(context, node, style) {
  for (const match of node.data.matchAll(/\S+/g)) {
    const range = document.createRange();
    range.setStart(node, match.index);
    range.setEnd(node, match.index + match[0].length);
    write(context, match[0], range.getBoundingClientRect(), style);
  }
}

function paintValue(context, element, box, style) {
  const left = box.left + Number.parseFloat(style.paddingLeft);
  write(context, element.value || element.placeholder, { ...box.toJSON(), left }, style);
}

function write(context, text, box, style) {
  context.font = `${style.fontStyle} ${style.fontWeight} ${style.fontSize} ${style.fontFamily}`;
  context.fillStyle = style.color;
  context.textBaseline = "middle";
  context.fillText(text, box.left, box.top + box.height / 2 + 1);
}
