"""Learning while the service runs: profiles out of real child processes, swaps, restarts, and what goes wrong."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

import orjson
import psutil
import pytest

from llmsched import fitting
from llmsched.catalogue import installed_applications
from llmsched.errors import BackendError, InvalidSetting, ProfileError
from llmsched.model.application import Application
from llmsched.model.events import TaskResult
from llmsched.model.job import JobStatus
from llmsched.model.kinds import StageKind
from llmsched.model.latency import GENERIC_7B
from llmsched.model.recording import Recording
from llmsched.model.records import JobRecord, StageRecord, Writes
from llmsched.profiler import Knowledge, fit
from llmsched.runtime.applications import Applications
from llmsched.runtime.clock import WallClock
from llmsched.runtime.learning.fitter import FitProcess, Fitted
from llmsched.runtime.learning.learner import Learner, Learning
from llmsched.runtime.learning.profiles import pack, unpack, write_profile
from llmsched.store.store import Store
from llmsched.workloads import generate, read_traces
from tests.integration.databases import postgres, postgres_url, store_url  # noqa: F401  (fixtures)
from tests.integration.service import InProcessService, a_recording, in_process_service, running_service, until

NAME = "code_generation"
APPLICATION = installed_applications()[NAME]
#: Jobs per emulated second: 4.9 s of LLM work each, times l(4) / l(1) = 1.09, on 8 slots: a load of 0.87.
RATE = 1.3


def finished(recording: Recording, number: int, application: Application, **changes: Any) -> Writes:
    """What the service stores of a recorded job that completed."""
    rows = [
        StageRecord(
            f"job_{number}",
            s.name,
            position,
            "done",
            s.kind,
            number + 9.0,
            after=s.after,
            parent=s.parent,
            iteration=s.iteration,
            results=tuple(TaskResult(t.duration or 0.5, t.prompt_tokens, t.output_tokens) for t in s.tasks),
            tools=() if s.kind is StageKind.LLM else tuple(t.tool for t in s.tasks),
        )
        for position, s in enumerate(recording.stages, 1)
    ]
    values: dict[str, Any] = {"version": application.version, "status": JobStatus.COMPLETED} | changes
    job = JobRecord(
        f"job_{number}", number, application.name, submitted_at=float(number), finished_at=number + 9.0, **values
    )
    return Writes([(job, orjson.dumps(recording.to_json()))], rows)


async def filled(store: Store, jobs: int, application: Application = APPLICATION, first: int = 1) -> None:
    random = Random(first)
    for number in range(first, first + jobs):
        await store.write(finished(generate(application.name, random), number, application))


@asynccontextmanager
async def known(url: str) -> AsyncIterator[tuple[Store, Applications]]:
    """A store with the installed applications."""
    async with await Store.open(url) as store:
        applications = Applications(store)
        await applications.load(installed_applications())
        yield store, applications


def process(url: str, **options: Any) -> FitProcess:
    return FitProcess(url, GENERIC_7B, **options)


def a_learner(url: str, store: Store, applications: Applications, **options: Any) -> tuple[Learner, Knowledge]:
    knowledge = Knowledge()
    settings = Learning(**{"every_s": 1e6} | options.pop("settings", {}))
    fitter = options.pop("fitter", None) or process(url)
    return Learner(knowledge, applications, store, fitter, WallClock(), settings=settings, **options), knowledge


# ------------------------------------------------------------------------------------------------- the process


async def test_a_process_of_its_own_fits_what_the_store_has(store_url: str) -> None:  # noqa: F811
    async with known(store_url) as (store, applications):
        await filled(store, 60)
        fitted = await process(store_url).fit(applications.newest(NAME), 40, 77.0)
        profile = unpack(fitted.body, applications.newest(NAME))
        assert (fitted.version, fitted.jobs, profile.jobs, profile.learned_at) == (1, 40, 40, 77.0)
        newest = await fitting.recordings_of(store, applications.newest(NAME), 40)
        assert [r.job_id for r in newest] == [f"job_{n}#live" for n in range(21, 61)]
        here = fit(APPLICATION, newest, learned_at=77.0)
        assert orjson.loads(orjson.dumps(profile.to_json())) == orjson.loads(orjson.dumps(here.to_json()))


async def test_a_history_that_teaches_nothing_is_one_sentence(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/jobs.db"
    async with known(url) as (store, applications):
        await filled(store, 9)
        with pytest.raises(ProfileError, match=f"9 jobs of '{NAME}' are too few to learn from; at least 10"):
            await process(url).fit(applications.newest(NAME), 100, 0.0)


async def test_jobs_of_an_older_version_count_only_while_its_stages_are_the_same(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/jobs.db"
    async with known(url) as (store, applications):
        await filled(store, 20)
        reworded = await applications.put(Application.parse(dict(APPLICATION.definition) | {"description": "anew"}))
        assert reworded.version == 2
        assert (await process(url).fit(reworded, 100, 0.0)).jobs == 20
        stages: Any = APPLICATION.definition["stages"]
        longer = [*stages, {"name": "farewell", "kind": "llm", "after": [APPLICATION.stages[-1].name]}]
        other = await applications.put(Application.parse(dict(APPLICATION.definition) | {"stages": longer}))
        with pytest.raises(ProfileError, match="0 jobs of"):
            await process(url).fit(other, 100, 0.0)


async def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/nowhere.db"
    with pytest.raises(BackendError, match="ended with status 1: there is no store at sqlite:///"):
        await process(url).fit(APPLICATION, 100, 0.0)


async def test_a_fit_that_is_killed_takes_too_long_or_is_cancelled_leaves_no_process(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/jobs.db"
    async with known(url) as (store, applications):
        await filled(store, 300)
        application = applications.newest(NAME)

        slow = process(url, timeout=0.2)
        with pytest.raises(BackendError, match=r"took longer than 0\.2 s"):
            await slow.fit(application, 300, 0.0)
        assert slow.pid is None

        shot = process(url)
        fitting_ = asyncio.create_task(shot.fit(application, 300, 0.0))
        await until(lambda: shot.pid)
        os.kill(shot.pid or 0, 9)
        with pytest.raises(BackendError, match="ended with status -9"):
            await fitting_

        cancelled = process(url)
        fitting_ = asyncio.create_task(cancelled.fit(application, 300, 0.0))
        await until(lambda: cancelled.pid)
        pid = cancelled.pid or 0
        assert psutil.pid_exists(pid)
        fitting_.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fitting_
        assert not psutil.pid_exists(pid)


async def test_the_process_is_nice_and_ends_with_whoever_asked(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/jobs.db"
    async with known(url) as (store, _):
        await filled(store, 600)
    request = {
        **{"store": url, "application": NAME, "version": 1, "newest": 600, "learned_at": 0.0},
        "curves": {"": GENERIC_7B.to_json()},
    }
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "llmsched.fitting"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
    )
    assert child.stdin is not None
    child.stdin.write(orjson.dumps(request) + b"\n")
    await child.stdin.drain()
    await until(lambda: psutil.Process(child.pid).nice() == os.nice(0) + fitting.NICENESS)
    child.stdin.close()  # what the end of the service does, by kill -9 too
    assert await asyncio.wait_for(child.wait(), 5.0) == 3


# ------------------------------------------------------------------------------------------------- the learner


@asynccontextmanager
async def running(learner: Learner) -> AsyncIterator[None]:
    task = asyncio.create_task(learner.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


class FakeFitter:
    """Answers with a profile of `jobs` generated jobs, or raises what it is told to."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.error: Exception | None = None

    async def fit(self, application: Application, newest: int, learned_at: float) -> Fitted:
        self.asked.append(application.name)
        if self.error is not None:
            raise self.error
        recordings = [generate(application.name, Random(k)) for k in range(20)]
        return Fitted(
            application.version, 20, pack(fit(application, recordings, learned_at=learned_at, estimator="mean"))
        )


async def test_an_application_is_learned_after_so_many_jobs_stored_and_swapped_in(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "llmsched.runtime.learning.learner")
    url, swaps = f"sqlite:///{tmp_path}/jobs.db", []
    async with known(url) as (store, applications):
        await filled(store, 30)
        learner, knowledge = a_learner(url, store, applications, settings={"every_jobs": 5}, on_learned=swaps.append)
        async with running(learner):
            for _ in range(4):
                learner.completed(NAME)
            await asyncio.sleep(0.05)
            assert knowledge.profiles == {}
            began = time.time()
            learner.completed(NAME)
            await until(lambda: swaps == [NAME])
        profile = knowledge.profiles[NAME]
        assert profile.jobs == 30
        assert began - 1 <= profile.learned_at <= time.time()
        (stored,) = await store.profiles()
        assert (stored.application, stored.number, stored.jobs, stored.learned_at) == (NAME, 1, 30, profile.learned_at)
        assert unpack(stored.body, applications.newest(NAME)).to_json() == profile.to_json()
        assert [r.message for r in caplog.records] == ["profile learned"]


async def test_many_short_jobs_do_not_keep_a_core_at_fits(tmp_path: Path) -> None:
    """After a fit an application rests four times as long as that took, however many jobs complete meanwhile."""

    class SlowFitter(FakeFitter):
        async def fit(self, application: Application, newest: int, learned_at: float) -> Fitted:
            ends.append(asyncio.get_running_loop().time())
            await asyncio.sleep(0.1)
            fitted = await super().fit(application, newest, learned_at)
            ends.append(asyncio.get_running_loop().time())
            return fitted

    ends: list[float] = []
    url = f"sqlite:///{tmp_path}/jobs.db"
    async with known(url) as (store, applications):
        learner, _ = a_learner(url, store, applications, settings={"every_jobs": 1}, fitter=SlowFitter())
        async with running(learner):
            while len(ends) < 3:
                learner.completed(NAME)
                await asyncio.sleep(0.005)
    began, ended, again = ends[:3]
    assert again - ended >= 4 * (ended - began) * 0.99


async def test_an_application_is_learned_after_a_while_with_one_new_job(tmp_path: Path) -> None:
    url, fitter = f"sqlite:///{tmp_path}/jobs.db", FakeFitter()
    async with known(url) as (store, applications):
        learner, knowledge = a_learner(url, store, applications, settings={"every_s": 0.1}, fitter=fitter)
        async with running(learner):
            await asyncio.sleep(0.25)
            assert fitter.asked == [], "nothing new, nothing to learn"
            learner.completed(NAME)
            await until(lambda: NAME in knowledge.profiles)
            await asyncio.sleep(0.25)
            assert fitter.asked == [NAME]


async def test_what_cannot_be_learned_is_said_once_and_what_fails_is_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "llmsched.runtime.learning.learner")
    url, fitter = f"sqlite:///{tmp_path}/jobs.db", FakeFitter()

    def lines() -> list[str]:
        return [record.message for record in caplog.records]

    async with known(url) as (store, applications):
        settings = {"every_jobs": 1, "every_s": 0.05}
        learner, knowledge = a_learner(url, store, applications, settings=settings, fitter=fitter)
        async with running(learner):
            fitter.error = ProfileError("3 jobs are too few")
            for n in range(1, 4):
                learner.completed(NAME)
                await until(lambda n=n: len(fitter.asked) == n)  # type: ignore[misc]
            await asyncio.sleep(0.02)
            assert lines() == ["nothing learned"]
            for error in (BackendError("the store is away"), ZeroDivisionError("a bug")):
                before, fitter.error = len(fitter.asked), error
                learner.completed(NAME)
                await until(lambda: len(fitter.asked) > before)  # noqa: B023
            fitter.error = None  # nobody completes anything any more: it is tried again by itself
            await until(lambda: NAME in knowledge.profiles)
    assert "learning failed" in lines()
    assert lines()[-1] == "profile learned"


async def test_one_application_that_is_gone_does_not_stop_the_others(tmp_path: Path) -> None:
    url, fitter = f"sqlite:///{tmp_path}/jobs.db", FakeFitter()
    async with known(url) as (store, applications):
        learner, knowledge = a_learner(url, store, applications, settings={"every_jobs": 1}, fitter=fitter)
        async with running(learner):
            await applications.delete(NAME)
            learner.completed(NAME)
            learner.completed("web_search")
            await until(lambda: "web_search" in knowledge.profiles)
        assert fitter.asked == ["web_search"]


# -------------------------------------------------------------------------------------------------- at start


async def test_profiles_come_back_and_what_is_older_than_history_is_due(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/jobs.db"
    async with known(url) as (store, applications):
        await filled(store, 30)  # finished at 10 to 39
        learner, _ = a_learner(url, store, applications)
        await learner.learn(applications.newest(NAME))
        fitter = FakeFitter()
        again, knowledge = a_learner(url, store, applications, fitter=fitter)
        await again.restore()
        assert knowledge.profiles[NAME].jobs == 30
        async with running(again):
            await asyncio.sleep(0.1)
            assert fitter.asked == []
        await store.write(finished(generate(NAME, Random(9)), 99, APPLICATION, started_at=time.time() + 5))
        await store._reader.call(lambda c: c.exec_driver_sql("UPDATE jobs SET finished_at = 4e9 WHERE number = 99"))
        await again.restore()
        async with running(again):
            await until(lambda: fitter.asked == [NAME])


async def test_learning_that_is_off_leaves_what_is_known(tmp_path: Path) -> None:
    url, fitter = f"sqlite:///{tmp_path}/jobs.db", FakeFitter()
    async with known(url) as (store, applications):
        await filled(store, 30)
        learner, _ = a_learner(url, store, applications)
        await learner.learn(applications.newest(NAME))
        await store._reader.call(lambda c: c.exec_driver_sql("UPDATE jobs SET finished_at = 4e9"))
        settings = {"enabled": False, "every_jobs": 1}
        off, knowledge = a_learner(url, store, applications, settings=settings, fitter=fitter)
        await off.restore()
        async with running(off):
            off.completed(NAME)
            await asyncio.sleep(0.1)
        assert (knowledge.profiles[NAME].jobs, fitter.asked) == (30, [])


async def test_the_newer_of_file_and_stored_profile_is_used(tmp_path: Path) -> None:
    url, folder = f"sqlite:///{tmp_path}/jobs.db", tmp_path / "profiles"
    recordings = [generate(NAME, Random(k)) for k in range(15)]
    async with known(url) as (store, applications):
        for learned_at, jobs in ((5.0, 15), (50.0, 12)):
            write_profile(folder, fit(APPLICATION, recordings[:jobs], learned_at=learned_at, estimator="mean"))
            learner, knowledge = a_learner(url, store, applications, folder=folder)
            await learner.restore()
            assert knowledge.profiles[NAME].jobs == jobs
            body = pack(fit(APPLICATION, recordings[:11], learned_at=20.0, estimator="mean"))
            await store.save_profile(NAME, 1, 20.0, 11, body)
            await learner.restore()
            assert knowledge.profiles[NAME].jobs == (11 if learned_at == 5.0 else 12)


async def test_profiles_that_do_not_fit_are_ignored_with_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url, folder = f"sqlite:///{tmp_path}/jobs.db", tmp_path / "profiles"
    recordings = [generate(NAME, Random(k)) for k in range(15)]
    profile = fit(APPLICATION, recordings, estimator="mean")
    async with known(url) as (store, applications):
        write_profile(folder, profile)
        (folder / f"{NAME}.json.gz").rename(folder / "nobody.json.gz")
        write_profile(folder, profile)
        await store.save_profile(NAME, 1, 1.0, 15, pack(profile))
        await store.save_profile("web_search", 1, 1.0, 15, b"damaged")
        other = {"name": NAME, "stages": [{"name": "only", "kind": "llm"}]}
        await applications.put(Application.parse(other))
        learner, knowledge = a_learner(url, store, applications, folder=folder)
        await learner.restore()
    assert knowledge.profiles == {}
    reasons = [str(vars(r)["reason"]) for r in caplog.records if r.message == "profile ignored"]
    assert len(reasons) == 4
    assert sum("learned from other stages than version 2 has" in r for r in reasons) == 2
    assert sum("there is no application 'nobody'" in r for r in reasons) == 1
    assert sum("the profile of 'web_search' is damaged" in r for r in reasons) == 1


async def test_a_service_with_a_broken_profile_file_does_not_start(tmp_path: Path) -> None:
    folder = tmp_path / "profiles"
    with pytest.raises(InvalidSetting, match="which is no folder"):
        async with in_process_service(tmp_path, emulate=0, profiles=folder):
            pass
    folder.mkdir()
    (folder / f"{NAME}.json.gz").write_bytes(b"\x1f\x8b but no gzip")
    with pytest.raises(ProfileError, match=rf"{NAME}\.json\.gz .*; fit it again"):
        async with in_process_service(tmp_path, emulate=0, profiles=folder):
            pass
    (folder / f"{NAME}.json.gz").unlink()
    async with in_process_service(tmp_path, emulate=0, profiles=folder):  # and has left nothing locked
        pass


# ---------------------------------------------------------------------------------------------- the whole service


async def estimates(service: InProcessService, jobs: list[dict[str, Any]]) -> set[float]:
    """What the policy went by when it started the first stage of these jobs."""
    items = (await service.get("/v1/decisions?last=1000")).json()["items"]
    ids = {job["id"] for job in jobs}
    dispatched = [d for item in items for d in item["dispatched"] if d["job"] in ids]
    return {d["why"]["estimate"] for d in dispatched if d["stage"] == APPLICATION.stages[0].name}


async def test_a_service_begins_with_hints_learns_and_orders_by_what_it_has_learned(tmp_path: Path) -> None:
    async with in_process_service(tmp_path, emulate=2, learn_every_jobs=60) as service:
        before = (await service.get(f"/v1/applications/{NAME}")).json()
        assert before["profile"] is None
        jobs = [await service.submit(recording=a_recording(NAME, seed)) for seed in range(60)]
        assert (await service.get(f"/v1/jobs/{jobs[0]['id']}")).json()["eta"] is None
        for job in jobs:
            await service.story(job["id"])
        hints = await estimates(service, jobs)
        assert len(hints) == 1, "the template's means are the same for every job"

        knowledge = service.context.service.foresight.knowledge
        await until(lambda: NAME in knowledge.profiles)
        profile = (await service.get(f"/v1/applications/{NAME}")).json()["profile"]
        assert profile["jobs"] >= 55  # the last jobs' ends may be committed while it reads
        assert profile["estimator"] in profile["scores"]

        jobs = [await service.submit(recording=a_recording(NAME, seed)) for seed in range(60, 72)]
        stories = [await service.story(job["id"]) for job in jobs]
        told = [data for story in stories for _, kind, data in story if kind == "stage.completed"]
        etas = [data["eta"] for data in told if "eta" in data]
        assert etas
        assert all(data["at"] <= data["eta"]["p50"] <= data["eta"]["p90"] for data in told if "eta" in data)
        assert (await estimates(service, jobs)).isdisjoint(hints)

        metrics = (await service.get("/metrics")).text
        assert f'llmsched_profile_jobs{{application="{NAME}"}} {float(profile["jobs"])}' in metrics
        assert f'llmsched_profile_fallback{{application="{NAME}"}} 0.0' in metrics
        assert f'llmsched_profile_age_seconds{{application="{NAME}"}}' in metrics
        assert f'llmsched_estimate_error_ratio_count{{application="{NAME}"}}' in metrics


async def test_history_at_another_speed_has_the_seconds_that_were_recorded(tmp_path: Path) -> None:
    recorded = [Recording.from_json(a_recording(NAME, seed)) for seed in range(3)]
    async with in_process_service(tmp_path, emulate=1, speed=500.0) as service:
        for recording in recorded:
            await service.story((await service.submit(recording=recording.to_json()))["id"])
        application = service.context.service.applications.newest(NAME)
        found = await fitting.recordings_of(service.context.store, application, 100)
    assert [r.reference_seconds(GENERIC_7B) for r in found] == [r.reference_seconds(GENERIC_7B) for r in recorded]


async def test_a_running_job_shows_its_eta(tmp_path: Path) -> None:
    folder = tmp_path / "profiles"
    recordings = [generate(NAME, Random(k)) for k in range(30)]
    write_profile(folder, fit(APPLICATION, recordings, learned_at=time.time()))
    async with in_process_service(tmp_path, emulate=1, speed=1.0, profiles=folder) as service:
        began = time.time()
        job = await service.submit(recording=a_recording(NAME, 3))
        await until(lambda: service.context.service.foresight.eta(job["id"], 0.0))
        eta = (await service.get(f"/v1/jobs/{job['id']}")).json()["eta"]
        assert began < eta["p50"] <= eta["p90"] < began + 600
        await service.post(f"/v1/jobs/{job['id']}/cancel")
        assert (await service.finished(job["id"]))["eta"] is None


async def test_nine_of_ten_jobs_end_before_their_p90(tmp_path: Path) -> None:
    """Two applications on two emulated engines at a load of 0.87, judged at every completed stage.

    The profile is of other jobs; how long jobs wait the service finds out as it goes.
    """
    speed, names, folder = 60.0, ("code_generation", "web_search"), tmp_path / "profiles"
    for name in names:
        recordings = [generate(name, Random(k)) for k in range(1_000, 1_100)]
        write_profile(folder, fit(installed_applications()[name], recordings, learned_at=time.time()))
    random = Random(5)
    async with in_process_service(
        tmp_path, emulate=2, speed=speed, max_batch=4, workers=4, profiles=folder, learn=False
    ) as service:
        ids = []
        for seed in range(220):
            job = await service.submit(recording=a_recording(random.choice(names), seed))
            ids.append(job["id"])
            await asyncio.sleep(random.expovariate(RATE * speed))
        points = []
        for id in ids:
            story = await service.story(id)
            end = story[-1][2]["at"]
            points += [
                (data["at"], end, data["eta"]) for _, kind, data in story if kind == "stage.completed" and "eta" in data
            ]
    points.sort(key=lambda point: point[0])
    judged = points[len(points) // 4 :]  # the first ones teach
    early = sum(end <= eta["p50"] for _, end, eta in judged) / len(judged)
    late = sum(end <= eta["p90"] for _, end, eta in judged) / len(judged)
    print(f"{len(judged)} ETAs: {early:.0%} ended before p50, {late:.0%} before p90")
    assert len(judged) > 300
    assert 0.3 < early < 0.7
    assert 0.8 <= late <= 0.99


async def test_live_jobs_are_known_by_the_size_of_their_input_also_after_a_restart(tmp_path: Path) -> None:
    definition = {"stages": [{"name": "say", "kind": "llm", "prompt": "Say {{ input.word }}", "max_tokens": 4}]}
    question = {"word": "grüß"}
    async with in_process_service(tmp_path, emulate=0) as service:
        assert (await service.put("/v1/applications/echo", json=definition)).status_code == 200
        job = await service.submit(application="echo", input=question)
        view = service.context.service.scheduler.view
        await until(lambda: job["id"] in view.jobs)
        assert view.jobs[job["id"]].features == {"input_chars": len('{"word":"grüß"}')}
        recorded = await service.submit(recording=a_recording("sequence_sorting"))
        await until(lambda: recorded["id"] in view.jobs)
        assert view.jobs[recorded["id"]].features == Recording.from_json(a_recording("sequence_sorting")).features != {}
    async with in_process_service(tmp_path, emulate=0) as service:
        view = service.context.service.scheduler.view
        await until(lambda: len(view.jobs) == 2)
        assert view.jobs[job["id"]].features == {"input_chars": 15}
        assert view.jobs[recorded["id"]].features == Recording.from_json(a_recording("sequence_sorting")).features


async def test_profiles_survive_kill_9_and_a_fit_dies_with_its_service(tmp_path: Path) -> None:
    settings = {"emulate": 1, "speed": 1000.0, "learn_every_jobs": 20}
    async with running_service(tmp_path, **settings) as service:
        for seed in range(20):
            await service.submit(recording=a_recording(NAME, seed))

        async def profile() -> Any:
            return (await service.get(f"/v1/applications/{NAME}")).json()["profile"]

        async with asyncio.timeout(30):
            while (learned := await profile()) is None:  # noqa: ASYNC110 (of another process)
                await asyncio.sleep(0.05)
        for seed in range(20, 40):
            await service.submit(recording=a_recording(NAME, seed))

        def fits() -> list[psutil.Process]:
            return [p for p in service.processes() if "llmsched.fitting" in p.cmdline()]

        await until(fits, what="a second fit")
        await service.kill9()
        await service.gone()
        await service.restart()
        found = await profile()
        assert found["jobs"] >= learned["jobs"]
        assert found["learned_at"] >= learned["learned_at"]
        assert "profile learned" in service.log


# ------------------------------------------------------------------------------------------------ what it costs


@pytest.mark.skipif("LLMSCHED_TRACES" not in os.environ, reason="needs the traces")
async def test_the_event_loop_hardly_notices_a_fit_of_real_jobs(tmp_path: Path) -> None:
    """1,369 real jobs: they are read, fitted and swapped in while a timer ticks every millisecond."""
    url, name = f"sqlite:///{tmp_path}/jobs.db", "task_automation"
    application = installed_applications()[name]
    recordings = read_traces(Path(os.environ["LLMSCHED_TRACES"]), [name])[name]
    async with known(url) as (store, applications):
        for number, recording in enumerate(recordings, 1):
            await store.write(finished(recording, number, application))
        learner, knowledge = a_learner(url, store, applications)
        lags: list[float] = []

        async def tick() -> None:
            while True:
                before = time.perf_counter()
                await asyncio.sleep(0.001)
                lags.append(time.perf_counter() - before - 0.001)

        ticking = asyncio.create_task(tick())
        began = time.perf_counter()
        await learner.learn(applications.newest(name))
        took = time.perf_counter() - began
        ticking.cancel()
    lags.sort()
    print(
        f"fit {took:.1f} s, lag p50 {lags[len(lags) // 2] * 1e3:.2f} p99 {lags[int(0.99 * len(lags))] * 1e3:.2f}"
        f" max {lags[-1] * 1e3:.1f} ms"
    )
    assert knowledge.profiles[name].jobs == len(recordings)
    assert lags[int(0.99 * len(lags))] < 0.010
    assert lags[-1] < 0.100  # on a machine that is shared; measured 6 ms
