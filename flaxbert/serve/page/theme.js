// Runs before the page is drawn, so that it does not flash in the other theme. Without a choice the system's theme holds.
(() => {
  const STORE = "flaxbert.theme";
  const system = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  try {
    chosen = localStorage.getItem(STORE);
  } catch {
    chosen = null; // storage is closed; the system's theme holds
  }
  const isDark = () => (chosen ? chosen === "dark" : system.matches);
  const apply = () => {
    if (chosen) document.documentElement.dataset.theme = chosen;
    document.getElementById("theme")?.setAttribute("aria-pressed", String(isDark()));
  };
  apply();
  system.addEventListener("change", apply);
  document.addEventListener("DOMContentLoaded", () => {
    apply();
    document.getElementById("theme").addEventListener("click", () => {
      chosen = isDark() ? "light" : "dark";
      try {
        localStorage.setItem(STORE, chosen);
      } catch {
        // the choice holds until the page is left
      }
      apply();
    });
  });
})();
