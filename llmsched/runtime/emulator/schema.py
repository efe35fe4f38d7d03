"""Draws a JSON value that is valid against a JSON schema, as guided decoding makes any model do.

Knows the keywords that structured outputs use: type (also a list), properties, required, items,
prefixItems, enum, const, anyOf, oneOf, allOf, $ref into the same document, and the bounds of lengths and
numbers. A keyword that would need a real solver (`pattern`, `not`, …) is refused with a sentence and not
ignored. Recursive schemas end: below `_DEEP` levels, after `_MANY` values, and in a plain draw, only what must
be there is made, along the branch that ends soonest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from random import Random
from typing import Any

from llmsched.errors import InvalidInput

_DEEP = 5
_MANY = 100
_REFUSED = (
    "contains",
    "dependentRequired",
    "dependentSchemas",
    "dependencies",
    "if",
    "not",
    "pattern",
    "patternProperties",
    "propertyNames",
)
_WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "harbor", "island", "juniper")
_FORMATS = {
    "date": "2024-05-17",
    "date-time": "2024-05-17T12:00:00Z",
    "email": "someone@example.org",
    "time": "12:00:00Z",
    "uri": "https://example.org/",
    "uuid": "123e4567-e89b-42d3-a456-426614174000",
}
#: fewest levels first, so that a plain draw of a list of types takes the simplest
_TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")


class SchemaSampler:
    """Draws values from one schema. Raises InvalidInput for one it cannot satisfy or does not know."""

    def __init__(self, schema: Any, rng: Random) -> None:
        self._root = schema
        self._rng = rng
        self._heights = self._measure()
        self._drawn = 0

    def sample(self, *, plain: bool = False) -> Any:
        """A valid value; `plain` keeps it as small as it can be."""
        self._drawn = 0
        return self._draw(self._root, _DEEP if plain else 0)

    def _draw(self, schema: Any, depth: int) -> Any:
        self._drawn += 1
        if self._drawn > _MANY:
            depth = max(depth, _DEEP)
        flat = self._flatten(schema)
        if "const" in flat:
            return flat["const"]
        if "enum" in flat:
            return self._rng.choice(_listed(flat, "enum"))
        for keyword in ("anyOf", "oneOf"):
            if keyword in flat:
                rest = {key: value for key, value in flat.items() if key != keyword}
                branch = self._pick(_listed(flat, keyword), depth)
                return self._draw(_merge(rest, self._flatten(branch)), depth)
        match self._type(flat, depth):
            case "object":
                return self._object(flat, depth)
            case "array":
                return self._array(flat, depth)
            case "string":
                return self._string(flat)
            case "integer":
                return self._integer(flat)
            case "number":
                return self._number(flat)
            case "boolean":
                return self._rng.random() < 0.5
            case _:
                return None

    def _flatten(self, schema: Any, followed: tuple[str, ...] = ()) -> dict[str, Any]:
        """The schema with `$ref` and `allOf` replaced by what they stand for."""
        flat = _keywords(schema)
        if "$ref" in flat:
            ref = flat.pop("$ref")
            if ref in followed:
                raise InvalidInput(f"the schema's $ref {ref!r} leads back to itself")
            followed = (*followed, ref)
            flat = _merge(self._flatten(self._resolve(ref), followed), flat)
        if "allOf" in flat:
            parts = _listed(flat, "allOf")
            del flat["allOf"]
            for part in parts:
                flat = _merge(flat, self._flatten(part, followed))
        for keyword in _REFUSED:
            if keyword in flat:
                raise InvalidInput(f"the emulated engine cannot generate for the schema keyword {keyword!r}")
        return flat

    def _resolve(self, ref: Any) -> Any:
        if not isinstance(ref, str) or not ref.startswith("#"):
            raise InvalidInput(f"the schema's $ref {ref!r} must point into the schema itself (#/...)")
        node = self._root
        for step in ref.removeprefix("#").split("/")[1:]:
            key = step.replace("~1", "/").replace("~0", "~")
            if not isinstance(node, Mapping) or key not in node:
                raise InvalidInput(f"the schema's $ref {ref!r} points nowhere")
            node = node[key]
        return node

    def _type(self, flat: Mapping[str, Any], depth: int) -> str:
        declared = flat.get("type")
        if declared is None:
            if "properties" in flat or "required" in flat:
                return "object"
            if "items" in flat or "prefixItems" in flat:
                return "array"
            return "number" if {"minimum", "maximum"} & flat.keys() else "string"
        names = declared if isinstance(declared, list) else [declared]
        known = [name for name in _TYPES if name in names]
        if len(known) != len(names) or not known:
            raise InvalidInput(f"the schema's type {declared!r} is not a JSON type")
        return known[0] if depth >= _DEEP else self._rng.choice(known)

    def _pick(self, branches: list[Any], depth: int) -> Any:
        ending = [(self._height(branch), index) for index, branch in enumerate(branches)]
        finite = [(height, index) for height, index in ending if height < math.inf]
        if not finite:
            raise InvalidInput("no value of the schema is ever complete: every branch contains itself")
        return branches[(min(finite) if depth >= _DEEP else self._rng.choice(finite))[1]]

    def _measure(self) -> dict[str, float]:
        """The height of whatever a `$ref` names: from "endless" down, until nothing changes."""
        self._heights = dict.fromkeys(_refs(self._root), math.inf)
        before: dict[str, float] = {}
        while before != self._heights:
            before = dict(self._heights)
            for ref in before:
                self._heights[ref] = self._height(self._resolve(ref))
        return self._heights

    def _height(self, schema: Any) -> float:
        """Levels of the flattest value: 0 for a scalar, infinite for one that must contain itself."""
        if schema is False:
            return math.inf
        if isinstance(schema, Mapping) and "$ref" in schema:
            return self._heights.get(schema["$ref"], math.inf)
        flat = self._flatten(schema)
        if "const" in flat or "enum" in flat:
            return 0
        for keyword in ("anyOf", "oneOf"):
            if keyword in flat:
                return min(map(self._height, _listed(flat, keyword)))
        kind = self._type(flat, _DEEP)
        if kind == "object":
            properties = _mapping(flat, "properties")
            inside = [properties.get(name, True) for name in _names(flat)]
        elif kind == "array":
            inside = [flat.get("items", True)] if _count(flat, "minItems", 0) else []
            inside += flat.get("prefixItems", [])
        else:
            return 0
        return 1 + max(map(self._height, inside), default=0)

    def _object(self, flat: Mapping[str, Any], depth: int) -> dict[str, Any]:
        properties, required = _mapping(flat, "properties"), _names(flat)
        fewest = _count(flat, "minProperties", 0)
        most = _count(flat, "maxProperties", max(len(properties) + len(required), fewest))
        optional = [name for name in properties if name not in required]
        optional = [name for name in optional if self._height(properties[name]) < math.inf]
        chosen = [name for name in optional if depth < _DEEP and self._rng.random() < 0.5]
        spare = [name for name in optional if name not in chosen]
        chosen += spare[: max(0, fewest - len(required) - len(chosen))]
        names = set(required) | set(chosen[: max(0, most - len(required))])
        order = [name for name in properties if name in names]
        order += [name for name in required if name not in properties]
        extra = flat.get("additionalProperties", True)
        if len(order) < len(required) or len(required) > most or (extra is False and len(order) < fewest):
            raise InvalidInput("the schema's required, minProperties and maxProperties contradict each other")
        order += [f"extra_{number}" for number in range(1, fewest - len(order) + 1)]
        return {name: self._draw(properties.get(name, extra), depth + 1) for name in order}

    def _array(self, flat: Mapping[str, Any], depth: int) -> list[Any]:
        leading, items = flat.get("prefixItems", []), flat.get("items", True)
        fewest = _count(flat, "minItems", len(leading))
        most = _count(flat, "maxItems", fewest + 3 if items is not False else len(leading))
        if fewest > most:
            raise InvalidInput(f"the schema wants at least {fewest} and at most {most} items")
        if depth >= _DEEP or self._height(items) == math.inf:
            most = fewest
        length = self._rng.randint(fewest, most)
        drawn: list[Any] = []
        attempts = 0
        while len(drawn) < length:
            index = len(drawn)
            value = self._draw(leading[index] if index < len(leading) else items, depth + 1)
            attempts += 1
            if not flat.get("uniqueItems") or value not in drawn:
                drawn.append(value)
            elif attempts > 100 * length:
                if index >= fewest:
                    break
                raise InvalidInput(f"the emulated engine found no {fewest} different items for the schema")
        return drawn

    def _string(self, flat: Mapping[str, Any]) -> str:
        if (known := _FORMATS.get(flat.get("format", ""))) is not None:
            return known
        fewest = _count(flat, "minLength", 0)
        most = _count(flat, "maxLength", max(fewest, 80))
        if fewest > most:
            raise InvalidInput(f"the schema wants at least {fewest} and at most {most} characters")
        text = "-".join(self._rng.choices(_WORDS, k=self._rng.randint(1, 3)))
        while len(text) < fewest:
            text += f"-{self._rng.choice(_WORDS)}"
        return text[:most]

    def _integer(self, flat: Mapping[str, Any]) -> int:
        low, high = _bounds(flat)
        step = flat.get("multipleOf", 1)
        if not isinstance(step, int | float) or step <= 0 or step != int(step):
            raise InvalidInput(f"the emulated engine cannot draw integers that are multiples of {step!r}")
        first, last = math.ceil(low / step), math.floor(high / step)
        first += first * step == flat.get("exclusiveMinimum")
        last -= last * step == flat.get("exclusiveMaximum")
        if first > last:
            raise InvalidInput(f"the schema leaves no integer between {low:g} and {high:g}")
        return self._rng.randint(first, last) * int(step)

    def _number(self, flat: Mapping[str, Any]) -> float:
        if "multipleOf" in flat:
            return float(self._integer(flat))
        low, high = _bounds(flat)
        if low > high or (low == high and {"exclusiveMinimum", "exclusiveMaximum"} & flat.keys()):
            raise InvalidInput(f"the schema leaves no number between {low:g} and {high:g}")
        value = low + (high - low) * self._rng.uniform(0.05, 0.95)
        short = round(value, 2)
        return short if low < short < high else value


def _keywords(schema: Any) -> dict[str, Any]:
    if schema is True:
        return {}
    if not isinstance(schema, Mapping):
        raise InvalidInput(f"a schema is an object or true, not {schema!r}")
    return dict(schema)


def _refs(node: Any) -> Iterator[str]:
    """Every `$ref` in a schema, in document order."""
    if isinstance(node, Mapping):
        if isinstance(ref := node.get("$ref"), str):
            yield ref
        for part in node.values():
            yield from _refs(part)
    elif isinstance(node, list):
        for part in node:
            yield from _refs(part)


def _merge(base: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Both at once: properties and required are united, of anything else `other` wins."""
    merged = {**base, **other}
    if "properties" in base and "properties" in other:
        merged["properties"] = {**_mapping(base, "properties"), **_mapping(other, "properties")}
    if "required" in base and "required" in other:
        merged["required"] = list(dict.fromkeys([*_names(base), *_names(other)]))
    return merged


def _mapping(flat: Mapping[str, Any], keyword: str) -> Mapping[str, Any]:
    value = flat.get(keyword, {})
    if not isinstance(value, Mapping):
        raise InvalidInput(f"the schema's {keyword} must be an object")
    return value


def _listed(flat: Mapping[str, Any], keyword: str) -> list[Any]:
    value = flat[keyword]
    if not isinstance(value, list) or not value:
        raise InvalidInput(f"the schema's {keyword} must be a list that is not empty")
    return value


def _names(flat: Mapping[str, Any]) -> list[str]:
    value = flat.get("required", [])
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise InvalidInput("the schema's required must be a list of names")
    return value


def _count(flat: Mapping[str, Any], keyword: str, default: int) -> int:
    value = flat.get(keyword, default)
    if not isinstance(value, int) or value < 0:
        raise InvalidInput(f"the schema's {keyword} must be a whole number, not {value!r}")
    return value


def _bounds(flat: Mapping[str, Any]) -> tuple[float, float]:
    given: dict[str, float] = {}
    for keyword in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"):
        value = flat.get(keyword)
        if value is None:
            continue
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise InvalidInput(f"the schema's {keyword} must be a number, not {value!r}")
        given[keyword] = value
    lows = [given[keyword] for keyword in ("minimum", "exclusiveMinimum") if keyword in given]
    highs = [given[keyword] for keyword in ("maximum", "exclusiveMaximum") if keyword in given]
    low = max(lows) if lows else min(0, *highs) if highs else 0
    return low, (min(highs) if highs else low + 100)
