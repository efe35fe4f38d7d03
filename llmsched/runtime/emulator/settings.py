"""What an emulated engine is like: its model, speed and limits, checked once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import orjson

from llmsched.errors import InvalidInput, InvalidSetting, UnknownName
from llmsched.model.latency import GENERIC_7B, LATENCY_CURVES, LatencyCurve, latency_curve
from llmsched.runtime.emulator.answers import Answer

SCHEDULING_POLICIES = ("fcfs", "priority")
#: 16 tokens each: what 16 requests of 32,768 tokens need
DEFAULT_CACHE_BLOCKS = 32_768


@dataclass(frozen=True, slots=True)
class EmulatorSettings:
    """One engine. `speed` divides every duration; `seed` decides what a prompt is answered with.

    Raises InvalidSetting with the name of the field.
    """

    model: str = "emulated"
    latency: LatencyCurve = GENERIC_7B
    #: slots: how many requests are in prefill or decoding at once
    max_batch: int = 16
    speed: float = 1.0
    #: `fcfs` refuses a request with a priority, `priority` serves the lowest number first
    scheduling_policy: str = "priority"
    #: prompt + output tokens of one request
    max_model_len: int = 32_768
    seed: int = 0
    #: when set, everything but health, version and metrics wants `Authorization: Bearer <key>`
    api_key: str | None = None
    #: whether prompts that begin as earlier sequences need less prefill
    prefix_cache: bool = True
    #: blocks that the prefix cache holds
    cache_blocks: int = DEFAULT_CACHE_BLOCKS
    #: what the model says to texts and chats; None: filler, or JSON that fits the schema asked for
    answer: Answer | None = None

    def __post_init__(self) -> None:
        if not self.model:
            raise InvalidSetting("the emulated model needs a name", field="model")
        if self.max_batch < 1:
            raise InvalidSetting(f"max_batch must be at least 1, not {self.max_batch}", field="max_batch")
        if not (math.isfinite(self.speed) and self.speed > 0):
            raise InvalidSetting(f"speed must be a positive number, not {self.speed:g}", field="speed")
        if self.max_model_len < 2:
            raise InvalidSetting(
                f"max_model_len must be at least 2 (one token in, one out), not {self.max_model_len}",
                field="max_model_len",
            )
        if self.scheduling_policy not in SCHEDULING_POLICIES:
            raise UnknownName.of(
                "scheduling policy", self.scheduling_policy, SCHEDULING_POLICIES, field="scheduling_policy"
            )
        if self.cache_blocks < 1:
            raise InvalidSetting(
                f"cache_blocks must be at least 1, not {self.cache_blocks}; switch prefix_cache off instead",
                field="cache_blocks",
            )
        if self.api_key == "":
            raise InvalidSetting("an empty API key would let everybody in", field="api_key")


def read_latency_curve(name_or_path: str) -> LatencyCurve:
    """A built-in curve by name, or one from a JSON file that `calibrate` wrote. Raises InvalidInput."""
    if name_or_path in LATENCY_CURVES:
        return latency_curve(name_or_path)
    path = Path(name_or_path)
    if not path.is_file():
        if path.suffix == ".json" or path.parent != Path():
            raise InvalidInput(f"there is no latency file {name_or_path}", field="latency")
        return latency_curve(name_or_path)  # raises, with the known names
    try:
        document = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"{name_or_path} is not JSON: {error}", field="latency") from None
    except OSError as error:
        raise InvalidInput(f"cannot read {name_or_path}: {error.strerror}", field="latency") from None
    return LatencyCurve.from_json(document)
