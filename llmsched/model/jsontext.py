"""JSON text of whatever JSON values models and clients come up with."""

from __future__ import annotations

import json

import orjson

from llmsched.model.records import Json


def to_json(value: Json) -> str:
    """JSON text. A leading space marks what only Python's own reader understands: halves of surrogate pairs, integers
    beyond 64 bits."""
    try:
        return orjson.dumps(value).decode()
    except TypeError:
        return " " + json.dumps(value)


def from_json(text: str) -> Json:
    """The value of a text that `to_json` made."""
    return json.loads(text) if text.startswith(" ") else orjson.loads(text)
