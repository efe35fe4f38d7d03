// Jobs, newest first: filters in the address, pages by cursor.
import { h, show } from "../dom.js";
import { get, repeat } from "../api.js";
import { clock, seconds, shortId, words } from "../format.js";
import { onKey, walk } from "../keys.js";

const STATUSES = ["queued", "running", "completed", "failed", "cancelled"];
const PAGE = 50;

function took(job, now) {
  if (job.finished_at) return seconds(job.finished_at - job.submitted_at);
  return `${seconds(now - job.submitted_at)} so far`;
}

function row(job, now) {
  return h("tr", { class: "row" },
    h("td", {}, h("a", { href: `#/jobs/${job.id}`, "data-key": job.id, class: "jobid", title: job.id }, shortId(job.id))),
    h("td", {}, words(job.application), job.version > 1 ? h("span", { class: "faint" }, ` v${job.version}`) : null),
    h("td", {}, h("span", { class: `chip ${job.status}` }, job.status)),
    h("td", { class: "maybe" }, job.class === "standard" ? h("span", { class: "faint" }, job.class) : job.class),
    h("td", { class: "n maybe" }, clock(job.submitted_at)),
    h("td", { class: "n" }, took(job, now)),
    h("td", { class: "maybe error", title: job.error ?? "" }, job.error ?? ""));
}

export function jobs(main, { query }, signal) {
  const cursors = [null];
  let next = null;
  const filter = (name) => query.get(name) ?? "";
  const go = (name, value) => {
    const changed = new URLSearchParams(query);
    if (value) changed.set(name, value); else changed.delete(name);
    location.hash = `#/jobs${changed.size ? `?${changed}` : ""}`;
  };
  const status = h("select", { id: "status", "aria-label": "Status", onchange: () => go("status", status.value) },
    h("option", { value: "" }, "every status"), STATUSES.map((name) => h("option", { value: name, selected: filter("status") === name }, name)));
  const application = h("select", { id: "application", "aria-label": "Application", onchange: () => go("application", application.value) },
    h("option", { value: "" }, "every application"));
  const find = h("input", { type: "search", id: "find", placeholder: "job id  ( / )", "aria-label": "Open a job by its id", autocomplete: "off",
    onkeydown: (event) => {
      const id = find.value.trim();
      if (event.key === "Enter" && id) location.hash = `#/jobs/${encodeURIComponent(id)}`;
    } });
  const body = h("tbody", { id: "jobs" });
  const note = h("p", { class: "empty" });
  const older = h("button", { id: "older", onclick: () => { cursors.push(next); draw(); } }, "older ›");
  const newer = h("button", { id: "newer", onclick: () => { cursors.pop(); draw(); } }, "‹ newer");
  const page = h("span", { class: "faint", id: "page" });
  main.append(h("div", { class: "heading" }, h("h1", {}, "Jobs"), h("div", { class: "filters" }, find, application, status)),
    h("section", { class: "card flush" }, h("div", { class: "scroll" }, h("table", { class: "list" },
      h("thead", {}, h("tr", {}, h("th", {}, "job"), h("th", {}, "application"), h("th", {}, "status"), h("th", { class: "maybe" }, "class"),
        h("th", { class: "n maybe" }, "submitted"), h("th", { class: "n" }, "took"), h("th", { class: "maybe" }, "error"))), body)), note),
    h("div", { class: "pager" }, newer, page, older));

  get("/v1/applications", signal).then(({ items }) => {
    const names = new Set([...items.map((a) => a.name), ...(filter("application") ? [filter("application")] : [])]);
    application.append(...[...names].sort().map((name) => h("option", { value: name, selected: filter("application") === name }, words(name))));
  }).catch(() => {});

  const draw = async () => {
    const asked = new URLSearchParams({ limit: String(PAGE) });
    for (const name of ["status", "application"]) if (filter(name)) asked.set(name, filter(name));
    const cursor = cursors.at(-1);
    if (cursor) asked.set("cursor", cursor);
    const { items, next_cursor } = await get(`/v1/jobs?${asked}`, signal);
    if (cursors.at(-1) !== cursor) return;
    next = next_cursor;
    const now = Date.now() / 1000;
    show(body, items.map((job) => row(job, now)));
    show(note, items.length ? null : query.size ? "No job fits these filters." : "No job yet.");
    older.disabled = !next;
    newer.disabled = cursors.length < 2;
    show(page, `page ${cursors.length}`);
  };
  repeat(2500, draw, signal);
  const undo = [walk(() => [...body.querySelectorAll("a.jobid")], "job"),
    onKey("/", "find a job", () => find.focus()),
    onKey("n", "older jobs", () => older.click()), onKey("p", "newer jobs", () => newer.click())];
  signal.addEventListener("abort", () => undo.forEach((f) => f()));
}
