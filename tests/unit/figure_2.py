"""The two applications of Figure 2 of the LLMSched paper, and one whose stages depend on each other in all ways.

The specification fills in what the figure does not show: TA takes 15 s on average, CG 9 s. An output token takes 10 ms
alone, and prompts cost nothing, so 200 tokens are 2 s.
"""

from __future__ import annotations

from itertools import product
from random import Random
from typing import Any

from llmsched.model.application import Application
from llmsched.model.kinds import StageKind
from llmsched.model.recording import RecordedStage, Recording
from tests.unit.learned import llm, regular


def stage(name: str, *after: str, kind: str = "llm", **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": kind, "after": list(after), "max_tasks": 9, **more}


def application(name: str, *stages: dict[str, Any]) -> Application:
    return Application.parse({"name": name, "stages": list(stages)})


TA = application(
    "TA",
    stage("TA1"),
    stage("TA2", "TA1", kind="dynamic", planner="TA1", candidates=["translate", "segment", "detect"]),
)
CG = application("CG", stage("CG1"), stage("CG2", "CG1"), stage("CG3", "CG2"))


def seconds(name: str, s: float, *after: str, tasks: int = 1) -> RecordedStage:
    """An LLM stage of so many seconds, over all its tasks."""
    return llm(name, *[round(100 * s / tasks)] * tasks, after=after, prompt=0)


def translating(id: str = "a#1", first: float = 2.0) -> Recording:
    """TA: 2 s, then a plan that is one translation of 1 s."""
    tool = regular("translate_1", 1.0, after=["TA1"], tool="translate", parent="TA2")
    plan = RecordedStage("TA2", StageKind.DYNAMIC, ("TA1",), ())
    return Recording("TA", id, (seconds("TA1", first), plan, tool), {"variant": "text"})


def segmenting(id: str = "b#1") -> Recording:
    """TA: 7 s, then a plan of 9 s and 11 s, one after the other."""
    first = regular("segment_1", 9.0, after=["TA1"], tool="segment", parent="TA2")
    second = regular("detect_2", 11.0, after=["segment_1"], tool="detect", parent="TA2")
    plan = RecordedStage("TA2", StageKind.DYNAMIC, ("TA1",), ())
    return Recording("TA", id, (seconds("TA1", 7), plan, first, second), {"variant": "image"})


def coding(id: str, first: float, second: float, third: float = 0.0) -> Recording:
    stages = [seconds("CG1", first), seconds("CG2", second, "CG1")]
    return Recording("CG", id, (*stages, *([seconds("CG3", third, "CG2")] if third else [])))


def ta_history() -> list[Recording]:
    return [translating(f"a{k}#1") for k in range(10)] + [segmenting(f"b{k}#1") for k in range(10)]


def cg_history() -> list[Recording]:
    """CG1 in {2, 4}, CG2 = 3 with 3/4 after 2 and 5 with 3/4 after 4, CG3 in {0, 4} whatever came before."""
    pairs = [(2, 3)] * 3 + [(2, 5)] + [(4, 5)] * 3 + [(4, 3)]
    cases = [(*pair, third) for pair, third in product(pairs, (0, 4))] * 5
    return [coding(f"q{k}#1", *case) for k, case in enumerate(cases)]


FIVE = application(
    "five", stage("a"), stage("b"), stage("c", "a", "b"), stage("d", "c", kind="regular"), stage("e", "c", "d")
)


def five(rng: Random, id: str) -> Recording:
    """Stages that depend on each other in all ways; d runs if c was short, and e if d did, mostly."""
    a, b = rng.choice((1, 2, 5)), rng.choice((1, 3))
    c = max(1, a + b + rng.choice((-1, 0, 0, 2)))
    stages = [seconds("a", a), seconds("b", b), seconds("c", c, "a", "b")]
    if c < 5 or rng.random() < 0.2:
        stages.append(regular("d", 1.0 + rng.random(), after=["c"]))
    if (len(stages) == 4) == (rng.random() < 0.9):
        stages.append(seconds("e", rng.choice((1, 2)) * a, stages[-1].name))
    return Recording("five", id, tuple(stages))
