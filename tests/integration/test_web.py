"""The public web as handlers may reach it: a real server, and everything that must not be reached."""

from __future__ import annotations

import asyncio
import gzip
import sys
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from aiohttp import web

from llmsched.errors import BackendError, InvalidInput
from llmsched.runtime.tools.web import BodyTooLarge, Page, fetch, fetch_now
from tests.integration.sites import serving, speaking

#: Where the server of these tests listens, played as a public address.
PUBLIC = "127.0.0.1"
#: Another address of this machine, which stays private.
PRIVATE = "127.0.0.2"

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs a second loopback address")


def allows(address: Any) -> bool:
    return str(address) == PUBLIC


def names(**addresses: str) -> Callable[[str, int], Awaitable[Sequence[str]]]:
    async def resolve(host: str, port: int) -> Sequence[str]:
        return [addresses[host.replace(".", "_")]]

    return resolve


# --------------------------------------------------------------------------------------------------- answers


async def test_a_page_comes_with_its_status_type_and_text() -> None:
    async def handle(request: web.Request) -> web.Response:
        return web.Response(status=404, text=f"no {request.path_qs}, sagt der Bär", charset="iso-8859-1")

    async with serving(handle) as url:
        page = await fetch(f"{url}/page#part", params={"q": "a b&c"}, allow_private=True)
    assert page == Page(
        f"{url}/page?q=a+b%26c",
        404,
        "text/plain; charset=iso-8859-1",
        "no /page?q=a+b%26c, sagt der Bär".encode("iso-8859-1"),
    )
    assert page.text == "no /page?q=a+b%26c, sagt der Bär"


@pytest.mark.parametrize(
    ("content_type", "body", "text"),
    [
        ("text/html", '<meta charset="windows-1252"> Bär'.encode("cp1252"), '<meta charset="windows-1252"> Bär'),
        ("text/html; charset=UTF-8", '<meta charset="ascii"> Bär'.encode(), '<meta charset="ascii"> Bär'),
        ("", b"\xef\xbb\xbfB\xc3\xa4r", "Bär"),
        ("text/plain; charset=klingon", "Bär".encode(), "Bär"),
        ("text/plain; charset=base64", "Bär".encode(), "Bär"),
        ("text/plain", b"\xff", "\ufffd"),
    ],
)
def test_text_is_read_in_the_charset_it_names(content_type: str, body: bytes, text: str) -> None:
    assert Page("http://x/", 200, content_type, body).text == text


async def test_the_request_says_nothing_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    seen: list[dict[str, str]] = []

    async def handle(request: web.Request) -> web.Response:
        seen.append(dict(request.headers))
        return web.Response(headers={"Set-Cookie": "a=b"})

    async with serving(handle) as url:
        await fetch(url, allow_private=True)
        await fetch(url, allow_private=True, headers={"X-Mine": "1", "User-Agent": "me"})
    host = url.removeprefix("http://")
    agent = seen[0].pop("User-Agent")
    assert agent.startswith("llmsched/")
    assert seen == [
        {"Host": host, "Accept": "*/*", "Accept-Encoding": "gzip"},
        {"Host": host, "Accept": "*/*", "Accept-Encoding": "gzip", "User-Agent": "me", "X-Mine": "1"},
    ]


def test_plain_handlers_fetch_without_a_loop() -> None:
    url: list[str] = []
    is_up, is_done = threading.Event(), threading.Event()

    async def handle(request: web.Request) -> web.Response:
        return web.Response(text="hello")

    async def serve() -> None:
        async with serving(handle) as base:
            url.append(base)
            is_up.set()
            await asyncio.to_thread(is_done.wait)

    server = threading.Thread(target=asyncio.run, args=(serve(),))
    server.start()
    assert is_up.wait(60)
    try:
        assert fetch_now(url[0], allow_private=True).text == "hello"
    finally:
        is_done.set()
        server.join()


# ---------------------------------------------------------------------------------------------- the world's faults


async def test_a_server_that_never_answers_is_given_up() -> None:
    gate = asyncio.Event()

    async def handle(request: web.Request) -> web.Response:
        await gate.wait()
        return web.Response()

    async with serving(handle) as url:
        with pytest.raises(BackendError, match=rf"^{url}/slow did not answer within 0\.05 s$"):
            await fetch(f"{url}/slow", allow_private=True, timeout=0.05)


async def test_a_server_that_never_ends_is_given_up() -> None:
    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x")
            await asyncio.sleep(0.005)

    async with serving(handle) as url:
        with pytest.raises(BackendError, match=r"did not answer within 0\.1 s"):
            await fetch(url, allow_private=True, timeout=0.1)


async def test_a_body_may_be_as_large_as_allowed_and_no_larger() -> None:
    async def handle(request: web.Request) -> web.Response:
        return web.Response(body=b"x" * 1_000_000)

    async with serving(handle) as url:
        assert len((await fetch(url, allow_private=True, max_bytes=1_000_000)).body) == 1_000_000
        with pytest.raises(BodyTooLarge, match=rf"^{url} answers with more than 999999 bytes$"):
            await fetch(url, allow_private=True, max_bytes=999_999)


async def test_a_bomb_does_not_go_off() -> None:
    """A gigabyte of zeros in a megabyte of gzip; counted by what came through the unpacking."""
    bomb = gzip.compress(b"\0" * (1 << 20), 9) * 1024

    async def handle(request: web.Request) -> web.Response:
        return web.Response(body=bomb, headers={"Content-Encoding": "gzip"})

    async with serving(handle) as url:
        with pytest.raises(BodyTooLarge, match="answers with more than 5000000 bytes"):
            await fetch(url, allow_private=True, max_bytes=5_000_000)


@pytest.mark.parametrize(
    ("encoding", "body", "why"),
    [
        ("gzip", gzip.compress(b"a") + gzip.compress(b"b"), None),
        ("gzip", b"", None),
        ("gzip", b"not gzip", "answers with gzip that cannot be unpacked"),
        ("gzip", gzip.compress(b"hello, hello")[:-4], "answers with gzip that ends too early"),
        ("br", b"x", "answers in encoding 'br'; only gzip was asked for"),
    ],
    ids=["two members", "empty", "no gzip", "cut off", "another encoding"],
)
async def test_packed_bodies_are_unpacked_or_refused(encoding: str, body: bytes, why: str | None) -> None:
    async def handle(request: web.Request) -> web.Response:
        return web.Response(body=body, headers={"Content-Encoding": encoding})

    async with serving(handle) as url:
        if why is None:
            assert (await fetch(url, allow_private=True)).body == (b"ab" if body else b"")
        else:
            with pytest.raises(BackendError, match=why):
                await fetch(url, allow_private=True)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 99_999,
    ],
)
async def test_a_server_that_speaks_no_http_is_the_worlds_fault(answer: bytes) -> None:
    async with speaking(answer) as url:
        with pytest.raises(BackendError, match=rf"^{url}/ cannot be fetched: "):
            await fetch(f"{url}/", allow_private=True)


async def test_nobody_there_and_no_such_host_are_the_worlds_fault() -> None:
    async def nowhere(host: str, port: int) -> Sequence[str]:
        raise OSError("name server asleep")

    with pytest.raises(BackendError, match=r"^http://127\.0\.0\.1:1/ cannot be fetched: ClientConnectorError: "):
        await fetch("http://127.0.0.1:1/", allow_private=True)
    with pytest.raises(
        BackendError, match=r"^http://a\.b/ cannot be fetched: host 'a\.b' is not found: name server as"
    ):
        await fetch("http://a.b/", resolve=nowhere)
    with pytest.raises(BackendError, match=r"host 'x{70}\.test' is not found"):
        await fetch(f"http://{'x' * 70}.test/")


# ----------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://127.1/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0x7f.1/",
        "http://0177.0.0.1/",
        "http://①②⑦.0.0.1/",
        "http://localhost:8000/",
        "https://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::127.0.0.1]/",
        "http://[64:ff9b::127.0.0.1]/",
        "http://[2002:7f00:1::]/",
        "http://0/",
        "http://0.0.0.0/",
        "http://[::]/",
        "http://10.1.2.3/",
        "http://192.168.0.1/",
        "http://100.64.0.1/",
        "http://169.254.169.254/latest/meta-data",
        "http://192.0.0.8/",
        "http://[fd00::1]/",
        "http://[fe80::1]/",
        "http://[fec0::1]/",
        "http://224.0.1.1/",
        "http://[ff0e::1]/",
        "http://240.0.0.1/",
        "http://255.255.255.255/",
        "http://192.0.2.1/",
        "http://[2001:db8::1]/",
        "http://127.0.0.1#@public.example/",
    ],
)
async def test_addresses_that_are_not_public_are_refused(url: str) -> None:
    with pytest.raises(InvalidInput, match=r"^URL http.* leads to .*, which is no public address; name a public site$"):
        await fetch(url)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "URL '' cannot be fetched: it must look like https://host/path"),
        ("file:///etc/passwd", "URL 'file:///etc/passwd' cannot be fetched: it must look like https://host/path"),
        ("ftp://public.example/", "cannot be fetched: it must look like https://host/path"),
        ("http:///path", "cannot be fetched: it must look like https://host/path"),
        ("http://exa mple.com/", "cannot be fetched: it must look like https://host/path"),
        ("http://[fe80::1%25lo]/", "cannot be fetched: it must look like https://host/path"),
        ("http://x:99999/", "URL 'http://x:99999/' cannot be fetched: "),
        ("http://x\r\nHost: y/", "cannot be fetched: "),
        ("http://[::1", "cannot be fetched: "),
        ("http://public.example\\@127.0.0.1/", "cannot be fetched: "),
        (
            "http://me:sesame@public.example/",
            "URL 'http://public.example/' cannot be fetched: it has a user name or pa",
        ),
        (f"http://x/{'y' * 8000}", "cannot be fetched: it has 8009 characters and may have 8000"),
        (7, "URL 7 cannot be fetched: "),
    ],
)
async def test_what_is_no_url_of_the_web_is_refused(url: Any, why: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        await fetch(url)
    assert why in str(caught.value)
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize("header", [{"X": "a\r\nY: b"}, {"X Y": "a"}, {"": "a"}, {"X:": "a"}])
async def test_headers_cannot_bring_others_with_them(header: dict[str, str]) -> None:
    with pytest.raises(InvalidInput, match="names and values are one line of printable text"):
        await fetch("http://public.example/", headers=header)


async def test_a_name_with_one_private_address_is_refused() -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        return [PUBLIC, PRIVATE]

    with pytest.raises(InvalidInput, match=r"URL http://two\.example/ leads to 127\.0\.0\.2, which is no public"):
        await fetch("http://two.example/", allows=allows, resolve=resolve)


async def test_the_address_that_was_checked_is_the_one_that_is_reached() -> None:
    """DNS rebinding: the name is another machine's whenever it is asked again."""
    asked: list[str] = []
    hosts: list[str] = []

    async def resolve(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return [PUBLIC if len(asked) == 1 else PRIVATE]

    async def handle(request: web.Request) -> web.Response:
        hosts.append(request.headers["Host"])
        return web.Response(text="public")

    async with serving(handle) as url:
        port = url.rpartition(":")[2]
        page = await fetch(f"http://rebinding.example:{port}/", allows=allows, resolve=resolve)
    assert (page.text, asked, hosts) == ("public", ["rebinding.example"], [f"rebinding.example:{port}"])


@linux_only
@pytest.mark.parametrize("target", ["http://127.0.0.2:{port}/", "//127.0.0.2:{port}/", "http://inner.example:{port}/"])
async def test_a_redirect_to_a_private_address_is_refused(target: str) -> None:
    reached: list[str] = []

    async def private(request: web.Request) -> web.Response:
        reached.append(request.path)
        return web.Response(text="secret")

    async with serving(private, PRIVATE) as inner:
        port = inner.rpartition(":")[2]

        async def public(request: web.Request) -> web.Response:
            return web.Response(status=302, headers={"Location": target.format(port=port)})

        async with serving(public) as url:
            with pytest.raises(InvalidInput, match=r"leads to 127\.0\.0\.2, which is no public address"):
                await fetch(url, allows=allows, resolve=names(inner_example=PRIVATE))
    assert reached == []


@pytest.mark.parametrize("target", ["file:///etc/passwd", "http://me:sesame@127.0.0.1/", "gopher://127.0.0.1/"])
async def test_a_redirect_out_of_the_web_is_refused(target: str) -> None:
    async def handle(request: web.Request) -> web.Response:
        return web.Response(status=301, headers={"Location": target})

    async with serving(handle) as url:
        with pytest.raises(InvalidInput, match="cannot be fetched: it "):
            await fetch(url, allows=allows)


async def test_five_redirects_are_followed_and_no_more() -> None:
    async def handle(request: web.Request) -> web.Response:
        left = int(request.query["left"])
        return web.Response(status=307, headers={"Location": f"?left={left - 1}"}) if left else web.Response(text="end")

    async with serving(handle) as url:
        page = await fetch(f"{url}/?left=5", allow_private=True)
        assert (page.url, page.text) == (f"{url}/?left=0", "end")
        with pytest.raises(BackendError, match="is the end of more than 5 redirects"):
            await fetch(f"{url}/?left=6", allow_private=True)


async def test_another_site_does_not_get_the_headers_of_the_first() -> None:
    seen: dict[str, list[str | None]] = {}

    async def there(request: web.Request) -> web.Response:
        seen["there"] = [request.headers.get(name) for name in ("Authorization", "X-Key", "Cookie", "Accept")]
        return web.Response(text="there")

    async with serving(there) as other:

        async def here(request: web.Request) -> web.Response:
            seen[request.path] = [request.headers.get(name) for name in ("Authorization", "X-Key", "Cookie", "Accept")]
            return web.Response(status=302, headers={"Location": "/b" if request.path == "/a" else other})

        async with serving(here) as url:
            given = {"Authorization": "Bearer sesame", "X-Key": "k", "Cookie": "c=1", "Accept": "text/html"}
            page = await fetch(f"{url}/a", headers=given, allow_private=True)
    assert page.text == "there"
    assert seen == {
        "/a": ["Bearer sesame", "k", "c=1", "text/html"],
        "/b": ["Bearer sesame", "k", "c=1", "text/html"],
        "there": [None, None, None, "text/html"],
    }
