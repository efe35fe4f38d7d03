"""Deadlines at the door: when a job that is handed in will probably be over, and what is done if that is too late.

The forecast is that of the ETA (`learning/eta.py`): what is believed the job has to do, times how long recent jobs of
its application took for what they had to do, so that the queue of the last minutes is in it. Of an application nothing
is learned of, it is what the template declares.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from llmsched.errors import InvalidInput
from llmsched.model.events import Batch, JobSubmitted
from llmsched.policies.fcfs import Fcfs
from llmsched.runtime.learning.eta import Eta
from llmsched.runtime.learning.foresight import Foresight
from llmsched.scheduler import Scheduler

Admission = Literal["off", "warn", "refuse"]


class Forecast(NamedTuple):
    """due, eta: unix seconds. warning: a sentence where the job will probably be late."""

    due: float
    eta: Eta
    warning: str | None


class Deadlines:
    """admission: what becomes of a job that will more likely than not be late."""

    def __init__(self, foresight: Foresight, admission: Admission = "off") -> None:
        self._foresight = foresight
        self.admission = admission

    def judge(self, submitted: JobSubmitted, now: float) -> Forecast | None:
        """The forecast of a job that is about to be accepted; None where it has no deadline or nobody asks.

        Raises InvalidInput where it is refused.
        """
        if submitted.due is None or self.admission == "off":
            return None
        scheduler = Scheduler(Fcfs())  # an empty one, which knows how a job begins
        scheduler.handle(Batch(now, (submitted,)))
        job = scheduler.view.jobs.get(submitted.job)
        eta = Eta(now, now) if job is None else self._foresight.predict(job, now)
        self._foresight.knowledge.forget(submitted.job)
        if eta.p50 <= submitted.due:
            return Forecast(submitted.due, eta, None)
        given, p50, p90 = (f"{at - submitted.arrived_at:.3g}" for at in (submitted.due, *eta))
        said = f"deadline_s is {given}, but the job is expected to take {p50} seconds (90 %: {p90})"
        if self.admission == "refuse":
            raise InvalidInput(f"{said}; give it more time, leave the deadline out, or retry later", field="deadline_s")
        return Forecast(submitted.due, eta, f"{said}; it will probably be late")
