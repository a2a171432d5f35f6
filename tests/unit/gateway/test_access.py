"""Keys, the access log and the metrics' labels."""

import contextlib
import json
import logging
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from rerank_gateway import __main__ as program
from rerank_gateway import access, logs
from rerank_gateway.access import AccessLine, log_rate
from rerank_gateway.auth import ApiKeys
from rerank_gateway.cluster.state import Policy, build_table
from rerank_gateway.metrics import FORGET_AFTER, Metrics
from rerank_gateway.record import Record
from rerank_gateway.slo import Objectives

from .conftest import Worker

BODY = {"query": "q", "documents": ["a", "bb"]}


@pytest.mark.parametrize(
    ("authorization", "index"),
    [
        ("Bearer one", 0),
        ("bearer two", 1),
        ("Bearer  two ", 1),
        ("Bearer three", None),
        ("Bearer on", None),
        ("Bearer ", None),
        ("Basic one", None),
        ("one", None),
        ("", None),
        ("Bearer \udcff", None),
    ],
)
def test_keys(tmp_path: Path, authorization: str, index: int | None) -> None:
    file = tmp_path / "keys"
    file.write_text("one\n\n  two\r\n")
    assert ApiKeys(file, lambda: 0.0).find(authorization) == index


def test_keys_are_read_again_when_the_file_changes_and_a_lost_file_lets_nobody_in(tmp_path: Path) -> None:
    now = 0.0
    file = tmp_path / "keys"
    file.write_text("one\n")
    keys = ApiKeys(file, lambda: now)
    assert keys.find("Bearer one") is not None

    (tmp_path / "new").write_text("two\n")
    os.replace(tmp_path / "new", file)
    now += 2
    assert keys.find("Bearer one") is None
    assert keys.find("Bearer two") is not None

    file.unlink()
    now += 2
    assert keys.find("Bearer two") is None
    assert keys.find("Bearer ") is None
    file.write_text("two\n")
    now += 2
    assert keys.find("Bearer two") is not None


async def test_a_gateway_with_keys(open_house, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("secret\n")
    house = await open_house(api_keys_file=tmp_path / "keys")
    worker = await house.worker()
    house.serve(worker)
    async with house.client.post(house.url + "/v2/rerank", json=BODY) as response:
        assert response.status == 401
        assert response.headers["WWW-Authenticate"] == "Bearer"
        assert (await response.json())["error"]["code"] == "unauthorized"
    assert (await house.post(BODY, headers={"Authorization": "Bearer secret"}))[0] == 200
    assert "Authorization" not in worker.headers[0]
    async with house.client.get(house.url + "/v1/models") as response:
        assert response.status == 401
    async with house.client.get(house.url + "/healthz") as response:
        assert response.status == 200


async def test_the_log_tells_about_requests_but_never_what_is_in_them(house, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    async def fail(worker: Worker, query: object) -> None:
        raise RuntimeError("no")

    worker = await house.worker()
    house.serve(worker)
    headers = {"Authorization": "Bearer SECRET-KEY", "X-Request-Id": "id-1"}
    private = {"query": "PRIVATE", "documents": ["PRIVATE"]}
    await house.post({**private, "model": "products"}, headers=headers)
    await house.post({**private, "model": "PRIVATE"}, headers=headers)
    await house.post(b'{"query": "PRIVATE', headers=headers)
    await house.post(b"{}", "/PRIVATE/PRIVATE/v2/rerank", headers=headers)
    worker.behave = fail
    await house.post(private, headers=headers)

    others = [logs.JsonFormatter().format(record) for record in caplog.records]
    own = [line for line in others if json.loads(line)["logger"].startswith("rerank_gateway")]
    requests = [msgspec.to_builtins(line) for line in house.lines]
    assert not [line for line in (*own, *map(str, requests)) if "PRIVATE" in line or "SECRET" in line]
    assert [request["code"] for request in requests] == [200, 404, 400, 404, 502]
    first = requests[0]
    assert first["id"] == "id-1"
    assert (first["namespace"], first["reranker"], first["revision"]) == ("search", "products", "one")
    assert (first["documents"], first["tokens"], first["attempts"], first["route"]) == (1, 10, 1, "/v2/rerank")
    assert requests[3]["route"] == "/{namespace}/{name}/v2/rerank"


@pytest.mark.parametrize(
    ("code", "duration", "rate"),
    [
        (200, 0.1, 0.01),
        (200, 0.15, 0.01),
        (200, 0.151, 1.0),
        (204, 0.1, 0.01),
        *[(code, 0.001, 1.0) for code in (400, 404, 422, 429, 499, 500, 502, 503, 504)],
    ],
)
def test_of_which_lines_a_share_is_written(code: int, duration: float, rate: float) -> None:
    assert log_rate(code, duration, 0.15, 0.01) == rate
    assert log_rate(code, duration, 0.15, 1.0) == 1.0
    assert log_rate(code, duration, 0.15, 0.0) == (0.0 if rate < 1 else 1.0)


async def test_the_id_decides_whether_a_good_answer_has_a_line(open_house, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    house = await open_house(access_log_sample=0.3)
    house.serve(await house.worker(), objectives=Objectives(threshold=60.0))

    async def written() -> list[str]:
        house.lines.clear()
        for index in range(100):
            assert (await house.rerank(headers={"X-Request-Id": f"id-{index}"}))[0] == 200
        assert {line.sample for line in house.lines} == {0.3}
        return [line.id for line in house.lines]

    first = await written()
    assert 15 <= len(first) <= 45
    assert await written() == first


async def test_what_is_late_or_went_wrong_always_has_a_line(open_house, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    house = await open_house(access_log_sample=0.0)
    worker = await house.worker()
    house.serve(worker, objectives=Objectives(threshold=60.0))
    assert (await house.rerank())[0] == 200
    assert (await house.post(b"{}"))[0] == 400
    house.serve(worker, objectives=Objectives(threshold=0.0))
    assert (await house.rerank())[0] == 200
    house.serve(worker, suspended=True)
    assert (await house.rerank())[0] == 503
    assert [(line.code, line.sample) for line in house.lines] == [(400, 1.0), (200, 1.0), (503, 1.0)]


async def test_a_line_leaves_out_what_is_not_known_and_is_among_those_of_logging(
    house, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO)
    house.serve(await house.worker())
    assert (await house.rerank(headers={"X-Request-Id": "id-1"}))[0] == 200
    logs.write(house.lines[0])
    written = capfd.readouterr().out
    assert written.endswith("}\n")
    line = json.loads(written)
    assert list(line)[:5] == ["time", "level", "logger", "message", "id"]
    assert (line["level"], line["logger"], line["message"]) == ("info", "rerank_gateway.access", "request")
    assert abs(datetime.fromisoformat(line["time"]).timestamp() - time.time()) < 60
    assert line["cached"] == 0
    assert not {"trace_id", "cache", "error"} & line.keys()
    formatted = json.loads(logs.JsonFormatter().format(logging.LogRecord("x", logging.INFO, "", 0, "", None, None)))
    assert formatted["time"].endswith("Z")
    assert line["time"].endswith("Z")


def test_each_field_of_a_line_is_what_its_name_says() -> None:
    record = Record(
        "id", "/route", "namespace", "reranker", "revision", 201, "error", body_bytes=2, documents=3, tokens=4,
        truncated=5, chunked=6, attempts=7, waited=0.0082, priority="priority", cache="cache", cached=9,
        trace_id="trace_id", sampled=True,
    )  # fmt: skip
    line = json.loads(msgspec.json.encode(access._line(record, 0.01049, 0.5)))
    del line["time"], line["level"], line["logger"], line["message"]
    assert line == {
        "id": "id", "traced": True, "route": "/route", "code": 201, "bytes": 2, "documents": 3, "cached": 9,
        "tokens": 4, "truncated": 5, "chunked": 6, "attempts": 7, "queue_ms": 8.2, "duration_ms": 10.5, "sample": 0.5,
        "namespace": "namespace", "reranker": "reranker", "revision": "revision", "priority": "priority",
        "cache": "cache", "error": "error", "trace_id": "trace_id",
    }  # fmt: skip


async def test_nothing_is_written_below_the_level(house, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    house.serve(await house.worker())
    assert (await house.rerank())[0] == 200
    assert house.lines == []


def test_a_log_that_nobody_reads_any_more_fails_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    line = AccessLine(
        time=datetime.now(UTC), level="info", logger="x", message="request", id="", traced=False, route="", code=200,
        bytes=0, documents=0, cached=0, tokens=0, truncated=0, chunked=0, attempts=0, queue_ms=0, duration_ms=0,
        sample=1,
    )  # fmt: skip
    stream = os.fdopen(write, "w")
    monkeypatch.setattr(sys, "stdout", stream)
    logs.write(line)
    with contextlib.suppress(BrokenPipeError):
        stream.close()
    logs.write(line)


@pytest.mark.parametrize("wrong", ["1%", "-0.1", "1.1", "nan", ""])
def test_a_share_of_the_lines_is_from_none_to_all(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert program._parser().parse_args(["--access-log-sample=0.25"]).access_log_sample == 0.25
    with pytest.raises(SystemExit):
        program._parser().parse_args([f"--access-log-sample={wrong}"])
    assert "must be a number from 0 to 1" in capsys.readouterr().err


def test_the_log_of_an_exception_leaves_out_its_text() -> None:
    try:
        raise ValueError("PRIVATE")
    except ValueError as error:
        record = logging.LogRecord("x", logging.ERROR, "", 0, "failed", None, (ValueError, error, error.__traceback__))
    line = json.loads(logs.JsonFormatter().format(record))
    assert line["exception"] == "ValueError"
    assert "test_access" in line["place"]
    assert "PRIVATE" not in json.dumps({**line, "place": ""})


async def test_metrics_count_what_was_answered(house) -> None:
    house.serve(await house.worker())
    for _ in range(3):
        await house.rerank()
    labels = ('namespace="search"', 'reranker="products"', 'revision="one"')
    assert await house.metric("rerank_gateway_requests_total", *labels, 'code="200"') == 3
    assert await house.metric("rerank_gateway_request_duration_seconds_count", *labels) == 3
    assert await house.metric("rerank_gateway_queue_duration_seconds_count", *labels) == 3
    assert await house.metric("rerank_gateway_tokens_total", *labels) == 60
    assert await house.metric("rerank_gateway_request_documents_sum", *labels[:2]) == 6
    assert await house.metric("rerank_gateway_endpoints", *labels) == 1


def test_series_of_what_is_gone_are_dropped_after_a_while() -> None:
    now = 0.0
    metrics = Metrics(lambda: now)

    def series() -> set[str]:
        return {
            sample.labels["reranker"] + "/" + sample.labels.get("revision", "*")
            for metric in metrics.snapshot().collect()
            for sample in metric.samples
            if sample.labels.get("reranker")
        }

    kept, gone = Policy("ns", "kept", traffic=(("new", 100),)), Policy("ns", "gone")
    for reranker, revision in (("kept", "old"), ("kept", "new"), ("gone", "r")):
        metrics.answered(Record("", "", "ns", reranker, revision, 200, documents=3), 0.1)
    everything = {"kept/old", "kept/new", "kept/*", "gone/r", "gone/*"}
    metrics.forget_gone(build_table([kept, gone], []))
    metrics.forget_gone(build_table([kept], []))
    assert series() == everything
    now = FORGET_AFTER + 1
    metrics.forget_gone(build_table([kept], []))
    assert series() == {"kept/new", "kept/*"}
