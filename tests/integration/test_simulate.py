"""`llmsched simulate` as a process: what it prints and writes, that it repeats, and that it leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest

from llmsched.catalogue import installed_applications
from llmsched.cli.main import main
from llmsched.errors import InvalidInput
from llmsched.model.latency import GENERIC_7B
from llmsched.simulator.experiment import Comparison, Sizing, compare, parse_policies
from llmsched.workloads import Workload, write_trace

#: Every process of a command inherits it, and is found by it.
MARK = "PYTEST_SIMULATE"
#: Those that learn, those that know, and those that do neither; cheap applications.
POLICIES = "fcfs,sjf,srpt,llmsched:eps=0.3,llmsched-pool,oracle-srtf,oracle-pool"
SMALL = ("--workload", "web_search,llm_compiler", "--jobs", "25", "--seeds", "2")


def command(*options: str, **environment: str) -> subprocess.Popen[str]:
    own = {k: v for k, v in os.environ.items() if not k.startswith("LLMSCHED_")}
    return subprocess.Popen(
        [sys.executable, "-m", "llmsched", "simulate", *options],
        env=own | {"COLUMNS": "200"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ok(*options: str, **environment: str) -> tuple[str, str]:
    process = command(*options, **environment)
    out, err = process.communicate(timeout=90)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    return out, err


def timeless(document: dict[str, Any]) -> dict[str, Any]:
    """Without what a clock measured."""
    for run in document["runs"]:
        del run["decision_ms"]
    return document


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, str, Path]:
    """Document, standard output and error, and the folder of pictures."""
    folder = tmp_path_factory.mktemp("simulated")
    files = ("--json", str(folder / "out.json"), "--plot", str(folder / "plots"))
    out, err = ok(*SMALL, "--policy", POLICIES, "--load", "1.0", *files, PYTHONHASHSEED="1")
    return json.loads((folder / "out.json").read_text()), out, err, folder / "plots"


def test_the_document_is_that_of_the_contract(simulated: tuple[dict[str, Any], str, str, Path]) -> None:
    document, *_ = simulated
    settings = document["settings"]
    assert settings["policies"] == POLICIES.split(",")
    assert settings["load"] == 1.0
    assert settings["slots"] >= 2
    assert settings["workers"]["cpu"] >= 1
    assert settings["effective_rate"] == pytest.approx(0.9, rel=0.25)
    assert [(run["policy"], run["seed"]) for run in document["runs"]] == [
        (p, s) for p in settings["policies"] for s in (0, 1)
    ]
    for run in document["runs"]:
        assert (run["jobs"], run["failed"]) == (25, 0)
        assert run["p50_jct"] <= run["p95_jct"] <= run["p99_jct"] <= run["makespan"]
        assert run["decisions"] > 25
        assert 0 < run["decision_ms"]["mean"] < run["decision_ms"]["p99"] * 10
        assert 0 < run["utilisation"]["llm"] <= 1
        assert sum(app["jobs"] for app in run["apps"].values()) == 25
    for entry in document["summary"]:
        low, high = entry["ci95"]
        assert low <= entry["mean_jct"] <= high
        assert entry["vs"].keys() == set(settings["policies"]) - {entry["policy"]}
        assert entry["clairvoyant_share"].keys() == {"share_pct", "ci95"}
    shares = {entry["policy"]: entry["clairvoyant_share"]["share_pct"] for entry in document["summary"]}
    assert shares["fcfs"] == 0.0
    assert max(shares["oracle-srtf"], shares["oracle-pool"]) == pytest.approx(100.0)


def test_people_see_machines_progress_and_a_table(simulated: tuple[dict[str, Any], str, str, Path]) -> None:
    document, out, err, folder = simulated
    settings = document["settings"]
    assert f"1 engine of {settings['slots']} slots, {settings['workers']['cpu']} cpu worker" in " ".join(out.split())
    assert "clairvoyant gain" in out
    assert "mean against" in out
    assert all(f" {policy} " in out for policy in settings["policies"])
    assert "learned from 2000 jobs" in err
    assert "350 of 350 jobs" in err
    assert sorted(path.name for path in folder.iterdir()) == ["completion_times.png", "gantt.png", "jct.png"]


def test_it_repeats_in_any_number_of_processes(
    simulated: tuple[dict[str, Any], str, str, Path], tmp_path: Path
) -> None:
    document, *_ = simulated
    file = tmp_path / "again.json"
    options = ("--policy", POLICIES, "--load", "1.0", "--parallel", "1", "--json", str(file))
    ok(*SMALL, *options, PYTHONHASHSEED="2")
    again = json.loads(file.read_text())
    assert timeless(again) == timeless(json.loads(json.dumps(document)))


def test_several_loads_trouble_and_given_machines(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    trouble = ("--failures", "0.05", "--losses", "--arrivals", "gamma:3", "--parallel", "1", "--json", str(file))
    out, _ = ok(*SMALL, "--policy", "fcfs,sjf", "--load", "0.8,1.2", "--plot", str(tmp_path / "plots"), *trouble)
    document = json.loads(file.read_text())
    assert document["settings"]["load"] == [0.8, 1.2]
    assert len(document["settings"]["slots"]) == len(document["settings"]["effective_rate"]) == 2
    assert [(e["policy"], e["load"]) for e in document["summary"]] == [
        (p, k) for k in (0.8, 1.2) for p in ("fcfs", "sjf")
    ]
    assert out.count("Job completion time in seconds") == 2
    assert (tmp_path / "plots/load.png").is_file()
    out, _ = ok(*SMALL, "--policy", "fcfs", "--engines", "2", "--slots", "5", "--workers", "3", "--json", str(file))
    settings = json.loads(file.read_text())["settings"]
    assert (settings["engines"], settings["slots"], settings["workers"]) == (2, 5, {"cpu": 3})
    assert "2 engines of 5 slots, 3 cpu workers, 0.9 jobs/s, offered load 0." in " ".join(out.split())


def test_what_the_service_adds_and_what_prompts_share_can_be_told(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    means = []
    for options in ((), ("--overhead", "0.5"), ("--shared-prefixes",)):
        ok(*SMALL, "--policy", "fcfs", "--engines", "2", *options, "--parallel", "1", "--json", str(file))
        means.append(json.loads(file.read_text())["summary"][0]["mean_jct"])
    settings = json.loads(file.read_text())["settings"]
    assert (settings["overhead"], settings["shared_prefixes"]) == (0.0, True)
    assert means[1] > means[0] + 0.5 > means[0] > means[2] - 1e-9


def test_traces_to_run_and_traces_to_learn_from(tmp_path: Path) -> None:
    """Generated jobs serve as traces: one query each."""
    for name, seed in (("run", 1), ("learn", 2)):
        (tmp_path / name).mkdir()
        jobs = [arrival.recording for arrival in Workload.load("web_search").arrivals(60, 1.0, seed)]
        write_trace(tmp_path / name / "web_search.jsonl.gz", jobs)
    small = ("--workload", "web_search", "--policy", "llmsched-pool", "--jobs", "20", "--seeds", "1", "--parallel", "1")
    file = tmp_path / "out.json"
    apart = ("--traces", str(tmp_path / "run"), "--train", str(tmp_path / "learn"), "--json", str(file))
    _, err = ok(*small, *apart)
    assert json.loads(file.read_text())["settings"]["training_jobs"] == {"web_search": 60}
    assert "learned from 60 jobs" in err
    same = ("--traces", str(tmp_path / "run"), "--train", str(tmp_path / "run"))
    _, err = ok(*small, *same)
    assert "warning: 100% of the jobs to simulate are runs of a query that was learned from" in err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--workload", "mixd", "--policy", "fcfs"), "unknown workload or application 'mixd'; did you mean 'mixed'"),
        (("--workload", "chain", "--policy", "fcsf"), "unknown policy 'fcsf'; did you mean 'fcfs'"),
        (
            ("--workload", "chain", "--policy", "llmsched:epps=1"),
            "unknown option of policy 'llmsched' 'epps'; did you mean 'eps'",
        ),
        (("--workload", "chain", "--policy", "ltr", "--prompts", "x"), "x is not a folder"),
        (("--workload", "chain", "--policy", "ltr", "--ranker", "x"), "cannot read x: No such file or directory"),
        (("--workload", "chain", "--policy", "fcfs", "--load", "heavy"), "--load is 'heavy'; it must be a number"),
        (("--workload", "chain", "--policy", "fcfs", "--load", "1", "--slots", "4"), "--load makes the machines"),
        (("--workload", "chain", "--policy", "fcfs", "--load", "-1"), "load is -1; it must be from 0.01 to 100"),
        (("--workload", "chain", "--policy", "fcfs", "--rate", "0"), "rate is 0; it must be a positive number"),
        (("--workload", "chain", "--policy", "fcfs", "--failures", "1"), "--failures is 1; it must be a probability"),
        (("--workload", "chain", "--policy", "fcfs", "--latency", "h100"), "unknown latency curve 'h100'"),
        (("--workload", "chain", "--policy", "fcfs", "--arrivals", "poison"), "unknown arrivals 'poison'"),
        (("--workload", "chain", "--policy", "fcfs", "--json", "/no/where.json"), "there is no folder '/no'"),
        (("--workload", "chain", "--policy", "fcfs", "--traces", "/no"), "/no is not a folder"),
    ],
)
def test_bad_input_is_one_sentence(
    options: tuple[str, ...], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, where it takes milliseconds."""
    monkeypatch.delenv("LLMSCHED_TRACES", raising=False)
    monkeypatch.setattr(sys, "argv", ["llmsched", "simulate", *options])
    with pytest.raises(SystemExit) as end:
        main()
    out, err = capsys.readouterr()
    assert (end.value.code, out) == (2, "")
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    assert sentence in err


def processes(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_it_leaves_no_process_behind(number: signal.Signals) -> None:
    mark = uuid4().hex
    options = (
        "--workload",
        "mixed-nodoc",
        "--policy",
        "fcfs,sjf",
        "--jobs",
        "20000",
        "--seeds",
        "2",
        "--parallel",
        "2",
    )
    process = command(*options, **{MARK: mark})
    until(lambda: len(processes(mark)) >= 3, "both processes of the pool")
    time.sleep(0.5)  # in the middle of it
    if number is signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does: to all of them
    else:
        process.kill()
    _, err = process.communicate(timeout=30)
    until(lambda: not processes(mark), "the end of all processes")
    assert process.returncode in (130, -number)
    assert "Traceback" not in err


def until(condition: Any, what: str, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.05)


def test_what_a_run_raises_comes_out_of_the_pool() -> None:
    comparison = Comparison(
        Workload.load("planning"),
        parse_policies("fcfs,sjf"),
        (Sizing((3,), {}, 0.9, 1.0),),
        (0, 1),
        12,
        installed_applications(),
        GENERIC_7B,
    )
    with pytest.raises(InvalidInput, match="can never finish: pool 'cpu' has no executor left"):
        compare(comparison, parallel=2)


@pytest.mark.skipif("LLMSCHED_TRACES" not in os.environ, reason="needs the traces")
def test_real_traces_the_profiles_have_not_seen(tmp_path: Path) -> None:
    """Knowing what is left by history is worth most of what knowing the future is."""
    file = tmp_path / "out.json"
    compared = ("--workload", "mixed-nodoc", "--policy", "fcfs,llmsched-pool,oracle-pool", "--load", "1.0")
    ok(*compared, "--seeds", "2", "--jobs", "200", "--traces", os.environ["LLMSCHED_TRACES"], "--json", str(file))
    summary = json.loads(file.read_text())["summary"]
    share = next(e["clairvoyant_share"] for e in summary if e["policy"] == "llmsched-pool")
    assert share["share_pct"] > 85
