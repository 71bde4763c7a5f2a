// Light or dark: as the system says until the button chooses otherwise; the choice is kept where storage is allowed.

function makeTheme(button) {
  const kept = () => {
    try {
      return localStorage.getItem("theme");
    } catch {
      return null;
    }
  };
  const choose = (theme) => {
    document.documentElement.dataset.theme = theme;
    try {
      localStorage.setItem("theme", theme);
    } catch {
      // Not allowed here: the choice lasts until the page is closed.
    }
  };
  const system = () => (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  if (kept()) document.documentElement.dataset.theme = kept();
  button.addEventListener("click", () => choose((document.documentElement.dataset.theme ?? system()) === "dark" ? "light" : "dark"));
}
