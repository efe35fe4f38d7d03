"""Episodes: some jobs on machines made for a load, ordered by a policy that samples its choices or copies a teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from llmsched.model.application import Application
from llmsched.model.latency import LatencyCurve
from llmsched.policies.base import Change, Policy, View
from llmsched.policies.decima.graph import Graph
from llmsched.policies.decima.network import Embedded, Network
from llmsched.policies.decima.policy import Decima
from llmsched.profiler import Knowledge, Truth
from llmsched.scheduler import Scheduler
from llmsched.simulator.experiment import Choice, Sizing, Work, size
from llmsched.simulator.world import Setup, World
from llmsched.training.decima.returns import Floats
from llmsched.workloads import Arrival, Workload

#: Arrival rate for which machines are made, jobs per second.
RATE = 0.9


@dataclass(frozen=True)
class Ground:
    """What episodes are played on. workload: of the training jobs; knowledge: means of the same jobs."""

    workload: Workload
    applications: Mapping[str, Application]
    curve: LatencyCurve
    knowledge: Knowledge
    work: Work

    def sizing(self, load: float) -> Sizing:
        return size(self.work, RATE, load, self.curve)

    def arrivals(self, jobs: int, load: float, seed: int) -> list[Arrival]:
        return self.workload.arrivals(jobs, self.sizing(load).rate, seed)


class Episode(NamedTuple):
    """choices: `model.Choice`, without torch. lives: (arrival, end) of every job, `end` where it was cut off."""

    choices: list[Any]
    lives: list[tuple[float, float]]
    end: float

    @property
    def times(self) -> Floats:
        return np.array([choice[-1] for choice in self.choices])


class _Over(Exception):
    pass


class Sampler(Decima):
    """Samples from the network's probabilities and writes down what it saw and chose. until: seconds it plays."""

    def __init__(self, knowledge: Knowledge, network: Network, seed: int, until: float = np.inf) -> None:
        super().__init__(knowledge, network=network)
        self._rng = np.random.default_rng(seed)
        self._until = until
        self._now = 0.0
        self._half: tuple[Any, ...] = ()
        self.choices: list[Any] = []

    def begin(self, view: View) -> None:
        if view.now > self._until:
            raise _Over
        self._now = view.now
        super().begin(view)

    def stage(self, embedded: Embedded, can: Any, graph: Graph) -> int:
        nodes = np.flatnonzero(can)
        node, log_probability = self._draw(embedded.q[nodes])
        chosen = int(nodes[node])
        # Copies: the graph goes on changing while slots are free.
        seen = (graph.features(), graph.starts.copy(), graph.job_of, graph.levels, can.copy())
        self._half = (*seen, chosen, log_probability)
        return chosen

    def limit(self, network: Network, embedded: Embedded, graph: Graph, node: int, features: Any) -> int:
        scores = network.limit_scores(embedded, int(graph.job_of[node]), features)
        limit, log_probability = self._draw(scores)
        *seen, chosen, so_far = self._half
        self.choices.append((*seen, chosen, features, limit, so_far + log_probability, self._now))
        return limit

    def _draw(self, scores: Any) -> tuple[int, float]:
        p = np.exp(scores.astype(float) - scores.max())
        p /= p.sum()
        k = int(self._rng.choice(len(p), p=p))
        return k, float(np.log(p[k]))


class Copier(Sampler):
    """Writes down what a teacher would choose: its first stage of those that can start, and all slots it can have."""

    def __init__(self, knowledge: Knowledge, network: Network, teacher: str, until: float = np.inf) -> None:
        super().__init__(knowledge, network, 0, until)
        self._teacher = Choice.parse(teacher).make(knowledge, Truth({}), 0)

    def on(self, change: Change, view: View) -> None:
        super().on(change, view)
        self._teacher.on(change, view)

    def begin(self, view: View) -> None:
        self._teacher.begin(view)
        #: Stage -> its place in the teacher's order, pools one after the other.
        picks = [pick for pool in view.ready for pick in self._teacher.picks(pool, view)]
        self._place = {(pick.task.job.id, pick.task.stage.name): k for k, pick in reversed(list(enumerate(picks)))}
        super().begin(view)

    def stage(self, embedded: Embedded, can: Any, graph: Graph) -> int:
        super().stage(embedded, can, graph)
        nodes = np.flatnonzero(can).tolist()
        chosen = min(nodes, key=lambda node: self._place[graph.stages[node].job.id, graph.stages[node].name])
        self._half = (*self._half[:-2], chosen, 0.0)
        return int(chosen)

    def limit(self, network: Network, embedded: Embedded, graph: Graph, node: int, features: Any) -> int:
        *seen, chosen, _ = self._half
        self.choices.append((*seen, chosen, features, 0, 0.0, self._now))  # limits stand largest first
        return 0


def play(
    ground: Ground,
    network: Network,
    *,
    jobs: int,
    load: float,
    seed: int,
    player: int = 0,
    until: float = np.inf,
    teacher: str | None = None,
) -> Episode:
    """One episode. seed: of jobs and arrivals; player: of the choices; teacher: whose choices are taken instead."""
    if teacher is None:
        policy = Sampler(ground.knowledge, network, player, until)
    else:
        policy = Copier(ground.knowledge, network, teacher, until)
    arrivals = ground.arrivals(jobs, load, seed)
    world = _world(ground, Scheduler(policy), arrivals, load)
    try:
        world.run()
        end = world.makespan
    except _Over:
        end = until
    ends = {finished.number: finished.finished_at for finished in world.finished}
    lives = [(arrival.at, ends.get(k, end)) for k, arrival in enumerate(arrivals) if arrival.at < end]
    return Episode(policy.choices, lives, end)


def mean_completion(
    ground: Ground, policy: str, network: Network | None, *, jobs: int, loads: Sequence[float], seeds: Sequence[int]
) -> list[float]:
    """Mean completion time of each (load, seed) under a policy, or greedily under a network."""
    means = []
    for load in loads:
        for seed in seeds:
            order: Policy = Choice.parse(policy).make(ground.knowledge, Truth({}), 0)
            if network is not None:
                order = Decima(ground.knowledge, network=network)
            world = _world(ground, Scheduler(order), ground.arrivals(jobs, load, seed), load).run()
            means.append(float(np.mean([finished.completion_time for finished in world.finished])))
    return means


def _world(ground: Ground, scheduler: Scheduler, arrivals: Sequence[Arrival], load: float) -> World:
    sizing = ground.sizing(load)
    setup = Setup(sizing.engines, sizing.workers, ground.curve, sizing.llm_pool)
    return World(scheduler, arrivals, ground.applications, setup)
