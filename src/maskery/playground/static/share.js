// Copying the address, which holds what the page shows.

export function setUpShare(button) {
  button.addEventListener("click", async () => {
    let said = "Copied";
    try {
      await navigator.clipboard.writeText(location.href);
    } catch {
      said = "Copy the address";
    }
    button.textContent = said;
    setTimeout(() => (button.textContent = "Copy link"), 1500);
  });
}
