"""The options of LLMSched: one keyword per ambiguity of the paper, checked, with presets.

What concerns beliefs is in `Reading`; here is what concerns Algorithm 1. The numbers A7 … A44 are those of the table of
ambiguities in docs/policies.md. Not an option, because it makes no sense or nothing can tell: arcs against time (A2),
makespans (A4, A19), maximal independent sets (A23), the back of the lists (A25), token counts of streams (A32).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from inspect import Parameter, Signature
from math import isfinite
from typing import Any, Literal, get_args, get_origin, get_type_hints

from llmsched.errors import InvalidInput, UnknownName, show
from llmsched.profiler.reading import Reading

#: Options that are probabilities or shares; other numbers are 0 or more.
_SHARES = ("eps", "r", "theta")


@dataclass(frozen=True, kw_only=True)
class Options(Reading):
    """What `Llmsched` can be told besides what it knows. Raises UnknownName or InvalidInput for a bad value."""

    #: Probability of exploring (ε of the paper, which names no value).
    eps: float = 0.2
    seed: int = 0
    #: A7: b_t of Eq. 2: the batch the next task would see, the mean of what runs, that over 30 s, or a full batch.
    bt: Literal["next", "mean_running", "ewma", "full"] = "next"
    #: A21: whether stages that tell nothing stay out of S_u.
    su_positive_only: bool = False
    #: A22: whether intervals that only touch overlap.
    ends: Literal["closed", "half_open"] = "closed"
    #: A26: which list loses its first stage in a turn: the one chosen, or both.
    pop: Literal["one", "both"] = "one"
    #: A28: whether each decision draws anew, or each stage once for all.
    draw: Literal["call", "sticky"] = "call"
    #: A29: what a sample is a share of: all tasks less those started, or those that wait.
    base: Literal["all", "pending"] = "all"
    #: A31: the order of what the turns have left.
    rest: Literal["st", "su"] = "st"
    #: A33, A44: est_rd: the sum of all work, the longest path through it, or that of the busiest pool over its slots.
    est: Literal["sum", "critical_path", "bottleneck"] = "sum"
    #: A36: whether p = ε explores.
    inclusive: bool = False
    #: A43: whether S_u goes by information per second of X.
    per_second: bool = False

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for option in fields(self):
            _check(option.name, getattr(self, option.name), hints[option.name])

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Options:
        """Raises UnknownName for an option that does not exist, and for a bad value what the constructor raises."""
        known = [option.name for option in fields(cls)]
        for name in given:
            if name not in known:
                raise UnknownName.of("option of llmsched", name, known)
        return cls(**given)

    @classmethod
    def signature(cls, *more: str) -> Signature:
        """Of a callable that takes `knowledge`, every option, and `more` that are off by default."""
        first = ("eps", "r", "seed")
        own = {option.name: option.default for option in fields(cls)} | dict.fromkeys(more, False)
        order = sorted(own, key=lambda name: first.index(name) if name in first else len(first))
        keywords = [Parameter(name, Parameter.KEYWORD_ONLY, default=own[name]) for name in order]
        return Signature([Parameter("knowledge", Parameter.POSITIONAL_OR_KEYWORD, default=None), *keywords])


#: The paper word by word: everything marked L in the table, its `p <= ε`, the network as the specification's table
#: learns it (BIC, Laplace, six bins, stages only), and supports that end at theta.
LITERAL: dict[str, Any] = {
    "score": "bic",
    "smoothing": 1.0,
    "k_max": 6,
    "roots": False,
    "measure": "wall",
    "prefill": "scaled",
    "executed": False,
    "range": "theta",
    "interval": "remaining",
    "pop": "both",
    "base": "pending",
    "sampled": False,
    "inclusive": True,
}

#: Everything beyond the paper that is marked + in the table.
PLUS: dict[str, Any] = {
    "plan_entropy": "variant",
    "su_positive_only": True,
    "draw": "sticky",
    "evidence": "censored",
    "structural": True,
    "per_second": True,
}


def _check(name: str, value: Any, hint: Any) -> None:
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise UnknownName.of(f"value of {name}", str(value), get_args(hint), field=name)
    elif hint is bool:
        if not isinstance(value, bool):
            raise InvalidInput(f"{name} is {show(value)}; it must be true or false", field=name)
    elif hint is int:
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise InvalidInput(f"{name} is {show(value)}; it must be a whole number from 0 up", field=name)
    else:
        most = 1.0 if name in _SHARES else float("inf")
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
        if not is_number or not 0.0 <= value <= most:
            what = "between 0 and 1" if most == 1.0 else "from 0 up"
            raise InvalidInput(f"{name} is {show(value)}; it must be a number {what}", field=name)
