// The first thing the person on call sees: is anything wrong, how much is going on, how long does it take.
import { h, show } from "../dom.js";
import { get, repeat } from "../api.js";
import { bar, slots, timeChart } from "../charts.js";
import { milliseconds, number, plural, seconds, words } from "../format.js";
import { onKey } from "../keys.js";

const SPANS = [["15m", "15 min"], ["2h", "2 h"], ["24h", "24 h"]];

const tile = (name, value, note) => h("div", { class: "tile" }, h("span", { class: "what" }, name),
  h("b", {}, value), h("span", { class: "note" }, note));

function tiles(now) {
  const llm = now.pools.find((p) => p.name === now.executors[0]?.pool);
  const waiting = now.pools.reduce((sum, p) => sum + p.ready, 0);
  const queued = Object.values(now.jobs).reduce((sum, c) => sum + c.queued, 0);
  const { recent } = now;
  return h("section", { class: "tiles", "aria-label": "In short" },
    tile("Jobs in the system", number(now.active), queued ? `${number(queued)} not begun` : "all begun"),
    tile("Tasks waiting", number(waiting), now.pools.map((p) => `${p.name} ${p.ready}`).join(" · ") || "no pool"),
    tile("Slots in use", llm ? `${llm.running}/${llm.slots}` : "–", llm ? `pool ${llm.name}` : "no engine"),
    tile("Completion time", seconds(recent.jct_mean), recent.completed
      ? `mean of ${plural(recent.completed, "job")} in 15 min, P95 ${seconds(recent.jct_p95)}` : "no job done in 15 min"),
    tile("Policy", h("a", { href: "#/policies" }, now.policy), recent.decisions
      ? `a decision takes ${milliseconds(recent.decision_ms_mean)}, at most ${milliseconds(recent.decision_ms_max)}` : "nothing decided yet"));
}

function applications(now) {
  const rows = Object.entries(now.jobs);
  const most = Math.max(1, ...rows.map(([, c]) => c.queued + c.running));
  const link = (name, status, n) => (n ? h("a", { href: `#/jobs?application=${name}&status=${status}` }, number(n)) : h("span", { class: "faint" }, "0"));
  return h("section", { class: "card", "aria-labelledby": "h-apps" }, h("h2", { id: "h-apps" }, "Jobs by application"),
    rows.length ? h("div", { class: "scroll" }, h("table", {},
      h("thead", {}, h("tr", {}, h("th", {}, "application"), h("th", { class: "wide maybe" }, "in the system"), ["queued", "running"].map((t) => h("th", { class: "n" }, t)),
        ["completed", "failed", "cancelled"].map((t) => h("th", { class: `n${t === "cancelled" ? " maybe" : ""}`, title: "since the service started" }, t)))),
      h("tbody", {}, rows.map(([name, c]) => h("tr", {},
        h("th", { scope: "row" }, h("a", { href: `#/jobs?application=${name}`, "data-key": `app:${name}` }, words(name))),
        h("td", { class: "maybe" }, bar([["running", c.running, "running"], ["queued", c.queued, "queued"]], most)),
        ["queued", "running", "completed", "failed", "cancelled"].map((status) =>
          h("td", { class: `n${status === "failed" && c.failed ? " bad" : ""}${status === "cancelled" ? " maybe" : ""}` }, link(name, status, c[status]))))))))
      : h("p", { class: "empty" }, "No job yet. Submit one: ", h("code", {}, "POST /v1/jobs"), "."));
}

function executors(now) {
  return h("section", { class: "card", "aria-labelledby": "h-slots" }, h("h2", { id: "h-slots" }, "Slots"),
    now.executors.length ? h("ul", { class: "executors" }, now.executors.map((e) => h("li", { class: e.state },
      h("span", { class: `led ${e.state}`, "aria-hidden": "true" }),
      h(e.is_engine ? "a" : "span", { class: "name", href: e.is_engine ? "#/engines" : null }, e.id),
      h("span", { class: "note" }, e.state === "up" ? e.pool : `${e.pool} · ${e.state}`),
      slots(e.running, e.slots), h("span", { class: "n" }, `${e.running}/${e.slots}`))))
      : h("p", { class: "empty" }, "No engine yet."));
}

function charts(t, order) {
  const pools = Object.entries(t.pools).sort(([a], [b]) => order.indexOf(a) - order.indexOf(b));
  const perMinute = (counts) => counts.map((n, k) => (n === null || k === counts.length - 1 ? null : (n * 60) / t.step_s)); // the last step goes on
  return [
    timeChart("Completion time", t.at, [
      { name: "mean", values: t.jct_mean }, { name: "P95", values: t.jct_p95, dashed: true }], { unit: seconds, gaps: false, empty: "no job done" }),
    timeChart("Tasks waiting", t.at, pools.map(([name, p], k) => ({ name, values: p.ready, area: k === 0 })), { unit: number }),
    timeChart("Slots in use", t.at, pools.map(([name, p], k) => ({ name, area: k === 0,
      values: p.running.map((v, i) => (v === null || !p.slots[i] ? null : (100 * v) / p.slots[i])) })), { unit: (v) => `${number(v)} %` }),
    timeChart("Jobs", t.at, [{ name: "in the system", values: t.active, area: true }], { unit: number }),
    timeChart("Jobs done per minute", t.at, [{ name: "completed", values: perMinute(t.completed), area: true }, { name: "failed", values: perMinute(t.failed) }],
      { unit: number }),
    timeChart("Cost of a decision", t.at, [{ name: "mean", values: t.decision_ms_mean }, { name: "most", values: t.decision_ms_max, dashed: true }],
      { unit: milliseconds, gaps: false }),
  ];
}

export function overview(main, _, signal) {
  let span = "15m", order = [];
  const trouble = h("div", { id: "trouble", "aria-live": "polite" });
  const top = h("div"), middle = h("div", { class: "columns" }), trends = h("div", { class: "charts", id: "trends" });
  const choice = h("div", { class: "choice", role: "group", "aria-label": "Time shown" });
  const choose = (name) => { span = name; buttons(); draw(); };
  const buttons = () => show(choice, SPANS.map(([name, says]) => h("button", { "data-key": name, "aria-pressed": String(span === name),
    onclick: () => choose(name) }, says)));
  buttons();
  main.append(h("h1", { class: "hidden" }, "Overview"), trouble, top, middle,
    h("section", { "aria-labelledby": "h-trends" }, h("div", { class: "heading" }, h("h2", { id: "h-trends" }, "Trends"), choice), trends));

  const draw = async () => order.length && show(trends, charts(await get(`/v1/trends?span=${span}`, signal), order));
  repeat(2000, async () => {
    const now = await get("/v1/overview", signal);
    const isFirst = !order.length;
    order = [...new Set([...now.executors.map((e) => e.pool), ...now.pools.map((p) => p.name), ""])]; // engines first
    if (isFirst) draw();
    show(trouble, now.trouble.map((text) => h("p", { class: "trouble", role: "alert" }, "⚠ ", text)));
    show(top, tiles(now));
    show(middle, applications(now), executors(now));
    document.title = `${now.active ? `(${now.active}) ` : ""}Overview · llmsched`;
  }, signal);
  repeat(5000, draw, signal);
  const undo = SPANS.map(([name, says], k) => onKey(String(k + 1), `trends of ${says}`, () => choose(name)));
  signal.addEventListener("abort", () => undo.forEach((f) => f()));
}
