"""Keys, the access log and the metrics' labels."""

import json
import logging
import os
from pathlib import Path

import pytest
from rerank_gateway import __main__ as program
from rerank_gateway import logs
from rerank_gateway.access import log_rate
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

    lines = [logs.JsonFormatter().format(record) for record in caplog.records]
    own = [line for line in lines if json.loads(line)["logger"].startswith("rerank_gateway")]
    assert not [line for line in own if "PRIVATE" in line or "SECRET" in line]
    requests = [json.loads(line) for line in own if json.loads(line)["message"] == "request"]
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
        caplog.clear()
        for index in range(100):
            assert (await house.rerank(headers={"X-Request-Id": f"id-{index}"}))[0] == 200
        lines = [getattr(record, "fields", {}) for record in caplog.records if record.message == "request"]
        assert {line["sample"] for line in lines} == {0.3}
        return [line["id"] for line in lines]

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
    lines = [getattr(record, "fields", {}) for record in caplog.records if record.message == "request"]
    assert [(line["code"], line["sample"]) for line in lines] == [(400, 1.0), (200, 1.0), (503, 1.0)]


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
            for metric in metrics.registry.collect()
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
