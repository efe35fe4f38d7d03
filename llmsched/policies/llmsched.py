"""Algorithm 1 (being written)."""
from __future__ import annotations
from llmsched.policies.estimated import Srpt
from llmsched.profiler import Knowledge
LITERAL: dict[str, object] = {}
PLUS: dict[str, object] = {}
class Llmsched(Srpt):
    def __init__(self, knowledge: Knowledge | None = None, eps: float = 0.2, r: float = 0.3) -> None:
        super().__init__(knowledge, "bayesnet", "total")
LlmschedWithoutBn = Llmsched
