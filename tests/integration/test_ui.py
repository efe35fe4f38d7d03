"""The operators' page in a real Chromium, against a real service while real jobs run.

One service with an API key, and one browser, for all tests; every tab fails its test if it complains about anything
(console, exception, content security policy) or asks anybody but the service.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

pytest.importorskip("playwright", reason="playwright is not installed (pip install '.[dev]')")

from playwright.async_api import Browser, Page, expect

from tests.integration.browser import a_page, chromium, needs_chromium
from tests.integration.service import RunningService, a_recording, running_service

pytestmark = [needs_chromium, pytest.mark.asyncio(loop_scope="module")]

KEY = "ops-key-for-tests"
HEADERS = {"Authorization": f"Bearer {KEY}"}
APPLICATIONS = ("code_generation", "web_search", "task_automation")

#: Engines and recorded tools are so many times as fast as they say.
SPEED = 4

#: A plan that takes 1.5 s to be made at that speed, and then two tools, the second after the first.
PLANNED = {
    "app": "task_automation",
    "job_id": "watched#1",
    "variant": "huggingface",
    "stages": [
        {"name": "plan", "kind": "llm", "deps": [], "tasks": [{"prompt_tokens": 8, "output_tokens": 600}]},
        {"name": "tools", "kind": "dynamic", "deps": ["plan"], "tasks": [], "generates": ["tool_0_a", "tool_1_b"]},
        {
            "name": "tool_0_a",
            "kind": "regular",
            "deps": ["plan"],
            "parent": "tools",
            "tasks": [{"tool": "Text-to-Image", "duration_s": 3.0}],
        },
        {
            "name": "tool_1_b",
            "kind": "regular",
            "deps": ["tool_0_a"],
            "parent": "tools",
            "tasks": [{"tool": "Image-to-Text", "duration_s": 1.0}],
        },
    ],
}


async def submit(service: RunningService, recording: dict[str, Any], **fields: Any) -> str:
    job = await service.submit(recording=recording, headers=HEADERS, **fields)
    return str(job["id"])


async def keep_busy(service: RunningService) -> None:
    """Three small jobs a second, for ever, of the last class, so that nothing a test looks at waits for them."""
    k = 0
    while True:
        recording = a_recording(APPLICATIONS[k % 3], seed=k)
        if len(recording["stages"]) < 12:
            await submit(service, recording, class_="batch")
        k += 1
        await asyncio.sleep(0.3)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningService]:
    folder = tmp_path_factory.mktemp("ui")
    settings: dict[str, Any] = {"emulate": 2, "max_batch": 4, "policy": "fcfs", "api_keys": f"ops:{KEY}", "grace": 0.0}
    async with running_service(folder, workers=2, learn=False, speed=SPEED, **settings) as running:
        load = asyncio.create_task(keep_busy(running))
        try:
            yield running
        finally:
            load.cancel()
            await asyncio.wait((load,))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as started:
        yield started


async def test_the_page_asks_for_a_key_and_keeps_it_in_its_tab(service: RunningService, browser: Browser) -> None:
    async with a_page(browser, service.url, allowed=("status of 401",)) as page:
        await page.goto(f"{service.url}/ui/")
        dialog = page.get_by_role("dialog", name="API key")
        await expect(dialog).to_be_visible()
        await page.get_by_label("Key", exact=True).fill("not-the-key-at-all")
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("alert")).to_have_text("This key is not known here.")
        await page.get_by_label("Key", exact=True).fill(KEY)
        await page.get_by_role("button", name="Go on").click()
        await expect(dialog).to_have_count(0)
        await expect(page.locator(".tile").first).to_contain_text("Jobs in the system")

        await page.reload()
        await expect(page.locator(".tile").first).to_be_visible()
        assert await page.evaluate("sessionStorage.getItem('llmsched.key')") == KEY
        assert await page.evaluate("JSON.stringify(localStorage)") == "{}"
        assert KEY not in page.url
        await page.get_by_role("button", name="Forget the key").click()
        await expect(dialog).to_be_visible()


async def test_every_view_is_a_click_away(service: RunningService, browser: Browser) -> None:
    job = await submit(service, a_recording("code_generation", seed=1))
    async with a_page(browser, service.url, key=KEY, viewport={"width": 1280, "height": 900}) as page:
        await page.goto(f"{service.url}/ui/")
        await expect(page.locator("#trends figure")).to_have_count(6)
        await expect(page.get_by_role("row").filter(has_text="code generation")).to_be_visible()
        await expect(page.locator(".executors")).to_contain_text("emulated-2")
        await page.get_by_role("button", name="2 h", exact=True).click()
        await expect(page.get_by_role("button", name="2 h", exact=True)).to_have_attribute("aria-pressed", "true")

        nav = page.get_by_role("navigation", name="Views")
        await nav.get_by_role("link", name="Engines").click()
        await expect(page.locator("[data-engine]")).to_have_count(2)
        await nav.get_by_role("link", name="Policies").click()
        await expect(page.locator('[data-policy="fcfs"]')).to_have_attribute("aria-checked", "true")
        await nav.get_by_role("link", name="Jobs").click()
        await page.locator("#application").select_option("code_generation")
        await expect(page.locator("#jobs tr").first).to_contain_text("code generation")
        assert await page.locator("#jobs tr", has_text="web search").count() == 0
        await expect(page.locator("#application")).to_have_value("code_generation")
        await page.locator(f'a[href="#/jobs/{job}"]').click()
        await expect(page.locator("h1")).to_contain_text("code generation")
        await expect(page.locator("[data-stage=test_gen]")).to_be_visible()
        await page.locator("[data-stage=test_gen]").click()
        await expect(page.locator("#stage dl")).to_contain_text("llm")
        await page.go_back()
        await expect(page.locator("#application")).to_have_value("code_generation")


async def test_a_dynamic_stage_unfolds_while_one_watches(service: RunningService, browser: Browser) -> None:
    async with a_page(browser, service.url, key=KEY) as page:
        await page.goto(f"{service.url}/ui/#/jobs")
        await expect(page.locator("#jobs tr").first).to_be_visible()
        job = await submit(service, PLANNED, class_="interactive")
        await page.goto(f"{service.url}/ui/#/jobs/{job}")
        await expect(page.locator("[data-stage=plan]")).to_be_visible()
        await expect(page.locator("[data-stage=tools]")).to_have_attribute("data-state", "waiting")
        assert await page.locator("[data-stage=tool_0_a]").count() == 0, "nobody knows the plan yet"

        await expect(page.locator("[data-stage=tool_0_a]")).to_be_visible()
        await expect(page.locator("[data-stage=tool_1_b]")).to_be_visible()
        await expect(page.locator("[data-stage=plan]")).to_have_attribute("data-state", "done")
        await expect(page.locator(".frame")).to_contain_text("plan of tools")
        await expect(page.locator("[data-stage=tool_1_b]")).to_have_attribute("data-state", "done")
        await expect(page.locator("#jobstatus")).to_have_text("completed")
        await expect(page.locator("#gantt .span.done")).to_have_count(3)
        await expect(page.locator("#why")).to_contain_text("Where the time went")


async def test_a_waiting_job_says_who_is_before_it(service: RunningService, browser: Browser) -> None:
    calls = [{"prompt_tokens": 8, "output_tokens": 9000}] * 8
    stage = {"name": "test_gen", "kind": "llm", "deps": [], "tasks": calls}
    long = {"app": "code_generation", "job_id": "long#1", "stages": [stage]}
    ahead = await submit(service, long, class_="interactive")
    more = await submit(service, long, class_="interactive")
    last = await submit(service, a_recording("web_search", seed=3), class_="interactive")
    async with a_page(browser, service.url, key=KEY) as page:
        page.on("dialog", lambda dialog: asyncio.ensure_future(dialog.accept()))
        await page.goto(f"{service.url}/ui/#/jobs/{last}")
        await expect(page.locator("#why")).to_contain_text("Why is it waiting?")
        await expect(page.locator("#sentences")).to_contain_text("waits for pool llm behind")
        await expect(page.locator("#why .me")).to_contain_text("this job")
        await page.locator(f'#why a[href="#/jobs/{more}"]').click()
        for job in (more, ahead):
            await page.goto(f"{service.url}/ui/#/jobs/{job}")
            await expect(page.locator(".crumbs")).to_contain_text(job)
            await page.get_by_role("button", name="Cancel").click()
            await expect(page.locator("#jobstatus")).to_have_text("cancelled")


async def test_an_engine_is_drained_and_resumed(service: RunningService, browser: Browser) -> None:
    async with a_page(browser, service.url, key=KEY) as page:
        await page.goto(f"{service.url}/ui/#/engines")
        card = page.locator('[data-engine="emulated-1"]')
        await expect(card).to_have_attribute("data-state", "up")
        await card.get_by_role("button", name="Drain").click()
        await expect(page.locator("#toasts")).to_contain_text("emulated-1 gets no new work")
        await expect(card).to_have_attribute("data-state", "drained", timeout=30_000)
        assert (await engine(service))["draining"] is True
        await card.get_by_role("button", name="Resume").click()
        await expect(card).to_have_attribute("data-state", "up")
        assert (await engine(service))["draining"] is False


async def engine(service: RunningService) -> dict[str, Any]:
    listed = (await service.get("/v1/engines", headers=HEADERS)).json()["items"]
    found: dict[str, Any] = next(e for e in listed if e["id"] == "emulated-1")
    return found


async def test_another_policy_is_chosen_and_last_night_asked_about(service: RunningService, browser: Browser) -> None:
    async with a_page(browser, service.url, key=KEY) as page:
        page.on("dialog", lambda dialog: asyncio.ensure_future(dialog.accept()))
        await page.goto(f"{service.url}/ui/#/policies")
        await page.locator('[data-policy="sjf"]').click()
        await expect(page.locator('[data-policy="sjf"]')).to_have_attribute("aria-checked", "true")
        assert (await service.get("/version")).json()["policy"] == "sjf"

        await expect(page.locator('[data-pick="fcfs"]')).to_have_attribute("aria-pressed", "true")
        await page.get_by_role("button", name="Simulate").click()
        await expect(page.get_by_role("progressbar")).to_be_visible()
        await expect(page.locator("#answer")).to_be_visible(timeout=60_000)
        for name in ("sjf", "fcfs", "recorded"):
            await expect(page.locator("#answer tbody tr", has_text=name)).to_have_count(1)
        await expect(page.locator("#answer path.line")).to_have_count(3)
        await page.get_by_text("What is assumed").click()
        await expect(page.locator("#answer details")).to_contain_text("2 engines of 4 slots")


async def test_all_of_it_works_with_the_keyboard(service: RunningService, browser: Browser) -> None:
    async with a_page(browser, service.url, key=KEY) as page:
        await page.goto(f"{service.url}/ui/")
        await expect(page.locator(".tile").first).to_be_visible()
        await page.keyboard.press("?")
        dialog = page.get_by_role("dialog", name="Keyboard shortcuts")
        await expect(dialog).to_contain_text("theme")
        await page.keyboard.press("Escape")
        await expect(dialog).to_have_count(0)

        await page.keyboard.press("g")
        await page.keyboard.press("j")
        await expect(page.locator("#jobs a.jobid").nth(2)).to_be_visible()
        await page.keyboard.press("/")
        await expect(page.locator("#find")).to_be_focused()
        await page.keyboard.type("jjj")  # letters, and no shortcuts, while one types
        await expect(page.locator("#find")).to_have_value("jjj")
        await page.keyboard.press("Escape")
        for key, at in (("j", 0), ("j", 1), ("k", 0)):
            await page.keyboard.press(key)
            assert await focused(page, at), "j and k walk over the jobs"
        await page.keyboard.press("Enter")
        await expect(page.locator("#jobstatus")).to_be_visible()
        await page.locator("[data-stage]").first.focus()
        await page.keyboard.press("Enter")
        await expect(page.locator("#stage dl")).to_be_visible()
        await page.keyboard.press("u")
        await expect(page.locator("h1")).to_have_text("Jobs")


async def focused(page: Page, at: int) -> bool:
    """Whether the `at`-th job of the list has the focus; new jobs may have pushed it down since."""
    focus = "[...document.querySelectorAll('#jobs a.jobid')].indexOf(document.activeElement)"
    return bool(await page.evaluate(focus) >= at)


async def test_dark_mode_follows_the_system_until_it_is_told(service: RunningService, browser: Browser) -> None:
    async with a_page(browser, service.url, key=KEY, color_scheme="dark") as page:
        await page.goto(f"{service.url}/ui/")
        assert await lightness(page) < 0.2
        await page.keyboard.press("t")
        assert await lightness(page) > 0.8
        await page.reload()
        assert await lightness(page) > 0.8, "the choice is remembered"
        await page.get_by_role("button", name="Theme: light").click()
        assert await lightness(page) < 0.2


async def lightness(page: Page) -> float:
    """Of the page's ground: 0 black, 1 white."""
    colour: str = await page.evaluate("getComputedStyle(document.body).backgroundColor")
    parts = [float(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    return sum(parts) / 3 / 255


async def test_a_telephone_shows_every_view_without_sideways_scrolling(
    service: RunningService, browser: Browser
) -> None:
    job = await submit(service, a_recording("code_generation", seed=5))
    async with a_page(browser, service.url, key=KEY, viewport={"width": 400, "height": 800}) as page:
        for view, sign in (
            ("", ".tile"),
            ("jobs", "#jobs tr"),
            (f"jobs/{job}", "[data-stage]"),
            ("engines", "[data-engine]"),
            ("policies", "[data-policy]"),
        ):
            await page.goto(f"{service.url}/ui/#/{view}")
            await expect(page.locator(sign).first).to_be_visible()
            width = await page.evaluate("document.documentElement.scrollWidth")
            assert width <= 400, f"{view} is {width} pixels wide"


async def test_a_service_that_is_gone_is_said_to_be(service: RunningService, browser: Browser) -> None:
    async with a_page(browser, service.url, key=KEY, allowed=("Failed to load resource",)) as page:
        await page.goto(f"{service.url}/ui/")
        await expect(page.locator(".tile").first).to_be_visible()
        await page.route("**/v1/**", lambda route: route.abort())
        await expect(page.locator("#banner")).to_contain_text("the service does not answer")
        await page.unroute("**/v1/**")
        await expect(page.locator("#banner")).to_be_empty()
