"""Order of ready work: one file per policy, one row per policy in `POLICIES`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import NamedTuple

from llmsched.errors import InvalidInput, UnknownName
from llmsched.policies.base import Policy
from llmsched.policies.estimated import Srpt, SrtfPrior
from llmsched.policies.fcfs import Fcfs
from llmsched.policies.gittins import Gittins
from llmsched.policies.llmsched import LITERAL, PLUS, Llmsched, LlmschedWithoutBn
from llmsched.policies.oracle import Oracle, OracleReady
from llmsched.policies.pool import LlmschedPool
from llmsched.policies.sjf import Sjf
from llmsched.profiler import Estimator, Knowledge

#: What the service starts with.
DEFAULT_POLICY = "llmsched-pool"


class PolicyInfo(NamedTuple):
    """make: keyword options -> a fresh policy. line: what it does. source: where it comes from.

    is_oracle: it needs to know the future, which only a simulation has.
    """

    make: Callable[..., Policy]
    line: str
    source: str
    is_oracle: bool = False


_PAPER = "LLMSched (arXiv:2504.03444)"

POLICIES: dict[str, PolicyInfo] = {
    DEFAULT_POLICY: PolicyInfo(
        LlmschedPool, "Gittins index of the work left in the task's own pool, at a full batch", "ours; Gittins (1979)"
    ),
    "llmsched": PolicyInfo(Llmsched, "shortest remaining first, with ε-greedy exploration", f"{_PAPER}, Algorithm 1"),
    "llmsched-literal": PolicyInfo(
        partial(Llmsched, **LITERAL), "Algorithm 1 with every ambiguity read word by word", f"{_PAPER}, Algorithm 1"
    ),
    "llmsched-plus": PolicyInfo(
        partial(Llmsched, **PLUS), "Algorithm 1 with every extension that goes beyond the paper", f"{_PAPER} and ours"
    ),
    "llmsched-wo-bn": PolicyInfo(
        LlmschedWithoutBn, "Algorithm 1 with historical means in place of the network", f"{_PAPER}, section V-C"
    ),
    "llmsched-wo-uncertainty": PolicyInfo(
        partial(Llmsched, eps=0.0),
        "Algorithm 1 without exploration: shortest remaining first",
        f"{_PAPER}, section V-C",
    ),
    "srpt": PolicyInfo(Srpt, "least expected remaining work in the task's own pool first, by the network", "ours"),
    "gittins": PolicyInfo(Gittins, "Gittins index of the work left in the task's own pool", "Gittins (1979)"),
    "srtf-prior": PolicyInfo(SrtfPrior, "mean work of the application, less what is done, first", "LLMSched baselines"),
    "sjf": PolicyInfo(Sjf, "jobs of the application with the least mean work first", f"{_PAPER}, section V"),
    "fcfs": PolicyInfo(Fcfs, "jobs in arrival order", "Spark FIFO"),
    "oracle-ready": PolicyInfo(
        OracleReady, "the default, told the truth of ready stages: a ceiling", "reference line", is_oracle=True
    ),
    "oracle-pool": PolicyInfo(
        Oracle, "true remaining work in the task's own pool: a bound, not a policy", "reference line", is_oracle=True
    ),
    "oracle-srtf": PolicyInfo(
        partial(Oracle, scope="total"), "true remaining work: a bound, not a policy", "reference line", is_oracle=True
    ),
}


def make_policy(
    name: str, *, knowledge: Knowledge | None = None, truth: Estimator | None = None, **options: object
) -> Policy:
    """A fresh policy of the registry.

    knowledge: what is believed, for policies that ask; truth: what will be, for oracles.
    Raises UnknownName for an unknown policy or option, naming the nearest known one, and InvalidInput for an oracle
    without a truth or an option with a bad value.
    """
    if name not in POLICIES:
        raise UnknownName.of("policy", name, POLICIES, field="policy")
    info = POLICIES[name]
    if info.is_oracle and truth is None:
        raise InvalidInput(
            f"policy {name!r} needs to know the future, which only `llmsched simulate` has", field="policy"
        )
    known = [option for option in signature(info.make).parameters if option not in ("knowledge", "truth")]
    for option in options:
        if option not in known:
            raise UnknownName.of(f"option of policy {name!r}", option, known)
    given = {"knowledge": knowledge, "truth": truth}
    asked = signature(info.make).parameters
    return info.make(**{k: v for k, v in given.items() if k in asked and v is not None}, **options)
