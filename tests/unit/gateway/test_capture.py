"""Texts of requests in the log: only where they are asked for, redacted, few, and never in an answer's way."""

import asyncio
import json
import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web
from rerank_api import wire
from rerank_api.answers import Mirrored
from rerank_api.reranker import parse_reranker
from rerank_gateway import capture, logs
from rerank_gateway.body import HeldBytes
from rerank_gateway.capture import DECIMALS, MOST_DOCUMENTS, WORST, Capture, difference
from rerank_gateway.cluster.state import (
    CachePolicy,
    CapturePolicy,
    MirrorPolicy,
    Policy,
    Route,
    build_table,
    parse_policy,
)
from rerank_gateway.metrics import Metrics
from rerank_gateway.protocol.common import RerankQuery
from rerank_gateway.record import Record
from rerank_kubectl import samples

from .conftest import House, Worker, scores, until, worker_error

ALL = CapturePolicy(100.0, 600, 500)
COUNTED = "rerank_gateway_captured_requests_total"
MANIFEST = {"metadata": {"namespace": "search", "name": "products"}, "spec": {"model": {"uri": "file:///m"}}}


@pytest.fixture
def written(caplog: pytest.LogCaptureFixture) -> Callable[[], list[dict[str, Any]]]:
    """What stands in the log, as it stands there."""
    caplog.set_level(logging.INFO)

    def lines() -> list[dict[str, Any]]:
        own = [record for record in caplog.records if record.name == capture.__name__]
        return [json.loads(logs.JsonFormatter().format(record)) for record in own]

    return lines


@pytest.mark.parametrize(
    ("given", "policy"),
    [
        (None, None),
        ({}, CapturePolicy(1.0, 10, 500)),
        ({"percent": 0.5, "maxPerMinute": 3, "maxCharacters": 16}, CapturePolicy(0.5, 3, 16)),
        ({"percent": 0}, None),
    ],
)
def test_the_spec_says_what_is_captured(given: dict[str, Any] | None, policy: CapturePolicy | None) -> None:
    spec = {**MANIFEST["spec"], **({"observability": {"capture": given}} if given is not None else {})}
    assert parse_policy(json.dumps({**MANIFEST, "spec": spec}).encode()).capture == policy


async def test_a_line_has_the_request_redacted_and_what_was_answered(
    house: House, written: Callable[[], list[dict[str, Any]]]
) -> None:
    house.serve(await house.worker(), capture=replace(ALL, max_characters=30))
    documents = ["of john@example.com", "call 0171 1234567", "x y " * 1000]
    body = {"query": "who is john@example.com?", "documents": documents}
    assert (await house.post(body, headers={wire.HEADER_REQUEST_ID: "id-1"}))[0] == 200
    await until(lambda: bool(written()), "the line")
    (line,) = written()
    del line["time"]
    assert line == {
        "level": "info",
        "logger": "rerank_gateway.capture",
        "message": "captured",
        "id": "id-1",
        "trace_id": "",
        "namespace": "search",
        "reranker": "products",
        "revision": "one",
        "reason": "sampled",
        "query": "who is [email]",
        "documents": ["of [email]", "call [phone]", ("x y " * 8)[:30]],
        "scores": [0.019, 0.017, 4.0],
    }
    assert await house.metric(COUNTED, 'result="captured"', 'reranker="products"') == 1


async def test_the_command_reads_the_lines(house: House, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    house.serve(await house.worker(), capture=ALL)
    assert (await house.rerank("a", "bb"))[0] == 200
    found: list[samples.Line] = []

    def read() -> bool:
        lines = [logs.JsonFormatter().format(record) for record in caplog.records]
        found[:] = samples.read({"rerank/gateway": lines}, parse_reranker(MANIFEST), disagreements=False)
        return bool(found)

    await until(read, "the line")
    (line,) = found
    assert (line.sample.query, line.sample.documents, line.sample.scores) == ("q", ["a", "bb"], [0.001, 0.002])


async def test_of_many_documents_the_first_ones_and_all_scores(
    house: House, written: Callable[[], list[dict[str, Any]]]
) -> None:
    house.serve(await house.worker(), capture=ALL)
    assert (await house.rerank(*["word"] * 50))[0] == 200
    await until(lambda: bool(written()), "the line")
    (line,) = written()
    assert (len(line["documents"]), len(line["scores"])) == (MOST_DOCUMENTS, 50)


@pytest.mark.parametrize("policy", [None, CapturePolicy(1e-9, 600, 500)])
async def test_without_it_no_text_is_kept_or_written(
    house: House, written: Callable[[], list[dict[str, Any]]], policy: CapturePolicy | None
) -> None:
    gate = asyncio.Event()

    async def held(worker: Worker, query: object) -> None:
        await gate.wait()

    worker = await house.worker(behave=held)
    house.serve(worker, capture=policy)
    asked = house.rerank("a", "bb")
    await until(lambda: bool(worker.seen), "the request")
    payload = len(json.dumps({"query": "q", "documents": ["a", "bb"]}))
    assert await house.metric("rerank_gateway_held_bytes") <= 2 * payload + 20
    gate.set()
    assert (await asked)[0] == 200
    await house.gateway._capture.close()
    assert written() == []
    assert await house.metric(COUNTED) == 0


async def test_the_id_decides_and_about_as_many_as_asked_for(
    house: House, written: Callable[[], list[dict[str, Any]]]
) -> None:
    house.serve(await house.worker(), capture=replace(ALL, percent=30.0))

    async def ids(first: int) -> list[str]:
        for index in range(100):
            assert (await house.rerank(headers={wire.HEADER_REQUEST_ID: f"id-{index}"}))[0] == 200
        count = int(await house.metric(COUNTED, 'result="captured"'))
        await until(lambda: len(written()) == count, "all lines")
        return [line["id"] for line in written()[first:]]

    chosen = await ids(0)
    assert 15 <= len(chosen) <= 45
    assert await ids(len(chosen)) == chosen


async def test_what_fails_is_not_captured_and_what_is_cached_is(
    house: House, written: Callable[[], list[dict[str, Any]]]
) -> None:
    async def refuses(worker: Worker, query: wire.ScoreRequest) -> web.Response | None:
        return worker_error(422, "too_long") if query.query == "bad" else None

    house.serve(await house.worker(behave=refuses), capture=ALL, cache=CachePolicy(2**20, 600.0))
    assert (await house.post({"query": "bad", "documents": ["a"]}))[0] == 422
    for _ in range(2):
        assert (await house.rerank("a"))[0] == 200
    await until(lambda: len(written()) == 2, "both lines")
    assert [(line["query"], line["scores"]) for line in written()] == [("q", [0.001])] * 2
    assert await house.metric(COUNTED) == 2


class Bench:
    """A Capture by itself, and a clock that the test sets."""

    def __init__(self, **policy: Any) -> None:
        self.now = 0.0
        self.metrics = Metrics(lambda: self.now)
        self.capture = Capture(self.metrics, lambda: self.now)
        self.policy = Policy("search", "products", capture=replace(ALL, **policy))
        self.update(self.policy)

    def update(self, *policies: Policy) -> None:
        self.table = build_table(policies, [])
        self.capture.update(self.table)

    @property
    def route(self) -> Route:
        return self.table.routes["search", "products"]

    def ask(self, request_id: str = "id") -> capture.Excerpt | None:
        record = Record(request_id, namespace="search", reranker="products", revision="stable")
        with HeldBytes(2**20).lease() as lease:
            return self.capture.excerpt(self.route, RerankQuery("q", ["a", "b"]), record, lease)

    def count(self, result: str) -> float:
        labels = {"namespace": "search", "reranker": "products", "result": result}
        return self.metrics.snapshot().get_sample_value(COUNTED, labels) or 0.0


async def test_no_minute_has_more_than_asked_for(written: Callable[[], list[dict[str, Any]]]) -> None:
    bench = Bench(max_per_minute=3)
    taken: list[float] = []
    while bench.now < 200:
        before = bench.count("captured")
        bench.capture.answered(bench.ask(), [0.5, 0.5])
        taken += [bench.now] * int(bench.count("captured") - before)
        bench.now += 7.0
    for end in taken:
        assert len([moment for moment in taken if end - 60 < moment <= end]) <= 3
    assert taken[:3] == [0.0, 7.0, 14.0]
    assert len(taken) >= 9
    assert bench.count("limited") == 29 - len(taken)
    await bench.capture.close()
    assert len(written()) == len(taken)


async def test_it_ends_at_once_where_it_is_switched_off(written: Callable[[], list[dict[str, Any]]]) -> None:
    bench = Bench()
    excerpt = bench.ask()
    assert excerpt is not None
    bench.update(replace(bench.policy, capture=None))
    bench.capture.answered(excerpt, [0.5, 0.5])
    assert bench.ask() is None
    bench.update()
    bench.capture.answered(excerpt, [0.5, 0.5])
    await bench.capture.close()
    assert written() == []


async def test_where_the_memory_for_requests_is_used_up_it_is_left_out() -> None:
    bench = Bench()
    held = HeldBytes(10)
    with held.lease() as lease:
        lease.grow(9)
        query = RerankQuery("q", ["a", "b"])
        assert bench.capture.excerpt(bench.route, query, Record("id"), lease) is None
        assert held.held == 9
    assert bench.count("limited") == 1
    await bench.capture.close()


async def test_texts_that_the_thread_has_no_time_for_are_left_out(
    monkeypatch: pytest.MonkeyPatch, written: Callable[[], list[dict[str, Any]]]
) -> None:
    gate = threading.Event()
    real = capture.redact_beginning

    def slow(text: str, characters: int) -> str:
        assert gate.wait(10)
        return real(text, characters)

    monkeypatch.setattr(capture, "redact_beginning", slow)
    bench = Bench()
    for _ in range(capture.MOST_PENDING + 5):
        bench.capture.answered(bench.ask(), [0.5, 0.5])
    assert (bench.count("captured"), bench.count("limited")) == (capture.MOST_PENDING, 5)
    gate.set()
    await until(lambda: len(written()) == capture.MOST_PENDING, "those that were taken")
    bench.capture.answered(bench.ask(), [0.5, 0.5])
    await bench.capture.close()
    assert len(written()) == capture.MOST_PENDING + 1


async def test_an_answer_does_not_wait_for_the_thread(
    house: House, monkeypatch: pytest.MonkeyPatch, written: Callable[[], list[dict[str, Any]]]
) -> None:
    gate = threading.Event()

    def slow(text: str, characters: int) -> str:
        assert gate.wait(10)
        return text

    monkeypatch.setattr(capture, "redact_beginning", slow)
    house.serve(await house.worker(), capture=ALL)
    assert (await house.rerank())[0] == 200
    assert written() == []
    gate.set()
    await until(lambda: len(written()) == 1, "the line")


@pytest.mark.parametrize(
    ("agreement", "drift", "differs"),
    [
        (1.0, 0.0, None),
        (1.0, 0.009, None),
        (1.0000000000000002, 0.0, None),
        (None, 0.0, None),
        (None, None, None),
        (1.0, 0.5, (0.0, 0.5)),
        (None, 0.5, (0.0, 0.5)),
        (0.75, 0.001, (0.25, 0.001)),
        (-1.0, 1.0, (2.0, 1.0)),
    ],
)
def test_how_differently_a_canary_answers(
    agreement: float | None, drift: float | None, differs: tuple[float, float] | None
) -> None:
    assert difference(Mirrored(1.0, 1.0, agreement=agreement, drift=drift)) == differs


async def test_a_canarys_worst_are_written_until_there_are_worse(
    written: Callable[[], list[dict[str, Any]]],
) -> None:
    bench = Bench(percent=1e-9)
    policy = replace(bench.policy, mirror=MirrorPolicy("canary", "stable", 100))
    bench.update(policy)

    def mirrored(agreement: float, canary: str = "canary") -> None:
        found = Mirrored(0.1, 0.1, agreement=agreement, drift=0.2, request_id="id")
        bench.capture.compared(bench.ask(), canary, [0.9, 0.1], [0.1, 0.9], found)

    for place in range(100):
        mirrored(0.5 + place / 1000)  # the first are the worst
    await until(lambda: len(written()) == WORST, "the first ones")
    mirrored(0.4)
    mirrored(0.9)
    mirrored(1.0, "another")
    mirrored(0.9, "another")
    bench.update(replace(policy, capture=None))
    mirrored(-1.0)
    await bench.capture.close()
    found = [(line["canary"], line["agreement"]) for line in written()[WORST:]]
    assert found == [("canary", 0.4), ("another", 1.0), ("another", 0.9)]
    assert written()[0] | {"time": ""} == {
        "time": "",
        "level": "info",
        "logger": "rerank_gateway.capture",
        "message": "captured",
        "id": "id",
        "trace_id": "",
        "namespace": "search",
        "reranker": "products",
        "revision": "stable",
        "reason": "canary_disagreement",
        "scores": [0.9, 0.1],
        "canary": "canary",
        "canary_scores": [0.1, 0.9],
        "agreement": 0.5,
        "drift": 0.2,
        "query": "q",
        "documents": ["a", "b"],
    }


@pytest.mark.parametrize(("most", "sampled"), [(1, 1), (5, 3), (30, 15)])
async def test_samples_leave_room_for_what_a_canary_ranks_otherwise(
    most: int, sampled: int, written: Callable[[], list[dict[str, Any]]]
) -> None:
    """With percent 100 they took all of every minute, and not one disagreement was written."""
    bench = Bench(max_per_minute=most)
    bench.update(replace(bench.policy, mirror=MirrorPolicy("canary", "stable", 100)))
    for _ in range(40):
        bench.capture.answered(bench.ask(), [0.9, 0.1])
    for place in range(40):
        found = Mirrored(0.1, 0.1, agreement=-place / 100, drift=0.2, request_id="id")
        bench.capture.compared(bench.ask(), "canary", [0.9, 0.1], [0.1, 0.9], found)
    await bench.capture.close()
    reasons = [line["reason"] for line in written()]
    assert reasons == ["sampled"] * sampled + ["canary_disagreement"] * (most - sampled)


async def test_a_mirrored_request_that_a_canary_ranks_otherwise_is_written(
    house: House, written: Callable[[], list[dict[str, Any]]]
) -> None:
    async def other_way_round(worker: Worker, query: wire.ScoreRequest) -> web.Response:
        return scores([-len(document) / 3 for document in query.documents])

    stable, canary = await house.worker("stable"), await house.worker("canary", other_way_round)
    policy = {"traffic": (("stable", 100), ("canary", 0)), "mirror": MirrorPolicy("canary", "stable", 100)}
    house.serve(stable, canary, **policy)
    assert (await house.rerank())[0] == 200
    await house.until_metric("rerank_gateway_mirrored_requests_total", 1, 'result="ok"')
    assert written() == [], "capture is off"

    house.serve(stable, canary, **policy, capture=CapturePolicy(1e-9, 10, 500))
    assert (await house.rerank("a", "bb", headers={wire.HEADER_REQUEST_ID: "id-2"}))[0] == 200
    await until(lambda: bool(written()), "the line")
    (line,) = written()
    assert (line["id"], line["reason"], line["revision"], line["canary"]) == (
        "id-2", "canary_disagreement", "stable", "canary",
    )  # fmt: skip
    assert line["scores"] == [0.001, 0.002]
    assert line["canary_scores"] == [round(-1 / 3, DECIMALS), round(-2 / 3, DECIMALS)]
    assert await house.metric("rerank_gateway_held_bytes") == 0
