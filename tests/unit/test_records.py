"""Records are values, and writes add up in order."""

from dataclasses import FrozenInstanceError, replace

import pytest

from llmsched.model.job import JobStatus
from llmsched.model.kinds import StageKind
from llmsched.model.records import EventRecord, JobRecord, JobUpdate, StageRecord, Writes

JOB = JobRecord("job_1", 1, "sorting", 1, submitted_at=10.0)
STAGE = StageRecord("job_1", "split", 1, "done", StageKind.LLM, finished_at=12.0)
EVENT = EventRecord("job_1", 1, "job.submitted", 10.0)
UPDATE = JobUpdate("job_1", JobStatus.RUNNING, started_at=11.0)


def test_a_record_is_a_value() -> None:
    assert replace(JOB) == JOB
    assert replace(JOB, tenant="ann") != JOB
    with pytest.raises(FrozenInstanceError):
        JOB.status = JobStatus.RUNNING  # type: ignore[misc]


@pytest.mark.parametrize(
    ("status", "finished"),
    [("queued", False), ("running", False), ("completed", True), ("failed", True), ("cancelled", True)],
)
def test_a_job_is_finished_in_its_last_three_states(status: str, finished: bool) -> None:
    assert replace(JOB, status=JobStatus(status)).is_finished is finished


def test_writes_add_up_in_order_and_leave_their_parts_alone() -> None:
    first = Writes(jobs=[(JOB, b"{}")], events=[EVENT])
    second = Writes(stages=[STAGE], events=[replace(EVENT, seq=2)], updates=[UPDATE])

    total = first + second

    assert total == Writes([(JOB, b"{}")], [STAGE], [EVENT, replace(EVENT, seq=2)], [UPDATE])
    assert (len(first), len(second), len(total)) == (2, 3, 5)


def test_writes_without_rows_are_false() -> None:
    assert not Writes()
    assert Writes(updates=[UPDATE])
