"""The documentation names what exists: settings, files, commands, and code blocks that parse."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

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
    for language, block in re.findall(r"```(\w+)\n(.*?)```", page.read_text(), re.DOTALL):
        if language == "json":
            json.loads(block)
        elif language == "toml":
            tomllib.loads(block)


def test_the_recording_in_the_documentation_is_one() -> None:
    text = (ROOT / "docs/recordings.md").read_text()
    block = re.search(r"```json\n(.*?)```", text, re.DOTALL)
    assert block is not None

    assert Recording.from_json(json.loads(block[1])).output_tokens == 212


def test_the_toml_example_is_a_configuration(tmp_path: Path) -> None:
    from llmsched import config

    block = re.search(r"```toml\n(.*?)```", (ROOT / "docs/configuration.md").read_text(), re.DOTALL)
    assert block is not None
    file = tmp_path / "llmsched.toml"
    file.write_text(block[1])

    assert [e.slots for e in config.load(file).engines] == [64, 64]
