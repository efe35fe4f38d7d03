"""First come, first served: jobs in arrival order, within a job in topological order.

`by="stage"` queues stages by the moment they became ready, as a server does that knows nothing of jobs: each stage of a
job then goes to the back of the queue. A stage all of whose waiting tasks ran before (a retry) queues again as well.
Source: Spark's FIFO scheduler (job submission order, then stage); baseline of LLMSched (arXiv:2504.03444), section V.
"""

from __future__ import annotations

from typing import Literal

from llmsched.errors import UnknownName
from llmsched.model.job import Stage
from llmsched.policies.base import KeyPolicy, View

By = Literal["job", "stage"]


class Fcfs(KeyPolicy):
    """Orders by the arrival of the job; by "stage": by the moment the stage became ready.

    Raises UnknownName for another `by`.
    """

    def __init__(self, by: By = "job") -> None:
        super().__init__()
        if by not in ("job", "stage"):
            raise UnknownName.of("value of by", str(by), ("job", "stage"), field="by")
        self._by = by
        self.key_name = "arrived_at" if by == "job" else "ready_at"

    def key(self, stage: Stage, view: View) -> float:
        if self._by == "job":
            return stage.job.arrived_at
        return min(task.ready_at for task in stage.tasks or ())
