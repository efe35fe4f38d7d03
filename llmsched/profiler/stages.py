"""The Bayesian network of an application: one variable per stage, and roots for what is known of the input.

In order, which is the order arcs may point in:

* roots: the variant (a name), every number known at submission, the prompt length of every first stage;
* one variable per stage of the template, in topological order. Of an LLM stage its output tokens over all tasks (A4),
  in bins of equal frequency, 0 for "not executed"; of a regular stage whether it runs; of a dynamic stage the work of
  its whole plan.

What a bin stands for in seconds is made on reading, from the history rows that fall into it. Work of plans is binned in
seconds of a fixed curve (`GENERIC_7B`), so that bins do not move with a calibration.
Source: LLMSched (arXiv:2504.03444), sections IV-B and IV-C; roots are ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from llmsched.errors import ProfileError
from llmsched.model.latency import GENERIC_7B
from llmsched.profiler.bins import Bins, Categories, States, bins_for
from llmsched.profiler.cases import Tables
from llmsched.profiler.evidence import ABSENT, OPEN, OVER, Evidence
from llmsched.profiler.history import NUMBERS, OUTPUT, PROMPT, SECONDS, TASKS, Array, History
from llmsched.profiler.network import Network, Score, Structure, learn

Role = Literal["variant", "number", "prompt", "llm", "regular", "plan"]

#: A regular stage that ran in no time ran all the same.
_INSTANT = 1e-6
#: A categorical root with more values than this is left out: its table would be larger than the history.
_MAX_VARIANTS = 20


class Variable(NamedTuple):
    """role: what it measures. at: the number of `NUMBERS`, else the first column of its stage. name: for people."""

    name: str
    role: Role
    at: int = 0

    @property
    def is_stage(self) -> bool:
        return self.role in ("llm", "regular", "plan")


@dataclass(frozen=True, slots=True, eq=False)
class StageNetwork:
    """A learned network with what its variables mean. bins: `Categories` for the variant, `Bins` for all others."""

    variables: tuple[Variable, ...]
    bins: tuple[Bins | Categories, ...]
    network: Network

    def states(self, history: History) -> States:
        """(n, variables), the states of finished jobs."""
        columns = [
            _states(bins, values) for bins, values in zip(self.bins, _values(history, self.variables), strict=True)
        ]
        return np.column_stack(columns)

    def read(self, evidence: Evidence, columns: Mapping[int, tuple[int, ...]]) -> tuple[dict[int, int], dict[int, int]]:
        """What a running job says of the variables: those known, with their state, and the lowest state of others.

        columns: first column of a stage -> all of them. A stage that is not over and runs is at least in state 1, and
        above what its finished tasks have produced.
        """
        known: dict[int, int] = {}
        at_least: dict[int, int] = {}
        for v, (variable, bins) in enumerate(zip(self.variables, self.bins, strict=True)):
            match variable.role:
                case "variant":
                    assert isinstance(bins, Categories)
                    if (state := bins.state(evidence.variant)) is not None:
                        known[v] = state
                    continue
                case "number":
                    assert isinstance(bins, Bins)
                    number = evidence.numbers[variable.at]
                    known[v] = 0 if number != number else bins.state(number)
                    continue
                case _:
                    pass
            assert isinstance(bins, Bins)
            state = evidence.pattern[variable.at]
            cost = evidence.costs[variable.at]
            if variable.role == "prompt":
                if state in (OPEN, OVER):
                    known[v] = bins.state(cost[PROMPT])
                continue
            if variable.role == "plan":
                own = [(evidence.pattern[k], evidence.costs[k]) for k in columns[variable.at]]
                if all(s in (OVER, ABSENT) for s, _ in own):
                    known[v] = bins.state(sum(nominal(c) for _, c in own))
                elif any(s == OPEN for s, _ in own):
                    at_least[v] = _lowest(bins, sum(nominal(c) for _, c in own))
                continue
            measured = cost[OUTPUT] if variable.role == "llm" else max(cost[SECONDS], _INSTANT)
            if state == ABSENT:
                known[v] = 0
            elif state == OVER:
                known[v] = min(1, bins.n_states - 1) if measured == 0 else bins.state(measured)
            elif state == OPEN:
                at_least[v] = _lowest(bins, measured if variable.role == "llm" else 0.0)
        return known, at_least

    def to_json(self) -> dict[str, Any]:
        return {
            "variables": [list(v) for v in self.variables],
            "bins": [b.to_json() for b in self.bins],
            "network": self.network.to_json(),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> StageNetwork:
        """Reads what `to_json` wrote. Raises ProfileError."""
        variables = tuple(Variable(name, role, at) for name, role, at in document["variables"])
        bins = tuple(Categories.from_json(b) if isinstance(b, list) else Bins.from_json(b) for b in document["bins"])
        network = Network.from_json(document["network"])
        if not len(variables) == len(bins) == len(network):
            raise ProfileError("the network of the profile has other variables than it describes; fit it again")
        return cls(variables, bins, network)


def learn_stages(
    tables: Tables,
    *,
    k_max: int | None = None,
    score: Score = "aic",
    structure: Structure = "search",
    smoothing: float = 0.1,
    roots: bool = True,
    fewest: int = 2,
) -> StageNetwork | None:
    """Learns the network of a history; None if fewer than `fewest` variables vary, for then it has nothing to say.

    k_max: positive bins per variable, by default 3 to 6 by the number of jobs. structure "template": arcs between
    stages that wait for each other. roots: whether the input's features are variables.
    """
    history = tables.history
    variables = [*(_roots(history) if roots else ()), *_stages(tables)]
    k_max = k_max or bins_for(len(history))
    bins: list[Bins | Categories] = []
    for variable, values in zip(variables, _values(history, variables), strict=True):
        if variable.role == "variant":
            bins.append(Categories.fit(history.variants))
        elif variable.role == "regular":
            bins.append(Bins.binary(values))
        else:
            bins.append(Bins.fit(values, k_max=k_max))
    states = np.column_stack([_states(b, values) for b, values in zip(bins, _values(history, variables), strict=True)])
    if sum(len(np.unique(column)) > 1 for column in states.T) < fewest:
        return None
    network = learn(
        states,
        [v.name for v in variables],
        [b.n_states for b in bins],
        slices=[0 if not v.is_stage else 1 + i for i, v in enumerate(variables)],
        roots=[i for i, v in enumerate(variables) if not v.is_stage],
        structure=structure,
        template=_template(tables, variables) if structure == "template" else (),
        score=score,
        smoothing=smoothing,
    )
    return StageNetwork(tuple(variables), tuple(bins), network)


def nominal(cost: list[float] | Array) -> float:
    """Seconds of a column's cost on the fixed curve that plans are binned with."""
    return float(GENERIC_7B.reference(cost[PROMPT], cost[OUTPUT]) + cost[SECONDS])


def _lowest(bins: Bins, value: float) -> int:
    """The lowest state of a stage that runs and has come to `value` so far."""
    return max(min(1, bins.n_states - 1), bins.first_above(value))


def _roots(history: History) -> Iterable[Variable]:
    if 1 < len(set(history.variants)) <= _MAX_VARIANTS:
        yield Variable("variant", "variant")
    for k, name in enumerate(NUMBERS):
        if np.isfinite(history.numbers[:, k]).any():
            yield Variable(name, "number", k)
    for stage, columns in history.layout.of_stage.items():
        if stage in history.layout.first and history.costs[:, columns[0], PROMPT].any():
            yield Variable(f"{stage}.prompt", "prompt", columns[0])


def _stages(tables: Tables) -> Iterable[Variable]:
    for stage, columns in tables.layout.of_stage.items():
        k = columns[0]
        role: Role = "plan" if tables.layout.columns[k].is_plan else "llm" if tables.is_llm[k] else "regular"
        yield Variable(stage, role, k)


def _values(history: History, variables: Iterable[Variable]) -> Iterable[Any]:
    """Of each variable the (n,) values of finished jobs: names for the variant, else numbers, 0 where there is none."""
    layout = history.layout
    for variable in variables:
        cost = history.costs[:, variable.at] if variable.role not in ("variant", "number") else history.costs[:, 0]
        match variable.role:
            case "variant":
                yield list(history.variants)
            case "number":
                numbers = history.numbers[:, variable.at]
                yield np.where(np.isfinite(numbers), numbers, 0.0)
            case "prompt":
                yield cost[:, PROMPT]
            case "llm":
                yield np.where(cost[:, TASKS] > 0, np.maximum(cost[:, OUTPUT], _INSTANT), 0.0)
            case "regular":
                yield np.where(cost[:, TASKS] > 0, np.maximum(cost[:, SECONDS], _INSTANT), 0.0)
            case "plan":
                columns = list(layout.of_stage[layout.columns[variable.at].stage])
                whole = history.costs[:, columns].sum(axis=1)
                prefill, decode = 1 / GENERIC_7B.prefill_tokens_per_s, GENERIC_7B.decode(1)
                yield whole[:, PROMPT] * prefill + whole[:, OUTPUT] * decode + whole[:, SECONDS]


def _states(bins: Bins | Categories, values: Any) -> States:
    return bins.states(values)


def _template(tables: Tables, variables: list[Variable]) -> Iterable[tuple[int, int]]:
    """The arcs of the application's DAG, and from every root to every stage."""
    at = {v.name: i for i, v in enumerate(variables) if v.is_stage}
    for v, variable in enumerate(variables):
        if not variable.is_stage:
            yield from ((v, child) for child in at.values())
        else:
            yield from ((at[parent], v) for parent in tables.layout.after.get(variable.name, ()) if parent in at)
