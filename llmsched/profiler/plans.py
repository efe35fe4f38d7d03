"""What is known of a dynamic stage before its plan is: which candidates and edges plans contain, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from llmsched.profiler.cases import Tables
from llmsched.profiler.estimator import Work
from llmsched.profiler.information import dynamic_entropy


@dataclass(frozen=True, slots=True)
class PlanStatistics:
    """candidates: share of jobs whose plan contains a candidate at least once. edges: … one candidate feeding another.

    least, most: extremes of a plan's whole cost in the history, reference seconds. entropy: bits (LLMSched, Eq. 4).
    """

    candidates: Mapping[str, float]
    edges: Mapping[tuple[str, str], float]
    least: Work
    most: Work
    entropy: float


def plan_statistics(tables: Tables) -> dict[str, PlanStatistics]:
    """By dynamic stage; stages that no job of the history planned are left out."""
    history = tables.history
    found: dict[str, PlanStatistics] = {}
    for stage in dict.fromkeys(c.stage for c in tables.layout.columns if c.is_plan):
        plans = [plan for job in history.plans for plan in job if plan.stage == stage]
        if not plans:
            continue
        chosen: dict[str, int] = {}
        linked: dict[tuple[str, str], int] = {}
        for plan in plans:
            for candidate in plan.counts:
                chosen[candidate] = chosen.get(candidate, 0) + 1
            for edge in plan.edges:
                linked[edge] = linked.get(edge, 0) + 1
        n = len(history)
        candidates = {name: count / n for name, count in sorted(chosen.items())}
        edges = {edge: count / n for edge, count in sorted(linked.items())}
        columns = list(tables.layout.of_stage[stage])
        fixed, decode = tables.fixed[:, columns].sum(axis=1), tables.decode[:, columns].sum(axis=1)
        least, most = int((fixed + decode).argmin()), int((fixed + decode).argmax())
        found[stage] = PlanStatistics(
            candidates,
            edges,
            Work(float(fixed[least]), float(decode[least])),
            Work(float(fixed[most]), float(decode[most])),
            dynamic_entropy(list(candidates.values()), list(edges.values())),
        )
    return found
