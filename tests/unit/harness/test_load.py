"""The open-loop load against a real server: on time, once each, recorded whatever comes of it."""

import asyncio
import json
import threading
from collections.abc import Iterator

import pytest
from aiohttp import web
from harness.cluster import wait_for
from harness.load import Call, Replay


class Recorder:
    """Answers 200 with a revision; 429 to low priority; holds what asks for 60 tokens until released."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []
        self.url = ""
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def start(self) -> None:
        self._thread.start()
        assert self._started.wait(10)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _serve(self) -> None:
        app = web.Application()
        app.router.add_post("/v2/rerank", self._answer)
        runner = web.AppRunner(app, access_log=None)
        self._loop.run_until_complete(runner.setup())
        self._loop.run_until_complete(web.TCPSite(runner, "127.0.0.1", 0).start())
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._started.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    async def _answer(self, request: web.Request) -> web.Response:
        body = json.loads(await request.read())
        priority = request.headers.get("X-Rerank-Priority", "normal")
        self.seen.append((priority, sum(len(text.split()) + 8 for text in body["documents"])))
        if priority == "low":
            return web.json_response({"message": "later"}, status=429, headers={"Retry-After": "1"})
        return web.json_response({}, headers={"X-Rerank-Revision": "r1"})


@pytest.fixture
def server() -> Iterator[Recorder]:
    made = Recorder()
    made.start()
    yield made
    made.stop()


def test_replay_records_each_request_once(server: Recorder):
    calls = [Call(0.05, 100, "low"), Call(0.0, 200, "high"), Call(0.02, 300)]
    with Replay(lambda: [server.url], "a/b", calls) as load:
        report = load.wait()
    assert sorted(server.seen) == [("high", 200), ("low", 100), ("normal", 300)]
    by_priority = {outcome.priority: outcome for outcome in report.outcomes}
    assert {name: (one.status, one.revision, one.tokens) for name, one in by_priority.items()} == {
        "high": (200, "r1", 200),
        "normal": (200, "r1", 300),
        "low": (429, None, 100),
    }
    assert [outcome.error for outcome in report.failed] == ['{"message": "later"}']
    assert report.summary()["failed"] == 1


def test_a_gateway_that_refuses_the_connection_is_passed_over(server: Recorder):
    # Port 1 of loopback: nobody listens there.
    with Replay(lambda: ["http://127.0.0.1:1", server.url], "a/b", [Call(0, 100), Call(0, 100)]) as load:
        report = load.wait()
    assert [outcome.gateway for outcome in report.outcomes] == [server.url] * 2
    assert report.failed == []


def test_leaving_early_sends_no_more(server: Recorder):
    with Replay(lambda: [server.url], "a/b", [Call(0, 100), Call(600, 100)]) as load:
        wait_for("the first answer", lambda: load.report.outcomes, timeout=10, poll=0.01)
    assert len(server.seen) == 1


def test_nobody_to_ask_is_an_outcome():
    with Replay(list, "a/b", [Call(0, 100)]) as load:
        report = load.wait()
    assert [(outcome.status, outcome.error) for outcome in report.outcomes] == [(None, "no gateway is ready")]
