"""Kendall's tau-b, against its definition."""

from itertools import combinations
from math import sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rerank_gateway.agreement import COMPARED, drift, kendall

SCORES = st.floats(-5, 5) | st.sampled_from([0.0, -0.0, 0.5, 1.0])


def _by_definition(one: list[float], other: list[float]) -> float | None:
    def sign(value: float) -> int:
        return (value > 0) - (value < 0)

    signs = [
        (sign(one[i] - one[j]), sign(other[i] - other[j])) for i, j in combinations(range(min(len(one), COMPARED)), 2)
    ]
    ranked, also = sum(a * a for a, _ in signs), sum(b * b for _, b in signs)
    return sum(a * b for a, b in signs) / sqrt(ranked * also) if ranked and also else None


@given(st.lists(st.tuples(SCORES, SCORES), min_size=1, max_size=30))
def test_it_is_what_the_definition_says(pairs: list[tuple[float, float]]) -> None:
    one, other = [a for a, _ in pairs], [b for _, b in pairs]
    assert kendall(one, other) == pytest.approx(_by_definition(one, other), abs=1e-12)
    assert kendall(other, one) == pytest.approx(kendall(one, other), abs=1e-12)


@pytest.mark.parametrize(
    ("one", "other", "tau"),
    [
        ([1, 2, 3, 4], [10, 20, 30, 40], 1.0),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1.0),
        ([1, 2, 3, 4], [1, 2, 4, 3], 2 / 3),
        ([1, 1, 2], [1, 2, 3], 2 / sqrt(6)),
        ([1, 1, 1], [1, 2, 3], None),
        ([1, 2, 3], [7, 7, 7], None),
        ([1], [2], None),
    ],
)
def test_by_hand(one: list[float], other: list[float], tau: float | None) -> None:
    assert kendall(one, other) == (None if tau is None else pytest.approx(tau))


def test_only_so_many_documents_are_compared() -> None:
    rising = [float(index) for index in range(COMPARED * 2)]
    other = [*rising[:COMPARED], *reversed(rising[COMPARED:])]
    assert kendall(rising, other) == 1.0


def test_the_largest_difference_counts_in_all_of_them() -> None:
    assert drift([0.5, 0.25], [0.5, 0.75]) == 0.5
    assert drift([0.0] * 300, [0.0] * 299 + [-3.0]) == 3.0
