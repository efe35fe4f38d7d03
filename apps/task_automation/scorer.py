"""How well a plan matches TaskBench's: the mean of node F1 and edge F1, the two scores of its tool invocation."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

Link = tuple[str, str]


def score(result: Any, reference: Any) -> float:
    """The mean of node F1 and edge F1 of the plan in a job's result, from 0 to 1.

    Nodes are the tools' names, edges the pairs of names of which one uses the other's output; both are sets, as in
    TaskBench's evaluation, which makes one F1 of a whole file where this is of a sample. Where neither graph has edges
    the score is node F1 alone. Without a reference, or a plan, it is 0.
    """
    if not isinstance(reference, Mapping) or not isinstance(result, Mapping) or not result.get("plan"):
        return 0.0
    stages = result["plan"]
    tool_of = {stage["name"]: _plain(stage["candidate"]) for stage in stages}
    made = {(tool_of[p], tool_of[stage["name"]]) for stage in stages for p in _waits_for(stage, tool_of)}
    wanted = {(_plain(source), _plain(target)) for source, target in reference["links"]}
    nodes = f1(tool_of.values(), map(_plain, reference["nodes"]))
    return (nodes + f1(made, wanted)) / 2 if made or wanted else nodes


def f1(made: Iterable[str | Link], wanted: Iterable[str | Link]) -> float:
    """The harmonic mean of precision and recall of a set.

    >>> f1(["a", "b", "c"], ["a", "b"])  # precision 2/3, recall 1
    0.8
    """
    ours, theirs = set(made), set(wanted)
    return 2 * len(ours & theirs) / (len(ours) + len(theirs)) if ours or theirs else 1.0


def _waits_for(stage: Mapping[str, Any], names: Iterable[str]) -> set[str]:
    """The stages whose outputs a stage uses: those in its `after`, and those its arguments refer to."""
    told = {name for text in stage["arguments"].values() for name in re.findall(r"\$\{?(\w+)", str(text))}
    return {*stage["after"], *told}.intersection(names)


def _plain(name: str) -> str:
    """Some of TaskBench's files write tools with underscores."""
    return name.replace("_", " ")
