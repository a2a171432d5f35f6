"""That a canary is not slower, shown interval by interval, whatever slows both arms at once."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from rerank_operator.rollout.judge.intervals import ANSWERS, KEPT, Intervals, Sample
from rerank_operator.rollout.judge.judge import Judge, Settings
from rerank_operator.rollout.judge.windows import Window


def fresh() -> Intervals:
    return Intervals((0.5, 0.95), [0, 0], [0, 0])


@given(st.lists(st.integers(0, 700), max_size=12))
def test_a_sample_is_bounded_and_spread_evenly_over_all_that_came(sizes: list[int]):
    sample, number = Sample(), 0
    for size in sizes:
        sample.add([float(each) for each in range(number, number + size)])
        number += size
    assert sample.came == number
    assert len(sample.seconds) <= KEPT
    assert sample.seconds == [float(each) for each in range(0, number, sample.every)]


def test_an_interval_ends_when_both_arms_have_enough_answers():
    intervals = fresh()
    intervals.add([1.0] * 5000, [1.0] * (ANSWERS - 1), 0.2)
    assert (intervals.fine, intervals.slower) == ([0, 0], [0, 0])
    intervals.add([], [1.0], 0.2)
    assert (intervals.fine, intervals.slower) == ([1, 1], [0, 0])
    assert (intervals.stable.came, intervals.canary.came) == (0, 0)


def test_slower_by_the_margin_or_more_in_one_quantile_counts_there():
    intervals = fresh()
    stable = [0.1] * 90 + [0.3] * 10
    intervals.add(stable, [0.1] * 90 + [0.36] * 10, 0.2)
    assert (intervals.fine, intervals.slower) == ([1, 0], [0, 1])
    assert intervals.value(0) > 1 > intervals.value(1)


def passed(ratio: float, runs: int = 300, intervals: int = 100) -> float:
    """Share of runs in which evidence of 10 comes up, of a canary that takes so many times as long."""
    chance, found = np.random.default_rng(1), 0
    for _ in range(runs):
        seen = fresh()
        for _ in range(intervals):
            stable, canary = 0.1 * np.exp(0.5 * chance.standard_normal((2, ANSWERS)))
            seen.add(stable.tolist(), (ratio * canary).tolist(), 0.2)
            if seen.value(1) >= 10:
                found += 1
                break
    return found / runs


def test_a_canary_that_is_slower_by_the_margin_passes_in_one_of_ten_runs_at_most():
    assert passed(1.2) <= 0.1
    assert passed(1.3) <= 0.01
    assert passed(1.0) >= 0.99


def test_what_slows_both_arms_at_once_does_not_keep_a_good_canary_waiting():
    """Waves of load, each some hundreds of requests long: they make requests alike, and neither arm slower."""
    chance = np.random.default_rng(2)
    level, looks, verdict = 0.0, 0, None

    def arm(count: int) -> Window:
        return Window((0.04 * np.exp(level + 0.3 * chance.standard_normal(count))).tolist())

    judge = Judge((50,), arm(2000), Settings(step_requests=20, step_seconds=0), golden=False)
    while verdict is None or verdict.action == "hold":
        looks += 1
        level = 0.99 * level + 0.1 * chance.standard_normal()
        verdict = judge.look(float(looks), arm(10), arm(10))
        assert looks < 300, verdict
    assert verdict.action == "promote"
