"""Every error llmsched raises on purpose, in one tree, so that a caller can tell whose fault it is.

```
LlmschedError
├── InvalidInput            theirs: what was handed in cannot be used (HTTP 4xx, exit code 2)
│   ├── InvalidApplication  a template that can never run
│   ├── InvalidRecording    a recorded job or a trace line that cannot be replayed
│   ├── InvalidSetting      a flag, key or environment variable
│   ├── ProfileError        history nothing can be learned from, or a profile that does not fit
│   ├── UnknownName         a policy, application, job, engine … nobody knows
│   └── Conflict            clashes with what is already stored (HTTP 409)
├── Overloaded              nobody's: come back later (HTTP 429)
├── BackendError            the world's: an engine, a worker or the database failed
└── InvalidTransition       ours: the state machine was asked for something impossible
```

A message is one sentence with the value and the way out.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from reprlib import Repr

#: Names that a sentence lists at most.
_LISTED = 40


class LlmschedError(Exception):
    """Base of everything llmsched raises on purpose."""


class InvalidInput(LlmschedError):
    """What was handed in cannot be used; `field` names the culprit where there is one."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class InvalidApplication(InvalidInput):
    """An application template that can never run."""


class InvalidRecording(InvalidInput):
    """A recorded job that cannot be replayed."""


class InvalidSetting(InvalidInput):
    """A flag, configuration key or environment variable with a bad value."""


class ProfileError(InvalidInput):
    """History that nothing can be learned from, or a profile of another application or version."""


class UnknownName(InvalidInput):
    """Somebody asked for a thing by a name that nobody knows."""

    @classmethod
    def of(cls, kind: str, name: str, known: Iterable[str], *, field: str | None = None) -> UnknownName:
        """A sentence that names the nearest known name, or all of them.

        >>> str(UnknownName.of("policy", "fcsf", ["fcfs", "sjf"]))
        "unknown policy 'fcsf'; did you mean 'fcfs'? known: fcfs, sjf"
        """
        names = list(known)
        near = get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        shown = [*names[:_LISTED], "…"] if len(names) > _LISTED + 1 else names
        return cls(f"unknown {kind} {name!r}; {hint}known: {', '.join(shown) or 'none'}", field=field)


class Conflict(InvalidInput):
    """Clashes with something that is already stored."""


class Overloaded(LlmschedError):
    """The service has as much work as it accepts; retry after `retry_after` seconds."""

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class BackendError(LlmschedError):
    """An engine, a worker or the database failed us."""


class InvalidTransition(LlmschedError):
    """The state machine was asked for something impossible: a bug of ours, told with its story."""


def show(value: object) -> str:
    """A value as it can stand in a sentence: short, and never itself an error.

    >>> show(["a", "b", "c", "d"])
    "['a', 'b', 'c', ...]"
    """
    return _short.repr(value)


_short = Repr()
_short.maxlevel, _short.maxdict, _short.maxlist, _short.maxstring, _short.maxother = 2, 3, 3, 80, 80
