"""What the page for operators costs a service at 100 LLM tasks a second, and how soon it is there.

Three tabs of a real Chromium show the overview, the list of jobs and the engines. The service's processor time is
measured in windows with the tabs open and closed, in turns.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from statistics import mean, median

import rig
import throughput
from playwright.async_api import Browser, Page, Response
from rig import Client, Figure, Gateway

from tests.integration.browser import CHROMIUM, chromium

#: LLM tasks a second, seconds of a window, pairs of windows.
RATE, WINDOW, PAIRS = 100, 20.0, 3
SHAPE = "one call"
#: First view: bytes and seconds; share of a processor that three tabs add.
MOST_BYTES, MOST_S, MOST_CPU = 300_000, 1.0, 2.0


async def measure(quick: bool) -> list[Figure]:
    """Nothing where there is no Chromium."""
    if CHROMIUM is None:
        return []
    window, pairs = (2.0, 1) if quick else (WINDOW, PAIRS)
    async with (
        rig.engines(1, max_batch=throughput.CLIENTS) as urls,
        rig.gateway(urls) as (server, client),
        chromium() as browser,
    ):
        await client.put_application(throughput.name_of(SHAPE), throughput.definition(SHAPE))
        load = asyncio.create_task(_load(client))
        try:
            await asyncio.sleep(3.0)
            await browser.new_page()  # the browser itself has started
            views = [await first_view(browser, server.url) for _ in range(2 if quick else 5)]
            shares: dict[bool, list[float]] = {False: [], True: []}
            for number in range(pairs):
                for is_open in (False, True) if number % 2 == 0 else (True, False):
                    shares[is_open].append(await _window(browser, server, window, is_open))
        finally:
            load.cancel()
            await asyncio.wait([load])
    added = mean(shares[True]) - mean(shares[False])
    return [
        Figure("first view, bytes", max(size for size, _ in views) / 1e3, "kB", MOST_BYTES / 1e3),
        Figure("first view, median of five", median(seconds for _, seconds in views), "s", MOST_S),
        Figure("first view, slowest of five", max(seconds for _, seconds in views), "s", MOST_S),
        Figure(f"processor of the service at {RATE} tasks/s", mean(shares[False]) * 100, "%"),
        Figure("three tabs (overview, jobs, engines) add", added * 100, "%", MOST_CPU),
    ]


async def first_view(browser: Browser, url: str) -> tuple[int, float]:
    """Bytes and seconds until the overview has its numbers, with an empty cache."""
    sizes = []

    async def heard(response: Response) -> None:
        sizes.append((await response.request.sizes())["responseBodySize"])

    async with await browser.new_page() as page:
        waiting: list[asyncio.Task[None]] = []
        page.on("response", lambda response: waiting.append(asyncio.create_task(heard(response))))
        began = time.perf_counter()
        await _overview(page, url)
        seconds = time.perf_counter() - began
        await asyncio.gather(*list(waiting), return_exceptions=True)
    return sum(sizes), seconds


async def _overview(page: Page, url: str) -> None:
    await page.goto(f"{url}/ui/")
    await page.locator(".tile").first.wait_for()


async def _window(browser: Browser, server: Gateway, seconds: float, is_open: bool) -> float:
    """Processors that the service uses."""
    async with AsyncExitStack() as stack:
        if is_open:
            for view in ("", "#/jobs", "#/engines"):
                page = await stack.enter_async_context(await browser.new_page())
                await _overview(page, server.url)
                await page.goto(f"{server.url}/ui/{view}")
        await asyncio.sleep(1.0)
        used, began = server.cpu_s, time.perf_counter()
        await asyncio.sleep(seconds)
        return (server.cpu_s - used) / (time.perf_counter() - began)


async def _load(client: Client) -> None:
    body = throughput.body_of(SHAPE)
    running: set[asyncio.Task[str]] = set()
    due = time.perf_counter()
    while True:
        task = asyncio.create_task(client.submit(body))
        running.add(task)
        task.add_done_callback(running.discard)
        due += 1 / RATE
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
