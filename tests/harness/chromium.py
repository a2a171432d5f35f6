"""A real browser for tests of the operator's page: the distribution's Chromium, driven by Playwright, and axe-core.

Both are of others: where one cannot be had, the tests that need it are skipped and say why.
"""

import contextlib
import shutil
import subprocess
import tarfile
from collections.abc import Generator
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from harness.cluster import BIN, ROOT, STATE

AXE_VERSION = "4.14.1"
SECONDS = 60.0
"""For a browser to start, or a page to show what is waited for, on a busy machine."""
_FLAGS = (
    "--no-sandbox",  # tests may run as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
Scheme = Literal["light", "dark"]


def executable() -> Path:
    """Chromium of PATH, or the one that ``make setup`` unpacked. Skips the test where there is neither."""
    own = BIN / "chromium"
    found = str(own) if own.exists() else shutil.which("chromium")
    if found is None:
        pytest.skip("no Chromium: tests/harness/get_chromium fetches it where apt-get has one")
    return Path(found)


@contextlib.contextmanager
def chromium() -> Generator[Browser]:
    """A browser of its own, without a window."""
    path = executable()
    expect.set_options(timeout=SECONDS * 1000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(_FLAGS), timeout=SECONDS * 1000)
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def opened(
    browser: Browser, url: str, scheme: Scheme = "light", width: int = 1360, height: int = 900
) -> Generator[tuple[Page, list[str]]]:
    """The page at ``url``, and everything that went wrong in it (its console's errors), which grows meanwhile."""
    context = browser.new_context(
        color_scheme=scheme, viewport={"width": width, "height": height}, reduced_motion="reduce", timezone_id="UTC"
    )
    context.set_default_timeout(SECONDS * 1000)
    wrong: list[str] = []
    try:
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        page.goto(url)
        yield page, wrong
    finally:
        context.close()


def axe() -> str:
    """The source of axe-core, fetched once into .state. Skips the test where npm cannot be asked."""
    folder = STATE / "axe-core"
    source = folder / f"axe-{AXE_VERSION}.min.js"
    if not source.exists():
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip("no npm: axe-core is fetched with it")
        folder.mkdir(parents=True, exist_ok=True)
        command = [npm, "pack", "--silent", f"axe-core@{AXE_VERSION}", "--pack-destination", str(folder)]
        try:
            packed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            pytest.skip("axe-core could not be fetched: npm did not answer in time")
        if packed.returncode:
            pytest.skip(f"axe-core could not be fetched: {packed.stderr.strip()[-200:]}")
        with tarfile.open(folder / f"axe-core-{AXE_VERSION}.tgz") as archive:
            member = archive.extractfile("package/axe.min.js")
            assert member is not None
            source.write_bytes(member.read())
    return source.read_text()


def violations(page: Page, source: str) -> list[dict[str, Any]]:
    """What axe-core finds on ``page`` as it is, but for what is of little weight: rule, weight and places."""
    page.evaluate(source)  # the browser's debugger is not bound by the page's Content-Security-Policy
    found = page.evaluate("() => axe.run(document, {resultTypes: ['violations']})")
    return [
        {"rule": one["id"], "impact": one["impact"], "where": [node["html"][:200] for node in one["nodes"]][:5]}
        for one in found["violations"]
        if one["impact"] in ("moderate", "serious", "critical")
    ]
