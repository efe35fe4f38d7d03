"""A client of a running llmsched service: what the command line, the replay and the tests speak through."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import httpx
import orjson

from llmsched.errors import BackendError, InvalidInput


class ApiError(InvalidInput):
    """The service refused a request for good; `status` is the HTTP status."""

    def __init__(self, status: int, detail: str, field: str | None = None) -> None:
        super().__init__(detail, field=field)
        self.status = status


class Unavailable(BackendError):
    """Nobody answered, or the service could not do it now; retry_after: the seconds it asked us to wait, if it did."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Api:
    """One service at `url`. key: an API key where the service wants one. Use it as an async context manager.

    transport: what carries requests, instead of the network. Raises InvalidInput for something that is no URL.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        timeout: float = 30.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url = _checked(url)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.AsyncClient(
            base_url=self.url,
            headers=headers,
            timeout=timeout,
            transport=transport,
            limits=httpx.Limits(max_connections=256, max_keepalive_connections=64),
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def get(self, path: str, **params: Any) -> Any:
        """The JSON answer. Raises ApiError for a refusal, Unavailable if the service is away or busy."""
        return self._json(await self._ask("GET", path, params={k: v for k, v in params.items() if v is not None}))

    async def post(self, path: str, body: Any = None, *, idempotency_key: str | None = None) -> Any:
        """As `get`. With a key a request may be repeated: the same key is the same job."""
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return self._json(await self._ask("POST", path, body=body, headers=headers))

    async def put(self, path: str, body: Any) -> Any:
        """As `get`."""
        return self._json(await self._ask("PUT", path, body=body))

    async def delete(self, path: str) -> None:
        """As `get`, and there is no answer."""
        await self._ask("DELETE", path)

    async def metrics(self) -> dict[str, float]:
        """Every Prometheus sample by name and labels, as in `llmsched_running_tasks{executor="e1"}`."""
        lines = (await self._ask("GET", "/metrics")).text.splitlines()
        samples = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}

    async def events(self, path: str, *, last_event_id: int | None = None) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Server-sent events of a stream as (type, data with its number as `seq`), until the stream ends.

        `stream.connected` says that the stream of all events listens.
        Raises ApiError, or Unavailable when the connection breaks: come back with the last number seen.
        """
        headers = {} if last_event_id is None else {"Last-Event-ID": str(last_event_id)}
        try:
            async with self._client.stream("GET", path, headers=headers, timeout=httpx.Timeout(30.0)) as response:
                if response.status_code >= 400:
                    await response.aread()
                    raise self._refusal(response)
                kind, seq = "message", None
                async for line in response.aiter_lines():
                    if line.startswith("event: "):
                        kind = line[7:]
                    elif line.startswith("id: "):
                        seq = int(line[4:])
                    elif line.startswith("data: "):
                        data = orjson.loads(line[6:])
                        yield kind, data if seq is None else data | {"seq": seq}
                    elif line == ": connected":
                        yield "stream.connected", {}
        except httpx.HTTPError as error:
            raise self._silent(error) from None

    async def _ask(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        content = None if body is None else orjson.dumps(body)
        sent = dict(headers or {}) | ({"Content-Type": "application/json"} if content is not None else {})
        try:
            response = await self._client.request(method, path, params=params, content=content, headers=sent)
        except httpx.HTTPError as error:
            raise self._silent(error) from None
        if response.status_code >= 400:
            raise self._refusal(response)
        return response

    def _json(self, response: httpx.Response) -> Any:
        try:
            return orjson.loads(response.content)
        except orjson.JSONDecodeError:
            raise self._stranger(response) from None

    def _refusal(self, response: httpx.Response) -> ApiError | Unavailable:
        wait = response.headers.get("retry-after", "")
        try:
            problem = orjson.loads(response.content)
            detail, field = str(problem["detail"]), problem.get("field")
        except (orjson.JSONDecodeError, KeyError, TypeError):
            detail, field = f"{self.url} answered {response.status_code}", None
        if response.status_code == 429 or response.status_code >= 500:
            return Unavailable(detail, float(wait) if wait.isdigit() else None)
        if response.headers.get("content-type", "") != "application/problem+json":
            return self._stranger(response)
        return ApiError(response.status_code, detail, field)

    def _stranger(self, response: httpx.Response) -> ApiError:
        what = f"{self.url} answers {response.status_code} to {response.request.url.path}"
        return ApiError(response.status_code, f"{what}, which is not how llmsched does; check --url")

    def _silent(self, error: httpx.HTTPError) -> Unavailable:
        why = str(error) or type(error).__name__
        return Unavailable(f"no answer from {self.url} ({why}); is the service running there? try llmsched serve")


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
        is_usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        is_usable = False
    if not is_usable or parts.query or parts.fragment or not url.isprintable() or " " in url:
        raise InvalidInput(f"{url!r} is no URL of a service; it must look like http://host:8000", field="url")
    return url.rstrip("/")
