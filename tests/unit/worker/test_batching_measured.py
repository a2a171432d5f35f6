"""What the engine thread learns: how long batches take, how fast it is, when company comes, what fits into memory."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rerank_worker.measured import (
    BEST_CASE,
    ENOUGH,
    FORGET_AFTER,
    GROW_AFTER,
    STALL_SAFETY,
    STEP,
    UNMEASURED,
    BatchTimes,
    Budget,
    Company,
    Speed,
    stall_limit,
)

BUDGET = 1000


def times(*batches: tuple[int, float]) -> BatchTimes:
    found = BatchTimes()
    for cost, seconds in batches:
        found.add(cost, cost, seconds, BUDGET)
    return found


@given(st.floats(0, 0.1), st.floats(1e-6, 1e-3), st.lists(st.integers(1, 5000), min_size=2, max_size=50))
def test_the_fixed_part_of_a_batch_is_told_from_the_tokens(fixed: float, each: float, costs: list[int]) -> None:
    costs = [*costs, 10, 2000]
    found = times(*((cost, fixed + cost * each) for cost in costs))
    assert found.saved() == pytest.approx(fixed, abs=1e-6)
    assert found.seconds(3000) == pytest.approx(fixed + 3000 * each, rel=1e-3)


@pytest.mark.parametrize(
    ("why", "batches", "saved", "of_200"),
    [
        ("nothing is known", [], 0.0, None),
        ("batches of one size", [(100, 0.1), (100, 0.1)], 0.0, 0.2),
        ("larger ones were faster: noise", [(100, 0.2), (300, 0.1)], 0.15, 0.15),
        ("more than in proportion", [(100, 0.1), (200, 0.4)], 0.0, 0.4),
    ],
)
def test_what_cannot_be_told_is_not_gained(
    why: str, batches: list[tuple[int, float]], saved: float, of_200: float | None
) -> None:
    found = times(*batches)
    assert found.saved() == pytest.approx(saved, rel=0.05), why
    seconds = found.seconds(200)
    assert seconds == (None if of_200 is None else pytest.approx(of_200, rel=0.2)), why


def test_the_engine_follows_what_it_becomes() -> None:
    found = times(*[(100, 1.0), (200, 1.1)] * 100, *[(100, 0.01), (200, 0.02)] * 200)
    assert found.seconds(200) == pytest.approx(0.02, rel=0.05)


def test_the_fastest_speed_is_known_from_full_batches_only() -> None:
    assert times((10, 0.01), (20, 0.01)).fastest() == math.inf
    assert times((10, 0.01), (1000, 0.5), (1000, 0.3)).fastest() == pytest.approx(BEST_CASE * 2500, rel=0.02)
    padded = BatchTimes()
    padded.add(cost=1000, tokens=600, seconds=1.0, budget=BUDGET)
    assert padded.fastest() == BEST_CASE * 600


def test_company_is_expected_after_the_mean_time() -> None:
    company = Company()
    assert company.expected(0.0) == math.inf
    company.begin("a", 0.0)
    assert company.expected(0.1) == math.inf, "nothing is known of how long it takes"
    company.end("a", 0.2)
    assert company.expected(0.3) == math.inf
    company.begin("b", 1.0)
    company.begin("c", 1.1)
    assert company.expected(1.15) == pytest.approx(0.05)
    company.end("b", 1.2)
    assert company.expected(1.2) == pytest.approx(0.1)
    assert company.expected(2.1) == pytest.approx(1.0), "a large one is not just about to come"
    assert len(company) == 1


def test_the_budget_is_halved_and_grows_again_in_small_steps() -> None:
    budget = Budget(1000, 1000)
    assert budget.fitted(1000) is budget
    budget = budget.out_of_memory(1000)
    assert (budget.tokens, budget.failed) == (500, 1000)
    for _ in range(GROW_AFTER - 1):
        budget = budget.fitted(500)
    assert budget.tokens == 500
    assert budget.fitted(100).tokens == 500, "a small batch tells nothing"
    assert budget.fitted(400).tokens == 531
    for _ in range(FORGET_AFTER - GROW_AFTER):
        budget = budget.fitted(budget.tokens)
    assert budget.tokens == 875
    for _ in range(3 * GROW_AFTER):
        budget = budget.fitted(budget.tokens)
    assert (budget.tokens, budget.failed) == (1000, None), "what shared the memory may be gone"


@given(st.integers(16, 200_000), st.floats(0.01, 1.0), st.integers(0, 99))
def test_a_size_that_failed_is_not_tried_again_for_long(limit: int, share: float, seed: int) -> None:
    """Whatever fits: few failures, none of them at or above an earlier one, and most of the memory is used at last."""
    memory = max(4, int(limit * share))
    chance = random.Random(seed)
    budget, failures = Budget(limit, limit), []

    def run(cost: int) -> None:
        """As the engine thread does."""
        nonlocal budget
        if cost <= memory:
            budget = budget.fitted(cost)
            return
        if not (cost > 1 and budget.hopeless(cost)):
            failures.append(cost)
            budget = budget.out_of_memory(cost)
        for half in (cost - cost // 2, cost // 2):
            if half:
                run(half)

    for _ in range(3000):
        run(chance.randint(-(-budget.tokens * 3 // 4), budget.tokens))
        assert 1 <= budget.tokens <= limit
    # Halvings at first, until a part fits; then growth meets the limit once, or twice where steps are single tokens.
    assert failures == sorted(failures, reverse=True)
    assert len(failures) <= math.log2(limit / memory) + 4
    if failures and memory >= 64:
        assert memory // 2 <= budget.tokens <= memory * 17 // 16 + 1


@pytest.mark.parametrize(
    ("why", "expected", "length", "limit"),
    [
        ("not measured, a pair", None, 0.5, 60.0),
        ("not measured, four long pairs", None, 4.0, 240.0),
        ("not measured, a huge batch", None, 1000.0, 60 * UNMEASURED),
        ("quick", 0.05, 4.0, 60.0),
        ("slow", 30.0, 4.0, 30 * STALL_SAFETY),
    ],
)
def test_how_long_a_batch_may_take(why: str, expected: float | None, length: float, limit: float) -> None:
    assert stall_limit(60.0, expected, length) == limit, why


FULL, SMALL = BUDGET, BUDGET // 10


def served(start: float | None, *batches: tuple[int, float], alone: bool = True) -> float | None:
    """The speed that is told after ``batches`` of so many tokens at so many tokens/s, one after the other."""
    speed = Speed(start)
    for tokens, rate in batches:
        speed = speed.after(tokens, tokens, tokens / rate, BUDGET, alone)
    return speed.tokens_per_second


@pytest.mark.parametrize(
    ("why", "start", "batches", "expected"),
    [
        ("nothing was served", 1000.0, [], 1000),
        ("nothing was measured", None, [], None),
        ("not enough to conclude from", 1000.0, [(FULL, 3000.0)] * (ENOUGH - 1), 1000),
        ("not enough to conclude from, nothing measured", None, [(FULL, 3000.0)] * (ENOUGH - 1), None),
        ("nothing measured, full batches", None, [(FULL, 3000.0)] * ENOUGH, 3000),
        ("nothing measured, small batches", None, [(SMALL, 3000.0)] * 100, None),
        ("a first step", 1000.0, [(FULL, 3000.0)] * ENOUGH, 1000 * STEP),
        ("measured six times too low on a busy node", 419.0, [(FULL, 2556.0)] * 30, 2556),
        ("measured too high: the node has become busy", 6191.0, [(FULL, 2000.0)] * 30, 2000),
        ("one slow batch", 2000.0, [*[(FULL, 2000.0)] * 20, (FULL, 10.0)], 2000),
        ("some slow batches", 2000.0, [(FULL, 2000.0), (FULL, 2000.0), (FULL, 10.0)] * 20, 2000),
        ("one that was timed too short", 2000.0, [*[(FULL, 2000.0)] * 20, (FULL, 1e9)], 2000),
        ("small batches are slow", 2000.0, [(SMALL, 300.0)] * 100, 2000),
        ("small batches among full ones", 2000.0, [(SMALL, 300.0), (FULL, 2000.0)] * 50, 2000),
        ("small batches that are faster than what is told", 400.0, [(SMALL, 2400.0)] * 100, 400 * STEP**17),
        ("small batches a little faster: noise", 2000.0, [(SMALL, 2400.0)] * 100, 2000),
        ("half full is full enough", 1000.0, [(BUDGET // 2, 2000.0)] * 100, 2000),
    ],
)
def test_the_speed_that_is_told(
    why: str, start: float | None, batches: list[tuple[int, float]], expected: float | None
) -> None:
    assert served(start, *batches) == (None if expected is None else pytest.approx(expected)), why


def test_a_small_batch_that_overlapped_another_tells_nothing() -> None:
    assert served(400.0, *[(SMALL, 2400.0)] * 100, alone=False) == 400
    assert served(400.0, *[(FULL, 2400.0)] * 100, alone=False) == pytest.approx(2400)


def test_padding_is_no_speed() -> None:
    speed = Speed(None)
    for _ in range(ENOUGH):
        speed = speed.after(tokens=300, cost=FULL, seconds=1.0, budget=BUDGET)
    assert speed.tokens_per_second == 300


RATES = st.floats(1.0, 1e6)


@given(RATES, st.lists(st.tuples(st.integers(1, 2 * BUDGET), RATES, st.booleans()), max_size=60))
def test_the_speed_changes_in_bounded_steps_within_what_was_seen(
    start: float, batches: list[tuple[int, float, bool]]
) -> None:
    speed, seen = Speed(start), [start]
    for tokens, rate, alone in batches:
        after = speed.after(tokens, tokens, tokens / rate, BUDGET, alone)
        assert speed.tokens_per_second is not None
        assert after.tokens_per_second is not None
        assert 1 / STEP <= after.tokens_per_second / speed.tokens_per_second * (1 + 1e-9) <= STEP * (1 + 2e-9)
        seen.append(rate)
        assert min(seen) * (1 - 1e-9) <= after.tokens_per_second <= max(seen) * (1 + 1e-9)
        speed = after


@given(st.lists(st.tuples(st.integers(1, BUDGET // 2 - 1), st.floats(1.0, 1000.0)), max_size=60))
def test_small_batches_that_are_slow_change_nothing(batches: list[tuple[int, float]]) -> None:
    assert served(1000.0, *batches) == 1000


def test_a_clock_that_is_too_coarse_tells_nothing() -> None:
    speed = Speed(1000.0)
    assert speed.after(FULL, FULL, 0.0, BUDGET) is speed
