"""Jobs of the six applications for people without traces: drawn, seeded, shaped like the recorded ones.

Each application has a *sketch*: the stages of one job, in the names and order of the published traces. Shares,
lengths and durations come from `parameters.json`, which `benchmarks/fit_generator.py` computes from the traces:

* a histogram (values and weights), or quantiles (41 equally frequent steps, linear between their means), read at u;
* u is uniform; where lengths of one job go together, the u are normal scores with a common part (a Gaussian
  copula), so that every single length keeps its own distribution;
* a prompt is what the application puts into it: its template, the input, earlier outputs. Those sums are exact or
  nearly so in the traces; what they leave is drawn.

`parameters="measured"` is that. `parameters="paper"` stretches three applications to what the LLMSched paper
(arXiv:2504.03444, section II) reports of Llama-2-7B at batch size 1, which no public log shows: a job is drawn as
measured and its lengths are scaled so that alone it takes 10 to 300 s (sorting), 2 to 50 s (code generation) or 1
to 116 s (task automation, 1 to 8 generated stages). Sorting stages also get a spread of their own, so that the
first and the fourth correlate by 0.7 and not by 1.
"""

from __future__ import annotations

import json
import math
import re
from bisect import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from itertools import accumulate
from random import Random
from typing import Any

from llmsched.errors import UnknownName
from llmsched.model.kinds import StageKind
from llmsched.model.latency import GENERIC_7B
from llmsched.model.recording import RecordedStage, RecordedTask, Recording, in_order

Call = tuple[float, float]
"""Prompt and output tokens of one LLM call, not yet rounded."""


def generate(application: str, rng: Random, parameters: str = "measured") -> Recording:
    """One job. The same `rng` state gives the same job. Raises UnknownName.

    >>> generate("web_search", Random(7)).stages[0].name
    'thought_1'
    """
    if application not in SKETCHES:
        raise UnknownName.of("application (the generator knows the six published ones)", application, SKETCHES)
    if parameters not in PARAMETERS:
        raise UnknownName.of("parameters", parameters, PARAMETERS)
    fitted = fitted_parameters()
    numbers = fitted["measured"][application]
    extra = fitted["paper"].get(application, {}) if parameters == "paper" else {}
    return sketch(application, rng, {**numbers, **extra})


#: Names of parameter sets.
PARAMETERS = ("measured", "paper")


def sketch(application: str, rng: Random, numbers: Mapping[str, Any]) -> Recording:
    """One job from explicit numbers (one application's part of `parameters.json`, read by `parse_parameters`)."""
    job_id = f"{application}-{rng.getrandbits(48):012x}#generated"
    draft = SKETCHES[application](rng, numbers)
    stages = in_order(draft.stages)
    if "stretch" in numbers:
        stages = _stretched(stages, numbers["stretch"])
    return Recording(application, job_id, stages, draft.features)


def isolated_seconds(stages: Sequence[RecordedStage], scale: float = 1.0) -> float:
    """Seconds a job takes alone on one engine of batch size 1 (10 ms per token) and workers enough.

    `scale` multiplies output tokens and tool durations. Stages stand in topological order.
    """
    done: dict[str, float] = {}
    engine_free = 0.0
    for stage in stages:
        at = max((done[name] for name in stage.after), default=0.0)
        if stage.kind is StageKind.LLM:
            at = max(at, engine_free)
            for task in stage.tasks:
                at += GENERIC_7B.prefill(task.prompt_tokens) + scale * task.output_tokens * GENERIC_7B.decode(1)
            engine_free = at
        else:
            at += scale * max((task.duration for task in stage.tasks), default=0.0)
        done[stage.name] = at
    return max(done.values())


# How numbers are kept and read.


class Histogram:
    """Values with weights, read at u in [0, 1)."""

    def __init__(self, values: Sequence[Any], weights: Sequence[float]) -> None:
        self.values = values
        self._upto = list(accumulate(weights))

    def at(self, u: float) -> Any:
        return self.values[min(bisect(self._upto, u * self._upto[-1]), len(self.values) - 1)]


class Quantiles:
    """Smallest value, means of equally frequent steps in order, largest value; linear between, read at u."""

    def __init__(self, points: Sequence[float]) -> None:
        self._points = points

    def at(self, u: float) -> float:
        steps = len(self._points) - 2
        x = u * steps + 0.5  # position among the points; the first and the last step are half as wide
        if x < 1:
            return _between(self._points[0], self._points[1], 2 * (x - 0.5))
        if x >= steps:
            return _between(self._points[-2], self._points[-1], 2 * (x - steps))
        return _between(self._points[int(x)], self._points[int(x) + 1], x - int(x))


def _between(a: float, b: float, share: float) -> float:
    return a + (b - a) * share


def parse_parameters(text: str) -> dict[str, Any]:
    """Read `parameters.json`; `{values, weights}` become histograms and `{quantiles}` quantiles."""
    parsed: dict[str, Any] = json.loads(text, object_hook=_table)
    return parsed


def _table(obj: dict[str, Any]) -> Any:
    match obj:
        case {"values": values, "weights": weights}:
            return Histogram(values, weights)
        case {"quantiles": points}:
            return Quantiles(points)
    return obj


@cache
def fitted_parameters() -> dict[str, Any]:
    """The numbers that come with the package, by parameter set and application."""
    return parse_parameters(files("llmsched.workloads").joinpath("parameters.json").read_text(encoding="utf-8"))


def _together(rng: Random, correlation: float) -> Callable[[], float]:
    """A source of uniform numbers whose normal scores correlate pairwise by `correlation`."""
    return _source(rng, rng.gauss(0.0, 1.0), correlation)


def _source(rng: Random, common: float, correlation: float) -> Callable[[], float]:
    a, b = math.sqrt(correlation), math.sqrt(1.0 - correlation)
    return lambda: _phi(a * common + b * rng.gauss(0.0, 1.0))


def _copula(rng: Random, lower: Sequence[Sequence[float]]) -> list[float]:
    """Uniform numbers whose normal scores have the correlation matrix lower × lowerᵀ."""
    z = [rng.gauss(0.0, 1.0) for _ in lower]
    return [_phi(sum(w * x for w, x in zip(row, z, strict=False))) for row in lower]


def _phi(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2.0))


def _linear(coefficients: Sequence[float], *x: float) -> float:
    return coefficients[0] + sum(b * v for b, v in zip(coefficients[1:], x, strict=True))


# Sketches.


@dataclass(slots=True)
class _Draft:
    stages: list[RecordedStage] = field(default_factory=list)
    features: dict[str, str | int] = field(default_factory=dict)

    def llm(self, name: str, after: Sequence[str], calls: Sequence[Call], **more: Any) -> None:
        tasks = tuple(RecordedTask(max(1, round(p)), max(1, round(o))) for p, o in calls)
        self.stages.append(RecordedStage(name, StageKind.LLM, tuple(after), tasks, **more))

    def tool(self, name: str, after: Sequence[str], tool: str, seconds: float, **more: Any) -> None:
        tasks = (RecordedTask(duration=round(seconds, 4), tool=tool),)
        self.stages.append(RecordedStage(name, StageKind.REGULAR, tuple(after), tasks, **more))

    def dynamic(self, name: str, after: Sequence[str], candidates: str) -> None:
        self.stages.append(RecordedStage(name, StageKind.DYNAMIC, tuple(after), (), candidates=candidates))


def _sequence_sorting(rng: Random, numbers: Mapping[str, Any]) -> _Draft:
    """Split a list in two, sort both halves several times, keep the best, merge several times, (improve)."""
    variant = numbers["variants"].at(rng.random())
    length = variant["lengths"].at(rng.random())
    draft = _Draft(features={"variant": variant["name"], "length": length})
    u = _together(rng, variant["together"])
    spread = numbers.get("stage_spread", 0.0)
    local = numbers["local_seconds"]

    def call(stage: str, name: str, after: Sequence[str], n: int, items: int) -> None:
        prompt = _linear(numbers[stage]["prompt"], items)
        expected = round(_linear(numbers[stage]["output"], items))
        factor = math.exp(spread * rng.gauss(0.0, 1.0)) if spread else 1.0
        deviation = variant["deviation"].get(stage)
        outputs = [expected + (deviation.at(u()) if deviation else 0) for _ in range(n)]
        draft.llm(name, after, [(prompt, factor * output) for output in outputs])

    def keep_best(suffix: str, stage: str) -> None:
        draft.tool(f"score_{suffix}", [stage], "score", local)
        draft.tool(f"keep_best_{suffix}", [f"score_{suffix}"], "keep_best", local)

    call("split", "split", [], 1, length)
    for half in (1, 2):
        draft.tool(f"select_{half}", ["split"], "select", local)
    for half, items in ((1, length // 2), (2, length - length // 2)):
        call("sort", f"sort_{half}", [f"select_{half}"], variant["sorts"], items)
    for half in (1, 2):
        draft.tool(f"score_{half}", [f"sort_{half}"], "score", local)
    for half in (1, 2):
        draft.tool(f"keep_best_{half}", [f"score_{half}"], "keep_best", local)
    call("merge", "merge", ["keep_best_1", "keep_best_2"], variant["merges"], length)
    keep_best("m", "merge")
    if variant["improves"]:
        call("improve", "improve", ["keep_best_m"], variant["improves"], length)
        keep_best("i", "improve")
    return draft


def _document_merging(rng: Random, numbers: Mapping[str, Any]) -> _Draft:
    """Merge four documents several ways, score, aggregate the best, score, improve one, score."""
    documents = numbers["doc_tokens"].at(rng.random())
    draft = _Draft(features={"variant": numbers["variant"], "doc_tokens": round(documents)})
    thoughts: list[float] = []
    previous: list[str] = []
    for k, name in enumerate(("generate", "aggregate", "improve"), start=1):
        stage = numbers[name]
        prompt = stage["prompt"] + documents + sum(rng.sample(thoughts, stage["reads"]))
        thoughts = [documents * stage["ratio"].at(rng.random()) for _ in range(stage["calls"])]
        draft.llm(name, previous, [(prompt, thought) for thought in thoughts])
        scores = [
            (numbers["score"]["prompt"] + documents + thought, numbers["score"]["output"].at(rng.random()))
            for thought in thoughts
            for _ in range(numbers["score"]["per_thought"])
        ]
        draft.llm(f"score_{k}", [name], scores)
        draft.tool(f"keep_best_{k}", [f"score_{k}"], "keep_best", numbers["local_seconds"])
        previous = [f"keep_best_{k}"]
    return draft


def _code_generation(rng: Random, numbers: Mapping[str, Any]) -> _Draft:
    """Write tests and code, run it, and while it fails reflect and write it again."""
    iterations = numbers["iterations"].at(rng.random())
    group = numbers["solved_at_once" if iterations == 1 else "retried"]
    lengths = [q.at(u) for q, u in zip(group["lengths"], _copula(rng, group["lower"]), strict=True)]
    task, tests, code, *later = lengths  # prompt of test_gen, its output, first code, then (reflection, code) pairs
    feedback = numbers["feedback"].at(rng.random())
    run = numbers["exec"]
    u = _together(rng, run["together"])
    draft = _Draft(features={"variant": numbers["variant"]})

    def execute(i: int) -> None:
        seconds = run["hang_seconds"] if rng.random() < run["hangs"] else run["seconds"].at(u())
        draft.tool(f"code_exec_{i}", [f"code_gen_{i}"], "python_exec", seconds, iteration=i)

    problem = task + numbers["code_prompt"]
    draft.llm("test_gen", [], [(task, tests)], iteration=0)
    draft.llm("code_gen_0", ["test_gen"], [(problem, code)], iteration=0)
    execute(0)
    for i in range(1, iterations):
        reflection, rewritten = later[2 * i - 2 : 2 * i]
        prompt = _linear(numbers["reflect_prompt"], problem, code, tests) + feedback
        draft.llm(f"reflect_{i}", [f"code_exec_{i - 1}"], [(prompt, reflection)], iteration=i)
        again = _linear(numbers["rewrite_prompt"], prompt, reflection) + rng.gauss(0.0, numbers["rewrite_spread"])
        draft.llm(f"code_gen_{i}", [f"reflect_{i}"], [(again, rewritten)], iteration=i)
        execute(i)
        code = rewritten
    return draft


def _web_search(rng: Random, numbers: Mapping[str, Any]) -> _Draft:
    """Think, act (a search or a look-up), read the result, and again until the answer or the last step."""
    variant = numbers["variants"].at(rng.random())
    steps = variant["steps"].at(rng.random())
    family = numbers["families"][variant["family"]]
    halted = steps == numbers["max_steps"] and rng.random() < variant["halted"]
    middle = family["long" if steps >= numbers["long_from"] else "short"]
    f_thought = rng.gauss(0.0, 1.0)
    r = middle["factors_together"]
    f_action = r * f_thought + math.sqrt(1.0 - r * r) * rng.gauss(0.0, 1.0)
    u_thought = _source(rng, f_thought, middle["thoughts_together"])
    u_action = _source(rng, f_action, middle["actions_together"])
    u_last = _together(rng, family["last_together"])
    draft = _Draft(features={"variant": variant["name"]})
    context = variant["prompt"].at(rng.random())
    after: list[str] = []
    for i in range(1, steps + 1):
        last = i == steps and not halted
        if last:
            thought, action = family["last_thought"].at(u_last()), family["last_action"].at(u_last())
        else:
            first = i == 1
            thought = (family["first_thought"] if first else middle["thought"]).at(u_thought())
            action = (family["first_action"] if first else middle["action"]).at(u_action())
        prompts = context, context + thought + numbers["action_prompt"]
        draft.llm(f"thought_{i}", after, [(prompts[0], thought)], iteration=i)
        draft.llm(f"action_{i}", [f"thought_{i}"], [(prompts[1], action)], iteration=i)
        if not last:
            tool = numbers["tools"]["lookup" if rng.random() < middle["lookups"] else "search"]
            draft.tool(f"tool_{i}", [f"action_{i}"], tool["name"], _lognormal(rng, tool), iteration=i)
            context = prompts[1] + action + tool["result"].at(rng.random()) + numbers["result_prompt"]
            after = [f"tool_{i}"]
    return draft


def _task_automation(rng: Random, numbers: Mapping[str, Any]) -> _Draft:
    """Plan, then run the tools of the plan: mostly a chain, sometimes another graph."""
    group = numbers["groups"].at(rng.random())
    n = group["generated"].at(rng.random())
    while n > numbers.get("max_generated", n):
        n = group["generated"].at(rng.random())
    plan = _linear(group["plan_output"], n) * (1.0 + group["plan_spread"].at(rng.random()))
    prompt = group["prompt"].at(rng.random()) + group["prompt_per_stage"] * n
    domain = numbers["domains"][group["domain"]]
    draft = _Draft(features={"variant": group["domain"]})
    draft.llm("plan", [], [(prompt, plan)], iteration=0)
    draft.dynamic("tools", ["plan"], group["domain"])
    tools: list[dict[str, Any]] = []
    while len(tools) < n:
        tool = domain.at(rng.random())
        if tool not in tools:
            tools.append(tool)
    shapes = numbers["shapes"].get(str(n))
    shape: Any = shapes.at(rng.random()) if shapes else "chain"
    links: list[list[int]] = [[k - 1] for k in range(n)] if shape == "chain" else shape
    names = [f"tool_{k}_{_slug(tool['name'])}" for k, tool in enumerate(tools)]
    for k, tool in enumerate(tools):
        after = ["plan" if link < 0 else names[link] for link in links[k]]
        draft.tool(names[k], after, tool["name"], _lognormal(rng, tool), parent="tools")
    return draft


def _llm_compiler(rng: Random, numbers: Mapping[str, Any]) -> _Draft:
    """Plan searches and sums to run side by side, then join their results."""
    group = numbers["groups"].at(rng.random())
    n_searches, n_math, has_final = group["shapes"].at(rng.random())
    draft = _Draft(features={"variant": group["variant"]})
    plan = _linear(group["plan_output"], n_searches, n_math, has_final) + group["plan_spread"].at(rng.random())
    draft.llm("plan", [], [(group["plan_prompt"].at(rng.random()), plan)], iteration=0)
    draft.dynamic("tasks", ["plan"], "llm_compiler")
    searches = [f"search_{k}" for k in range(1, n_searches + 1)]
    maths = [f"math_{k}" for k in range(1, n_math + 1)]
    results = [group["result"].at(rng.random()) for _ in searches]
    for name in searches:
        draft.tool(name, ["plan"], "search", _lognormal(rng, numbers["search"]), parent="tasks")
    math_output = numbers["math_output"]
    for name, search, result in zip(maths, searches, results, strict=False):
        prompt = _linear(numbers["math_prompt"], result) + numbers["math_spread"].at(rng.random())
        draft.llm(name, [search], [(prompt, math_output)], parent="tasks")
    finals = ["math_final"] if has_final else []
    if has_final:
        reads = maths or searches
        prompt = _linear(numbers["final_prompt"], 0.0 if maths else sum(results), len(reads))
        draft.llm("math_final", reads, [(prompt, math_output)], parent="tasks")
    prompt = _linear(group["join_prompt"], sum(results), n_math, has_final) + group["join_spread"].at(rng.random())
    answer = group["join_output"].at(rng.random())
    draft.llm("join", [*searches, *maths, *finals], [(prompt, answer)], iteration=0)
    return draft


def _lognormal(rng: Random, tool: Mapping[str, Any]) -> float:
    return float(tool["median"] * math.exp(tool["spread"] * rng.gauss(0.0, 1.0)))


def _slug(tool: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", tool.lower()).strip("_")


def _stretched(stages: Sequence[RecordedStage], stretch: Mapping[str, Any]) -> tuple[RecordedStage, ...]:
    """Scale a job so that `stretch["from"]` (seconds alone) becomes `stretch["to"]`, in logarithms, cut at the ends."""
    (a, b), (low, high) = stretch["from"], stretch["to"]
    share = (math.log(isolated_seconds(stages)) - math.log(a)) / math.log(b / a)
    target = low * (high / low) ** min(1.0, max(0.0, share))
    fixed = isolated_seconds(stages, 0.0)
    scale = (target - fixed) / (isolated_seconds(stages) - fixed)
    return tuple(replace(stage, tasks=tuple(_scaled(stage, task, scale) for task in stage.tasks)) for stage in stages)


def _scaled(stage: RecordedStage, task: RecordedTask, scale: float) -> RecordedTask:
    if stage.kind is StageKind.LLM:
        return replace(task, output_tokens=max(1, round(scale * task.output_tokens)))
    return replace(task, duration=round(scale * task.duration, 4))


SKETCHES: Mapping[str, Callable[[Random, Mapping[str, Any]], _Draft]] = {
    "sequence_sorting": _sequence_sorting,
    "document_merging": _document_merging,
    "code_generation": _code_generation,
    "web_search": _web_search,
    "task_automation": _task_automation,
    "llm_compiler": _llm_compiler,
}

#: The six published applications, in the order of the paper.
APPLICATIONS: tuple[str, ...] = tuple(SKETCHES)
