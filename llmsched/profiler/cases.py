"""Estimators whose belief is a set of weighted cases: what finished jobs still had to do at this point of their course.

A *course* is what one pattern of evidence (which columns are over, run, do not run, are unknown) means in the history.
Subclasses say which finished jobs belong to it and how much each weighs for one running job. What is common is the part
of a job that is half known. A stage that runs has told its number of tasks and their prompts; tasks of it that are done
tell what the others will be like,

    E[task | k done with mean x] = (k x + kappa m) / (k + kappa),   kappa = variance within a stage / between stages

with m the case's own mean (a normal prior; kappa is measured per column). A task that runs is at least as long as what
it has had: shorter cases are out (censored evidence). A plan that is known is priced by its candidates: what each cost
on average where it was chosen.

Where a model predicts how long the answers of a stage that runs will be, cases in which they were alike weigh more, and
with them whatever goes along with such lengths: more stages, longer ones later. The likelihood is a normal one in
logarithms, with a floor, for a prediction that no case agrees with should change nothing:

    w_i  ~ w_i ((1 - floor) exp(-((log(1 + own_i) - predicted) / spread)^2 / 2) + floor)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from llmsched.model.job import Job, TaskState
from llmsched.model.kinds import StageKind
from llmsched.profiler.estimator import Outlook, Predicted, Remaining, Running
from llmsched.profiler.evidence import OPEN, UNKNOWN, Evidence
from llmsched.profiler.history import OUTPUT, PROMPT, SECONDS, TASKS, Array, Curves, History

#: How alike tasks of one stage are taken to be where the history cannot tell: as alike as stages are.
_KAPPA = 1.0
#: Likelihood of a case that a prediction speaks against entirely. With 0.05 chains lost 5 % at a load of 1.2, plans
#: gained no more.
_DOUBT = 0.3
#: Courses kept; more than any application has, and a bound all the same.
_MAX_COURSES = 2_000


class Price(NamedTuple):
    """Mean cost of one task of a candidate."""

    prompt_tokens: float = 0.0
    output_tokens: float = 0.0
    seconds: float = 0.0


class Tables:
    """A history made ready to be read with today's curves; shared by the estimators of a profile.

    fixed, decode: (n, columns) reference seconds. task: (n, columns), mean output tokens (llm) or seconds (regular) of
    a column's tasks, NaN where it did not run. kappa: (columns,). prices: by dynamic stage and candidate; "": any.
    """

    def __init__(self, history: History, curves: Curves) -> None:
        self.history = history
        self.layout = history.layout
        self.pools = history.layout.pools
        self.curves = curves
        self.fixed, self.decode = history.works(curves)
        self.ran = history.ran
        self.is_llm: npt.NDArray[np.bool_] = np.asarray(history.costs[:, :, OUTPUT].any(axis=0))
        self.pool_of = [self.pools.index(c.pool) for c in self.layout.columns]
        tasks = np.where(self.ran, history.costs[:, :, TASKS], np.nan)
        self.task: Array = np.where(self.is_llm, history.costs[:, :, OUTPUT], history.costs[:, :, SECONDS]) / tasks
        self.kappa = [_kappa(history, self.task, k) for k in range(len(self.layout.columns))]
        self.prices = _prices(history)
        #: (n, columns), what a plan cost over what its candidates cost on average, mean 1; 1 where there was none.
        self.surprise = self._surprises()
        finite = np.isfinite(history.numbers)
        sums = np.where(finite, history.numbers, 0.0).sum(axis=0)
        #: (numbers,), what a feature that a job lacks is taken to be.
        self.number_means: Array = sums / np.maximum(finite.sum(axis=0), 1)

    def price(self, stage: str, candidate: str | None) -> Price:
        """What a task of a plan costs on average; a candidate never seen costs what any does."""
        prices = self.prices.get(stage, {})
        return prices.get(candidate or "", prices.get("", Price()))

    def _surprises(self) -> Array:
        surprise = np.ones(self.fixed.shape)
        for k, column in enumerate(self.layout.columns):
            if not column.is_plan or not self.ran[:, k].any():
                continue
            actual = self.fixed[:, k] + self.decode[:, k]
            priced = np.array([self._priced(i, k) for i in range(len(actual))])
            known = self.ran[:, k] & (priced > 0) & (actual > 0)
            ratio = actual[known] / priced[known]
            surprise[known, k] = ratio / ratio.mean() if known.any() else 1.0
        return surprise

    def _priced(self, row: int, k: int) -> float:
        """What the plan of a finished job costs at the mean prices of its candidates, in the pool of column k."""
        column = self.layout.columns[k]
        curve = self.curves[column.pool]
        total = 0.0
        for plan in self.history.plans[row]:
            if plan.stage == column.stage:
                for candidate, count in plan.counts.items():
                    price = self.price(plan.stage, candidate)
                    if (price.output_tokens > 0) == bool(self.is_llm[k]):
                        total += count * (curve.reference(price.prompt_tokens, price.output_tokens) + price.seconds)
        return total


class Course:
    """What one pattern of evidence means in the history.

    rows: finished jobs that count. fixed, decode: (m, pools), what they had left in columns nothing is known of.
    """

    def __init__(self, tables: Tables, pattern: tuple[int, ...], rows: npt.NDArray[np.intp]) -> None:
        self.pattern = pattern
        self.rows = rows
        self.fixed = np.zeros((len(rows), len(tables.pools)))
        self.decode = np.zeros((len(rows), len(tables.pools)))
        for k, (state, pool) in enumerate(zip(pattern, tables.pool_of, strict=True)):
            if state == UNKNOWN:
                self.fixed[:, pool] += tables.fixed[rows, k]
                self.decode[:, pool] += tables.decode[rows, k]
        #: Columns that run, and are no plan -> (m,), a task's mean cost in each case.
        self.tasks = {
            k: _filled(tables.task[rows, k], tables.task[:, k])
            for k, state in enumerate(pattern)
            if state == OPEN and not tables.layout.columns[k].is_plan
        }
        #: Pool -> (m,), how far plans that are known now cost more or less than their candidates say.
        self.surprise = {
            tables.layout.columns[k].pool: tables.surprise[rows, k]
            for k, state in enumerate(pattern)
            if state == OPEN and tables.layout.columns[k].is_plan
        }


class CasesEstimator(ABC):
    """Belief as weighted finished jobs."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self._courses: dict[tuple[int, ...], Course] = {}

    @abstractmethod
    def course(self, pattern: tuple[int, ...]) -> Course:
        """Compiles a pattern that is met for the first time."""

    @abstractmethod
    def weigh(self, course: Course, evidence: Evidence) -> Array:
        """(m,) weights of the course's rows, summing to 1."""

    def remaining(self, job: Job, running: Running | None = None) -> Remaining:
        return self.outlook(job, running).means()

    def outlook(self, job: Job, running: Running | None = None, predicted: Predicted | None = None) -> Outlook:
        return self.outlook_given(Evidence.of(self.tables.layout, job), job, running, predicted)

    def outlook_given(
        self, evidence: Evidence, job: Job, running: Running | None = None, predicted: Predicted | None = None
    ) -> Outlook:
        """The outlook of a job of which this is known, and this predicted."""
        tables = self.tables
        course = self._courses.get(evidence.pattern)
        if course is None:
            if len(self._courses) >= _MAX_COURSES:
                self._courses.clear()
            course = self._courses[evidence.pattern] = self.course(evidence.pattern)
        weights = self.weigh(course, evidence)
        fixed, decode = course.fixed, course.decode
        if OPEN in evidence.pattern:
            fixed, decode = fixed.copy(), decode.copy()
            for k, each in course.tasks.items():
                weights = foreseen(tables, k, each, predicted, weights)
                weights = add_open(tables, k, each, job, evidence, running, weights, fixed, decode)
            add_plans(tables, job, fixed, decode, course.surprise)
        return Outlook(tables.pools, weights, fixed, decode)


class MeanEstimator(CasesEstimator):
    """Every finished job counts the same: the historical mean of each stage that is left, zeros included.

    Source: LLMSched's baselines, "average duration for each application on its dataset" (section V).
    """

    def course(self, pattern: tuple[int, ...]) -> Course:
        return Course(self.tables, pattern, np.arange(len(self.tables.history)))

    def weigh(self, course: Course, evidence: Evidence) -> Array:
        return np.full(len(course.rows), 1.0 / len(course.rows))


def foreseen(tables: Tables, k: int, each: Array, predicted: Predicted | None, weights: Array) -> Array:
    """Weights of cases, by how well they agree with what is predicted of column k, which runs.

    each: (m,) what a task of it costs in each case. weights: (m,), returned as they are where nothing is predicted.
    """
    prediction = predicted.get(tables.layout.columns[k].stage) if predicted else None
    if prediction is None or not tables.is_llm[k]:
        return weights
    log_tokens, spread = prediction
    away = (np.log1p(each) - log_tokens) / spread
    weights = weights * ((1.0 - _DOUBT) * np.exp(-0.5 * away**2) + _DOUBT)
    return np.asarray(weights / weights.sum())


def add_open(
    tables: Tables,
    k: int,
    each: Array,
    job: Job,
    evidence: Evidence,
    running: Running | None,
    weights: Array,
    fixed: Array,
    decode: Array,
) -> Array:
    """Adds what is left of column k, which runs, to `fixed` and `decode` (m, pools).

    each: (m,) what a task of it costs in each case: output tokens (llm) or seconds (regular). weights: (m,), returned
    without the cases that are too short for what running tasks have had, unless none would be left.
    """
    column, pool = tables.layout.columns[k], tables.pool_of[k]
    curve = tables.curves[column.pool]
    cost, done = evidence.costs[k], evidence.done[k]
    left = cost[TASKS] - done
    is_llm = bool(tables.is_llm[k])
    if done:
        kappa = tables.kappa[k]
        each = (cost[OUTPUT if is_llm else SECONDS] + kappa * each) / (done + kappa)
    seconds = each * curve.decode(1) if is_llm else each
    had = [running[ref] for ref in job.running if ref.stage == column.stage and ref in running] if running else []
    longest = max(had, default=0.0)
    if longest > 0.0:
        long_enough = np.where(seconds >= longest, weights, 0.0)
        if (kept := long_enough.sum()) > 0.0:
            weights = long_enough / kept
        seconds = np.maximum(seconds, longest)
    rest = np.maximum(left * seconds - sum(had), 0.0)
    if is_llm:
        decode[:, pool] += rest
        fixed[:, pool] += curve.prefill(cost[PROMPT] * left / cost[TASKS])
    else:
        fixed[:, pool] += rest
    return weights


def add_plans(tables: Tables, job: Job, fixed: Array, decode: Array, surprise: Mapping[str, Array] = {}) -> None:
    """Adds what is left of plans that are known to `fixed` and `decode` (m, pools), priced by their candidates.

    surprise: pool -> (m,), mean 1: the factor by which each case's own plan missed its price. It counts for more where
    few tasks of the plan are left, as errors of single tasks do.
    """
    left: dict[str, tuple[float, float]] = {}
    tasks: dict[str, tuple[int, int]] = {}
    for stage in job.stages.values():
        parent = stage.spec.parent
        if parent is None or stage.tasks is None or stage.pool not in tables.pools:
            continue
        price = tables.price(parent, stage.spec.candidate)
        curve = tables.curves[stage.pool]
        own_fixed, own_decode = left.get(stage.pool, (0.0, 0.0))
        opened = [task for task in stage.tasks if task.state is not TaskState.DONE]
        for task in opened:
            if stage.kind is StageKind.LLM:
                own_fixed += curve.prefill(task.prompt_tokens or price.prompt_tokens)
                own_decode += price.output_tokens * curve.decode(1)
            else:
                own_fixed += price.seconds
        left[stage.pool] = own_fixed, own_decode
        some, every = tasks.get(stage.pool, (0, 0))
        tasks[stage.pool] = some + len(opened), every + len(stage.tasks)
    for pool, (own_fixed, own_decode) in left.items():
        p = tables.pools.index(pool)
        some, every = tasks[pool]
        factor: Array | float = 1.0
        if some and pool in surprise:
            factor = (1.0 + (surprise[pool] - 1.0) * (every / some) ** 0.5).clip(0.05)
        fixed[:, p] += own_fixed * factor
        decode[:, p] += own_decode * factor


def _filled(values: Array, everywhere: Array) -> Array:
    """Values, with those of cases that did not run replaced by the mean of those that did."""
    known = np.isfinite(values)
    if known.all():
        return values
    source = values[known] if known.any() else everywhere[np.isfinite(everywhere)]
    return np.where(known, values, source.mean() if len(source) else 0.0)


def _kappa(history: History, task: Array, k: int) -> float:
    """Variance of a task's cost within a stage over that of the stage's mean between jobs (a one-way ANOVA)."""
    tasks = history.costs[:, k, TASKS]
    several = tasks > 1
    freedom = (tasks[several] - 1).sum()
    if several.sum() < 2 or freedom < 10:
        return _KAPPA
    mean = task[several, k]
    within = float((history.squares[several, k] - tasks[several] * mean**2).clip(0).sum() / freedom)
    between = float(mean.var()) - within * float((1 / tasks[several]).mean())
    return min(within / between, 100.0) if between > 0 else (100.0 if within > 0 else _KAPPA)


def _prices(history: History) -> dict[str, dict[str, Price]]:
    sums: dict[str, dict[str, list[float]]] = {}
    for (stage, candidate), (_, tasks, prompt, output, seconds) in history.candidates.items():
        for name in (candidate, ""):
            known = sums.setdefault(stage, {}).setdefault(name, [0.0] * 4)
            sums[stage][name] = [a + b for a, b in zip(known, (tasks, prompt, output, seconds), strict=True)]
    return {
        stage: {
            name: Price(prompt / n, output / n, seconds / n) for name, (n, prompt, output, seconds) in known.items()
        }
        for stage, known in sums.items()
    }
