"""Argus: stages first that unlock most, over all jobs, whatever their jobs are like.

The *influence* of a stage grows with how deep a graph hangs from it and how many stages wait for it:

    infl(sink) = 1;   infl(s) = max over children of infl + number of children
    key(stage) = (-infl, remaining tasks, arrival, …)

It is worked out once per template, on the padded DAG with a dynamic stage as one node, and for a job of its own once
its plan is known: the inner stages then stand in the place of the dynamic one. Influences of different templates are
compared as they are, so long padded chains win over jobs that are nearly over. That is Argus's known weakness.

mode "lexicographic": depth to the sink, then number of children, as LLMSched describes it. mode "profile": seconds of
mean work of the stage and all of its descendants; a job is sorted by the means as they were when it last changed.
tasks "desc": more remaining tasks first. restrict "unfinished": on what is not over of each job, always its own DAG.
Remaining tasks are all that are not done, running ones too: children wait for those as well. Which way they break ties
is not in the public code; fewer first unlock children sooner.
Source: Argus (IPDPS'21) and CGCL-codes/Argus; baseline of LLMSched (arXiv:2504.03444), section V; specification 5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from llmsched.errors import UnknownName
from llmsched.model.application import Application
from llmsched.model.job import Job, Stage, TaskState
from llmsched.model.kinds import StageKind
from llmsched.policies.base import Change, JobLeft, KeyPolicy, TaskEnded, View
from llmsched.profiler import Knowledge
from llmsched.profiler.prior import Priors

Mode = Literal["influence", "lexicographic", "profile"]
#: Name -> names of what it waits for.
Graph = Mapping[str, Sequence[str]]
#: More is earlier; compared from the left.
Rank = tuple[float, ...]

_VALUES = {
    "mode": ("influence", "lexicographic", "profile"),
    "tasks": ("asc", "desc"),
    "restrict": ("template", "unfinished"),
}


class Argus(KeyPolicy):
    """Most influence first, then fewest remaining tasks. Raises UnknownName for a value an option does not have."""

    def __init__(
        self,
        knowledge: Knowledge | None = None,
        mode: Mode = "influence",
        tasks: Literal["asc", "desc"] = "asc",
        restrict: Literal["template", "unfinished"] = "template",
    ) -> None:
        super().__init__()
        for option, value in (("mode", mode), ("tasks", tasks), ("restrict", restrict)):
            if value not in _VALUES[option]:
                raise UnknownName.of(f"value of {option}", str(value), _VALUES[option], field=option)
        self._knowledge = knowledge or Knowledge()
        self._priors = Priors(self._knowledge) if mode == "profile" else None
        self._mode = mode
        self._sign = 1 if tasks == "asc" else -1
        self._restrict = restrict
        #: (application, version) -> what was known of it, ranks of its stages.
        self._templates: dict[tuple[str, int], tuple[int, dict[str, Rank]]] = {}
        #: Job with a DAG of its own -> (stages, open stages, what was known), ranks.
        self._own: dict[str, tuple[tuple[int, int, int], dict[str, Rank]]] = {}

    def key(self, stage: Stage, view: View) -> tuple[float, ...]:
        remaining = len(stage.tasks or ()) - stage.done_tasks
        return *(-part for part in self.rank(stage)), self._sign * remaining

    def rank(self, stage: Stage) -> Rank:
        """(influence,), (depth, children) or (seconds,), by mode."""
        job = stage.job
        is_own = self._restrict == "unfinished" or len(job.stages) > len(job.application.stages)
        return (self._ranks_of_job(job) if is_own else self._ranks_of_template(job.application))[stage.name]

    def on(self, change: Change, view: View) -> None:
        super().on(change, view)
        match change:
            case TaskEnded(task) if task.state is TaskState.DONE and task.stage.ready:
                self._remove(task.stage)
                self._insert(task.stage, view)
            case JobLeft(job):
                self._own.pop(job.id, None)
            case _:
                pass

    def _ranks_of_template(self, application: Application) -> dict[str, Rank]:
        key, revision = (application.name, application.version), self._revision(application)
        known = self._templates.get(key)
        if known is None or known[0] != revision:
            ranks = self._ranks({s.name: s.after for s in application.stages}, self._template_seconds(application))
            known = self._templates[key] = revision, ranks
        return known[1]

    def _ranks_of_job(self, job: Job) -> dict[str, Rank]:
        # A plan brings stages, and is told when a stage is over: the two counts say whether the DAG changed.
        at = len(job.stages), job.open_stages, self._revision(job.application)
        known = self._own.get(job.id)
        if known is None or known[0] != at:
            graph = spliced(job)
            if self._restrict == "unfinished":
                graph = {name: after for name, after in graph.items() if not job.stages[name].is_over}
            known = self._own[job.id] = at, self._ranks(graph, self._job_seconds(job))
        return known[1]

    def _revision(self, application: Application) -> int:
        return 0 if self._priors is None else self._knowledge.revision_of(application.name)

    def _ranks(self, graph: Graph, seconds: Mapping[str, float]) -> dict[str, Rank]:
        match self._mode:
            case "influence":
                return influences(graph)
            case "lexicographic":
                return depths(graph)
            case "profile":
                return downstream(graph, seconds)

    def _template_seconds(self, application: Application) -> dict[str, float]:
        if self._priors is None:
            return {}
        return {name: stage.total for name, stage in self._priors[application].stages.items()}

    def _job_seconds(self, job: Job) -> dict[str, float]:
        if self._priors is None:
            return {}
        prior = self._priors[job.application]
        own = (s for s in job.stages.values() if s.name not in prior.stages)
        each = {s.name: prior.each(s.name, s.spec.parent, s.spec.candidate) * len(s.tasks or ()) for s in own}
        return self._template_seconds(job.application) | each


# --------------------------------------------------------------------------------------------------------- graphs


def spliced(job: Job) -> dict[str, list[str]]:
    """The job's DAG as far as it is known: a plan in the place of its dynamic stage. An empty plan changes nothing."""
    inner: dict[str, list[str]] = {}
    for stage in job.stages.values():
        if stage.spec.parent is not None:
            inner.setdefault(stage.spec.parent, []).append(stage.name)
    inside = {parent for stage in job.stages.values() if stage.spec.parent is not None for parent in stage.spec.after}
    ends = {dynamic: [name for name in names if name not in inside] for dynamic, names in inner.items()}
    return {
        stage.name: [name for parent in stage.spec.after for name in ends.get(parent, (parent,))]
        for stage in job.stages.values()
        if not (stage.kind is StageKind.DYNAMIC and stage.name in inner)
    }


def influences(graph: Graph) -> dict[str, Rank]:
    """(influence,) of every stage.

    >>> influences({"s0": [], "s1": ["s0"], "s2": ["s0"], "s3": ["s1", "s2"]})
    {'s0': (4,), 's1': (2,), 's2': (2,), 's3': (1,)}
    """
    children = _children(graph)
    ranks: dict[str, float] = {}
    for name in _sinks_first(graph, children):
        ranks[name] = max((ranks[c] for c in children[name]), default=1) + len(children[name])
    return {name: (ranks[name],) for name in graph}


def depths(graph: Graph) -> dict[str, Rank]:
    """(stages to the farthest sink, number of children) of every stage."""
    children = _children(graph)
    ranks: dict[str, Rank] = {}
    for name in _sinks_first(graph, children):
        ranks[name] = max((ranks[c][0] + 1 for c in children[name]), default=0), len(children[name])
    return ranks


def downstream(graph: Graph, seconds: Mapping[str, float]) -> dict[str, Rank]:
    """(seconds of the stage and its distinct descendants,) of every stage."""
    children = _children(graph)
    number = {name: k for k, name in enumerate(graph)}
    costs = [seconds.get(name, 0.0) for name in graph]
    #: One bit per stage: sets of descendants as whole numbers.
    below: dict[str, int] = {}
    for name in _sinks_first(graph, children):
        below[name] = 1 << number[name]
        for child in children[name]:
            below[name] |= below[child]
    return {name: (sum(cost for k, cost in enumerate(costs) if below[name] >> k & 1),) for name in graph}


def _children(graph: Graph) -> dict[str, list[str]]:
    children: dict[str, list[str]] = {name: [] for name in graph}
    for name, after in graph.items():
        for parent in dict.fromkeys(after):
            if parent in children:
                children[parent].append(name)
    return children


def _sinks_first(graph: Graph, children: Mapping[str, Sequence[str]]) -> list[str]:
    """Every stage after its children."""
    waiting = {name: len(after) for name, after in children.items()}
    order = [name for name, count in waiting.items() if not count]
    for name in order:  # grows while it is walked
        for parent in dict.fromkeys(graph[name]):
            if parent in waiting:
                waiting[parent] -= 1
                if not waiting[parent]:
                    order.append(parent)
    assert len(order) == len(graph), f"a cycle in {graph}"
    return order
