"""What baselines may know of an application: historical means by stage, and the shape of its DAG. Never a belief.

Source: LLMSched (arXiv:2504.03444), section V: baselines get "the average duration and resource requirements for each
application on its dataset" and the padded DAG; a dynamic stage is one node of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np

from llmsched.model.application import Application
from llmsched.model.kinds import StageKind
from llmsched.model.spec import DEFAULT_POOLS
from llmsched.profiler.cases import Tables
from llmsched.profiler.history import TASKS, Array, Curves
from llmsched.profiler.knowledge import Knowledge


@dataclass(frozen=True, slots=True)
class StagePrior:
    """Means of one stage of the template.

    work: reference seconds by pool, jobs that did not run it counted as zero. tasks: of a job that ran it, rounded up.
    each: reference seconds of one of its tasks.
    """

    name: str
    after: tuple[str, ...]
    work: Mapping[str, float]
    tasks: int
    each: float

    @property
    def total(self) -> float:
        """Reference seconds in all pools."""
        return sum(self.work.values())


@dataclass(frozen=True, slots=True)
class Prior:
    """Means of one application. stages: in topological order. work: reference seconds of a job, by pool.

    span: seconds a job takes alone, every task in parallel that can be. prices: reference seconds of one task of a
    plan, by dynamic stage and candidate; "": any candidate.
    """

    stages: Mapping[str, StagePrior]
    work: Mapping[str, float]
    span: float
    prices: Mapping[tuple[str, str], float]

    @property
    def mean_work(self) -> float:
        """Reference seconds of a job, all pools."""
        return sum(self.work.values())

    @property
    def demand(self) -> Mapping[str, float]:
        """Slots a job keeps busy on average while it runs alone, by pool."""
        return {pool: work / self.span if self.span else 0.0 for pool, work in self.work.items()}

    def each(self, stage: str, parent: str | None, candidate: str | None) -> float:
        """Reference seconds of one task of a stage, planned or of the template; the mean of all for one never seen."""
        if parent is not None:
            return self.prices.get((parent, candidate or ""), self.prices.get((parent, ""), 0.0))
        if stage in self.stages:
            return self.stages[stage].each
        tasks = sum(s.tasks for s in self.stages.values())
        return sum(s.tasks * s.each for s in self.stages.values()) / tasks if tasks else 0.0


class Priors:
    """The priors of all applications, made anew when the profiles are."""

    def __init__(self, knowledge: Knowledge) -> None:
        self._knowledge = knowledge
        self._made: dict[tuple[str, int], tuple[int, Prior]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """What is made anew in a moment does not travel."""
        return {"_knowledge": self._knowledge, "_made": {}}

    def __getitem__(self, application: Application) -> Prior:
        key = application.name, application.version
        revision = self._knowledge.revision_of(application.name)
        known = self._made.get(key)
        if known is None or known[0] != revision:
            tables = self._knowledge.tables(application.name)
            fits = tables is not None and tables.layout.columns and len(tables.history) and _fits(tables, application)
            prior = _learned(application, tables) if tables and fits else _declared(application, self._knowledge.curves)
            known = self._made[key] = revision, prior
        return known[1]


def _fits(tables: Tables, application: Application) -> bool:
    return all(stage.name in tables.layout.of_stage for stage in application.stages)


def _learned(application: Application, tables: Tables) -> Prior:
    works = tables.fixed + tables.decode
    tasks = tables.history.costs[:, :, TASKS]
    stages: dict[str, StagePrior] = {}
    spans = np.zeros((len(works), 0))
    column: dict[str, int] = {}
    for spec in application.stages:
        columns = tables.layout.of_stage[spec.name]
        work = {tables.layout.columns[k].pool: float(works[:, k].mean()) for k in columns}
        count = tasks[:, columns].sum(axis=1)
        ran = count > 0
        mean_tasks = float(count[ran].mean()) if ran.any() else 0.0
        total = float(count.sum())
        each = float(works[:, columns].sum()) / total if total else 0.0
        stages[spec.name] = StagePrior(spec.name, spec.after, work, max(1, ceil(mean_tasks - 1e-9)), each)
        # A stage alone lasts as long as one of its tasks; a plan, as if its tasks followed each other.
        own = works[:, columns].sum(axis=1)
        length = own if spec.kind is StageKind.DYNAMIC else own / np.maximum(count, 1)
        before = _latest(spans, [column[p] for p in spec.after])
        column[spec.name] = spans.shape[1]
        spans = np.column_stack([spans, before + length])
    span = float(spans.max(axis=1).mean()) if spans.size else 0.0
    pools = {
        p: float(works[:, [k for k, q in enumerate(tables.pool_of) if q == i]].sum(axis=1).mean())
        for i, p in enumerate(tables.pools)
    }
    prices = {}
    for stage, known in tables.prices.items():
        for candidate, price in known.items():
            pool = _pool_of(application, stage, candidate)
            llm = (
                tables.curves[pool].reference(price.prompt_tokens, price.output_tokens) if price.output_tokens else 0.0
            )
            prices[stage, candidate] = llm + price.seconds
    return Prior(stages, pools, span, prices)


def _latest(spans: Array, columns: list[int]) -> Array:
    """(n,), the latest end of these columns; 0 where there is none."""
    return spans[:, columns].max(axis=1) if columns else np.zeros(len(spans))


def _pool_of(application: Application, stage: str, candidate: str) -> str:
    for known in application[stage].candidates if stage in application else ():
        if known.name == candidate:
            return known.pool
    return DEFAULT_POOLS[StageKind.LLM]


def _declared(application: Application, curves: Curves) -> Prior:
    """As the template declares: of an application of which nothing was learned."""
    stages: dict[str, StagePrior] = {}
    work: dict[str, float] = {}
    ends: dict[str, float] = {}
    prices: dict[tuple[str, str], float] = {}
    for spec in application.stages:
        hint = spec.expected
        is_plan = spec.kind is StageKind.DYNAMIC
        pools = list(dict.fromkeys(c.pool for c in spec.candidates)) if is_plan else [spec.pool]
        total = hint.work(spec.kind, curves[DEFAULT_POOLS[StageKind.LLM] if is_plan else spec.pool])
        own = {pool: total / len(pools) for pool in pools}
        executed = hint.probability * hint.tasks
        each = total / executed if executed else 0.0
        stages[spec.name] = StagePrior(spec.name, spec.after, own, max(1, ceil(hint.tasks - 1e-9)), each)
        if is_plan:
            prices[spec.name, ""] = each
        for pool, seconds in own.items():
            work[pool] = work.get(pool, 0.0) + seconds
        length = total if is_plan else hint.probability * each
        ends[spec.name] = max((ends[p] for p in spec.after), default=0.0) + length
    return Prior(stages, work, max(ends.values(), default=0.0), prices)
