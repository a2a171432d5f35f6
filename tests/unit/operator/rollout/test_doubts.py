"""Scenarios in which the judge cannot keep its error probability, and such in which it was seen to."""

import random
from dataclasses import replace

import pytest
from rerank_operator.rollout.simulate.doubts import doubts
from rerank_operator.rollout.simulate.scenario import WEIGHTS, Arm, LogNormal, Samples, Scenario

PLAIN = LogNormal(0.05, 0.12)


def scenario(correlation: float | None, stable: LogNormal | Samples = PLAIN, canary: LogNormal | Samples = PLAIN):
    arms = (Arm(0.001, latency, None) for latency in (stable, canary))
    return Scenario(5, 3600, 10, 0, WEIGHTS, correlation, None, 0, 0.8, *arms)


def recorded(count: int, correlation: float = 0.0, slow: range = range(0)) -> Samples:
    """Of an autoregression of order one; those in ``slow`` take ten times as long."""
    chance, state, seconds = random.Random(1), 0.0, []
    for place in range(count):
        state = correlation * state + (1 - correlation**2) ** 0.5 * chance.gauss(0, 1)
        seconds.append(0.05 * 2.0**state * (10 if place in slow else 1))
    return Samples("recorded.txt", tuple(seconds))


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9, 0.99])
def test_what_the_judge_was_seen_to_stand_is_not_warned_of(correlation: float):
    assert doubts(scenario(correlation)) == []


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_nor_are_recordings_like_it(correlation: float):
    alike = recorded(8192, correlation)
    assert doubts(scenario(None, alike, replace(alike, file="other.txt"))) == []


@pytest.mark.parametrize("correlation", [0.997, 1.0])
def test_a_correlation_beyond_that_is(correlation: float):
    """Regression: at 1 a healthy canary was rolled back in 45 % of the runs, and nothing was said."""
    (told,) = doubts(scenario(correlation))
    assert told.startswith(f"correlation: {correlation:g} is more than 0.99")
    (told,) = doubts(scenario(correlation, recorded(100), recorded(100)))
    assert told.startswith("correlation: ")


def test_percents_that_look_like_shares_are():
    """Regression: [0.01, 0.05, 0.5, 1.0] was taken for 1 % at most, and every run was held without a word."""
    (told,) = doubts(replace(scenario(0.0), weights=(0.01, 0.05, 0.5, 1.0)))
    assert told.startswith("weights: the last of [0.01, 0.05, 0.5, 1.0] is 1 %")
    assert doubts(replace(scenario(0.0), weights=(0.5, 1.0, 5.0))) == []


def test_a_recording_that_is_slow_for_long_is():
    slow = recorded(9000, slow=range(1500))
    (told,) = doubts(scenario(None, slow, recorded(9000)))
    assert told.startswith("stable.latency.samples: numbers 1 to 1024 are nearly all on one side")


def test_a_canary_that_is_alike_where_stable_is_not_is():
    (told,) = doubts(scenario(None, PLAIN, recorded(8192, 0.9)))
    assert told.startswith("canary.latency.samples: its neighbours are alike (design effect ")
    assert doubts(scenario(None, recorded(8192, 0.9), PLAIN)) == []


def test_a_recording_of_few_is_none_of_these():
    assert doubts(scenario(None, recorded(3), recorded(3))) == []
