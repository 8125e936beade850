// Light or dark: as the system says, until somebody chooses. Runs before the first paint, so that nothing flashes.
(() => {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const read = () => { try { return localStorage.getItem("aiasst.theme"); } catch { return null; } };
  const show = () => { root.dataset.theme = read() ?? (system.matches ? "dark" : "light"); };
  show();
  system.addEventListener("change", show);
  addEventListener("storage", show);
  addEventListener("DOMContentLoaded", () => {
    document.getElementById("theme").addEventListener("click", () => {
      const next = root.dataset.theme === "dark" ? "light" : "dark";
      try { localStorage.setItem("aiasst.theme", next); } catch { /* a browser that keeps nothing: for this page only */ }
      root.dataset.theme = next;
    });
  });
})();
