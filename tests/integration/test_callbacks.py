"""Webhooks: jobs that end, receivers that take it, hang, refuse, lie or are away, and services that are killed."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
from aiohttp import web

from llmsched.model.job import JobStatus
from llmsched.model.records import CallbackRecord, JobRecord, JobUpdate, Writes
from llmsched.runtime.callbacks.delivery import Callbacks, Delivery, owed
from llmsched.runtime.callbacks.signing import Secrets, sign
from llmsched.runtime.clock import WallClock
from llmsched.runtime.emulator import emulated
from llmsched.runtime.tools.web import Page, post
from llmsched.store.journal import Journal
from llmsched.store.store import Store
from tests.integration.databases import postgres, postgres_url, store_url
from tests.integration.service import Client, a_recording, in_process_service, running_service, until

__all__ = ["postgres", "postgres_url", "store_url"]

SECRET = "whsec_" + base64.b64encode(b"s" * 32).decode()
OPEN: dict[str, Any] = {
    "callback_secrets": SECRET,
    "callback_private": True,
    "callback_backoff_first": 0.05,
    "callback_backoff_most": 0.2,
}


class Receiver:
    """Takes callbacks at `url`, which stays the same when it goes away and comes back."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        #: What it answers, one after the other, then 204.
        self.answers: list[web.Response] = []
        self.port = 0
        self._runner: web.ServerRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook?token=t"

    @property
    def ids(self) -> list[str]:
        return [headers["webhook-id"] for headers, _ in self.got]

    async def start(self) -> None:
        self._runner = web.ServerRunner(web.Server(self._take), shutdown_timeout=0.1)  # type: ignore[arg-type]
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _take(self, request: web.BaseRequest) -> web.Response:
        assert (request.method, request.path_qs) == ("POST", "/hook?token=t")
        self.got.append(({k.lower(): v for k, v in request.headers.items()}, await request.read()))
        return self.answers.pop(0) if self.answers else web.Response(status=204)


@pytest.fixture(name="receiver")
async def a_receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    await receiver.start()
    yield receiver
    await receiver.stop()


async def told(service: Client, id: str, state: str) -> dict[str, Any]:
    """The job's callback when it has come to a state."""
    async with asyncio.timeout(20):
        while True:
            callback: dict[str, Any] = (await service.get(f"/v1/jobs/{id}")).json()["callback"]
            if callback["state"] == state:
                return callback
            await asyncio.sleep(0.02)


def check(headers: dict[str, str], body: bytes) -> None:
    """The message is signed with SECRET, now."""
    signed = sign([b"s" * 32], headers["webhook-id"], int(headers["webhook-timestamp"]), body)
    assert headers["webhook-signature"] == signed["webhook-signature"]
    assert abs(int(headers["webhook-timestamp"]) - WallClock().now()) < 60


async def test_the_end_of_a_job_is_told_with_its_result_and_signed(tmp_path: Path, receiver: Receiver) -> None:
    async with in_process_service(tmp_path, **OPEN) as service:
        job = await service.submit(recording=a_recording(), callback_url=receiver.url, metadata={"order": 7})
        ended = await service.finished(job["id"])
        callback = await told(service, job["id"], "delivered")

    (headers, body) = receiver.got[0]
    check(headers, body)
    assert (len(receiver.got), headers["content-type"]) == (1, "application/json")
    assert headers["webhook-id"] == callback["id"] == job["id"].replace("job_", "evt_")
    message = json.loads(body)
    assert message.keys() == {"type", "timestamp", "data", "result_omitted"}
    assert (message["type"], message["result_omitted"]) == ("job.completed", False)
    shown = {k: v for k, v in ended.items() if k not in ("stages", "eta", "callback")}
    assert message["data"] == shown
    assert (callback["url"], callback["attempts"], callback["next_at"]) == (receiver.url, 1, None)
    assert callback["error"] is None


async def test_every_end_is_told_and_jobs_without_a_url_tell_nobody(tmp_path: Path, receiver: Receiver) -> None:
    async with in_process_service(tmp_path, emulate=0, **OPEN) as service:
        quiet = await service.submit(recording=a_recording())
        job = await service.submit(recording=a_recording(), callback_url=receiver.url)
        before = (await service.get(f"/v1/jobs/{job['id']}")).json()["callback"]
        for id in (quiet["id"], job["id"]):
            await service.post(f"/v1/jobs/{id}/cancel")
        await told(service, job["id"], "delivered")
        assert (await service.get(f"/v1/jobs/{quiet['id']}")).json()["callback"] is None

    assert (before["state"], before["attempts"], before["next_at"]) == ("pending", 0, None)
    assert [json.loads(body)["type"] for _, body in receiver.got] == ["job.cancelled"]


async def test_jobs_of_a_batch_have_callbacks_of_their_own(tmp_path: Path, receiver: Receiver) -> None:
    form = {"application": "code_generation", "recording": a_recording()}
    async with in_process_service(tmp_path, **OPEN) as service:
        jobs = [form | {"callback_url": receiver.url}, form, form | {"callback_url": "file:///etc/passwd"}]
        items = (await service.post("/v1/jobs:batch", json={"jobs": jobs})).json()["items"]
        await told(service, items[0]["id"], "delivered")

    assert [item["status"] for item in items] == [202, 202, 422]
    assert items[2]["field"] == "callback_url"
    assert receiver.ids == [items[0]["id"].replace("job_", "evt_")]


async def test_what_is_not_taken_comes_again_with_the_same_id_and_body(tmp_path: Path, receiver: Receiver) -> None:
    receiver.answers = [
        web.Response(status=500),
        web.Response(status=302, headers={"Location": f"{receiver.url}&elsewhere"}),
        web.Response(status=404, text="secret"),
    ]
    async with in_process_service(tmp_path, **OPEN) as service:
        job = await service.submit(recording=a_recording(), callback_url=receiver.url)
        callback = await told(service, job["id"], "delivered")
        metrics = (await service.get("/metrics")).text

    for headers, body in receiver.got:
        check(headers, body)
    assert (callback["attempts"], len(receiver.got)) == (4, 4)
    assert len(set(receiver.ids)) == len({body for _, body in receiver.got}) == 1
    for line in (
        'llmsched_callback_attempts_total{outcome="refused"} 3.0',
        'llmsched_callback_attempts_total{outcome="delivered"} 1.0',
        'llmsched_callbacks_ended_total{state="delivered"} 1.0',
        'llmsched_callbacks_ended_total{state="given_up"} 0.0',
        "llmsched_callbacks_owed 0.0",
        "llmsched_callback_delay_seconds_count 1.0",
    ):
        assert line in metrics


async def test_after_so_many_attempts_a_callback_is_given_up_and_says_why(
    tmp_path: Path, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.answers = [web.Response(status=503, text="secret") for _ in range(9)]
    async with in_process_service(tmp_path, callback_attempts=3, **OPEN) as service:
        job = await service.submit(recording=a_recording(), callback_url=receiver.url)
        callback = await told(service, job["id"], "given_up")
        metrics = (await service.get("/metrics")).text

    assert (callback["attempts"], len(receiver.got), callback["error"]) == (3, 3, "it answered 503")
    assert 'llmsched_callbacks_ended_total{state="given_up"} 1.0' in metrics
    assert [r.levelname for r in caplog.records if r.message == "callback given up"] == ["ERROR"]


async def test_a_receiver_that_is_gone_for_good_is_believed(tmp_path: Path, receiver: Receiver) -> None:
    receiver.answers = [web.Response(status=410)]
    async with in_process_service(tmp_path, **OPEN) as service:
        job = await service.submit(recording=a_recording(), callback_url=receiver.url)
        callback = await told(service, job["id"], "given_up")

    assert (callback["attempts"], callback["error"]) == (1, "it answered 410: nobody wants it any more")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://127.0.0.1/", "leads to 127.0.0.1, which is no public address"),
        ("http://[::1]:80/", "leads to ::1, which is no public address"),
        ("https://169.254.169.254/latest", "leads to 169.254.169.254, which is no public address"),
        ("https://10.1.2.3/hook", "leads to 10.1.2.3, which is no public address"),
        ("https://ann:secret@example.org/", "it has a user name or password in it"),
        ("example.org/hook", "must look like https://host/path"),
        ("https://" + "x" * 2000, "at most 2000 characters"),
    ],
)
async def test_a_url_that_cannot_be_is_refused_at_submission(tmp_path: Path, url: str, says: str) -> None:
    async with in_process_service(tmp_path, emulate=0, callback_secrets=SECRET) as service:
        form = {"application": "code_generation", "recording": a_recording(), "callback_url": url}
        answer = await service.post("/v1/jobs", json=form)

    assert (answer.status_code, answer.json()["field"]) == (422, "callback_url")
    assert says in answer.json()["detail"]
    assert "secret" not in answer.json()["detail"]


@pytest.mark.parametrize("host", ["localhost", "2130706433", "0x7f.1"])
async def test_a_name_that_leads_to_this_machine_is_never_asked(tmp_path: Path, receiver: Receiver, host: str) -> None:
    settings = OPEN | {"callback_private": False, "callback_attempts": 2}
    async with in_process_service(tmp_path, **settings) as service:
        url = receiver.url.replace("127.0.0.1", host)
        job = await service.submit(recording=a_recording(), callback_url=url)
        callback = await told(service, job["id"], "given_up")

    assert receiver.got == []
    assert "127.0.0.1" not in callback["error"]
    if host == "localhost":
        assert callback["error"] == "its host leads to an address that is not public"


async def test_a_name_server_that_changes_its_mind_does_not_lead_inside(receiver: Receiver) -> None:
    """DNS rebinding: the addresses that are checked are the ones that are connected to."""
    answers = ["127.0.0.1", "8.8.8.8"]
    asked: list[str] = []

    async def resolve(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return [answers.pop()] if len(asked) == 1 else ["127.0.0.1"]

    url = receiver.url.replace("127.0.0.1", "rebinding.example")
    with pytest.raises(Exception, match=r"rebinding\.example"):
        await post(url, b"{}", headers={}, timeout=0.5, resolve=resolve)

    assert (asked, receiver.got) == (["rebinding.example"], [])


async def test_a_callback_survives_kill_9_of_the_service_while_its_receiver_is_away(
    tmp_path: Path,
    receiver: Receiver,
    store_url: str,
) -> None:
    await receiver.stop()
    settings = OPEN | {"callback_backoff_first": 0.2}
    async with (
        emulated(speed=1000) as engine,
        running_service(tmp_path, engines=engine.url, workers=1, speed=1000, store=store_url, **settings) as service,
    ):
        jobs = [await service.submit(recording=a_recording(seed=k), callback_url=receiver.url) for k in range(3)]
        for job in jobs:
            assert (await service.finished(job["id"]))["status"] == "completed"
        await until(lambda: "callback failed" in service.log, what="an attempt")
        await service.kill9()
        await receiver.start()
        await asyncio.sleep(0)
        assert receiver.got == []
        await service.restart()
        callbacks = [await told(service, job["id"], "delivered") for job in jobs]

    wanted = sorted(job["id"].replace("job_", "evt_") for job in jobs)
    assert sorted(set(receiver.ids)) == wanted == sorted(callback["id"] for callback in callbacks)
    for headers, body in receiver.got:
        check(headers, body)


async def test_the_verification_in_the_documentation_accepts_what_is_genuine(
    tmp_path: Path, receiver: Receiver
) -> None:
    page = (Path(__file__).parents[2] / "docs/webhooks.md").read_text()
    block = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert block is not None
    names: dict[str, Any] = {}
    exec(block[1], names)
    verify = names["verify"]
    other = "whsec_" + base64.b64encode(b"o" * 32).decode()
    async with in_process_service(tmp_path, **OPEN | {"callback_secrets": f"{other},{SECRET}"}) as service:
        job = await service.submit(recording=a_recording(), callback_url=receiver.url)
        callback = await told(service, job["id"], "delivered")

    ((headers, body),) = receiver.got
    for secret in (SECRET, other):
        assert verify(secret, headers, body) == callback["id"]
    for secret, changed, sent in (
        ("whsec_" + base64.b64encode(b"x" * 32).decode(), {}, body),
        (SECRET, {}, body + b" "),
        (SECRET, {"webhook-id": "evt_other"}, body),
        (SECRET, {"webhook-timestamp": str(int(headers["webhook-timestamp"]) - 1)}, body),
        (SECRET, {"webhook-timestamp": "1614265330"}, body),
    ):
        with pytest.raises(ValueError, match=r"the signature is not|too old"):
            verify(secret, headers | changed, sent)


# ------------------------------------------------------------------------------------- the deliverer by itself


class Ears:
    """Remembers what a `Listener` hears."""

    def __init__(self) -> None:
        self.tried: list[str] = []
        self.ended: list[str] = []

    def callback_tried(self, outcome: str) -> None:
        self.tried.append(outcome)

    def callback_ended(self, state: str, seconds: float) -> None:
        self.ended.append(state)


class Hosts:
    """Stands for every receiver: counts who is asked, and holds those who hang until `release`."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.hanging: set[str] = set()
        self.most: dict[str, int] = {}
        self.release = asyncio.Event()
        self._running: dict[str, int] = {}

    async def send(self, url: str, body: bytes, **_: Any) -> Page:
        host = url.split("/")[2]
        self.asked.append(host)
        running = self._running[host] = self._running.get(host, 0) + 1
        self.most[host] = max(self.most.get(host, 0), running)
        try:
            await (self.release.wait() if host in self.hanging else asyncio.sleep(0))
        finally:
            self._running[host] -= 1
        return Page(url, 200, "", b"")


def ended_job(number: int, host: str, **changes: Any) -> JobRecord:
    at = WallClock().now()
    return JobRecord(
        id=f"job_{number}",
        number=number,
        application="a",
        version=1,
        submitted_at=at,
        finished_at=at,
        status=JobStatus.COMPLETED,
        callback_url=f"https://{host}/",
        **changes,
    )


@asynccontextmanager
async def delivering(store: Store, hosts: Hosts, **settings: Any) -> AsyncIterator[tuple[Callbacks, Journal, Ears]]:
    told: list[Callbacks] = []
    journal, ears = Journal(store, lambda writes: told[0].committed(writes)), Ears()
    callbacks = Callbacks(
        store, journal, WallClock(), Secrets(SECRET), lambda job: job.id.encode(), ears,
        settings=Delivery(**settings), random=Random(0), send=hosts.send,
    )  # fmt: skip
    told.append(callbacks)
    await callbacks.start()
    try:
        yield callbacks, journal, ears
    finally:
        await callbacks.stop()
        await journal.close()


def written(jobs: Sequence[JobRecord]) -> Writes:
    return Writes(
        jobs=[(job, None) for job in jobs], callbacks=[c for job in jobs for c in owed(job, job.submitted_at)]
    )


async def test_a_receiver_that_hangs_keeps_nobody_waiting_but_itself(store_url: str) -> None:
    hosts = Hosts()
    hosts.hanging = {"slow.example"}
    async with await Store.open(store_url) as store, delivering(store, hosts, per_host=3) as (callbacks, journal, ears):
        jobs = [ended_job(n, "slow.example" if n <= 10 else "fast.example") for n in range(1, 31)]
        await journal.append(written(jobs))
        await until(lambda: len(ears.ended) == 20, what="what was owed to the fast one")
        await until(lambda: callbacks.owed == 10)
        assert hosts.asked.count("slow.example") == 3
        hosts.release.set()
        await until(lambda: callbacks.owed == 0)

    assert hosts.most["slow.example"] == 3 >= hosts.most["fast.example"]
    assert len(hosts.asked) == 30


async def test_more_than_fits_into_memory_is_delivered_all_the_same(store_url: str) -> None:
    """Forty are left by the last process, forty come now, ten are held at a time; each is told once."""
    hosts = Hosts()
    async with await Store.open(store_url) as store:
        await store.write(written([ended_job(n, f"{n % 2}.example") for n in range(1, 41)]))
        async with delivering(store, hosts, held=10) as (callbacks, journal, ears):
            assert callbacks.owed == 40
            await journal.append(written([ended_job(n, f"{n % 2}.example") for n in range(41, 81)]))
            await until(lambda: callbacks.owed == 0)
        assert await store.callbacks_owed() == {}

    assert (len(ears.ended), len(hosts.asked)) == (80, 80)


async def test_a_deliverer_that_was_stopped_can_start_again(store_url: str) -> None:
    """As when a service stops being the one that works with the store, and becomes it again."""
    hosts = Hosts()
    hosts.hanging = {"slow.example"}
    async with await Store.open(store_url) as store, delivering(store, hosts) as (callbacks, journal, ears):
        await journal.append(written([ended_job(n, "slow.example") for n in range(1, 11)]))
        await until(lambda: len(hosts.asked) == 4)
        await callbacks.stop(grace=0.01)
        assert callbacks.owed == 0
        await journal.append(written([ended_job(11, "fast.example")]))
        hosts.release.set()
        await callbacks.start()
        assert callbacks.owed == 11
        await until(lambda: callbacks.owed == 0)
        assert await store.callbacks_owed() == {}

    assert len(ears.ended) == 11


async def test_a_callback_does_not_outlive_its_age(store_url: str) -> None:
    class Refusing(Hosts):
        async def send(self, url: str, body: bytes, **_: Any) -> Page:
            return Page(url, 503, "", b"", retry_after="7")

    async with (
        await Store.open(store_url) as store,
        delivering(store, Refusing(), age=5.0) as (callbacks, journal, ears),
    ):
        await journal.append(written([ended_job(1, "a.example")]))
        await until(lambda: callbacks.owed == 0)
        stored = await store.callback("job_1")
        assert stored is not None
        assert (stored.state, stored.attempts, stored.error) == ("given_up", 1, "it answered 503")
    assert ears.ended == ["given_up"]


async def test_a_receiver_may_ask_for_more_time(store_url: str) -> None:
    class Busy(Hosts):
        async def send(self, url: str, body: bytes, **_: Any) -> Page:
            return Page(url, 429, "", b"", retry_after="1000")

    async with (
        await Store.open(store_url) as store,
        delivering(store, Busy(), backoff_most=600.0) as (_, journal, ears),
    ):
        await journal.append(written([ended_job(1, "a.example")]))
        await until(lambda: ears.tried == ["refused"])
        await journal.flush()
        stored = await store.callback("job_1")
        assert stored is not None
        assert 590 < stored.due_at - WallClock().now() <= 600


async def test_retention_waits_for_callbacks_that_are_owed(store_url: str) -> None:
    async with await Store.open(store_url) as store:
        await store.write(written([ended_job(1, "a.example"), ended_job(2, "a.example")]))
        delivered = CallbackRecord("job_2", "a.example", 0.0, 0.0, "delivered", 1, 1.0)
        await store.write(Writes(callbacks=[delivered]))
        assert await store.purge(WallClock().now() + 10) == 1
        assert [record.id for record in await store.jobs()] == ["job_1"]
        assert await store.callback("job_2") is None


async def test_a_callback_is_written_with_the_end_of_its_job_or_not_at_all(store_url: str) -> None:
    async with await Store.open(store_url) as store:
        job = ended_job(1, "a.example")
        writes = Writes(updates=[JobUpdate("job_1", JobStatus.COMPLETED, None, 5.0)], callbacks=owed(job, 5.0))
        with pytest.raises(Exception, match="clashes"):
            await store.write(writes)
        assert await store.callbacks_owed() == {}
        await store.write(Writes(jobs=[(job, None)]) + writes)
        await store.write(writes, again=True)
        assert await store.callbacks_of("a.example", 10) == owed(job, 5.0)
