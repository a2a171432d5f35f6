"""The text of a gateway's metrics, as its own code writes it."""

import time
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from rerank_gateway.cluster.state import Policy, build_table
from rerank_gateway.metrics import Metrics
from rerank_gateway.record import Record
from rerank_operator.page import exposition
from rerank_operator.page.exposition import SERIES, Reader, Sample
from rerank_operator.page.figures import Figures, Staff

KEY = ("search", "products")


def metrics_of(names: Sequence[str], revisions: Sequence[str] = ("r1",)) -> Metrics:
    """A genuine gateway's metrics, which knows these Rerankers."""
    metrics = Metrics(lambda: 0.0)
    traffic = tuple((revision, 100 // len(revisions)) for revision in revisions)
    table = build_table([Policy("search", name, traffic=traffic) for name in names], [])
    metrics.update(table)
    metrics.observe({}, lambda: table, {}, lambda: 0, lambda: 0, lambda: True)  # ty: ignore[invalid-argument-type]
    return metrics


def gateway() -> Metrics:
    """After three requests of two Rerankers."""
    metrics = metrics_of(("products", "other"))
    for name, code, seconds in (("products", 200, 0.04), ("products", 503, 2.0), ("other", 200, 0.04)):
        revision = "r1" if code == 200 else ""
        metrics.answered(Record("", namespace="search", reranker=name, revision=revision, code=code), seconds)
    return metrics


def test_a_genuine_gateway_is_understood():
    found = read(gateway().snapshot())
    assert found.began is not None
    assert found.waiting == {KEY: 0}
    assert found.in_flight == {KEY: 0}
    assert set(found.counts) == {KEY}
    served, refused = found.counts[KEY]["r1"], found.counts[KEY][""]
    assert {name: value for name, value in served.items() if not name.startswith("le/")} == {
        "code/200": 1,
        "availability/total": 1,
        "availability/good": 1,
        "latency/total": 1,
        "latency/good": 1,
    }
    assert served["le/0.05"] == served["le/+Inf"] == 1
    assert served["le/0.03"] == 0
    assert refused["code/503"] == 1
    assert (refused["availability/total"], refused["availability/good"]) == (1, 0)


class Collected(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def read(registry: Collector) -> Sample:
    return Reader().read(generate_latest(registry), {KEY})


def test_what_is_asked_for_is_all_that_is_read():
    """A gateway tells a series only where it is asked for: one that is read and not asked for would never be known."""
    registry = gateway().snapshot()
    everything = read(registry)
    assert read(registry.restricted_registry(SERIES)) == everything
    for name in SERIES:
        others = registry.restricted_registry([other for other in SERIES if other != name])
        assert read(others) != everything, f"{name} is asked for and not read"


def test_what_a_look_costs():
    """Of 100 Rerankers with two busy revisions at one gateway; with -s it tells the CPU's time."""
    names, revisions = [f"reranker-{number}" for number in range(100)], ("7c9d0a1f42", "e81b52c6d3")
    metrics = metrics_of(names, revisions)
    for name in names:
        for revision in revisions:
            record = Record("", namespace="search", reranker=name, revision=revision, code=200, documents=10)
            metrics.answered(record, 0.04)
    staff, lengths = {("search", name): Staff() for name in names}, {}
    for what, registry in (("all", metrics.snapshot()), ("shown", metrics.snapshot().restricted_registry(SERIES))):
        reader, figures, times = Reader(), Figures(), [time.thread_time()]
        families = list(registry.collect())
        times.append(time.thread_time())
        text = generate_latest(Collected(families))
        times.append(time.thread_time())
        for look in range(3):
            found = reader.read(text, staff)
            times.append(time.thread_time())
            figures.take(5.0 * look, {"gateway": found}, staff)
            times.append(time.thread_time())
        lengths[what] = len(text)
        spent = [f"{1000 * (after - before):.0f}" for before, after in pairwise(times)]
        print(
            f"{what}: {len(text) / 2**10:.0f} KiB; ms to collect {spent[0]}, to write {spent[1]}, to read {spent[-2]} "
            f"(at first {spent[2]}), to add up {spent[-1]}"
        )
    assert lengths["shown"] < lengths["all"] / 2


@given(st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), min_size=1, max_size=8))
def test_a_reader_tells_the_same_of_each_text_as_a_new_one(texts: list[list[int]]):
    reader, labels = Reader(), 'namespace="search",reranker="products"'
    for waiting, answered, at in texts:
        text = (
            f"rerank_gateway_waiting_requests{{{labels}}} {waiting}\n"
            f'rerank_gateway_requests_total{{code="200",{labels},revision="a"}} {answered}\n'
            f"rerank_gateway_in_flight_requests{{{labels}}} {at} {1000 + at}\n"
            f"process_start_time_seconds {at}\n"
        ).encode()
        found = reader.read(text, {KEY})
        assert found == Reader().read(text, {KEY})
        assert found == Sample(at, {KEY: {"a": {"code/200": answered}}}, {KEY: waiting}, {KEY: at})


def test_what_a_reader_remembers_has_a_bound():
    reader = Reader()
    for number in range(30):
        lines = (
            f'rerank_gateway_waiting_requests{{namespace="search",reranker="r{number}-{line}"}} 1'
            for line in range(1000)
        )
        reader.read("\n".join(lines).encode(), {KEY})
        assert len(reader._places) <= exposition._FEWEST_SERIES
    flood = (f'rerank_gateway_waiting_requests{{namespace="search",reranker="f-{line}"}} 1' for line in range(20_000))
    reader.read("\n".join(flood).encode(), {KEY})
    assert len(reader._places) <= exposition._FEWEST_SERIES


def test_an_old_gateway_lacks_what_it_does_not_count():
    text = b'rerank_gateway_requests_total{code="200",namespace="search",reranker="products",revision="a"} 3.0\n'
    assert Reader().read(text, {KEY}) == Sample(None, {KEY: {"a": {"code/200": 3.0}}}, {}, {})


def test_names_with_quotes():
    text = b'rerank_gateway_waiting_requests{namespace="a\\"b",reranker="c"} 3.0\n'
    assert Reader().read(text, {('a"b', "c")}).waiting == {('a"b', "c"): 3.0}


@pytest.mark.parametrize("value", [b"NaN", b"+Inf", b"-Inf", b"-1", b"1e999"])
def test_what_no_process_counts_is_not_known(value: bytes):
    """A start that is NaN would differ from itself: at each look all that was ever counted would count again."""
    labels = b'{namespace="search",reranker="products"} '
    text = (
        b"process_start_time_seconds " + value + b"\n"
        b"rerank_gateway_waiting_requests" + labels + value + b"\n"
        b"rerank_gateway_in_flight_requests" + labels + b"2\n"
        b"rerank_gateway_requests_total" + labels + value + b"\n"
    )
    reader = Reader()
    for _ in range(2):  # parsed at first, remembered then
        assert reader.read(text, {KEY}) == Sample(None, {}, {}, {KEY: 2})


LONG = b'rerank_gateway_requests_total{code="' + 40_000 * b"\\\\" + b'"} 1\n'


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(b"rerank_gateway_waiting_requests{namespace=} x\n", id="no number"),
        pytest.param(b'rerank_gateway_requests_total{a="b', id="cut off"),
        pytest.param(b'rerank_gateway_requests_total{code="\xff"} 1\n', id="no text"),
        pytest.param(b'rerank_gateway_request_duration_seconds_bucket{le="soon"} 1\n', id="an edge that is no number"),
        pytest.param(b'rerank_gateway_request_duration_seconds_bucket{le="NaN"} 1\n', id="an edge that is nowhere"),
        pytest.param(b"rerank_gateway_request_duration_seconds_bucket{} 1\n", id="no edge"),
        pytest.param(b'rerank_gateway_sli_requests_total{sli="le"} 1\n', id="an objective that reads as an edge"),
        pytest.param(LONG, id="too long: the parser's time grows with its square"),
    ],
)
def test_what_is_no_exposition_is_refused(line: bytes):
    with pytest.raises(ValueError, match="not understood") as refused:
        Reader().read(b"process_start_time_seconds 1\n" + line, {KEY})
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize("text", [b"", b"<html>not metrics at all</html>\n", b"\xff\xfe", b"up 1\n"])
def test_what_tells_nothing_is_no_gateway(text: bytes):
    """Else it would pass for heard, and sums that lack it for whole."""
    with pytest.raises(ValueError, match="no metrics of a gateway"):
        Reader().read(text, {KEY})


def test_what_is_not_wanted_is_not_even_parsed():
    text = b"process_start_time_seconds 1\n<html>not metrics at all</html>\n\xff\n\n"
    assert Reader().read(text, {KEY}) == Sample(1.0)
