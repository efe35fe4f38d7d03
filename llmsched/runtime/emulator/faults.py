"""Faults that tests inject into an emulated engine: the ways in which real ones disappoint."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from llmsched.errors import InvalidInput, UnknownName


class FaultKind(StrEnum):
    """What goes wrong. All but the last three never touch the model."""

    #: the request is read and never answered
    HANG = "hang"
    #: an OpenAI error object with status 500
    HTTP_500 = "http_500"
    #: status 200 and a body (or an event) that is not JSON
    GARBAGE = "garbage"
    #: half the reply, then the connection closes
    HALF_STREAM = "half_stream"
    #: half the reply, then silence on an open connection
    STALL = "stall"
    #: headers at once, the first token `delay_s` seconds late
    SLOW_FIRST_TOKEN = "slow_first_token"


#: `completions`: the two generating endpoints; `all`: also health, models and metrics
SCOPES = ("completions", "all")


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault, for the next `count` requests in its scope, or until cleared."""

    kind: FaultKind
    count: int | None = None
    delay_s: float = 5.0
    scope: str = "completions"

    @classmethod
    def of(cls, kind: str, *, count: int | None = None, delay_s: float = 5.0, scope: str = "completions") -> Fault:
        """Checks the values. Raises InvalidInput."""
        if kind not in list(FaultKind):
            raise UnknownName.of("fault", str(kind), list(FaultKind), field="kind")
        if scope not in SCOPES:
            raise UnknownName.of("scope of a fault", str(scope), SCOPES, field="scope")
        if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
            raise InvalidInput(f"count must be a positive whole number, not {count!r}", field="count")
        if isinstance(delay_s, bool) or not isinstance(delay_s, int | float) or not 0 <= delay_s <= 86_400:
            raise InvalidInput(f"delay_s must be seconds within a day, not {delay_s!r}", field="delay_s")
        return cls(FaultKind(kind), count, float(delay_s), scope)

    @classmethod
    def from_json(cls, document: Any) -> Fault:
        """Body of POST /emulator/fault. Raises InvalidInput."""
        known = ("kind", "count", "delay_s", "scope")
        if not isinstance(document, dict) or "kind" not in document:
            raise InvalidInput(f"a fault is a JSON object with kind: {', '.join(FaultKind)}", field="kind")
        for key in document:
            if key not in known:
                raise UnknownName.of("field of a fault", key, known, field=key)
        return cls.of(**document)


class Faults:
    """The fault in force, if any."""

    def __init__(self) -> None:
        self.current: Fault | None = None

    def take(self, *, completion: bool) -> Fault | None:
        """The fault that this request meets; counts it."""
        fault = self.current
        if fault is None or (fault.scope == "completions" and not completion):
            return None
        if fault.count is not None:
            self.current = replace(fault, count=fault.count - 1) if fault.count > 1 else None
        return fault
