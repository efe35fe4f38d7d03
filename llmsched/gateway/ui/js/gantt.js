// Bars of a job's tasks over time, one row per task, and where the job is believed to end.
import { s } from "./dom.js";
import { seconds } from "./format.js";
import { ticks } from "./charts.js";

const ROW = 18, LABEL = 160, WIDTH = 900, TOP = 24, MOST = 120;

/** spans: of GET /v1/jobs/{id}/timeline. from: the job's submission. until: its end, or null. eta: {p50, p90} or null. */
export function drawGantt(spans, from, now, until, eta) {
  const rows = [...Map.groupBy(spans, (span) => `${span.stage} ${span.task}`).values()];
  const shown = rows.slice(0, MOST);
  const several = new Set(spans.filter((span) => span.task > 0).map((span) => span.stage));
  const end = until ?? Math.max(now, eta?.p90 ?? 0);
  const last = Math.max(end, ...spans.map((span) => span.ended_at ?? now));
  const length = Math.max(0.05, (last - from) * 1.02);
  const x = (at) => LABEL + ((WIDTH - LABEL - 12) * Math.max(0, at - from)) / length;
  const height = TOP + Math.max(1, shown.length) * ROW + 14;
  const svg = s("svg", { class: "gantt", viewBox: `0 0 ${WIDTH} ${height}`, role: "img",
    "aria-label": `${spans.length} attempts of ${rows.length} tasks over ${seconds(last - from)}` });
  for (const tick of ticks(length, 6).filter((t) => t <= length)) {
    svg.append(s("line", { class: "grid", x1: x(from + tick), x2: x(from + tick), y1: TOP - 4, y2: height - 8 }));
    svg.append(s("text", { class: "tick", x: x(from + tick), y: 13, "text-anchor": "middle" }, tick === 0 ? "0" : seconds(tick)));
  }
  if (eta && !until) {
    svg.append(s("rect", { class: "eta", x: x(eta.p50), y: TOP - 4, width: Math.max(2, x(eta.p90) - x(eta.p50)), height: height - TOP - 4 },
      s("title", {}, "with 50 to 90 % it is over in this time")));
    svg.append(s("text", { class: "tick etatext", x: x(eta.p50) + 4, y: height - 1 }, "ETA 50–90 %"));
  }
  shown.forEach((attempts, k) => {
    const y = TOP + k * ROW, [first] = attempts;
    const label = several.has(first.stage) ? `${first.stage}[${first.task}]` : first.stage;
    svg.append(s("text", { class: "rowname", x: LABEL - 8, y: y + 12, "text-anchor": "end" },
      label.length > 24 ? `${label.slice(0, 23)}…` : label));
    for (const span of attempts) {
      const stop = span.ended_at ?? (until ?? now);
      svg.append(s("rect", { class: `span ${span.outcome}`, x: x(span.started_at), y: y + 3, rx: 3, height: ROW - 6,
        width: Math.max(2, x(stop) - x(span.started_at)) },
      s("title", {}, `${label} on ${span.executor}: ${seconds(stop - span.started_at)}, ${span.outcome}${span.attempt > 1 ? `, attempt ${span.attempt}` : ""}`)));
      if (x(stop) - x(span.started_at) > 70) {
        svg.append(s("text", { class: "spanname", x: x(span.started_at) + 6, y: y + 12.5 }, span.executor));
      }
    }
  });
  if (!until) svg.append(s("line", { class: "nowline", x1: x(now), x2: x(now), y1: TOP - 4, y2: height - 8 }));
  if (rows.length > MOST) svg.append(s("text", { class: "tick", x: LABEL, y: height - 1 }, `and ${rows.length - MOST} tasks more`));
  return svg;
}
