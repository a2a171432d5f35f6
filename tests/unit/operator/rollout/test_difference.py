"""How two arms differ, as told to a person: the figures, and that the intervals hold what they say."""

from collections.abc import Callable

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rerank_operator.rollout.judge.difference import Difference, Effects, Figures, differences, told
from rerank_operator.rollout.judge.judge import Judge, Settings
from rerank_operator.rollout.judge.windows import Window

ALONE = Effects()


def figures(seconds: list[float], failed: list[int] | None = None) -> Figures:
    found = Figures()
    found.add(Window(seconds, failed or []))
    return found


def by_measure(stable: Figures, canary: Figures, effects: Effects = ALONE) -> dict[str, Difference]:
    return {one.measure: one for one in differences(stable, canary, effects)}


@given(st.lists(st.lists(st.tuples(st.floats(0, 1e6), st.booleans()), max_size=20), max_size=5))
def test_figures_are_the_same_in_parts_and_at_once_and_after_json(parts: list[list[tuple[float, bool]]]):
    little, whole = Figures(), Figures()
    for part in parts:
        little.add(Window([one for one, _ in part], [place for place, (_, failed) in enumerate(part) if failed]))
        little = msgspec.json.decode(msgspec.json.encode(little), type=Figures)
    together = [one for part in parts for one in part]
    whole.add(Window([one for one, _ in together], [place for place, (_, failed) in enumerate(together) if failed]))
    assert little == whole
    assert whole.requests == len(together)
    assert sum(whole.buckets.values()) == whole.requests - whole.failed


def test_figures_are_bounded_however_many_requests_there_are():
    found = figures(np.exp(np.random.default_rng(1).uniform(-20, 20, 100_000)).tolist())
    assert len(found.buckets) < 1100
    assert len(msgspec.json.encode(found)) < 16_384


@pytest.mark.parametrize(
    ("requests", "failed", "low", "high"),
    [
        # Newcombe 1998, table II, method 10: 56/70 - 48/80, 9/10 - 3/10, 10/10 - 0/20, 0/10 - 0/20
        ((80, 70), (48, 56), 0.0524, 0.3339),
        ((10, 10), (3, 9), 0.1705, 0.8090),
        ((20, 10), (0, 10), 0.6791, 1.0),
        ((20, 10), (0, 0), -0.1611, 0.2775),
    ],
)
def test_differences_of_shares_are_newcombes(
    requests: tuple[int, int], failed: tuple[int, int], low: float, high: float
):
    old, new = (figures([1.0] * count, list(range(events))) for count, events in zip(requests, failed, strict=True))
    found = by_measure(old, new)["errors"]
    assert found.difference == pytest.approx(failed[1] / requests[1] - failed[0] / requests[0])
    assert (found.low, found.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


def test_quantiles_are_order_statistics_to_two_percent():
    stable = figures([place / 1000 for place in range(1, 1001)])
    canary = figures([1.5 * place / 1000 for place in range(1, 1001)])
    found = by_measure(stable, canary)
    assert found["p50"].stable == pytest.approx(0.5, rel=0.02)
    assert found["p95"].canary == pytest.approx(1.425, rel=0.02)
    for measure in ("p50", "p95"):
        assert found[measure].difference == pytest.approx(0.5, abs=0.03)
        assert found[measure].low < 0.5 < found[measure].high
    assert found["p95"].low > 0.4  # its ranks: 937 to 965 of 1000


@pytest.mark.parametrize(
    ("stable", "canary", "measures"),
    [
        (0, 100, []),
        (100, 0, []),
        (5, 5, ["errors"]),
        (10, 10, ["errors", "p50"]),
        (100, 30, ["errors", "p50"]),
        (100, 200, ["errors", "p50"]),
        (200, 200, ["errors", "p50", "p95"]),
    ],
)
def test_too_few_requests_give_no_interval(stable: int, canary: int, measures: list[str]):
    old, new = (figures([0.1 + place / 1000 for place in range(count)]) for count in (stable, canary))
    assert list(by_measure(old, new)) == measures


def test_dependence_widens_every_interval():
    chance = np.random.default_rng(2)
    old, new = (figures(np.exp(chance.standard_normal(2000)).tolist(), list(range(20))) for _ in range(2))
    alone, alike = by_measure(old, new), by_measure(old, new, Effects(4.0, 4.0, 4.0))
    for measure, one in alone.items():
        assert alike[measure].difference == one.difference
        assert (alike[measure].high - alike[measure].low) == pytest.approx(2 * (one.high - one.low), rel=0.25)


def _independent(chance: np.random.Generator, count: int) -> np.ndarray:
    return chance.standard_normal(count)


def _alike(chance: np.random.Generator, count: int) -> np.ndarray:
    """Each four in a row are the same, as requests of one batch: a design effect of 4."""
    return np.repeat(chance.standard_normal(count // 4), 4)


@pytest.mark.parametrize(("kind", "effect"), [(_independent, 1.0), (_alike, 4.0)], ids=["independent", "alike"])
def test_the_intervals_hold_what_they_say(kind: Callable[[np.random.Generator, int], np.ndarray], effect: float):
    """Of 400 runs 380 are to be covered: fewer than 366 come once in a thousand."""
    chance = np.random.default_rng(3)
    covered = dict.fromkeys(("errors", "p50", "p95"), 0)
    true = {"errors": 0.02, "p50": 0.2, "p95": 1.2 * np.exp((0.5 - 0.4) * 1.644854) - 1}
    for _ in range(400):
        stable = figures(
            (0.1 * np.exp(0.4 * kind(chance, 4000))).tolist(), np.flatnonzero(kind(chance, 4000) > 2.326348).tolist()
        )
        canary = figures(
            (0.12 * np.exp(0.5 * kind(chance, 1200))).tolist(), np.flatnonzero(kind(chance, 1200) > 1.880794).tolist()
        )
        for measure, one in by_measure(stable, canary, Effects(effect, effect, effect)).items():
            covered[measure] += one.low <= true[measure] <= one.high
    assert all(count >= 366 for count in covered.values()), covered
    assert covered["errors"] < 396  # nor are they needlessly wide


def test_it_is_told_in_words():
    stable = figures([0.1] * 1000, list(range(10)))
    canary = figures([0.15] * 500, list(range(15)))
    assert told(stable, canary, ALONE) == (
        "500 requests against stable's 1000; failed 3 % against 1 % (+2 points, between +0.562 and +3.94); "
        "p50 0.151 s against 0.0996 s (+51.6 %, between +49.5 and +53.7); "
        "p95 0.151 s against 0.0996 s (+51.6 %, between +49.5 and +53.7)"
    )
    assert told(Figures(), canary, ALONE) == (
        "500 requests against stable's 0; errors: too few to compare; p50: too few to compare; p95: too few to compare"
    )


def test_the_judge_says_how_alike_neighbours_are():
    chance = np.random.default_rng(4)
    judge = Judge((50,), Window(np.exp(_alike(chance, 8000)).tolist()), Settings())
    assert judge.effects.errors == 1.0
    assert 3 < judge.effects.p50 < 6
    assert judge.effects.p95 > 2
