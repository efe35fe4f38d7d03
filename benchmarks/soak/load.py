"""The clients of a soak: submit, follow and cancel jobs, call the door, go away, come back, and note what they saw.

Arrivals are a Poisson process. A client that loses its connection asks again, with the same idempotency key or the
number of the last event it read, as the documentation tells it to. What nobody may see is a complaint.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from importlib import import_module
from itertools import cycle
from random import Random
from typing import Any

import aiohttp
import orjson
from engine import counted
from verdict import OUTCOMES, Asked, Submission, Told

from llmsched import apps
from llmsched.workloads import APPLICATIONS, generate

#: Kinds of clients and their shares.
SHARES = {"recorded": 0.35, "live": 0.35, "alone": 0.15, "agent": 0.15}
#: Of recorded jobs; those of document_merging are as much work as ten others.
_HEAVY, _HEAVY_SHARE = "document_merging", 0.2
#: Jobs and calls that may be open at once: more arrive only when some are over.
MOST_OPEN = 60
#: What happens to jobs and calls on the way.
CANCELLED, FOLLOWED, DISCONNECTED, LEFT = 0.1, 0.5, 0.3, 0.15
#: Seconds after which the service gives up an answer of an engine.
ATTEMPT_S = 30.0
#: Seconds that any answer but a stream's end may take; a restart lies in between, and on a busy machine much else.
PATIENCE = 120.0
#: And an answer of the door: up to three attempts, each of which may be at an engine that falls silent.
CALL_PATIENCE = 4 * ATTEMPT_S
#: The observed application of groups.
AGENT = "soak_agent"

_GONE = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, ConnectionError)


class Load:
    """All clients of the service at `url`. complaints: told what nobody may see."""

    def __init__(self, url: str, rng: Random, complain: Callable[[str], None]) -> None:
        self.url = url
        self.submissions: list[Submission] = []
        self.calls: list[Asked] = []
        self.told: dict[str, list[Told]] = {}
        self.looked: dict[str, list[tuple[str, Any, str | None]]] = {}
        #: Connections that clients broke off, and those that came back to a stream.
        self.disconnects = 0
        self.resumed = 0
        self._rng = rng
        self._complain = complain
        self._session: aiohttp.ClientSession
        self._open: set[asyncio.Task[None]] = set()
        self._samples = cycle(_shuffled(_samples(), rng))
        self._run = f"{rng.getrandbits(32):08x}"

    async def __aenter__(self) -> Load:
        self._session = aiohttp.ClientSession(
            self.url,
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=5.0, sock_read=CALL_PATIENCE),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    @property
    def open(self) -> int:
        """Clients that are not done."""
        return len(self._open)

    async def run(self, seconds: float, rate: float) -> None:
        """New clients for so many seconds, `rate` a second; returns while the last of them go on."""
        end = time.monotonic() + seconds
        while (now := time.monotonic()) < end:
            await asyncio.sleep(min(self._rng.expovariate(rate), end - now))
            if len(self._open) < MOST_OPEN:
                self.arrive(self._rng.choices(list(SHARES), list(SHARES.values()))[0])

    def arrive(self, kind: str) -> None:
        """One more client."""
        rng = Random(self._rng.getrandbits(64))
        work = {"recorded": self._recorded, "live": self._live, "alone": self._alone, "agent": self._agent}[kind]
        task = asyncio.create_task(self._watched(work(rng), kind))
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def done(self, seconds: float) -> None:
        """Waits for every client; those that are not done after so many seconds are a complaint each."""
        if not self._open:
            return
        _, late = await asyncio.wait(self._open, timeout=seconds)
        for task in late:
            self._complain(f"a client waited {seconds:g} s longer than the load lasted: {task.get_coro()}")
            task.cancel()
        if late:
            await asyncio.wait(late)

    async def _watched(self, work: Any, kind: str) -> None:
        try:
            await work
        except Exception as error:  # a client's bug, or an answer that makes no sense: the soak has failed, and goes on
            self._complain(f"a client ({kind}) ended with {type(error).__name__}: {error}")

    # ------------------------------------------------------------------------------------------------ jobs

    async def _recorded(self, rng: Random) -> None:
        others = [a for a in APPLICATIONS if a != _HEAVY]
        name = _HEAVY if rng.random() < _HEAVY_SHARE / len(APPLICATIONS) else rng.choice(others)
        recording = generate(name, rng).to_json()
        tasks = [t for s in recording["stages"] if s["kind"] == "llm" for t in s["tasks"]]
        result = {n: sum(t[n] for t in tasks) for n in ("prompt_tokens", "output_tokens")}
        await self._job(rng, Submission(self._key(rng), "recorded", name, time.time(), result=result), recording)

    async def _live(self, rng: Random) -> None:
        name, sample, input = next(self._samples)
        await self._job(rng, Submission(self._key(rng), "live", name, time.time(), sample=f"{name}/{sample}"), input)

    def _key(self, rng: Random) -> str:
        return f"soak-{self._run}-{rng.getrandbits(48):012x}"

    async def _job(self, rng: Random, job: Submission, content: Any) -> None:
        """Submits, perhaps cancels, and follows or polls until it is over."""
        self.submissions.append(job)
        body = {"application": job.application, ("recording" if job.kind == "recorded" else "input"): content}
        body["class"] = rng.choice(("interactive", "standard", "standard", "batch"))
        job.id = id = (await self._ask("POST", "/v1/jobs", body, {"Idempotency-Key": job.key}, expected=(202,)))["id"]
        cancelling = asyncio.create_task(self._cancel(job, rng.expovariate(4.0))) if rng.random() < CANCELLED else None
        if rng.random() < FOLLOWED and not await self._follow(rng, id):
            return
        while True:
            view = await self._ask("GET", f"/v1/jobs/{id}", expected=(200,))
            if view["status"] in OUTCOMES.values():
                break
            await asyncio.sleep(0.5)
        self.looked.setdefault(id, []).append(seen(view))
        if cancelling is not None:
            await cancelling

    async def _cancel(self, job: Submission, delay: float) -> None:
        await asyncio.sleep(delay)
        answer = await self._ask("POST", f"/v1/jobs/{job.id}/cancel", expected=(202, 409))
        if answer["status"] not in (409, *OUTCOMES.values()):  # 409: it was over; the rest says what it was before
            job.cancelled_at = time.time()

    async def _ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        *,
        expected: Sequence[int],
    ) -> Any:
        """The answer, asked for again while the service is away."""
        data = None if body is None else orjson.dumps(body)
        headers = {"Content-Type": "application/json", **(headers or {})}
        end = time.monotonic() + 2 * PATIENCE
        while True:
            try:
                request = self._session.request(method, path, data=data, headers=headers)
                async with asyncio.timeout(PATIENCE), request as response:
                    answer = await response.read()
                    if response.status in expected:
                        return orjson.loads(answer)
                    if response.status not in (429, 503):
                        raise AssertionError(f"{method} {path} was answered {response.status}: {answer[:300]!r}")
            except (*_GONE, TimeoutError) as error:
                if isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ClientConnectionError):
                    self._complain(f"{method} {path} had no answer for {PATIENCE:g} s")
            if time.monotonic() > end:
                raise AssertionError(f"{method} {path} was not answered within {2 * PATIENCE:g} s")
            await asyncio.sleep(0.2)

    async def _follow(self, rng: Random, id: str) -> bool:
        """Reads the events of a job, breaking off and coming back now and then. False: it went away for good."""
        told = self.told.setdefault(id, [])
        restless = rng.random() < DISCONNECTED
        leaves = rng.random() < LEFT
        while True:
            breaks_after = rng.randint(1, 6) if restless or leaves else None
            try:
                async with self._events(id, told) as events:
                    async for event in events:
                        told.append(event)
                        if event[1] in OUTCOMES:
                            return True
                        if breaks_after is not None and (breaks_after := breaks_after - 1) == 0:
                            self.disconnects += 1
                            break
            except (*_GONE, TimeoutError):
                await asyncio.sleep(0.2)
            if leaves and breaks_after == 0:
                return False
            restless = restless and rng.random() < 0.7
            self.resumed += 1

    @asynccontextmanager
    async def _events(self, id: str, told: list[Told]) -> AsyncIterator[AsyncIterator[Told]]:
        """The events of a job after those that were told."""
        headers = {"Last-Event-ID": str(told[-1][0])} if told else {}
        async with self._session.get(f"/v1/jobs/{id}/events", headers=headers) as response:
            if response.status == 404:
                self._complain(f"accepted job {id} has no events: 404")
            yield _events_of(response) if response.status == 200 else _nothing()
        if response.status != 200:
            await asyncio.sleep(0.2)

    # ------------------------------------------------------------------------------------------------ the door

    async def _alone(self, rng: Random) -> None:
        await self._call(rng, {})

    async def _agent(self, rng: Random) -> None:
        """A run of two to five calls, the last of which says so or does not."""
        group, calls = f"run {rng.getrandbits(48):012x}", rng.randint(2, 5)
        ends = rng.random() < 0.7
        for k in range(calls):
            headers = {"x-llmsched-job": group, "x-llmsched-application": AGENT}
            if ends and k == calls - 1:
                headers["x-llmsched-job-end"] = "true"
            await self._call(rng, headers, group)
            await asyncio.sleep(rng.uniform(0.0, 0.3))

    async def _call(self, rng: Random, headers: dict[str, str], group: str | None = None) -> None:
        """One call: streamed or whole, of which some clients do not wait for the end."""
        numbers, streams, leaves = rng.randint(50, 600), rng.random() < 0.6, rng.random() < LEFT
        body = {"model": "llmsched", "stream": streams}
        body["messages"] = [{"role": "user", "content": f"Run {rng.random()}. Count to {numbers}."}]
        call = Asked(time.time(), group)
        self.calls.append(call)
        try:
            async with asyncio.timeout(rng.uniform(0.02, 0.3) if leaves else CALL_PATIENCE):
                async with self._session.post("/v1/chat/completions", json=body, headers=headers) as response:
                    call.job = response.headers.get("x-llmsched-job-id")
                    answer = await response.read()
                    call.outcome, call.wrong = _heard(response.status, answer, streams, counted(numbers))
        except TimeoutError:
            call.outcome = "left"
            self.disconnects += 1
            if not leaves:
                call.wrong = f"no answer for {CALL_PATIENCE:g} s"
        except _GONE:
            call.outcome = "broken"
        call.ended_at = time.time()
        if call.outcome == "broken":
            await self._until_back()

    async def _until_back(self) -> None:
        await self._ask("GET", "/health", expected=(200,))


def _heard(status: int, answer: bytes, streams: bool, text: str) -> tuple[str, str]:
    """How a call through the door went, and what was wrong with that."""
    if status == 503:
        return "refused", ""
    if status != 200:
        return "refused", f"status {status}: {answer[:200]!r}"
    if not streams:
        said = orjson.loads(answer)["choices"][0]["message"]["content"]
        return "answered", "" if said == text else f"{said[:80]!r}… in place of the numbers"
    pieces = [e.removeprefix(b"data: ") for e in answer.split(b"\n\n") if e.startswith(b"data: ")]
    if pieces[-1:] != [b"[DONE]"]:
        is_error = bool(pieces) and b'"error"' in pieces[-1]
        return "refused", "" if is_error else f"a stream that ends with {pieces[-1:]}, neither [DONE] nor an error"
    chunks = [orjson.loads(piece) for piece in pieces[:-1]]
    said = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])
    return "answered", "" if said == text else f"{said[:80]!r}… in place of the numbers"


def seen(view: dict[str, Any]) -> tuple[str, Any, str | None]:
    """What must not change any more of a job that is over."""
    return view["status"], view["result"], view["error"]


async def _events_of(response: aiohttp.ClientResponse) -> AsyncIterator[Told]:
    rest = b""
    async for chunk in response.content.iter_any():
        *blocks, rest = (rest + chunk).split(b"\n\n")
        for block in blocks:
            fields = dict(line.split(b": ", 1) for line in block.splitlines() if line and not line.startswith(b":"))
            if fields:
                yield int(fields[b"id"]), fields[b"event"].decode(), orjson.loads(fields[b"data"])


async def _nothing() -> AsyncIterator[Told]:
    return
    yield


def _samples() -> list[tuple[str, str, Any]]:
    """(application, name of the sample, input) of the examples of every installed application."""
    found = []
    for folder in apps.folders():
        if (folder / "dataset.py").is_file() and (folder / "scripted.py").is_file():
            load = import_module(f"{apps.__name__}.{folder.name}.dataset").load
            file = min(folder.glob("examples.*"))
            found += [(folder.name, sample.id, sample.input) for sample in load(file)]
    return found


def _shuffled(items: list[Any], rng: Random) -> list[Any]:
    return rng.sample(items, len(items))
