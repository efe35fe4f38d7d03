"""How fast an engine is: prefill speed and the decode latency l(b) at every batch size b.

A continuous-batching engine computes one token for each of the b running sequences per iteration, and an
iteration gets slower as b grows: l(b) seconds. The curve is a table, linear between its points and
extended beyond the last one with the slope of the last segment; a table of one point is a constant.
`calibrate` measures one and writes the JSON of `LatencyCurve.to_json`, with what it saw as a `Measurement`.

*Reference work* of a call is what it takes alone: prefill + output tokens × l(1).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from llmsched.errors import InvalidInput, UnknownName

#: The one curve that may cost nothing: replies come at once, whatever the batch.
INSTANT = "instant"


@dataclass(frozen=True, slots=True)
class Measured:
    """The mean of so many runs, and its 95 % interval.

    Raises InvalidInput unless 0 ≤ low ≤ mean ≤ high, all finite.
    """

    mean: float
    low: float
    high: float
    runs: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.high) and 0 <= self.low <= self.mean <= self.high and self.runs >= 1):
            raise InvalidInput(
                f"what was measured must be 0 ≤ low ≤ mean ≤ high, not {self.low:g}, {self.mean:g}, {self.high:g} "
                f"in {self.runs} runs",
                field="measurement",
            )


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a curve was made of: seconds as they were measured, and where, when and how, for people."""

    engine: str
    model: str
    #: what the engine runs on
    machine: str
    #: ISO 8601
    date: str
    method: str
    #: by batch size: seconds per token; the curve may differ where these fall
    decode: tuple[tuple[int, Measured], ...]
    #: seconds per prompt token
    prefill: Measured
    #: seconds until the first token that do not depend on the prompt: network, queue, one step
    first_token: float

    def to_json(self) -> dict[str, Any]:
        texts = {name: getattr(self, name) for name in _TEXTS}
        prefill = self.prefill
        return texts | {
            "decode": [[b, seen.mean, seen.low, seen.high, seen.runs] for b, seen in self.decode],
            "prefill": [prefill.mean, prefill.low, prefill.high, prefill.runs],
            "first_token": self.first_token,
        }

    @classmethod
    def from_json(cls, document: Any) -> Measurement:
        """Read what `to_json` wrote. Raises InvalidInput."""
        known = (*_TEXTS, "decode", "prefill", "first_token")
        if not isinstance(document, Mapping) or set(document) != set(known):
            raise InvalidInput(f"a measurement is a JSON object with {', '.join(known)}", field="measurement")
        decode, prefill, first_token = document["decode"], document["prefill"], document["first_token"]
        if not (
            all(isinstance(document[name], str) for name in _TEXTS)
            and isinstance(decode, list)
            and all(isinstance(row, list) and _is_count(row[:1]) and _is_measured(row[1:]) for row in decode)
            and _is_measured(prefill)
            and _is_number(first_token)
        ):
            raise InvalidInput(
                "a measurement has texts, rows [batch size, mean, low, high, runs] in decode, "
                "[mean, low, high, runs] in prefill and a number in first_token",
                field="measurement",
            )
        texts = {name: document[name] for name in _TEXTS}
        rows = tuple((row[0], Measured(*row[1:])) for row in decode)
        return cls(**texts, decode=rows, prefill=Measured(*prefill), first_token=float(first_token))


_TEXTS = ("engine", "model", "machine", "date", "method")


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
    #: what it was made of, if it was measured
    measurement: Measurement | None = None
    #: whether prompts are read one after the other and nobody decodes meanwhile, as on a real engine; else each prompt
    #: is read at full speed beside everything else, the simplification of the LLMSched paper
    prefill_stalls: bool = False
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
        document: dict[str, Any] = {
            "name": self.name,
            "prefill_tokens_per_s": self.prefill_tokens_per_s if finite else None,
            "decode": [[b, seconds] for b, seconds in self.points],
            "source": self.source,
        }
        if self.prefill_stalls:
            document["prefill_stalls"] = True
        return document if self.measurement is None else document | {"measurement": self.measurement.to_json()}

    @classmethod
    def from_json(cls, document: Any) -> LatencyCurve:
        """Read what `to_json` wrote. Raises InvalidInput that names the field."""
        if not isinstance(document, Mapping):
            raise InvalidInput("a latency curve is a JSON object with name, prefill_tokens_per_s and decode")
        known = ("name", "prefill_tokens_per_s", "decode", "source", "measurement", "prefill_stalls")
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
        told = document.get("measurement")
        measurement = None if told is None else Measurement.from_json(told)
        stalls = document.get("prefill_stalls", False)
        if not isinstance(stalls, bool):
            raise InvalidInput(
                f"latency curve {name!r}: prefill_stalls must be true or false, not {stalls!r}", field="prefill_stalls"
            )
        points = tuple((b, float(seconds)) for b, seconds in table)
        return cls(name, float(speed), points, source, measurement, stalls)

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


def _is_count(value: Sequence[Any]) -> bool:
    return len(value) == 1 and isinstance(value[0], int) and not isinstance(value[0], bool)


def _is_point(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and _is_count(value[:1]) and _is_number(value[1])


def _is_measured(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value[:3])) and _is_count(value[3:])


GENERIC_7B = LatencyCurve.affine(
    "generic-7b",
    alone=0.010,
    growth=0.03,
    prefill_tokens_per_s=8000.0,
    source="10 ms x (1 + 0.03 (b - 1)) per token: the shape of a 7B model on one data-centre GPU",
)

LLAMA2_7B_H800 = LatencyCurve.affine(
    "llama2-7b-h800",
    alone=0.00765,
    growth=0.036,
    prefill_tokens_per_s=29_000.0,
    source="derived, not measured: a roofline of Llama-2-7B in fp16 on an 80 GB Hopper GPU with HBM3 (H800 SXM) at a "
    "mean context of 1,000 tokens; see docs/calibration.md",
)

LATENCY_CURVES: dict[str, LatencyCurve] = {
    GENERIC_7B.name: GENERIC_7B,
    LLAMA2_7B_H800.name: LLAMA2_7B_H800,
    INSTANT: LatencyCurve(INSTANT, math.inf, ((1, 0.0),), "no time at all, for tests of everything else"),
}
