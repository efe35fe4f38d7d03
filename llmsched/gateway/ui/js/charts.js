// Line charts and stacked bars in SVG: few, small, and readable without colours (every line has its name).
import { h, s } from "./dom.js";
import { axisSeconds, seconds, shortClock } from "./format.js";

const WIDTH = 460, HEIGHT = 150, LEFT = 50, RIGHT = 8, TOP = 8, BOTTOM = 20;
// Steps that a chart shows at least; a service that was just started would be a needle at the right end of all.
const LEAST = 36;

/** Round numbers from 0 to at least `most`. */
export function ticks(most, count = 3) {
  if (!(most > 0)) return [0, 1];
  const raw = most / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((m) => m >= raw);
  const found = [];
  for (let k = 0; k * step < most + step * 0.999; k++) found.push(Number((k * step).toPrecision(6)));
  return found;
}

function pathOf(points) {
  let path = "", pen = false;
  for (const p of points) {
    if (p === null) { pen = false; continue; }
    path += `${pen ? "L" : "M"}${p[0].toFixed(1)} ${p[1].toFixed(1)}`;
    pen = true;
  }
  return path;
}

/**
 * Lines over time. all: [{name, values, area}], values as long as `times`, null where unknown. unit: value → text.
 * gaps: whether a null breaks the line (else it is drawn on, for what only happens now and then).
 */
export function timeChart(title, times, all, { unit = String, gaps = true, empty = "nothing yet" } = {}) {
  const begin = Math.max(0, Math.min(times.length - LEAST, ...all.map((l) => l.values.findIndex((v) => v !== null)).filter((k) => k >= 0)) - 1);
  const at = times.slice(begin);
  const lines = all.map((l) => ({ ...l, values: l.values.slice(begin) }));
  const known = lines.flatMap((l) => l.values).filter((v) => v !== null);
  const figure = h("figure", { class: "chart" });
  const last = (l) => l.values.findLast((v) => v !== null) ?? null;
  figure.append(h("figcaption", {}, h("span", { class: "title" }, title),
    h("span", { class: "legend" }, lines.map((l, k) => h("span", { class: `key c${k}` }, l.name, " ",
      h("b", {}, last(l) === null ? "–" : unit(last(l))))))));
  const short = (v) => (v === 0 ? "0" : unit === seconds ? axisSeconds(v) : unit(v));
  const scale = ticks(Math.max(0, ...known));
  const most = scale.at(-1);
  const x = (k) => LEFT + (WIDTH - LEFT - RIGHT) * (k / Math.max(1, at.length - 1));
  const y = (v) => HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (v / most);
  const said = `${title}: ${lines.map((l) => `${l.name} ${last(l) === null ? "unknown" : unit(last(l))}`).join(", ")}`;
  const svg = s("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": said });
  for (const tick of scale) {
    svg.append(s("line", { x1: LEFT, x2: WIDTH - RIGHT, y1: y(tick), y2: y(tick), class: "grid" }));
    svg.append(s("text", { x: LEFT - 6, y: y(tick) + 3.5, class: "tick", "text-anchor": "end" }, short(tick)));
  }
  for (const k of [0, Math.floor((at.length - 1) / 2), at.length - 1]) {
    const anchor = k === 0 ? "start" : k === at.length - 1 ? "end" : "middle";
    svg.append(s("text", { x: x(k), y: HEIGHT - 5, class: "tick", "text-anchor": anchor }, shortClock(at[k])));
  }
  lines.forEach((line, n) => {
    const points = line.values.map((v, k) => (v === null ? (gaps ? null : undefined) : [x(k), y(v)])).filter((p) => p !== undefined);
    if (line.area) {
      const runs = points.filter((p) => p !== null);
      if (runs.length > 1) {
        const base = y(0);
        svg.append(s("path", { class: `area c${n}`, d: `${pathOf(runs)}L${runs.at(-1)[0].toFixed(1)} ${base}L${runs[0][0].toFixed(1)} ${base}Z` }));
      }
    }
    svg.append(s("path", { class: `line c${n}${line.dashed ? " dashed" : ""}`, d: pathOf(points) }));
    const alone = points.filter((p) => p !== null);
    if (alone.length) svg.append(s("circle", { class: `dot c${n}`, cx: alone.at(-1)[0], cy: alone.at(-1)[1], r: 2.5 }));
  });
  if (!known.length) svg.append(s("text", { x: (LEFT + WIDTH) / 2, y: HEIGHT / 2, class: "tick", "text-anchor": "middle" }, empty));
  figure.append(svg);
  return figure;
}

/** Share of jobs done within a time, on a logarithmic axis. lines: {name: [[seconds, share], …]}. */
export function doneChart(lines) {
  const width = 640, height = 280, bottom = 32;
  const times = Object.values(lines).flat().map((p) => p[0]).filter((t) => t > 0);
  const low = Math.log10(Math.max(1e-3, Math.min(...times, 1))), high = Math.log10(Math.max(...times, low + 1) * 1.05);
  const x = (t) => LEFT + (width - LEFT - RIGHT) * ((Math.log10(Math.max(t, 10 ** low)) - low) / (high - low || 1));
  const y = (v) => height - bottom - (height - TOP - bottom) * v;
  const svg = s("svg", { viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": `Share of jobs done within a time: ${Object.keys(lines).join(", ")}` });
  for (const share of [0, 0.25, 0.5, 0.75, 1]) {
    svg.append(s("line", { x1: LEFT, x2: width - RIGHT, y1: y(share), y2: y(share), class: "grid" }));
    svg.append(s("text", { x: LEFT - 6, y: y(share) + 3.5, class: "tick", "text-anchor": "end" }, `${share * 100} %`));
  }
  for (let p = Math.floor(low); p <= Math.ceil(high); p++) {
    for (const m of [1, 3]) {
      const t = m * 10 ** p;
      if (Math.log10(t) < low - 1e-9 || Math.log10(t) > high) continue;
      svg.append(s("line", { x1: x(t), x2: x(t), y1: TOP, y2: height - bottom, class: "grid" }));
      svg.append(s("text", { x: x(t), y: height - bottom + 15, class: "tick", "text-anchor": "middle" }, axisSeconds(t)));
    }
  }
  Object.entries(lines).forEach(([name, points], n) => {
    const path = pathOf(points.map(([t, share]) => [x(t), y(share)]));
    svg.append(s("path", { class: `line wide ${name === "recorded" ? "recorded dashed" : `c${n - ("recorded" in lines ? 1 : 0)}`}`, d: path },
      s("title", {}, name)));
  });
  return svg;
}

/** A bar of parts: [[class, count, name], …]; `of` is its whole length. */
export function bar(parts, of) {
  const whole = Math.max(of, parts.reduce((sum, [, n]) => sum + n, 0), 1e-9);
  const said = parts.map(([, n, name]) => `${n} ${name}`).join(", ");
  const svg = s("svg", { class: "bar", viewBox: "0 0 100 8", preserveAspectRatio: "none", role: "img", "aria-label": said });
  svg.append(s("rect", { class: "rest", x: 0, y: 0, width: 100, height: 8 }));
  let x = 0;
  for (const [kind, n, name] of parts) {
    const width = (100 * n) / whole;
    if (n) svg.append(s("rect", { class: kind, x, y: 0, width, height: 8 }, s("title", {}, `${n} ${name}`)));
    x += width;
  }
  return svg;
}

/** Slots as little squares, as many as there are (up to 64; a bar beyond). */
export function slots(running, total) {
  if (total > 64) return bar([["running", running, "taken"]], total);
  const svg = s("svg", { class: "slots", viewBox: `0 0 ${Math.max(1, Math.min(total, 16)) * 11} ${Math.ceil(Math.max(1, total) / 16) * 11}`,
    role: "img", "aria-label": `${running} of ${total} slots taken`, width: Math.max(1, Math.min(total, 16)) * 11 });
  for (let k = 0; k < Math.max(total, running); k++) {
    svg.append(s("rect", { class: k < running ? (k < total ? "running" : "over") : "rest", x: (k % 16) * 11 + 1, y: Math.floor(k / 16) * 11 + 1,
      width: 9, height: 9, rx: 2 }));
  }
  return svg;
}
