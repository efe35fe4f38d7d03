"""How fast an engine is: prefill speed and the decode latency l(b) at every batch size b.

A continuous-batching engine computes one token for each of the b running sequences per iteration, and an
iteration gets slower as b grows: l(b) seconds. The curve is a table, linear between its points and
extended beyond the last one with the slope of the last segment; a table of one point is a constant.
`calibrate` measures one and writes the JSON of `LatencyCurve.to_json`.

*Reference work* of a call is what it takes alone: prefill + output tokens × l(1).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from llmsched.errors import InvalidInput, UnknownName

#: The one curve that may cost nothing: replies come at once, whatever the batch.
INSTANT = "instant"


@dataclass(frozen=True, slots=True)
class LatencyCurve:
    """Decode latency by batch size, and prefill speed, of one kind of engine.

    points: (batch size, seconds per token), batch sizes strictly increasing from 1, latencies positive and
    never falling. Raises InvalidInput, with one sentence, for anything else.
    """

    name: str
    prefill_tokens_per_s: float
    points: tuple[tuple[int, float], ...]
    #: where the numbers come from, for people: a formula, an engine and its hardware
    source: str = ""
    _decode: dict[int, float] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if fault := _fault(self):
            raise InvalidInput(f"latency curve {self.name!r}: {fault}", field="latency")

    @classmethod
    def affine(
        cls, name: str, *, alone: float, growth: float, prefill_tokens_per_s: float, source: str = ""
    ) -> LatencyCurve:
        """l(b) = alone × (1 + growth × (b - 1)); `alone` is l(1) in seconds, `growth` a fraction ≥ 0."""
        points = ((1, alone), (2, alone * (1 + growth)))
        return cls(name, prefill_tokens_per_s, points, source or f"{alone:g} s x (1 + {growth:g} (b - 1))")

    def decode(self, b: int) -> float:
        """l(b): seconds in which each of `b` ≥ 1 decoding sequences gets one token.

        >>> round(GENERIC_7B.decode(11), 6)
        0.013
        """
        known = self._decode.get(b)
        if known is None:
            known = self._decode[b] = self._interpolate(b)
        return known

    def prefill(self, prompt_tokens: float) -> float:
        """Seconds to read a prompt."""
        return prompt_tokens / self.prefill_tokens_per_s

    def reference(self, prompt_tokens: float, output_tokens: float) -> float:
        """Reference work in seconds: the whole call on an otherwise empty engine. Tokens may be means.

        >>> round(GENERIC_7B.reference(prompt_tokens=800, output_tokens=50), 6)
        0.6
        """
        return self.prefill(prompt_tokens) + output_tokens * self.decode(1)

    def to_json(self) -> dict[str, Any]:
        """The file format of `calibrate`; an infinite prefill speed is null."""
        finite = math.isfinite(self.prefill_tokens_per_s)
        return {
            "name": self.name,
            "prefill_tokens_per_s": self.prefill_tokens_per_s if finite else None,
            "decode": [[b, seconds] for b, seconds in self.points],
            "source": self.source,
        }

    @classmethod
    def from_json(cls, document: Any) -> LatencyCurve:
        """Read what `to_json` wrote. Raises InvalidInput that names the field."""
        if not isinstance(document, Mapping):
            raise InvalidInput("a latency curve is a JSON object with name, prefill_tokens_per_s and decode")
        known = ("name", "prefill_tokens_per_s", "decode", "source")
        for key in document:
            if key not in known:
                raise UnknownName.of("field of a latency curve", str(key), known, field=str(key))
        name, source = document.get("name"), document.get("source", "")
        if not isinstance(name, str) or not name:
            raise InvalidInput("a latency curve needs a name", field="name")
        if not isinstance(source, str):
            raise InvalidInput(f"latency curve {name!r}: source must be text", field="source")
        speed = document.get("prefill_tokens_per_s")
        if speed is None and name == INSTANT:
            speed = math.inf
        if isinstance(speed, bool) or not isinstance(speed, int | float):
            raise InvalidInput(
                f"latency curve {name!r}: prefill_tokens_per_s must be a number, not {speed!r}",
                field="prefill_tokens_per_s",
            )
        table = document.get("decode")
        if not isinstance(table, list) or not all(map(_is_point, table)):
            raise InvalidInput(
                f"latency curve {name!r}: decode must be a list of [batch size, seconds per token]",
                field="decode",
            )
        return cls(name, float(speed), tuple((b, float(seconds)) for b, seconds in table), source)

    def _interpolate(self, b: int) -> float:
        assert b >= 1, f"a batch of {b}"
        if len(self.points) == 1:
            return self.points[0][1]
        right = min(bisect_right(self.points, b, key=lambda point: point[0]), len(self.points) - 1)
        (b0, l0), (b1, l1) = self.points[right - 1], self.points[right]
        return l0 + (l1 - l0) * (b - b0) / (b1 - b0)


def latency_curve(name: str) -> LatencyCurve:
    """The built-in curve of that name. Raises UnknownName; files are read by the caller (`from_json`)."""
    try:
        return LATENCY_CURVES[name]
    except KeyError:
        raise UnknownName.of("latency curve", name, LATENCY_CURVES, field="latency") from None


def _fault(curve: LatencyCurve) -> str | None:
    if curve.name == INSTANT:
        return (
            None
            if curve.prefill_tokens_per_s == math.inf and curve.points == ((1, 0.0),)
            else (f"the name {INSTANT!r} is reserved for the built-in curve that takes no time")
        )
    if not (math.isfinite(curve.prefill_tokens_per_s) and curve.prefill_tokens_per_s > 0):
        return f"prefill_tokens_per_s must be positive, not {curve.prefill_tokens_per_s:g}"
    if not curve.points or curve.points[0][0] != 1:
        return "the decode table must begin with batch size 1"
    for b, seconds in curve.points:
        if not (math.isfinite(seconds) and seconds > 0):
            return f"the latency at batch size {b} must be positive, not {seconds:g}"
    for (b0, l0), (b1, l1) in pairwise(curve.points):
        if b1 <= b0:
            return f"batch sizes must strictly increase, but {b1} follows {b0}"
        if l1 < l0:
            return f"latency must not fall as the batch grows, but {l1:g} s at {b1} follows {l0:g} s at {b0}"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_point(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and isinstance(value[0], int)
        and not isinstance(value[0], bool)
        and _is_number(value[1])
    )


GENERIC_7B = LatencyCurve.affine(
    "generic-7b",
    alone=0.010,
    growth=0.03,
    prefill_tokens_per_s=8000.0,
    source="10 ms x (1 + 0.03 (b - 1)) per token: the shape of a 7B model on one data-centre GPU",
)

LATENCY_CURVES: dict[str, LatencyCurve] = {
    GENERIC_7B.name: GENERIC_7B,
    INSTANT: LatencyCurve(INSTANT, math.inf, ((1, 0.0),), "no time at all, for tests of everything else"),
}
