"""The agents that ship: one per workload it was trained on, as `checkpoints/<name>.npz`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import lru_cache

from llmsched.errors import UnknownName
from llmsched.policies.decima.network import Network
from llmsched.workloads import WORKLOADS

#: Where they are, with a slash at the end.
CHECKPOINTS = __file__.removesuffix("agents.py") + "checkpoints/"
#: Agent -> the applications it was trained on, fewest first.
AGENTS: Mapping[str, frozenset[str]] = {
    name: frozenset(WORKLOADS[name]) for name in ("chain", "planning", "predefined", "mixed-nodoc", "mixed")
}


def agent_for(applications: Collection[str]) -> str:
    """The agent of the fewest applications that cover these; the one of all where none does.

    >>> agent_for(["web_search"]), agent_for(["web_search", "llm_compiler"])
    ('chain', 'mixed-nodoc')
    """
    return next((name for name, known in AGENTS.items() if known.issuperset(applications)), "mixed")


@lru_cache
def network_of(agent: str) -> Network:
    """The checkpoint that ships. Raises UnknownName for an agent that does not exist."""
    if agent not in AGENTS:
        raise UnknownName.of("agent of decima", agent, ("auto", *AGENTS), field="agent")
    return Network.load(f"{CHECKPOINTS}{agent}.npz")
