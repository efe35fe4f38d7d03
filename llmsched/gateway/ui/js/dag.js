// A job's DAG: layers from left to right, plans of dynamic stages in a frame, stages coloured by their state.
import { s } from "./dom.js";
import { seconds } from "./format.js";

const W = 140, H = 46, GAP_X = 34, GAP_Y = 16, PAD = 14;
// A graph that is too wide is drawn so much smaller at most; then it scrolls.
const SMALLEST = 0.72;

/** Edges [from, to]: what each stage waits for; a plan hangs below its dynamic stage, which is over when the plan is. */
function edges(stages) {
  const byName = new Map(stages.map((stage) => [stage.name, stage]));
  const inner = Map.groupBy(stages.filter((stage) => stage.parent), (stage) => stage.parent);
  const found = [];
  for (const stage of stages) {
    const own = stage.after.filter((name) => byName.has(name));
    for (const name of own) {
      const plan = inner.get(name);
      if (!plan || stage.parent === name) { found.push([name, stage.name]); continue; }
      const needed = new Set(plan.flatMap((other) => other.after));
      for (const leaf of plan) if (!needed.has(leaf.name)) found.push([leaf.name, stage.name]);
    }
    if (stage.parent && byName.has(stage.parent)) {
      const isFirst = !own.some((name) => byName.get(name).parent === stage.parent);
      if (isFirst && !own.includes(stage.parent)) found.push([stage.parent, stage.name, "plan"]);
    }
  }
  return found;
}

/** Layer of each stage: the longest way to it. */
function layers(stages, links) {
  const into = Map.groupBy(links, (link) => link[1]);
  const rank = new Map();
  const visit = (name, path) => {
    if (rank.has(name)) return rank.get(name);
    if (path.has(name)) return 0;
    path.add(name);
    const value = Math.max(-1, ...(into.get(name) ?? []).map(([from]) => visit(from, path))) + 1;
    path.delete(name);
    rank.set(name, value);
    return value;
  };
  for (const stage of stages) visit(stage.name, new Set());
  const columns = [];
  for (const stage of stages) (columns[rank.get(stage.name)] ??= []).push(stage);
  const columnsFull = Array.from(columns, (c) => c ?? []);
  const place = new Map();
  const note = () => columnsFull.forEach((column) => column.forEach((stage, k) => place.set(stage.name, k - column.length / 2)));
  note();
  for (let sweep = 0; sweep < 6; sweep++) {
    for (const column of columnsFull) {
      const weight = (stage) => {
        const near = links.filter((l) => l[sweep % 2 ? 0 : 1] === stage.name).map((l) => place.get(l[sweep % 2 ? 1 : 0]));
        return near.length ? near.reduce((a, b) => a + b, 0) / near.length : place.get(stage.name);
      };
      const keyed = column.map((stage, k) => [weight(stage), k, stage]).sort((a, b) => a[0] - b[0] || a[1] - b[1]);
      keyed.forEach(([, , stage], k) => { column[k] = stage; });
    }
    note();
  }
  return columnsFull;
}

export const STATES = ["waiting", "ready", "running", "done", "skipped"];
const MARKS = { waiting: "○", ready: "◔", running: "◑", done: "●", skipped: "–" };

function caption(stage, now) {
  if (stage.state === "done") return stage.kind === "dynamic" ? "plan done" : seconds(stage.finished_at - stage.started_at);
  if (stage.kind === "dynamic") return stage.state === "waiting" ? "plan to come" : stage.state === "skipped" ? "skipped" : "at work";
  if (stage.state === "running") {
    const part = stage.tasks > 1 ? `${stage.done}/${stage.tasks} · ` : "";
    return part + (stage.started_at ? seconds(now - stage.started_at) : "");
  }
  if (stage.state === "ready") return stage.tasks > 1 ? `ready · ${stage.tasks} tasks` : "ready";
  if (stage.state === "skipped") return "skipped";
  return stage.tasks ? "waits" : "may come";
}

/**
 * stages: of GET /v1/jobs/{id}. seen: names that were drawn before (what is new unfolds), updated here.
 * onPick: called with a stage's name; picked: that which is marked. room: pixels there are.
 */
export function drawDag(stages, now, seen, { onPick, picked, room = Infinity } = {}) {
  const links = edges(stages);
  const columns = layers(stages, links);
  const tallest = Math.max(1, ...columns.map((c) => c.length));
  const height = tallest * (H + GAP_Y) - GAP_Y + 2 * PAD + 14;
  const width = columns.length * (W + GAP_X) - GAP_X + 2 * PAD;
  const at = new Map();
  columns.forEach((column, c) => column.forEach((stage, k) => {
    at.set(stage.name, [PAD + c * (W + GAP_X), PAD + 7 + (tallest - column.length) * (H + GAP_Y) / 2 + k * (H + GAP_Y)]);
  }));
  const counts = STATES.map((state) => [state, stages.filter((stage) => stage.state === state).length]).filter(([, n]) => n);
  const scale = Math.min(1, Math.max(SMALLEST, room / width));
  const svg = s("svg", { class: "dag", viewBox: `0 0 ${width} ${height}`, width: width * scale, height: height * scale, role: "group",
    "aria-label": `Stages: ${counts.map(([state, n]) => `${n} ${state}`).join(", ")}` });

  const plans = Map.groupBy(stages.filter((stage) => stage.parent), (stage) => stage.parent);
  for (const [parent, plan] of plans) {
    const boxes = plan.map((stage) => at.get(stage.name));
    const x0 = Math.min(...boxes.map((b) => b[0])) - 9, x1 = Math.max(...boxes.map((b) => b[0])) + W + 9;
    const y0 = Math.min(...boxes.map((b) => b[1])) - 8, y1 = Math.max(...boxes.map((b) => b[1])) + H + 8;
    const isFresh = seen.size > 0 && plan.some((stage) => !seen.has(stage.name));
    svg.append(s("g", { class: `frame${isFresh ? " fresh" : ""}` },
      s("rect", { x: x0, y: y0, width: x1 - x0, height: y1 - y0, rx: 12 }),
      s("text", { x: x0 + 10, y: y0 - 3, class: "tick" }, `plan of ${parent}`)));
  }
  for (const [from, to, kind] of links) {
    const a = at.get(from), b = at.get(to);
    if (!a || !b) continue;
    const x0 = a[0] + W, y0 = a[1] + H / 2, x1 = b[0], y1 = b[1] + H / 2, bend = Math.max(18, (x1 - x0) / 2);
    const target = stages.find((stage) => stage.name === to);
    const isFresh = seen.size > 0 && !seen.has(to);
    svg.append(s("path", { class: `edge ${target.state}${kind ? " planned" : ""}${isFresh ? " fresh" : ""}`,
      d: `M${x0} ${y0}C${x0 + bend} ${y0} ${x1 - bend} ${y1} ${x1} ${y1}` }));
  }
  for (const stage of stages) {
    const [x, y] = at.get(stage.name);
    const isFresh = seen.size > 0 && !seen.has(stage.name);
    const said = `${stage.name}, ${stage.kind}, ${stage.state}, ${caption(stage, now)}`;
    const node = s("g", { class: `node ${stage.state} ${stage.kind}${isFresh ? " fresh" : ""}${picked === stage.name ? " picked" : ""}`,
      transform: `translate(${x} ${y})`, tabindex: 0, role: "button", "aria-label": said, "data-key": `stage:${stage.name}`,
      "data-stage": stage.name, "data-state": stage.state },
    s("title", {}, said),
    s("rect", { class: "box", width: W, height: H, rx: stage.kind === "llm" ? 10 : 4 }));
    if (stage.tasks > 0 && stage.state === "running") {
      node.append(s("rect", { class: "progress", x: 6, y: H - 6, width: ((W - 12) * stage.done) / stage.tasks, height: 2.5, rx: 1 }));
    }
    const name = stage.name.length > 16 ? `${stage.name.slice(0, 15)}…` : stage.name;
    node.append(s("text", { x: 10, y: 19, class: "name" }, name),
      s("text", { x: 10, y: 35, class: "note" }, `${MARKS[stage.state]} ${caption(stage, now)}`),
      s("text", { x: W - 8, y: 35, class: "kind", "text-anchor": "end" }, stage.kind === "regular" ? stage.pool : stage.kind));
    const pick = () => onPick?.(stage.name);
    node.addEventListener("click", pick);
    node.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); pick(); }
    });
    svg.append(node);
  }
  for (const stage of stages) seen.add(stage.name);
  return svg;
}
