// The frame: views by the part behind #, shortcuts, theme, key, and whether the service answers.
import { h, show } from "./dom.js";
import { key, setKey } from "./api.js";
import { onKey, showHelp } from "./keys.js";
import { askForKey } from "./login.js";
import { nextTheme, theme } from "./theme.js";
import { overview } from "./views/overview.js";
import { jobs } from "./views/jobs.js";
import { job } from "./views/job.js";
import { engines } from "./views/engines.js";
import { policies } from "./views/policies.js";

// path: what stands behind #. view(element, parameters, signal) draws until the signal.
const VIEWS = [
  { name: "Overview", path: /^\/$/, to: "#/", key: "o", view: overview },
  { name: "Jobs", path: /^\/jobs$/, to: "#/jobs", key: "j", view: jobs },
  { path: /^\/jobs\/([^/]+)$/, under: "#/jobs", view: job },
  { name: "Engines", path: /^\/engines$/, to: "#/engines", key: "e", view: engines },
  { name: "Policies", path: /^\/policies$/, to: "#/policies", key: "p", view: policies },
];

const main = document.getElementById("main");
const banner = document.getElementById("banner");
let leaving = new AbortController();

function open() {
  const [path, query] = (location.hash.slice(1) || "/").split("?");
  const found = VIEWS.find((v) => v.path.test(path));
  leaving.abort();
  leaving = new AbortController();
  banner.replaceChildren();
  if (!found) { location.hash = "#/"; return; }
  for (const link of document.querySelectorAll("#nav a")) {
    const isHere = link.getAttribute("href") === (found.to ?? found.under);
    if (isHere) link.setAttribute("aria-current", "page"); else link.removeAttribute("aria-current");
  }
  document.title = found.name ? `${found.name} · llmsched` : "Job · llmsched";
  main.replaceChildren();
  window.scrollTo(0, 0);
  found.view(main, { id: found.path.exec(path)[1], query: new URLSearchParams(query) }, leaving.signal);
}

function frame() {
  show(document.getElementById("nav"), VIEWS.filter((v) => v.name).map((v) =>
    h("a", { href: v.to, title: `g ${v.key}` }, v.name)));
  const face = { auto: "◐", light: "☀", dark: "☾" };
  const themeButton = h("button", { class: "icon", id: "theme", title: "Theme (t)", onclick: () => turn() });
  const turn = () => { nextTheme(); say(); };
  const say = () => { themeButton.textContent = face[theme()]; themeButton.setAttribute("aria-label", `Theme: ${theme()}`); };
  say();
  const forget = h("button", { class: "icon", id: "forget", title: "Forget the key", "aria-label": "Forget the key", onclick: () => {
    setKey("");
    location.reload();
  } }, "⎋");
  if (!key()) forget.hidden = true;
  document.addEventListener("key-known", () => { forget.hidden = !key(); });
  show(document.getElementById("tools"), h("button", { class: "icon", id: "help", title: "Keyboard (?)", "aria-label": "Keyboard shortcuts",
    onclick: showHelp }, "?"), themeButton, forget);
  for (const view of VIEWS.filter((v) => v.key)) {
    onKey(`g ${view.key}`, view.name.toLowerCase(), () => { location.hash = view.to; });
  }
  onKey("t", "theme: as the system, light, dark", turn);
  onKey("?", "this list", showHelp);
  document.getElementById("skip").addEventListener("click", (event) => { event.preventDefault(); main.focus(); });
}

function say(text, kind) {
  if (banner.textContent !== text) show(banner, text && h("p", { class: kind }, text));
}

document.addEventListener("key-needed", () => askForKey(() => {
  document.dispatchEvent(new CustomEvent("key-known"));
  open();
}));
document.addEventListener("unreachable", (event) => say(`${event.detail}; trying again …`, "bad"));
document.addEventListener("refused", (event) => say(event.detail, "bad"));
document.addEventListener("reached", () => { if (banner.querySelector(".bad")) banner.replaceChildren(); });
window.addEventListener("hashchange", open);
frame();
open();
