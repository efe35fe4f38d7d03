"""Trains an agent: a warm start by copying, then PPO, with the best checkpoint on validation kept.

1. *Teacher*: whichever of the candidates (orders by the same means that the agent sees) has the shortest mean
   completion time on validation episodes. The agent copies its choices for a share of the budget (behaviour cloning).
2. *PPO*: per iteration, `SEQUENCES` arrival sequences × `ROLLOUTS` episodes each, in worker processes with the network
   in numpy; returns are differential, the baseline is the mean over the episodes of the same arrivals (`returns.py`).
   Episodes grow from few to many jobs over the first 60 % of the budget and are cut off at a random moment.
3. *Validation*: greedy runs on fixed sequences; the checkpoint with the shortest mean completion time is kept.

Everything is learned from, and validated on, jobs of the training part; nothing of the held-out part is touched.
Source: Decima (SIGCOMM 2019), section 5.3; Schulman et al., Proximal Policy Optimization (2017).
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from llmsched.policies.decima.network import Network
from llmsched.training.decima.episodes import Episode, Ground, mean_completion, play
from llmsched.training.decima.model import Batch, Choice, Model
from llmsched.training.decima.returns import baselines, differential_returns, rewards

#: Orders that know what the agent knows: means. The best of them is copied first.
TEACHERS = ("srtf-prior", "srpt:estimator=mean", "fcfs")
#: What the agent has to stand beside on validation: no worse than the first, within 10 % of the second.
BARS = ("fair", "srtf-prior")
WITHIN = 1.1

SEQUENCES, ROLLOUTS = 2, 4
MINIBATCH, EPOCHS = 512, 2
#: Choices of an iteration that are learned from, drawn at random: a gradient costs as much as several episodes.
MOST_CHOICES = 2560
CLIP, KL_STOP, NORM = 0.2, 0.02, 0.5
#: First and last values over the budget.
RATE_OF_LEARNING = (1e-3, 3e-4)
ENTROPY = (0.05, 0.001)
#: Share of the budget for copying, and over which episodes grow.
COPYING, GROWING = 0.3, 0.6
#: Seeds of validation are these; training uses others.
VALIDATION = (900_001, 900_002)


@dataclass(frozen=True)
class Plan:
    """How much is done. jobs: of an episode, first and last; of one on validation. loads: episodes are played at."""

    budget: float = 1200.0
    jobs: tuple[int, int] = (20, 80)
    validation_jobs: int = 100
    loads: tuple[float, ...] = (0.85, 1.0, 1.2)
    validate_every: int = 5
    processes: int = 2
    seed: int = 0


@dataclass
class Trained:
    """The best network, and mean completion times on validation: of the agent and of what it stands beside."""

    network: Network
    agent: float
    others: dict[str, float]
    teacher: str
    iterations: int = 0
    seconds: float = 0.0
    history: list[float] = field(default_factory=list)

    @property
    def is_trained(self) -> bool:
        """No worse than fair, and within 10 % of srtf-prior."""
        fair, prior = (self.others[name] for name in BARS)
        return self.agent <= fair and self.agent <= WITHIN * prior


class _Worker:
    ground: Ground


def _begin(ground: Ground) -> None:
    torch.set_num_threads(1)
    _Worker.ground = ground


def _play(network: Network, arguments: Mapping[str, Any]) -> Episode:
    return play(_Worker.ground, network, **arguments)


def _validate(policy: str, network: Network | None, jobs: int, load: float, seed: int) -> float:
    return mean_completion(_Worker.ground, policy, network, jobs=jobs, loads=(load,), seeds=(seed,))[0]


def train(ground: Ground, plan: Plan, say: Callable[[str], None]) -> Trained:
    """Trains for about `plan.budget` seconds. say: told a line now and then."""
    began = time.monotonic()
    torch.set_num_threads(max(1, min(plan.processes, os.cpu_count() or 1)))
    rng = np.random.default_rng(plan.seed)
    model = Model(plan.seed)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(plan.processes, context, _begin, (ground,)) as pool:

        def validate(policy: str, network: Network | None = None) -> float:
            cases = [(load, seed) for load in plan.loads for seed in VALIDATION]
            ends = [pool.submit(_validate, policy, network, plan.validation_jobs, *case) for case in cases]
            return float(np.mean([end.result() for end in ends]))

        others = {name: validate(name) for name in dict.fromkeys((*BARS, *TEACHERS))}
        teacher = min(TEACHERS, key=lambda name: others[name])
        say("validation: " + ", ".join(f"{name} {mean:.2f} s" for name, mean in others.items()))
        best = Trained(model.export(), np.inf, others, teacher)

        def consider(iterations: int) -> None:
            network = model.export()
            mean = validate("decima", network)
            best.history.append(round(mean, 3))
            if mean < best.agent:
                best.network, best.agent, best.iterations = network, mean, iterations
            say(f"{time.monotonic() - began:5.0f} s, iteration {iterations}: {mean:.2f} s, best {best.agent:.2f} s")

        _copy(model, pool, plan, teacher, began + COPYING * plan.budget, say)
        consider(0)
        optimizer = torch.optim.Adam(model.parameters(), lr=RATE_OF_LEARNING[0])
        iteration = 0
        after_copying = time.monotonic()
        span = max(1.0, began + plan.budget - after_copying)
        while (done := (time.monotonic() - after_copying) / span) < 1:
            iteration += 1
            for group in optimizer.param_groups:
                group["lr"] = _between(RATE_OF_LEARNING, done)
            episodes = _episodes(model.export(), pool, plan, done, rng)
            _improve(model, optimizer, episodes, _between(ENTROPY, done), rng)
            if iteration % plan.validate_every == 0:
                consider(iteration)
        if iteration % plan.validate_every:
            consider(iteration)
    best.seconds = time.monotonic() - began
    return best


def _between(ends: tuple[float, float], done: float) -> float:
    return ends[0] + (ends[1] - ends[0]) * min(1.0, done)


def _copy(
    model: Model, pool: ProcessPoolExecutor, plan: Plan, teacher: str, until: float, say: Callable[[str], None]
) -> None:
    """Behaviour cloning: makes the teacher's choices likely."""
    network = Network.zero()
    arguments = [
        {"jobs": plan.jobs[1], "load": load, "seed": 500_000 + k, "teacher": teacher}
        for k, load in enumerate(plan.loads * 2)
    ]
    ends = [pool.submit(_play, network, one) for one in arguments]
    choices = [Choice(*choice) for end in ends for choice in end.result().choices]
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    rng = np.random.default_rng(plan.seed)
    order = rng.permutation(len(choices))
    batches = [Batch.of([choices[i] for i in order[k : k + 128]]) for k in range(0, len(order), 128)]
    last, steps = 0.0, 0
    while time.monotonic() < until and steps < 60 * len(batches):
        log_probability, _, _ = model(batches[steps % len(batches)])
        loss = -log_probability.mean()
        last = float(loss.detach())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        steps += 1
    say(f"copied {teacher}: {len(choices)} choices, {steps} steps, loss {last:.3f}")


def _episodes(
    network: Network, pool: ProcessPoolExecutor, plan: Plan, done: float, rng: np.random.Generator
) -> list[list[Episode]]:
    """`SEQUENCES` times `ROLLOUTS` episodes of the same arrivals."""
    jobs = round(plan.jobs[0] + (plan.jobs[1] - plan.jobs[0]) * min(1.0, done / GROWING))
    groups = []
    for _ in range(SEQUENCES):
        load, seed = float(rng.choice(plan.loads)), int(rng.integers(1, 400_000))
        until = float(rng.exponential(1.5 * jobs)) + 0.5 * jobs  # seconds: jobs arrive about one a second
        groups.append(
            [
                pool.submit(
                    _play,
                    network,
                    {"jobs": jobs, "load": load, "seed": seed, "player": int(rng.integers(1 << 31)), "until": until},
                )
                for _ in range(ROLLOUTS)
            ]
        )
    return [[end.result() for end in group] for group in groups]


def advantages(group: Sequence[Episode]) -> list[np.ndarray[Any, Any]]:
    """Per episode of the same arrivals (k,): differential returns less their baseline.

    All are paid until the last of them is over; to its own end alone, whoever finishes later had more mean jobs added.
    """
    end = max(episode.end for episode in group)
    all_rewards = [rewards(e.lives, e.times, end) for e in group]
    mean_jobs = -sum(float(r.sum()) for r in all_rewards) / (end * len(group)) if end else 0.0
    returns = [differential_returns(r, e.times, end, mean_jobs) for r, e in zip(all_rewards, group, strict=True)]
    lines = baselines([e.times for e in group], returns)
    return [own - line for own, line in zip(returns, lines, strict=True)]


def _improve(
    model: Model,
    optimizer: torch.optim.Optimizer,
    groups: Sequence[Sequence[Episode]],
    entropy: float,
    rng: np.random.Generator,
) -> None:
    """PPO on the choices of these episodes."""
    groups = [[e for e in group if e.choices] for group in groups]
    choices = [Choice(*choice) for group in groups for e in group for choice in e.choices]
    if not choices:
        return
    worth = np.concatenate([a for group in groups for a in advantages(group)])
    worth = (worth - worth.mean()) / (worth.std() + 1e-6)
    for _ in range(EPOCHS):
        order = rng.permutation(len(choices))[:MOST_CHOICES]
        for k in range(0, len(order), MINIBATCH):
            some = order[k : k + MINIBATCH]
            log_probability, surprise, _ = model(Batch.of([choices[i] for i in some]))
            before = torch.tensor([choices[i].log_probability for i in some], dtype=torch.float32)
            advantage = torch.tensor(worth[some], dtype=torch.float32)
            ratio = (log_probability - before).exp()
            gain = torch.minimum(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage)
            loss = -gain.mean() - entropy * surprise.mean()
            if float((before - log_probability).detach().mean()) > KL_STOP:
                return
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), NORM)
            optimizer.step()
