"""`magnus` and `hrrn`: the batch of LLM calls with the highest response ratio next, made of calls of like length.

    ratio = wait of the oldest member / (prefill of all members + G l(size))

with G the longest predicted answer. Calls are gathered by *wasted memory access*, what a batch that is padded to its
longest prompt L and to G reads in vain:

    WMA = max over members p of  g_p (L - l_p) + sum_{k = g_p + 1..G} (L + k)
        = G L + G (G + 1) / 2 - min over members p of  (g_p l_p + g_p (g_p + 1) / 2)

A ready call joins the waiting batch whose WMA is then smallest, if it is below `phi` and the batch smaller than an
engine's slots; else it opens one. A batch that has begun takes no more. On paged engines with continuous batching
nothing is padded: WMA is here a measure of likeness, no more, and a batch is only a place in the queue. `hrrn` is the
natural form under continuous batching: each call is a batch of its own. Ratios change with time, so they are taken anew
at each decision, O(batches).

Where the source is left: serving times come from the latency curve instead of nearest neighbours, lengths from trees
instead of a random forest, and memory limits no batch. Regular tasks go in the order of their jobs' arrival.
Source: Cheng et al., Enabling Efficient Batch Serving for LMaaS via Generation Length Prediction (2024; Magnus);
Brinch Hansen (1971) for HRRN; specification 11.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from llmsched.errors import UnknownName
from llmsched.model.events import JobClass, TaskRef
from llmsched.model.job import Stage, Task, TaskState
from llmsched.model.kinds import StageKind
from llmsched.policies.base import (
    Change,
    JobLeft,
    Pick,
    StageDrained,
    StageReady,
    TaskReady,
    TaskStarted,
    View,
)
from llmsched.policies.fcfs import Fcfs
from llmsched.policies.predicted import positive
from llmsched.profiler import Knowledge
from llmsched.profiler.lengths import Model, Predictions

Mode = Literal["batch", "request"]

#: No call is expected to take less, seconds.
_LEAST = 0.001


def wma(prompts: list[int], answers: list[int]) -> int:
    """Wasted memory accesses of a batch, in tokens read; by the closed form above.

    >>> wma([100, 110], [50, 60]), wma([100, 110, 100], [50, 60, 500])
    (2155, 173975)
    """
    least = min(_read(length, answer) for length, answer in zip(prompts, answers, strict=True))
    return _read(max(prompts), max(answers)) - least


def _read(prompt: int, answer: int) -> int:
    return answer * prompt + answer * (answer + 1) // 2


class _Member(NamedTuple):
    """prompt, answer: tokens, the second predicted. place: submission order."""

    task: Task
    prompt: int
    answer: int
    place: tuple[float, int, int, int]


class _Batch:
    """Calls that wait as one. least: of the members, what each reads by itself."""

    __slots__ = ("answer", "has_begun", "least", "members", "oldest", "place", "prompt", "prompts")

    def __init__(self) -> None:
        self.members: dict[TaskRef, _Member] = {}
        self.has_begun = False

    def add(self, member: _Member) -> None:
        self.members[member.task.ref] = member
        self._sum_up()

    def remove(self, ref: TaskRef) -> None:
        del self.members[ref]
        if self.members:
            self._sum_up()

    def wma_with(self, member: _Member) -> int:
        """WMA if the member joined."""
        least = min(self.least, _read(member.prompt, member.answer))
        return _read(max(self.prompt, member.prompt), max(self.answer, member.answer)) - least

    def _sum_up(self) -> None:
        members = self.members.values()
        self.prompt = max(m.prompt for m in members)
        self.answer = max(m.answer for m in members)
        self.prompts = sum(m.prompt for m in members)
        self.least = min(_read(m.prompt, m.answer) for m in members)
        self.oldest = min(m.task.ready_at for m in members)
        self.place = min(m.place for m in members)


class Magnus:
    """Highest response ratio next. mode "request": each call is a batch. phi: WMA that no batch reaches, tokens.

    knowledge: whose latency curves turn tokens into seconds. Explains itself by `ratio` and `batch` (its size).
    """

    keeps_classes = True
    #: Whoever runs this policy should say what prompts are like (`Task.text`).
    reads_prompts = True

    def __init__(
        self,
        lengths: Model | None = None,
        knowledge: Knowledge | None = None,
        mode: Mode = "batch",
        phi: float = 50_000,
    ) -> None:
        if mode not in ("batch", "request"):
            raise UnknownName.of("mode", str(mode), ("batch", "request"), field="mode")
        self._predictions = Predictions(lengths)
        self._knowledge = knowledge or Knowledge()
        self._is_batching = mode == "batch"
        self._phi = positive("phi", phi)
        #: Pool and class -> waiting batches by number, in the order in which they were opened.
        self._batches: dict[tuple[str, JobClass], dict[int, _Batch]] = {}
        #: Stage -> task -> the number of its batch.
        self._places: dict[tuple[str, str], dict[int, int]] = {}
        self._opened = 0
        self._regular = Fcfs()

    def on(self, change: Change, view: View) -> None:
        match change:
            case StageReady(stage) if stage.kind is StageKind.LLM:
                assert stage.tasks is not None, stage
                for index in stage.ready:
                    self._insert(stage.tasks[index], view)
            case TaskReady(task) if task.stage.kind is StageKind.LLM:
                self._insert(task, view)
            case TaskStarted(task) if task.stage.kind is StageKind.LLM:
                batch = self._remove(task.stage, task.index)
                if batch is not None:
                    batch.has_begun = True
            case StageDrained(stage) if stage.kind is StageKind.LLM:
                assert stage.tasks is not None, stage
                for index in list(self._places.get((stage.job.id, stage.name), ())):
                    batch = self._remove(stage, index)
                    if batch is not None and stage.tasks[index].state is TaskState.RUNNING:
                        batch.has_begun = True
            case StageReady() | StageDrained():
                self._regular.on(change, view)
            case JobLeft(job):
                self._predictions.forget(job.id)
            case _:
                pass

    def begin(self, view: View) -> None:
        """Nothing to do: ratios are taken when they are asked for."""

    def picks(self, pool: str, view: View) -> Iterator[Pick]:
        if not any((pool, job_class) in self._batches for job_class in JobClass):
            return self._regular.picks(pool, view)
        calls = self._calls(pool, view)
        regular = list(self._regular.picks(pool, view))
        return iter(sorted([*regular, *calls], key=lambda pick: pick.task.job.job_class)) if regular else calls

    def _calls(self, pool: str, view: View) -> Iterator[Pick]:
        for job_class in JobClass:
            batches = self._batches.get((pool, job_class), {}).values()
            rated = [(-self._ratio(batch, pool, view.now), batch.place, batch) for batch in batches]
            rated.sort(key=lambda entry: entry[:2])
            for negated, _, batch in rated:
                why = {"ratio": round(-negated, 4), "batch": len(batch.members)}
                for member in sorted(batch.members.values(), key=lambda m: (m.answer, m.place)):
                    yield Pick(member.task, priority=round(1000 / (1.0 - negated)), why=why)

    def _ratio(self, batch: _Batch, pool: str, now: float) -> float:
        curve = self._knowledge.curves[pool]
        seconds = curve.prefill(batch.prompts) + batch.answer * curve.decode(len(batch.members))
        return max(0.0, now - batch.oldest) / max(_LEAST, seconds)

    # -------------------------------------------------------------------------------------------------- batches

    def _insert(self, task: Task, view: View) -> None:
        stage, job = task.stage, task.job
        place = (job.arrived_at, job.number, stage.order, task.index)
        member = _Member(task, task.prompt_tokens, round(self._predictions.tokens(task)), place)
        batches = self._batches.setdefault((stage.pool, job.job_class), {})
        number = self._joined(member, batches, view) if self._is_batching else None
        if number is None:
            number = self._opened = self._opened + 1
            batches[number] = _Batch()
        batches[number].add(member)
        self._places.setdefault((job.id, stage.name), {})[task.index] = number

    def _joined(self, member: _Member, batches: dict[int, _Batch], view: View) -> int | None:
        """The waiting batch that wastes least with the member in it, the oldest of equals; None: it needs its own."""
        most = max((e.slots for e in view.in_pool(member.task.pool)), default=1)
        best, least = None, self._phi
        for number, batch in batches.items():
            if not batch.has_begun and len(batch.members) < most and (waste := batch.wma_with(member)) < least:
                best, least = number, waste
                if not waste:
                    break
        return best

    def _remove(self, stage: Stage, index: int) -> _Batch | None:
        key = (stage.job.id, stage.name)
        places = self._places.get(key, {})
        number = places.pop(index, None)
        if number is None:
            return None
        if not places:
            del self._places[key]
        queue = stage.pool, stage.job.job_class
        batch = self._batches[queue][number]
        batch.remove(TaskRef(stage.job.id, stage.name, index))
        if not batch.members:
            del self._batches[queue][number]
            if not self._batches[queue]:
                del self._batches[queue]
        return batch


class Hrrn(Magnus):
    """Each LLM call by its wait over its estimated seconds alone, highest first. knowledge: its latency curves."""

    def __init__(self, lengths: Model | None = None, knowledge: Knowledge | None = None) -> None:
        super().__init__(lengths, knowledge, "request")
