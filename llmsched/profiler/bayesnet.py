"""The `bayesnet` estimator: the posterior of every stage that is left, given what is over.

    E[left in pool] = sum over stages s not over, over states k of  P(D_s = k | evidence) x rep_s(k, pool)

with rep_s(k, pool) the mean cost of the finished jobs in bin k. A stage that runs is priced by its open tasks, as
everywhere (`cases.py`), with the bins in the place of cases. The outlook is sampled from the joint posterior.
Source: LLMSched (arXiv:2504.03444), section IV-B.
"""

from __future__ import annotations

import numpy as np

from llmsched.model.job import Job
from llmsched.profiler.bins import States
from llmsched.profiler.cases import Tables, add_open, add_plans, foreseen
from llmsched.profiler.estimator import Outlook, Predicted, Remaining, Running, Work
from llmsched.profiler.evidence import OPEN, UNKNOWN, Evidence
from llmsched.profiler.history import Array
from llmsched.profiler.inference import Inference
from llmsched.profiler.stages import StageNetwork

#: Joint samples behind an outlook.
_SAMPLES = 200


class Belief:
    """Posterior of one job's stages at one moment. marginals: by variable, (states,). known, at_least: by variable."""

    __slots__ = ("at_least", "evidence", "known", "marginals")

    def __init__(
        self, evidence: Evidence, known: dict[int, int], at_least: dict[int, int], marginals: tuple[Array, ...]
    ) -> None:
        self.evidence = evidence
        self.known = known
        self.at_least = at_least
        self.marginals = marginals


class BayesEstimator:
    """Belief as a Bayesian network.

    rep_fixed, rep_decode: by variable, (states, pools) seconds a finished job in that state cost on average; task: by
    variable, (states,) mean tokens (llm) or seconds (regular) of one task. Zeros for variables that are no stage.
    """

    def __init__(self, tables: Tables, stages: StageNetwork) -> None:
        self.tables = tables
        self.stages = stages
        self.inference = Inference(stages.network)
        self.rep_fixed: list[Array] = []
        self.rep_decode: list[Array] = []
        self.task: list[Array] = []
        self.of_stage = {v.name: i for i, v in enumerate(stages.variables) if v.is_stage}
        self.columns = {columns[0]: columns for columns in tables.layout.of_stage.values()}
        states = stages.states(tables.history)
        #: By variable: finished jobs sorted by state, and where in that order a state begins and how many have it.
        self._order: list[States] = [np.argsort(column, kind="stable") for column in states.T]
        self._first: list[States] = []
        self._count: list[States] = []
        for v, variable in enumerate(stages.variables):
            n = stages.bins[v].n_states
            count = np.bincount(states[:, v], minlength=n)
            # A state that no job had stands for all of them.
            self._first.append(np.where(count > 0, np.cumsum(count) - count, 0))
            self._count.append(np.where(count > 0, count, len(states)))
            fixed, decode = np.zeros((n, len(tables.pools))), np.zeros((n, len(tables.pools)))
            task = np.zeros(n)
            if variable.is_stage:
                for state in range(n):
                    rows = states[:, v] == state
                    if not rows.any():
                        continue
                    for k in self.columns[variable.at]:
                        fixed[state, tables.pool_of[k]] += tables.fixed[rows, k].mean()
                        decode[state, tables.pool_of[k]] += tables.decode[rows, k].mean()
                    if state and variable.role != "plan":
                        task[state] = tables.task[rows, variable.at].mean()
            self.rep_fixed.append(fixed)
            self.rep_decode.append(decode)
            self.task.append(task)

    def believe(self, job: Job) -> Belief:
        """The posterior given everything the job has shown."""
        evidence = Evidence.of(self.tables.layout, job)
        known, at_least = self.stages.read(evidence, self.columns)
        return Belief(evidence, known, at_least, self.inference.marginals(known, at_least))

    def remaining(self, job: Job, running: Running | None = None) -> Remaining:
        belief = self.believe(job)
        tables, pattern = self.tables, belief.evidence.pattern
        fixed, decode = np.zeros((1, len(tables.pools))), np.zeros((1, len(tables.pools)))
        for v, variable in enumerate(self.stages.variables):
            if not variable.is_stage:
                continue
            if pattern[variable.at] == UNKNOWN:
                fixed[0] += belief.marginals[v] @ self.rep_fixed[v]
                decode[0] += belief.marginals[v] @ self.rep_decode[v]
            elif pattern[variable.at] == OPEN and variable.role != "plan":
                own_fixed = np.zeros((len(self.task[v]), len(tables.pools)))
                own_decode = np.zeros_like(own_fixed)
                weights = add_open(
                    tables, variable.at, self.task[v], job, belief.evidence, running,
                    belief.marginals[v], own_fixed, own_decode,
                )  # fmt: skip
                fixed[0] += weights @ own_fixed
                decode[0] += weights @ own_decode
        add_plans(tables, job, fixed, decode)
        return {pool: Work(float(fixed[0, p]), float(decode[0, p])) for p, pool in enumerate(tables.pools)}

    def outlook(self, job: Job, running: Running | None = None, predicted: Predicted | None = None) -> Outlook:
        """Joint samples of the stages' bins; in a bin, the cost of a finished job that fell into it."""
        belief = self.believe(job)
        tables, pattern = self.tables, belief.evidence.pattern
        rng = np.random.default_rng(0)  # the same question, the same answer
        samples = self.inference.sample(_SAMPLES, belief.known, belief.at_least, rng)
        weights = np.full(len(samples), 1.0 / len(samples))
        fixed, decode = np.zeros((len(samples), len(tables.pools))), np.zeros((len(samples), len(tables.pools)))
        draws = rng.random(len(samples))
        surprise: dict[str, Array] = {}
        for v, variable in enumerate(self.stages.variables):
            if not variable.is_stage or pattern[variable.at] not in (UNKNOWN, OPEN):
                continue
            rows = self._like(v, samples[:, v], draws)
            if pattern[variable.at] == UNKNOWN:
                for k in self.columns[variable.at]:
                    fixed[:, tables.pool_of[k]] += tables.fixed[rows, k]
                    decode[:, tables.pool_of[k]] += tables.decode[rows, k]
            elif variable.role == "plan":
                surprise |= {tables.layout.columns[k].pool: tables.surprise[rows, k] for k in self.columns[variable.at]}
            else:
                each = np.where(np.isfinite(tables.task[rows, variable.at]), tables.task[rows, variable.at], 0.0)
                weights = foreseen(tables, variable.at, each, predicted, weights)
                weights = add_open(tables, variable.at, each, job, belief.evidence, running, weights, fixed, decode)
        add_plans(tables, job, fixed, decode, surprise)
        return Outlook(tables.pools, weights, fixed, decode)

    def _like(self, v: int, states: States, draws: Array) -> States:
        """(m,) a finished job in each of these states of a variable; the same draw goes to like places in every bin."""
        first, count = self._first[v][states], self._count[v][states]
        return self._order[v][first + np.minimum((draws * count).astype(np.intp), count - 1)]
