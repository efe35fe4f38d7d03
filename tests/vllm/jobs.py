"""Recorded jobs of the six applications, small enough for an engine on the CPU, and what executing them must cost.

The made ones have the shapes of the published traces, with what the smallest of those lack: a second attempt, tools
that feed each other, a plan with an LLM call, parallel calls of unequal length. With LLMSCHED_TRACES, the folder of the
traces, `traced` gives the smallest real job of each application too.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.vllm.engine import Counters

#: A recording as `POST /v1/jobs` takes it: one job of the trace format.
Job = dict[str, Any]

#: Environment variable that names the folder of the traces.
TRACES = "LLMSCHED_TRACES"

#: The job of fewest tokens per application; document merging is 20,000 of the 20,500 output tokens.
SMALLEST = {
    "sequence_sorting": "got32-031#l405-s1a1",
    "document_merging": "nda-00#gpt35-published",
    "code_generation": "mbpp_477_is_lower#gpt4-run3",
    "web_search": "hotpot-ee4d2bce#claude-t5",
    "task_automation": "taskbench-multimedia-37224018#codellama-13b",
    "llm_compiler": "hotpotqa-5a80b0565542996402f6a5f0#derived",
}


def llm(name: str, deps: str, *calls: tuple[int, int], **more: Any) -> dict[str, Any]:
    """An LLM stage; calls: (prompt tokens, output tokens) of each. deps: names, separated by spaces."""
    tasks = [{"prompt_tokens": prompt, "output_tokens": output} for prompt, output in calls]
    return {"name": name, "kind": "llm", "deps": deps.split(), "tasks": tasks, **more}


def tool(name: str, deps: str, tool: str, *seconds: float, **more: Any) -> dict[str, Any]:
    """A regular stage: so many seconds of a tool for each task."""
    tasks = [{"tool": tool, "duration_s": s} for s in seconds]
    return {"name": name, "kind": "regular", "deps": deps.split(), "tasks": tasks, **more}


def plan(name: str, deps: str, *stages: dict[str, Any]) -> list[dict[str, Any]]:
    """A dynamic stage and the stages of its plan."""
    dynamic = {"name": name, "kind": "dynamic", "deps": deps.split(), "tasks": []}
    return [{**dynamic, "generates": [s["name"] for s in stages]}, *({**s, "parent": name} for s in stages)]


def job(application: str, *stages: dict[str, Any]) -> Job:
    """A recording of an application."""
    return {"app": application, "job_id": f"{application}#made", "stages": list(stages)}


def made() -> list[Job]:
    """One job of each application: 63,227 prompt and 2,375 output tokens in 40 calls."""
    return [
        job(
            "sequence_sorting",
            llm("split", "", (459, 113)),
            tool("select_1", "split", "select", 0.01),
            tool("select_2", "split", "select", 0.01),
            llm("sort_1", "select_1", *[(784, n) for n in (48, 47, 49, 48, 48)]),
            llm("sort_2", "select_2", *[(784, n) for n in (48, 48, 48, 45, 51)]),
            tool("score_1", "sort_1", "score", 0.01),
            tool("score_2", "sort_2", "score", 0.01),
            tool("keep_best_1", "score_1", "keep_best", 0.01),
            tool("keep_best_2", "score_2", "keep_best", 0.01),
            llm("merge", "keep_best_1 keep_best_2", (277, 87), (277, 85)),
            tool("score_m", "merge", "score", 0.01),
            tool("keep_best_m", "score_m", "keep_best", 0.01),
        ),
        # The published run with a tenth of its output.
        job(
            "document_merging",
            llm("generate", "", *[(1346, n) for n in (113, 109, 113, 114, 108)]),
            llm("score_1", "generate", *[(2662, n) for n in (21, 20, 24)]),
            tool("keep_best_1", "score_1", "keep_best", 0.01),
            llm("aggregate", "keep_best_1", *[(4820, n) for n in (100, 108, 113)]),
            tool("keep_best_2", "aggregate", "keep_best", 0.01),
            llm("improve", "keep_best_2", *[(2387, n) for n in (104, 32, 109)]),
            llm("score_3", "improve", (2568, 17)),
            tool("keep_best_3", "score_3", "keep_best", 0.01),
        ),
        job(
            "code_generation",
            llm("test_gen", "", (237, 65)),
            llm("code_gen_0", "test_gen", (106, 40)),
            tool("code_exec_0", "code_gen_0", "python_exec", 0.08),
            llm("reflect_1", "code_exec_0", (1012, 55), iteration=1),
            llm("code_gen_1", "reflect_1", (498, 48), iteration=1),
            tool("code_exec_1", "code_gen_1", "python_exec", 0.07, iteration=1),
        ),
        job(
            "web_search",
            llm("thought_1", "", (1922, 6), iteration=1),
            llm("action_1", "thought_1", (1933, 6), iteration=1),
            tool("tool_1", "action_1", "search", 0.52, iteration=1),
            llm("thought_2", "tool_1", (2592, 6), iteration=2),
            llm("action_2", "thought_2", (2603, 10), iteration=2),
        ),
        job(
            "task_automation",
            llm("plan", "", (2554, 77)),
            *plan(
                "tools",
                "plan",
                tool("tool_0", "plan", "Audio Downloader", 0.42),
                tool("tool_1", "plan", "Topic Generator", 0.3),
                tool("tool_2", "tool_0 tool_1", "Audio Effects", 0.2),
            ),
        ),
        job(
            "llm_compiler",
            llm("plan", "", (556, 40)),
            *plan(
                "tasks",
                "plan",
                tool("search_1", "plan", "search", 0.85),
                tool("search_2", "plan", "search", 0.87),
                llm("math_1", "search_1 search_2", (120, 34)),
            ),
            llm("join", "math_1", (1336, 18)),
        ),
    ]


def long() -> Job:
    """A job to interrupt: a short stage, and one of three calls that last several seconds each."""
    return job(
        "document_merging",
        llm("generate", "", (1346, 20)),
        llm("score_1", "generate", *[(2662, 700)] * 3),
        tool("keep_best_1", "score_1", "keep_best", 0.01),
    )


def traced() -> list[Job]:
    """The smallest real job of each application, all its fields included. LLMSCHED_TRACES must be set."""
    return [_find(Path(os.environ[TRACES]) / f"{app}.jsonl.gz", id) for app, id in SMALLEST.items()]


def _find(path: Path, id: str) -> Job:
    with gzip.open(path, "rt") as lines:
        for line in lines:
            job: Job = json.loads(line)
            if job["job_id"] == id:
                return job
    raise LookupError(f"{path} has no job {id!r}")


def calls(job: Job) -> Iterator[tuple[str, int, int, int]]:
    """Each LLM call: stage, index, prompt and output tokens."""
    for stage in job["stages"]:
        for index, task in enumerate(stage["tasks"] if stage["kind"] == "llm" else ()):
            yield stage["name"], index, task["prompt_tokens"], task["output_tokens"]


def cost(jobs: list[Job]) -> Counters:
    """How far an engine's counters move when it executes every call of these jobs once."""
    all_calls = [call for job in jobs for call in calls(job)]
    return Counters(
        sum(prompt for _, _, prompt, _ in all_calls),
        sum(output for _, _, _, output in all_calls),
        {"length": len(all_calls)},
    )
