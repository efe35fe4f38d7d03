"""A sum of decision trees in flat arrays, evaluated for many rows and all trees at once.

Nodes of all trees stand in one list; a leaf is a node that leads to itself. So a step is the same few gathers for every
(row, tree), and after as many steps as the deepest tree has levels all of them stand on their leaves.

A row goes right if its feature is larger than the threshold. Where a feature is NaN, LightGBM sends it one way or the
other, node by node: a node reads NaN either as -inf or as +inf, which goes the same way. Features are 32-bit floats,
and thresholds are rounded down to that, which no such feature can tell from the original.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from llmsched.profiler.history import Array
from llmsched.profiler.lengths.features import Rows

Index = npt.NDArray[np.intp]

#: Rows evaluated at a time: beyond the cache it gets slower.
_CHUNK = 256


@dataclass(frozen=True, slots=True)
class Trees:
    """roots: (trees,) nodes. feature: (nodes,), + width where NaN counts as +inf. left: (nodes,), the right child is
    the next one behind it. value: (nodes,), of leaves. depth: steps of the longest path.
    """

    width: int
    depth: int
    roots: Index
    feature: Index
    threshold: Rows
    left: Index
    value: Array

    def predict(self, rows: Rows) -> Array:
        """(n,) the sum over the trees."""
        parts = [self.value[self.leaves(rows[k : k + _CHUNK])].sum(axis=1) for k in range(0, len(rows), _CHUNK)]
        return np.concatenate(parts) if parts else np.empty(0)

    def leaves(self, rows: Rows) -> Index:
        """(n, trees) the leaf that each row comes to in each tree."""
        is_missing = np.isnan(rows)
        both = np.hstack([np.where(is_missing, -np.inf, rows), np.where(is_missing, np.inf, rows)])
        flat = both.astype(np.float32).ravel()
        start = (np.arange(len(rows)) * both.shape[1])[:, None]
        at = np.broadcast_to(self.roots, (len(rows), len(self.roots)))
        for _ in range(self.depth):
            at = self.left[at] + (flat[start + self.feature[at]] > self.threshold[at])
        return at

    @classmethod
    def of(cls, trees: Sequence[Mapping[str, Any]], width: int) -> Self:
        """From LightGBM's `dump_model()["tree_info"]` of a model without categorical features."""
        roots: list[int] = []
        nodes: list[tuple[int, float, int, float]] = []
        depths = [0]

        def place(at: int, node: Mapping[str, Any], depth: int) -> None:
            if "split_feature" not in node:
                depths.append(depth)
                nodes[at] = (0, np.inf, at, float(node["leaf_value"]))
                return
            assert node["decision_type"] == "<=", node["decision_type"]
            left = len(nodes)
            nodes.extend([(0, np.inf, left, 0.0), (0, np.inf, left + 1, 0.0)])
            shift = 0 if _nan_goes_left(node) else width
            nodes[at] = (node["split_feature"] + shift, _rounded_down(node["threshold"]), left, 0.0)
            place(left, node["left_child"], depth + 1)
            place(left + 1, node["right_child"], depth + 1)

        for tree in trees:
            roots.append(len(nodes))
            nodes.append((0, np.inf, len(nodes), 0.0))
            place(roots[-1], tree["tree_structure"], 0)
        feature, threshold, left, value = zip(*nodes, strict=True) if nodes else ((),) * 4
        return cls(
            width,
            max(depths),
            np.array(roots, dtype=np.intp),
            np.array(feature, dtype=np.intp),
            np.array(threshold, dtype=np.float32),
            np.array(left, dtype=np.intp),
            np.array(value, dtype=np.float32).astype(np.float64),
        )

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """As small as it goes: children relative to their parent, values as 32-bit floats."""
        return {
            "shape": np.array([self.width, self.depth]),
            "roots": self.roots.astype(np.int32),
            "feature": self.feature.astype(np.uint8 if 2 * self.width < 256 else np.uint16),
            "threshold": self.threshold,
            "left": (self.left - np.arange(len(self.left))).astype(np.int16),
            "value": self.value.astype(np.float32),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Self:
        """Reads what `to_arrays` made. Raises KeyError or ValueError for anything else."""
        width, depth = arrays["shape"].tolist()
        n = len(arrays["feature"])
        trees = cls(
            int(width),
            int(depth),
            arrays["roots"].astype(np.intp),
            arrays["feature"].astype(np.intp),
            arrays["threshold"].astype(np.float32),
            arrays["left"].astype(np.intp) + np.arange(n),
            arrays["value"].astype(np.float64),
        )
        inner = trees.threshold < np.inf
        lengths = {len(array) for array in (trees.threshold, trees.left, trees.value)}
        fits = lengths <= {n} and (not n or (trees.feature.max() < 2 * width and trees.left.max() < n))
        if not fits or (trees.left[inner] + 1 >= n).any() or (n and trees.left.min() < 0) or (trees.roots >= n).any():
            raise ValueError("its trees are damaged")
        return trees


def _nan_goes_left(node: Mapping[str, Any]) -> bool:
    """A node that never met NaN in training takes it for 0."""
    if node["missing_type"] == "NaN":
        return bool(node["default_left"])
    return bool(node["threshold"] >= 0.0)


def _rounded_down(threshold: float) -> float:
    """The largest 32-bit float that is not above it."""
    most = np.finfo(np.float32).max
    near = np.float32(min(threshold, float(most)))  # LightGBM splits NaN from everything else at the largest double
    return float(near if float(near) <= threshold else np.nextafter(near, np.float32(-np.inf)))
