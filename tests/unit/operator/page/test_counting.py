"""Counters: what has come between two looks, over restarts, resets and other edges; and quantiles."""

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rerank_operator.page.counting import added, binned, failed, increase, less, quantile, requests, since
from rerank_operator.page.exposition import Sample

KEY = ("search", "products")
ROUNDING = 1e-12
"""Of interpolating to the very end of a bin."""


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        pytest.param({"code/200": 5}, {"code/200": 7}, {"code/200": 2}, id="counted on"),
        pytest.param({}, {"code/200": 7}, {"code/200": 7}, id="new series"),
        pytest.param({"code/200": 5}, {"code/200": 3}, {"code/200": 3}, id="fell: began anew"),
        pytest.param(
            {"le/0.1": 3, "le/+Inf": 9}, {"le/0.1": 4, "le/+Inf": 4}, {"le/0.1": 4, "le/+Inf": 4},
            id="a histogram begins anew as a whole",
        ),
        pytest.param(
            {"le/0.1": 3, "le/+Inf": 3}, {"le/0.2": 4, "le/+Inf": 4}, {"le/0.2": 4, "le/+Inf": 4},
            id="an edge has gone: it is another histogram",
        ),
        pytest.param(
            {"code/200": 9, "latency/total": 5}, {"code/200": 1, "latency/total": 6},
            {"code/200": 1, "latency/total": 1}, id="of another family nothing follows",
        ),
    ],
)  # fmt: skip
def test_what_has_come_since(before: dict[str, float], now: dict[str, float], expected: dict[str, float]):
    assert increase(before, now) == expected


def sample(began: float | None, **counts: dict[str, float]) -> Sample:
    return Sample(began, {KEY: counts})


def test_another_process_counts_from_zero_even_where_it_has_counted_more():
    found = since(sample(1.0, a={"code/200": 5}), sample(2.0, a={"code/200": 8}))
    assert found == {KEY: {"a": {"code/200": 8}}}


@pytest.mark.parametrize(("before", "now"), [(1.0, None), (None, 1.0), (None, None)])
def test_a_process_that_does_not_tell_when_it_began_is_not_another_one(before: float | None, now: float | None):
    """A gateway without a file descriptor to spare cannot read it: all that it ever counted would come again."""
    found = since(sample(before, a={"code/200": 5}), sample(now, a={"code/200": 8}))
    assert found == {KEY: {"a": {"code/200": 3}}}


def test_a_reranker_that_was_not_looked_at_before_is_where_counting_begins():
    """Its series may be of a namesake that was deleted: they stay in a gateway for a while."""
    assert since(Sample(1.0), sample(1.0, a={"code/200": 8})) == {}
    assert since(Sample(1.0), sample(2.0, a={"code/200": 8})) == {KEY: {"a": {"code/200": 8}}}


def test_a_new_revision_of_a_known_reranker_counts_from_zero():
    before, now = sample(1.0, a={"code/200": 8}), sample(1.0, a={"code/200": 8}, b={"code/200": 2})
    assert since(before, now) == {KEY: {"a": {"code/200": 0}, "b": {"code/200": 2}}}


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.booleans()), max_size=40))
def test_sums_are_what_was_asked_whatever_restarts(steps: list[tuple[int, int, bool]]):
    """Each step: requests between two looks, and whether the process was another one at the second."""
    counted, asked, total, process = 0, 0, 0.0, 1.0
    before = sample(process, a={"code/200": 0.0})
    for ok, _, restarted in steps:
        if restarted:
            process, counted = process + 1, 0
        counted += ok
        asked += ok
        now = sample(process, a={"code/200": float(counted)})
        total += requests(since(before, now)[KEY]["a"])
        before = now
    assert total == asked


@given(st.dictionaries(st.sampled_from(["code/200", "le/0.1", "le/+Inf"]), st.floats(0, 1e9)), st.data())
def test_nothing_negative_ever_comes(before: dict[str, float], data: st.DataObject):
    now = data.draw(st.dictionaries(st.sampled_from(["code/200", "le/0.1", "le/+Inf"]), st.floats(0, 1e9)))
    assert all(value >= 0 for value in binned(increase(before, now)).values())


def test_bins_of_other_edges_add_up():
    one = binned({"le/0.1": 1, "le/0.2": 3, "le/+Inf": 3})
    other = binned({"le/0.15": 5, "le/+Inf": 6})
    assert one == {"le/0.1": 1, "le/0.2": 2, "le/+Inf": 0}
    assert added(one, other) == {"le/0.1": 1, "le/0.15": 5, "le/0.2": 2, "le/+Inf": 1}
    assert less(added(one, other), one) == {"le/0.1": 0, "le/0.15": 5, "le/0.2": 0, "le/+Inf": 1}


@pytest.mark.parametrize(
    ("share", "counts", "expected"),
    [
        # As Prometheus' histogram_quantile has it.
        (0.5, {"le/0.1": 0, "le/0.2": 10, "le/+Inf": 10}, 0.15),
        (0.95, {"le/0.1": 90, "le/0.2": 100, "le/+Inf": 100}, 0.15),
        (0.25, {"le/0.1": 100, "le/+Inf": 100}, 0.025),
        (0.99, {"le/0.1": 90, "le/+Inf": 100}, 0.1),
        (1.0, {"le/0.1": 1, "le/0.2": 2, "le/+Inf": 2}, 0.2),
        (0.5, {"le/0.1": 0, "le/+Inf": 0}, None),
        (0.5, {}, None),
    ],
)
def test_quantiles(share: float, counts: dict[str, float], expected: float | None):
    found = quantile(share, binned(counts))
    assert found == (None if expected is None else pytest.approx(expected))


@given(
    st.lists(st.floats(0.001, 20), min_size=1, max_size=60),
    st.sampled_from([0.5, 0.9, 0.95, 0.99]),
)
@example([1.0, 1.0, 1.0, 0.5, 0.5, 0.5], 0.5)
def test_a_quantile_lies_in_the_bin_of_the_true_one(times: list[float], share: float):
    edges = [0.01, 0.1, 0.5, 1.0, 5.0, math.inf]
    counts = {f"le/{'+Inf' if math.isinf(edge) else edge}": float(sum(t <= edge for t in times)) for edge in edges}
    true = sorted(times)[max(0, math.ceil(share * len(times)) - 1)]
    upper = next(edge for edge in edges if true <= edge)
    lower = max((edge for edge in edges if edge < true), default=0.0)
    found = quantile(share, binned(counts))
    assert found is not None
    assert lower - ROUNDING <= found <= (5.0 if math.isinf(upper) else upper) + ROUNDING


def test_who_is_at_fault():
    counts = {"code/200": 90.0, "code/400": 5.0, "code/429": 2.0, "code/499": 1.0, "code/503": 2.0, "le/0.1": 90.0}
    assert requests(counts) == 100
    assert failed(counts) == 4
