"""The page over HTTP: what may be asked, by whom, how often; what its answers forbid a browser; what is vendored."""

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
from aiohttp import ClientSession, web
from rerank_operator.controller.kinds import Key
from rerank_operator.page import app
from rerank_operator.page.app import MOST_HELD, MOST_REQUESTS, application, is_own_name

STATIC = Path(app.__file__).parent / "static"
UPLOT = {
    "uPlot.esm.js": "5dd9b3281aa64b461b42d9945f6adb2649d346502b12281a9ae0d46599a80eba",
    "uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
    "LICENSE": "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
}
"""sha256 of what the npm package uplot 1.6.32 holds."""


class Told:
    """Answers that the test holds back, and how often they were made."""

    def __init__(self) -> None:
        self.asked: list[Key | None] = []
        self.go = asyncio.Event()
        self.go.set()
        self.failure: Exception | None = None

    async def fleet(self) -> bytes:
        return await self._answer(None) or b""

    async def reranker(self, key: Key) -> bytes | None:
        return None if key[1] == "nobody" else await self._answer(key)

    async def _answer(self, key: Key | None) -> bytes:
        self.asked.append(key)
        await self.go.wait()
        if self.failure is not None:
            raise self.failure
        return b'{"rerankers":[]}'


class Site:
    def __init__(self, told: Told, url: str, session: ClientSession) -> None:
        self.told = told
        self.url = url
        self.session = session
        self.now = 0.0

    async def get(self, path: str, method: str = "GET", **headers: str) -> tuple[int, Mapping[str, str], bytes]:
        async with self.session.request(method, self.url + path, headers=headers) as answer:
            return answer.status, answer.headers, await answer.read()


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    told, made = Told(), list[Site]()
    runner = web.AppRunner(application(told, lambda: made[0].now), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    async with ClientSession() as session:
        made.append(Site(told, f"http://127.0.0.1:{runner.addresses[0][1]}", session))
        yield made[0]
    told.go.set()
    await runner.cleanup()


async def test_the_page_and_every_file_that_it_names(site: Site):
    status, headers, text = await site.get("/")
    assert status == 200
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    named = re.findall(rb'(?:href|src)="(static/[^"]+)"', text)
    assert len(named) == 4
    modules = {f"static/{path.name}" for path in STATIC.glob("*.js")} | {"static/vendor/uplot/uPlot.esm.js"}
    for path in sorted({one.decode() for one in named} | modules):
        status, headers, _ = await site.get(f"/{path}")
        assert status == 200, path
        kind = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}[path.rpartition(".")[2]]
        assert headers["Content-Type"].startswith(kind)
        again, _, body = await site.get(f"/{path}", **{"If-None-Match": headers["ETag"]})
        assert (again, body) == (304, b"")


def test_no_script_or_style_stands_in_the_page():
    text = (STATIC / "index.html").read_text()
    assert re.findall(r"<script(?![^>]*\bsrc=)", text) == []
    assert re.findall(r"<style|\sstyle=|\son\w+=|javascript:", text) == []
    for module in STATIC.glob("*.js"):
        assert (
            re.findall(r"innerHTML|insertAdjacentHTML|document\.write|eval\(|cookie|localStorage", module.read_text())
            == []
        )


@pytest.mark.parametrize(
    "path", ["/", "/static/main.js", "/api/fleet", "/api/rerankers/a/b", "/api/rerankers/a/nobody", "/nothing"]
)
async def test_what_a_browser_is_forbidden(site: Site, path: str):
    _, headers, _ = await site.get(path)
    policy = dict(part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert "Set-Cookie" not in headers
    assert headers["Cache-Control"] == ("no-cache" if path in ("/", "/static/main.js") else "no-store")


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("path", ["/", "/api/fleet", "/api/rerankers/a/b"])
async def test_nothing_but_get(site: Site, method: str, path: str):
    status, _, _ = await site.get(path, method)
    assert status == 405
    assert site.told.asked == []


@pytest.mark.parametrize(
    "path", ["/static/../app.py", "/static/%2e%2e/app.py", "/static/vendor/uplot/LICENSE", "/static/", "/app.py"]
)
async def test_no_other_file(site: Site, path: str):
    assert (await site.get(path))[0] == 404


async def test_who_is_not_there(site: Site):
    status, headers, text = await site.get("/api/rerankers/a/nobody")
    assert (status, headers["Content-Type"]) == (404, "application/json")
    assert text == b'{"error":"there is no such Reranker"}'


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("127.0.0.1:8081", True),
        ("10.0.0.7", True),
        ("[::1]:8081", True),
        ("[fd00::7]", True),
        ("localhost:8081", True),
        ("page.localhost", True),
        ("rerank-operator-page", True),
        ("rerank-operator-page.rerank-system.svc:80", True),
        ("rerank-operator-page.rerank-system.svc.cluster.local.", True),
        ("evil.example:8081", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False),
        ("", False),
    ],
)
def test_whose_names_it_answers_to(host: str, own: bool):
    assert is_own_name(host) is own


async def test_another_sites_name_is_turned_away(site: Site):
    assert (await site.get("/api/fleet", Host="evil.example:8081"))[0] == 421
    assert site.told.asked == []


async def test_an_answer_is_made_once_and_kept_for_a_moment(site: Site):
    site.told.go.clear()
    asking = [asyncio.create_task(site.get("/api/fleet")) for _ in range(5)]
    while not site.told.asked:  # noqa: ASYNC110 (the thing waited for has no event)
        await asyncio.sleep(0.01)
    site.told.go.set()
    assert [status for status, _, _ in await asyncio.gather(*asking)] == [200] * 5
    await site.get("/api/fleet")
    assert site.told.asked == [None]
    await site.get("/api/rerankers/a/b")
    assert site.told.asked == [None, ("a", "b")]
    site.now += 1.0
    await site.get("/api/fleet")
    assert site.told.asked == [None, ("a", "b"), None]


async def test_a_failure_is_not_kept(site: Site):
    site.told.failure = RuntimeError("broken")
    assert (await site.get("/api/fleet"))[0] == 500
    site.told.failure = None
    assert (await site.get("/api/fleet"))[0] == 200


async def test_only_so_many_at_a_time(site: Site):
    site.told.go.clear()
    asking = [asyncio.create_task(site.get(f"/api/rerankers/a/{number}")) for number in range(MOST_REQUESTS)]
    while len(site.told.asked) < MOST_REQUESTS:  # noqa: ASYNC110 (as above)
        await asyncio.sleep(0.01)
    status, headers, _ = await site.get("/")
    assert (status, headers["Retry-After"]) == (503, "1")
    site.told.go.set()
    assert {status for status, _, _ in await asyncio.gather(*asking)} == {200}
    assert (await site.get("/"))[0] == 200


async def test_few_answers_are_kept(site: Site):
    for number in range(2 * MOST_HELD):
        await site.get(f"/api/rerankers/a/{number}")
    await site.get("/api/rerankers/a/0")
    assert len(site.told.asked) == 2 * MOST_HELD + 1
    await site.get(f"/api/rerankers/a/{2 * MOST_HELD - 1}")
    assert len(site.told.asked) == 2 * MOST_HELD + 1


def test_the_chart_library_is_as_it_was_published():
    folder = STATIC / "vendor" / "uplot"
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    assert found == UPLOT
    assert "MIT License" in (folder / "LICENSE").read_text()
