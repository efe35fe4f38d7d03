"""Weights by name, as policies take them: of applications, of tenants."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

from llmsched.errors import InvalidInput, show


def weights_from(weights: Mapping[str, float] | str, *, of: str, field: str = "weights") -> dict[str, float]:
    """Weights by name, from a mapping or from text.

    of: what bears them. field: the option, for the sentence of an error.
    Raises InvalidInput for a weight that is not a positive number.

    >>> weights_from("a=2, b=0.5", of="tenant")
    {'a': 2.0, 'b': 0.5}
    """
    pairs: dict[str, Any] = {}
    if isinstance(weights, str):
        for part in filter(None, (part.strip() for part in weights.split(","))):
            name, _, number = part.partition("=")
            try:
                pairs[name.strip()] = float(number)
            except ValueError:
                raise InvalidInput(f"{field} is {show(weights)}; write {of}=weight,{of}=weight", field=field) from None
    elif isinstance(weights, Mapping):
        pairs = dict(weights)
    else:
        raise InvalidInput(f"{field} is {show(weights)}; write {of}=weight,{of}=weight", field=field)
    for name, weight in pairs.items():
        is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not is_number or not isfinite(weight) or weight <= 0:
            raise InvalidInput(
                f"the weight of {of} {name!r} is {show(weight)}; it must be a positive number", field=field
            )
    return pairs
