"""How LLMSched is read where the paper leaves something open, as far as beliefs are concerned.

The numbers A1 … A42 are those of the table of ambiguities in docs/policies.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Literal

from llmsched.profiler.information import Mode
from llmsched.profiler.network import Score, Structure


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One choice per ambiguity; the defaults are what `llmsched` uses."""

    #: A1: what X tells about: stages behind any directed path, behind a single arc, or all it is not d-separated from.
    corr: Literal["path", "arc", "dependent"] = "path"
    #: A3: how the network is learned. Anything but these defaults learns it anew from the history of the profile.
    score: Score = "aic"
    structure: Structure = "search"
    smoothing: float = 0.1
    #: At most so many bins of positive durations; 0: by the number of jobs.
    k_max: int = 0
    #: Whether what is known of a job's input is in the network (ours).
    roots: bool = True
    #: A5: what a bin stands for: the mean of its samples, or the middle between its ends.
    rep: Literal["mean", "midpoint"] = "mean"
    #: A6: what finished LLM tasks count for: their reference work, or the seconds they took in their batch.
    measure: Literal["reference", "wall"] = "reference"
    #: A8: whether Eq. 2 scales prefill too.
    prefill: Literal["additive", "scaled"] = "additive"
    #: A9: whether Eq. 2 scales ranges.
    calibrated_ranges: bool = True
    #: A10: whose plans Eq. 4 counts: those of all jobs, or of jobs of the same variant.
    plan_entropy: Literal["all", "variant"] = "all"
    #: A11: weight of the dynamic term.
    dyn_weight: float = 1.0
    #: A13, A14: information about all Y together, the sum over single Y, or sampled where Y has too many states.
    mi: Mode = "joint"
    #: A15: whether to be ready or to run is evidence that a stage executes.
    executed: bool = True
    #: A16: which Y count: stages of which no task was dispatched, or all that are not over.
    informs: Literal["unscheduled", "unfinished"] = "unscheduled"
    #: A17: Range(Y): of the central 90 %, of states with P >= theta, of all states ever seen, or a standard deviation.
    range: Literal["q05_q95", "theta", "prior", "std"] = "q05_q95"
    theta: float = 0.02
    #: A18: what a regular stage takes: its mean, or anything between the extremes of the history.
    range_regular: Literal["mean", "extremes"] = "mean"
    #: A19: what a plan may cost: between the extremes of the history, or between its 5 % and 95 % quantiles.
    range_dynamic: Literal["extremes", "q05_q95"] = "extremes"
    #: A20: who gets the dynamic term: the planner, or also what tells about the planner, by the share it tells.
    dynamic_term: Literal["planner", "ancestors"] = "planner"
    #: A22: what a job's interval is of: what remains (central 90 %, P >= theta, central 50 %), or all of it.
    interval: Literal["q05_q95", "remaining", "iqr", "total"] = "q05_q95"
    #: A30: whether a sample of r of a stage's tasks, once done, stands for all of them.
    sampled: bool = True
    #: A29: the share of a stage's tasks that is a sample of it.
    r: float = 0.3
    #: A32: whether states that a running LLM stage has outlived are ruled out.
    evidence: Literal["completed", "censored"] = "completed"
    #: A42: whether X is also worth what it reveals about stages right behind it executing at all.
    structural: bool = False

    def quota(self, tasks: int) -> int:
        """How many of so many tasks are a sample (A29): a share r of them, at least one.

        >>> Reading(r=0.3).quota(10), Reading(r=0.3).quota(11), Reading(r=0.0).quota(5)
        (3, 4, 1)
        """
        return max(1, ceil(self.r * tasks - 1e-9))

    @property
    def learns_anew(self) -> bool:
        """Whether this asks for another network than profiles have."""
        return (self.score, self.structure, self.smoothing, self.k_max, self.roots) != ("aic", "search", 0.1, 0, True)
