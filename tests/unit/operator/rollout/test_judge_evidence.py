"""Evidence is worth what it says: by exact sums over everything that can happen, and by chance with fixed seeds."""

import math
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rerank_operator.rollout.judge.dependence import KEPT, Flags, design_effect
from rerank_operator.rollout.judge.evidence import Count, Evidence

RATES = st.floats(0.0, 1.0)
FEW = st.integers(1, 6)


def _binomial(count: int, events: int, rate: float) -> float:
    return comb(count, events) * rate**events * (1 - rate) ** (count - events)


def _mean(ratio: float, tolerated: float, guess: float, arms: tuple[int, int], rates: tuple[float, float]) -> float:
    """Of the evidence of one look, where stable and canary have these true rates."""
    total = 0.0
    for stable in range(arms[0] + 1):
        for canary in range(arms[1] + 1):
            evidence = Evidence((ratio,), tolerated=tolerated)
            evidence.begin_step()
            evidence.add(Count(arms[0], stable), Count(arms[1], canary), guess)
            chance = _binomial(arms[0], stable, rates[0]) * _binomial(arms[1], canary, rates[1])
            if chance:
                total += chance * evidence.value()
    return total


@given(st.floats(1.01, 200), st.floats(0, 0.2), RATES, FEW, FEW, RATES, st.floats(0, 1))
@settings(max_examples=300)
def test_no_canary_that_is_as_good_gathers_evidence_of_worse(
    ratio: float, tolerated: float, guess: float, stable: int, canary: int, rate: float, share: float
):
    allowed = rate + tolerated * (1 - rate)
    assert _mean(ratio, tolerated, guess, (stable, canary), (rate, share * allowed)) <= 1 + 1e-9


@given(st.floats(0.005, 0.99), st.floats(0, 0.2), RATES, FEW, FEW, RATES, st.floats(0, 1))
@settings(max_examples=300)
def test_no_canary_that_is_worse_by_the_margin_gathers_evidence_of_fine(
    ratio: float, margin: float, guess: float, stable: int, canary: int, rate: float, share: float
):
    least = rate + margin * (1 - rate)
    assert _mean(ratio, margin, guess, (stable, canary), (rate, least + share * (1 - least))) <= 1 + 1e-9


def test_an_arm_without_requests_is_no_evidence():
    evidence = Evidence((2.0,))
    evidence.begin_step()
    evidence.add(Count(100, 0), Count(0, 0), 0.1)
    evidence.add(Count(0, 0), Count(100, 100), 0.1)
    assert evidence.value() == 1.0


def test_the_first_step_has_half_of_the_weight_and_steps_to_come_count_as_one():
    evidence = Evidence((10.0,), steps=3)
    evidence.begin_step()
    evidence.add(Count(99, 0), Count(1, 1), 0.01)
    first = math.exp(evidence.logs[0][0])
    assert first > 1
    assert evidence.value() == pytest.approx((first + (1 + 1) / 2) / 2)
    evidence.begin_step()
    assert evidence.value() == pytest.approx((first + (1 + 1) / 2) / 2)
    evidence.add(Count(99, 0), Count(1, 1), 0.01)
    assert evidence.value() == pytest.approx((first**2 + (first + 1) / 2) / 2)


def test_trouble_that_begins_with_a_later_step_is_not_hidden_by_the_good_steps_before():
    late, single = Evidence((10.0,), steps=2), Evidence((10.0,), steps=1)
    for evidence in (late, single):
        evidence.begin_step()
        for _ in range(200):
            evidence.add(Count(50, 1), Count(50, 0), 0.01)
    late.begin_step()
    for evidence in (late, single):
        for _ in range(10):
            evidence.add(Count(50, 0), Count(50, 5), 0.01)
    assert late.value() > 1000
    assert single.value() < 1


def test_a_thousand_events_are_no_overflow():
    evidence = Evidence((100.0,))
    evidence.begin_step()
    evidence.add(Count(10_000, 0), Count(10_000, 10_000), 0.001)
    assert evidence.value() == math.inf


def _autoregression(chance: np.random.Generator, length: int, correlation: float) -> np.ndarray:
    values = [chance.standard_normal()]
    for news in chance.standard_normal(length - 1) * (1 - correlation**2) ** 0.5:
        values.append(correlation * values[-1] + news)
    return np.array(values)


@pytest.mark.parametrize("quantile", [0.5, 0.95])
@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_the_design_effect_is_what_counts_really_vary_by(correlation: float, quantile: float):
    chance = np.random.default_rng(3)
    values = _autoregression(chance, 400_000, correlation)
    events = values > np.quantile(values, quantile)
    blocks = events.reshape(-1, 1000).sum(axis=1)
    true = blocks.var() / (1000 * quantile * (1 - quantile))
    found = []
    for begin in range(0, 400_000, 20_000):
        flags = Flags()
        flags.extend(events[begin : begin + KEPT].tolist())
        found.append(design_effect(flags) or 1.0)
    assert 0.8 * true < np.median(found) < 1.8 * true


def test_independent_requests_have_none():
    chance = np.random.default_rng(4)
    effects = []
    for _ in range(100):
        flags = Flags()
        flags.extend((chance.random(2000) < 0.05).tolist())
        effects.append(design_effect(flags))
    assert sum(effect == 1.0 for effect in effects) >= 90


@pytest.mark.parametrize(("events", "length"), [(0, 1000), (19, 1000), (981, 1000), (5, 10)])
def test_too_few_events_say_nothing_of_dependence(events: int, length: int):
    flags = Flags()
    flags.extend([True] * events + [False] * (length - events))
    assert design_effect(flags) is None


@given(st.lists(st.lists(st.booleans(), max_size=50), max_size=20))
def test_flags_are_the_same_in_parts_and_at_once(parts: list[list[bool]]):
    one, other = Flags(), Flags()
    for part in parts:
        one.extend(part)
    other.extend([flag for part in parts for flag in part])
    assert one == other
    assert one.bits.bit_count() == sum(map(sum, parts))


def test_only_the_latest_requests_are_kept():
    flags = Flags()
    flags.extend([True] * 5)
    flags.extend([False] * KEPT)
    assert flags == Flags(0, KEPT)
