// One job: its DAG as it unfolds, its tasks over time, when it will be done, and why it is not further.
import { h, show, toast } from "../dom.js";
import { follow, get, post, repeat } from "../api.js";
import { bar } from "../charts.js";
import { drawDag, STATES } from "../dag.js";
import { drawGantt } from "../gantt.js";
import { clock, number, seconds, shortId, words } from "../format.js";
import { onKey } from "../keys.js";

const OVER = ["completed", "failed", "cancelled"];

function reason(why) {
  return Object.entries(why ?? {}).map(([name, value]) => `${name} ${typeof value === "number" ? number(value) : JSON.stringify(value)}`).join(", ");
}

function eta(job, now) {
  if (job.finished_at) return h("span", {}, "took ", h("b", {}, seconds(job.finished_at - job.submitted_at)));
  if (!job.eta) return h("span", { class: "faint", title: "nothing is learned about this application yet" }, "no estimate yet");
  if (job.eta.p90 <= now + 0.05) return h("span", { id: "eta" }, "later than was believed: ", h("b", {}, "90 % of its like"), " were over by now");
  return h("span", { id: "eta" }, "done in ", h("b", {}, seconds(job.eta.p50 - now)), " (p50) to ", h("b", {}, seconds(job.eta.p90 - now)), " (p90)");
}

function because(why) {
  const left = Object.entries(why.remaining).map(([pool, work]) => `${seconds(work)} in ${pool}`).join(", ");
  return [
    h("ul", { class: "why", id: "sentences" }, why.sentences.map((text) => h("li", {}, text, "."))),
    left && h("p", {}, "Believed to be left, alone on an engine: ", h("b", {}, left), "."),
    why.places.filter((p) => p.ahead.length || p.why).map((p) => h("div", { class: "place" },
      h("h3", {}, "Order in pool ", p.pool, p.place !== null ? h("span", { class: "rank" }, `#${p.place + 1}`) : null),
      h("ol", {}, p.ahead.map((a) => h("li", {},
        a.job ? h("a", { href: `#/jobs/${a.job}` }, words(a.application), " ", shortId(a.job)) : h("span", { class: "faint" }, "a job of another tenant"),
        h("span", { class: "note" }, ` ${a.tasks} task${a.tasks === 1 ? "" : "s"}${a.class === "standard" ? "" : ` · ${a.class}`}${a.why ? ` · ${reason(a.why)}` : ""}`))),
      p.jobs_ahead > p.ahead.length ? h("li", { class: "faint more" }, `and ${p.jobs_ahead - p.ahead.length} more`) : null,
      p.place !== null ? h("li", { class: "me" }, "this job", h("span", { class: "note" }, p.why ? ` · ${reason(p.why)}` : "")) : null))),
    h("p", { class: "note" }, "Policy ", h("a", { href: "#/policies" }, why.policy), ": ", why.line, "."),
  ];
}

/** Where the time of a job that is over went: how long something of it ran, and how long nothing did. */
function spent(job, spans) {
  const ends = spans.map((span) => [span.started_at, span.ended_at ?? job.finished_at]).sort((a, b) => a[0] - b[0]);
  let ran = 0, until = job.submitted_at;
  for (const [from, to] of ends) {
    ran += Math.max(0, to - Math.max(from, until));
    until = Math.max(until, to);
  }
  const whole = job.finished_at - job.submitted_at, waited = Math.max(0, whole - ran);
  const executors = new Set(spans.map((span) => span.executor));
  const tokens = job.stages.reduce((sum, stage) => sum + (stage.output_tokens ?? 0), 0);
  return [
    bar([["running", ran, "seconds at work"], ["queued", waited, "seconds of waiting"]], whole),
    h("dl", { class: "details" }, [["at work", `${seconds(ran)} (${Math.round((100 * ran) / (whole || 1))} %)`],
      ["waiting", `${seconds(waited)}, while nothing of it ran`], ["attempts", `${spans.length}, on ${[...executors].join(", ")}`],
      ["written", `${number(tokens)} tokens`]].map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
  ];
}

function details(stage) {
  const rows = [["kind", `${stage.kind}${stage.pool ? ` · pool ${stage.pool}` : ""}`], ["state", stage.state],
    ["tasks", stage.tasks === null ? "not known yet" : `${stage.done} of ${stage.tasks} done${stage.running ? `, ${stage.running} running` : ""}`],
    ["after", stage.after.join(", ") || "nothing"], stage.parent && ["plan of", stage.parent],
    stage.started_at && ["started", clock(stage.started_at)], stage.finished_at && ["finished", clock(stage.finished_at)],
    stage.prompt_tokens !== null && ["tokens", `${number(stage.prompt_tokens)} read, ${number(stage.output_tokens)} written`],
    stage.executors.length && ["ran on", stage.executors.join(", ")]].filter(Boolean);
  return h("dl", { class: "details" }, rows.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}

export function job(main, { id }, signal) {
  const seen = new Set();
  let picked = null, last = null, skew = 0, wanted = true, timer = null;
  const now = () => Date.now() / 1000 + skew;
  const head = h("div"), dag = h("div", { class: "scroll dagbox", id: "dag", tabindex: 0, "aria-label": "Stages of the job" });
  const legend = h("div", { class: "legend states" }, STATES.map((state) => h("span", { class: `state ${state}` }, state)));
  const stagebox = h("div", { id: "stage" }), gantt = h("div", { class: "scroll", id: "gantt" }), exact = h("p", { class: "note" });
  const why = h("section", { class: "card", id: "why", "aria-labelledby": "h-why" });
  const result = h("section", { class: "card", "aria-labelledby": "h-result" });
  main.append(head,
    h("section", { class: "card", "aria-labelledby": "h-dag" }, h("div", { class: "heading" }, h("h2", { id: "h-dag" }, "Stages"), legend), dag, stagebox),
    h("div", { class: "columns job" },
      h("section", { class: "card", "aria-labelledby": "h-gantt" }, h("h2", { id: "h-gantt" }, "Tasks over time"), gantt, exact), why),
    result);

  const pick = (name) => { picked = picked === name ? null : name; drawStages(); };
  const drawStages = () => {
    const scroll = dag.scrollLeft;
    show(dag, drawDag(last.stages, now(), seen, { onPick: pick, picked, room: dag.clientWidth }));
    dag.scrollLeft = scroll;
    const stage = last.stages.find((one) => one.name === picked);
    show(stagebox, stage && [h("h3", {}, stage.name), details(stage)]);
  };

  const cancel = async () => {
    if (!last || OVER.includes(last.status) || !confirm(`Cancel this job of ${words(last.application)}?`)) return;
    try { await post(`/v1/jobs/${id}/cancel`, undefined, signal); toast("The job is being cancelled."); load(); } catch (error) { toast(error.message, "error"); }
  };

  const draw = async () => {
    const [view, times, reasons] = await Promise.all([get(`/v1/jobs/${encodeURIComponent(id)}`, signal),
      get(`/v1/jobs/${encodeURIComponent(id)}/timeline`, signal), get(`/v1/jobs/${encodeURIComponent(id)}/why`, signal)]);
    last = view;
    skew = times.now - Date.now() / 1000;
    const isOver = OVER.includes(view.status);
    document.title = `${words(view.application)} ${view.status} · llmsched`;
    show(head, h("p", { class: "crumbs" }, h("a", { href: "#/jobs" }, "Jobs"), " / ", h("code", {}, view.id)),
      h("div", { class: "heading" }, h("h1", {}, words(view.application), " ", h("span", { class: `chip ${view.status}`, id: "jobstatus" }, view.status)),
        h("div", { class: "facts" }, eta(view, now()),
          h("span", { class: "faint" }, `submitted ${clock(view.submitted_at)}`),
          view.class !== "standard" ? h("span", { class: "faint" }, view.class) : null,
          isOver ? null : h("button", { id: "cancel", class: "danger", title: "x", onclick: cancel }, "Cancel"))),
      view.error ? h("p", { class: "trouble", role: "alert" }, view.error) : null,
      view.off_profile.length ? h("p", { class: "note" }, `It left its template: ${view.off_profile.join("; ")}.`) : null);
    drawStages();
    show(gantt, times.spans.length ? drawGantt(times.spans, view.submitted_at, now(), view.finished_at, view.eta) : h("p", { class: "empty" }, "No task has begun."));
    show(exact, times.is_exact || !times.spans.length ? null : "Only stages are remembered of this job: its tasks are drawn from their stage's start.");
    show(why, h("h2", { id: "h-why" }, isOver ? "Where the time went" : reasons.places.length ? "Why is it waiting?" : "What is it doing?"),
      isOver && times.spans.length ? spent(view, times.spans) : because(reasons));
    const hasMore = view.result !== null || Object.keys(view.metadata).length > 0;
    result.hidden = !hasMore;
    show(result, hasMore && [h("h2", { id: "h-result" }, view.result !== null ? "Result" : "Metadata"),
      view.result !== null ? h("pre", {}, JSON.stringify(view.result, null, 2).slice(0, 20000)) : null,
      Object.keys(view.metadata).length ? h("pre", {}, JSON.stringify(view.metadata, null, 2)) : null]);
    return isOver;
  };

  // Asked again soon after any news of the job, and now and then for what has no news (its place, its clock).
  const load = () => {
    wanted = true;
    if (timer) return;
    timer = setTimeout(async () => {
      timer = null;
      if (!wanted || signal.aborted) return;
      wanted = false;
      await draw().catch(() => {});
    }, 120);
  };
  const upkeep = new AbortController();
  signal.addEventListener("abort", () => upkeep.abort());
  repeat(1500, async () => {
    if (await draw()) upkeep.abort();
  }, upkeep.signal).then(() => {});
  follow(`/v1/jobs/${encodeURIComponent(id)}/events`, load, signal);
  const undo = [onKey("x", "cancel the job", cancel), onKey("u", "back to the jobs", () => { location.hash = "#/jobs"; })];
  signal.addEventListener("abort", () => undo.forEach((f) => f()));
}
