// Light or dark: as the system is, until the button in the bar chooses; it says which.
{
  const KEY = "sharevl-theme", SIGNS = { system: "◐", light: "☀", dark: "☾" }, themes = Object.keys(SIGNS);
  const system = matchMedia("(prefers-color-scheme: dark)");
  const kept = () => themes.includes(localStorage.getItem(KEY)) ? localStorage.getItem(KEY) : "system";

  const paint = () => {
    const theme = kept(), button = page.querySelector("[data-theme]");
    document.body.classList.toggle("dark", theme === "system" ? system.matches : theme === "dark");
    if (button) button.textContent = `${SIGNS[theme]} ${theme}`;
  };
  root.addEventListener("click", (event) => {
    if (!event.target.closest("[data-theme]")) return;
    localStorage.setItem(KEY, themes[(themes.indexOf(kept()) + 1) % themes.length]);
    paint();
  });
  system.addEventListener("change", () => setTimeout(paint)); // after Gradio, which knows the system's alone
  new MutationObserver(paint).observe(page, { childList: true });
  paint();
}
