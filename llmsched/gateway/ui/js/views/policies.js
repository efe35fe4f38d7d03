// The order of work: which policy is at work, another one from now on, and what another one would have done last night.
import { h, show, toast } from "../dom.js";
import { get, post, put, remove, repeat } from "../api.js";
import { doneChart } from "../charts.js";
import { clock, number, seconds } from "../format.js";
import { onKey } from "../keys.js";

const SPANS = [["3600", "hour"], ["43200", "12 hours"], ["86400", "24 hours"], ["604800", "7 days"]];

const change = (vs) => {
  if (!vs) return "";
  const ci = vs.ci95 ? ` (${number(vs.ci95[0], 2)} … ${number(vs.ci95[1], 2)})` : "";
  return h("span", { class: vs.change_pct < 0 ? "good" : "bad" }, `${vs.change_pct > 0 ? "+" : ""}${vs.change_pct.toFixed(1)} %`, h("span", { class: "faint" }, ci));
};

function answer(asked) {
  const { result } = asked, first = result.settings.policies[0];
  const runs = Object.fromEntries(result.runs.map((run) => [run.policy, run]));
  const rows = result.summary.map((entry, k) => {
    const run = runs[entry.policy];
    return h("tr", {}, h("th", { scope: "row" }, h("span", { class: `key c${k}` }, entry.policy)), [run.mean_jct, run.p50_jct, run.p95_jct, run.p99_jct].map((v) =>
      h("td", { class: "n" }, seconds(v))), h("td", { class: "n" }, k ? change(entry.vs[first]) : h("span", { class: "faint" }, "–")));
  });
  const r = result.recorded;
  return h("div", { class: "answer", id: "answer" },
    h("div", { class: "scroll" }, h("table", {}, h("caption", {}, `${number(result.settings.jobs)} jobs, ${clock(asked.since)} to ${clock(asked.until)}: completion times`),
      h("thead", {}, h("tr", {}, ["policy", "mean", "P50", "P95", "P99", `mean against ${first}`].map((t, k) => h("th", { class: k ? "n" : null }, t)))),
      h("tbody", {}, rows, h("tr", { class: "recordedrow" }, h("th", { scope: "row" }, h("span", { class: "key recorded" }, "recorded")),
        [r.mean_jct, r.p50_jct, r.p95_jct, r.p99_jct].map((v) => h("td", { class: "n" }, seconds(v))), h("td", { class: "n faint" }, "as it was"))))),
    h("figure", { class: "chart" }, h("figcaption", {}, h("span", { class: "title" }, "Share of jobs done within a time")), doneChart(result.lines)),
    h("details", {}, h("summary", {}, "What is assumed"), h("ul", {}, result.assumptions.map((text) => h("li", {}, text, ".")))));
}

export function policies(main, _, signal) {
  let listed = [], active = "", open = null;
  const cards = h("div", { class: "policies", id: "policies", role: "radiogroup", "aria-label": "Policy at work" });
  const chosen = h("div", { class: "picks", role: "group", "aria-label": "Policies to compare with the one at work" });
  const picks = new Set();
  const span = h("select", { id: "span", "aria-label": "How far back" }, SPANS.map(([value, says]) => h("option", { value, selected: value === "86400" }, `last ${says}`)));
  const go = h("button", { class: "primary", id: "simulate", onclick: () => ask() }, "Simulate");
  const state = h("div", { id: "whatif", "aria-live": "polite" });
  main.append(h("h1", {}, "Policies"),
    h("section", { class: "card", "aria-labelledby": "h-whatif" }, h("h2", { id: "h-whatif" }, "Last night under another policy"),
      h("p", { class: "note" }, "Recorded jobs arrive again when they arrived, are what they were, and run on the engines there are now; only their order is decided anew."),
      chosen, h("div", { class: "ask" }, span, go), state),
    h("h2", {}, "At work"), cards);

  const use = async (name) => {
    if (name === active || !confirm(`Order everything that waits by ${name} from now on?`)) return;
    try {
      await put("/v1/policies/active", { name }, signal);
      picks.clear();
      picks.add(active); // what was at work until now is what one wants to compare with
      toast(`${name} orders the work from now on.`);
      await draw();
    } catch (error) { toast(error.message, "error"); }
  };

  const draw = async () => {
    listed = (await get("/v1/policies", signal)).items;
    active = listed.find((p) => p.active)?.name ?? "";
    show(cards, [...listed].sort((a, b) => b.active - a.active).map((p) => h("button", { class: "policy", role: "radio", "aria-checked": String(p.active), "data-key": `use:${p.name}`,
      "data-policy": p.name, onclick: () => use(p.name) },
    h("b", {}, p.name, p.active ? h("span", { class: "chip up" }, "at work") : null), h("span", {}, p.line), h("span", { class: "faint" }, p.source))));
    picks.delete(active);
    if (!picks.size) picks.add(["fcfs", "llmsched-pool"].find((name) => name !== active));
    show(chosen, h("span", { class: "chip up" }, active), h("span", { class: "faint" }, "against"), listed.filter((p) => !p.active).map((p) => h("button", {
      class: "pick", "aria-pressed": String(picks.has(p.name)), "data-key": `pick:${p.name}`, "data-pick": p.name, title: p.line, onclick: () => {
        if (picks.has(p.name)) picks.delete(p.name); else if (picks.size < 5) picks.add(p.name); else toast("At most five at once.");
        draw();
      } }, p.name)));
  };

  const ask = async () => {
    if (!picks.size) { toast("Pick a policy to compare with."); return; }
    try {
      open = (await post("/v1/whatif", { policies: [active, ...picks], last_s: Number(span.value) }, signal)).id;
      await look();
    } catch (error) { toast(error.message, "error"); }
  };

  const look = async () => {
    if (!open) {
      const { items } = await get("/v1/whatif", signal);
      open = items[0]?.id ?? null;
    }
    if (!open) return;
    const asked = await get(`/v1/whatif/${open}`, signal);
    go.disabled = asked.status === "running";
    if (state.dataset.at === `${asked.id}${asked.status}${asked.done}`) return;
    state.dataset.at = `${asked.id}${asked.status}${asked.done}`;
    if (asked.status === "done") show(state, answer(asked));
    else if (asked.status === "failed") show(state, h("p", { class: "trouble", role: "alert" }, asked.error));
    else {
      show(state, h("div", { class: "progressline" }, h("progress", { value: asked.of ? asked.done : null, max: asked.of || 1, "aria-label": "Simulated jobs" }),
        h("span", { class: "note" }, asked.of ? `${number(asked.done)} of ${number(asked.of)} jobs simulated` : "reading the history …"),
        h("button", { class: "plain", "data-key": "stop", onclick: async () => { await remove(`/v1/whatif/${open}`, signal).catch(() => {}); open = null; show(state); go.disabled = false; } }, "Stop")));
    }
  };
  repeat(4000, draw, signal);
  repeat(700, look, signal);
  const undo = onKey("s", "simulate last night", () => go.click());
  signal.addEventListener("abort", undo);
}
