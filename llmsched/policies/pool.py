"""`llmsched-pool`, the default: least expected remaining work in the task's own pool first.

A pool is a queue of its own. What makes jobs wait in it is only the work they bring to it, so that is what a job is
ordered by: not its work elsewhere, and not how long it will take in all. Seconds are those of a full batch (Eq. 2 with
b = the slots of the pool's largest engine): decoding slows down as the batch grows and prefill does not, and when order
matters, the batch is full.

What is left is expected by the estimator that predicted the application best in cross-validation, updated with
everything the job has shown: what its input looks like, what is over, what runs, what its plan says.
Source: ours. What was tried beside it and did not help is in docs/policies.md.
"""

from __future__ import annotations

from llmsched.model.job import Stage
from llmsched.policies.base import View
from llmsched.policies.estimated import EstimatePolicy


class LlmschedPool(EstimatePolicy):
    """Smallest calibrated remaining work in the stage's own pool first."""

    def key(self, stage: Stage, view: View) -> float:
        work = self.remaining(stage.job).get(stage.pool)
        return 0.0 if work is None else work.calibrated(self.pace(stage.pool, view))

    def pace(self, pool: str, view: View) -> float:
        """l(b) / l(1) of a full batch."""
        slots = max((e.slots for e in view.in_pool(pool)), default=1)
        curve = self.knowledge.curves[pool]
        alone = curve.decode(1)
        return curve.decode(max(1, slots)) / alone if alone else 1.0
