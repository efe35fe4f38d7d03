"""`llmsched fit`, and what the other commands tell about what was learned."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path
from random import Random

import pytest

from llmsched.catalogue import installed_applications
from llmsched.cli.client import job_table
from llmsched.profiler import Profile
from llmsched.runtime.learning.profiles import profile_files, read_document
from llmsched.store.store import Store
from llmsched.workloads import generate, write_trace
from tests.integration.service import running_service
from tests.integration.test_cli import Cli
from tests.integration.test_learning import filled, known

NAME, OTHER = "code_generation", "web_search"


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    for name in ("LLMSCHED_URL", "LLMSCHED_API_KEY", "LLMSCHED_TRACES"):
        monkeypatch.delenv(name, raising=False)
    return Cli(monkeypatch, capsys)


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    """40 jobs of one application, 5 of another, and a file of none."""
    folder = tmp_path / "traces"
    folder.mkdir()
    for name, jobs in ((NAME, 40), (OTHER, 5)):
        write_trace(folder / f"{name}.jsonl.gz", [generate(name, Random(k)) for k in range(jobs)])
    (folder / "not_an_application.jsonl.gz").write_bytes((folder / f"{NAME}.jsonl.gz").read_bytes())
    return folder


def profile(folder: Path, name: str = NAME) -> Profile:
    return Profile.from_json(read_document(profile_files(folder)[name]), installed_applications()[name])


def test_profiles_are_learned_from_traces(cli: Cli, traces: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "profiles"
    began = time.time()
    said = cli.ok("fit", "--traces", str(traces), "--out", str(folder))
    assert list(profile_files(folder)) == [NAME]
    learned = profile(folder)
    assert learned.jobs == 40
    assert began <= learned.learned_at <= time.time()
    (row,) = re.findall(rf"^ {NAME} .*$", said.out, re.MULTILINE)
    assert re.fullmatch(rf" {NAME} +40 +{learned.estimator} +\d+% +\d+% +\d+% *", row), row
    assert said.err == (
        "left out: 5 jobs of 'web_search' are too few to learn from; at least 10 are needed\n"
        f"1 profiles written to {folder}\n"
    )


def test_traces_may_be_named_by_the_environment(
    cli: Cli, traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMSCHED_TRACES", str(traces))
    cli.ok("fit", "--out", str(tmp_path / "p"), "--application", NAME)
    assert profile(tmp_path / "p").jobs == 40


def test_profiles_are_learned_from_a_store(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMSCHED_TRACES", "/nope")  # --store wins
    url = f"sqlite:///{tmp_path}/jobs.db"

    async def fill() -> None:
        async with known(url) as (store, _):
            await filled(store, 30)

    asyncio.run(fill())
    said = cli.ok("fit", "--store", url, "--out", str(tmp_path / "p"))
    assert said.err == f"1 profiles written to {tmp_path}/p\n"
    assert profile(tmp_path / "p").jobs == 30


def test_bad_input_gets_one_sentence(cli: Cli, traces: Path, tmp_path: Path) -> None:
    folder, empty = str(tmp_path / "p"), f"sqlite:///{tmp_path}/empty.db"

    async def make() -> None:
        await (await Store.open(empty)).close()

    asyncio.run(make())
    one, two = ("--traces", str(traces)), ("--store", empty)
    for arguments, why in [
        ((), "fit learns from --traces or from --store; name one of the two"),
        ((*one, *two), "fit learns from --traces or from --store; name one of the two"),
        ((*one, "--application", OTHER), "5 jobs of 'web_search' are too few to learn from; at least 10 are needed"),
        ((*one, "--application", "web_serch"), "unknown application 'web_serch'; did you mean 'web_search'?"),
        ((*one, "--application", "llm_compiler"), "there is no trace of 'llm_compiler' in"),
        (("--traces", "/nope"), "/nope is not a folder"),
        (two, f"there is nothing to learn from in {empty}; run jobs first"),
        ((*two, "--application", NAME), f"unknown application '{NAME}'; known: none"),
        (("--store", f"sqlite:///{tmp_path}/no.db"), "there is no store at sqlite:///"),
        (("--store", "mysql://x"), "unknown kind of store 'mysql'"),
    ]:
        assert why in cli.refused("fit", *arguments, "--out", folder)
    assert not Path(folder).exists()
    (tmp_path / "file").write_text("")
    assert "cannot be written" in cli.refused("fit", *one, "--application", NAME, "--out", str(tmp_path / "file"))


def test_serve_refuses_a_folder_that_is_none(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = cli.refused("serve", "--profiles", "/nope")
    assert said == "profiles is '/nope', which is no folder; make one with llmsched fit --out"
    assert list(tmp_path.iterdir()) == []


async def test_a_service_starts_with_profiles_and_tells_of_them(cli: Cli, traces: Path, tmp_path: Path) -> None:
    folder = tmp_path / "profiles"
    cli.ok("fit", "--traces", str(traces), "--out", str(folder))
    async with running_service(tmp_path, profiles=str(folder), emulate=1) as service:
        listed = await asyncio.to_thread(cli.ok, "apps", "--url", service.url)
        estimator = profile(folder).estimator
        assert f"40 jobs, {estimator}" in listed.out
        assert listed.out.count(" jobs, ") == 1


def test_a_job_is_shown_with_its_eta() -> None:
    now = time.time()
    job = {
        **{"id": "job_1", "application": NAME, "status": "running", "submitted_at": now - 1, "finished_at": None},
        **{"stages": [], "error": None, "eta": {"p50": now + 3.0, "p90": now + 90.0}},
    }

    def title(**changes: object) -> str:
        return str(job_table(job | changes).title)

    assert re.search(r"done in about [23]\.\d+ s, nine times out of ten within (89|90)\.\d+ s", title())
    assert "done in" not in title(eta=None)
    assert "done in" not in title(finished_at=now)
