"""A real Chromium for tests of the page, and everything that it complains about.

    async with chromium() as browser:
        async with a_page(browser, url, key="…") as page:
            await page.goto(f"{url}/ui/")

The browser is that of the system; tests that need it are skipped, with the reason, where none is installed.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from playwright.async_api import Browser, ConsoleMessage, Page, Request, async_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: chromium)")

_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=_FLAGS)
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def a_page(
    browser: Browser, url: str, *, key: str | None = None, allowed: Sequence[str] = (), **context: Any
) -> AsyncIterator[Page]:
    """A tab of its own; at its end it must have complained about nothing and asked nobody but `url`.

    key: as if it had been typed in before. allowed: parts of console errors that are part of the test. context: of the
    browser's context: viewport, color_scheme.
    """
    complaints: list[str] = []

    def console(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not any(part in message.text for part in allowed):
            complaints.append(f"{message.type}: {message.text}")

    def asked(request: Request) -> None:
        if not request.url.startswith(url):
            complaints.append(f"a request to {request.url}")
        if key and key in request.url:
            complaints.append(f"the key in {request.url}")

    own = await browser.new_context(**context)
    own.set_default_timeout(15_000)
    page = await own.new_page()
    page.on("console", console)
    page.on("pageerror", lambda error: complaints.append(f"exception: {error}"))
    page.on("request", asked)
    await page.add_init_script(
        "document.addEventListener('securitypolicyviolation', e => console.error(`CSP: ${e.violatedDirective}`));"
    )
    if key:
        await page.add_init_script(f"sessionStorage.setItem('llmsched.key', '{key}')")
    try:
        yield page
    finally:
        await own.close()
    assert complaints == []
