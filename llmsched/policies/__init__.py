"""Order of ready work: one file per policy, one row per policy in `POLICIES`."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import NamedTuple

from llmsched.errors import UnknownName
from llmsched.policies.base import Policy
from llmsched.policies.fcfs import Fcfs
from llmsched.policies.sjf import Sjf


class PolicyInfo(NamedTuple):
    """make: keyword options -> a fresh policy. line: what it does. source: where it comes from."""

    make: Callable[..., Policy]
    line: str
    source: str


POLICIES: dict[str, PolicyInfo] = {
    "fcfs": PolicyInfo(Fcfs, "jobs in arrival order", "Spark FIFO"),
    "sjf": PolicyInfo(Sjf, "jobs of the application with the least mean work first", "LLMSched, section V"),
}


def make_policy(name: str, **options: object) -> Policy:
    """A fresh policy of the registry.

    Raises UnknownName for an unknown policy or option, naming the nearest known one.
    """
    if name not in POLICIES:
        raise UnknownName.of("policy", name, POLICIES, field="policy")
    make = POLICIES[name].make
    known = signature(make).parameters
    for option in options:
        if option not in known:
            raise UnknownName.of(f"option of policy {name!r}", option, known)
    return make(**options)
