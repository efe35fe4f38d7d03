"""Dockerfile, compose, Prometheus, Grafana: they agree with each other and with the service.

Nothing is started. Queries are held against the metric contract, and the contract against what the service
registers; paths, ports, users, images and settings are read out of the files. Where promtool is installed
(Debian package `prometheus`) it checks the rules, runs their own tests and parses the queries of the dashboard.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
import yaml

from llmsched.config import Settings, load
from llmsched.gateway.metrics import Metrics

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
RUNBOOK = ROOT / "docs/operations.md"

#: Metric -> its labels: the contract between the service and those who watch it.
CONTRACT = {
    "llmsched_jobs_submitted_total": {"application", "class"},
    "llmsched_jobs_finished_total": {"application", "outcome"},
    "llmsched_jobs_active": {"application"},
    "llmsched_leads": set(),
    "llmsched_store_up": set(),
    "llmsched_job_completion_seconds": {"application"},
    "llmsched_task_queue_seconds": {"pool", "application"},
    "llmsched_task_run_seconds": {"pool", "application"},
    "llmsched_ready_tasks": {"pool"},
    "llmsched_running_tasks": {"executor"},
    "llmsched_executor_slots": {"executor"},
    "llmsched_decision_seconds": set(),
    "llmsched_decisions_total": set(),
    "llmsched_event_loop_lag_seconds": set(),
    "llmsched_explorations_total": set(),
    "llmsched_estimate_error_ratio": {"application"},
    "llmsched_task_retries_total": {"pool", "reason"},
    "llmsched_engine_up": {"executor"},
    "llmsched_profile_jobs": {"application"},
    "llmsched_profile_age_seconds": {"application"},
    "llmsched_slices_total": {"pool"},
    "llmsched_profile_fallback": {"application"},
    "llmsched_callback_attempts_total": {"outcome"},
    "llmsched_callbacks_ended_total": {"state"},
    "llmsched_callback_delay_seconds": set(),
    "llmsched_callbacks_owed": set(),
    "llmsched_oldest_waiting_job_seconds": {"pool"},
    "llmsched_max_wait_seconds": set(),
}
HISTOGRAMS = {
    "llmsched_job_completion_seconds",
    "llmsched_task_queue_seconds",
    "llmsched_task_run_seconds",
    "llmsched_decision_seconds",
    "llmsched_event_loop_lag_seconds",
    "llmsched_estimate_error_ratio",
    "llmsched_callback_delay_seconds",
}
#: Series of vLLM 0.32 (and of the emulator) that the dashboard shows; see vllm/v1/metrics/loggers.py.
VLLM_SERIES = {
    "vllm:generation_tokens_total",
    "vllm:kv_cache_usage_perc",
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
}
#: What the service and vLLM answer to a GET.
SERVICE_PATHS = {"/health", "/ready", "/metrics", "/version"}
VLLM_PATHS = {"/health", "/metrics"}


def read(path: Path) -> list[Any]:
    """The documents of a YAML or JSON file."""
    return [json.loads(path.read_text())] if path.suffix == ".json" else list(yaml.safe_load_all(path.read_text()))


def compose() -> dict[str, Any]:
    document: dict[str, Any] = read(DEPLOY / "compose.yaml")[0]
    return document


def dockerfile() -> list[tuple[str, str]]:
    """Instructions and their arguments, lines joined and ARG defaults filled in."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.M).replace("\\\n", " ")
    arguments = dict(re.findall(r"^ARG (\w+)=(\S+)", text, flags=re.M))
    text = re.sub(r"\$\{(\w+)\}", lambda match: arguments.get(match[1], match[0]), text)
    return [(line.split()[0], line.split(maxsplit=1)[1].strip()) for line in text.splitlines() if line.strip()]


def last(instruction: str) -> str:
    """The argument of an instruction of the final image."""
    return [argument for name, argument in dockerfile() if name == instruction][-1]


# --- metrics ------------------------------------------------------------------------------------------------


class Query(NamedTuple):
    """An expression and the labels that its texts (a legend, an annotation) show."""

    where: str
    expr: str
    shown: set[str]


def dashboards() -> dict[str, dict[str, Any]]:
    """By the name of their file."""
    return {path.stem: read(path)[0] for path in sorted((DEPLOY / "grafana/dashboards").glob("*.json"))}


def dashboard_queries() -> Iterator[Query]:
    for name, board in dashboards().items():
        for panel in board["panels"]:
            for target in panel.get("targets", []):
                expr = target["expr"].replace("$__rate_interval", "5m").replace("$application", ".*")
                shown = set(re.findall(r"\{\{\s*(\w+)\s*\}\}", target["legendFormat"]))
                yield Query(f"{name}: panel {panel['title']!r}", expr, shown)


def rules() -> list[dict[str, Any]]:
    return [rule for group in read(DEPLOY / "prometheus/rules.yml")[0]["groups"] for rule in group["rules"]]


def rule_queries() -> Iterator[Query]:
    for rule in rules():
        shown = set(re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())))
        yield Query(f"alert {rule['alert']}", rule["expr"], shown)


def runbook_queries() -> Iterator[Query]:
    """A line of a promql block each."""
    section = ""
    for heading, block in re.findall(
        r"^### ([^\n]+)$|^```promql\n(.*?)```", RUNBOOK.read_text(), re.DOTALL | re.MULTILINE
    ):
        section = heading or section
        for line in block.splitlines():
            yield Query(f"runbook: {section}", line, set())


QUERIES = [*dashboard_queries(), *rule_queries(), *runbook_queries()]
SERIES = re.compile(r"\b((?:llmsched_|vllm:)\w+)(?:\{([^}]*)\})?")


def metric_of(series: str) -> str:
    """The metric of the contract behind a series; KeyError names a series that no metric has."""
    name, _, suffix = series.rpartition("_")
    if name in HISTOGRAMS and suffix in {"bucket", "sum", "count"}:
        return name
    if series in CONTRACT.keys() - HISTOGRAMS:
        return series
    raise KeyError(f"{series} is not a series of any metric of the service")


def labels_of(series: str) -> set[str]:
    """The labels of a series, with those that a scrape adds."""
    scraped = {"instance", "job"}
    if series in VLLM_SERIES:
        return scraped | {"model_name", "engine"}
    return scraped | CONTRACT[metric_of(series)] | ({"le"} if series.endswith("_bucket") else set())


def test_service_registers_every_metric_of_the_contract() -> None:
    names = set(Metrics().names())
    assert set(CONTRACT) - names == set()
    assert {name for name in CONTRACT if f"{name}_bucket" in names} == HISTOGRAMS


def test_service_gives_its_series_the_labels_of_the_contract() -> None:
    metrics = Metrics()
    metrics.job_submitted("web_search", "standard")
    metrics.job_finished("web_search", "completed", 1.0)
    metrics.task_started("llm", "web_search", 0.1)
    metrics.task_ended("llm", "web_search", 0.2)
    metrics.task_retried("llm", "timeout")
    metrics.decided(0.001)
    samples = [sample for family in metrics.registry.collect() for sample in family.samples]
    seen = {sample.name: set(sample.labels) for sample in samples if sample.name.startswith("llmsched_")}
    created = {name for name in seen if name.endswith("_created")}  # not in the text format
    assert len(seen) > len(created) > 0
    for name in seen.keys() - created:
        assert seen[name] | {"instance", "job"} == labels_of(name), name


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: f"{query.where}: {query.expr[:40]}")
def test_query_uses_series_and_labels_that_exist(query: Query) -> None:
    known: set[str] = set()
    for series, selector in SERIES.findall(query.expr):
        labels = labels_of(series)
        assert set(re.findall(r"(\w+)\s*[=!]~?", selector)) <= labels, series
        known |= labels
    if not known:
        assert query.expr == 'up{job="llmsched"} == 0'
        known = {"instance", "job"}
    grouped = {label for by in re.findall(r"\bby \(([^)]*)\)", query.expr) for label in re.findall(r"\w+", by)}
    assert grouped <= known
    left_over = grouped - {"le"} if re.search(r"\b(sum|max)\b", query.expr) else known
    assert query.shown <= left_over


def test_dashboards_show_every_metric_of_the_contract() -> None:
    series = {name for query in dashboard_queries() for name, _ in SERIES.findall(query.expr)}
    assert {metric_of(name) for name in series - VLLM_SERIES} == set(CONTRACT)
    assert series & VLLM_SERIES == VLLM_SERIES


@pytest.mark.parametrize("name", dashboards())
def test_a_dashboard_is_found_by_its_name_and_asks_for_no_variable_that_it_lacks(name: str) -> None:
    board = dashboards()[name]
    assert (board["uid"], board["title"].partition(":")[0]) == (name, "llmsched")
    assert "llmsched" in board["tags"]
    known = {variable["name"] for variable in board["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]\w*)", json.dumps(board["panels"])))
    assert used == known


@pytest.mark.parametrize("name", dashboards())
def test_dashboard_panels_do_not_overlap(name: str) -> None:
    board = dashboards()[name]
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in board["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))


def test_every_alert_is_tested() -> None:
    tests = read(DEPLOY / "prometheus/rules_test.yml")[0]["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    alerts = {rule["alert"] for rule in rules()}
    assert {case["alertname"] for case in cases if case.get("exp_alerts")} == alerts
    assert {case["alertname"] for case in cases if not case.get("exp_alerts")} == alerts


def test_every_alert_has_a_section_in_the_runbook_that_it_leads_to() -> None:
    sections = dict(re.findall(r"^### (\w+)$\n(.*?)(?=^##)", RUNBOOK.read_text(), re.DOTALL | re.MULTILINE))
    alerts = {rule["alert"]: rule for rule in rules()}
    assert {name for name in sections if name.startswith("Llmsched")} == alerts.keys()
    for name, rule in alerts.items():
        assert rule["annotations"]["runbook"] == f"{RUNBOOK.relative_to(ROOT)}#{name.lower()}"
        told = re.findall(r"^\*\*(\w+)\.\*\*", sections[name], re.MULTILINE)
        assert told == ["Means", "Confirm", "Do"], name
        assert any(query.where == f"runbook: {name}" for query in QUERIES), name


def test_the_runbook_says_how_severe_every_alert_is() -> None:
    [table] = re.findall(r"^\| alert \| severity \|.*\n\|[-|]+\n((?:\|.*\n)+)", RUNBOOK.read_text(), re.MULTILINE)
    cells = [row.split("|") for row in table.splitlines()]
    told = {name: row[2].strip() for row in cells for name in re.findall(r"\[(\w+)\]", row[1])}
    assert told == {rule["alert"]: rule["labels"]["severity"] for rule in rules()}


needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


def promtool(*arguments: str, folder: Path = DEPLOY / "prometheus") -> None:
    result = subprocess.run(["promtool", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@needs_promtool
def test_promtool_accepts_the_configuration_and_the_rules() -> None:
    promtool("check", "config", "prometheus.yml")
    promtool("test", "rules", "rules_test.yml")


@needs_promtool
def test_promtool_parses_the_queries_of_the_dashboards_and_the_runbook(tmp_path: Path) -> None:
    asked = [*dashboard_queries(), *runbook_queries()]
    recorded = [{"record": f"query:{i}", "expr": query.expr} for i, query in enumerate(asked)]
    (tmp_path / "queries.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": recorded}]}))
    promtool("check", "rules", "queries.yml", folder=tmp_path)


# --- image and settings -------------------------------------------------------------------------------------


def images() -> Iterator[str]:
    yield from (service["image"] for service in compose()["services"].values())
    yield from (argument.split()[0] for name, argument in dockerfile() if name == "FROM")


def test_images_are_pinned_to_a_version_and_agree() -> None:
    used = set(images())
    for image in used:
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+[\w.-]*", image), image
    assert len({image.split(":")[0] for image in used}) == len(used), "one version of each"
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"llmsched:{version}" in used


def test_image_runs_as_a_user_without_rights() -> None:
    user, group = last("USER").split(":")
    assert user.isdigit()
    assert int(user) > 0
    assert int(group) > 0
    assert f"--owner {user}" in " ".join(argument for name, argument in dockerfile() if name == "RUN")


def test_image_listens_where_its_health_check_and_the_stack_look() -> None:
    port = last("EXPOSE")
    assert json.loads(last("CMD")) == ["serve", "--host", "0.0.0.0", "--port", port]
    assert json.loads(last("ENTRYPOINT")) == ["llmsched"]
    _, _, check = last("HEALTHCHECK").partition(" CMD ")
    program = json.loads(check)[-1]
    assert f"'127.0.0.1', {port}," in program
    assert "'GET', '/health'" in program
    compile(program, "HEALTHCHECK", "exec")
    assert compose()["services"]["gateway"]["ports"][0].endswith(f":{port}:{port}")


def test_image_keeps_the_store_on_its_volume() -> None:
    volume = last("VOLUME")
    store = re.search(r"LLMSCHED_STORE=(\S+)", last("ENV"))
    assert store is not None
    assert store[1].startswith(f"sqlite:///{volume}/")
    assert f"jobs:{volume}" in compose()["services"]["gateway"]["volumes"]


def test_image_is_built_from_files_that_exist_and_are_sent() -> None:
    sources = [
        source
        for name, argument in dockerfile()
        if name == "COPY" and "--from" not in argument
        for source in argument.split()[:-1]
    ]
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(sources) == sent
    for source in sources:
        assert (ROOT / source).exists(), source


def engines_of(settings: Settings) -> list[str]:
    return [engine.url for engine in settings.engines]


def image_environment() -> dict[str, str]:
    return dict(re.findall(r"\b(LLMSCHED_\w+)=(\S+)", last("ENV")))


def test_example_file_is_accepted() -> None:
    assert engines_of(load(DEPLOY / "llmsched.example.toml")) == engine_urls(compose()["services"])


def test_settings_of_compose_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = compose()["services"]["gateway"]
    for name, value in {**image_environment(), **gateway["environment"]}.items():
        monkeypatch.setenv(name, value)
    settings = load()
    assert engines_of(settings) == engine_urls(compose()["services"])
    assert settings.grace < int(gateway["stop_grace_period"].removesuffix("s"))


# --- compose ------------------------------------------------------------------------------------------------


def option(command: list[str], name: str) -> str:
    return next(argument.partition("=")[2] for argument in command if argument.startswith(f"--{name}="))


def engine_urls(services: dict[str, Any]) -> list[str]:
    engines = {name: service for name, service in services.items() if service["image"].startswith("vllm/")}
    return [f"http://{name}:{option(service['command'], 'port')}" for name, service in engines.items()]


def test_compose_gives_each_engine_its_own_gpu_and_priorities() -> None:
    services = compose()["services"]
    assert len(engine_urls(services)) == 2
    devices = []
    for engine in (services["engine-0"], services["engine-1"]):
        assert option(engine["command"], "scheduling-policy") == "priority"
        assert option(engine["command"], "max-num-seqs")
        (device,) = engine["deploy"]["resources"]["reservations"]["devices"]
        assert device["capabilities"] == ["gpu"]
        devices += device["device_ids"]
    assert len(set(devices)) == 2


def test_compose_health_checks_ask_for_paths_that_exist() -> None:
    services = compose()["services"]
    known = {
        "gateway": (SERVICE_PATHS, 8000),
        "engine-0": (VLLM_PATHS, 8000),
        "engine-1": (VLLM_PATHS, 8000),
        "prometheus": ({"/-/healthy"}, 9090),
        "grafana": ({"/api/health"}, 3000),
    }
    assert services.keys() == known.keys()
    for name, (paths, port) in known.items():
        if name == "gateway":  # its check is the image's
            assert "healthcheck" not in services[name]
            continue
        url = re.search(r"http://127\.0\.0\.1[^'\"]*", " ".join(services[name]["healthcheck"]["test"]))
        assert url is not None
        assert urlsplit(url[0]).port == port
        assert urlsplit(url[0]).path in paths


def test_compose_mounts_what_exists_and_declares_its_volumes() -> None:
    document = compose()
    for service in document["services"].values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).is_dir()
            else:
                assert source in document["volumes"]


def test_compose_gateway_can_write_only_to_its_volume_and_tmp() -> None:
    gateway = compose()["services"]["gateway"]
    assert (gateway["read_only"], gateway["tmpfs"], gateway["cap_drop"]) == (True, ["/tmp"], ["ALL"])


def test_prometheus_scrapes_the_gateway_and_every_engine() -> None:
    jobs = read(DEPLOY / "prometheus/prometheus.yml")[0]["scrape_configs"]
    assert all(job.get("metrics_path", "/metrics") in SERVICE_PATHS & VLLM_PATHS for job in jobs)
    engines = [urlsplit(url).netloc for url in engine_urls(compose()["services"])]
    assert {job["job_name"]: job["static_configs"] for job in jobs} == {
        "llmsched": [{"targets": [f"gateway:{last('EXPOSE')}"]}],
        "vllm": [{"targets": engines}],
    }


def test_grafana_is_provisioned_with_the_data_source_and_the_dashboard() -> None:
    services = compose()["services"]
    provisioning = DEPLOY / "grafana/provisioning"
    (source,) = read(provisioning / "datasources/prometheus.yaml")[0]["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = read(provisioning / "dashboards/llmsched.yaml")[0]["providers"]
    mounts = dict(volume.split(":")[:2][::-1] for volume in services["grafana"]["volumes"])
    assert mounts["/etc/grafana/provisioning"] == "./grafana/provisioning"
    folder = DEPLOY / mounts[provider["options"]["path"]]
    home = Path(services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (folder / home.name).is_file()
    assert str(home.parent) == provider["options"]["path"]


# --- make and CI --------------------------------------------------------------------------------------------


def test_ci_runs_lint_and_every_kind_of_tests() -> None:
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    targets = re.findall(r"^step \S+ make (\S+)", script.read_text(), flags=re.M)
    assert targets == [
        "setup",
        "lint",
        "test",
        "test-train",
        "soak",
        "setup-vllm",
        "test-chaos",
        "test-ray",
        "test-vllm",
    ]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_help_names_every_target() -> None:
    text = subprocess.run(
        ["make", "--silent", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), flags=re.M)
    assert phony is not None
    assert re.findall(r"^  make (\S+)", text, flags=re.M) == phony[1].split()
