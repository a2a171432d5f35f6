"""Whether the requests that are drawn are those that a scenario describes. All seeds are fixed; each bound is about
five standard errors, so a change of the draws stays within it and a wrong distribution does not."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rerank_operator.rollout.simulate.scenario import Arm, Bursts, LogNormal, Quality, Samples, Scenario
from rerank_operator.rollout.simulate.traffic import BASELINE_REQUESTS, Traffic, expected

ARM = Arm(0.01, LogNormal(0.05, 0.12), None)
SCENARIO = Scenario(
    requests_per_second=100.0,
    horizon=3600.0,
    runs=1,
    seed=1,
    weights=(50.0,),
    correlation=0.0,
    bursts=None,
    golden_queries=0,
    golden_correlation=0.8,
    stable=ARM,
    canary=ARM,
)
RECORDED = tuple(0.02 + 0.001 * (place * 7919 % 500) for place in range(500))
"""500 different values in no order."""
SAMPLES = Arm(0.0, Samples("recorded.txt", RECORDED), None)


def drawn(scenario: Scenario, requests: int = 40_000) -> np.ndarray:
    """Seconds of so many of the canary's requests, in order."""
    traffic = Traffic(scenario, 0)
    _, canary = traffic.between(0, 1.1 * requests / scenario.requests_per_second, 100)
    return np.array(canary.seconds[:requests])


def lag_one(seconds: np.ndarray) -> float:
    logs = np.log(seconds)
    return float(np.corrcoef(logs[:-1], logs[1:])[0, 1])


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_latencies_have_the_stated_quantiles_and_correlation(correlation: float):
    seconds = drawn(replace(SCENARIO, correlation=correlation))
    # An autoregression of n values knows its quantiles as well as n(1-r)/(1+r) independent ones do, or better.
    enough = 5 / math.sqrt(len(seconds) * (1 - correlation) / (1 + correlation))
    assert abs(np.mean(seconds <= 0.05) - 0.5) < enough * 0.5
    assert abs(np.mean(seconds <= 0.12) - 0.95) < enough * math.sqrt(0.05 * 0.95)
    assert abs(lag_one(seconds) - correlation) < 5 * math.sqrt((1 - correlation**2) / len(seconds))


def test_correlation_fades_as_an_autoregression_does():
    logs = np.log(drawn(replace(SCENARIO, correlation=0.8)))
    assert np.corrcoef(logs[:-3], logs[3:])[0, 1] == pytest.approx(0.8**3, abs=0.03)


def test_full_correlation_makes_all_latencies_of_an_arm_alike():
    traffic = Traffic(replace(SCENARIO, correlation=1.0), 0)
    stable, canary = traffic.between(0, 60, 50)
    assert len({*traffic.baseline.seconds, *stable.seconds}) == len(set(canary.seconds)) == 1


@pytest.mark.parametrize("correlation", [0.0, 0.6])
def test_samples_with_a_correlation_keep_their_distribution(correlation: float):
    seconds = drawn(replace(SCENARIO, canary=SAMPLES, correlation=correlation))
    assert set(seconds) <= set(RECORDED)
    assert np.mean(seconds) == pytest.approx(np.mean(RECORDED), rel=0.03)
    for share in (0.1, 0.5, 0.9):
        assert np.mean(seconds <= np.quantile(RECORDED, share)) == pytest.approx(share, abs=0.03)
    # Ranks carry the stated correlation, the logs nearly so: the tails of the normal are cut to what was recorded.
    assert lag_one(seconds) == pytest.approx(correlation, abs=0.05)


def test_samples_without_a_correlation_are_replayed_in_order():
    scenario = replace(SCENARIO, stable=SAMPLES, canary=SAMPLES, correlation=None)
    traffic = Traffic(scenario, 0)
    after = dict(pairwise([*RECORDED, RECORDED[0]]))
    windows = [traffic.between(second, second + 1, 20) for second in range(30)]
    stable = [*traffic.baseline.seconds, *(value for window, _ in windows for value in window.seconds)]
    canary = [value for _, window in windows for value in window.seconds]
    for seconds in (stable, canary):
        assert len(seconds) > len(RECORDED)
        assert all(after[one] == other for one, other in pairwise(seconds))
    begins = {Traffic(scenario, run).baseline.seconds[0] for run in range(20)}
    assert len(begins) > 10  # from a random place


def test_requests_come_as_a_poisson_process_of_the_stated_rate():
    traffic = Traffic(replace(SCENARIO, requests_per_second=5.0), 0)
    counts = np.array([sum(len(arm.seconds) for arm in traffic.between(t, t + 2, 30)) for t in range(0, 8000, 2)])
    assert counts.mean() == pytest.approx(10, abs=5 * math.sqrt(10 / len(counts)))
    assert counts.var() == pytest.approx(10, rel=5 * math.sqrt(2 / len(counts)))


def test_each_request_goes_to_the_canary_by_itself_with_the_weight():
    traffic = Traffic(SCENARIO, 0)
    sizes = [
        (len(stable.seconds), len(canary.seconds))
        for stable, canary in (traffic.between(t, t + 1, 5) for t in range(900))
    ]
    requests, canary = sum(map(sum, sizes)), sum(size[1] for size in sizes)
    assert canary / requests == pytest.approx(0.05, abs=5 * math.sqrt(0.05 * 0.95 / requests))
    assert np.var([size[1] for size in sizes]) == pytest.approx(5, rel=0.25)  # an exact split would hardly vary
    assert Traffic(SCENARIO, 0).between(0, 100, 0)[1].seconds == []


def test_bursts_come_first_and_again():
    scenario = replace(SCENARIO, bursts=Bursts(factor=4, on=10, off=50))
    traffic = Traffic(scenario, 0)
    counts = [sum(len(arm.seconds) for arm in traffic.between(t, t + 10, 50)) for t in range(0, 600, 10)]
    for place, count in enumerate(counts):
        mean = 4000 if place % 6 == 0 else 1000
        assert abs(count - mean) < 5 * math.sqrt(mean)


@pytest.mark.parametrize(
    ("seconds", "requests"), [(0, 0), (5, 40), (10, 80), (35, 130), (60, 180), (65, 220), (120, 360), (610, 1880)]
)
def test_expected_requests_with_bursts(seconds: float, requests: float):
    scenario = replace(SCENARIO, requests_per_second=2.0, bursts=Bursts(factor=4, on=10, off=50))
    assert expected(scenario, seconds) == pytest.approx(requests)


@given(
    factor=st.floats(0.01, 100),
    on=st.floats(0.1, 1000),
    off=st.floats(0.1, 1000),
    begin=st.floats(0, 1e5),
    length=st.floats(0, 1e5),
)
def test_requests_to_be_expected_never_fall(factor: float, on: float, off: float, begin: float, length: float):
    scenario = replace(SCENARIO, bursts=Bursts(factor, on, off))
    assert expected(scenario, begin + length) - expected(scenario, begin) >= -1e-6 * expected(scenario, begin)


def test_failures_come_by_themselves_at_the_stated_rate():
    traffic = Traffic(SCENARIO, 0)
    windows = [traffic.between(t, t + 1, 50)[1] for t in range(800)]
    requests = sum(len(window.seconds) for window in windows)
    failed = sum(len(window.failed) for window in windows)
    assert failed / requests == pytest.approx(0.01, abs=5 * math.sqrt(0.01 * 0.99 / requests))
    for window in windows:
        assert list(window.failed) == sorted(set(window.failed))
        assert all(0 <= place < len(window.seconds) for place in window.failed)
    slow = [window.seconds[place] for window in windows for place in window.failed]
    assert np.mean(np.array(slow) <= 0.05) == pytest.approx(0.5, abs=2.5 / math.sqrt(len(slow)))


def test_no_errors_and_nothing_but_errors():
    scenario = replace(SCENARIO, stable=replace(ARM, error_rate=0.0), canary=replace(ARM, error_rate=1.0))
    traffic = Traffic(scenario, 0)
    stable, canary = traffic.between(0, 10, 50)
    assert (traffic.baseline.failed, stable.failed) == ([], [])
    assert canary.failed == list(range(len(canary.seconds)))


def test_the_baseline_is_stables():
    traffic = Traffic(replace(SCENARIO, stable=replace(ARM, latency=LogNormal(9, 10))), 0)
    assert len(traffic.baseline.seconds) == BASELINE_REQUESTS
    assert min(traffic.baseline.seconds) > 5


@given(cuts=st.lists(st.floats(0, 60), max_size=8))
def test_the_nth_request_of_an_arm_does_not_depend_on_the_looks(cuts: list[float]):
    """Judges that look at other times would otherwise be compared by luck."""
    scenario = replace(SCENARIO, correlation=0.5, canary=replace(ARM, error_rate=0.2))
    whole = Traffic(scenario, 3).between(0, 100, 100)[1]
    traffic, seconds, failed = Traffic(scenario, 3), [], []
    for begin, end in pairwise([0, *sorted(cuts), 60]):
        window = traffic.between(begin, end, 100)[1]
        failed += [len(seconds) + place for place in window.failed]
        seconds += window.seconds
    assert seconds == list(whole.seconds[: len(seconds)])
    assert failed == [place for place in whole.failed if place < len(seconds)]


def test_golden_queries_are_as_hard_for_both_arms_as_stated():
    scenario = replace(
        SCENARIO,
        golden_queries=20_000,
        stable=replace(ARM, quality=Quality(0.5, 0.1)),
        canary=replace(ARM, quality=Quality(0.48, 0.12)),
    )
    stable, canary = (np.array(arm) for arm in Traffic(scenario, 0).golden())
    assert len(stable) == len(canary) == 20_000
    assert np.mean(stable) == pytest.approx(0.5, abs=0.004)
    assert np.mean(canary) == pytest.approx(0.48, abs=0.005)
    assert (np.std(stable), np.std(canary)) == pytest.approx((0.1, 0.12), rel=0.03)
    assert np.corrcoef(stable, canary)[0, 1] == pytest.approx(0.8, abs=0.015)


def test_ndcg_stays_between_0_and_1():
    arm = replace(ARM, quality=Quality(0.9, 0.5))
    stable, canary = Traffic(replace(SCENARIO, golden_queries=500, stable=arm, canary=arm), 0).golden()
    assert {min(stable), max(stable), min(canary), max(canary)} == {0.0, 1.0}


def test_without_a_golden_set_there_is_nothing_to_compare():
    assert Traffic(SCENARIO, 0).golden() == ([], [])


def test_the_seed_and_the_runs_number_decide_everything():
    def first(seed: int, run: int) -> list[float]:
        return list(Traffic(replace(SCENARIO, seed=seed), run).between(0, 1, 50)[1].seconds)

    assert first(1, 0) == first(1, 0)
    assert len({tuple(first(seed, run)) for seed in (0, 1, 2**63) for run in (0, 1)}) == 6
