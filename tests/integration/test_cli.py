"""The command line against a real service: what it prints, what it leaves, and how it fails in one sentence."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import yaml

from llmsched.cli import console
from llmsched.cli.main import main
from llmsched.model.recording import Recording
from llmsched.replay import replay
from llmsched.runtime.api import Api
from llmsched.runtime.supervise import free_port
from llmsched.workloads import Workload, read_trace, write_trace
from tests.integration.service import RunningService, a_recording, running_service

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs/examples/summarize.yaml"
KEY = "sesame-open"


class Said(NamedTuple):
    """What a command printed, and its exit status."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Cli:
    """Runs commands in this process, where they take milliseconds; `url` and the key come from the environment."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *arguments: str, stdin: bytes = b"") -> Said:
        self._monkeypatch.setattr(sys, "argv", ["llmsched", *arguments])
        self._monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as end:
            main()
        code = end.value.code
        return Said(code if isinstance(code, int) else 0, *self._capsys.readouterr())

    def ok(self, *arguments: str, stdin: bytes = b"") -> Said:
        said = self(*arguments, stdin=stdin)
        assert said.status == 0, said
        return said

    def refused(self, *arguments: str, status: int = 2) -> str:
        """The one sentence; nothing else was printed."""
        said = self(*arguments)
        assert said.status == status, said
        assert said.out == ""
        assert said.err.startswith("Error: ")
        assert said.err.count("\n") == 1
        return said.err.removeprefix("Error: ").strip()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the service; its store is jobs.db."""
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[RunningService]:
    with asyncio.Runner() as runner:
        settings = {"emulate": 2, "speed": 500, "api_keys": f"ann:{KEY}"}
        started = running_service(folder, **settings)
        running = runner.run(started.__aenter__())
        yield running
        runner.run(started.__aexit__(None, None, None))


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Commands without a service."""
    for name in [n for n in os.environ if n.startswith("LLMSCHED_")]:
        monkeypatch.delenv(name)
    for shown in (console.out, console.errors):
        monkeypatch.setattr(shown, "_width", 200)
    return Cli(monkeypatch, capsys)


@pytest.fixture
def cli(nowhere: Cli, service: RunningService, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Commands that find the service."""
    monkeypatch.setenv("LLMSCHED_URL", service.url)
    monkeypatch.setenv("LLMSCHED_API_KEY", KEY)
    return nowhere


def a_template(folder: Path, name: str) -> str:
    """A file with an application of one stage, which sleeps as long as its input says."""
    stage = {"name": "s", "kind": "regular", "handler": "sleep", "arguments": {"seconds": "{{ input }}"}}
    file = folder / f"{name}.json"
    file.write_text(json.dumps({"name": name, "stages": [stage]}))
    return str(file)


def inputs() -> dict[str, Any]:
    return {"text": "It was a dark and stormy night"}


# -------------------------------------------------------------------------------------------------- the example


def test_the_example_runs_as_the_documentation_says(cli: Cli) -> None:
    table = cli.ok("apps", "--put", str(EXAMPLE)).out
    assert "summarize" in table

    job = cli.ok("submit", "summarize", "--input", json.dumps(inputs()), "--wait").json
    assert job["status"] == "completed", job
    assert job["result"]["words"] == 7
    assert job["result"]["summary"]
    assert [(s["name"], s["state"]) for s in job["stages"]] == [
        ("draft", "done"),
        ("polish", "done"),
        ("report", "done"),
    ]
    draft, polish = job["stages"][:2]
    assert 0 < draft["output_tokens"] <= 200
    assert 0 < polish["output_tokens"] <= 60


def test_the_example_runs_with_plain_http(service: RunningService) -> None:
    with httpx.Client(base_url=service.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=20) as http:
        put = http.put("/v1/applications/summarize", json=yaml.safe_load(EXAMPLE.read_text()))
        assert put.status_code == 200, put.text
        refused = http.post("/v1/jobs", json={"application": "summarize", "input": {"text": 3}})
        assert refused.status_code == 422, refused.text
        id = http.post("/v1/jobs", json={"application": "summarize", "input": inputs()}).json()["id"]
        assert "event: job.completed" in http.get(f"/v1/jobs/{id}/events").text
        assert http.get(f"/v1/jobs/{id}").json()["result"]["words"] == 7


# -------------------------------------------------------------------------------------------------- one job


def test_a_recording_comes_from_a_file_or_from_standard_input(cli: Cli, tmp_path: Path) -> None:
    recording = a_recording("task_automation")
    file = tmp_path / "job.json"
    file.write_text(json.dumps(recording))

    first = cli.ok("submit", "task_automation", "--recording", f"@{file}", "--class", "batch", "--wait").json
    assert (first["status"], first["class"], first["recorded"]) == ("completed", "batch", True)
    second = cli.ok("submit", "task_automation", "--recording", "@-", stdin=json.dumps(recording).encode())
    id = second.out.strip()
    watched = cli.ok("watch", id)
    assert "completed" in watched.out

    table = cli.ok("show", id).out
    for stage in recording["stages"]:
        assert stage["name"] in table
    assert cli.ok("show", id, "--json").json["status"] == "completed"


def test_the_same_idempotency_key_is_the_same_job(cli: Cli) -> None:
    command = ("submit", "code_generation", "--recording", json.dumps(a_recording()), "--idempotency-key", "k1")
    assert cli.ok(*command).out == cli.ok(*command).out
    assert "was used for another request" in cli.refused(*command, "--class", "batch")


def test_jobs_are_listed_newest_first(cli: Cli) -> None:
    ids = [
        cli.ok("submit", "web_search", "--recording", json.dumps(a_recording("web_search", k)), "--wait").json["id"]
        for k in (1, 2)
    ]
    page = cli.ok("jobs", "--application", "web_search", "--json").json
    assert [job["id"] for job in page["items"]][:2] == ids[::-1]
    said = cli.ok("jobs", "--application", "web_search", "--status", "completed", "--limit", "1")
    assert ids[1] in said.out
    assert ids[0] not in said.out
    assert "--limit shows more" in said.err


def test_a_cancelled_job_is_waited_for_with_status_1(cli: Cli, tmp_path: Path) -> None:
    cli.ok("apps", "--put", a_template(tmp_path, "rest"))
    id = cli.ok("submit", "rest", "--input", "100").out.strip()
    assert cli.ok("cancel", id).out == f"{id} is being cancelled\n"
    watched = cli("watch", id)
    assert watched.status == 1
    assert "cancelled" in watched.out
    assert cli.ok("show", id, "--json").json["status"] == "cancelled"


def test_a_failed_job_says_why(cli: Cli, tmp_path: Path) -> None:
    cli.ok("apps", "--put", a_template(tmp_path, "naps"))
    said = cli("submit", "naps", "--input", '"[bold]no number"', "--wait")
    assert said.status == 1
    job = said.json
    assert job["status"] == "failed"
    shown = cli.ok("show", job["id"]).out
    assert "[bold]no number" in shown, "what a job says is no markup"
    assert "[bold]no number" in cli.ok("jobs", "--status", "failed").out


# -------------------------------------------------------------------------------------------------- the service


def test_engines_are_added_drained_resumed_and_removed(cli: Cli) -> None:
    port = free_port()
    listed = cli.ok("engines", "--add", f"http://127.0.0.1:{port}", "--slots", "3", "--json").json["items"]
    (added,) = (e for e in listed if e["url"].endswith(f":{port}"))
    assert (added["slots"], added["healthy"]) == (3, False)
    assert "draining" in cli.ok("engines", "--drain", "emulated-1").out
    assert "draining" not in cli.ok("engines", "--resume", "emulated-1").out
    left = cli.ok("engines", "--remove", added["id"], "--json").json["items"]
    assert [e["id"] for e in left] == ["emulated-1", "emulated-2"]


def test_a_service_is_asked_what_it_has(cli: Cli, service: RunningService) -> None:
    assert "llmsched-pool (active)" in cli.ok("policies", "--url", service.url).out
    assert {a["name"] for a in cli.ok("apps", "--url", service.url, "--json").json} > {"web_search"}


def test_history_is_exported_as_a_trace(cli: Cli, folder: Path, tmp_path: Path) -> None:
    recording = a_recording("llm_compiler")
    cli.ok("submit", "llm_compiler", "--recording", json.dumps(recording), "--wait")
    out = tmp_path / "llm_compiler.jsonl.gz"
    said = cli.ok(
        "export", "--store", f"sqlite:///{folder}/jobs.db", "--out", str(out), "--application", "llm_compiler"
    )
    assert said.err == f"1 jobs written to {out}\n"
    (job,) = read_trace(out)
    assert job.output_tokens == sum(
        t["output_tokens"] for s in recording["stages"] if s["kind"] == "llm" for t in s["tasks"]
    )


def test_a_replay_compares_policies_on_identical_jobs(cli: Cli, tmp_path: Path) -> None:
    numbers, pictures = tmp_path / "r.json", tmp_path / "pictures"
    said = cli.ok(
        *("replay", "--workload", "task_automation,web_search", "--jobs", "12", "--rate", "4", "--seed", "5"),
        *("--speed", "500", "--policy", "fcfs,sjf", "--json", str(numbers), "--plot", str(pictures)),
    )
    assert "Job completion time in emulated seconds" in said.out
    document = json.loads(numbers.read_text())
    assert document["settings"] == {
        "url": os.environ["LLMSCHED_URL"],
        "workload": "task_automation,web_search",
        "policies": ["fcfs", "sjf"],
        "jobs": 12,
        "rate": 4.0,
        "arrivals": "poisson",
        "seed": 5,
        "speed": 500.0,
        "traces": None,
    }
    for run, policy in zip(document["runs"], ("fcfs", "sjf"), strict=True):
        assert (run["policy"], run["seed"], run["jobs"], run["failed"]) == (policy, 5, 12, 0)
        assert 0 < run["p50_jct"] <= run["p95_jct"] <= run["p99_jct"] <= run["makespan"]
        assert sum(a["jobs"] for a in run["apps"].values()) == 12
        assert run["apps"].keys() == {"task_automation", "web_search"}
        assert run["decisions"] > 12
        assert 0 < run["decision_ms"]["p50"] <= run["decision_ms"]["p99"]
        assert run["utilisation"].keys() == {"llm", "cpu"}
        assert all(0 < busy < 1 for busy in run["utilisation"].values())
        assert 0 <= run["send_lag_ms"]["p50"] <= run["send_lag_ms"]["p99"] <= run["send_lag_ms"]["max"]
        assert f"{policy}: jobs were sent {run['send_lag_ms']['p50']:.1f} ms late (median; " in said.err
    assert document["summary"][1]["vs"]["fcfs"].keys() == {"change_pct", "ci95"}
    assert (pictures / "completion_times.png").is_file()
    said = cli.ok("policies", "--url", os.environ["LLMSCHED_URL"])
    assert "llmsched-pool (active)" in said.out, "the policy is put back"


def test_a_replay_takes_recorded_arrivals_and_traces(cli: Cli, tmp_path: Path) -> None:
    write_trace(
        tmp_path / "t.jsonl.gz", [Recording.from_json(a_recording("web_search", k) | {"app": "t"}) for k in range(3)]
    )
    (tmp_path / "gamma.csv").write_text("t_s,tokens\n5,1\n5,1\n2005,1\n")  # 4 seconds
    cli.ok("apps", "--put", a_template(tmp_path, "t"))
    said = cli(
        *("replay", "--workload", "t", "--jobs", "3", "--speed", "500", "--traces", str(tmp_path)),
        *("--arrivals", str(tmp_path / "gamma.csv"), "--json", str(tmp_path / "r.json")),
    )
    assert said.status == 0, said
    document = json.loads((tmp_path / "r.json").read_text())
    assert document["settings"]["rate"] is None
    (run,) = document["runs"]
    assert (run["policy"], run["jobs"], run["failed"]) == ("llmsched-pool", 3, 0)
    assert run["makespan"] > 1000, "recorded arrivals keep their own rate"  # half of it, for a busy machine


def test_a_replay_stretches_recorded_arrivals_to_a_rate(cli: Cli, tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.csv.gz", "wt") as file:
        file.write("t_s,tokens\n0,1\n900000,1\n")  # more than ten days apart, or half an hour at this speed
    options = ("--jobs", "2", "--rate", "0.001", "--speed", "500", "--json", str(tmp_path / "r.json"))
    said = cli("replay", "--workload", "web_search", *options, "--arrivals", str(tmp_path / "a.csv.gz"))
    assert said.status == 0, said
    document = json.loads((tmp_path / "r.json").read_text())
    assert document["settings"]["rate"] == 0.001
    (run,) = document["runs"]
    assert run["failed"] == 0
    assert run["makespan"] > 500, "one gap of 1,000 emulated seconds"  # half of it, for a busy machine


async def test_a_replay_survives_a_restart_of_the_service(tmp_path: Path) -> None:
    async with running_service(tmp_path, emulate=1, speed=200) as service, Api(service.url) as api:
        planned = Workload.load("web_search").arrivals(40, 1.0, 0)
        halfway = asyncio.Event()

        def progress(sent: int, ended: int) -> None:
            if ended >= 5:
                halfway.set()

        running = asyncio.create_task(replay(api, planned, policy="fcfs", seed=0, speed=20, progress=progress))
        await asyncio.wait_for(halfway.wait(), 20)
        await service.kill9()
        await service.restart()
        run = await asyncio.wait_for(running, 60)
        assert [name for name, seconds in run.jobs if seconds is not None] == ["web_search"] * 40
        assert len((await api.get("/v1/jobs", limit=100))["items"]) == 40, "each job was taken once"


# ---------------------------------------------------------------------------------------------- without a service


def test_what_is_installed_is_listed(nowhere: Cli) -> None:
    assert {a["name"] for a in nowhere.ok("apps", "--json").json} >= {"code_generation", "document_merging"}
    assert {p["name"] for p in nowhere.ok("policies", "--json").json} > {"llmsched-pool", "fcfs", "sjf"}
    assert "task_automation" in nowhere.ok("apps").out
    assert "sjf" in nowhere.ok("policies").out


# --------------------------------------------------------------------------------------- looking into applications


def test_an_application_is_looked_into(nowhere: Cli, tmp_path: Path) -> None:
    said = nowhere.ok("apps", "check", str(EXAMPLE)).out
    for line in ("●    draft   llm", "╰─┤", "  ■  report  regular  calls echo"):
        assert f"\n{line}\n" in said
    assert "runs: on inputs and recordings" in said
    assert "needs: handler echo, for report: registered here" in said
    assert "warning: no `expected` for draft, polish, report" in said

    looped = nowhere.ok("apps", "check", "code_generation").out
    assert "reflect_1 … reflect_4" in looped
    assert "\nloop repair: at most 4 rounds" in looped
    assert "reflect_1" not in nowhere.ok("apps", "check", "code_generation", "--mermaid", "--fold").out


def test_what_is_found_is_there_for_programs(nowhere: Cli) -> None:
    report = nowhere.ok("apps", "check", str(EXAMPLE), "--json").json
    assert {k: report[k] for k in ("name", "executable", "recordings_only_because", "handlers", "variables")} == {
        "name": "summarize",
        "executable": True,
        "recordings_only_because": None,
        "handlers": [{"name": "echo", "stages": ["report"], "registered": True}],
        "variables": [
            {
                "stage": stage,
                "role": "llm",
                "measures": "output tokens of all its tasks; 0: it does not run",
                "pools": ["llm"],
            }
            for stage in ("draft", "polish")
        ]
        + [{"stage": "report", "role": "regular", "measures": "whether it runs", "pools": ["cpu"]}],
    }
    assert [(s["name"], s["after"]) for s in report["stages"]] == [
        ("draft", []),
        ("polish", ["draft"]),
        ("report", ["draft", "polish"]),
    ]
    assert report["warnings"] == [
        {
            "stage": None,
            "text": "no `expected` for draft, polish, report: until 10 jobs are learned from, their work counts as 0",
        }
    ]


def test_a_graph_is_drawn_into_a_file_or_printed_as_mermaid(nowhere: Cli, tmp_path: Path) -> None:
    file = tmp_path / "graph.svg"
    said = nowhere.ok("apps", "check", "web_search", "--svg", str(file), "--fold", "--mermaid")
    assert said.err == f"the graph is drawn in {file}\n"
    assert file.read_text().startswith("<svg ")
    assert said.out.startswith("flowchart TD\n")
    assert "runs:" not in said.out


def test_handlers_of_an_application_need_not_be_there(nowhere: Cli, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps({"name": "a", "stages": [{"name": "s", "kind": "regular", "handler": "fold_laundry"}]}))
    said = nowhere.ok("apps", "check", str(file)).out
    assert "needs: handler fold_laundry, for s: not registered here" in said
    assert "warning: stage 's' calls handler 'fold_laundry', which is not registered here" in said


def test_an_application_that_runs_recordings_only_says_why(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "recorded.json"
    file.write_text(json.dumps({"name": "recorded", "stages": [{"name": "s", "kind": "llm"}]}))
    assert "runs: recordings only: stage 's' has no prompt" in cli.ok("apps", "check", str(file)).out
    cli.ok("apps", "--put", str(file))
    assert "'recorded' runs recordings only (stage 's' has no" in cli.refused("submit", "recorded", "--input", "1")


def test_an_application_of_a_service_is_looked_into(cli: Cli, service: RunningService, tmp_path: Path) -> None:
    cli.ok("apps", "--put", a_template(tmp_path, "tired"))
    assert "needs: handler sleep, for s: registered here" in cli.ok("apps", "check", "tired", "--url", service.url).out
    assert "'tierd'" in cli.refused("apps", "check", "tierd", "--url", service.url)


def test_handlers_are_listed(nowhere: Cli, cli: Cli, service: RunningService) -> None:
    here = {
        row["name"]: row
        for row in nowhere.ok("handlers", "--json", "--handlers", "tests.integration.worker_handlers").json
    }
    assert here["sleep"] | {"schema": None} == {
        "name": "sleep",
        "kind": "python",
        "where": "llmsched.runtime.tools.handlers:sleep",
        "description": "Does nothing for `seconds`.",
        "schema": None,
    }
    assert any(row["where"].startswith("tests.integration.worker_handlers:") for row in here.values())
    there = {row["name"]: row for row in cli.ok("handlers", "--url", service.url, "--json").json}
    assert there["sleep"] == {k: v for k, v in here["sleep"].items() if k != "where"}
    assert "Returns its arguments." in cli.ok("handlers", "--url", service.url).out


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "name: a\nstages:\n  - name: s\n    kind: llm\n    prompt: |\n      A\n      {{ inp }}\n      {{ x. }}\n",
            ", line 8: application 'a', stage 's', prompt, line 3: expected name or number",
        ),
        (
            "name: a\nstages:\n- loop: l\n  max_iterations: 2\n  stages:\n  - name: s\n    kind: llm\n    when: inpt\n",
            ", line 8: application 'a', stage 's_0', when: unknown variable 'inpt'; did you mean 'input'? known: ",
        ),
        (
            "name: a\nstages:\n- {name: r, kind: llm}\n- {name: s, kind: llm, aftr: [r]}\n",
            ", line 4: application 'a', stage 's': unknown key 'aftr'; did you mean 'after'? known: ",
        ),
        ("name: a\nstages:\n- {name: s, after: [s}\n", ", line 3, column 22: "),
        ("name: a\n", ": application 'a' has no stages; give it at least one"),
    ],
)
def test_a_mistake_is_named_with_its_line(text: str, sentence: str, nowhere: Cli, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(text)
    assert nowhere.refused("apps", "check", str(file)).startswith(f"{file}{sentence}")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("apps", "check", "web_serch"), "unknown application 'web_serch'; did you mean 'web_search'?"),
        (("apps", "check", "/nope.yaml"), "/nope.yaml cannot be read: No such file or directory"),
        (("apps", "--json", "check", "web_search"), "options of apps check stand behind it"),
        (
            ("apps", "check", "web_search", "--svg", "/nope/x.svg"),
            "--svg '/nope/x.svg' cannot be written: No such file",
        ),
        (("apps", "check", "web_search", "--handlers", "nope"), "module of handlers 'nope' cannot be imported"),
        (("handlers", "--config", "/nope.toml"), "config is '/nope.toml', which cannot be read"),
    ],
)
def test_what_cannot_be_looked_into_gets_one_sentence(arguments: tuple[str, ...], why: str, nowhere: Cli) -> None:
    assert why in nowhere.refused(*arguments)


def test_help_names_every_command(nowhere: Cli) -> None:
    text = nowhere.ok("--help").out
    commands = {line.split()[1] for line in text.splitlines() if line.startswith("│ ") and line[2].isalpha()}
    assert commands == {
        *("serve", "emulate", "calibrate", "submit", "jobs", "show", "watch", "cancel"),
        *("engines", "apps", "handlers", "policies", "export", "run", "replay", "demo", "fit", "simulate", "train"),
        *("whatif", "keys"),
    }
    for command in commands:
        assert f"Usage: llmsched {command} " in nowhere.ok(command, "--help").out


def test_the_version_is_printed(nowhere: Cli) -> None:
    assert nowhere.ok("--version").out.count(".") == 2


# -------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("submit", "nope", "--input", "{}"), "unknown application 'nope'; "),
        (("submit", "web_serch", "--input", "{}"), "did you mean 'web_search'?"),
        (("submit", "web_search", "--input", "{bad"), "--input is no valid JSON: "),
        (("submit", "web_search", "--input", "@/nope"), "--input @/nope cannot be read: No such file or directory"),
        (("submit", "web_search"), "a job needs either --input or --recording: JSON, @FILE, or @- for standard input"),
        (("submit", "web_search", "--input", "1", "--recording", "{}"), "a job needs either --input or --recording"),
        (("submit", "web_search", "--input", "1"), "input is not what 'web_search' takes: 1 is not of type 'object'"),
        (("submit", "web_search", "--recording", "{}"), "app"),
        (("submit", "web_search", "--input", "{}", "--class", "urgent"), "class: "),
        (("show", "job_nope"), "there is no job 'job_nope'; GET /v1/jobs lists those there are"),
        (("show", "../engines"), "there is no"),
        (("watch", "job_nope"), "there is no job 'job_nope'"),
        (("cancel", "job_nope"), "there is no job 'job_nope'"),
        (("jobs", "--status", "done"), "status: "),
        (("engines", "--remove", "nope"), "there is no engine 'nope'"),
        (("engines", "--add", "gpu:8000"), "url: "),
        (("engines", "--slots", "3"), "--slots goes with --add"),
        (("apps", "--put", "/nope.yaml"), "/nope.yaml cannot be read: No such file or directory"),
        (("replay", "--workload", "mixd"), "unknown workload or application 'mixd'; did you mean 'mixed'?"),
        (("replay", "--workload", "mixed", "--policy", "fcfs,sfj"), "unknown policy 'sfj'; did you mean 'sjf'?"),
        (("replay", "--workload", "mixed", "--rate", "0"), "rate is 0.0; it must be a positive number"),
        (("replay", "--workload", "mixed", "--speed", "0"), "--speed is 0.0; it must be above 0"),
        (("replay", "--workload", "mixed", "--arrivals", "/nope.csv"), "unknown arrivals '/nope.csv'"),
        (("replay", "--workload", "mixed", "--arrivals", "gamma:x"), "write gamma:4 for a cv of 4"),
        (("replay", "--workload", "mixed", "--traces", "/nope"), "/nope"),
        (("replay", "--workload", "mixed", "--json", "/nope/x.json"), "there is no folder '/nope' to write into"),
    ],
)
def test_bad_input_gets_one_sentence_and_status_2(arguments: tuple[str, ...], why: str, cli: Cli) -> None:
    assert why in cli.refused(*arguments)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("jobs", "--url", "gpu:8000"), "'gpu:8000' is no URL of a service; it must look like http://host:8000"),
        (("jobs", "--url", "http://["), "is no URL of a service"),
        (("jobs", "--url", "http://a:b"), "is no URL of a service"),
        (("serve", "--policy", "fcsf"), "unknown policy 'fcsf'; did you mean 'fcfs'?"),
        (("serve", "--speed", "-1"), "setting speed is -1.0: input should be greater than 0"),
        (
            ("serve", "--config", "/nope.toml"),
            "config is '/nope.toml', which cannot be read: No such file or directory",
        ),
        (("serve", "--store", "mysql://x"), "unknown kind of store 'mysql'; use sqlite:///jobs.db"),
        (("serve", "--engine", "gpu:1"), "setting engines[0].url is 'gpu:1'"),
        (("emulate", "--latency", "generic-8b"), "did you mean 'generic-7b'?"),
        (("export", "--store", "sqlite:///nope.db", "--out", "x.jsonl"), "there is no store at sqlite:///nope.db"),
        (("export", "--store", "jobs.db", "--out", "x.jsonl"), "the store's URL has no scheme; use sqlite:///jobs.db"),
        (("demo", "--policy", "fcfs,sfj"), "unknown policy 'sfj'; did you mean 'sjf'?"),
        (("demo", "--workload", "x"), "unknown workload or application 'x'"),
    ],
)
def test_bad_settings_get_one_sentence_and_status_2(
    arguments: tuple[str, ...], why: str, nowhere: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert why in nowhere.refused(*arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [("jobs", "--limit", "0"), ("submt",), ("jobs", "--lmit", "3"), ("show",)])
def test_wrong_usage_is_status_2(arguments: tuple[str, ...], nowhere: Cli) -> None:
    said = nowhere(*arguments)
    assert (said.status, said.out) == (2, "")
    assert "Try 'llmsched" in said.err


def test_a_service_that_is_away_is_status_1(nowhere: Cli) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    for command in (("jobs",), ("show", "job_1"), ("watch", "job_1"), ("submit", "a", "--input", "1", "--wait")):
        sentence = nowhere.refused(*command, "--url", url, status=1)
        assert sentence.startswith(f"no answer from {url} (")
        assert sentence.endswith("is the service running there? try llmsched serve")


def test_a_missing_or_wrong_key_is_named(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("wrong", ""):
        monkeypatch.setenv("LLMSCHED_API_KEY", key)
        assert "API key" in cli.refused("jobs")


def test_something_else_at_the_url_is_told_from_the_service(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = cli.ok("engines", "--json").json["items"][0]["url"]
    sentence = cli.refused("jobs", "--url", engine)
    assert sentence == f"{engine} answers 404 to /v1/jobs, which is not how llmsched does; check --url"


# -------------------------------------------------------------------------------------------------- processes


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LLMSCHED_")}
    command = [sys.executable, "-m", "llmsched", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False, **options)


def test_a_port_in_use_is_one_sentence(tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        done = run("serve", "--port", str(port), "--emulate", "1", "--log-level", "warning", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"Error: the service cannot listen on 127.0.0.1:{port}: Address already in use\n"


def test_whoever_reads_only_the_beginning_sees_no_traceback(service: RunningService) -> None:
    command = f"{sys.executable} -m llmsched apps --json | head -c 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("[", "")


def test_ctrl_c_ends_the_service_in_order(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "llmsched", "serve", "--port", "0", "--emulate", "1", "--workers", "1"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "listens on" in line:
            break
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    assert process.wait(30) == 0
    assert "Traceback" not in rest
    process.stderr.close()


# --------------------------------------------------------------------------------------------------------- run


def test_run_scores_an_application_on_its_examples_with_a_service_of_its_own(nowhere: Cli) -> None:
    said = nowhere.ok("run", "web_search", "--limit", "3", "--json")

    shown = said.json
    assert (shown["application"], shown["mean_score"], len(shown["jobs"])) == ("web_search", 1.0, 3)
    assert all(job["status"] == "completed" and job["llm_calls"] > 0 and job["result"] for job in shown["jobs"])
    assert "answers from the application's script" in said.err


def test_run_asks_the_service_it_is_given_and_fails_with_its_jobs(
    nowhere: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "script.yaml"
    script.write_text(
        "- {match: 'Action 1', json: {action: finish, argument: Rhine}}\n- {match: Question, answer: Hm}\n"
    )
    (tmp_path / "service").mkdir()
    with asyncio.Runner() as runner:
        started = running_service(tmp_path / "service", emulate=1, speed=500, script=str(script), api_keys=f"ann:{KEY}")
        running = runner.run(started.__aenter__())
        try:
            monkeypatch.setenv("LLMSCHED_API_KEY", KEY)
            told = nowhere("run", "web_search", "--limit", "2", "--url", running.url)
            refused = nowhere("run", "sequence_sorting", "--limit", "1", "--url", running.url)
        finally:
            runner.run(started.__aexit__(None, None, None))

    assert told.status == 0
    assert [line.split()[:3] for line in told.out.splitlines() if line.strip().startswith("own-")] == [
        ["own-1", "completed", "1.00"],
        ["own-2", "completed", "0.00"],
    ]
    assert "mean score 0.500 over 2 jobs" in told.out
    assert refused.status == 1
    assert "the script has no answer" in refused.out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("run", "web_serch"), "unknown application with a dataset 'web_serch'; did you mean 'web_search'?"),
        (("run", "web_search", "--data", "/nope.json"), "/nope.json"),
        (("run", "sequence_sorting", "--data", str(EXAMPLE)), "line 1 has the columns"),
    ],
)
def test_run_says_what_is_wrong_in_one_sentence(nowhere: Cli, arguments: tuple[str, ...], sentence: str) -> None:
    assert sentence in nowhere.refused(*arguments)
