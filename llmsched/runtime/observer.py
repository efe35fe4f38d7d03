"""What the running service reports about itself as it happens; metrics listen, and tests may."""

from __future__ import annotations

from typing import Protocol

from llmsched.model.records import Usage


class Observer(Protocol):
    """Every method is called from the event loop, right when the thing happened. Durations are seconds."""

    def job_submitted(self, application: str, job_class: str) -> None: ...

    def job_finished(self, application: str, outcome: str, seconds: float) -> None: ...

    def task_started(self, pool: str, application: str, queued: float) -> None: ...

    def task_ended(self, pool: str, application: str, ran: float) -> None: ...

    def task_retried(self, pool: str, reason: str) -> None: ...

    def task_sliced(self, pool: str) -> None:
        """An attempt ended at its cap of tokens, and its task queues again."""

    def used(self, usage: Usage) -> None:
        """A tenant used something, which is about to be committed."""

    def over_quota(self, tenant: str, quota: str) -> None:
        """A job was refused because its tenant asks for more than this quota."""

    def decided(self, seconds: float) -> None: ...

    def explored(self) -> None:
        """A task was started to learn, not because it looked best."""

    def estimated(self, application: str, ratio: float) -> None:
        """A job is over. ratio: predicted over actual remaining seconds, once per time it was asked about."""


class Silent:
    """An observer that hears nothing."""

    def job_submitted(self, application: str, job_class: str) -> None:
        pass

    def job_finished(self, application: str, outcome: str, seconds: float) -> None:
        pass

    def task_started(self, pool: str, application: str, queued: float) -> None:
        pass

    def task_ended(self, pool: str, application: str, ran: float) -> None:
        pass

    def task_retried(self, pool: str, reason: str) -> None:
        pass

    def task_sliced(self, pool: str) -> None:
        pass

    def decided(self, seconds: float) -> None:
        pass

    def used(self, usage: Usage) -> None:
        pass

    def over_quota(self, tenant: str, quota: str) -> None:
        pass

    def explored(self) -> None:
        pass

    def estimated(self, application: str, ratio: float) -> None:
        pass


class Several:
    """Observers that hear the same, one after the other."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def job_submitted(self, application: str, job_class: str) -> None:
        for observer in self._observers:
            observer.job_submitted(application, job_class)

    def job_finished(self, application: str, outcome: str, seconds: float) -> None:
        for observer in self._observers:
            observer.job_finished(application, outcome, seconds)

    def task_started(self, pool: str, application: str, queued: float) -> None:
        for observer in self._observers:
            observer.task_started(pool, application, queued)

    def task_ended(self, pool: str, application: str, ran: float) -> None:
        for observer in self._observers:
            observer.task_ended(pool, application, ran)

    def task_retried(self, pool: str, reason: str) -> None:
        for observer in self._observers:
            observer.task_retried(pool, reason)

    def task_sliced(self, pool: str) -> None:
        for observer in self._observers:
            observer.task_sliced(pool)

    def used(self, usage: Usage) -> None:
        for observer in self._observers:
            observer.used(usage)

    def over_quota(self, tenant: str, quota: str) -> None:
        for observer in self._observers:
            observer.over_quota(tenant, quota)

    def decided(self, seconds: float) -> None:
        for observer in self._observers:
            observer.decided(seconds)

    def explored(self) -> None:
        for observer in self._observers:
            observer.explored()

    def estimated(self, application: str, ratio: float) -> None:
        for observer in self._observers:
            observer.estimated(application, ratio)
