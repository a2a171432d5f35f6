"""The operator's page on a genuine cluster, in a real browser: a Reranker under load, and a canary going on.

With RERANK_WRITE_DOCS=1 it takes its time, so that charts have something to show, and writes docs/images.
"""

import os
import re
import time
from collections.abc import Generator, Iterator
from typing import Any

import pytest
from demo.demo import provide_model
from harness.canaries import NAME, ROLLOUT, Trial, begin_anew, golden_set, shop, under_load
from harness.chromium import Scheme, axe, chromium, opened, violations
from harness.cluster import ROOT, VENV_BIN, Cluster, run, wait_for
from harness.release import Release, is_ready, reranker, wait_settled
from playwright.sync_api import Browser, Page, expect

WRITE_DOCS = bool(os.environ.get("RERANK_WRITE_DOCS"))
IMAGES = ROOT / "docs" / "images"
LARGEST_IMAGE = 200_000
"""Bytes."""
PAGE_PORT = 8081
NEARLY_RATE = re.compile(r"^[5-7](\.\d+)?\b")
SCHEMES: tuple[Scheme, ...] = ("light", "dark")
RATE = 6.0
"""Requests a second: what two workers on two cores surely answer, whatever else the machine does."""
SPEC: dict[str, Any] = {
    "rollout": {**ROLLOUT, "stepDuration": "1h"},  # it stays where it can be looked at until a person promotes it
    "slo": {"latency": {"threshold": "500ms"}},
}

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.local_only,  # pods are asked at their own addresses
]


@pytest.fixture(scope="module")
def browser() -> Generator[Browser]:
    with chromium() as made:
        yield made


@pytest.fixture(scope="module")
def pages(release: Release) -> tuple[str, str]:
    """Where the page of the operator that leads is, and of one that stands by."""

    def found() -> tuple[str, str] | None:
        ready = [pod for pod in release.pods("operator") if is_ready(pod)]
        leader = release.leader().rpartition("_")[0]
        leads = [url(pod) for pod in ready if pod["metadata"]["name"] == leader]
        others = [url(pod) for pod in ready if pod["metadata"]["name"] != leader]
        return (leads[0], others[0]) if leads and others else None

    def url(pod: dict[str, Any]) -> str:
        return f"http://{pod['status']['podIP']}:{PAGE_PORT}/"

    return wait_for("two operators of which one leads", found, timeout=90)


@pytest.fixture(scope="module")
def uri(kube: Cluster, test_namespace: str) -> str:
    """The demo's model on a volume, so that no folder of this machine is on pictures."""
    kube.kubectl("delete", "persistentvolume", f"demo-models-{test_namespace}", "--ignore-not-found", "--timeout=60s")
    provide_model(kube, test_namespace)
    return "pvc://demo-models/demo-reranker"


@pytest.fixture(scope="module")
def trial(kube: Cluster, release: Release, test_namespace: str, uri: str) -> Iterator[Trial]:
    """A Reranker under load beside one at zero, one that is suspended and one whose model is not there."""
    kube.apply(golden_set(test_namespace))
    begin_anew(kube, shop(test_namespace, uri, **SPEC))
    kube.apply(
        reranker("archive", test_namespace, uri, scaling={"minReplicas": 0, "idleTimeout": "10s"}),
        reranker("drafts", test_namespace, uri, suspend=True),
        reranker("reviews", test_namespace, "file:///no/such/model", replicas=1),
    )
    with under_load(kube, release, test_namespace, rate=RATE) as made:
        yield made


def number(text: str | None) -> float:
    """The first number in ``text``."""
    found = re.search(r"\d[\d,]*\.?\d*", text or "")
    assert found is not None, text
    return float(found[0].replace(",", ""))


def line(page: Page, name: str) -> str:
    """All that the fleet's row of ``name`` says, in one line."""
    return re.sub(r"\s+", " ", page.locator("tr", has=page.get_by_role("link", name=name, exact=True)).inner_text())


def counts_every_request_once(page: Page, trial: Trial) -> None:
    """The objective's counts since the Reranker is known are those of the load, and what failed is bad."""
    sent, failed = len(trial.load.report.outcomes), len(trial.load.report.failed)
    counts = page.get_by_role("region", name="Availability").get_by_role("row", name=re.compile("^since")).locator("td")
    wait_for("all to be counted", lambda: number(counts.nth(2).inner_text()) >= sent, timeout=60)
    # On their way, and between two looks.
    assert number(counts.nth(2).inner_text()) <= len(trial.load.report.outcomes) + 10 * RATE
    assert failed <= number(counts.nth(1).inner_text()) <= len(trial.load.report.failed) + 10 * RATE


def picture(page: Page, name: str, scheme: Scheme, first: str, last: str) -> None:
    """docs/images/page-<name>-<scheme>.png: from the top of what ``first`` selects to the end of what ``last`` does."""
    if not WRITE_DOCS:
        return
    top, end = page.locator(first).first.bounding_box(), page.locator(last).last.bounding_box()
    width = page.viewport_size
    assert top is not None
    assert end is not None
    assert width is not None
    start = max(0.0, top["y"] - 12)
    clip = {"x": 0, "y": start, "width": width["width"], "height": end["y"] + end["height"] + 16 - start}
    IMAGES.mkdir(exist_ok=True)
    path = IMAGES / f"page-{name}-{scheme}.png"
    page.screenshot(path=path, full_page=True, clip=clip)  # ty: ignore[invalid-argument-type]
    assert path.stat().st_size < LARGEST_IMAGE, path.name


def test_the_fleet_and_a_reranker_under_load(
    browser: Browser, pages: tuple[str, str], trial: Trial, test_namespace: str
):
    source, (leads, _) = axe(), pages
    if WRITE_DOCS:
        began = time.monotonic()
        wait_for("minutes to show", lambda: time.monotonic() - began > 60, timeout=90)
    for scheme in SCHEMES:
        with opened(browser, leads, scheme, 1180) as (page, wrong):
            expect(page.locator("#pulse")).to_contain_text("2 of 2 gateways heard · this operator leads")
            expect(page.locator(".fleet tbody tr", has_text=test_namespace)).to_have_count(4)
            row = page.locator("tr", has=page.get_by_role("link", name=NAME, exact=True))
            # What the page counts is what the load sends: an open loop, at a steady rate.
            rate = row.locator('td[data-label="Requests/s"]')
            expect(rate).to_contain_text(NEARLY_RATE)
            expect(row.locator('td[data-label="Latency"]')).to_contain_text(re.compile(r"\d m?s"))
            expect(row.locator('td[data-label="Budget burn"]')).to_contain_text(re.compile(r"\d×"))  # noqa: RUF001
            expect(page.locator("tbody")).to_contain_text("At zero")
            assert "Suspended" in line(page, "drafts")
            assert "Not serving" in line(page, "reviews")
            assert violations(page, source) == []
            picture(page, "fleet", scheme, "body", ".fleet")
            page.get_by_role("link", name=NAME, exact=True).click()
            expect(page.get_by_role("img", name=re.compile("Requests in the last hour. Now: all \\d"))).to_be_visible()
            counts_every_request_once(page, trial)
            expect(page.locator(".history li").first).to_be_visible()
            assert violations(page, source) == []
            picture(page, "reranker", scheme, "body", ".chart")
            assert wrong == []


def test_one_that_stands_by_tells_the_same_and_says_so(
    browser: Browser, pages: tuple[str, str], trial: Trial, release: Release, test_namespace: str
):
    with opened(browser, pages[1]) as (page, wrong):
        expect(page.locator("#notices")).to_contain_text(f"stands by; {release.leader().rpartition('_')[0]} leads")
        expect(page.locator(".fleet tbody tr", has_text=test_namespace)).to_have_count(4)
        rate = page.locator("tr", has=page.get_by_role("link", name=NAME, exact=True)).locator(
            '[data-label="Requests/s"]'
        )
        expect(rate).to_contain_text(NEARLY_RATE)
        assert wrong == []


def test_a_canary_from_its_first_worker_to_its_promotion(
    browser: Browser, pages: tuple[str, str], trial: Trial, test_namespace: str, uri: str, kube: Cluster
):
    source, place = axe(), f"#/{test_namespace}/{NAME}"
    trial.apply(shop(test_namespace, uri, **SPEC, batching={"lengthBucket": 32}))
    with opened(browser, pages[0] + place, "light", 1180) as (page, wrong):
        canary = trial.at("Traffic").rollout["revision"]
        expect(page.locator(".stages li.now")).to_contain_text("Traffic")
        checks = page.get_by_role("table", name="Checks of the canary")
        for check in ("load", "golden", "mirror"):
            expect(checks.get_by_role("row", name=re.compile(f"^{check}"))).to_contain_text("pass")
        revisions = page.get_by_role("table", name="Revisions")
        expect(revisions.get_by_role("row", name=re.compile(canary))).to_contain_text("canary")
        expect(revisions.get_by_role("row", name=re.compile(canary))).to_contain_text(re.compile(r"\d m?s"))
        # A share that users meet, in what gateways count.
        assert (
            0 < number(revisions.get_by_role("row", name=re.compile(canary)).locator("td").nth(2).inner_text()) < RATE
        )
        if WRITE_DOCS:
            began = time.monotonic()
            wait_for("figures of the canary", lambda: time.monotonic() - began > 20, timeout=40)
        for scheme in SCHEMES:
            page.emulate_media(color_scheme=scheme)
            assert violations(page, source) == []
            picture(page, "canary", scheme, 'section[aria-label="Canary"]', 'section[aria-label^="Revisions"]')
        run(VENV_BIN / "kubectl-rerank", "promote", NAME, "-n", test_namespace, "--force", env=kube.environment)
        assert trial.decided().rollout["phase"] == "Promoted"
        expect(page.locator(".stages li.done")).to_have_count(5)
        page.get_by_role("button", name="Show all").click()
        for phase in ("Starting", "Golden", "Mirror", "Traffic", "CanaryStep", "GatePassed"):
            expect(page.locator(".history strong", has_text=re.compile(f"^{phase}$")).first).to_be_visible()
        expect(page.locator(".history")).to_contain_text(re.compile("Promoted|Promoting"))
        wait_settled(kube, NAME, test_namespace)
        expect(page.locator(".facts")).to_contain_text(canary)
        assert wrong == []
