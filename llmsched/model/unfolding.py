"""What a running job reveals of itself, and when: the recorded kind.

A recording knows the whole job; a scheduler must not. `RecordedUnfolding` deals it out: what exists at submission, and
what each completed stage reveals. It drives live replay and simulation alike.

* A stage is revealed, with its number of tasks and prompt lengths, when everything it waits for is over.
* A dynamic stage is revealed together with the whole plan that takes its place.
* A stage of the template that the recording does not have is skipped once all its parents are over: the loop ended.

The recording is authoritative: where it differs from the template, it runs as recorded and `off_profile` says how.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

from llmsched.model.application import Application
from llmsched.model.events import Reveal
from llmsched.model.kinds import StageKind
from llmsched.model.prompt import PromptText
from llmsched.model.recording import RecordedStage, RecordedTask, Recording
from llmsched.model.spec import DEFAULT_POOLS, StageSpec


class Unfolded(NamedTuple):
    """What is newly known of a job's structure."""

    reveals: tuple[Reveal, ...] = ()
    skipped: tuple[str, ...] = ()


Texts = Callable[[str], PromptText | None]
"""What is known of the prompt that all calls of a stage share; None: nothing."""


def pool_of(application: Application, stage: RecordedStage) -> str:
    """Where a recorded stage runs: as the template says, else where its tool does, else where its kind usually does."""
    if stage.parent is None and stage.name in application and application[stage.name].kind is stage.kind:
        return application[stage.name].pool
    if stage.parent is not None and stage.parent in application:
        chosen = candidate_of(application, stage)
        for candidate in application[stage.parent].candidates:
            if candidate.name == chosen and candidate.kind is stage.kind:
                return candidate.pool
    usual = (s.pool for s in application.stages if s.kind is stage.kind)
    return next(usual, DEFAULT_POOLS[stage.kind])


def candidate_of(application: Application, stage: RecordedStage) -> str | None:
    """What a planner chose when it asked for this stage: its tool, else the candidate it is named after.

    A name is that of a candidate, or that and a number: `search`, `math_2`. None for a stage of no plan.
    """
    if stage.parent is None:
        return None
    tool = next((t.tool for t in stage.tasks if t.tool), None)
    if tool is not None or stage.parent not in application:
        return tool or stage.name
    names = {c.name for c in application[stage.parent].candidates}
    stem = stage.name.rpartition("_")[0]
    return stage.name if stage.name in names else stem if stem in names else stage.name


class RecordedUnfolding:
    """Deals out one recording of `application`, stage by stage. texts: what the prompt of a stage is like."""

    def __init__(self, application: Application, recording: Recording, texts: Texts | None = None) -> None:
        self._application = application
        self._texts = texts
        self._stages = {s.name: s for s in recording.stages}
        self._over: set[str] = set()
        self._hidden = dict.fromkeys(self._stages)
        self._absent = dict.fromkeys(s.name for s in application.stages if s.name not in self._stages)
        #: Inner stages a dynamic stage still waits for.
        self._inner: dict[str, set[str]] = {}
        for stage in recording.stages:
            if stage.kind is StageKind.DYNAMIC:
                self._inner[stage.name] = {s.name for s in recording.stages if s.parent == stage.name}
        #: One line per way in which the recording differs from the template; empty: on profile.
        self.off_profile: tuple[str, ...] = tuple(self._differences())

    def begin(self) -> Unfolded:
        """What is known when the job is submitted."""
        return self._unfold()

    def complete(self, stage: str) -> Unfolded:
        """What the completion of `stage` reveals. Each stage is completed once."""
        self._end(stage)
        return self._unfold()

    def task(self, stage: str, index: int) -> RecordedTask:
        """What one task costs: only the world asks."""
        return self._stages[stage].tasks[index]

    def _end(self, name: str) -> None:
        self._over.add(name)
        recorded = self._stages.get(name)
        if recorded is not None and recorded.parent is not None:
            inner = self._inner[recorded.parent]
            inner.discard(name)
            if not inner:
                self._end(recorded.parent)

    def _unfold(self) -> Unfolded:
        reveals: list[Reveal] = []
        for name in list(self._hidden):
            stage = self._stages[name]
            if stage.parent is None and all(p in self._over for p in stage.after):
                reveals.extend(self._reveal(stage))
        # Recorded stages wait for recorded stages only; what is skipped may wait for a plan that was just found empty.
        skipped = []
        for name in list(self._absent):
            if all(p in self._over for p in self._application[name].after):
                del self._absent[name]
                self._over.add(name)
                skipped.append(name)
        return Unfolded(tuple(reveals), tuple(skipped))

    def _reveal(self, stage: RecordedStage) -> Iterator[Reveal]:
        del self._hidden[stage.name]
        text = self._texts(stage.name) if self._texts is not None and stage.kind is StageKind.LLM else None
        texts = () if text is None else (text,) * len(stage.tasks)
        yield Reveal(self._spec(stage), tuple(t.prompt_tokens for t in stage.tasks), texts)
        if stage.kind is StageKind.DYNAMIC:
            plan = [s for s in self._stages.values() if s.parent == stage.name]
            for inner in plan:
                yield from self._reveal(inner)
            if not plan:
                self._end(stage.name)

    def _spec(self, stage: RecordedStage) -> StageSpec:
        if stage.name in self._application and stage.parent is None:
            known = self._application[stage.name]
            if known.kind is stage.kind:
                return known if known.after == stage.after else replace(known, after=stage.after)
        return StageSpec(
            stage.name,
            stage.kind,
            after=stage.after,
            pool=pool_of(self._application, stage),
            max_tasks=max(1, len(stage.tasks)),
            iteration=stage.iteration,
            parent=stage.parent,
            candidate=candidate_of(self._application, stage),
        )

    def _differences(self) -> Iterable[str]:
        template = self._application
        for stage in self._stages.values():
            if stage.parent is not None:
                yield from self._outside(stage)
            elif stage.name not in template:
                yield f"stage {stage.name!r} is not in the template"
            elif template[stage.name].kind is not stage.kind:
                yield f"stage {stage.name!r} is {stage.kind}, in the template it is {template[stage.name].kind}"
            elif len(stage.tasks) > template[stage.name].max_tasks:
                yield (
                    f"stage {stage.name!r} has {len(stage.tasks)} tasks,"
                    f" in the template at most {template[stage.name].max_tasks}"
                )
            elif stage.kind is StageKind.DYNAMIC and len(self._inner[stage.name]) > template[stage.name].max_stages:
                yield (
                    f"the plan of {stage.name!r} has {len(self._inner[stage.name])} stages,"
                    f" in the template at most {template[stage.name].max_stages}"
                )
        for spec in template.stages:
            always = spec.expected.probability == 1 and spec.loop is None and spec.when is None
            if always and spec.name not in self._stages:
                yield f"stage {spec.name!r} of the template is missing"

    def _outside(self, stage: RecordedStage) -> Iterable[str]:
        assert stage.parent is not None
        if stage.name in self._application:
            yield f"stage {stage.name!r} is part of the plan of {stage.parent!r}, in the template it is not"
        if stage.parent not in self._application:
            return
        known = {c.name for c in self._application[stage.parent].candidates}
        for tool in dict.fromkeys(t.tool for t in stage.tasks if t.tool):
            if tool not in known:
                yield f"tool {tool!r} is not a candidate of {stage.parent!r}"
