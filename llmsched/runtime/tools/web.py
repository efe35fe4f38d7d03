"""The public web, on behalf of a job: a handler's GET or a callback's POST, bounded, to public addresses only.

The URL may come from a plan, a prompt or a client, so whoever wrote it must not reach what only this machine can reach:

* http and https only, no user names in URLs, no cookies, no proxies or passwords of the environment;
* a host is resolved once, all its addresses are checked (`is_public`), and the connection goes to one of those: a name
  server that answers differently the second time (DNS rebinding) is never asked a second time;
* each redirect of a GET is a new request, checked like the first; another site does not get the caller's headers; a
  POST is not redirected;
* one timeout for everything, and a body that ends in an error at `max_bytes`, counted after unpacking.

Import this inside the handler's function: aiohttp takes 0.2 s, which every worker would pay for.
"""

from __future__ import annotations

import asyncio
import re
import socket
import threading
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from ssl import SSLContext

import aiohttp
import httpx
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from llmsched import __version__
from llmsched.errors import BackendError, InvalidInput, show

MAX_REDIRECTS = 5
MAX_URL_CHARS = 8000
#: A name in ASCII, or an address without a zone.
_HOST = re.compile(r"[A-Za-z0-9._:-]{1,255}")
_REDIRECTS = (301, 302, 303, 307, 308)
#: Headers that say how, not who: also for the site a redirect leads to.
_HARMLESS = ("accept", "accept-language", "user-agent")

Address = IPv4Address | IPv6Address
#: Host and port to addresses; raises OSError.
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

_NAT64 = ip_network("64:ff9b::/96")
_GLOBAL_UNICAST = ip_network("2000::/3")
#: What `is_global` of some Python calls global and IANA does not, and tunnels, behind whose end may be anything.
_SPECIAL = [ip_network(n) for n in ("192.0.0.0/24", "192.88.99.0/24", "2001::/23", "2002::/16", "3fff::/20")]


@dataclass(frozen=True, slots=True)
class Page:
    """An answer, whatever its status. url: where it came from after redirects. The headers' texts, or ""."""

    url: str
    status: int
    content_type: str
    body: bytes
    retry_after: str = ""

    @property
    def text(self) -> str:
        """The body as text, in the charset it names (header, then the first kilobyte), else UTF-8; never fails."""
        named = re.search(r"charset=[\"']?([\w.:-]+)", self.content_type, re.IGNORECASE)
        found = re.search(rb"(?:charset|encoding)=[\"']?([\w.:-]+)", self.body[:1024], re.IGNORECASE)
        charset = named[1] if named else found[1].decode() if found else "utf-8"
        try:
            return self.body.decode(charset, errors="replace").removeprefix("\ufeff")
        except (LookupError, ValueError):  # no such charset, or one that is none of texts
            return self.body.decode(errors="replace").removeprefix("\ufeff")


class BodyTooLarge(BackendError):
    """A body has more bytes than may be read."""


class ForbiddenAddress(InvalidInput):
    """A URL leads to an address that may not be reached."""


def is_public(address: Address) -> bool:
    """Whether anybody on the internet has this address, and nobody else.

    >>> [is_public(ip_address(a)) for a in ("8.8.8.8", "127.0.0.1", "169.254.169.254", "::ffff:10.0.0.1")]
    [True, False, False, False]
    """
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if address in _NAT64:
            return is_public(IPv4Address(int(address) & 0xFFFF_FFFF))
        if address not in _GLOBAL_UNICAST or address.scope_id:
            return False
    if any(address in network for network in _SPECIAL):
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved)


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host, as the system knows them. Raises OSError.

    In a thread of its own: the event loop waits for those of its pool when it closes, however long DNS takes.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[str]] = loop.create_future()

    def tell(found: list[str] | OSError) -> None:
        if not answer.done():
            answer.set_exception(found) if isinstance(found, OSError) else answer.set_result(found)

    def look_up() -> None:
        found: list[str] | OSError
        try:
            infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found = list(dict.fromkeys(str(info[4][0]) for info in infos))
        except UnicodeError:  # a label that DNS cannot have
            found = OSError("there can be no such name")
        except OSError as error:
            found = error
        with suppress(RuntimeError):  # the loop has closed meanwhile
            loop.call_soon_threadsafe(tell, found)

    threading.Thread(target=look_up, daemon=True, name="resolve").start()
    return await answer


async def fetch(
    url: str,
    *,
    params: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
    timeout: float = 10.0,
    max_bytes: int = 10_000_000,
    allow_private: bool = False,
    allows: Callable[[Address], bool] = is_public,
    resolve: Resolve = resolve,
) -> Page:
    """GETs a page of the public web, following at most 5 redirects. An error status is an answer like others.

    timeout: seconds for everything. max_bytes: of the unpacked body. allow_private: reaches any address, for tests and
    for URLs that nobody but the operator chooses. allows, resolve: which addresses may be reached, and how names
    become addresses.

    Raises InvalidInput for a URL or header that cannot be, and for an address that is not allowed, also in a redirect;
    BackendError for what the world does: no such host, no connection, time-out, too large or broken body, too many
    redirects.
    """
    given = dict(headers or {})
    for name, value in given.items():
        if not (re.fullmatch(r"[!#$%&'*+.^_`|~\w-]+", name, re.ASCII) and value.isprintable()):
            raise InvalidInput(f"header {show(name)} is {show(value)}; names and values are one line of printable text")
    target = _parse(url)
    if params:
        target = target.extend_query(params)
    accepts = (lambda _: True) if allow_private else allows
    try:
        async with asyncio.timeout(timeout):
            return await _follow(target, given, max_bytes, accepts, resolve)
    except TimeoutError:
        raise BackendError(f"{_shown(target)} did not answer within {timeout:g} s") from None


def fetch_now(
    url: str,
    *,
    params: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
    timeout: float = 10.0,
    max_bytes: int = 10_000_000,
    allow_private: bool = False,
) -> Page:
    """`fetch` for handlers that are plain functions; not for where an event loop runs."""
    call = fetch(url, params=params, headers=headers, timeout=timeout, max_bytes=max_bytes, allow_private=allow_private)
    return asyncio.run(call)


async def post(
    url: str,
    body: bytes,
    *,
    headers: Mapping[str, str],
    timeout: float = 10.0,
    allow_private: bool = False,
    resolve: Resolve = resolve,
) -> Page:
    """POSTs to a server of the public web. Every status is an answer, also that of a redirect; its body is not read.

    headers: of the caller, who knows what is in them. Otherwise as `fetch`, whose errors it raises.
    """
    target = check_url(url)
    accepts = (lambda _: True) if allow_private else is_public
    try:
        async with asyncio.timeout(timeout):
            addresses = await _addresses(target, accepts, resolve)
            async with _asked("POST", target, headers, addresses, body) as response:
                said = response.headers
                kind, wait = said.get("Content-Type", ""), said.get("Retry-After", "")
                return Page(str(target), response.status, kind, b"", wait)
    except TimeoutError:
        raise BackendError(f"{_shown(target)} did not answer within {timeout:g} s") from None


def check_url(url: str, *, allow_private: bool = True) -> URL:
    """The URL, if it can be reached in principle: what is found out of its host's name is left to the request.

    allow_private: whether an address that stands in it may be any. Raises InvalidInput.
    """
    target = _parse(url)
    with suppress(ValueError):
        if not (allow_private or is_public(ip_address(target.raw_host or ""))):
            raise _forbidden(target, target.raw_host or "")
    return target


async def read_body(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    """The body of a response of a session that does not unpack by itself (`auto_decompress=False`).

    Raises BodyTooLarge as soon as it has more than `max_bytes`, packed or unpacked, and BackendError for a body that is
    packed otherwise than with gzip, or badly.
    """
    where = _shown(response.url)
    packing = response.headers.get("Content-Encoding", "identity").strip().lower()
    if packing not in ("identity", "gzip", "x-gzip"):
        raise BackendError(f"{where} answers in encoding {show(packing)}; only gzip was asked for")
    is_packed = packing != "identity"
    member = zlib.decompressobj(wbits=31)
    body, received = bytearray(), 0
    try:
        async for chunk in response.content.iter_any():
            received += len(chunk)
            if not is_packed:
                body += chunk
            while is_packed and chunk and len(body) <= max_bytes:
                if member.eof:  # a gzip file may be several, one after the other
                    member = zlib.decompressobj(wbits=31)
                body += member.decompress(chunk, max_bytes - len(body) + 1)
                chunk = member.unused_data if member.eof else member.unconsumed_tail
            if max(received, len(body)) > max_bytes:
                raise BodyTooLarge(f"{where} answers with more than {max_bytes} bytes")
    except zlib.error as error:
        raise BackendError(f"{where} answers with gzip that cannot be unpacked: {error}") from None
    if is_packed and received and not member.eof:
        raise BackendError(f"{where} answers with gzip that ends too early")
    return bytes(body)


class _Pinned(AbstractResolver):
    """Knows the addresses that were checked, and no others."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in self._addresses
        ]

    async def close(self) -> None:
        pass


async def _follow(
    url: URL, headers: dict[str, str], max_bytes: int, allows: Callable[[Address], bool], resolve: Resolve
) -> Page:
    for _ in range(MAX_REDIRECTS + 1):
        answer = await _get(url, headers, max_bytes, await _addresses(url, allows, resolve))
        if isinstance(answer, Page):
            return answer
        if answer.origin() != url.origin():
            headers = {name: value for name, value in headers.items() if name.lower() in _HARMLESS}
        url = answer
    raise BackendError(f"{_shown(url)} is the end of more than {MAX_REDIRECTS} redirects")


async def _get(url: URL, headers: Mapping[str, str], max_bytes: int, addresses: Sequence[str]) -> Page | URL:
    """The page, or where it redirects to."""
    async with _asked("GET", url, {**headers, "Accept-Encoding": "gzip"}, addresses) as response:
        if response.status in _REDIRECTS and (location := response.headers.get("Location")):
            return _parse(location, url)
        content_type = response.headers.get("Content-Type", "")
        return Page(str(url), response.status, content_type, await read_body(response, max_bytes))


@asynccontextmanager
async def _asked(
    method: str, url: URL, headers: Mapping[str, str], addresses: Sequence[str], body: bytes | None = None
) -> AsyncIterator[aiohttp.ClientResponse]:
    """The answer of whoever has one of these addresses."""

    def connect_to(info: tuple[int, int, int, str, tuple[str | int, ...]]) -> socket.socket:
        # The last gate. aiohttp takes hosts like 2130706433 for addresses and leaves them to the system to resolve.
        if info[4][0] not in addresses:
            raise InvalidInput(f"URL {_shown(url)} names its host in an odd way; write its name or address plainly")
        return socket.socket(*info[:3])

    connector = aiohttp.TCPConnector(
        resolver=_Pinned(addresses),
        use_dns_cache=False,
        socket_factory=connect_to,
        ssl=tls() if url.scheme == "https" else False,
    )
    session = aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        auto_decompress=False,
        timeout=aiohttp.ClientTimeout(total=None),
        headers={"User-Agent": f"llmsched/{__version__}", "Accept": "*/*"},
    )
    try:
        async with (
            session,
            session.request(method, url, headers=headers, data=body, allow_redirects=False) as response,
        ):
            yield response
    except (aiohttp.ClientError, OSError) as error:
        raise BackendError(f"{_shown(url)} cannot be fetched: {type(error).__name__}: {error}") from error


async def _addresses(url: URL, allows: Callable[[Address], bool], resolve: Resolve) -> list[str]:
    """The addresses of the URL's host, if all of them are allowed: a name with one bad address is up to no good."""
    host, port = url.raw_host, url.port
    assert host is not None, url
    assert port is not None, url
    try:
        found: Sequence[str] = [str(ip_address(host))]
    except ValueError:
        try:
            found = await resolve(host, port)
        except OSError as error:
            why = error.strerror or error
            raise BackendError(f"{_shown(url)} cannot be fetched: host {host!r} is not found: {why}") from None
    for address in found:
        if not allows(ip_address(address)):
            raise _forbidden(url, address)
    return list(found)


def _forbidden(url: URL, address: str) -> ForbiddenAddress:
    return ForbiddenAddress(f"URL {_shown(url)} leads to {address}, which is no public address; name a public site")


def _parse(text: str, base: URL | None = None) -> URL:
    """The URL of a text, relative to `base`, without its fragment. Raises InvalidInput."""
    try:
        if len(text) > MAX_URL_CHARS:
            raise ValueError(f"it has {len(text)} characters and may have {MAX_URL_CHARS}")
        url = (base.join(URL(text)) if base else URL(text.strip())).with_fragment(None)
        if url.raw_user is not None or url.raw_password is not None:
            text = str(url.with_user(None))
            raise ValueError("it has a user name or password in it; leave that out")
        if url.scheme not in ("http", "https") or not _HOST.fullmatch(url.raw_host or "") or url.port is None:
            raise ValueError("it must look like https://host/path")
    except (ValueError, TypeError) as error:
        raise InvalidInput(f"URL {show(text)} cannot be fetched: {error}", field="url") from None
    return url


def _shown(url: URL) -> str:
    text = str(url)
    return text if len(text) <= 200 else text[:199] + "…"


@lru_cache(1)
def tls() -> SSLContext:
    """The usual certificates; reading them takes 20 ms."""
    return httpx.create_ssl_context()
