// Making elements. Text always goes in as text, never as markup.

/**
 * @param {string} tag
 * @param {object} attributes `class`, `text`, `on` (by event), `css` (custom properties), others
 * @param {...(Node|string|null)} children
 */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") element.textContent = value;
    else if (name === "on") for (const [e, f] of Object.entries(value)) element.addEventListener(e, f);
    else if (name === "css") for (const [p, v] of Object.entries(value)) element.style.setProperty(p, v);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

export const byId = (id) => document.getElementById(id);

/** Whether fingers point here: nothing hovers, and there may be no keys. */
export const TOUCH = matchMedia("(hover: none)").matches;

/** Say an error beside the field that caused it: text, picture or search; null takes it away. */
export function complain(field, message) {
  const place = byId(`${field}-error`);
  place.hidden = !message;
  place.textContent = message ?? "";
}

/** Say what was done, to eyes and to screen readers, until something else is. */
export function announce(message) {
  byId("done").textContent = message;
}

/** A probability in a few characters. */
export function percent(share) {
  const value = 100 * share;
  if (value >= 99.95) return "100%";
  if (value >= 0.1) return `${value.toFixed(1)}%`;
  return value >= 1e-4 ? `${value.toPrecision(1)}%` : "<0.0001%";
}
