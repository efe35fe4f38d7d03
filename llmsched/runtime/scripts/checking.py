"""Finds what would only fail in the middle of a job, before an application is registered."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import chain
from typing import Any

from llmsched.errors import InvalidApplication, InvalidInput, UnknownName
from llmsched.model.application import Application
from llmsched.model.kinds import StageKind
from llmsched.model.spec import Candidate, StageSpec
from llmsched.runtime.scripts.replies import check_response_format
from llmsched.runtime.scripts.templates import check, texts_in, tokens
from llmsched.runtime.tools.handlers import HandlerRegistry

_VARIABLES = ("input", "stages", "last", "iteration", "item", "index")
#: What templates of a candidate see as well.
_OF_PLANS = (*_VARIABLES, "arguments", "inputs")
_RESERVED = frozenset({"model", "messages", "prompt", "stream", "stream_options", "priority", "n", "max_tokens"})
#: Characters and tokens that the templates of an application may have: what they take to compile, in the event loop.
MAX_CHARACTERS, MAX_TOKENS = 1_000_000, 20_000
#: Names in a sentence.
MAX_LISTED = 20

_OF_LLM = ("prompt", "system", "max_tokens", "sampling", "response_format", "model")
_OF_REGULAR = ("handler", "arguments")
#: Keys that say nothing about a stage of this kind.
_OF_OTHERS = {
    StageKind.LLM: _OF_REGULAR,
    StageKind.REGULAR: _OF_LLM,
    StageKind.DYNAMIC: (*_OF_LLM, *_OF_REGULAR, "for_each"),
}

#: (label, source, whether it is an expression, what it may read)
_Template = tuple[str, str, bool, tuple[str, ...]]


def check_templates(application: Application, handlers: HandlerRegistry) -> None:
    """Finds bad syntax, undefined variables, outputs that are not there yet, bad schemas, unknown handlers.

    An application in which no stage has a prompt or a handler runs recordings only, and is fine.
    Raises InvalidApplication or UnknownName, naming the stage and the line.
    """
    this = f"application {application.name!r}"
    _check_length(application)
    outputs = _Outputs(application)
    known = sorted(handler.name for handler in handlers)
    for spec in application.stages:
        where = f"{this}, stage {spec.name!r}"
        for key in _OF_OTHERS[spec.kind]:
            if getattr(spec, key):
                raise InvalidApplication(
                    f"{where} is of kind {spec.kind}, which has no {key}; leave it out or change the kind", field=key
                )
        for label, source, expression, variables in _templates(spec):
            reads = check(f"{where}, {label}", source, variables, expression=expression)
            outputs.check(f"{where}, {label}", reads.stages, spec, reads.asked)
        _check_call(where, spec)
        for candidate in spec.candidates:
            _check_call(f"{where}, candidate {candidate.name!r}", candidate)
        for name in (spec.handler, spec.fallback, *(c.handler for c in spec.candidates)):
            if name is not None and application.is_executable and name not in known:
                raise InvalidApplication(f"{where}: {_unknown('handler', name, known)}")
    if application.result is not None:
        reads = check(f"{this}, result", application.result, _VARIABLES, expression=True)
        outputs.check(f"{this}, result", reads.stages)


def _templates(spec: StageSpec) -> Iterator[_Template]:
    for label, source in (("when", spec.when), ("for_each", spec.for_each)):
        if source is not None:
            yield label, source, True, _VARIABLES
    yield from _of_call("", spec, _VARIABLES)
    for candidate in spec.candidates:
        yield from _of_call(f"candidate {candidate.name!r}, ", candidate, _OF_PLANS)


def _of_call(prefix: str, call: StageSpec | Candidate, variables: tuple[str, ...]) -> Iterator[_Template]:
    for label, source in (("prompt", call.prompt), ("system", call.system)):
        if source is not None:
            yield f"{prefix}{label}", source, False, variables
    arguments: Mapping[str, Any] = call.arguments or {}
    for source in texts_in(arguments):
        yield f"{prefix}arguments", source, False, variables


def _check_call(where: str, call: StageSpec | Candidate) -> None:
    for key in call.sampling:
        if key in _RESERVED:
            raise InvalidApplication(f"{where}, sampling: {key!r} is set by llmsched; leave it out")
    try:
        check_response_format(call.response_format)
    except InvalidInput as error:
        raise InvalidApplication(f"{where}, response_format: {error}") from None


def _check_length(application: Application) -> None:
    """Padded loops repeat their templates; each is compiled once."""
    templates = chain.from_iterable(map(_templates, application.stages))
    sources = {(source, is_expression) for _, source, is_expression, _ in templates}
    if application.result is not None:
        sources.add((application.result, True))
    if sum(len(source) for source, _ in sources) > MAX_CHARACTERS:
        raise InvalidApplication(
            f"application {application.name!r}: its templates have more than {MAX_CHARACTERS:,} characters;"
            " hand long texts in with the input"
        )
    left = MAX_TOKENS
    for source, is_expression in sources:
        left -= tokens(source, left, expression=is_expression)
        if left < 0:
            raise InvalidApplication(
                f"application {application.name!r}: its templates have more than {MAX_TOKENS:,} words of code;"
                " compute in handlers"
            )


def _unknown(kind: str, name: str, known: Sequence[str]) -> UnknownName:
    """A sentence with the names that could have been meant, where there are too many for all of them."""
    if len(known) > MAX_LISTED:
        known = [*(get_close_matches(name, known, n=MAX_LISTED, cutoff=0.3) or known[:MAX_LISTED]), "…"]
    return UnknownName.of(kind, name, known)


class _Outputs:
    """Whose outputs templates may read: those of stages that are over by then."""

    def __init__(self, application: Application) -> None:
        self._stages = {s.name: s for s in application.stages}
        self._dynamic = [s.name for s in application.stages if s.kind is StageKind.DYNAMIC]
        #: Stages by what templates may call them.
        self._called: dict[str, list[str]] = {}
        for spec in application.stages:
            for name in spec.names:
                self._called.setdefault(name, []).append(spec.name)
        #: Bits of the stages that are over before a stage begins, in topological order.
        self._bits = {name: 1 << k for k, name in enumerate(self._stages)}
        self._before: dict[str, int] = {}
        for spec in application.stages:
            before = 0
            for parent in spec.after:
                before |= self._bits[parent] | self._before[parent]
            self._before[spec.name] = before

    def check(
        self, where: str, names: Iterable[str], reader: StageSpec | None = None, asked: frozenset[str] = frozenset()
    ) -> None:
        """reader: None where everything is over. asked: names that need not be there.

        Raises InvalidApplication: nothing is called so, or it need not be over when the reader begins.
        """
        for name in names:
            sources = self._sources(name)
            if not sources:
                nicknames = [s.names[-1] for s in self._stages.values()]
                raise InvalidApplication(f"{where}: {_unknown('stage', name, list(dict.fromkeys(nicknames)))}")
            if reader is None or name in asked or name.startswith(f"{reader.name}."):  # of its own plan, later
                continue
            if sources == [reader.name]:
                raise InvalidApplication(f"{where}: it reads its own output ({name!r}), which is not there yet")
            if not self._is_over(sources, reader):
                add = self._stages[sources[0]].loop or sources[0]
                raise InvalidApplication(
                    f"{where}: it reads {name!r}, which need not be over by then; add {add!r} to 'after', or ask first"
                    f" whether it is there: {name!r} in stages"
                )

    def _sources(self, name: str) -> list[str]:
        """The stages that a name stands for; a planned stage is there with the stage that its plan replaces."""
        return self._called.get(name) or [d for d in self._dynamic if name.startswith(f"{d}.")]

    def _is_over(self, sources: Iterable[str], reader: StageSpec) -> bool:
        for name in sources:
            if self._bits[name] & self._before[reader.name]:
                return True
            # In a later round of a loop it is; templates of the first may look at `iteration`.
            if reader.loop is not None and self._stages[name].loop == reader.loop and name != reader.name:
                return True
        return False
