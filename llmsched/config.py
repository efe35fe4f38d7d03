"""Settings of the service: flags = TOML keys = environment variables `LLMSCHED_…`; flags win, then environment, then file.

Secrets (API keys of tenants, keys of engines, a password inside the store's URL) come from the environment or from files named there.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from llmsched.errors import InvalidSetting, UnknownName

PREFIX = "LLMSCHED_"

#: Variables of the same prefix that are not settings of the service.
_OTHERS = frozenset({"LLMSCHED_TRACES", "LLMSCHED_CONFIG", "LLMSCHED_URL", "LLMSCHED_API_KEY"})


class EngineSettings(BaseModel):
    """One engine: `url`, and what it should not be asked about itself."""

    model_config = ConfigDict(extra="forbid")

    url: str = Field(pattern=r"^https?://[^\s/]+")
    pool: str = "llm"
    model: str | None = None
    slots: int | None = Field(default=None, ge=1, le=100_000)
    name: str | None = None
    api_key_file: Path | None = None


class Settings(BaseSettings):
    """Every setting, its default and its bounds. Times are seconds unless the name says otherwise."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", validate_default=False)

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    policy: str = "fcfs"
    store: str = Field(default="sqlite:///llmsched.db", repr=False)
    #: A list of URLs or tables; in the environment a comma list or JSON.
    engines: Annotated[list[EngineSettings], NoDecode] = []
    launch: list[str] = []
    launch_args: list[str] = []
    #: Interpreter that has vLLM, where it is not this one.
    launch_python: Path | None = None
    emulate: int = Field(default=0, ge=0, le=1024)
    latency: str = "generic-7b"
    max_batch: int = Field(default=16, ge=1, le=100_000)
    speed: float = Field(default=1.0, gt=0, le=1000, allow_inf_nan=False)
    workers: int = Field(default=4, ge=0, le=10_000)
    worker_pools: dict[str, int] = {}
    worker_memory_mb: int = Field(default=2048, ge=64)
    handlers: list[str] = []
    task_timeout: float = Field(default=600.0, gt=0)

    tick_ms: float = Field(default=0.0, ge=0, le=10_000)
    max_active_jobs: int = Field(default=10_000, ge=1)
    max_body_mb: float = Field(default=8.0, gt=0)
    retention_days: float | None = Field(default=None, gt=0)
    grace: float = Field(default=10.0, ge=0)
    seed: int = 0

    connect_timeout: float = Field(default=5.0, gt=0)
    first_token_timeout: float = Field(default=120.0, gt=0)
    token_timeout: float = Field(default=30.0, gt=0)
    request_timeout: float = Field(default=3600.0, gt=0)
    probe_interval: float = Field(default=2.0, gt=0)
    backoff_first: float = Field(default=0.2, gt=0)
    backoff_most: float = Field(default=30.0, gt=0)

    #: `tenant:key` pairs, comma separated, or a file with one per line. Never in the TOML file.
    api_keys: str = Field(default="", repr=False)
    api_keys_file: Path | None = None
    engine_api_key: str = Field(default="", repr=False)

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    access_log: bool = True

    @field_validator("engines", mode="before")
    @classmethod
    def _engines(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = (
                orjson.loads(value) if value.lstrip().startswith("[") else [v for v in value.split(",") if v.strip()]
            )
        if isinstance(value, list):
            return [{"url": v.strip()} if isinstance(v, str) else v for v in value]
        return value

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
        """API key -> tenant. Raises InvalidSetting for a line that is no `tenant:key`."""
        text = self.api_keys.replace(",", "\n")
        if self.api_keys_file is not None:
            text += "\n" + _read(self.api_keys_file, "api_keys_file")
        pairs = {}
        for line in filter(None, map(str.strip, text.splitlines())):
            tenant, colon, key = line.partition(":")
            if not (colon and tenant and len(key) >= 8):
                raise InvalidSetting(
                    f"an API key must look like tenant:key with a key of at least 8 characters, not {line[:4]!r}…"
                )
            pairs[key] = tenant
        return pairs


_SECRETS = ("api_keys", "engine_api_key")


def load(file: Path | None = None, **flags: Any) -> Settings:
    """Settings from flags that are not None, the environment and a TOML file.

    Raises InvalidSetting: one sentence with the key, the value and the way out.
    """
    given = {k: v for k, v in flags.items() if v is not None}
    from_file = _toml(file) if file is not None else {}
    _check_environment()
    for key in list(from_file):
        if PREFIX + key.upper() in os.environ:
            del from_file[key]
    try:
        return Settings(**(from_file | given))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(p) for p in first["loc"])
        raise InvalidSetting(f"setting {key} is {first['input']!r}: {first['msg'].lower()}", field=key) from None
    except ValueError as error:
        raise InvalidSetting(f"a setting in the environment cannot be read: {error}") from None


def _toml(file: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(_read(file, "config"))
    except tomllib.TOMLDecodeError as error:
        raise InvalidSetting(f"{file} is no valid TOML: {error}") from None
    for key in values:
        if key not in Settings.model_fields:
            raise InvalidSetting(f"{file}: {UnknownName.of('setting', key, Settings.model_fields)}", field=key)
        if key in _SECRETS:
            raise InvalidSetting(
                f"{file}: {key} is a secret; give it as {PREFIX}{key.upper()} in the environment", field=key
            )
    return values


def _check_environment() -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    for name in os.environ:
        if (
            name.startswith(PREFIX)
            and name not in known
            and not name.startswith(("LLMSCHED_TEST_", "LLMSCHED_VLLM_"))
            and name not in _OTHERS
        ):
            raise InvalidSetting(str(UnknownName.of("environment variable", name, sorted(known))))


def _read(file: Path, setting: str) -> str:
    try:
        return file.read_text()
    except OSError as error:
        raise InvalidSetting(
            f"{setting} is {str(file)!r}, which cannot be read: {error.strerror}", field=setting
        ) from None
