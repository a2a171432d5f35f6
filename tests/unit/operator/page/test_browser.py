"""The page in a real browser, on a fleet of twelve: what is seen, read aloud, reached by keys, told where it lacks."""

import asyncio
import copy
import os
import re
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from harness.chromium import Scheme, axe, chromium, opened, violations
from playwright.sync_api import Browser, Locator, Page, expect
from rerank_operator.page.app import application
from unit.operator.page.world import World

NOW = 1_800_000_000.0
"""2027-01-15T08:00:00Z."""
OVER_BUDGET = "\u25b2 21.0\u00d7 availability"
UNKNOWN = "\u2013"
SCREENSHOTS = os.environ.get("RERANK_SCREENSHOTS")
"""A folder for pictures of everything, to be looked at; None: none are taken."""


class Site:
    """The page's own application in a thread, with a fleet that tests may change."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.broken = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.runner = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(30)
        self.url = f"http://127.0.0.1:{self.runner.addresses[0][1]}/"

    async def _start(self) -> web.AppRunner:
        runner = web.AppRunner(application(self), shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self.runner.cleanup(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    async def fleet(self) -> bytes:
        if self.broken:
            raise RuntimeError("broken")
        return await self.world.fleet()

    async def reranker(self, key: tuple[str, str]) -> bytes | None:
        if self.broken:
            raise RuntimeError("broken")
        return await self.world.reranker(key)


@pytest.fixture(scope="module")
def browser() -> Generator[Browser]:
    with chromium() as made:
        yield made


@pytest.fixture(scope="module")
def world() -> World:
    return World(NOW)


@pytest.fixture
def site(world: World) -> Generator[Site]:
    made = Site(copy.deepcopy(world))
    yield made
    made.close()


Open = Callable[..., Page]


@pytest.fixture
def show(browser: Browser, site: Site) -> Generator[Open]:
    """Opens a place of the page; at the end nothing may have gone wrong in it."""
    stack: list[Any] = []
    complaints: list[list[str]] = []

    def go(place: str = "", scheme: Scheme = "light", width: int = 1360) -> Page:
        context = opened(browser, site.url + place, scheme, width)
        page, wrong = context.__enter__()
        stack.append(context)
        complaints.append(wrong)
        expect(page.locator("h1")).to_be_visible()
        return page

    yield go
    for context in stack:
        context.__exit__(None, None, None)
    found = [words for wrong in complaints for words in wrong if "Failed to load resource" not in words]
    assert found == []


def picture(page: Page, name: str) -> None:
    if SCREENSHOTS:
        Path(SCREENSHOTS).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(SCREENSHOTS) / f"{name}.png", full_page=True)


def row(page: Page, name: str) -> str:
    """All that a row says, in one line."""
    return re.sub(r"\s+", " ", page.locator("tr", has=page.get_by_role("link", name=name, exact=True)).inner_text())


def tile(page: Page, name: str) -> Locator:
    """One of the figures above the fleet's table."""
    return page.locator(".tile", has=page.get_by_text(name, exact=True))


@pytest.mark.parametrize("width", [1360, 700, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_anyone_can_read_it(show: Open, scheme: Scheme, width: int):
    """No violation that axe-core knows, nothing wider than the screen: the fleet, and one Reranker with a canary."""
    source = axe()
    for place, ready in (("", ".fleet tbody tr"), ("#/search/articles", ".canvas canvas")):
        page = show(place, scheme, width)
        expect(page.locator(ready).first).to_be_visible()
        if place:
            page.get_by_text("As a table").first.click()
        assert violations(page, source) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        picture(page, f"{'reranker' if place else 'fleet'}-{scheme}-{width}")


def test_a_row_for_each_reranker(show: Open):
    page = show()
    expect(page.locator(".fleet tbody tr")).to_have_count(12)
    assert "Not serving CrashLooping" in row(page, "contracts")
    assert "100 % failed" in row(page, "contracts")
    assert OVER_BUDGET in row(page, "reviews")
    assert "Traffic 25 % of requests" in row(page, "articles")
    assert "Traffic paused" in row(page, "recommendations-for-returning-customers")
    assert "maintenance until 09:30" in row(page, "faq")
    assert "+ 2 warm pods" in row(page, "suggestions")
    expect(page.locator("#pulse")).to_contain_text("2 of 2 gateways heard · this operator leads")
    expect(page.locator("#notices li")).to_have_count(0)
    # What is not known is no number.
    assert not re.search(r"\d", row(page, "experiment").replace("NotUnderstood", ""))


def test_rows_are_filtered_and_sorted_by_keys_alone(show: Open):
    page = show()
    names = page.locator(".fleet tbody a")
    expect(names).to_have_count(12)
    for _ in range(3):  # the link past everything, the brand, the filter
        page.keyboard.press("Tab")
    page.keyboard.type("support")
    expect(names).to_have_text(["faq", "macros", "tickets"])
    page.keyboard.press("Control+A")
    page.keyboard.press("Delete")
    expect(names).to_have_count(12)
    for _ in range(2):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(names.first).to_have_text("contracts")
    expect(page.get_by_role("columnheader", name="State")).to_have_attribute("aria-sort", "ascending")
    page.keyboard.press("Enter")
    expect(names.first).to_have_text("faq")


def test_a_place_has_an_address(show: Open):
    page = show()
    page.get_by_role("link", name="articles", exact=True).click()
    expect(page).to_have_url(re.compile("#/search/articles$"))
    expect(page).to_have_title("search/articles · Rerankers")
    expect(page.locator("h1")).to_have_text("articles")
    expect(page.locator("h1")).to_be_focused()
    page.go_back()
    expect(page.locator(".fleet tbody tr")).to_have_count(12)
    page.goto(page.url.split("#")[0] + "#/search/nobody")
    expect(page.locator("main")).to_contain_text("There is no such Reranker")


def test_one_reranker(show: Open):
    page = show("#/search/articles")
    main = page.locator("main")
    expect(page.get_by_role("listitem").filter(has_text="Traffic (now)")).to_be_visible()
    expect(page.get_by_role("table", name="Checks of the canary").get_by_role("row")).to_have_count(6)
    expect(main).to_contain_text("nDCG@10 0.671 against 0.664")
    expect(page.get_by_role("img", name=re.compile("Requests in the last hour. Now: all 2"))).to_be_visible()
    expect(main).to_contain_text("since 07:00:05")
    expect(page.locator(".facts dt").get_by_text("Model asked for", exact=True)).to_be_visible()
    expect(page.locator(".history li")).to_have_count(12)
    page.get_by_role("button", name="Show all").click()
    assert page.locator(".history li").count() > 12
    table = page.locator("section.chart", has=page.get_by_role("heading", name="Latency")).locator("details")
    table.locator("summary").click()
    expect(table.locator("tbody tr")).to_have_count(60)


def test_one_that_was_taken_back(show: Open):
    page = show("#/legal/cases")
    expect(page.locator(".stages .lost")).to_have_text(re.compile("Golden"))
    expect(page.locator("main")).to_contain_text("nDCG@10 0.612 against 0.664 over 50 queries")
    picture(page, "taken-back")


@pytest.mark.parametrize("place", ["#/legal/contracts", "#/support/tickets", "#/support/macros", "#/shop/suggestions"])
def test_others(show: Open, place: str):
    page = show(place, "dark")
    expect(page.locator(".canvas canvas").first).to_be_visible()
    expect(page.locator(".facts dt").get_by_text("Model", exact=True)).to_be_visible()
    picture(page, place.rpartition("/")[2])


def test_what_is_not_understood_says_so(show: Open):
    page = show("#/lab/experiment")
    expect(page.locator("main")).to_contain_text("does not understand the object")


def test_a_gateway_that_is_not_heard_is_told_and_makes_sums_at_least_so_much(show: Open, site: Site):
    site.world.silent["10.0.0.2:9090"] = (NOW - 10, "no answer in time")
    for ago in (10, 5, 0):
        site.world.look(NOW + 15 - ago)
    site.world.now = NOW + 15
    page = show("#/search/products")
    expect(page.locator("#notices")).to_contain_text(
        "Gateway gateway-6d9c7-t8w5n is not heard since 07:59:50 (no answer in time)"
    )
    expect(page.locator(".facts")).to_contain_text("≥")
    expect(page.locator("#pulse")).to_contain_text("1 of 2 gateways heard")
    picture(page, "gateway-not-heard")
    page = show("", "dark")
    assert "≥" in row(page, "products")
    picture(page, "fleet-gateway-not-heard")


def test_without_any_gateway_nothing_is_said_of_traffic(show: Open, site: Site):
    for address in ("10.0.0.1:9090", "10.0.0.2:9090"):
        site.world.silent[address] = (NOW + 5, "Connect call failed")
    for step in range(1, 5):
        site.world.look(NOW + 5 * step)
    site.world.now = NOW + 20
    page = show()
    expect(page.locator("#notices")).to_contain_text("No gateway was heard since 08:00:00")
    assert f"4 / 4 {UNKNOWN} not known {UNKNOWN} not known" in row(page, "products")
    assert re.search("no answers|no requests", row(page, "products")) is None
    expect(tile(page, "Over budget")).to_contain_text(f"{UNKNOWN}not known")
    picture(page, "fleet-no-gateway")
    page = show("#/search/products")
    expect(page.locator("main")).to_contain_text("What was answered is not known.")
    expect(page.locator("main")).not_to_contain_text("no answers")


def test_before_anything_is_listed_no_number_is_told(show: Open, site: Site):
    site.world.synced, site.world.bodies = False, {}
    page = show()
    expect(page.locator("#notices")).to_contain_text("has not listed the cluster yet")
    for name in ("Rerankers", "Need attention", "Over budget", "Requests/s", "Waiting", "Workers"):
        expect(tile(page, name)).to_contain_text(f"{UNKNOWN}not known")
    assert re.search(r"\d|nothing is known to be wrong", page.locator(".tiles").inner_text()) is None


def test_before_anything_is_counted_nobody_is_within_budget(show: Open, site: Site):
    site.world = World(NOW, looks=1)
    page = show()
    expect(tile(page, "Rerankers")).to_contain_text("12")
    expect(tile(page, "Over budget")).to_contain_text(f"{UNKNOWN}not known")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param({"leads": False, "leader": "operator-1_8f"}, "stands by; operator-1 leads", id="stand-by"),
        pytest.param({"leads": False, "leader": ""}, "No operator leads", id="no leader"),
    ],
)
def test_who_does_not_lead_says_so(show: Open, site: Site, change: dict[str, Any], words: str):
    site.world.standing = change
    page = show()
    expect(page.locator("#notices")).to_contain_text(words)
    assert OVER_BUDGET in row(page, "reviews")
    picture(page, f"fleet-{'stand-by' if change['leader'] else 'no-leader'}")


def test_old_objects_are_called_old(show: Open, site: Site):
    site.world.listed, site.world.trouble = NOW - 600, "the watch of Pod has not shown what the last 4 lists did"
    page = show()
    expect(page.locator("#notices")).to_contain_text("last listed at 07:50:00")
    expect(page.locator("#notices")).to_contain_text("makes no progress: the watch of Pod")


def test_an_operator_that_does_not_answer_any_more(show: Open, site: Site):
    page = show()
    expect(page.locator(".fleet tbody tr")).to_have_count(12)
    height = page.locator(".fleet").bounding_box()
    site.broken = True
    expect(page.locator("#notices")).to_contain_text("The operator does not answer (status 500)")
    expect(page.locator("main")).to_have_class("stale")
    assert "search" in row(page, "products")  # what was known stays
    site.broken = False
    expect(page.locator("#notices li")).to_have_count(0)
    assert page.locator(".fleet").bounding_box() == height


def test_nothing_moves_when_it_is_renewed(show: Open, site: Site):
    page = show("#/search/articles")
    expect(page.locator(".canvas canvas").first).to_be_visible()
    page.evaluate(
        "() => { window.moved = 0; new PerformanceObserver((list) => list.getEntries().forEach((one) => {"
        " window.moved += one.value; })).observe({type: 'layout-shift'}); }"
    )
    before = page.locator("#pulse").inner_text()
    for step in range(1, 4):
        site.world.look(NOW + 5 * step)
    site.world.now = NOW + 15
    expect(page.locator("#pulse")).not_to_have_text(before)
    assert page.evaluate("window.moved") < 0.01


def test_a_thousand_rerankers(show: Open, site: Site):
    bodies, products = site.world.bodies, site.world.bodies["search", "products"]
    for number in range(1000):
        key = ("many", f"reranker-{number:04d}")
        bodies[key] = {**products, "metadata": {**products["metadata"], "namespace": key[0], "name": key[1]}}
    page = show()
    expect(page.locator(".fleet tbody tr")).to_have_count(1012)
    page.get_by_label("Filter by name").fill("reranker-0999")
    expect(page.locator(".fleet tbody tr")).to_have_count(1)
