"""Jobs, stages, profiles and reasons as clients see them, and the cursors of their pages."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from math import isfinite
from typing import Any, Literal

import orjson
from starlette.exceptions import HTTPException

from llmsched.gateway.schemas import (
    CallbackMessage,
    CallbackView,
    ClassName,
    Eta,
    Forecast,
    JobSummary,
    ProfileView,
    StageView,
)
from llmsched.model.application import Application
from llmsched.model.kinds import StageKind
from llmsched.model.records import JobRecord, StageRecord
from llmsched.profiler import Profile
from llmsched.runtime import deadlines
from llmsched.runtime.callbacks.delivery import event_id
from llmsched.store.store import Store


def summary(record: JobRecord) -> JobSummary:
    """A job without its stages."""
    return JobSummary(
        id=record.id,
        application=record.application,
        version=record.version,
        status=record.status,
        class_=ClassName[record.job_class.name],
        submitted_at=record.submitted_at,
        started_at=record.started_at,
        finished_at=record.finished_at,
        deadline_s=record.deadline_s,
        metadata=dict(record.metadata),
        recorded=record.has_recording,
        off_profile=list(record.off_profile),
        result=_sendable(record.result),
        error=_sendable(record.error),
    )


#: Bytes that the result in a callback may have.
MAX_RESULT = 256 << 10


def callback_body(record: JobRecord) -> bytes:
    """What a callback says of a job that is over: the same bytes every time."""
    assert record.finished_at is not None, record
    job = summary(record)
    is_large = len(orjson.dumps(job.result)) > MAX_RESULT
    message = CallbackMessage(
        type=f"job.{record.status.value}",
        timestamp=datetime.fromtimestamp(record.finished_at, UTC).isoformat(timespec="milliseconds"),
        data=job.model_copy(update={"result": None}) if is_large else job,
        result_omitted=is_large,
    )
    return orjson.dumps(message.model_dump(mode="json", by_alias=True))


async def callback(store: Store, record: JobRecord) -> CallbackView | None:
    """What became of a job's callback so far."""
    if record.callback_url is None:
        return None
    view = CallbackView(url=record.callback_url, id=event_id(record.id))
    stored = await store.callback(record.id) if record.is_finished else None
    if stored is None:
        return view
    told = {"state": stored.state, "attempts": stored.attempts, "ended_at": stored.ended_at, "error": stored.error}
    return view.model_copy(update=told | {"next_at": None if stored.is_over else stored.due_at})


def forecast(said: deadlines.Forecast | None) -> Forecast | None:
    """What was said of a job's deadline."""
    return None if said is None else Forecast(due=said.due, eta=Eta(**said.eta.to_json()), warning=said.warning)


def stages(
    application: Application,
    rows: Sequence[StageRecord],
    live: Mapping[str, Mapping[str, Any]],
    *,
    is_completed: bool = False,
) -> list[StageView]:
    """The application's stages in its order, then generated ones in order of appearance.

    rows: what is committed, which wins over `live`, what runs. is_completed: of a completed job, what is not committed
    was skipped.
    """
    state: Literal["skipped", "waiting"] = "skipped" if is_completed else "waiting"
    views = {
        s.name: StageView(name=s.name, kind=s.kind, state=state, after=list(s.after), pool=s.pool)
        for s in application.stages
    }
    views |= {name: StageView.model_validate(stage) for name, stage in live.items()}
    views |= {row.name: _committed(row) for row in rows}
    return list(views.values())


def write_cursor(number: int) -> str:
    """Stands for the jobs before the one of this number."""
    return base64.urlsafe_b64encode(b"n%d" % number).decode().rstrip("=")


def read_cursor(cursor: str) -> int:
    """Raises 400 for a cursor that no page ever gave out."""
    try:
        number = int(base64.urlsafe_b64decode(cursor[:64] + "=" * (-len(cursor) % 4)).removeprefix(b"n"))
    except ValueError:
        number = 0
    if write_cursor(number) != cursor:
        raise HTTPException(400, f"cursor {cursor[:64]!r} is not one that a page gave out; leave it out to start anew")
    return number


def profile(profile: Profile | None, application: Application, at_work: str) -> ProfileView | None:
    """What was learned of an application, as far as it fits this version. at_work: the estimator that is used."""
    if profile is None or not profile.fits(application):
        return None
    scores = {name: dict(values) for name, values in profile.scores.items()}
    return ProfileView(jobs=profile.jobs, learned_at=profile.learned_at, estimator=at_work, scores=scores)


def why(reasons: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What a policy went by, as JSON: numbers that are none become null, what is no number a text."""
    return None if reasons is None else {str(name): _plain(value) for name, value in reasons.items()}


def _plain(value: Any) -> Any:
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return round(value, 6) if isfinite(value) else None
        case Mapping():
            return why(value)
        case list() | tuple():
            return [_plain(item) for item in value]
        case _ if hasattr(value, "item"):  # of numpy
            return _plain(value.item())
        case _:
            return str(value)


def _sendable(value: Any) -> Any:
    """JSON as it can be sent: half a surrogate pair, which the store keeps and UTF-8 cannot express, becomes a '?'."""
    try:
        orjson.dumps(value)
    except TypeError:
        return json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    return value


def _committed(row: StageRecord) -> StageView:
    is_llm = row.kind is StageKind.LLM
    return StageView(
        name=row.name,
        kind=row.kind,
        state="skipped" if row.state == "skipped" else "done",
        after=list(row.after),
        parent=row.parent,
        pool=row.pool,
        tasks=len(row.results),
        done=len(row.results),
        started_at=row.started_at,
        finished_at=row.finished_at,
        prompt_tokens=sum(r.prompt_tokens for r in row.results) if is_llm else None,
        output_tokens=sum(r.output_tokens for r in row.results) if is_llm else None,
        executors=list(dict.fromkeys(row.executors)),
    )
