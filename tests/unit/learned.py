"""Small applications with histories whose answers can be worked out by hand.

Seconds at the `ROUND` curve: a prompt token costs nothing to speak of, an output token 10 ms alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from random import Random

from llmsched.model.application import Application
from llmsched.model.job import Job
from llmsched.model.kinds import StageKind
from llmsched.model.latency import LatencyCurve
from llmsched.model.recording import RecordedStage, RecordedTask, Recording
from llmsched.profiler.history import Curves, History
from llmsched.profiler.walk import walk

ROUND = LatencyCurve("round", 1e9, ((1, 0.01), (2, 0.02)))
CURVES = Curves(default=ROUND)

#: draft -> check -> (fix -> recheck, if the check failed)
REPAIR = Application.parse(
    {
        "name": "repair",
        "stages": [
            {"name": "draft", "kind": "llm"},
            {"name": "check", "kind": "regular", "after": ["draft"]},
            {"name": "fix", "kind": "llm", "after": ["check"], "expected": {"probability": 0.5}},
            {"name": "recheck", "kind": "regular", "after": ["fix"], "expected": {"probability": 0.5}},
        ],
    }
)

#: plan -> tools (a dynamic stage of `search`, on workers, and `math`, on engines) -> join
PLANNED = Application.parse(
    {
        "name": "planned",
        "stages": [
            {"name": "plan", "kind": "llm"},
            {
                "name": "tools",
                "kind": "dynamic",
                "after": ["plan"],
                "planner": "plan",
                "candidates": [{"name": "search"}, {"name": "math", "kind": "llm", "pool": "llm"}],
            },
            {"name": "join", "kind": "llm", "after": ["tools"]},
        ],
    }
)

#: vote: five parallel calls
VOTE = Application.parse({"name": "vote", "stages": [{"name": "vote", "kind": "llm", "tasks": 5, "max_tasks": 5}]})


def llm(
    name: str, *outputs: int, after: Sequence[str] = (), prompt: int = 100, parent: str | None = None
) -> RecordedStage:
    tasks = tuple(RecordedTask(prompt, output) for output in outputs)
    return RecordedStage(name, StageKind.LLM, tuple(after), tasks, parent=parent)


def regular(
    name: str, *seconds: float, after: Sequence[str] = (), tool: str | None = None, parent: str | None = None
) -> RecordedStage:
    tasks = tuple(RecordedTask(duration=s, tool=tool) for s in seconds)
    return RecordedStage(name, StageKind.REGULAR, tuple(after), tasks, parent=parent)


def repair(id: str, draft: int, fix: int = 0, *, prompt: int = 100, check: float = 1.0) -> Recording:
    """A job of REPAIR; fix 0: the check passed at once."""
    stages = [llm("draft", draft, prompt=prompt), regular("check", check, after=["draft"])]
    if fix:
        stages += [llm("fix", fix, after=["check"]), regular("recheck", check, after=["fix"])]
    return Recording("repair", id, tuple(stages))


def planned(id: str, plan: int, searches: int, maths: int = 0, *, seconds: float = 2.0, join: int = 100) -> Recording:
    """A job of PLANNED whose searches run first, one after the other, and feed the calculations."""
    inner = [
        regular(f"search_{k}", seconds, after=["plan" if k == 0 else f"search_{k - 1}"], tool="search", parent="tools")
        for k in range(searches)
    ]
    inner += [llm(f"math_{k}", 50, after=[inner[-1].name if inner else "plan"], parent="tools") for k in range(maths)]
    tools = RecordedStage("tools", StageKind.DYNAMIC, ("plan",), ())
    return Recording("planned", id, (llm("plan", plan), tools, *inner, llm("join", join, after=["tools"])))


def repairs(n: int = 60, seed: int = 0) -> list[Recording]:
    """Every second draft needs a fix that is as long as the draft; longer prompts give longer drafts."""
    rng = Random(seed)
    jobs = []
    for k in range(n):
        prompt = rng.randint(100, 300)
        draft = prompt + rng.randint(-10, 10)
        jobs.append(repair(f"q{k}#1", draft, draft if k % 2 else 0, prompt=prompt))
    return jobs


def history(application: Application, recordings: Iterable[Recording]) -> History:
    return History.of(application, recordings)


def job_at(application: Application, recording: Recording, completed: int) -> Job:
    """The job when so many of its stages were completed."""
    for n, job in enumerate(walk(application, recording, recording.job_id)):
        if n == completed:
            return job
    raise AssertionError(f"{recording.job_id} never had {completed} completed stages and more to do")
