"""Labels for a calibration: what a golden set may not hold, they may; and a worker's logits for them."""

from pathlib import Path

import aiohttp
import msgspec
import pytest
from aiohttp import web
from rerank_api import wire
from rerank_operator.rollout.golden.golden_set import (
    BadGoldenSet,
    LabelledQuery,
    parse_golden_set,
    parse_labels,
    read_labels,
)
from rerank_operator.rollout.golden.workers import scores_of

LINES = """\
{"query": "a", "documents": ["one"], "labels": [0]}
{"query": "b", "documents": ["one", "two"], "labels": [2, 2]}
"""
READ = [LabelledQuery("a", ["one"], [0]), LabelledQuery("b", ["one", "two"], [2, 2])]


def test_queries_that_rank_nothing_are_labels_and_no_golden_set(tmp_path: Path):
    path = tmp_path / "labels.jsonl"
    path.write_text(LINES)
    assert read_labels(path).queries == parse_labels(LINES, "labels").queries == READ
    with pytest.raises(BadGoldenSet, match=r"queries\[0\]"):
        parse_golden_set(LINES, "labels")


def test_a_golden_set_is_labels_too():
    text = "k: 3\nqueries:\n- {query: a, documents: [b, c], labels: [0, 1]}\n"
    assert parse_labels(text, "set").queries == [LabelledQuery("a", ["b", "c"], [0, 1])]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"query": "a", "documents": ["b"], "labels": [1, 0]}', "2 for 1 documents"),
        ('{"query": "a", "documents": [], "labels": []}', "length >= 1"),
        ('{"query": "a", "documents": ["b"], "labels": [-1]}', ">= 0"),
    ],
)
def test_bad_labels_name_their_place(text: str, told: str):
    with pytest.raises(BadGoldenSet, match=told) as refused:
        parse_labels(text, "labels")
    assert "labels: " in str(refused.value)
    assert "queries[0]" in str(refused.value)


async def test_a_worker_is_asked_for_logits_of_the_model_that_is_named():
    seen: list[tuple[str, wire.ScoreRequest]] = []

    async def answer(request: web.Request) -> web.Response:
        asked = msgspec.json.decode(await request.read(), type=wire.ScoreRequest)
        seen.append((request.path, asked))
        found = wire.ScoreResponse([-8.5] * len(asked.documents), tokens=1)
        return web.Response(body=msgspec.json.encode(found), content_type="application/json")

    app = web.Application()
    app.router.add_post("/{path:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    told: list[None] = []
    try:
        async with aiohttp.ClientSession() as session:
            host, path = f"127.0.0.1:{runner.addresses[0][1]}", f"{wire.MODELS_PATH}/a.b.c/score"
            found = await scores_of(session, host, READ, raw=True, path=path, told=lambda: told.append(None))
    finally:
        await runner.cleanup()
    assert found == [[-8.5], [-8.5, -8.5]]
    assert len(told) == 2
    assert {(where, asked.raw_scores) for where, asked in seen} == {(path, True)}
