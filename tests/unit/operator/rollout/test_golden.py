"""The golden set: what is read, what is asked over HTTP, what comes out; the genuine HTTP client and a real server."""

import asyncio
import json
import math
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from rerank_operator.rollout.golden.ask import TRIES, CannotAsk, ask
from rerank_operator.rollout.golden.cli import main
from rerank_operator.rollout.golden.compare import compared, verdict
from rerank_operator.rollout.golden.golden_set import (
    BadGoldenSet,
    GoldenQuery,
    GoldenSet,
    parse_golden_set,
    read_golden_set,
)
from rerank_operator.rollout.golden.measures import Quality, quality
from rerank_operator.rollout.judge.judge import Settings

QUERY = {
    "query": "list files",
    "documents": ["ls lists files", "rm removes files", "cat shows one"],
    "labels": [2, 0, 1],
}


@pytest.mark.parametrize(
    ("grades", "scores", "k", "expected"),
    [
        ([2, 0, 1], [3.0, 1.0, 2.0], 10, Quality(1.0, 1.0, 1.0)),
        # 2^1-1 at the first place, 2^2-1 at the second: (1 + 3 / log2(3)) / (3 + 1 / log2(3))
        ([2, 0, 1], [2.0, 1.0, 3.0], 10, Quality((1 + 3 / math.log2(3)) / (3 + 1 / math.log2(3)), 1.0, 1.0)),
        ([0, 1, 0], [3.0, 2.0, 1.0], 10, Quality(1 / math.log2(3), 1.0, 0.5)),
        ([0, 0, 1], [3.0, 2.0, 1.0], 2, Quality(0.0, 0.0, 1 / 3)),
        ([1, 0, 0], [5.0, 5.0, 5.0], 2, Quality(0.0, 0.0, 1 / 3)),
    ],
    ids=["right", "best two swapped", "second", "beyond k", "all the same: the worst order"],
)
def test_measures(grades: list[int], scores: list[float], k: int, expected: Quality):
    found = quality(grades, scores, k)
    for name in ("ndcg", "accuracy", "reciprocal_rank"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-50, 50)), min_size=2, max_size=20), st.integers(1, 25))
def test_measures_are_shares_and_look_at_the_order_only(pairs: list[tuple[int, int]], k: int):
    grades = [1, *(grade for grade, _ in pairs)]
    scores = [0.0, *(float(score) for _, score in pairs)]
    found = quality(grades, scores, k)
    assert all(0 <= value <= 1 for value in (found.ndcg, found.accuracy, found.reciprocal_rank))
    assert quality(grades, [2 * score + 1 for score in scores], k) == found
    assert quality(grades, [float(grade) for grade in grades], k) == Quality(1.0, 1.0, 1.0)


def test_a_score_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="no number"):
        quality([1, 0], [math.nan, 1.0], 10)


def test_yaml_and_lines_are_the_same_set(tmp_path: Path):
    whole, lines = tmp_path / "golden.yaml", tmp_path / "golden.jsonl"
    whole.write_text(json.dumps({"queries": [QUERY, QUERY]}))
    lines.write_text(json.dumps(QUERY) + "\n\n" + json.dumps(QUERY) + "\n")
    assert read_golden_set(whole) == read_golden_set(lines)
    assert read_golden_set(whole).k == 10
    whole.write_text(json.dumps({"queries": [QUERY], "k": 3}))
    assert read_golden_set(whole).k == 3


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "its first line is no query in JSON: write {"),
        ("not json", "its first line is no query in JSON: write {"),
        ("queries: []", "length >= 1 - at `$.queries`"),
        ("queries: [{query: a, documents: [b, c]}]", "missing required field `labels` - at `$.queries[0]`"),
        ("queries: [{query: a, documents: [b, c], labels: [1]}]", "labels: 1 for 2 documents: give one for each"),
        ("queries: [{query: a, documents: [b, c], labels: [1, 1]}]", "labels: all are 1: any order would be as good"),
        ("queries: [{query: a, documents: [b, c], labels: [1, -1]}]", ">= 0 - at `$.queries[0].labels[1]`"),
        ("queries: [{query: a, documents: [b, c], labels: [1, 0.5]}]", "got `float` - at `$.queries[0].labels[1]`"),
        ("queries: [{query: '', documents: [b, c], labels: [1, 0]}]", "length >= 1 - at `$.queries[0].query`"),
        ("queries: [{query: a, document: b}]", "unknown field `document` - at `$.queries[0]`"),
        ("queries: [", "is neither YAML nor JSON"),
        ("k: 0\nqueries: []", "at `$.k`"),
    ],
)
def test_a_bad_set_names_its_place(tmp_path: Path, text: str, told: str):
    path = tmp_path / "golden.yaml"
    path.write_text(text)
    with pytest.raises(BadGoldenSet) as refused:
        read_golden_set(path)
    assert str(path) in str(refused.value)
    # The order in which fields are looked at is the library's.
    assert told in str(refused.value) or (text.startswith("k: 0") and "$.queries" in str(refused.value))


def test_a_bad_line_and_a_missing_file_are_named(tmp_path: Path):
    path = tmp_path / "golden.jsonl"
    path.write_text(json.dumps(QUERY) + "\nnonsense\n")
    with pytest.raises(BadGoldenSet, match=r"line 2: is no JSON"):
        read_golden_set(path)
    with pytest.raises(BadGoldenSet, match="No such file"):
        read_golden_set(tmp_path / "none.yaml")


LINE = json.dumps(QUERY)
WHOLE = {"queries": [QUERY, QUERY]}


@pytest.mark.parametrize(
    "text",
    [
        f"{LINE}\n\n{LINE}\n",
        f"\n{LINE}\n{LINE}",
        json.dumps(WHOLE),
        json.dumps(WHOLE, indent="\t"),
        yaml.safe_dump(WHOLE, sort_keys=False),
        "queries:\n- " + LINE + "\n- " + LINE,
        "{queries: [" + LINE + ", " + LINE + "]}",
    ],
    ids=["lines", "lines after an empty one", "JSON", "JSON with tabs", "YAML", "mixed", "YAML in braces"],
)
def test_what_a_text_holds_is_told_without_a_files_name(text: str):
    assert parse_golden_set(text, "a text") == GoldenSet([msgspec.convert(QUERY, GoldenQuery)] * 2)


@pytest.mark.parametrize("opened", ["[", "- ", "{a: ", '{"a":'])
def test_a_text_that_is_nested_deeply_is_refused_and_ends_no_process(opened: str):
    with pytest.raises(BadGoldenSet, match="ConfigMap x: "):
        parse_golden_set(opened * (800_000 // len(opened)), "ConfigMap x")
    with pytest.raises(BadGoldenSet, match="ConfigMap x: "):
        parse_golden_set('{"a": ' + opened * (800_000 // len(opened)) + "\n{}", "ConfigMap x")


@pytest.mark.parametrize("text", ["a\u2028b", "a\x85b", "a\u2029b"])
def test_a_separator_within_a_text_ends_no_line(text: str):
    line = json.dumps(QUERY | {"query": text}, ensure_ascii=False)
    assert [query.query for query in parse_golden_set(f"{line}\r\n{line}", "a text").queries] == [text] * 2


@pytest.mark.parametrize("text", [f"{LINE}\n{LINE}", json.dumps(WHOLE), yaml.safe_dump(WHOLE)])
def test_a_byte_order_mark_is_no_part_of_a_set(text: str):
    assert parse_golden_set("\ufeff" + text, "a text") == parse_golden_set(text, "a text")


@pytest.mark.parametrize("value", ["2026-13-01", "!!int ''", "!!timestamp soon", "!!bool maybe", "!!float x"])
def test_a_value_that_is_not_what_it_says_is_refused_with_the_sets_name(value: str):
    with pytest.raises(BadGoldenSet, match=r"ConfigMap x: .* is not what its form or tag says .*: put texts into"):
        parse_golden_set(f"queries: {value}", "ConfigMap x")


@pytest.mark.parametrize("text", ["queries: !{0} b", '{{"queries": [], "{0}": 1}}'])
def test_what_is_wrong_is_told_in_so_few_words_that_a_status_can_hold_them(text: str):
    with pytest.raises(BadGoldenSet) as refused:
        parse_golden_set(text.format("a" * 100_000), "ConfigMap x")
    assert len(str(refused.value)) < 1000


def test_a_number_that_would_take_minutes_to_read_is_refused():
    with pytest.raises(BadGoldenSet, match="line 1 has a number of 300000 letters"):
        parse_golden_set("queries: " + "59:" * 99_999 + "590", "ConfigMap x")
    digits = f"queries: [{{query: a, documents: ['{'-' * 200}', b], labels: [0, 1]}}]"
    assert len(parse_golden_set(digits, "ConfigMap x").queries[0].documents[0]) == 200, "a text is no number"


def test_one_line_is_one_query():
    assert len(parse_golden_set(LINE, "a text").queries) == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "its first line is no query in JSON: write {"),
        ("not json", "its first line is no query in JSON: write {"),
        (LINE + "\nnonsense", "line 2: is no JSON"),
        ('{"query": \n' + LINE, "line 1: is no JSON"),
        (LINE + "\n" + '{"query": "a"}', "missing required field `documents` - at `$.queries[1]`"),
        ("queries: [", "is neither YAML nor JSON"),
        ("[" * 5000, "is neither YAML nor JSON"),
        (
            "queries:\n- &q {query: some words, documents: [one, other], labels: [1, 0]}\n" + "- *q\n" * 20,
            "write texts out instead of YAML's aliases",
        ),
        ("queries: !!python/object/apply:os.getcwd []", "is neither YAML nor JSON"),
    ],
)
def test_a_bad_text_is_called_by_its_name(text: str, told: str):
    with pytest.raises(BadGoldenSet) as refused:
        parse_golden_set(text, "ConfigMap search/golden, key golden.jsonl")
    assert str(refused.value).startswith("ConfigMap search/golden, key golden.jsonl: ")
    assert told in str(refused.value)


Answer = Callable[[dict[str, Any]], web.Response]


@asynccontextmanager
async def served(answer: Answer, seen: list[web.Request] | None = None) -> AsyncGenerator[str]:
    async def handle(request: web.Request) -> web.Response:
        if seen is not None:
            seen.append(request)
        return answer(await request.json())

    app = web.Application()
    app.router.add_post("/v2/rerank", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v2/rerank"
    finally:
        await runner.cleanup()


def by_length(body: dict[str, Any]) -> web.Response:
    """Longer documents first, as Cohere answers: sorted."""
    results = [{"index": index, "relevance_score": len(text) / 100} for index, text in enumerate(body["documents"])]
    return web.json_response({"results": sorted(results, key=lambda result: -result["relevance_score"])})


def golden(count: int) -> GoldenSet:
    """The longest document is the right one."""
    return GoldenSet([GoldenQuery(f"q{i}", ["a" * (5 + i % 3), "b", "cc"], [1, 0, 0]) for i in range(count)])


async def test_every_query_is_ranked_in_its_order_with_the_key():
    seen: list[web.Request] = []
    told: list[None] = []
    async with served(by_length, seen) as url:
        found = await ask(url, golden(20), "secret", lambda: told.append(None))
    assert found == [Quality(1.0, 1.0, 1.0)] * 20
    assert {request.headers["Authorization"] for request in seen} == {"Bearer secret"}
    assert len(told) == 20


async def test_a_server_that_is_busy_is_asked_again_and_not_for_ever():
    asked: list[dict[str, Any]] = []

    def busy(body: dict[str, Any]) -> web.Response:
        asked.append(body)
        return by_length(body) if len(asked) == 3 else web.Response(status=429, headers={"Retry-After": "0"})

    async with served(busy) as url:
        assert await ask(url, golden(1), None) == [Quality(1.0, 1.0, 1.0)]
        asked.clear()
        asked += [{}] * 3
        with pytest.raises(CannotAsk, match=r"queries\[0\]: answered 429"):
            await ask(url, golden(1), None)
        assert len(asked) == 3 + TRIES


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda body: web.json_response({"message": "no model"}, status=404), "answered 404: .*no model"),
        (
            lambda body: web.json_response({"results": [{"index": 0, "relevance_score": 1}]}),
            "scores of 1 of 3 documents",
        ),
        (lambda body: web.json_response([1, 2]), "Expected `object`"),
        (lambda body: web.Response(body=b"hello"), "malformed"),
    ],
    ids=["refused", "a score is missing", "another shape", "no JSON"],
)
async def test_an_answer_that_is_no_ranking_is_told(answer: Answer, told: str):
    async with served(answer) as url:
        with pytest.raises(CannotAsk, match=told):
            await ask(url, golden(2), None)


async def test_nobody_there_is_told():
    async with served(by_length) as url:
        pass
    with pytest.raises(CannotAsk, match=url):
        await ask(url, golden(1), None)


def test_the_same_ranking_may_go_on_and_a_worse_one_may_not():
    right, wrong = Quality(1.0, 1.0, 1.0), Quality(0.5, 1.0, 0.5)
    assert verdict([right] * 20, [right] * 20, Settings()).action == "advance"
    assert verdict([right] * 20, [right, wrong] * 10, Settings()).action == "rollback"
    assert verdict([right] * 9, [wrong] * 9, Settings()).action == "hold"
    by_rank = verdict([right] * 20, [Quality(1.0, 1.0, 0.5)] * 20, Settings(), "reciprocal_rank")
    assert by_rank.action == "rollback"
    assert by_rank.metrics[0].message.startswith("MRR -0.5000 over 20 queries")
    assert verdict([right] * 20, [right, wrong] * 10, Settings(), "accuracy").action == "advance"
    rows = compared([right] * 20, [right, wrong] * 10, 10)
    assert [row.measure for row in rows] == ["nDCG@10", "accuracy@10", "MRR"]
    assert rows[0].canary == pytest.approx(0.75)
    assert rows[0].low is not None
    assert rows[0].low < -0.25 < (rows[0].high or 0) < 0
    assert compared([right] * 3, [wrong] * 3, 10)[0].low is None


def test_files_that_cannot_be_used_end_with_2(tmp_path: Path, capsys: pytest.CaptureFixture):
    nowhere = ["--stable", "http://127.0.0.1:9/v2/rerank", "--canary", "http://127.0.0.1:9/v2/rerank"]
    assert main(["--set", str(tmp_path / "none.yaml"), *nowhere]) == 2
    assert "none.yaml: cannot be read" in capsys.readouterr().err
    path = tmp_path / "golden.yaml"
    path.write_text(json.dumps({"queries": [QUERY]}))
    assert main(["--set", str(path), *nowhere]) == 2
    assert "queries[0]: " in capsys.readouterr().err


def by_shortness(body: dict[str, Any]) -> web.Response:
    results = [{"index": index, "relevance_score": -len(text)} for index, text in enumerate(body["documents"])]
    return web.json_response({"results": results})


@pytest.mark.parametrize(("canary", "code", "told"), [(by_length, 0, "may go on"), (by_shortness, 1, "ranks worse")])
async def test_two_endpoints_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture, canary: Answer, code: int, told: str
):
    path = tmp_path / "golden.yaml"
    documents = ["long enough", "short", "tiny"]
    path.write_text(json.dumps({"queries": [{"query": "q", "documents": documents, "labels": [1, 0, 0]}] * 12}))
    async with served(by_length) as stable, served(canary) as other:
        urls = ["--stable", stable, "--canary", other]
        assert await asyncio.to_thread(main, ["--set", str(path), *urls]) == code
        printed = capsys.readouterr()
        assert told in printed.out
        assert printed.err == ""
        assert await asyncio.to_thread(main, ["--set", str(path), *urls, "--json"]) == code
    found = json.loads(capsys.readouterr().out)
    assert (found["queries"], found["k"], found["action"]) == (12, 10, "advance" if code == 0 else "rollback")
    assert [row["measure"] for row in found["measures"]] == ["nDCG@10", "accuracy@10", "MRR"]
