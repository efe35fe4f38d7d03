"""Order of ready work: one file per policy, one row per policy in `POLICIES`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from inspect import signature
from typing import NamedTuple

from llmsched.errors import InvalidInput, UnknownName
from llmsched.policies.argus import Argus
from llmsched.policies.attained import Atlas, Las
from llmsched.policies.base import Policy
from llmsched.policies.bounded import Bounded
from llmsched.policies.carbyne import Carbyne
from llmsched.policies.deadlines import Punctual
from llmsched.policies.decima import Decima
from llmsched.policies.estimated import Srpt, SrtfPrior
from llmsched.policies.fair import Fair
from llmsched.policies.fcfs import Fcfs
from llmsched.policies.gittins import Gittins
from llmsched.policies.levels import Fastserve, Mlfq
from llmsched.policies.llmsched import LITERAL, PLUS, Llmsched, LlmschedWithoutBn
from llmsched.policies.ltr import Ltr
from llmsched.policies.magnus import Hrrn, Magnus
from llmsched.policies.oracle import Oracle, OracleReady
from llmsched.policies.pool import LlmschedPool
from llmsched.policies.scls import Scls
from llmsched.policies.shuffled import Shuffled
from llmsched.policies.sjf import Sjf
from llmsched.policies.ssjf import Ssjf
from llmsched.policies.started import FinishStarted
from llmsched.policies.tenants import Shared
from llmsched.policies.vtfq import Vtfq
from llmsched.profiler import Estimator, Knowledge
from llmsched.profiler.lengths import Model

#: What the service starts with.
DEFAULT_POLICY = "llmsched-pool"


#: Options that every policy takes.
COMMON = ("max_wait", "tenants", "deadlines")
#: What a policy is handed by whoever makes it, and nobody writes as an option.
_HANDED = ("knowledge", "truth", "lengths", "network")


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
    "carbyne": PolicyInfo(
        Carbyne, "fair shares of which jobs give up what can wait, to the shortest", "Carbyne (OSDI'16)"
    ),
    "decima": PolicyInfo(Decima, "the choice of a graph network trained by reinforcement", "Decima (SIGCOMM 2019)"),
    "srtf-prior": PolicyInfo(SrtfPrior, "mean work of the application, less what is done, first", "LLMSched baselines"),
    "sjf": PolicyInfo(Sjf, "jobs of the application with the least mean work first", f"{_PAPER}, section V"),
    "fcfs": PolicyInfo(Fcfs, "jobs in arrival order", "Spark FIFO"),
    "fair": PolicyInfo(Fair, "jobs with the fewest running tasks in the pool", "Spark fair scheduler"),
    "argus": PolicyInfo(Argus, "stages that unlock most, by depth and fan-out of the template", "Argus (IPDPS'21)"),
    "las": PolicyInfo(Las, "jobs that have had least LLM service, by levels", "Autellix (arXiv:2502.13965), PLAS"),
    "atlas": PolicyInfo(
        Atlas, "jobs with least LLM service along their critical path so far", "Autellix (arXiv:2502.13965), ATLAS"
    ),
    "vtfq": PolicyInfo(Vtfq, "jobs that would be over first under fair sharing", "Justitia (arXiv:2510.17015)"),
    "finish-started": PolicyInfo(FinishStarted, "jobs that were begun, then arrival", "ours"),
    "random": PolicyInfo(Shuffled, "ready tasks in random order", "reference line"),
    "fastserve": PolicyInfo(
        Fastserve, "LLM calls in feedback queues by service had, joined by prompt", "FastServe (arXiv:2305.05920)"
    ),
    "mlfq": PolicyInfo(Mlfq, "LLM calls in feedback queues by service had, all joining the first", "vllm-ltr; MLFQ"),
    "scls": PolicyInfo(
        Scls, "LLM calls in slices, in batches of like input length planned per interval", "SCLS (arXiv:2406.13511)"
    ),
    "ltr": PolicyInfo(
        Ltr, "LLM calls by a learned ranking of their answers' lengths, shortest first", "vllm-ltr (arXiv:2408.15792)"
    ),
    "ssjf": PolicyInfo(Ssjf, "LLM calls by predicted seconds, shortest first", "SSJF (arXiv:2404.08509)"),
    "magnus": PolicyInfo(
        Magnus,
        "batches of LLM calls of like predicted length, highest response ratio next",
        "Magnus (arXiv:2406.04785)",
    ),
    "hrrn": PolicyInfo(Hrrn, "LLM calls by wait over predicted seconds, highest first", "Brinch Hansen (1971); Magnus"),
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
    name: str,
    *,
    knowledge: Knowledge | None = None,
    truth: Estimator | None = None,
    lengths: Model | None = None,
    max_wait: float | None = None,
    tenants: Mapping[str, float] | str | None = None,
    deadlines: float | None = None,
    **options: object,
) -> Policy:
    """A fresh policy of the registry.

    knowledge: what is believed, for policies that ask; truth: what will be, for oracles. lengths: how long
    answers will be (None: by the model that ships). max_wait: seconds after which a job goes first (`Bounded`).
    tenants: weights for turns between tenants (`Shared`). deadlines: the margin of jobs that have one (`Punctual`):
    within its turn a tenant's urgent jobs go first, not before those of others. options: of the policy itself.
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
    for option in options:
        if option not in options_of(name):
            raise UnknownName.of(f"option of policy {name!r}", option, options_of(name), field="policy")
    given = {"knowledge": knowledge, "truth": truth, "lengths": lengths}
    asked = signature(info.make).parameters
    policy = info.make(**{k: v for k, v in given.items() if k in asked and v is not None}, **options)
    if deadlines is not None:
        policy = Punctual(policy, deadlines, knowledge)
    if tenants:
        policy = Shared(policy, tenants)
    return policy if max_wait is None else Bounded(policy, max_wait)


def options_of(name: str) -> list[str]:
    """What a policy of the registry can be told after its name: its own options, then those of every policy."""
    own = [option for option in signature(POLICIES[name].make).parameters if option not in _HANDED]
    return [*own, *(option for option in COMMON if option not in own)]
