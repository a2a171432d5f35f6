"""The series themselves: edges, exemplars, formats, what is told of a Reranker, and what is forgotten with it."""

import logging
import math
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from types import FrameType
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.core import Metric
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.samples import Exemplar, Sample, Timestamp
from rerank_api import wire
from rerank_gateway import counters, histograms
from rerank_gateway.cluster.state import Endpoint, Policy, build_table
from rerank_gateway.feedback import Label, tally
from rerank_gateway.histograms import Histograms
from rerank_gateway.metrics import FORGET_AFTER, Metrics
from rerank_gateway.record import Record
from rerank_gateway.slo import Objectives

from .conftest import House, Worker, scores

DURATION = "rerank_gateway_request_duration_seconds"
EDGES = (0.1, 1.0, 10.0)
LABELS = ("ns", "rr", "one")


def _samples(families: Iterable[Metric], name: str, **labels: str) -> list[Sample]:
    return [
        sample
        for family in families
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]


def _durations() -> Histograms:
    return Histograms("seconds", "Seconds.", ("namespace", "reranker", "revision"), EDGES)


def _buckets(durations: Histograms, **labels: str) -> dict[str, float]:
    """Counts by their upper edges."""
    return {sample.labels["le"]: sample.value for sample in _samples(durations.collect(), "seconds_bucket", **labels)}


@given(
    st.lists(st.floats(0, 20) | st.sampled_from([*EDGES, 0.25]), max_size=50),
    st.sampled_from([None, 0.25, 0.1, 10.0, 0.001, 100.0]),
)
def test_buckets_hold_what_was_observed(seconds: Sequence[float], threshold: float | None) -> None:
    durations = _durations()
    if threshold is not None:
        durations.promise(LABELS[:2], threshold)
    for value in seconds:
        durations.of(LABELS).observe(value)
    families = list(durations.collect())
    found = {sample.labels["le"]: sample.value for sample in _samples(families, "seconds_bucket")}
    if not seconds:
        assert found == {}
        return
    edges = sorted({*EDGES, threshold or EDGES[0]})
    assert found == {
        **{str(edge): sum(value <= edge for value in seconds) for edge in edges},
        "+Inf": len(seconds),
    }
    assert [sample.value for sample in _samples(families, "seconds_count")] == [len(seconds)]
    assert _samples(families, "seconds_sum")[0].value == pytest.approx(math.fsum(seconds))


def test_series_begin_anew_where_the_threshold_changes_and_only_there() -> None:
    durations = _durations()
    other = ("ns", "other", "one")
    durations.promise(LABELS[:2], 0.25)
    for labels in (LABELS, (*LABELS[:2], "two"), other):
        durations.of(labels).observe(0.2)
    kept = durations.of(LABELS)

    durations.promise(LABELS[:2], 0.25)
    assert _buckets(durations, reranker="rr", revision="one") == {"0.1": 0, "0.25": 1, "1.0": 1, "10.0": 1, "+Inf": 1}
    durations.promise(LABELS[:2], 0.15)
    for revision in ("one", "two"):
        empty = {"0.1": 0, "0.15": 0, "1.0": 0, "10.0": 0, "+Inf": 0}
        assert _buckets(durations, reranker="rr", revision=revision) == empty
    assert _buckets(durations, reranker="other") == {"0.1": 0, "1.0": 1, "10.0": 1, "+Inf": 1}
    kept.observe(0.15)
    assert _buckets(durations, reranker="rr", revision="one")["0.15"] == 1
    durations.promise(LABELS[:2], 1.0)
    assert _buckets(durations, reranker="rr", revision="one") == {"0.1": 0, "1.0": 0, "10.0": 0, "+Inf": 0}


def test_the_latest_exemplar_of_a_bucket_is_kept() -> None:
    durations = _durations()
    buckets = durations.of(LABELS)
    for seconds, trace in ((0.2, "a"), (0.3, "b"), (5.0, "c"), (0.4, None)):
        buckets.observe(seconds, None if trace is None else Exemplar({"trace_id": trace}, seconds, 1.0))
    found = {
        sample.labels["le"]: sample.exemplar.labels["trace_id"]
        for sample in _samples(durations.collect(), "seconds_bucket")
        if sample.exemplar is not None
    }
    assert found == {"1.0": "b", "10.0": "c"}


def test_exemplars_are_of_sampled_requests_and_readable() -> None:
    metrics = Metrics(lambda: 0.0, wall=lambda: 1_000.5)
    for trace_id, sampled in (("a" * 32, True), ("b" * 32, False), ("", False)):
        record = Record("", namespace="ns", reranker="rr", revision="one", code=200, trace_id=trace_id, sampled=sampled)
        metrics.answered(record, 0.04)
    families = parse_openmetrics(generate_latest(metrics.snapshot()).decode())
    exemplars = [sample.exemplar for sample in _samples(families, f"{DURATION}_bucket") if sample.exemplar is not None]
    assert [(exemplar.labels, exemplar.value) for exemplar in exemplars] == [({"trace_id": "a" * 32}, 0.04)]
    assert exemplars[0].timestamp == Timestamp(1_000, 500_000_000)


@pytest.mark.parametrize(
    ("accept", "openmetrics"),
    [
        (None, False),
        ("*/*", False),
        ("text/plain;version=0.0.4;q=0.5,*/*;q=0.1", False),
        ("application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;q=0.3", True),
        ("application/openmetrics-text;version=nonsense", True),
    ],
)
async def test_openmetrics_is_for_those_who_accept_it(house: House, accept: str | None, openmetrics: bool) -> None:
    house.serve(await house.worker())
    await house.rerank()
    headers = {} if accept is None else {"Accept": accept}
    async with house.client.get(house.admin_url + "/metrics", headers=headers) as response:
        text = await response.text()
        assert response.content_type == ("application/openmetrics-text" if openmetrics else "text/plain")
    assert text.endswith("# EOF\n") == openmetrics
    families = list(parse_openmetrics(text) if openmetrics else parse_text(text))
    assert [sample.value for sample in _samples(families, f"{DURATION}_count")] == [1]
    assert _samples(families, "process_resident_memory_bytes")[0].value > 0


async def test_only_what_is_asked_for_is_told(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.serve(await house.worker())
    await house.rerank()

    async def told(*names: str) -> set[tuple[str, frozenset[tuple[str, str]]]]:
        query = [("name[]", name) for name in names]
        async with house.client.get(house.admin_url + "/metrics", params=query) as response:
            families = list(parse_text(await response.text()))
        return {(sample.name, frozenset(sample.labels.items())) for family in families for sample in family.samples}

    everything = await told()
    names = {name for name, _ in everything}
    assert {f"{DURATION}_bucket", "rerank_gateway_waiting_requests", "process_start_time_seconds"} <= names
    for name in names:
        assert await told(name) == {series for series in everything if series[0] == name}
    assert await told(*names) == everything
    assert await told("absent", "") == set()

    def collected(_: Histograms) -> Iterable[Metric]:
        pytest.fail("collected, which nobody asked for")

    monkeypatch.setattr(Histograms, "collect", collected)
    assert await told("rerank_gateway_waiting_requests", "process_start_time_seconds")


async def test_an_edge_stands_exactly_at_the_threshold(house: House) -> None:
    house.serve(await house.worker(), objectives=Objectives(threshold=0.123))
    await house.rerank()
    assert await house.metric(f"{DURATION}_bucket", 'le="0.123"') == await house.metric(
        f"{DURATION}_bucket", 'le="+Inf"'
    )
    house.serve(*house.workers, objectives=Objectives(threshold=0.456))
    assert await house.metric(f"{DURATION}_bucket", 'le="0.123"') == 0
    assert await house.metric(f"{DURATION}_count") == 0
    await house.rerank()
    assert await house.metric(f"{DURATION}_bucket", 'le="0.456"') == await house.metric(f"{DURATION}_count") == 1


async def test_the_objectives_are_told(house: House) -> None:
    house.serve(objectives=Objectives(0.99, 0.5, 0.2))
    for sli, ratio in (("availability", 0.99), ("latency", 0.5)):
        assert await house.metric("rerank_gateway_objective_ratio", 'reranker="products"', f'sli="{sli}"') == ratio
    assert await house.metric("rerank_gateway_latency_threshold_seconds", 'reranker="products"') == 0.2
    house.source.set([])
    assert await house.metric("rerank_gateway_objective_ratio") == 0


async def test_ready_is_what_the_probe_says(house: House) -> None:
    for synced, draining, ready in ((True, False, 1), (False, False, 0), (True, True, 0), (True, False, 1)):
        house.source.synced, house.gateway.draining = synced, draining
        assert await house.metric("rerank_gateway_ready ") == ready
        async with house.client.get(house.admin_url + "/readyz") as response:
            assert (response.status == 200) == bool(ready)


async def test_a_maintenance_ends_by_itself(open_house) -> None:
    now = 0.0
    house = await open_house(wall=lambda: now)
    maintenance = "rerank_gateway_maintenance"
    assert await house.metric(maintenance) == 0
    house.serve(maintenance="1970-01-01T00:01:00Z")
    now = 59.0
    assert await house.metric(maintenance, 'namespace="search"', 'reranker="products"') == 1
    now = 60.0
    assert await house.metric(maintenance) == 0
    house.serve(maintenance="1970-01-01T00:02:00Z")
    assert await house.metric(maintenance) == 1
    house.serve(maintenance="")
    assert await house.metric(maintenance) == 0


async def test_a_maintenance_that_cannot_be_read_is_none_and_is_told_once(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        house.serve(maintenance="tomorrow")
        assert await house.metric("rerank_gateway_maintenance") == 0
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == 1
    for part in ("search/products", "rerank.dev/maintenance-until", "'tomorrow'", "RFC 3339"):
        assert part in told[0]


@pytest.mark.parametrize("given", ["", "-1", "1.5", "soon", "600001", "1" * 30, "\u0661", "+1", " "])
async def test_a_wrong_candidate_fetch_time_is_refused(house: House, given: str) -> None:
    house.serve(await house.worker())
    status, answer = await house.rerank(headers={"X-Rerank-Candidate-Fetch-Ms": given})
    assert (status, answer["error"]["field"]) == (400, "X-Rerank-Candidate-Fetch-Ms")
    assert await house.metric("rerank_gateway_candidate_fetch_seconds") == 0


async def test_candidate_fetch_times_are_counted_once_answered(house: House) -> None:
    house.serve(await house.worker())
    for milliseconds in ("0", "40", "600000"):
        assert (await house.rerank(headers={"X-Rerank-Candidate-Fetch-Ms": milliseconds}))[0] == 200
    assert (await house.rerank())[0] == 200
    assert (await house.rerank("", headers={"X-Rerank-Candidate-Fetch-Ms": "40"}, path="/absent"))[0] == 404
    name = "rerank_gateway_candidate_fetch_seconds"
    assert await house.metric(f"{name}_count", 'reranker="products"') == 3
    assert await house.metric(f"{name}_sum") == pytest.approx(600.04)


async def test_requests_with_cut_documents_are_counted_once_each(house: House) -> None:
    async def cuts(worker: Worker, query: wire.ScoreRequest) -> web.Response:
        long = [index for index, document in enumerate(query.documents) if len(document) > 1]
        return scores([0.5] * len(query.documents), truncated=long)

    house.serve(await house.worker(behave=cuts))
    for documents in (("a", "b"), ("a", "long"), ("long", "longer", "longest")):
        assert (await house.rerank(*documents))[0] == 200
    assert await house.metric("rerank_gateway_truncated_documents_total", 'revision="one"') == 4
    assert await house.metric("rerank_gateway_truncated_requests_total", 'revision="one"') == 2


def _use(metrics: Metrics, namespace: str, reranker: str, revision: str) -> None:
    """Everything that has series, at least once."""
    for code in (200, 502):
        record = Record("", namespace=namespace, reranker=reranker, revision=revision, code=code, documents=3)
        record.priority, record.cache, record.candidate_fetch = "high", "partial", 0.1
        metrics.answered(record, 0.1)
    metrics.retried(Endpoint("uid", namespace, reranker, revision, "10.0.0.1"), "busy")
    key = (namespace, reranker)
    metrics.mirrored(key, "ok")
    metrics.captured(key, "limited")
    metrics.labelled(key, revision, *tally([Label(0.5, True)]))


def test_nothing_is_left_of_what_is_gone() -> None:
    now = 0.0
    metrics = Metrics(lambda: now)
    kept = Policy("ns", "kept", traffic=(("new", 100),))
    gone = Policy("ns", "gone", traffic=(("r", 100),))

    def left(**labels: str) -> list[Sample]:
        return [
            sample
            for family in metrics.snapshot().collect()
            for sample in family.samples
            if labels.items() <= sample.labels.items()
        ]

    metrics.update(build_table([kept, gone], []))
    for labels in (("ns", "kept", "old"), ("ns", "kept", "new"), ("ns", "gone", "r"), ("ns", "gone", "")):
        _use(metrics, *labels)
    for family in metrics.snapshot().collect():
        if not family.name.startswith("process_"):
            assert any(sample.labels["reranker"] == "gone" for sample in family.samples), f"{family.name} was not used"

    table = build_table([kept], [])
    metrics.update(table)
    metrics.forget_gone(table)
    before = len(left())
    now = FORGET_AFTER
    metrics.forget_gone(table)
    assert len(left()) == before
    now += 1
    metrics.forget_gone(table)
    assert left(reranker="gone") == []
    assert left(revision="old") == []
    assert {sample.labels["revision"] for sample in left(reranker="kept") if "revision" in sample.labels} == {"", "new"}
    assert metrics.knows(("ns", "kept"), "new")
    assert not metrics.knows(("ns", "kept"), "old")

    # Who comes back is counted from nothing.
    metrics.update(build_table([kept, gone], []))
    _use(metrics, "ns", "gone", "r")
    assert [sample.value for sample in left(reranker="gone", revision="r", code="502")] == [1]
    assert [sample.value for sample in left(reranker="gone", revision="r", sli="availability")] == [2, 1]


def _steps(act: Callable[[], None]) -> int:
    """Lines of counters and histograms that ``act`` runs through."""
    files, lines = {counters.__file__, histograms.__file__}, 0

    def trace(frame: FrameType, event: str, _: object) -> Callable[..., Any] | None:
        nonlocal lines
        lines += event == "line"
        return trace if frame.f_code.co_filename in files else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    finally:
        sys.settrace(before)
    return lines


def test_to_forget_takes_no_longer_where_more_stays() -> None:
    """A scrape after a wave of deletions holds requests up while it forgets."""

    def forgetting(kept: int) -> int:
        now = 0.0
        metrics = Metrics(lambda: now)
        policies = [Policy("ns", f"rr-{number}", traffic=(("r", 100),)) for number in range(50 + kept)]
        metrics.update(build_table(policies, []))
        for policy in policies:
            _use(metrics, "ns", policy.name, "r")

        def series() -> Counter[str]:
            """How many of each Reranker."""
            families = [family for family in metrics.snapshot().collect() if not family.name.startswith("process_")]
            return Counter(sample.labels["reranker"] for family in families for sample in family.samples)

        table = build_table(policies[50:], [])
        metrics.update(table)
        metrics.forget_gone(table)
        before, now = series(), FORGET_AFTER + 1
        steps = _steps(lambda: metrics.forget_gone(table))
        present = {policy.name for policy in policies[50:]}
        assert series() == Counter({name: count for name, count in before.items() if name in present})
        assert _steps(lambda: metrics.forget_gone(table)) == 0
        return steps

    assert 0 < forgetting(0) == forgetting(100)


async def test_clients_cannot_make_series(house: House) -> None:
    async def series() -> int:
        async with house.client.get(house.admin_url + "/metrics") as response:
            return len((await response.text()).splitlines())

    house.serve(await house.worker())

    async def ask(model: str, text: str) -> None:
        headers = {"X-Rerank-Client": text, "X-Rerank-Sticky": text, "X-Request-Id": text}
        await house.rerank(headers=headers)
        for body, path in (
            ({"model": model, "query": "q", "documents": ["a"]}, "/v2/rerank"),
            ({"query": "q", "documents": ["a"]}, f"/search/{model}/v2/rerank"),
            ({"query": "q", "documents": ["a"]}, f"/{text}"),
            ({"labels": [{"score": 0.5, "relevant": True}], "revision": text}, "/v1/feedback"),
        ):
            await house.post(body, path)

    await ask("absent", "first")
    before = await series()
    source = random.Random(7)
    for _ in range(20):
        await ask(f"absent-{source.random()}", f"x{source.random()}")
    assert await series() == before


async def test_the_first_good_answers_are_seen_as_an_increase(house: House) -> None:
    """Regression: a series that appears at 12 has not increased, and RerankKeysRefused took it for no answer at all."""
    house.serve(await house.worker(revision="one"))
    async with house.client.get(house.admin_url + "/metrics") as response:
        text = await response.text()
    assert 'rerank_gateway_requests_total{code="200",namespace="search",reranker="products",revision="one"} 0.0' in text


async def test_series_of_a_reranker_are_few(house: House) -> None:
    house.serve(await house.worker(), traffic=(("one", 100),))

    async def series() -> int:
        async with house.client.get(house.admin_url + "/metrics") as response:
            return sum('reranker="products"' in line for line in (await response.text()).splitlines())

    unused = await series()
    await house.rerank()
    assert unused <= 18
    assert await series() <= 100
