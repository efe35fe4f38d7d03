"""Decima's rule: choose a stage and a limit for its job until no slot is free, then the rest by score.

    v = the ready stage with the highest score, in any pool that has a free slot
    L = the limit with the highest score among those above what its job holds in that pool
    start min(tasks of v that wait, L - held, free) tasks of v

Work conserving: what is not chosen follows by descending score, so that no slot stays free (`remainder=false` in the
original sense would hold tasks back, which the core does not allow; there the rest goes in order of arrival).
`mode="one_action"` chooses once per decision, as the paper under whose numbers Decima does worst on plans describes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from llmsched.errors import UnknownName
from llmsched.model.job import Job, Task
from llmsched.policies.base import (
    Change,
    JobArrived,
    JobChanged,
    JobLeft,
    Pick,
    StageReady,
    TaskEnded,
    TaskReady,
    TaskStarted,
    View,
)
from llmsched.policies.decima.agents import AGENTS, agent_for, network_of
from llmsched.policies.decima.graph import Graph, Observer
from llmsched.policies.decima.network import Embedded, Network
from llmsched.profiler import Knowledge
from llmsched.profiler.prior import Priors

Mode = Literal["until_full", "one_action"]
Array = npt.NDArray[Any]

#: Jobs that one decision looks at, the oldest of each class first; the others follow in order of arrival.
MOST_JOBS = 200


class Decima:
    """Stages by the score of a trained network.

    agent: "auto" for the one that was trained on the fewest applications that cover those seen, or its name.
    checkpoint: a file of `llmsched train decima` instead; network: one that is in memory.
    Raises UnknownName or InvalidInput for an agent or a checkpoint that cannot be.
    """

    keeps_classes = False

    def __init__(
        self,
        knowledge: Knowledge | None = None,
        agent: str = "auto",
        mode: Mode = "until_full",
        remainder: bool = True,
        checkpoint: str | None = None,
        network: Network | None = None,
    ) -> None:
        if agent != "auto" and agent not in AGENTS:
            raise UnknownName.of("agent of decima", agent, ("auto", *AGENTS), field="agent")
        if mode not in ("until_full", "one_action"):
            raise UnknownName.of("mode of decima", mode, ("until_full", "one_action"), field="mode")
        self.knowledge = knowledge or Knowledge()
        self._agent = agent
        self._mode = mode
        self._remainder = remainder
        self._network = network if checkpoint is None else Network.load(checkpoint)
        self._observer = Observer(Priors(self.knowledge))
        #: Applications of which a job has arrived, in that order.
        self._seen: dict[str, None] = {}
        self._revision = self.knowledge.revision
        #: Pool -> the order of this decision.
        self._order: dict[str, list[Pick]] = {}

    @property
    def network(self) -> Network:
        """What scores stages at the moment."""
        if self._network is not None:
            return self._network
        return network_of(agent_for(self._seen) if self._agent == "auto" else self._agent)

    def on(self, change: Change, view: View) -> None:
        match change:
            case JobArrived(job):
                self._seen[job.application.name] = None
            case JobChanged(job):
                self._observer.touch(job)
            case JobLeft(job):
                self._observer.touch(job)
                self._order = {}  # the next decision makes another; this one would keep the job alive
            case StageReady(stage):
                self._observer.touch(stage.job)
            case TaskStarted(task) | TaskEnded(task) | TaskReady(task):
                self._observer.touch(task.job)
            case _:
                pass

    def begin(self, view: View) -> None:
        if self._revision != self.knowledge.revision:
            self._revision = self.knowledge.revision
            self._observer = Observer(Priors(self.knowledge))
        self._order = {}
        jobs = self._jobs(view)
        if not jobs:
            return
        graph = self._observer.look(view, jobs)
        taken = np.zeros(len(graph.stages), dtype=np.int64)
        embedded = self._choose(graph, taken)
        order = np.argsort(-embedded.q, kind="stable") if self._remainder else np.arange(len(graph.stages))
        for node in order.tolist():
            stage = graph.stages[node]
            rest = stage.ready[int(taken[node]) :]
            if rest:
                self._emit(node, rest, graph, embedded)

    def picks(self, pool: str, view: View) -> Iterator[Pick]:
        planned = self._order.get(pool, [])
        yield from planned
        stages = view.ready_stages(pool)
        if len(view.jobs) > MOST_JOBS:
            known = {(pick.task.job.id, pick.task.stage.name) for pick in planned}
            late = [stage for stage in stages if (stage.job.id, stage.name) not in known]
            for stage in sorted(late, key=lambda s: (s.job.job_class, s.job.arrived_at, s.job.number, s.order)):
                yield from (Pick(task) for task in _tasks(stage.tasks, stage.ready))

    def _jobs(self, view: View) -> list[Job]:
        """Jobs the network looks at. With few jobs all, or else those with ready tasks that came first, by class."""
        if len(view.jobs) <= MOST_JOBS:
            return list(view.jobs.values())
        waiting = {stage.job.id: stage.job for stages in view.ready.values() for stage in stages.values()}
        first = sorted(waiting.values(), key=lambda job: (job.job_class, job.arrived_at, job.number))
        return list(islice(first, MOST_JOBS))

    def _choose(self, graph: Graph, taken: Array) -> Embedded:
        """Emits what is chosen while something can be; the last scores."""
        network = self.network
        while True:
            embedded = network.embed(graph)
            can = graph.choosable()
            if not can.any():
                return embedded
            # Classes are strict: only stages of the most urgent class that can start are looked at.
            node = self.stage(embedded, _most_urgent(graph, can), graph)
            options, features = graph.limits(node)
            limit = int(options[self.limit(network, embedded, graph, node, features)])
            pool = int(graph.pool[node])
            held = int(graph.held[graph.job_of[node], pool])
            tasks = min(int(graph.ready[node]), limit - held, int(graph.free[pool]))
            start = int(taken[node])
            self._emit(node, graph.stages[node].ready[start : start + tasks], graph, embedded)
            taken[node] += tasks
            graph.take(node, tasks)
            if self._mode == "one_action":
                return embedded

    def stage(self, embedded: Embedded, can: Array, graph: Graph) -> int:
        """The node to start next, of those that can: the one with the highest score, the first of equals."""
        return int(np.argmax(np.where(can, embedded.q, -np.inf)))

    def limit(self, network: Network, embedded: Embedded, graph: Graph, node: int, features: Array) -> int:
        """Which of the limits: the one with the highest score, the largest of equals."""
        return int(np.argmax(network.limit_scores(embedded, int(graph.job_of[node]), features)))

    def _emit(self, node: int, indices: list[int], graph: Graph, embedded: Embedded) -> None:
        stage = graph.stages[node]
        why = {"score": round(float(embedded.q[node]), 4)}
        picks = self._order.setdefault(stage.pool, [])
        picks += (Pick(task, why=why) for task in _tasks(stage.tasks, indices))


def _tasks(tasks: tuple[Task, ...] | None, indices: list[int]) -> list[Task]:
    assert tasks is not None
    return [tasks[index] for index in indices]


def _most_urgent(graph: Graph, can: Array) -> Array:
    """Of the nodes that can start, those of the earliest class."""
    classes = [int(graph.stages[node].job.job_class) for node in np.flatnonzero(can).tolist()]
    first = min(classes)
    if max(classes) == first:
        return can
    urgent = np.zeros_like(can)
    urgent[np.flatnonzero(can)[np.array(classes) == first]] = True
    return urgent
