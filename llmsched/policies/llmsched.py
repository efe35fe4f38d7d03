"""LLMSched: shortest remaining time first by a Bayesian network, with ε-greedy exploration of what tells most.

At every decision all ready stages are put in two orders, by what is left of their job and by how much they would tell,
which `algorithm1.Merge` makes one of, across pools. What is left is summed over all pools, in seconds at the batches
of the moment (`backlog.py`), and expected by the posterior of each stage (`profiler/uncertainty.py`).

Where the paper leaves something open there is an option (`options.py`), and the table in docs/policies.md says what is
chosen and why. Jobs nothing was learned of count with their declared means, and have nothing to tell.
Source: LLMSched (arXiv:2504.03444), section IV, Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from inspect import Signature
from random import Random
from typing import Any, ClassVar

import numpy as np

from llmsched.errors import InvalidInput
from llmsched.model.application import Application
from llmsched.model.job import Job
from llmsched.model.kinds import StageKind
from llmsched.policies.algorithm1 import Lineup, Merge, components
from llmsched.policies.backlog import Backlog
from llmsched.policies.base import Change, JobArrived, JobChanged, JobLeft, Pick, TaskEnded, TaskStarted, View
from llmsched.policies.options import LITERAL, PLUS, Options
from llmsched.profiler import Knowledge
from llmsched.profiler.averages import Averages
from llmsched.profiler.bayesnet import BayesEstimator
from llmsched.profiler.sight import DeclaredSeer, Seer
from llmsched.profiler.uncertainty import Uncertainty, estimator_for

__all__ = ["LITERAL", "PLUS", "Llmsched", "LlmschedWithoutBn"]


class Llmsched:
    """Algorithm 1. Options: those of `Options`; raises UnknownName or InvalidInput for one it cannot use.

    A pick says why: `estimate` (est_rd of the job, seconds), `reduction` (R of the stage, bit seconds; None if nobody
    asked), `draw` (p of its turn; None where it took none), `explored`, `group` (of the job, by lower bound).

    Priority classes are left to the core, which sorts by them: the two orders are over all ready stages.
    """

    keeps_classes = False
    __signature__: ClassVar[Signature] = Options.signature()

    def __init__(self, knowledge: Knowledge | None = None, **options: Any) -> None:
        self.options = Options.of(options)
        self.knowledge = knowledge or Knowledge()
        self._revision = self.knowledge.revision
        #: (application, version) -> what sees its jobs, where something was learned of it.
        self._seers: dict[tuple[str, int], Seer] = {}
        self._backlog = Backlog(self.options, self.knowledge.curves)
        #: Jobs to be looked at before the next decision.
        self._changed: dict[str, Job] = {}
        self._decisions = 0
        self._random: Random | None = None
        self._merge: Merge | None = None

    def on(self, change: Change, view: View) -> None:
        match change:
            case JobArrived(job) | JobChanged(job):
                self._changed[job.id] = job
            case TaskStarted(task):
                if task.job.id in self._backlog.jobs:
                    self._backlog.jobs[task.job.id].reductions.clear()
            case TaskEnded(task):
                self._changed[task.job.id] = task.job
            case JobLeft(job):
                self._changed.pop(job.id, None)
                self._backlog.drop(job.id)
                self.knowledge.forget(job.id)
                self._merge = self._random = None
            case _:
                pass

    def begin(self, view: View) -> None:
        """Orders all ready tasks, as far as the free slots reach; `picks` goes on from there.

        Of regular tasks there is nothing to order where all can start at once, and nobody takes turns to find them.
        """
        self._look(view)
        self._decisions += 1
        self._random = None
        amounts = self._backlog.amounts(view)
        groups = np.zeros(len(amounts.estimates), np.intp)
        is_closed = self.options.ends == "closed"
        groups[amounts.taken] = components(amounts.lo[amounts.taken], amounts.hi[amounts.taken], is_closed=is_closed)
        stages = [stage for ready in view.ready.values() for stage in ready.values()]
        places = np.array([amounts.places[job] for ready in view.ready.values() for job, _ in ready], np.intp)
        keys = [np.array([stage.order for stage in stages]), *(key[places] for key in amounts.keys)]
        order = np.lexsort(tuple(keys))
        places = places[order]
        st = Lineup([stages[k] for k in order], amounts.estimates[places], groups[places])
        self._merge = merge = Merge(st, self.options, self._backlog.reductions, self.draw)
        pools = np.repeat(np.arange(len(view.ready)), [len(ready) for ready in view.ready.values()])[order]
        for pool in self._extend(merge, view):
            merge.settle(np.flatnonzero(pools == list(view.ready).index(pool)))

    def picks(self, pool: str, view: View) -> Iterator[Pick]:
        return iter(()) if self._merge is None else self._merge.picks(pool)

    def draw(self) -> float:
        """p of the next turn: uniform, 0 <= p < 1."""
        if self._random is None:
            # A stream per decision: what one decision draws does not depend on how far another one was asked.
            self._random = Random(f"{self.options.seed}|{self._decisions}")
        return self._random.random()

    def _extend(self, merge: Merge, view: View) -> list[str]:
        """Takes turns until every free slot has a task: now, because dispatches change what R(X) is.

        Returns the pools whose ready tasks are regular and have a slot each.
        """
        free: dict[str, int] = {}
        for executor in view.executors.values():
            free[executor.pool] = free.get(executor.pool, 0) + executor.free
        roomy = []
        for pool, slots in free.items():
            wanted, is_regular = 0, True
            for stage in view.ready_stages(pool):
                wanted += len(stage.ready)
                is_regular = is_regular and stage.kind is StageKind.REGULAR
                if wanted > slots:
                    break
            else:
                merge.counts[pool] = wanted
                if wanted and is_regular:
                    roomy.append(pool)
                    continue
            while len(merge.out.get(pool, ())) < min(wanted, slots):
                merge.extend()
        return roomy

    def _look(self, view: View) -> None:
        """Sees what has changed since the last decision: jobs, or everything if the profiles have (A37)."""
        if self._revision != self.knowledge.revision:
            self._revision = self.knowledge.revision
            self._seers.clear()
            self._backlog.clear()
        jobs = self._backlog.jobs
        for job in self._changed.values():
            known = jobs.get(job.id)
            if known is not None and known.sight.revision == job.revision:
                known.reductions.clear()
            elif job.id in view.jobs:
                seer = self._seer(job.application) if known is None else known.seer
                self._backlog.put(job, seer, seer.see(job))
        self._changed.clear()
        if len(jobs) != len(view.jobs):
            for job in view.jobs.values():
                if job.id not in jobs:
                    seer = self._seer(job.application)
                    self._backlog.put(job, seer, seer.see(job))

    def _seer(self, application: Application) -> Seer:
        key = (application.name, application.version)
        seer = self._seers.get(key)
        if seer is None:
            profile = self.knowledge.profiles.get(application.name)
            tables = self.knowledge.tables(application.name)
            if profile is None or tables is None or not profile.fits(application):
                return DeclaredSeer(application, self.knowledge.curves)
            estimator = self.knowledge.estimator(application, "bayesnet")
            if self.options.learns_anew or not isinstance(estimator, BayesEstimator):
                estimator = estimator_for(tables, profile.network, self.options)
            seer = self._seers[key] = self._see_with(application, estimator)
        return seer

    def _see_with(self, application: Application, estimator: BayesEstimator) -> Seer:
        return Uncertainty(application, estimator, self.options, apart=self.options.est == "critical_path")

    def __getstate__(self) -> dict[str, Any]:
        # An order holds for the decision it was made in, and no longer.
        return self.__dict__ | {"_merge": None, "_random": None}


class LlmschedWithoutBn(Llmsched):
    """Algorithm 1 with the mean work of the application, less what is done, as est_rd.

    Intervals are the extremes of the application's history, and R is that of the static prior. Options: those of
    `Options`, and constant: what is done is not taken off.
    Source: LLMSched (arXiv:2504.03444), section V-C.
    """

    __signature__: ClassVar[Signature] = Options.signature("constant")

    def __init__(self, knowledge: Knowledge | None = None, *, constant: bool = False, **options: Any) -> None:
        super().__init__(knowledge, **options)
        if not isinstance(constant, bool):
            raise InvalidInput(f"constant is {constant!r}; it must be true or false", field="constant")
        self._constant = constant

    def _see_with(self, application: Application, estimator: BayesEstimator) -> Seer:
        return Averages(application, estimator, self.options, constant=self._constant)
