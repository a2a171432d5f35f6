"""Mann and Whitney's interval: against scipy, against all pairwise differences, and against R."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rerank_operator.rollout.simulate.mann_whitney import TOLERANCE, AllTied, shift, statistic
from scipy.stats import mannwhitneyu, norm

EXACT = 1e-9


def repeated(counts: dict[float, int]) -> list[float]:
    return [value for value, times in counts.items() for _ in range(times)]


def drawn(seed: int, m: int, n: int) -> tuple[list[float], list[float]]:
    chance = random.Random(seed)
    above = chance.uniform(-50, 50)
    return [chance.gauss(100 + above, 20) for _ in range(m)], [chance.lognormvariate(4.6, 0.3) for _ in range(n)]


sizes = st.integers(min_value=4, max_value=60)


class TestStatistic:
    @given(
        st.lists(st.integers(0, 20), min_size=1, max_size=40),
        st.lists(st.integers(0, 20), min_size=1, max_size=40),
        st.integers(-5, 5),
    )
    def test_is_scipy_s_with_any_ties(self, x: list[int], y: list[int], mu: int):
        moved = [value - mu for value in x]
        if len({*moved, *y}) == 1:
            with pytest.raises(AllTied):
                statistic(x, sorted(y), mu)
            return
        found = statistic(x, sorted(y), mu)
        expected = mannwhitneyu(moved, y, alternative="two-sided", method="asymptotic", use_continuity=True)
        assert 2 * norm.sf(abs(found)) == pytest.approx(expected.pvalue, abs=EXACT)
        middle = len(x) * len(y) / 2
        # A continuity correction of a half may leave nothing of the least excess.
        assert abs(expected.statistic - middle) <= 0.5 or (found > 0) == (expected.statistic > middle)


class TestShift:
    @given(sizes, sizes, st.integers(0, 2**32), st.sampled_from([0.8, 0.95, 0.98]))
    def test_is_read_off_the_sorted_pairwise_differences(self, m: int, n: int, seed: int, confidence: float):
        x, y = drawn(seed, m, n)
        differences = sorted(here - there for here in x for there in y)
        pairs = m * n
        width = norm.ppf((1 + confidence) / 2) * math.sqrt(pairs * (m + n + 1) / 12)
        low = max(1, math.ceil(pairs / 2 - 0.5 - width))
        high = min(pairs, math.floor(pairs / 2 + 0.5 + width) + 1)
        found = shift(x, y, confidence)
        assert found.low == pytest.approx(differences[low - 1], abs=TOLERANCE)
        assert found.high == pytest.approx(differences[high - 1], abs=TOLERANCE)
        # The corrected statistic is 0 from the difference before the median to the one after it.
        before, after = differences[max(0, (pairs - 1) // 2 - 1)], differences[min(pairs - 1, pairs // 2 + 1)]
        assert before - TOLERANCE <= found.estimate <= after + TOLERANCE

    @given(st.integers(10, 60), st.integers(10, 60), st.integers(0, 2**32))
    def test_the_interval_holds_the_shifts_that_scipy_does_not_reject(self, m: int, n: int, seed: int):
        x, y = drawn(seed, m, n)
        found = shift(x, y, 0.98)
        for mu, rejected in (
            (found.low - TOLERANCE, True),
            (found.low + TOLERANCE, False),
            (found.high - TOLERANCE, False),
            (found.high + TOLERANCE, True),
        ):
            p = mannwhitneyu([value - mu for value in x], y, method="asymptotic").pvalue
            assert (p < 0.02) == rejected

    @pytest.mark.parametrize(
        ("x", "y", "confidence", "low", "high"),
        [
            (
                {
                    1.5: 9,
                    2: 16,
                    2.5: 22,
                    3: 17,
                    3.5: 9,
                    4: 5,
                    4.5: 1,
                    5: 3,
                    5.5: 1,
                    6: 2,
                    6.5: 2,
                    7: 1,
                    7.5: 1,
                    16.5: 1,
                },
                {1.5: 2, 2: 16, 2.5: 18, 3: 16, 3.5: 10, 4: 8, 4.5: 4, 5: 6, 5.5: 2, 6: 5, 8: 1, 15.5: 1, 54.5: 1},
                0.95,
                -0.500002521696696,
                -3.486287505871302e-05,
            ),
            (
                {0.5: 20, 1: 41, 1.5: 67, 2: 37, 2.5: 3, 3: 2, 3.5: 3, 4: 1, 5: 1, 5.5: 3, 8.5: 1, 19: 1},
                {0: 1, 0.5: 7, 1: 32, 1.5: 70, 2: 33, 2.5: 22, 3: 6, 3.5: 2, 4: 3, 4.5: 1, 5.5: 1, 7: 1, 7.5: 1},
                0.98,
                -0.4999173250549087,
                -6.912685789769486e-06,
            ),
        ],
    )
    def test_heavily_tied_data_gives_what_r_gives_below_its_tolerance_too(
        self, x: dict[float, int], y: dict[float, int], confidence: float, low: float, high: float
    ):
        """R's wilcox.test, as Kayenta's MannWhitneySuite quotes it: where the bounds end decides its verdict there."""
        found = shift(repeated(x), repeated(y), confidence)
        assert found.low == pytest.approx(low, abs=EXACT)
        assert found.high == pytest.approx(high, abs=EXACT)

    def test_separate_samples(self):
        """Two values each: no interval of 98 %, so it is the range of the differences."""
        found = shift([10, 12], [1, 4], 0.98)
        assert (found.low, found.high) == (6, 11)
        assert 6 <= found.estimate <= 11

    @pytest.mark.parametrize(("x", "y"), [([5], [3]), ([5, 5, 5], [3, 3]), ([0, 0], [0])])
    def test_no_interval_for_a_single_value_each(self, x: list[float], y: list[float]):
        with pytest.raises(AllTied):
            shift(x, y, 0.98)
