"""A client of a running llmsched service: what the command line, the replay and the tests speak through."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Any, Self

import httpx
import orjson

from llmsched.errors import BackendError, InvalidInput


class ApiError(InvalidInput):
    """The service refused a request; `status` is the HTTP status, `retry_after` what it asked us to wait."""

    def __init__(self, status: int, detail: str, field: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(detail, field=field)
        self.status = status
        self.retry_after = retry_after


class Api:
    """One service at `url`. key: an API key where the service wants one. Use it as an async context manager."""

    def __init__(self, url: str, *, key: str | None = None, timeout: float = 30.0) -> None:
        self.url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.AsyncClient(
            base_url=self.url,
            headers=headers,
            timeout=timeout,
            limits=httpx.Limits(max_connections=256, max_keepalive_connections=64),
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._client.aclose()

    async def get(self, path: str, **params: Any) -> Any:
        """The JSON answer. Raises ApiError for a problem, BackendError if nobody answers."""
        return await self._ask("GET", path, params={k: v for k, v in params.items() if v is not None})

    async def post(self, path: str, body: Any = None, *, idempotency_key: str | None = None) -> Any:
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return await self._ask("POST", path, body=body, headers=headers)

    async def put(self, path: str, body: Any) -> Any:
        return await self._ask("PUT", path, body=body)

    async def delete(self, path: str) -> None:
        await self._ask("DELETE", path)

    async def _ask(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        content = None if body is None else orjson.dumps(body)
        sent = dict(headers or {}) | ({"Content-Type": "application/json"} if content is not None else {})
        try:
            response = await self._client.request(method, path, params=params, content=content, headers=sent)
        except httpx.HTTPError as error:
            raise self._silent(error) from None
        _check(response)
        if not response.content:
            return None
        is_json = response.headers.get("content-type", "").startswith("application/json")
        return orjson.loads(response.content) if is_json else response.text

    async def events(self, path: str, *, last_event_id: int | None = None) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Server-sent events of a stream as (type, data with its number as `seq`), until the stream ends.

        Raises ApiError, or BackendError when the connection breaks: come back with the last number seen.
        """
        headers = {} if last_event_id is None else {"Last-Event-ID": str(last_event_id)}
        try:
            async with self._client.stream("GET", path, headers=headers, timeout=httpx.Timeout(30.0)) as response:
                if response.status_code >= 400:
                    await response.aread()
                    _check(response)
                kind, seq = "message", None
                async for line in response.aiter_lines():
                    if line.startswith("event: "):
                        kind = line[7:]
                    elif line.startswith("id: "):
                        seq = int(line[4:])
                    elif line.startswith("data: "):
                        data = orjson.loads(line[6:])
                        yield kind, data if seq is None else data | {"seq": seq}
        except httpx.HTTPError as error:
            raise self._silent(error) from None

    def _silent(self, error: httpx.HTTPError) -> BackendError:
        why = str(error) or type(error).__name__
        return BackendError(f"no answer from {self.url} ({why}); is the service running there? try llmsched serve")


def _check(response: httpx.Response) -> None:
    if response.status_code < 400:
        return
    try:
        problem = orjson.loads(response.content)
        detail, field = str(problem["detail"]), problem.get("field")
    except (orjson.JSONDecodeError, KeyError, TypeError):
        detail, field = f"the service answered {response.status_code}", None
    wait = response.headers.get("retry-after", "")
    raise ApiError(response.status_code, detail, field, float(wait) if wait.isdigit() else None)
