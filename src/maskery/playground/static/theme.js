// Light, dark, or as the system has it. The button says what it will do.

const KEY = "maskery-theme";
const NAMES = { auto: "Automatic theme", light: "Light theme", dark: "Dark theme" };

export function setUpTheme(button) {
  let theme = "auto";
  try {
    theme = localStorage.getItem(KEY) ?? "auto";
  } catch {
    // Storage may be closed to the page; the theme is then forgotten.
  }
  const show = () => {
    if (!(theme in NAMES)) theme = "auto";
    document.documentElement.dataset.theme = theme;
    button.textContent = NAMES[after(theme)];
    button.setAttribute("aria-label", `${NAMES[after(theme)]}: switch to it; now it is ${said(theme)}`);
  };
  button.addEventListener("click", () => {
    theme = after(theme);
    try {
      localStorage.setItem(KEY, theme);
    } catch {
      // As above.
    }
    show();
  });
  system.addEventListener("change", show);
  show();
}

const system = matchMedia("(prefers-color-scheme: dark)");
const said = (theme) => (theme === "auto" ? `automatic, ${system.matches ? "dark" : "light"}` : theme);

/** First what looks different, then what the system has, then automatic again. */
function after(theme) {
  const order = system.matches ? ["auto", "light", "dark"] : ["auto", "dark", "light"];
  return order[(order.indexOf(theme) + 1) % order.length];
}
