"""First come, first served: jobs in arrival order, within a job in topological order.

Source: Spark's FIFO scheduler (job submission order, then stage); baseline of LLMSched (arXiv:2504.03444), section V.
"""

from __future__ import annotations

from llmsched.model.job import Stage
from llmsched.policies.base import KeyPolicy, View


class Fcfs(KeyPolicy):
    """Orders by the arrival of the job, not by the moment a stage became ready."""

    key_name = "arrived_at"

    def key(self, stage: Stage, view: View) -> float:
        return stage.job.arrived_at
