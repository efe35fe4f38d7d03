// Shortcuts: one letter, or g and a letter. Views add their own with `onKey`; the list for ? is made from what there is.
import { h } from "./dom.js";

const shortcuts = new Map();
let pending = "", timer;

/** key: "j", "/", "g o", …; work: what it does; says: for the list. Returns a function that takes it away again. */
export function onKey(key, says, work) {
  const entry = { says, work };
  shortcuts.set(key, entry);
  return () => { if (shortcuts.get(key) === entry) shortcuts.delete(key); };
}

const typing = (target) => target.closest?.("input, textarea, select, [contenteditable]");

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape") {
    if (typing(event.target)) event.target.blur();
    shortcuts.get("Escape")?.work();
    return;
  }
  if (typing(event.target) || document.querySelector("dialog[open]")) return;
  const name = pending ? `${pending} ${event.key}` : event.key;
  const found = shortcuts.get(name);
  clearTimeout(timer);
  pending = "";
  if (found) {
    event.preventDefault();
    found.work();
  } else if ([...shortcuts.keys()].some((key) => key.startsWith(`${event.key} `))) {
    pending = event.key;
    timer = setTimeout(() => { pending = ""; }, 1200);
  }
});

/** The dialog with all shortcuts there are right now. */
export function showHelp() {
  const rows = [...shortcuts].filter(([, { says }]) => says).map(([key, { says }]) => h("tr", {},
    h("td", {}, key.split(" ").map((part) => h("kbd", {}, part))), h("td", {}, says)));
  const dialog = h("dialog", { class: "help", "aria-label": "Keyboard shortcuts" },
    h("h2", {}, "Keyboard"), h("table", {}, h("tbody", {}, rows)),
    h("form", { method: "dialog" }, h("button", { class: "plain", autofocus: true }, "Close")));
  dialog.addEventListener("close", () => dialog.remove());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  document.body.append(dialog);
  dialog.showModal();
}

/** j and k (and the arrows' Enter) over the links of a list: `rows` gives them as they are now. */
export function walk(rows, what) {
  const step = (by) => {
    const all = rows();
    if (!all.length) return;
    const here = all.findIndex((row) => row === document.activeElement || row.contains(document.activeElement));
    all[here < 0 ? (by > 0 ? 0 : all.length - 1) : Math.min(all.length - 1, Math.max(0, here + by))].focus();
  };
  const undo = [onKey("j", `next ${what}`, () => step(1)), onKey("k", `previous ${what}`, () => step(-1))];
  return () => undo.forEach((f) => f());
}
