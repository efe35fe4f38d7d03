"""Settings: flags over environment over file, and one sentence for everything that cannot be."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from llmsched import config
from llmsched.config import EngineSettings, Settings
from llmsched.errors import InvalidSetting
from llmsched.runtime.tools.handlers import HttpTool

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.upper().startswith("LLMSCHED_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    return tmp_path / "c.toml"


def refusal(file: Path | None = None, **flags: Any) -> str:
    with pytest.raises(InvalidSetting) as error:
        config.load(file, **flags)
    return str(error.value)


# ------------------------------------------------------------------------------------------------- where from


def test_flags_win_over_environment_over_file(toml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toml.write_text('policy = "fcfs"\nworkers = 7\nport = 1\n')
    monkeypatch.setenv("LLMSCHED_WORKERS", "8")
    monkeypatch.setenv("LLMSCHED_PORT", "2")
    settings = config.load(toml, port=3, policy=None)
    assert (settings.policy, settings.workers, settings.port) == ("fcfs", 8, 3)


def test_the_case_of_a_variable_does_not_matter(toml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toml.write_text("workers = 7\n")
    monkeypatch.setenv("llmsched_workers", "8")
    assert config.load(toml).workers == 8


def test_variables_of_clients_and_tests_are_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TRACES", "CONFIG", "URL", "API_KEY", "TEST_POSTGRES", "VLLM_PYTHON"):
        monkeypatch.setenv(f"LLMSCHED_{name}", "x")
    assert config.load().port == Settings.model_fields["port"].default


def test_the_example_loads() -> None:
    settings = config.load(ROOT / "deploy/llmsched.example.toml")
    assert [engine.url for engine in settings.engines] == ["http://engine-0:8000", "http://engine-1:8000"]


@pytest.mark.parametrize(
    "text",
    [
        "http://a:1, http://b:2,",
        '["http://a:1", {"url": "http://b:2"}]',
        ' [{"url": "http://a:1"}, {"url": "http://b:2"}]',
    ],
)
def test_engines_in_the_environment(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMSCHED_ENGINES", text)
    assert config.load().engines == [EngineSettings(url="http://a:1"), EngineSettings(url="http://b:2")]


def test_engines_as_tables(toml: Path) -> None:
    toml.write_text('[[engines]]\nurl = "https://a"\nslots = 64\npool = "big"\n[[engines]]\nurl = "http://b:2"\n')
    assert config.load(toml).engines == [
        EngineSettings(url="https://a", slots=64, pool="big"),
        EngineSettings(url="http://b:2"),
    ]


def test_lists_and_tables_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMSCHED_LAUNCH", "org/a, org/b")
    monkeypatch.setenv("LLMSCHED_LAUNCH_ARGS", "--dtype float32 --name 'two words'")
    monkeypatch.setenv("LLMSCHED_HANDLERS", '["pkg.mod"]')
    monkeypatch.setenv("LLMSCHED_WORKER_POOLS", '{"browser": 2}')
    settings = config.load()
    assert settings.launch == ["org/a", "org/b"]
    assert settings.launch_args == ["--dtype", "float32", "--name", "two words"]
    assert settings.handlers == ["pkg.mod"]
    assert settings.worker_pools == {"browser": 2}


# ------------------------------------------------------------------------------------------------------ tools

WEATHER = """
[tools.weather]
url = "http://tools:9000/weather"
description = "Weather of a city."
timeout = 5
retries = 0
max_bytes = 2000
headers = { "X-Team" = "a" }

[tools.weather.schema]
type = "object"
required = ["city"]
"""


def test_a_tool_that_lives_elsewhere(toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schema = {"type": "object", "required": ["city"]}
    toml.write_text(WEATHER)
    assert config.load(toml).http_tools() == [
        HttpTool(
            "weather",
            "http://tools:9000/weather",
            schema=schema,
            description="Weather of a city.",
            timeout=5.0,
            retries=0,
            headers={"X-Team": "a"},
            max_bytes=2000,
        )
    ]
    (tmp_path / "schema.json").write_text('{"type": "object", "required": ["city"]}')
    (tmp_path / "headers").write_text("X-Key: sesame: open\n\n x-other:2\n")
    (tmp_path / "token").write_text("sesame\n")
    files = {"schema_file": "schema.json", "headers_file": "headers", "bearer_file": "token"}
    tool = {"url": "http://a?key=sesame", "method": "GET", **{k: str(tmp_path / v) for k, v in files.items()}}
    monkeypatch.setenv("LLMSCHED_TOOLS", json.dumps({"w": tool}))
    settings = config.load(toml)
    assert settings.http_tools() == [
        HttpTool(
            "w",
            "http://a?key=sesame",
            "GET",
            schema=schema,
            headers={"X-Key": "sesame: open", "x-other": "2", "Authorization": "Bearer sesame"},
        )
    ]
    assert "sesame" not in repr((settings, settings.tools, settings.http_tools()))


def test_the_tool_in_the_documentation_is_one(toml: Path) -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs/handlers.md").read_text(), re.DOTALL)
    toml.write_text(block)
    settings = config.load(toml)
    assert settings.worker_pools == {"http": 200}
    assert [(name, tool.timeout, tool.bearer_file) for name, tool in settings.tools.items()] == [
        ("weather", 20.0, Path("/run/secrets/weather"))
    ]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('headers = {Authorization = "sesame"}', "{file}: tools.w.headers: Authorization is a secret; write it into a"),
        (
            'headers = {x-api-key = "sesame"}',
            "{file}: tools.w.headers: x-api-key is a secret; write it into a file and",
        ),
        ('bearer = "sesame"', "unknown key of tools.w 'bearer'; did you mean 'bearer_file'?"),
        ('token = "sesame"', "setting tools.w.token is a secret; write it into a file and name that as bearer_file"),
        ("time_out = 3", "unknown key of tools.w 'time_out'; did you mean 'timeout'?"),
        ("schem = {}", "unknown key of tools.w 'schem'; did you mean 'schema'?"),
        (
            'headers = {x = "sesame\\n"}',
            "setting tools.w.headers: header 'x' must be a name with one line of printable",
        ),
        ('schema = {}\nschema_file = "f"', "setting tools.w: it has both a schema and a schema_file; leave one out"),
        ('method = "PUT"', "setting tools.w.method is 'PUT': input should be 'POST' or 'GET'"),
        ("retries = 11", "setting tools.w.retries is 11: input should be less than or equal to 10"),
    ],
)
def test_a_tool_that_cannot_be_gets_one_sentence_and_keeps_its_secrets(line: str, why: str, toml: Path) -> None:
    toml.write_text(f'[tools.w]\nurl = "http://a"\n{line}\n')
    message = refusal(toml)
    assert message.startswith(why.format(file=toml))
    assert "sesame" not in message


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("tools:9000", "setting tools.w.url is 'tools:9000': a tool's URL looks like http://host:9000/path"),
        ("ftp://a", "setting tools.w.url is 'ftp://a': a tool's URL looks like http://host:9000/path"),
        ("http://a b/", "setting tools.w.url is 'http://a b/': a tool's URL looks like http://host:9000/path"),
        ("http://a:99999/", "setting tools.w.url is 'http://a:99999/': port out of range 0-65535"),
        ("http://me:sesame@a/", "setting tools.w.url: a tool's URL has no user name or password; write an Authorizat"),
        ("http://a/?api_key=sesame", "{file}: tools.w.url: api_key is a secret; give it as LLMSCHED_TOOLS in the envi"),
        ("http://a b/?q=sesame", "setting tools.w.url: a tool's URL looks like http://host:9000/path"),
    ],
)
def test_a_url_of_a_tool_that_cannot_be_gets_one_sentence(url: str, why: str, toml: Path) -> None:
    toml.write_text(f'[tools.w]\nurl = "{url}"\n')
    message = refusal(toml)
    assert message.startswith(why.format(file=toml))
    assert "sesame" not in message


@pytest.mark.parametrize(
    ("key", "text", "why"),
    [
        ("schema_file", "{", "tools.w.schema_file: {file} is no JSON: "),
        ("schema_file", "[]", "tools.w.schema_file: {file} has no JSON object in it"),
        ("headers_file", "X: 1\nsesame", "tools.w.headers_file: line 2 of {file} is no header; write Name: value"),
        ("headers_file", "X Y: sesame", "tools.w.headers_file: line 1 of {file} is no header; write Name: value"),
        ("headers_file", "X:", "tools.w.headers_file: line 1 of {file} is no header; write Name: value"),
        ("bearer_file", "sesame open", "tools.w.bearer_file: {file} must have one token in it and nothing else"),
        ("bearer_file", "", "tools.w.bearer_file: {file} must have one token in it and nothing else"),
        ("bearer_file", None, "tools.w.bearer_file is '{file}', which cannot be read: No such file or directory"),
    ],
)
def test_a_file_of_a_tool_that_cannot_be_gets_one_sentence(
    key: str, text: str | None, why: str, toml: Path, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    if text is not None:
        file.write_text(text)
    toml.write_text(f'[tools.w]\nurl = "http://a"\n{key} = "{file}"\n')
    settings = config.load(toml)
    with pytest.raises(InvalidSetting) as caught:
        settings.http_tools()
    assert str(caught.value).startswith(why.format(file=file))
    assert "sesame" not in str(caught.value)


# -------------------------------------------------------------------------------------------------- sentences


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('polcy = "fcfs"', "unknown setting in {file}: 'polcy'; did you mean 'policy'?"),
        ("zzz = 1", "unknown setting in {file}: 'zzz'; the settings are listed in docs/configuration.md"),
        ('api_keys = "a:12345678"', "{file}: api_keys is a secret; give it as LLMSCHED_API_KEYS in the environment"),
        (
            'engine_api_key = "x"',
            "{file}: engine_api_key is a secret; give it as LLMSCHED_ENGINE_API_KEY in the environment",
        ),
        (
            'store = "postgresql://me:secret@db/x"',
            "{file}: store has a password; give it as LLMSCHED_STORE in the environment",
        ),
        (
            'store = "postgresql://db/x?user=me&password=secret"',
            "{file}: store has a password; give it as LLMSCHED_STORE in the environment",
        ),
        ("port = 99999", "setting port is 99999: input should be less than or equal to 65535"),
        ("engines = 3", "setting engines is 3: input should be a valid list"),
        ('engines = ["gpu:1"]', "setting engines[0].url is 'gpu:1': an engine's URL looks like http://host:8000"),
        (
            'engines = [{url = "http://a", slot = 2}]',
            "unknown key of engines[0] 'slot'; did you mean 'slots'?",
        ),
        (
            'engines = [{url = "http://a", api_key = "x"}]',
            "setting engines[0].api_key is a secret; write it into a file and name that as api_key_file",
        ),
        ("engines = [{slots = 2}]", "setting engines[0].url is missing: field required"),
        (
            'engines = [{url = "http://a", slots = 0}]',
            "setting engines[0].slots is 0: input should be greater than or equal to 1",
        ),
        (
            "worker_pools = {browser = -1}",
            "setting worker_pools.browser is -1: input should be greater than or equal to 0",
        ),
        (
            'log_level = "loud"',
            "setting log_level is 'loud': input should be 'debug', 'info', 'warning' or 'error'",
        ),
        ("speed = inf", "setting speed is inf: input should be a finite number"),
    ],
)
def test_a_file_that_cannot_be_gets_one_sentence(text: str, why: str, toml: Path) -> None:
    toml.write_text(text)
    assert refusal(toml) == why.format(file=toml)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("POLCY", "x", "unknown environment variable 'LLMSCHED_POLCY'; did you mean 'LLMSCHED_POLICY'?"),
        ("WORKERS", "many", "setting workers is 'many': input should be a valid integer, unable to parse string"),
        ("ENGINES", '["http://a"', "setting engines is '[\"http://a\"': it is no valid JSON: unexpected end of data"),
        ("WORKER_POOLS", "gpu=2", "setting worker_pools is 'gpu=2': it must be a table from name to number, in the"),
        ("WORKER_POOLS", '{"a b": 2}', "is 'a b': a pool's name starts with a letter and has letters, digits and _"),
        (
            "TOOLS",
            "weather",
            "setting tools is 'weather': it must be a table from name to tool, in the environment JSON",
        ),
        ("LAUNCH_ARGS", "'open", 'setting launch_args is "\'open": no closing quotation'),
        ("API_KEYS", "ann:12345678,bob", "entry 2 of api_keys is no API key; it must look like tenant:key with a"),
        ("API_KEYS", "ann:short", "entry 1 of api_keys is no API key; it must look like tenant:key with a key of"),
        ("API_KEYS", "a:12345678,b:12345678", "entry 2 of api_keys gives 'b' the key of 'a'; make another"),
        ("API_KEYS_FILE", "/nope", "api_keys_file is '/nope', which cannot be read: No such file or directory"),
    ],
)
def test_a_variable_that_cannot_be_gets_one_sentence(
    name: str, value: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"LLMSCHED_{name}", value)
    assert why in refusal()


def test_a_file_that_is_no_toml_gets_one_sentence(toml: Path) -> None:
    toml.write_text("policy = fcfs")
    assert refusal(toml).startswith(f"{toml} is no valid TOML: ")


def test_a_file_that_cannot_be_read_gets_one_sentence(tmp_path: Path) -> None:
    assert refusal(tmp_path / "no.toml").endswith("no.toml', which cannot be read: No such file or directory")
    (tmp_path / "latin.toml").write_bytes('policy = "é"'.encode("latin-1"))
    assert refusal(tmp_path / "latin.toml").endswith("which cannot be read: it is no text in UTF-8")


def test_no_sentence_and_no_repr_shows_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMSCHED_API_KEYS", "ann:sesame-open")
    monkeypatch.setenv("LLMSCHED_STORE", "postgresql://me:sesame@db/x")
    monkeypatch.setenv("LLMSCHED_ENGINE_API_KEY", "sesame")
    assert "sesame" not in repr(config.load())
    monkeypatch.setenv("LLMSCHED_API_KEYS", "sesame-open-without-a-tenant")
    assert "sesame" not in refusal()


def test_tenants_come_from_environment_and_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = tmp_path / "keys"
    keys.write_text("bob:bobs-key-1\n\n  cy:with:colons  \n")
    monkeypatch.setenv("LLMSCHED_API_KEYS", "ann:anns-key-1, ann:anns-key-2")
    monkeypatch.setenv("LLMSCHED_API_KEYS_FILE", str(keys))
    assert config.load().tenants() == {
        "anns-key-1": "ann",
        "anns-key-2": "ann",
        "bobs-key-1": "bob",
        "with:colons": "cy",
    }
