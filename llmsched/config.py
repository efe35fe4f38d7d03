"""Settings of the service: flags = TOML keys = environment `LLMSCHED_…`; flags win, then environment, then file.

Secrets (API keys of tenants, keys of engines and tools, a password inside the store's URL) come from the environment or
from files of their own, never from the TOML file.
"""

from __future__ import annotations

import os
import re
import shlex
import tomllib
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, urlsplit

import orjson
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from llmsched.errors import InvalidSetting
from llmsched.policies import DEFAULT_POLICY
from llmsched.profiler import MAX_JOBS, MIN_JOBS
from llmsched.runtime.callbacks.signing import Secrets
from llmsched.runtime.discovery import Wanted
from llmsched.runtime.engines import EngineSpec
from llmsched.runtime.tenants import Quota
from llmsched.runtime.tools.handlers import HttpTool

PREFIX = "LLMSCHED_"

#: Variables of the same prefix that are not settings of the service.
_OTHERS = ("LLMSCHED_TRACES", "LLMSCHED_CONFIG", "LLMSCHED_URL", "LLMSCHED_API_KEY")
_OTHER_PREFIXES = ("LLMSCHED_TEST_", "LLMSCHED_VLLM_")

_SECRETS = ("api_keys", "engine_api_key", "callback_secrets")
#: Headers and parts of a query that are called so are secrets.
_SECRET_NAME = re.compile(r"auth|key|token|secret|passw|cookie|session|appid", re.IGNORECASE)
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def _json_or(split: Any) -> BeforeValidator:
    """What the environment says as text: JSON, or else what `split` makes of it."""

    def read(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if not value.lstrip().startswith(("[", "{")):
            return split(value)
        try:
            return orjson.loads(value)
        except orjson.JSONDecodeError as error:
            raise ValueError(f"it is no valid JSON: {error}") from None

    return BeforeValidator(read)


def _commas(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _no_text(text: str) -> Any:
    raise ValueError('it must be a table from name to number, in the environment JSON like {"gpu": 2}')


def _no_tools(text: str) -> Any:
    raise ValueError('it must be a table from name to tool, in the environment JSON like {"name": {"url": "http://…"}}')


def _no_resources(text: str) -> Any:
    raise ValueError('it must be a table from pool to resources, in the environment JSON like {"cpu": {"CPU": 1}}')


def _no_quotas(text: str) -> Any:
    raise ValueError('it must be a table from tenant to quota, in the environment JSON like {"*": {"active_jobs": 9}}')


def _tables(value: Any) -> Any:
    """Engines given by their URL alone, as tables."""
    return [{"url": v} if isinstance(v, str) else v for v in value] if isinstance(value, list) else value


def _pool_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_./:-]{0,127}", name):
        raise ValueError("a pool's name starts with a letter and has letters, digits and _ . / : - only")
    return name


def _engine_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("an engine's URL looks like http://host:8000")
    return url


def _advertised(url: str | None) -> str | None:
    parts = urlsplit(url or "http://host")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/"):
        raise ValueError("the URL of a gateway looks like http://host:8000")
    return url and url.rstrip("/")


def _tool_url(url: str) -> str:
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise ValueError("a tool's URL has no user name or password; write an Authorization header into headers_file")
    if not re.fullmatch(r"https?://[\w.\[\]:-]+([/?][!-~]*)?", url, re.ASCII) or not parts.hostname or parts.port == 0:
        raise ValueError("a tool's URL looks like http://host:9000/path")
    return url


def _headers(headers: Mapping[str, str]) -> Mapping[str, str]:
    for name, value in headers.items():
        if not (_HEADER_NAME.fullmatch(name) and value.isascii() and value.isprintable()):
            raise ValueError(f"header {name[:40]!r} must be a name with one line of printable ASCII")
    return headers


PoolName = Annotated[str, AfterValidator(_pool_name)]
Slots = Annotated[int, Field(ge=0, le=10_000)]
Amount = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]
#: In the environment: a comma list, or JSON.
Texts = Annotated[list[str], NoDecode, _json_or(_commas)]


class EngineSettings(BaseModel):
    """One engine: `url`, and what it should not be asked about itself."""

    model_config = ConfigDict(extra="forbid")

    url: Annotated[str, AfterValidator(_engine_url)]
    pool: PoolName = "llm"
    model: str | None = None
    slots: int | None = Field(default=None, ge=1, le=100_000)
    name: str | None = None
    api_key_file: Path | None = None
    #: Whether each address of the URL's name is an engine, looked up again and again.
    resolve: bool = False

    @model_validator(mode="after")
    def _has_a_name_to_resolve(self) -> EngineSettings:
        parts = urlsplit(self.url)
        if self.resolve and (parts.scheme == "https" or not re.search("[A-Za-z]", parts.hostname or "")):
            raise ValueError("resolve needs a URL with http and a DNS name; an address or https names one engine")
        return self


class QuotaSettings(BaseModel):
    """What a tenant may have. active_jobs: at once. jobs_per_s: accepted on average, at most `burst` at once."""

    model_config = ConfigDict(extra="forbid")

    active_jobs: int | None = Field(default=None, ge=0)
    jobs_per_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    burst: int = Field(default=10, ge=1)


class ToolSettings(BaseModel):
    """A tool that lives elsewhere and is called over HTTP; templates name it like a handler.

    schema: of its arguments, here or in a JSON file. headers_file: a `Name: value` per line; bearer_file: a token.
    """

    model_config = ConfigDict(extra="forbid")

    url: Annotated[str, AfterValidator(_tool_url)] = Field(repr=False)
    method: Literal["POST", "GET"] = "POST"
    description: str = ""
    arguments: dict[str, Any] | None = Field(default=None, alias="schema")
    schema_file: Path | None = None
    timeout: float = Field(default=60.0, gt=0, le=86_400)
    retries: int = Field(default=2, ge=0, le=10)
    headers: Annotated[dict[str, str], AfterValidator(_headers)] = Field(default={}, repr=False)
    headers_file: Path | None = None
    bearer_file: Path | None = None
    max_bytes: int = Field(default=1_000_000, ge=1, le=64_000_000)

    @model_validator(mode="after")
    def _has_one_schema(self) -> ToolSettings:
        if self.arguments is not None and self.schema_file is not None:
            raise ValueError("it has both a schema and a schema_file; leave one out")
        return self


class Settings(BaseSettings):
    """Every setting, its default and its bounds. Times are seconds unless the name says otherwise."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", validate_default=False)

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    #: Whether there is a page for operators at /ui.
    ui: bool = True
    policy: str = DEFAULT_POLICY
    store: str = Field(default="sqlite:///llmsched.db", repr=False)
    #: URLs or tables.
    engines: Annotated[list[EngineSettings], NoDecode, BeforeValidator(_tables), _json_or(_commas)] = []
    launch: Texts = []
    #: In the environment: words as in a shell, or JSON.
    launch_args: Annotated[list[str], NoDecode, _json_or(shlex.split)] = []
    #: Interpreter that has vLLM, where it is not this one.
    launch_python: Path | None = None
    emulate: int = Field(default=0, ge=0, le=1024)
    #: Of emulated engines, and what policies and estimators turn tokens into seconds with: a name or a file.
    latency: str = "generic-7b"
    #: What emulated engines answer: a file of rules, module:function, an application, or `apps`.
    script: str | None = None
    max_batch: int = Field(default=16, ge=1, le=100_000)
    speed: float = Field(default=1.0, gt=0, le=1000, allow_inf_nan=False)
    workers: int = Field(default=4, ge=0, le=10_000)
    #: Slots by pool; in the environment JSON.
    worker_pools: Annotated[dict[PoolName, Slots], NoDecode, _json_or(_no_text)] = {}
    #: Address of a Ray cluster (`auto`: the one of this machine) that runs `ray_pools`; None: everything runs here.
    ray: str | None = None
    #: What one task of a pool takes of a node; in the environment JSON.
    ray_pools: Annotated[dict[PoolName, dict[str, Amount]], NoDecode, _json_or(_no_resources)] = {"cpu": {"CPU": 1.0}}
    worker_memory_mb: int = Field(default=2048, ge=64)
    handlers: Texts = []
    #: Tools that live elsewhere, by the name templates call them; in the environment JSON.
    tools: Annotated[dict[str, ToolSettings], NoDecode, _json_or(_no_tools)] = Field(default={}, repr=False)
    task_timeout: float = Field(default=600.0, gt=0)

    #: Seconds in the system after which a job goes first within its class, whatever the policy; None: never.
    max_wait: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    #: Shares of tenants, 1 for one that is not named; in the environment JSON. Empty: tenants take no turns.
    tenant_weights: Annotated[dict[str, Weight], NoDecode, _json_or(_no_text)] = {}
    #: What tenants may have, `*` for those that are not named; in the environment JSON.
    tenant_quotas: Annotated[dict[str, QuotaSettings], NoDecode, _json_or(_no_quotas)] = {}
    #: How many times what is believed a job with a deadline may take; then it goes first. 0: deadlines change no order.
    deadline_margin: float = Field(default=1.5, ge=0, allow_inf_nan=False)
    #: Of a job that will more likely than not be late: nothing, a warning in the answer, or a refusal.
    deadline_admission: Literal["off", "warn", "refuse"] = "warn"

    tick_ms: float = Field(default=0.0, ge=0, le=10_000)
    max_active_jobs: int = Field(default=10_000, ge=1)
    max_body_mb: float = Field(default=8.0, gt=0)
    #: Seconds without a call after which a group of calls (`x-llmsched-job`) is over.
    observed_idle: float = Field(default=30.0, gt=0, allow_inf_nan=False)
    #: Of a store that several gateways share: where the others reach this one, and the seconds after which one that
    #: leads and is silent is replaced.
    advertise: Annotated[str | None, AfterValidator(_advertised)] = None
    lease: float = Field(default=2.5, ge=0.5, le=60)
    retention_days: float | None = Field(default=None, gt=0)
    grace: float = Field(default=10.0, ge=0)
    seed: int = 0

    #: Whether profiles are learned from finished jobs, when, and from how many.
    learn: bool = True
    learn_every_jobs: int = Field(default=50, ge=1)
    learn_every_s: float = Field(default=600.0, gt=0, allow_inf_nan=False)
    learn_from_jobs: int = Field(default=MAX_JOBS, ge=MIN_JOBS, le=MAX_JOBS)
    #: Folder of `<application>.json.gz`, as `llmsched fit` writes it.
    profiles: Path | None = None
    #: Model of answer lengths, as `llmsched train ranker` writes it; None: the one that ships.
    ranker: Path | None = None

    connect_timeout: float = Field(default=5.0, gt=0)
    first_token_timeout: float = Field(default=120.0, gt=0)
    token_timeout: float = Field(default=30.0, gt=0)
    request_timeout: float = Field(default=3600.0, gt=0)
    probe_interval: float = Field(default=2.0, gt=0)
    #: Seconds between two lookups of engines that are DNS names, and two looks at the files of settings (0: none).
    discovery_interval: float = Field(default=10.0, gt=0)
    reload_interval: float = Field(default=2.0, ge=0)
    backoff_first: float = Field(default=0.2, gt=0)
    backoff_most: float = Field(default=30.0, gt=0)

    #: `tenant:key` pairs, comma separated, or a file with one per line. Never in the TOML file.
    api_keys: str = Field(default="", repr=False)
    api_keys_file: Path | None = None
    #: Tenants whose configured keys may administer; None: all of them.
    admins: Annotated[list[str] | None, NoDecode, _json_or(_commas)] = None
    engine_api_key: str = Field(default="", repr=False)

    #: What callbacks are signed with: `whsec_…` or `tenant:whsec_…`, comma separated, or a file with one per line, read
    #: again when it changes. Never in the TOML file.
    callback_secrets: str = Field(default="", repr=False)
    callback_secrets_file: Path | None = None
    #: Whether callbacks may go to addresses that are not public.
    callback_private: bool = False
    callback_timeout: float = Field(default=10.0, gt=0, le=300)
    #: After so many attempts, or so many seconds since the job's end, a callback is given up.
    callback_attempts: int = Field(default=30, ge=1, le=1000)
    callback_age: float = Field(default=86_400.0, gt=0, allow_inf_nan=False)
    callback_backoff_first: float = Field(default=5.0, gt=0, allow_inf_nan=False)
    callback_backoff_most: float = Field(default=3_600.0, gt=0, allow_inf_nan=False)

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    access_log: bool = True

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings

    def tenants(self) -> dict[str, str]:
        """API key -> tenant. Raises InvalidSetting for an entry that is no `tenant:key`, without showing it."""
        tenants: dict[str, str] = {}
        sources = [("api_keys", _commas(self.api_keys.replace("\n", ",")))]
        if self.api_keys_file is not None:
            sources.append(("api_keys_file", _read(self.api_keys_file, "api_keys_file").split()))
        for setting, entries in sources:
            for number, entry in enumerate(entries, 1):
                tenant, colon, key = entry.partition(":")
                if not (colon and tenant and len(key) >= 8):
                    raise InvalidSetting(
                        f"entry {number} of {setting} is no API key; it must look like tenant:key with a key of at"
                        " least 8 characters",
                        field=setting,
                    )
                if tenants.setdefault(key, tenant) != tenant:
                    raise InvalidSetting(
                        f"entry {number} of {setting} gives {tenant!r} the key of {tenants[key]!r}; make another",
                        field=setting,
                    )
        return tenants

    def secrets(self) -> Secrets:
        """What callbacks are signed with. Raises InvalidSetting, which shows no secret."""
        return Secrets(self.callback_secrets, self.callback_secrets_file)

    def wanted_engines(self) -> list[Wanted]:
        """The engines, with their keys. Raises InvalidSetting."""
        wanted = []
        for number, e in enumerate(self.engines):
            where = f"engines[{number}].api_key_file"
            key = _read(e.api_key_file, where).strip() if e.api_key_file else self.engine_api_key or None
            wanted.append(Wanted(EngineSpec(e.url, e.pool, e.model, e.slots, key, e.name), e.resolve))
        urls = [w.spec.url.rstrip("/") for w in wanted]
        if twice := [url for url in urls if urls.count(url) > 1]:
            raise InvalidSetting(f"engines name {twice[0]} twice; leave one out", field="engines")
        return wanted

    def quotas(self) -> dict[str, Quota]:
        """What tenants may have."""
        return {name: Quota(q.active_jobs, q.jobs_per_s, q.burst) for name, q in self.tenant_quotas.items()}

    @property
    def policy_options(self) -> dict[str, Any]:
        """What every policy is told."""
        margin = self.deadline_margin or None
        return {"max_wait": self.max_wait, "tenants": self.tenant_weights, "deadlines": margin}

    def http_tools(self) -> list[HttpTool]:
        """The tools, with what their files say. Raises InvalidSetting, which shows no secret."""
        return [_tool(name, tool) for name, tool in self.tools.items()]


def _tool(name: str, tool: ToolSettings) -> HttpTool:
    where = f"tools.{name}"
    schema, headers = tool.arguments, dict(tool.headers)
    if tool.schema_file is not None:
        try:
            schema = orjson.loads(_read(tool.schema_file, f"{where}.schema_file"))
        except orjson.JSONDecodeError as error:
            raise InvalidSetting(f"{where}.schema_file: {tool.schema_file} is no JSON: {error}", field=where) from None
        if not isinstance(schema, dict):
            raise InvalidSetting(f"{where}.schema_file: {tool.schema_file} has no JSON object in it", field=where)
    if tool.headers_file is not None:
        lines = _read(tool.headers_file, f"{where}.headers_file").splitlines()
        for number, line in enumerate(lines, 1):
            key, colon, value = (part.strip() for part in line.partition(":"))
            try:
                headers |= _headers({key: value}) if colon and value else {}
                is_header = bool(colon and value) or not line.strip()
            except ValueError:
                is_header = False
            if not is_header:
                raise InvalidSetting(
                    f"{where}.headers_file: line {number} of {tool.headers_file} is no header; write Name: value",
                    field=where,
                )
    if tool.bearer_file is not None:
        token = _read(tool.bearer_file, f"{where}.bearer_file").strip()
        if not re.fullmatch(r"[!-~]+", token):
            raise InvalidSetting(
                f"{where}.bearer_file: {tool.bearer_file} must have one token in it and nothing else", field=where
            )
        headers["Authorization"] = f"Bearer {token}"
    return HttpTool(
        name, tool.url, tool.method, schema, tool.description, tool.timeout, tool.retries, headers, tool.max_bytes
    )


def load(file: Path | None = None, **flags: Any) -> Settings:
    """Settings from flags that are not None, the environment and a TOML file.

    Raises InvalidSetting: one sentence with the key, the value and the way out.
    """
    variables = {name.upper() for name in os.environ}
    _check_environment(os.environ)
    from_file = {} if file is None else _toml(file)
    below_environment = {k: v for k, v in from_file.items() if PREFIX + k.upper() not in variables}
    given = {k: v for k, v in flags.items() if v is not None}
    try:
        settings = Settings(**(below_environment | given))
    except ValidationError as error:
        raise _sentence(error) from None
    except ValueError as error:  # pydantic-settings, of JSON in a variable
        raise InvalidSetting(f"a setting in the environment cannot be read: {error}") from None
    settings.tenants()
    settings.secrets()
    settings.wanted_engines()
    return settings


def _sentence(error: ValidationError) -> InvalidSetting:
    """The first thing wrong, with its place, its value and the way out."""
    first = error.errors()[0]
    *place, last = first["loc"]
    key = _place(first["loc"])
    if first["type"] == "extra_forbidden" and place[0] == "tools":
        if _SECRET_NAME.search(str(last)):
            return InvalidSetting(f"setting {key} is a secret; write it into a file and name that as bearer_file")
        known = [field.alias or name for name, field in ToolSettings.model_fields.items()]
        return _unknown(f"key of {_place(place)}", str(last), known)
    if first["type"] == "extra_forbidden":
        if "key" in str(last) and place[0] != "tenant_quotas":
            return InvalidSetting(f"setting {key} is a secret; write it into a file and name that as api_key_file")
        table = QuotaSettings if place[0] == "tenant_quotas" else EngineSettings
        return _unknown(f"key of {_place(place)}", str(last), table.model_fields)
    message = first["msg"].removeprefix("Value error, ")
    shows = last in ToolSettings.model_fields and last != "headers" and not re.search("[@?]", str(first["input"]))
    if place[:1] == ["tools"] and not shows:
        return InvalidSetting(
            f"setting {key}: {message[:1].lower()}{message[1:]}", field=key
        )  # may have a secret in it
    shown = repr(first["input"])
    shown = "missing" if first["type"] == "missing" else shown if len(shown) <= 80 else shown[:77] + "..."
    return InvalidSetting(f"setting {key} is {shown}: {message[:1].lower()}{message[1:]}", field=key)


def _place(loc: Iterable[int | str]) -> str:
    """`engines[0].url` from pydantic's location."""
    text = ""
    for part in loc:
        if part != "[key]":
            text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _toml(file: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(_read(file, "config"))
    except tomllib.TOMLDecodeError as error:
        raise InvalidSetting(f"{file} is no valid TOML: {error}", field="config") from None
    for key, value in values.items():
        if key not in Settings.model_fields:
            raise _unknown(f"setting in {file}:", key, Settings.model_fields)
        if key in _SECRETS:
            raise InvalidSetting(
                f"{file}: {key} is a secret; give it as {PREFIX}{key.upper()} in the environment", field=key
            )
        if key == "store" and isinstance(value, str) and _has_password(value):
            raise InvalidSetting(
                f"{file}: store has a password; give it as {PREFIX}STORE in the environment", field=key
            )
    for name, tool in tables.items() if isinstance(tables := values.get("tools"), dict) else ():
        _check_no_secret(f"{file}: tools.{name}", tool)
    return values


def _check_no_secret(where: str, tool: Any) -> None:
    """Raises InvalidSetting for a tool of the TOML file with a key among its headers or in its URL."""
    headers, url = (tool.get("headers"), tool.get("url")) if isinstance(tool, dict) else (None, None)
    for name in headers if isinstance(headers, dict) else ():
        if _SECRET_NAME.search(name):
            raise InvalidSetting(
                f"{where}.headers: {name} is a secret; write it into a file and name that as headers_file"
            )
    for name, _ in parse_qsl(url.partition("?")[2]) if isinstance(url, str) else ():
        if _SECRET_NAME.search(name):
            raise InvalidSetting(f"{where}.url: {name} is a secret; give it as {PREFIX}TOOLS in the environment")


def _has_password(url: str) -> bool:
    credentials, at, _ = url.partition("://")[2].rpartition("@")
    return (bool(at) and ":" in credentials) or "password=" in url


def _check_environment(environment: Mapping[str, str]) -> None:
    known = [PREFIX + name.upper() for name in Settings.model_fields]
    for name in map(str.upper, environment):
        if name.startswith(PREFIX) and name not in (*known, *_OTHERS) and not name.startswith(_OTHER_PREFIXES):
            raise _unknown("environment variable", name, known)


def _unknown(kind: str, name: str, known: Iterable[str]) -> InvalidSetting:
    near = get_close_matches(name, list(known), n=1)
    hint = f"did you mean {near[0]!r}?" if near else "the settings are listed in docs/configuration.md"
    return InvalidSetting(f"unknown {kind} {name!r}; {hint}", field=name)


def _read(file: Path, setting: str) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        why = error.strerror
    except UnicodeDecodeError:
        why = "it is no text in UTF-8"
    raise InvalidSetting(f"{setting} is {str(file)!r}, which cannot be read: {why}", field=setting)
