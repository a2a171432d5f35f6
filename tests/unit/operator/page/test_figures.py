"""The hour of figures: gaps, restarts, large fleets, windows, and that memory has a bound."""

import math
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rerank_operator.page.exposition import Sample
from rerank_operator.page.figures import COLUMNS, FULL_DETAIL, MOST_REVISIONS, SPAN_SECONDS, Figures, Staff

KEY = ("search", "products")
STAFF = {KEY: Staff(2, 3, 1)}


def sample(amount: float, *, began: float = 1.0, waiting: float = 0.0, revision: str = "a") -> Sample:
    counts = {"code/200": amount, "availability/total": amount, "availability/good": amount}
    counts |= {"le/0.1": amount, "le/+Inf": amount}
    return Sample(began, {KEY: {revision: counts}}, {KEY: waiting}, {KEY: 0.0})


def column(figures: Figures, name: str) -> list[float | None]:
    points = figures.points(KEY)
    assert points is not None
    return [None if math.isnan(value) else round(value, 3) for value in points.columns[name]]


def test_a_rate_needs_two_looks():
    figures = Figures()
    figures.take(0, {"g": sample(100)}, STAFF)
    assert column(figures, "rate") == [None]
    assert figures.window(KEY, 60) is None
    figures.take(5, {"g": sample(110)}, STAFF)
    assert column(figures, "rate") == [None, 2.0]
    assert (column(figures, "ready"), column(figures, "desired")) == ([2, 2], [3, 3])
    window = figures.window(KEY, 60)
    assert window is not None
    assert (window.seconds, window.rate) == (5, 2.0)
    assert column(figures, "p95") == [None, 0.095]


def test_gateways_add_up_and_one_that_is_not_heard_is_no_zero():
    figures = Figures()
    figures.take(0, {"g": sample(0), "h": sample(0)}, STAFF)
    figures.take(5, {"g": sample(10), "h": sample(5)}, STAFF)
    figures.take(10, {"g": sample(20), "h": None}, STAFF)
    figures.take(15, {"g": None, "h": None}, STAFF)
    figures.take(20, {"g": sample(40), "h": sample(20)}, STAFF)
    # At 10 at least so much; at 15 nothing is known; at 20 both tell of the time since they were heard last.
    assert column(figures, "rate") == [None, 3.0, 2.0, None, 3.0]
    assert column(figures, "partial") == [0, 0, 1, 1, 0]
    assert column(figures, "waiting") == [0, 0, 0, None, 0]
    ever = figures.ever(KEY)
    assert ever is not None
    assert ever.counts["code/200"] == 60


@pytest.mark.parametrize("others", [{}, {"h": True}], ids=["the only one", "one of two"])
def test_what_was_counted_unheard_is_no_burst(others: dict[str, bool]):
    """It is of all the time since the gateway was heard last, and not of the last minute."""
    figures = Figures()
    for at in range(0, 1010, 5):
        heard = at <= 400 or at == 1005
        looks: dict[str, Sample | None] = {"g": sample(10.0 * at) if heard else None}
        figures.take(at, looks | {name: sample(2.0 * at) for name in others}, STAFF)
    minute, minutes, ever = figures.window(KEY, 60), figures.window(KEY, 300), figures.ever(KEY)
    assert minute is not None
    assert minutes is not None
    assert ever is not None
    expected = pytest.approx(12.0 if others else 10.0)
    assert (minute.rate, minutes.rate, ever.rate) == (expected, expected, expected)
    assert figures.revisions(KEY, 300)["a"].rate == expected
    assert column(figures, "rate")[-1] == expected


def test_without_any_gateway_nothing_is_known():
    figures = Figures()
    for at in range(0, 30, 5):
        figures.take(at, {}, STAFF)
    assert column(figures, "rate") == [None] * 6
    assert figures.last is None
    assert figures.waiting(KEY) is None
    assert figures.window(KEY, 60) is None


def test_a_reranker_that_no_gateway_tells_of_has_no_rate():
    figures = Figures()
    for at in (0, 5, 10):
        figures.take(at, {"g": Sample(1.0)}, STAFF)
    assert column(figures, "rate") == [None] * 3
    window = figures.window(KEY, 60)
    assert window is not None
    assert window.rate is None


def test_windows_end_with_the_last_look_and_are_as_long_as_is_known():
    figures = Figures()
    for at in range(0, 405, 5):
        figures.take(at, {"g": sample(2.0 * at)}, STAFF)
    minute, minutes = figures.window(KEY, 60), figures.window(KEY, 300)
    assert minute is not None
    assert minutes is not None
    assert 60 <= minute.seconds <= 75
    assert 300 <= minutes.seconds <= 315
    assert (minute.rate, minutes.rate) == (2.0, 2.0)
    assert minutes.served("availability") == (600, 600) or minutes.seconds > 300
    assert minutes.served("latency") is None


def test_revisions_are_told_apart_and_bounded():
    figures = Figures()
    figures.take(0, {"g": sample(0)}, STAFF)
    for number in range(1, 30):
        figures.take(5 * number, {"g": sample(10.0 * number, revision=f"r{number}")}, STAFF)
    found = figures.revisions(KEY, 300)
    assert len(found) == MOST_REVISIONS
    assert "r29" in found
    ever = figures.ever(KEY)
    assert ever is not None
    assert ever.counts["code/200"] == sum(10.0 * number for number in range(1, 30))


def test_who_is_gone_is_forgotten_and_a_namesake_begins_anew():
    figures = Figures()
    figures.take(0, {"g": sample(0)}, STAFF)
    figures.take(5, {"g": sample(10)}, STAFF)
    figures.take(10, {"g": Sample(1.0)}, {})
    assert figures.points(KEY) is None
    figures.take(15, {"g": sample(10)}, STAFF)
    figures.take(20, {"g": sample(15)}, STAFF)
    assert column(figures, "rate") == [None, 1.0]


def test_after_an_hour_the_oldest_go():
    figures = Figures()
    for look in range(1000):
        figures.take(5.0 * look, {"g": sample(10.0 * look)}, STAFF)
    points = figures.points(KEY)
    assert points is not None
    assert len(points.times) == 720
    assert points.times == sorted(points.times)
    assert (points.times[0], points.times[-1]) == (5.0 * 280, 5.0 * 999)
    assert set(map(len, points.columns.values())) == {720}
    assert set(column(figures, "rate")) == {2.0}


def test_a_large_fleet_has_fewer_points():
    figures = Figures()
    staff = {("search", str(number)): Staff() for number in range(FULL_DETAIL)} | STAFF
    for look in range(8):
        figures.take(5.0 * look, {"g": sample(10.0 * look)}, staff)
    points = figures.points(KEY)
    assert points is not None
    assert points.times == [5, 15, 25, 35]
    assert column(figures, "rate") == [2.0] * 4


def test_memory_has_a_bound():
    """1,000 Rerankers, all busy, with 25 buckets each, for long enough that every ring and window is full."""
    keys = [("search", str(number)) for number in range(1000)]
    staff = {key: Staff(1, 1, 0) for key in keys}

    def look(number: int) -> Sample:
        counts = {f"le/{edge}": float(number * edge) for edge in range(25)} | {"code/200": 1.0 * number}
        return Sample(1.0, {key: {"a": dict(counts)} for key in keys}, dict.fromkeys(keys, 0.0))

    figures = Figures()
    tracemalloc.start()
    for number in range(24):
        figures.take(15.0 * number, {"g": look(number)}, staff)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(f"{held / 2**20:.0f} MiB for 1,000 busy Rerankers")
    assert held < 64 * 2**20


@given(
    st.lists(st.tuples(st.integers(0, 30), st.booleans(), st.booleans(), st.floats(0.5, 30)), min_size=2, max_size=60)
)
def test_whatever_gateways_do_nothing_is_invented(looks: list[tuple[int, bool, bool, float]]):
    """Each look: requests since the one before, whether the gateway is heard, whether it restarts, seconds."""
    figures, counted, process, at, asked = Figures(), 0.0, 1.0, 0.0, 0.0
    for requests, heard, restarts, seconds in looks:
        at += seconds
        if restarts:
            counted, process = 0.0, process + 1
        counted += requests
        asked += requests
        figures.take(at, {"g": sample(counted, began=process) if heard else None}, STAFF)
        points = figures.points(KEY)
        assert points is not None
        assert set(points.columns) == set(COLUMNS)
        assert all(math.isnan(value) or value >= 0 for values in points.columns.values() for value in values)
        assert math.isnan(points.columns["rate"][-1]) or heard
        for window in (figures.window(KEY, 60), figures.window(KEY, 300)):
            assert window is None or all(0 <= value <= asked for value in window.counts.values())
    ever = figures.ever(KEY)
    if ever is not None and ever.counts:
        assert 0 <= ever.counts["code/200"] <= asked
        assert ever.seconds <= at


def test_only_the_last_hour_is_told_however_seldom_looks_come():
    figures = Figures()
    for number in range(200):
        figures.take(60.0 * number, {"g": sample(0)}, STAFF)
    points = figures.points(KEY)
    assert points is not None
    assert (points.times[0], points.times[-1]) == (60.0 * 199 - SPAN_SECONDS, 60.0 * 199)
