"""When a golden set is ranked again: within its interval, spread over the fleet, and not without end after failures."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rerank_operator.rollout.golden.schedule import FIRST_PAUSE, LONGEST_PAUSE, due, pause

NOW = 1_800_000_000.0
HOUR = 3600.0


def test_without_a_result_it_is_due_at_once():
    assert due("search/products", HOUR, None) <= 0


@given(
    st.text(max_size=20),
    st.floats(60, 168 * HOUR),
    st.floats(NOW, NOW + 365 * 24 * HOUR),
)
def test_the_next_time_is_an_interval_away_give_or_take_a_half(name: str, interval: float, last: float):
    wait = due(name, interval, last) - last
    assert interval * 0.4999 <= wait <= interval * 1.5001
    assert due(name, interval, last) == due(name, interval, last), "the same after a restart"


@given(st.text(max_size=20), st.integers(1, 30))
def test_from_then_on_it_comes_at_the_same_time_of_each_interval(name: str, rounds: int):
    first = time = due(name, HOUR, NOW)
    for _ in range(rounds):
        time = due(name, HOUR, time + 20)  # it took a while
    assert time - first == pytest.approx(rounds * HOUR)


def test_a_fleet_that_was_ranked_at_once_is_not_so_again():
    times = sorted(due(f"search/reranker-{number}", HOUR, NOW) - NOW for number in range(200))
    busiest = max(sum(begin <= time < begin + 60 for time in times) for begin in times)
    assert busiest <= 20, "some 3 a minute, and chance"


@pytest.mark.parametrize(
    ("failures", "interval", "seconds"),
    [(1, HOUR, FIRST_PAUSE), (2, HOUR, 60), (3, HOUR, 120), (99, 24 * HOUR, LONGEST_PAUSE), (4, 60, 60)],
)
def test_the_pause_after_failures_grows_up_to_a_bound(failures: int, interval: float, seconds: float):
    assert pause(failures, interval) == seconds
    assert due("search/products", interval, None, failures, NOW) == NOW + seconds


def test_a_failure_brings_no_time_forward():
    later = due("search/products", HOUR, NOW)
    assert due("search/products", HOUR, NOW, 1, NOW) == later
