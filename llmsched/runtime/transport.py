"""The HTTP transport to engines and to other gateways: as many connections as requests, no cookies, no proxies."""

from __future__ import annotations

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport

#: uvicorn, which vLLM runs on, drops idle connections after 5 s. We do earlier, so that no request meets a closing one.
KEEP_ALIVE_S = 2.0


def transport_for(url: str) -> AiohttpTransport:
    """A transport of its own for the server at `url`, whatever proxy the environment names."""
    # Contexts for TLS cost 20 ms and megabytes: made for https only, of the usual certificates.
    tls = httpx.create_ssl_context() if url.startswith("https:") else False

    def session() -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S, ssl=tls)
        return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False)

    return AiohttpTransport(client=session, verify=tls)
