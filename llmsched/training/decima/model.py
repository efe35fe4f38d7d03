"""The network of `llmsched.policies.decima.network` in torch, for many graphs at once."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from llmsched.policies.decima.graph import DEPTH, Edges
from llmsched.policies.decima.network import EMBED, SHAPES, Network


class Choice(NamedTuple):
    """One choice of an episode, and what was seen. x: (n, FEATURES), limits: (k, 4), as in `Graph`.

    log_probability: of both parts, under the network that chose.
    """

    x: np.ndarray[Any, Any]
    starts: np.ndarray[Any, Any]
    job_of: np.ndarray[Any, Any]
    levels: list[Edges]
    can: np.ndarray[Any, Any]
    node: int
    limits: np.ndarray[Any, Any]
    limit: int
    log_probability: float
    at: float


class Batch(NamedTuple):
    """Several choices as one graph. edges: per level (parents, children). graph_of, node_of: whose job, whose node."""

    x: Tensor
    job_of: Tensor
    graph_of: Tensor
    node_of: Tensor
    edges: list[tuple[Tensor, Tensor]]
    can: Tensor
    node: Tensor
    limits: Tensor
    limit_of: Tensor
    limit_job: Tensor
    limit: Tensor

    @classmethod
    def of(cls, choices: Sequence[Choice]) -> Batch:
        sizes = np.array([len(c.x) for c in choices])
        jobs = np.array([len(c.starts) for c in choices])
        first_node, first_job = np.cumsum([0, *sizes])[:-1], np.cumsum([0, *jobs])[:-1]
        ranks = np.array([len(c.limits) for c in choices])
        first_limit = np.cumsum([0, *ranks])[:-1]
        edges: list[tuple[list[Any], list[Any]]] = [([], []) for _ in range(DEPTH)]
        for choice, start in zip(choices, first_node, strict=True):
            for level, (parents, starts, children) in enumerate(choice.levels):
                counts = np.diff(np.append(starts, len(children)))
                edges[level][0].append(np.repeat(parents, counts) + start)
                edges[level][1].append(children + start)
        number = np.arange(len(choices))
        chosen_jobs = np.array([c.job_of[c.node] for c in choices]) + first_job
        return cls(
            torch.from_numpy(np.concatenate([c.x for c in choices])),
            _ints(np.concatenate([c.job_of + s for c, s in zip(choices, first_job, strict=True)])),
            _ints(np.repeat(number, jobs)),
            _ints(np.repeat(number, sizes)),
            [(_ints(np.concatenate(p)), _ints(np.concatenate(c))) for p, c in edges if p],
            torch.from_numpy(np.concatenate([c.can for c in choices])),
            _ints(np.array([c.node for c in choices]) + first_node),
            torch.from_numpy(np.concatenate([c.limits for c in choices])),
            _ints(np.repeat(number, ranks)),
            _ints(np.repeat(chosen_jobs, ranks)),
            _ints(np.array([c.limit for c in choices]) + first_limit),
        )


class Model(nn.Module):
    """The parts of SHAPES. Weights are those of `Network`, transposed as torch has them."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.parts = nn.ModuleDict()
        for name, shape in SHAPES.items():
            layers: list[nn.Module] = []
            for before, after in itertools.pairwise(shape):
                layers += [nn.Linear(before, after), nn.LeakyReLU(0.2)]
            self.parts[name] = nn.Sequential(*layers[:-1])

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Of every choice the log probability of its stage and limit, (b,), and the entropy of the stage, (b,).

        Third: (b,) log probability of the stage alone.
        """
        part = self.parts
        h = part["prep"](batch.x)
        for parents, children in batch.edges:
            sums = torch.zeros_like(h).index_add(0, parents, part["f"](h[children]))
            reached = torch.zeros(len(h), 1).index_fill(0, parents, 1.0)
            h = h + part["g"](sums) * reached
        jobs, graphs = len(batch.graph_of), len(batch.node)
        y = torch.zeros(jobs, EMBED).index_add(0, batch.job_of, part["dag"](torch.cat([batch.x, h], 1)))
        z = torch.zeros(graphs, EMBED).index_add(0, batch.graph_of, part["glob"](y))
        q = part["q"](torch.cat([batch.x, h, y[batch.job_of], z[batch.node_of]], 1))[:, 0]
        q = q.masked_fill(~batch.can, -1e9)
        stage = _log_softmax(q, batch.node_of, graphs)
        w = part["w"](torch.cat([batch.limits, y[batch.limit_job], z[batch.limit_of]], 1))[:, 0]
        limit = _log_softmax(w, batch.limit_of, graphs)
        surprise = torch.where(batch.can, -stage.exp() * stage, 0.0)
        entropy = torch.zeros(graphs).index_add(0, batch.node_of, surprise)
        chosen = stage[batch.node]
        return chosen + limit[batch.limit], entropy, chosen

    def export(self, about: Mapping[str, Any] | None = None) -> Network:
        """The same network for numpy."""
        weights = {}
        for name, sequence in self.parts.items():
            linear = [layer for layer in sequence if isinstance(layer, nn.Linear)]
            for k, layer in enumerate(linear):
                weights[f"{name}.{k}.weight"] = layer.weight.detach().numpy().T.copy()
                weights[f"{name}.{k}.bias"] = layer.bias.detach().numpy().copy()
        return Network(weights, about)


def _log_softmax(scores: Tensor, group: Tensor, groups: int) -> Tensor:
    """Within each group."""
    top = torch.full((groups,), -torch.inf).scatter_reduce(0, group, scores.detach(), "amax")
    shifted = scores - top[group]
    total = torch.zeros(groups).index_add(0, group, shifted.exp())
    return shifted - total.log()[group]


def _ints(values: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64))
