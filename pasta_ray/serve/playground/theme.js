/** Dark or light: as the system has it, until the button says otherwise. */

const STORED = "pasta-ray-theme";
const systemDark = matchMedia("(prefers-color-scheme: dark)");

export function startTheme(button) {
  const stored = () => {
    try {
      return localStorage.getItem(STORED);
    } catch {
      return null; // storage may be forbidden
    }
  };
  let chosen = ["dark", "light"].includes(stored()) ? stored() : null;
  const current = () => chosen ?? (systemDark.matches ? "dark" : "light");
  const show = () => {
    if (chosen) document.documentElement.dataset.theme = chosen;
    button.textContent = current() === "dark" ? "Light" : "Dark";
    button.setAttribute("aria-label", `Use the ${button.textContent.toLowerCase()} theme`);
  };
  button.addEventListener("click", () => {
    chosen = current() === "dark" ? "light" : "dark";
    try {
      localStorage.setItem(STORED, chosen);
    } catch {
      // then the choice lasts as long as the page
    }
    show();
  });
  systemDark.addEventListener("change", show);
  show();
}
