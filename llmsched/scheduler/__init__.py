"""The scheduler: a silent state machine. Dated batches of events in, commands out; no clock, no I/O."""

from llmsched.scheduler.core import Scheduler, SchedulerStats
from llmsched.scheduler.retry import Backoff

__all__ = ["Backoff", "Scheduler", "SchedulerStats"]
