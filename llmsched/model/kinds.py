"""The three kinds of stage an application is made of."""

from __future__ import annotations

from enum import StrEnum


class StageKind(StrEnum):
    """What a stage runs: calls of an LLM, calls of handlers, or whatever a planner decides."""

    LLM = "llm"
    REGULAR = "regular"
    DYNAMIC = "dynamic"
