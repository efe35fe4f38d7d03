"""Compute the numbers of the job generator from recorded jobs.

    python benchmarks/fit_generator.py [--traces DIR] [--out FILE] [--check]

Reads `<application>.jsonl.gz` of the six applications from --traces (default: the environment variable
LLMSCHED_TRACES) and writes `llmsched/workloads/parameters.json`; the same traces give the same file. With --check
it writes nothing and fails if the file would change.

What is taken as given are the shapes of the applications (`llmsched/workloads/generator.py`); what is computed are
shares, lengths, durations, correlations and the coefficients of the prompts' sums. The paper's set is calibrated on
jobs drawn from the measured one, with fixed seeds.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from pathlib import Path
from random import Random
from statistics import NormalDist, median
from typing import Any

import numpy as np

from llmsched.errors import InvalidRecording
from llmsched.model.kinds import StageKind
from llmsched.model.latency import GENERIC_7B
from llmsched.model.recording import RecordedStage, Recording
from llmsched.workloads.generator import APPLICATIONS, isolated_seconds, parse_parameters, sketch
from llmsched.workloads.lines import read_lines
from llmsched.workloads.traces import trace_path

OUT = Path(__file__).parent.parent / "llmsched" / "workloads" / "parameters.json"

#: Equally frequent steps of a quantile table.
STEPS = 40

Numbers = dict[str, Any]


class Job:
    """A recorded job with its stages by name, and what the trace says besides."""

    def __init__(self, line: bytes) -> None:
        self.extra: Numbers = json.loads(line)
        self.recording = Recording.from_json(self.extra)
        self.stages = {stage.name: stage for stage in self.recording.stages}
        self.variant: str = self.extra["variant"]
        self.run = self.recording.job_id.split("#")[1]
        self.n_iterations: int = self.extra.get("n_iterations") or 0
        #: Length of each tool's answer, in tokens, by stage.
        self.results: dict[str, int] = {
            stage["name"]: task["result_tokens"]
            for stage in self.extra["stages"]
            for task in stage["tasks"]
            if "result_tokens" in task
        }

    def prompt(self, stage: str) -> int:
        return self.stages[stage].tasks[0].prompt_tokens

    def output(self, stage: str) -> int:
        return self.stages[stage].tasks[0].output_tokens

    def outputs(self, stage: str) -> list[int]:
        return [task.output_tokens for task in self.stages[stage].tasks]

    def seconds(self, stage: str) -> float:
        return self.stages[stage].tasks[0].duration

    def generated(self) -> list[RecordedStage]:
        """Stages a planner asked for, in the planner's order."""
        return [self.stages[s["name"]] for s in self.extra["stages"] if s.get("parent")]


def read(traces: Path, application: str) -> list[Job]:
    return [Job(line) for _, line in read_lines(trace_path(traces, application), InvalidRecording)]


# Tables.


def rounded(x: float, digits: int = 4) -> float:
    """x with so many significant digits, an int where it is one."""
    if x == 0 or not math.isfinite(x):
        return 0
    value = round(float(x), digits - 1 - math.floor(math.log10(abs(x))))
    return int(value) if value == int(value) else value


def quantiles(xs: Iterable[float]) -> Numbers:
    """What `Quantiles` reads: smallest, means of up to STEPS equally frequent steps, largest."""
    ordered = np.sort(np.array(list(xs), float))
    steps = min(STEPS, len(ordered))
    # Every value is repeated so that steps of equal weight have equally many.
    means = np.repeat(ordered, steps).reshape(steps, -1).mean(axis=1)
    return {"quantiles": [rounded(x) for x in (ordered[0], *means, ordered[-1])]}


def histogram(xs: Iterable[Any]) -> Numbers:
    counts = sorted(Counter(xs).items())
    return {"values": [value for value, _ in counts], "weights": [n for _, n in counts]}


def weighted(pairs: Sequence[tuple[Any, float]]) -> Numbers:
    return {"values": [value for value, _ in pairs], "weights": [weight for _, weight in pairs]}


def regression(y: Sequence[float], *xs: Sequence[float]) -> tuple[list[float], np.ndarray[Any, Any]]:
    """Least squares of y on 1 and xs: rounded coefficients, and what they leave of y."""
    matrix = np.column_stack([np.ones(len(y)), *(np.array(x, float) for x in xs)])
    solution = np.linalg.lstsq(matrix, np.array(y, float), rcond=None)[0]
    coefficients = [rounded(b) for b in solution]
    return coefficients, np.array(y, float) - matrix @ np.array(coefficients)


def scores(xs: Sequence[float]) -> np.ndarray[Any, Any]:
    """Normal scores: mean ranks of equal values, read off the normal distribution, to variance 1."""
    values = np.array(xs, float)
    below = (values[None, :] < values[:, None]).sum(axis=1)
    same = (values[None, :] == values[:, None]).sum(axis=1)
    z = np.array([NormalDist().inv_cdf(u) for u in (below + same / 2) / len(values)])
    return z / (z.std() or 1.0)


def lower_triangle(columns: Sequence[Sequence[float]]) -> list[list[float]]:
    """Cholesky factor of the correlation of normal scores. Columns are equally long."""
    matrix = np.corrcoef([scores(column) for column in columns])
    values, vectors = np.linalg.eigh(matrix)
    matrix = vectors @ np.diag(np.maximum(values, 1e-3)) @ vectors.T
    scale = np.sqrt(np.diag(matrix))
    lower = np.linalg.cholesky(matrix / np.outer(scale, scale))
    return [[rounded(x, 3) for x in row[: k + 1]] for k, row in enumerate(lower)]


def together(groups: Iterable[Sequence[float]], others: Iterable[Sequence[float]] | None = None) -> float:
    """Correlation of normal scores of two values of one group (one from each side if `others` are given)."""
    left = [list(group) for group in groups]
    right = left if others is None else [list(group) for group in others]
    z_left = _split(left)
    z_right = z_left if others is None else _split(right)
    products = [
        a * b
        for x, y in zip(z_left, z_right, strict=True)
        for a, b in (combinations(x, 2) if others is None else ((p, q) for p in x for q in y))
    ]
    return rounded(float(np.mean(products)), 3) if products else 0.0


def _split(groups: list[list[float]]) -> list[list[float]]:
    z = iter(scores([x for group in groups for x in group]).tolist())
    return [[next(z) for _ in group] for group in groups]


def lognormal(name: str, seconds: Sequence[float]) -> Numbers:
    logs = np.log(seconds)
    return {"name": name, "median": rounded(math.exp(logs.mean()), 3), "spread": rounded(float(logs.std()), 3)}


# Applications.


def sequence_sorting(jobs: list[Job]) -> Numbers:
    free = [job for job in jobs if "improve" in job.stages]  # the configuration with all lengths
    length = {id(job): int(job.recording.features["length"]) for job in jobs}

    def items(job: Job, stage: str) -> int:
        n = length[id(job)]
        return {"sort_1": n // 2, "sort_2": n - n // 2}.get(stage, n)

    stages = {"split": ["split"], "sort": ["sort_1", "sort_2"], "merge": ["merge"], "improve": ["improve"]}
    numbers: Numbers = {"local_seconds": median(j.seconds(s) for j in jobs for s in ("select_1", "score_1"))}
    for stage, names in stages.items():
        x = [items(job, name) for job in free for name in names]
        prompts = regression([job.prompt(name) for job in free for name in names], x)[0]
        outputs = regression([median(job.outputs(name)) for job in free for name in names], x)[0]
        numbers[stage] = {"prompt": prompts, "output": outputs}
    variants = []
    for variant, n in sorted(Counter(job.variant for job in jobs).items()):
        own = [job for job in jobs if job.variant == variant]
        off: dict[str, list[list[int]]] = {}
        for stage in ("sort", "merge", "improve"):
            a, b = numbers[stage]["output"]
            off[stage] = [
                [output - round(a + b * items(job, name)) for output in job.outputs(name)]
                for job in own
                for name in stages[stage]
                if name in job.stages
            ]
        tasks = {stage.name: len(stage.tasks) for stage in own[0].recording.stages}
        common = together(off["merge"]) if tasks["merge"] > 1 else 0.0
        variants.append(
            (
                {
                    "name": variant,
                    "sorts": tasks["sort_1"],
                    "merges": tasks["merge"],
                    "improves": tasks.get("improve", 0),
                    "lengths": histogram(length[id(job)] for job in own),
                    "together": max(0.0, common),
                    "deviation": {k: histogram(x for xs in v for x in xs) for k, v in off.items() if v},
                },
                n,
            )
        )
    numbers["variants"] = weighted(variants)
    return numbers


def document_merging(jobs: list[Job]) -> Numbers:
    jobs = [job for job in jobs if "doc_tokens" in job.recording.features]  # one job has no inputs
    documents = [int(job.recording.features["doc_tokens"]) for job in jobs]
    numbers: Numbers = {
        "variant": jobs[0].variant,
        "doc_tokens": quantiles(documents),
        "local_seconds": median(job.seconds("keep_best_1") for job in jobs),
    }
    reads = {"generate": 0, "aggregate": 3, "improve": 1}  # thoughts of the stage before that the prompt holds
    means = {name: [float(np.mean(job.outputs(name))) for job in jobs] for name in reads}
    for name, before in (("generate", None), ("aggregate", "generate"), ("improve", "aggregate")):
        held = [0.0] * len(jobs) if before is None else [reads[name] * mean for mean in means[before]]
        rest = [job.prompt(name) - d - h for job, d, h in zip(jobs, documents, held, strict=True)]
        ratios = (round(o / d, 3) for job, d in zip(jobs, documents, strict=True) for o in job.outputs(name))
        numbers[name] = {
            "prompt": rounded(float(np.mean(rest))),
            "reads": reads[name],
            "calls": len(jobs[0].stages[name].tasks),
            "ratio": quantiles(ratios) if name != "improve" else histogram(_grid(ratios)),
        }
    thoughts = {f"score_{k}": name for k, name in enumerate(reads, start=1)}
    per_thought = len(jobs[0].stages["score_1"].tasks) // len(jobs[0].stages["generate"].tasks)
    rest = [
        task.prompt_tokens - d - job.outputs(name)[k // per_thought]
        for job, d in zip(jobs, documents, strict=True)
        for score, name in thoughts.items()
        for k, task in enumerate(job.stages[score].tasks)
    ]
    numbers["score"] = {
        "prompt": rounded(float(np.mean(rest))),
        "per_thought": per_thought,
        "output": histogram(o for job in jobs for score in thoughts for o in job.outputs(score)),
    }
    return numbers


def _grid(ratios: Iterable[float]) -> list[float]:
    """To hundredths: the ratios of one published run, each with a little noise from rounding tokens."""
    return [round(ratio, 2) for ratio in ratios]


def code_generation(jobs: list[Job]) -> Numbers:
    last = max(job.n_iterations for job in jobs)
    hang = 5.0  # seconds; the application cuts a test off after that
    runs = [[job.seconds(f"code_exec_{i}") for i in range(job.n_iterations)] for job in jobs]
    hung = [s for run in runs for s in run if s > hang]
    short = [[s for s in run if s <= hang] for run in runs]
    numbers: Numbers = {
        "variant": jobs[0].variant,
        "iterations": histogram(job.n_iterations for job in jobs),
        "code_prompt": rounded(float(np.mean([job.prompt("code_gen_0") - job.prompt("test_gen") for job in jobs]))),
        "exec": {
            "hangs": rounded(len(hung) / sum(map(len, runs))),
            "hang_seconds": rounded(float(np.mean(hung))),
            "seconds": quantiles(s for run in short for s in run),
            "together": together(short),
        },
    }
    again = [(job, i) for job in jobs for i in range(1, job.n_iterations)]
    reflect, left = regression(
        [job.prompt(f"reflect_{i}") for job, i in again],
        [job.prompt("code_gen_0") for job, _ in again],
        [job.output(f"code_gen_{i - 1}") for job, i in again],
        [job.output("test_gen") for job, _ in again],
    )
    rewrite, rest = regression(
        [job.prompt(f"code_gen_{i}") for job, i in again],
        [job.prompt(f"reflect_{i}") for job, i in again],
        [job.output(f"reflect_{i}") for job, i in again],
    )
    numbers |= {
        "reflect_prompt": reflect,
        "feedback": quantiles(left),
        "rewrite_prompt": rewrite,
        "rewrite_spread": rounded(float(rest.std()), 3),
    }
    first: list[Callable[[Job], int]] = [
        lambda job: job.prompt("test_gen"),
        lambda job: job.output("test_gen"),
        lambda job: job.output("code_gen_0"),
    ]
    names = [f"{kind}_{i}" for i in range(1, last) for kind in ("reflect", "code_gen")]
    later: list[Callable[[Job], int]] = [lambda job, name=name: job.output(name) for name in names]  # type: ignore[misc]
    once = [job for job in jobs if job.n_iterations == 1]
    more = [job for job in jobs if job.n_iterations > 1]
    full = [job for job in jobs if job.n_iterations == last]
    numbers["solved_at_once"] = {
        "lengths": [quantiles(map(value, once)) for value in first],
        "lower": lower_triangle([list(map(value, once)) for value in first]),
    }
    numbers["retried"] = {
        "lengths": [
            *(quantiles(map(value, more)) for value in first),
            *(
                quantiles(value(job) for job in more if name in job.stages)
                for name, value in zip(names, later, strict=True)
            ),
        ],
        "lower": lower_triangle([list(map(value, full)) for value in (*first, *later)]),
    }
    return numbers


def web_search(jobs: list[Job]) -> Numbers:
    # One run broke off after a search: it has a tool but no thought after it, and no sixth step.
    most = max(job.n_iterations for job in jobs)
    long_from = most - 1
    whole = [job for job in jobs if f"tool_{job.n_iterations}" not in job.stages or job.n_iterations == most]

    def halted(job: Job) -> bool:
        return f"tool_{job.n_iterations}" in job.stages

    def middle(job: Job) -> list[int]:
        """Steps that are neither the first nor the one with the answer."""
        return list(range(2, job.n_iterations + halted(job)))

    step = [(job, i) for job in whole for i in range(1, job.n_iterations + 1)]
    numbers: Numbers = {
        "max_steps": most,
        "long_from": long_from,
        "action_prompt": rounded(
            float(
                np.mean(
                    [j.prompt(f"action_{i}") - j.prompt(f"thought_{i}") - j.output(f"thought_{i}") for j, i in step]
                )
            )
        ),
        "result_prompt": rounded(
            float(
                np.mean(
                    [
                        j.prompt(f"thought_{i + 1}")
                        - j.prompt(f"action_{i}")
                        - j.output(f"action_{i}")
                        - j.results[f"tool_{i}"]
                        for j, i in step
                        if f"thought_{i + 1}" in j.stages
                    ]
                )
            )
        ),
        "tools": {},
    }
    used = [
        (stage.tasks[0].tool, stage.tasks[0].duration, job.results[stage.name])
        for job in whole
        for stage in job.recording.stages
        if stage.kind is StageKind.REGULAR
    ]
    for tool in ("search", "lookup"):
        seconds = [s for name, s, _ in used if name == tool]
        numbers["tools"][tool] = {
            **lognormal(tool, seconds),
            "result": quantiles(r for name, _, r in used if name == tool),
        }
    # The first trials of two runs are one prompt and one model; reflections lengthen prompts and lose themselves.
    family = {"base": "plain", "reflexion": "plain", "claude": "claude", "reflexion+reflections": "reflections"}
    variants = []
    for variant, n in sorted(Counter(job.variant for job in jobs).items()):
        own = [job for job in whole if job.variant == variant]
        longest = [job for job in own if job.n_iterations == most]
        variants.append(
            (
                {
                    "name": variant,
                    "family": family[variant],
                    "steps": histogram(job.n_iterations for job in jobs if job.variant == variant),
                    "halted": rounded(sum(map(halted, longest)) / len(longest)),
                    "prompt": quantiles(job.prompt("thought_1") for job in own),
                },
                n,
            )
        )
    numbers["variants"] = weighted(variants)
    numbers["families"] = {}
    for name in dict.fromkeys(family.values()):
        own = [job for job in whole if family[job.variant] == name]
        answered = [job for job in own if not halted(job)]
        last = [
            (job.output(f"thought_{job.n_iterations}"), job.output(f"action_{job.n_iterations}")) for job in answered
        ]
        both = lower_triangle(list(zip(*last, strict=True)))
        numbers["families"][name] = {
            "first_thought": quantiles(job.output("thought_1") for job in own),
            "first_action": quantiles(job.output("action_1") for job in own),
            "last_thought": quantiles(thought for thought, _ in last),
            "last_action": quantiles(action for _, action in last),
            "last_together": max(0.0, both[1][0]),
        }
        for kind, group in (
            ("short", [job for job in own if job.n_iterations < long_from]),
            ("long", [job for job in own if job.n_iterations >= long_from]),
        ):
            thoughts = [[job.output(f"thought_{i}") for i in middle(job)] for job in group]
            actions = [[job.output(f"action_{i}") for i in middle(job)] for job in group]
            rho_t, rho_a = max(0.0, together(thoughts)), max(0.0, together(actions))
            cross = together(thoughts, actions)
            calls = [
                stage.tasks[0].tool for job in group for stage in job.recording.stages if stage.name.startswith("tool")
            ]
            numbers["families"][name][kind] = {
                "thought": quantiles(x for xs in thoughts for x in xs),
                "action": quantiles(x for xs in actions for x in xs),
                "thoughts_together": rho_t,
                "actions_together": rho_a,
                "factors_together": rounded(
                    max(-1.0, min(1.0, cross / math.sqrt(rho_t * rho_a))) if rho_t * rho_a else 0.0, 3
                ),
                "lookups": rounded(calls.count("lookup") / len(calls)),
            }
    return numbers


def task_automation(jobs: list[Job]) -> Numbers:
    seconds: dict[str, list[float]] = {}
    uses: Counter[tuple[str, str]] = Counter()
    shapes: dict[int, Counter[str]] = {}
    for job in jobs:
        generated = job.generated()
        position = {stage.name: k for k, stage in enumerate(generated)}
        for stage in generated:
            tool = str(stage.tasks[0].tool)
            seconds.setdefault(tool, []).append(stage.tasks[0].duration)
            uses[job.variant, tool] += 1
        links = [sorted(position.get(dep, -1) for dep in stage.after) for stage in generated]
        chain = links == [[k - 1] for k in range(len(links))]
        shapes.setdefault(len(links), Counter())["chain" if chain else json.dumps(links)] += 1
    numbers: Numbers = {
        "shapes": {
            str(n): weighted([(s if s == "chain" else json.loads(s), c) for s, c in _ordered(counts)])
            for n, counts in sorted(shapes.items())
            if len(counts) > 1
        },
        "domains": {},
    }
    groups = []
    for domain in sorted({job.variant for job in jobs}):
        # A tool named once or twice is one of some 150 inventions of a model; together they are 3 % of all calls.
        tools = [(tool, n) for (d, tool), n in _ordered(uses) if d == domain and n > 2]
        numbers["domains"][domain] = weighted([(lognormal(tool, seconds[tool]), n) for tool, n in tools])
        for model in sorted({job.run for job in jobs}):
            own = [job for job in jobs if job.variant == domain and job.run == model]
            n_stages = [len(job.generated()) for job in own]
            plan, _ = regression([job.output("plan") for job in own], n_stages)
            spread = [job.output("plan") / (plan[0] + plan[1] * n) - 1 for job, n in zip(own, n_stages, strict=True)]
            (_, slope), _ = regression([job.prompt("plan") for job in own], n_stages)
            groups.append(
                (
                    {
                        "domain": domain,
                        "generated": histogram(n_stages),
                        "plan_output": plan,
                        "plan_spread": quantiles(spread),
                        "prompt": quantiles(
                            job.prompt("plan") - slope * n for job, n in zip(own, n_stages, strict=True)
                        ),
                        "prompt_per_stage": slope,
                    },
                    len(own),
                )
            )
    numbers["groups"] = weighted(groups)
    return numbers


def _ordered(counts: Counter[Any]) -> list[tuple[Any, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def llm_compiler(jobs: list[Job]) -> Numbers:
    def shape(job: Job) -> tuple[int, int, int]:
        names = [stage.name for stage in job.generated()]
        searches = sum(name.startswith("search_") for name in names)
        final = int("math_final" in names)
        return searches, len(names) - searches - final, final

    def found(job: Job) -> int:
        return sum(job.results.values())

    searches = [s.tasks[0].duration for job in jobs for s in job.recording.stages if s.kind is StageKind.REGULAR]
    calls = [(job, s) for job in jobs for s in job.generated() if s.kind is StageKind.LLM]
    maths = [(job, s) for job, s in calls if s.name != "math_final"]
    finals = [(job, s) for job, s in calls if s.name == "math_final"]
    prompts, left = regression(
        [s.tasks[0].prompt_tokens for _, s in maths], [job.results[s.after[0]] for job, s in maths]
    )
    final_prompt, _ = regression(
        [s.tasks[0].prompt_tokens for _, s in finals],
        [0 if "math_1" in s.after else found(job) for job, s in finals],
        [len(s.after) for _, s in finals],
    )
    numbers: Numbers = {
        "search": lognormal("search", searches),
        "math_output": median(s.tasks[0].output_tokens for _, s in calls),
        "math_prompt": prompts,
        "math_spread": quantiles(left),
        "final_prompt": final_prompt,
    }
    groups = []
    for (variant, run), n in sorted(Counter((job.variant, job.run) for job in jobs).items()):
        if n == 1:
            continue  # one measured job is no distribution
        own = [job for job in jobs if (job.variant, job.run) == (variant, run)]
        shapes = np.array([shape(job) for job in own])
        varied = shapes.std(axis=0).any() and variant == "parallelqa"
        derived = run == "derived"
        plan = [0.0, 0.0, 0.0, 0.0]
        if varied:
            plan, spread = regression([job.output("plan") for job in own], *shapes.T)
        else:
            spread = np.array([job.output("plan") for job in own], float)
        join = [0.0, 0.0, 0.0, 0.0]
        if derived and varied:
            join, rest = regression([job.prompt("join") for job in own], list(map(found, own)), *shapes.T[1:])
        elif derived:
            (a, b), rest = regression([job.prompt("join") for job in own], list(map(found, own)))
            join = [a, b, 0, 0]
        else:
            rest = np.array([job.prompt("join") for job in own], float)  # the log has no lengths of results
        groups.append(
            (
                {
                    "variant": variant,
                    "shapes": histogram(map(shape, own)),
                    "plan_prompt": quantiles(job.prompt("plan") for job in own),
                    "plan_output": [rounded(x) for x in plan],
                    "plan_spread": quantiles(spread),
                    "result": quantiles([r for job in own for r in job.results.values()] or [0]),
                    "join_prompt": [rounded(x) for x in join],
                    "join_spread": quantiles(rest),
                    "join_output": quantiles(job.output("join") for job in own),
                },
                n,
            )
        )
    numbers["groups"] = weighted(groups)
    return numbers


# The paper's ranges.

#: Seconds of a job alone and, for sorting, the correlation of its first and fourth stage (figures 1 and 5).
PAPER: dict[str, tuple[float, float]] = {
    "sequence_sorting": (10.0, 300.0),
    "code_generation": (2.0, 50.0),
    "task_automation": (1.0, 116.0),
}
PAPER_SORTING_CORRELATION = 0.7
PAPER_MAX_GENERATED = 8

#: Share of measured jobs that is cut to either end of the paper's range, so that some jobs reach the ends.
CUT = 0.01


def paper(measured: Numbers) -> Numbers:
    """What the paper's set changes of the measured one."""
    read_back = parse_parameters(json.dumps(measured))
    numbers: Numbers = {name: {} for name in PAPER}
    whole = max(measured["sequence_sorting"]["variants"]["values"], key=lambda v: v["improves"])
    numbers["sequence_sorting"]["variants"] = weighted([(whole, 1)])
    numbers["task_automation"]["max_generated"] = PAPER_MAX_GENERATED
    for name in PAPER:
        numbers[name]["stretch"] = _stretch(name, read_back[name], numbers[name])
    numbers["sequence_sorting"]["stage_spread"] = _stage_spread(
        read_back["sequence_sorting"], numbers["sequence_sorting"]
    )
    return numbers


def _stretch(name: str, measured: Numbers, extra: Numbers) -> Numbers:
    numbers = {**measured, **parse_parameters(json.dumps(extra))}
    rng = Random(f"stretch {name}")
    alone = [isolated_seconds(sketch(name, rng, numbers).stages) for _ in range(4_000)]
    low, high = np.quantile(alone, [CUT, 1 - CUT])
    return {"from": [rounded(low), rounded(high)], "to": list(PAPER[name])}


def _stage_spread(measured: Numbers, extra: Numbers) -> float:
    """The spread (of the logarithm) with which stages 0 and 3 of sorting correlate as in the paper; by bisection."""
    low, high = 0.0, 2.0
    for _ in range(10):
        middle = (low + high) / 2
        numbers = {**measured, **parse_parameters(json.dumps({**extra, "stage_spread": middle}))}
        rng = Random("stage spread")
        jobs = [sketch("sequence_sorting", rng, numbers) for _ in range(1000)]
        seconds = [[_stage_seconds(job.stages[k]) for k in (0, 3)] for job in jobs]
        if np.corrcoef(np.array(seconds).T)[0, 1] > PAPER_SORTING_CORRELATION:
            low = middle
        else:
            high = middle
    return rounded(low, 3)


def _stage_seconds(stage: RecordedStage) -> float:
    return sum(GENERIC_7B.reference(task.prompt_tokens, task.output_tokens) for task in stage.tasks)


FITS: dict[str, Callable[[list[Job]], Numbers]] = {
    "sequence_sorting": sequence_sorting,
    "document_merging": document_merging,
    "code_generation": code_generation,
    "web_search": web_search,
    "task_automation": task_automation,
    "llm_compiler": llm_compiler,
}


def fit(traces: Path) -> str:
    """The text of `parameters.json` for these traces."""
    measured = {name: FITS[name](read(traces, name)) for name in APPLICATIONS}
    text = json.dumps({"measured": measured, "paper": paper(measured)}, indent=1)
    # Lists of numbers and short texts on one line each: a table is read across.
    text = re.sub(
        r"\[[^][{}]*\]", lambda found: re.sub(r"\s+", " ", found[0]).replace("[ ", "[").replace(" ]", "]"), text
    )
    return text + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description="Compute the numbers of the job generator from recorded jobs.")
    parser.add_argument("--traces", type=Path, default=os.environ.get("LLMSCHED_TRACES"), help="folder of traces")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the file would change")
    options = parser.parse_args()
    if options.traces is None:
        parser.error("name a folder of traces with --traces or LLMSCHED_TRACES")
    text = fit(Path(options.traces))
    if options.check:
        same = options.out.read_text(encoding="utf-8") == text
        print(f"{options.out.name} {'is what these traces give' if same else 'differs from what these traces give'}")
        return 0 if same else 1
    options.out.write_text(text, encoding="utf-8")
    print(f"wrote {options.out} ({len(text)} bytes)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
