"""Decima's network in numpy: a checkpoint in, scores out. `llmsched.training.decima.model` is the same in torch.

    h_v = prep(x_v);  level by level from the sinks:  h_v += g(sum over children u of f(h_u))
    y_i = sum over nodes v of job i of dag(x_v, h_v);   z = sum over jobs i of glob(y_i)
    stage score q(x_v, h_v, y_i, z);   limit score w(job, y_i, z) with what `Graph.limits` says of a limit

prep, f, g, dag, glob: two hidden layers (16, 8), 8 out. q, w: three (32, 16, 8), 1 out. LeakyReLU with 0.2 between.
Source: Decima, section 5.1 and Fig. 5; sizes of hongzimao/decima-sim.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from llmsched.errors import InvalidInput
from llmsched.policies.decima.graph import FEATURES, Floats, Graph

#: Width of an embedding.
EMBED = 8
#: Layers of every part of the network, input first.
SHAPES: Mapping[str, tuple[int, ...]] = {
    "prep": (FEATURES, 16, 8, EMBED),
    "f": (EMBED, 16, 8, EMBED),
    "g": (EMBED, 16, 8, EMBED),
    "dag": (FEATURES + EMBED, 16, 8, EMBED),
    "glob": (EMBED, 16, 8, EMBED),
    "q": (FEATURES + 3 * EMBED, 32, 16, 8, 1),
    "w": (4 + 2 * EMBED, 32, 16, 8, 1),
}
_SLOPE = np.float32(0.2)

Weights = Mapping[str, Floats]


class Embedded(NamedTuple):
    """What the network made of a graph. q: (n,) stage scores. y: (m, EMBED) jobs. z: (EMBED,) everything."""

    q: Floats
    y: Floats
    z: Floats


class Network:
    """weights: `<part>.<layer>.weight` (in, out) and `.bias` (out,) of every part. about: how they came to be."""

    def __init__(self, weights: Weights, about: Mapping[str, Any] | None = None) -> None:
        self.about = dict(about or {})
        self._parts = {
            part: [
                (
                    np.asarray(weights[f"{part}.{k}.weight"], np.float32),
                    np.asarray(weights[f"{part}.{k}.bias"], np.float32),
                )
                for k in range(len(shape) - 1)
            ]
            for part, shape in SHAPES.items()
        }

    @classmethod
    def zero(cls) -> Network:
        """All weights 0: every choice is the first one, which is FCFS."""
        weights: dict[str, Floats] = {}
        for part, shape in SHAPES.items():
            for k, (before, after) in enumerate(itertools.pairwise(shape)):
                weights[f"{part}.{k}.weight"] = np.zeros((before, after), np.float32)
                weights[f"{part}.{k}.bias"] = np.zeros(after, np.float32)
        return cls(weights)

    @classmethod
    def load(cls, path: str) -> Network:
        """Reads a checkpoint. Raises InvalidInput for a file that is none."""
        try:
            with np.load(path, allow_pickle=False) as file:
                weights = {name: file[name] for name in file.files if name != "about"}
                network = cls(weights, json.loads(str(file["about"])))
        except (OSError, KeyError, ValueError) as cause:
            raise InvalidInput(f"{path} is no checkpoint of decima ({cause}); make one with llmsched train") from None
        for part, shape in SHAPES.items():
            layers = [layer[0].shape for layer in network._parts[part]]
            if layers != list(itertools.pairwise(shape)):
                raise InvalidInput(f"{path} is a checkpoint of another network ({part} is {layers}); train it again")
        return network

    def save(self, path: str) -> None:
        """Writes a checkpoint; numpy adds `.npz` to a name that ends otherwise."""
        arrays: dict[str, Any] = {}
        for part, layers in self._parts.items():
            for k, (weight, bias) in enumerate(layers):
                arrays |= {f"{part}.{k}.weight": weight, f"{part}.{k}.bias": bias}
        np.savez_compressed(path, about=np.array(json.dumps(self.about)), **arrays)

    def embed(self, graph: Graph) -> Embedded:
        """Scores of all stages, and embeddings of the jobs."""
        x = graph.features()
        h = self._part("prep", x)
        for parents, starts, children in graph.levels:
            h[parents] += self._part("g", np.add.reduceat(self._part("f", h[children]), starts, axis=0))
        y = np.add.reduceat(self._part("dag", np.hstack([x, h])), graph.starts, axis=0)
        z = self._part("glob", y).sum(axis=0)
        wide = np.broadcast_to(z, (len(x), EMBED))
        q = self._part("q", np.hstack([x, h, y[graph.job_of], wide]))[:, 0]
        return Embedded(q, y, z)

    def limit_scores(self, embedded: Embedded, job: int, limits: Floats) -> Floats:
        """(k,) of what `Graph.limits` says of k limits."""
        context = np.concatenate([embedded.y[job], embedded.z])
        return self._part("w", np.hstack([limits, np.broadcast_to(context, (len(limits), 2 * EMBED))]))[:, 0]

    def _part(self, name: str, values: Floats) -> Floats:
        layers = self._parts[name]
        for k, (weight, bias) in enumerate(layers):
            values = values @ weight + bias
            if k < len(layers) - 1:
                values = np.maximum(values, _SLOPE * values)
        return values
