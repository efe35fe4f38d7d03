"""What is open about a running job, and how much running one of its stages would tell.

What is left of a job lies in an interval: the sum, over the stages that are not over, of the ends of their posterior's
support, less progress. A stage X that is ready is worth

    (6)  R(X) = I(Y_1 … Y_M; X | E) * sum_m Range(Y_m)  +  sum_D H(D) * Range(D)

with Y the unscheduled stages that X is correlated with (Eq. 1), E what the job has shown, and D the dynamic stages that
X plans, while their plans are unknown (Eq. 4). A dynamic stage is no Y of its planner: its own term already says what
its plan is worth.

Source: LLMSched (arXiv:2504.03444), section IV, Eq. 1 to 6. Ranges and intervals are those of the central 90 % by
default, because smoothing leaves every state possible and neither would ever shrink (A17, A22). There is no makespan of
a stage (A4) or a plan (A19), because a history keeps totals of stages and not their single tasks; and no evidence from
streamed tokens (A32), because the core is not told of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from llmsched.model.application import Application
from llmsched.model.job import Job, Stage, StageState, TaskState
from llmsched.model.kinds import StageKind
from llmsched.profiler.bayesnet import BayesEstimator
from llmsched.profiler.bins import Array, Bins
from llmsched.profiler.cases import Tables
from llmsched.profiler.done import finished_work
from llmsched.profiler.evidence import OPEN, UNKNOWN, Evidence
from llmsched.profiler.history import OUTPUT, TASKS
from llmsched.profiler.information import (
    binary_entropy,
    children,
    dependents,
    descendants,
    entropy,
    joint_mutual_information,
)
from llmsched.profiler.plans import plan_statistics
from llmsched.profiler.reading import Reading
from llmsched.profiler.sight import Reduction, Sight
from llmsched.profiler.spans import Spans
from llmsched.profiler.stages import StageNetwork, learn_stages

#: Finished jobs of a variant from which on its plans have an entropy of their own (A10).
_FEW = 10
#: Remembered sets of stages; more than any application needs, and a bound all the same.
_MAX_SETS = 10_000


def estimator_for(tables: Tables, network: StageNetwork | None, reading: Reading) -> BayesEstimator:
    """The network a reading asks for, over a history. network: the profile's.

    Without one, stages have the marginal distributions of the history, and tell nothing about each other.
    """
    k_max = reading.k_max or None
    if reading.learns_anew:
        network = learn_stages(
            tables, k_max=k_max, score=reading.score, structure=reading.structure, smoothing=reading.smoothing,
            roots=reading.roots,
        )  # fmt: skip
    if network is None:
        network = learn_stages(tables, k_max=k_max, structure="independent", smoothing=0.0, roots=False, fewest=0)
    assert network is not None
    return BayesEstimator(tables, network)


class Uncertainty:
    """Sees jobs of an application through a Bayesian network. apart: every stage is a part of its own (A33)."""

    def __init__(
        self, application: Application, estimator: BayesEstimator, reading: Reading, *, apart: bool = False
    ) -> None:
        self.reading = reading
        self.tables = estimator.tables
        self.stages = estimator.stages
        self.network = estimator.stages.network
        self.inference = estimator.inference
        self.spans = Spans(estimator, reading)
        self._columns = estimator.columns
        self._apart = apart
        #: Dynamic stage -> its planner, and stage -> the stages that wait for it.
        self._planner = {stage.name: stage.planner for stage in application.stages if stage.kind is StageKind.DYNAMIC}
        self._behind: dict[str, list[str]] = {}
        for stage in application.stages:
            for parent in stage.after:
                self._behind.setdefault(parent, []).append(stage.name)
        self._entropies: dict[tuple[str, str], float] = {}
        self._sets: dict[tuple[object, ...], tuple[int, ...]] = {}

    # ------------------------------------------------------------------------------------------ what is left

    def see(self, job: Job, had: Mapping[str, float] | None = None) -> Sight:
        """The job given everything it has shown. had: as `Seer` says; it counts with censored evidence only."""
        pattern, known, at_least = self.read(job, had)
        marginals = self.inference.marginals(known, at_least)
        each = self.spans.each(marginals)
        unknown = [row for row, first in enumerate(self.spans.first) if pattern[first] == UNKNOWN]
        parts: list[Array] = [np.zeros(each.shape[1:])]
        rows: dict[str, int] = {}
        left: dict[str, float] = {}
        if self._apart:
            for row in unknown:
                rows[self.spans.names[row]], left[self.spans.names[row]] = len(parts), self.spans.tasks[row]
                parts.append(each[row])
        elif unknown:
            parts[0] = each[unknown].sum(axis=0)
        is_total = self.reading.interval == "total"
        for stage in job.stages.values():
            if stage.tasks is None or stage.state is StageState.SKIPPED:
                continue
            is_open = stage.done_tasks < len(stage.tasks)
            if not (is_open or is_total) or (own := self._believed(stage, each)) is None:
                continue
            if is_open:
                rows[stage.name], left[stage.name] = len(parts), len(stage.tasks) - stage.done_tasks
                parts.append(own)
            if stage.done_tasks:
                done = self._seconds(stage, *finished_work(stage, self.tables.curves))
                if not is_open:
                    parts[0][1:] += done
                else:
                    parts[-1] = own - done if not is_total else np.concatenate((own[:1] - done, own[1:]))
        return Sight(
            job.revision, self.tables.pools, np.array(parts), rows, left, self._apart, None,
            pattern, known, at_least, marginals,
        )  # fmt: skip

    def is_outlived(self, job: Job, sight: Sight, had: Mapping[str, float]) -> bool:
        """Whether what running LLM tasks have had rules out a state that the sight still holds possible (A32)."""
        for name, seconds in had.items():
            row = self.spans.row_of.get(name)
            v = None if row is None else self.spans.variables[row]
            if v is None or (lowest := sight.at_least.get(v)) is None:
                continue
            stage, bins = job.stages[name], self.stages.bins[v]
            assert isinstance(bins, Bins)
            alone = self.tables.curves[stage.pool].decode(1)
            done = finished_work(stage, self.tables.curves).decode if self.reading.sampled else 0.0
            if alone and lowest < bins.n_states - 1 and (seconds + done) / alone >= bins.hi[lowest]:
                return True
        return False

    def read(
        self, job: Job, had: Mapping[str, float] | None = None
    ) -> tuple[tuple[int, ...], dict[int, int], dict[int, int]]:
        """What is known of the columns, and evidence as A6, A15, A30 and A32 say: states known, and lowest states."""
        evidence = Evidence.of(self.tables.layout, job)
        if self.reading.measure == "wall":
            self._take_time(job, evidence)
        known, at_least = self.stages.read(evidence, self._columns)
        for v in list(at_least):
            variable, bins = self.stages.variables[v], self.stages.bins[v]
            if variable.role != "llm":
                continue
            assert isinstance(bins, Bins)
            tasks, done = round(evidence.costs[variable.at][TASKS]), evidence.done[variable.at]
            output = evidence.costs[variable.at][OUTPUT]
            if self.reading.sampled and self.reading.quota(tasks) <= done:
                known[v] = bins.state(tasks * output / done)
                del at_least[v]
                continue
            if not self.reading.sampled:
                output, at_least[v] = 0.0, min(1, bins.n_states - 1)
            alone = self.tables.curves[self.tables.layout.columns[variable.at].pool].decode(1)
            if self.reading.evidence == "censored" and had and alone:
                at_least[v] = max(at_least[v], bins.first_above(output + had.get(variable.name, 0.0) / alone))
        if not self.reading.executed:
            at_least.clear()
        return evidence.pattern, known, at_least

    def _take_time(self, job: Job, evidence: Evidence) -> None:
        """Counts finished LLM tasks as the tokens that would have taken their wall time alone (A6)."""
        for stage in job.stages.values():
            k = self.tables.layout.column(stage.spec.parent or stage.name, stage.pool)
            curve = self.tables.curves[stage.pool]
            if k is None or stage.kind is not StageKind.LLM or not curve.decode(1):
                continue
            for task in stage.tasks or ():
                if task.state is TaskState.DONE and task.result is not None:
                    seconds = task.result.duration - curve.prefill(task.result.prompt_tokens)
                    evidence.costs[k][OUTPUT] += max(seconds, 0.0) / curve.decode(1) - task.result.output_tokens

    def _believed(self, stage: Stage, each: Array) -> Array | None:
        """(3, C) of a stage that is revealed; one of a plan costs what its candidate does on average."""
        if stage.spec.parent is None:
            row = self.spans.row_of.get(stage.name)
            return None if row is None else each[row]
        if stage.pool not in self.tables.pools:
            return None
        price = self.tables.price(stage.spec.parent, stage.spec.candidate)
        tasks = stage.tasks or ()
        curve = self.tables.curves[stage.pool]
        if stage.kind is StageKind.LLM:
            prefill = curve.prefill(sum(task.prompt_tokens or price.prompt_tokens for task in tasks))
            cost = self._seconds(stage, prefill, len(tasks) * price.output_tokens * curve.decode(1))
        else:
            cost = self._seconds(stage, len(tasks) * price.seconds, 0.0)
        return np.array((cost, cost, cost))

    def _seconds(self, stage: Stage, fixed: float, decode: float) -> Array:
        seconds = np.zeros(2 * len(self.tables.pools))
        if stage.pool in self.tables.pools:
            at = 2 * self.tables.pools.index(stage.pool)
            is_scaled = self.reading.prefill == "scaled" and stage.kind is StageKind.LLM
            seconds[at : at + 2] = (0.0, fixed + decode) if is_scaled else (fixed, decode)
        return seconds

    # ----------------------------------------------------------------------------- what a stage would tell: R(X)

    def reduction(self, job: Job, stage: Stage, sight: Sight) -> Reduction:
        """R(X) of Eq. 6. The evidence is what the sight rests on, and that X executes (A15)."""
        gain = np.zeros(2 * len(self.tables.pools))
        row = self.spans.row_of.get(stage.name) if stage.spec.parent is None else None
        if row is None:
            return Reduction(tuple(gain.tolist()), tuple(gain.tolist()))
        x = self.spans.variables[row]
        known, at_least, marginals = sight.known, sight.at_least, sight.marginals
        if self.reading.executed and x not in known and x not in at_least:
            at_least = {**at_least, x: min(1, self.network.cards[x] - 1)}
            marginals = self.inference.marginals(known, at_least)
        if x not in known and (ys := self._correlated(job, stage, x, sight, at_least)):
            bits = self._information(ys, x, known, at_least)
            if bits > 0.0:
                for y in ys:
                    gain += bits * self.spans.range(self.spans.row_of[self.stages.variables[y].name], marginals[y])
        for dynamic in self._planner:
            gain += self._dynamic_term(job, stage, x, dynamic, sight.pattern, known, at_least)
        if self.reading.structural:
            gain += self._structural_term(job, stage, marginals)
        if not self.reading.calibrated_ranges:
            gain[::2] += gain[1::2]
            gain[1::2] = 0.0
        cost = marginals[x] @ self.spans.rep[row, : len(marginals[x])]
        return Reduction(tuple(gain.tolist()), tuple(cost.tolist()))

    def _correlated(self, job: Job, stage: Stage, x: int, sight: Sight, at_least: Mapping[int, int]) -> list[int]:
        """Eq. 1: the stages that X tells about, as far as they still count (A1, A16)."""
        key = (x, frozenset(sight.known), frozenset(at_least)) if self.reading.corr == "dependent" else (x,)
        related = self._sets.get(key)
        if related is None:
            if len(self._sets) >= _MAX_SETS:
                self._sets.clear()
            match self.reading.corr:
                case "path":
                    found = descendants(self.network, x)
                case "arc":
                    found = children(self.network, x)
                case "dependent":
                    found = dependents(self.network, x, sight.known, at_least)
            variables = self.stages.variables
            planned = {name for name, planner in self._planner.items() if planner == stage.name}
            related = tuple(y for y in found if variables[y].is_stage and variables[y].name not in planned)
            self._sets[key] = related
        return [y for y in related if y not in sight.known and self._counts(job, y, sight.pattern)]

    def _counts(self, job: Job, y: int, pattern: tuple[int, ...]) -> bool:
        variable = self.stages.variables[y]
        state = pattern[variable.at]
        if state != OPEN or variable.role == "plan":
            return state == UNKNOWN
        is_untouched = all(task.state is TaskState.READY for task in job.stages[variable.name].tasks or ())
        return is_untouched or self.reading.informs == "unfinished"

    def _information(self, ys: Sequence[int], x: int, known: Mapping[int, int], at_least: Mapping[int, int]) -> float:
        """I(Y; X | E) in bits.

        Y that are independent of X given the other Y are left out, for they add nothing: I(Y, Z; X) = I(Y; X) in a
        chain X -> Y -> Z. So there are few states to count, and the bound of A14 is seldom met.
        """
        if self.reading.mi != "pairwise_sum" and len(ys) > 1:
            key = (x, *ys, frozenset(known), frozenset(at_least))
            enough = self._sets.get(key)
            if enough is None:
                if len(self._sets) >= _MAX_SETS:
                    self._sets.clear()
                kept = list(ys)
                for y in reversed(ys):
                    others = [other for other in kept if other != y]
                    if y not in dependents(self.network, x, {*known, *others}, at_least):
                        kept = others
                enough = self._sets[key] = tuple(kept)
            ys = enough
        return joint_mutual_information(self.inference, ys, x, known, at_least, mode=self.reading.mi)

    def _dynamic_term(
        self,
        job: Job,
        stage: Stage,
        x: int,
        dynamic: str,
        pattern: tuple[int, ...],
        known: Mapping[int, int],
        at_least: Mapping[int, int],
    ) -> Array | float:
        """H(D) * Range(D) while the plan of D is unknown, if X is its planner; or the share of it X tells (A20)."""
        row = self.spans.row_of[dynamic]
        if pattern[self.spans.first[row]] != UNKNOWN:
            return 0.0
        share = 1.0
        if self._planner[dynamic] != stage.name:
            planner = self.spans.row_of.get(self._planner[dynamic] or "")
            if self.reading.dynamic_term == "planner" or planner is None:
                return 0.0
            y = self.spans.variables[planner]
            if y in known or x in known or y not in descendants(self.network, x):
                return 0.0
            open_bits = entropy(self.inference.marginals(known, at_least)[y])
            told = joint_mutual_information(self.inference, (y,), x, known, at_least)
            share = told / open_bits if open_bits > 0.0 else 0.0
        least, most = self.spans.bounds[row, 0, 0]
        term: Array = share * self.reading.dyn_weight * self._plan_entropy(job, dynamic) * (most - least)
        return term

    def _structural_term(self, job: Job, stage: Stage, marginals: Sequence[Array]) -> Array | float:
        """sum_s H(I_s | E) * Range(s) over the stages that execute or not depending on X, and on X alone (A42)."""
        total: Array | float = 0.0
        for name in self._behind.get(stage.name, ()):
            child, row = job.stages[name], self.spans.row_of[name]
            if self.spans.is_plan[row] or child.state is not StageState.WAITING or child.is_revealed:
                continue
            if all(job.stages[parent].is_over for parent in child.spec.after if parent != stage.name):
                p = marginals[self.spans.variables[row]]
                total = total + binary_entropy(float(p[0])) * self.spans.range(row, p)
        return total

    def _plan_entropy(self, job: Job, dynamic: str) -> float:
        """H(D) of Eq. 4, in bits (A10)."""
        variant = str(job.features.get("variant", "")) if self.reading.plan_entropy == "variant" else ""
        known = self._entropies.get((dynamic, variant))
        if known is None:
            tables = self.tables
            own = [i for i, other in enumerate(tables.history.variants) if other == variant]
            if self.reading.plan_entropy == "variant" and _FEW <= len(own) < len(tables.history):
                tables = Tables(tables.history.take(own), tables.curves)
            statistics = plan_statistics(tables).get(dynamic)
            known = self._entropies[dynamic, variant] = statistics.entropy if statistics is not None else 0.0
        return known
