"""What was said about running jobs, and how right it was: ETAs, their calibration, and the drift guard.

A note is taken when a job is submitted and after each of its stages: work done by then, and what is believed to be
left. When the job has completed, its notes are held against what happened. Only applications with a profile are
followed.

This happens in the event loop, and a note costs 0.15 to 0.25 ms: a third of it for the guard, the rest, most of it the
estimator's, for the ETA. So notes have a budget, `SHARE` of the time; where stages complete faster than that, some go
without.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from math import isfinite
from typing import NamedTuple

from llmsched.model.job import Job
from llmsched.profiler import Knowledge, Profile
from llmsched.profiler.done import work_done
from llmsched.runtime.learning.drift import DriftGuard
from llmsched.runtime.learning.eta import Calibration, Eta
from llmsched.runtime.observer import Observer, Silent

log = logging.getLogger(__name__)

#: Share of the event loop's time that notes may take, and the seconds that may be saved up.
SHARE = 0.05
SAVINGS = 0.1
#: What the guard falls back to.
MEAN = "mean"


class _Note(NamedTuple):
    """done, believed, mean, p50, p90: reference seconds, the last four of what is left."""

    profile: Profile
    at: float
    done: float
    believed: float
    mean: float
    p50: float
    p90: float
    eta: Eta


@dataclass(slots=True)
class _Followed:
    job: Job
    notes: list[_Note] = field(default_factory=list)


class Foresight:
    """Follows jobs with `knowledge`. speed: of emulated engines, so many times faster than their curve."""

    def __init__(self, knowledge: Knowledge, *, speed: float = 1.0, observer: Observer | None = None) -> None:
        self.knowledge = knowledge
        self._speed = speed
        self._observer = observer or Silent()
        self._jobs: dict[str, _Followed] = {}
        self._guards: dict[str, DriftGuard] = {}
        self._calibrations: dict[str, Calibration] = {}
        #: Seconds that notes may take now, as of a moment.
        self._budget = SAVINGS
        self._counted_at = time.perf_counter()

    def has_drifted(self, application: str) -> bool:
        """Whether the plain mean is used instead of what the profile chose."""
        guard = self._guards.get(application)
        return guard is not None and guard.has_drifted

    def eta(self, job: str, now: float) -> Eta | None:
        """What was believed when the job's last stage completed, or at its submission; never in the past."""
        followed = self._jobs.get(job)
        if followed is None or not followed.notes:
            return None
        eta = followed.notes[-1].eta
        return Eta(max(now, eta.p50), max(now, eta.p90))

    # ---------------------------------------------------------------------------------------------- a job's life

    def predict(self, job: Job, now: float) -> Eta:
        """When a job that is not followed would be done; by what its template declares where nothing is learned."""
        p50, p90 = self.knowledge.outlook(job).quantiles(0.5, 0.9)
        return self._calibration(job.application.name).eta(now, p50, p90)

    def look(self, job: Job, now: float) -> Eta | None:
        """Takes a note of a running job. None while nothing is learned of its application, or the budget is spent."""
        began = time.perf_counter()
        self._budget = min(SAVINGS, self._budget + SHARE * (began - self._counted_at))
        self._counted_at = began
        if self._budget <= 0.0:
            return None
        eta = self._look(job, now)
        self._budget -= time.perf_counter() - began
        return eta

    def _look(self, job: Job, now: float) -> Eta | None:
        name = job.application.name
        profile = self.knowledge.profiles.get(name)
        if profile is None or not profile.fits(job.application):
            return None
        outlook = self.knowledge.outlook(job)
        totals = outlook.totals()
        used = float(outlook.weights @ totals)
        own, at_work = profile.estimator, self.knowledge.estimator_of(name)
        believed = mean = used
        if at_work != own:
            believed = sum(w.total for w in self.knowledge.estimator(job.application, own).remaining(job).values())
        elif own != MEAN:
            mean = sum(w.total for w in self.knowledge.mean_remaining(job).values())
        p50, p90 = outlook.quantiles(0.5, 0.9)
        if not isfinite(believed + mean + p90):
            return None
        eta = self._calibration(name).eta(now, p50, p90)
        followed = self._jobs.setdefault(job.id, _Followed(job))
        done = work_done(job, self.knowledge.curves)
        followed.notes.append(_Note(profile, now, done, believed, mean, p50, p90, eta))
        return eta

    def ended(self, job: str, now: float, *, completed: bool) -> None:
        """The job is over. Only what completed teaches."""
        self.knowledge.forget(job)
        followed = self._jobs.pop(job, None)
        if followed is None or not completed:
            return
        name = followed.job.application.name
        total = work_done(followed.job, self.knowledge.curves)
        guard, calibration = self._guards.setdefault(name, DriftGuard()), self._calibration(name)
        profile = self.knowledge.profiles.get(name)
        for note in followed.notes:
            seconds = max(now - note.at, 1e-6)
            self._observer.estimated(name, (note.eta.p50 - note.at) / seconds)
            calibration.add(note.p50, note.p90, seconds)
        guard.add((n.believed, n.mean, total - n.done) for n in followed.notes if n.profile is profile)
        if guard.judge():
            self._switch(name, guard)

    def learned(self, application: str) -> None:
        """A new profile serves the application: it is judged on its own."""
        self._guards.pop(application, None)

    def _switch(self, name: str, guard: DriftGuard) -> None:
        self.knowledge.use(name, MEAN if guard.has_drifted else None)
        believed, mean = guard.errors
        details = {"application": name, "error_s": round(believed, 4), "error_of_mean_s": round(mean, 4)}
        if guard.has_drifted:
            log.warning("belief is worse than the mean, which is used from now on", extra=details)
        else:
            log.info("belief is as good as the mean again and is used from now on", extra=details)

    def _calibration(self, name: str) -> Calibration:
        found = self._calibrations.get(name)
        if found is None:
            found = self._calibrations[name] = Calibration(1.0 / self._speed)
        return found
