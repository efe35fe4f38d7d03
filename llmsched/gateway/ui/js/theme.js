// Light, dark, or as the system says. Loaded first, so that nothing flashes.
const KEY = "llmsched.theme";
const ORDER = ["auto", "light", "dark"];

const read = () => {
  try { return localStorage.getItem(KEY) ?? "auto"; } catch { return "auto"; }
};

let current = ORDER.includes(read()) ? read() : "auto";
const apply = () => { document.documentElement.dataset.theme = current; };
apply();

export const theme = () => current;

/** The next of auto, light and dark; remembered in this browser. */
export function nextTheme() {
  current = ORDER[(ORDER.indexOf(current) + 1) % ORDER.length];
  try { localStorage.setItem(KEY, current); } catch { /* a private window: it holds until the tab closes */ }
  apply();
  return current;
}
