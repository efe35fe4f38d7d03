// Engines: are they well, how full are they; drain one before it is taken away, and resume it.
import { h, show, toast } from "../dom.js";
import { get, post, repeat } from "../api.js";
import { slots } from "../charts.js";
import { number, plural } from "../format.js";
import { walk } from "../keys.js";

const stateOf = (e) => (e.draining ? (e.running ? "draining" : "drained") : e.healthy ? "up" : "down");

export function engines(main, _, signal) {
  const list = h("div", { class: "engines", id: "engines" });
  const others = h("div", { class: "engines" });
  main.append(h("h1", {}, "Engines"), list, h("h2", {}, "Workers"), others);

  const act = async (engine) => {
    const verb = engine.draining ? "resume" : "drain";
    try {
      await post(`/v1/engines/${encodeURIComponent(engine.id)}/${verb}`, undefined, signal);
      toast(verb === "drain" ? `${engine.id} gets no new work; what runs there finishes.` : `${engine.id} takes work again.`);
      await draw();
    } catch (error) { toast(error.message, "error"); }
  };

  const card = (e) => {
    const state = stateOf(e);
    return h("article", { class: `card engine ${state}`, "data-engine": e.id, "data-state": state, "aria-label": `engine ${e.id}, ${state}` },
      h("div", { class: "heading" },
        h("h2", {}, h("span", { class: `led ${state}`, "aria-hidden": "true" }), e.id, " ", h("span", { class: `chip ${state}` }, state)),
        h("button", { "data-key": `act:${e.id}`, class: e.draining ? "primary" : "plain", onclick: () => act(e) }, e.draining ? "Resume" : "Drain")),
      h("p", { class: "slotsline" }, slots(e.running, e.slots), h("b", {}, `${e.running}/${e.slots}`), h("span", { class: "note" }, " slots taken")),
      h("dl", { class: "details" }, [["model", e.model ?? "not known yet"], ["pool", e.pool], ["address", e.url],
        ["context", e.max_model_len ? `${number(e.max_model_len)} tokens` : "not known"]].map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
      e.last_error && !e.healthy ? h("p", { class: "trouble" }, e.last_error)
        : e.last_error ? h("p", { class: "note" }, "last trouble: ", e.last_error) : null,
      state === "drained" ? h("p", { class: "note" }, "Nothing runs here: it can be taken away.")
        : state === "draining" ? h("p", { class: "note" }, `${plural(e.running, "task")} still to finish.`) : null);
  };

  const draw = async () => {
    const [{ items }, now] = await Promise.all([get("/v1/engines", signal), get("/v1/overview", signal)]);
    show(list, items.length ? items.map(card) : h("p", { class: "empty" }, "No engine yet: POST /v1/engines, or llmsched serve --engine URL."));
    const workers = now.executors.filter((e) => !e.is_engine);
    show(others, workers.length ? workers.map((e) => h("article", { class: "card engine" }, h("h3", {}, e.id),
      h("p", { class: "slotsline" }, slots(e.running, e.slots), h("b", {}, `${e.running}/${e.slots}`), h("span", { class: "note" }, ` slots taken, pool ${e.pool}`))))
      : h("p", { class: "empty" }, "No workers."));
  };
  repeat(1500, draw, signal);
  const undo = walk(() => [...list.querySelectorAll("button")], "engine (Enter drains or resumes)");
  signal.addEventListener("abort", undo);
}
