"""The quality of a reduced precision: pure functions, and the floor."""

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rerank_worker.engine import Pair
from rerank_worker.engine.quantization import quality
from rerank_worker.failures import ConfigurationFailure

scores = st.lists(st.floats(-20, 20), min_size=1, max_size=30)


@given(scores)
def test_the_same_scores_are_perfect(reference: list[float]) -> None:
    found = quality.compared(reference, reference, [len(reference)])
    assert found.ndcg == pytest.approx(1)
    assert (found.agreement, found.largest, found.mean) == (1, 0, 0)


@given(st.lists(st.integers(-1000, 1000), min_size=1, max_size=30))
def test_only_the_order_counts(reference: list[int]) -> None:
    found = quality.compared(reference, [score * 3 + 7 for score in reference], [len(reference)])
    assert found.ndcg == pytest.approx(1)
    assert found.agreement == 1


@given(st.lists(st.tuples(st.floats(-20, 20), st.floats(-20, 20)), min_size=1, max_size=30))
def test_figures_stay_within_their_bounds(both: list[tuple[float, float]]) -> None:
    found = quality.compared([one for one, _ in both], [other for _, other in both], [len(both)])
    assert 0 <= found.ndcg <= 1 + 1e-12
    assert 0 <= found.agreement <= 1
    assert found.mean <= found.largest + 1e-9


@given(st.lists(st.tuples(st.floats(-20, 20), st.floats(-20, 20)), min_size=2, max_size=30), st.randoms())
def test_the_order_of_documents_does_not_matter(both: list[tuple[float, float]], chosen) -> None:
    def figures(given: list[tuple[float, float]]) -> quality.Quality:
        return quality.compared([one for one, _ in given], [other for _, other in given], [len(given)])

    shuffled = both.copy()
    chosen.shuffle(shuffled)
    assert figures(both).ndcg == pytest.approx(figures(shuffled).ndcg)
    assert figures(both).agreement == figures(shuffled).agreement


@given(st.lists(scores, min_size=1, max_size=5))
def test_queries_count_alike(groups: list[list[float]]) -> None:
    reference = [score for group in groups for score in group]
    reduced = [-score for score in reference]
    each = [quality.ndcg(group, [-score for score in group]) for group in groups]
    found = quality.compared(reference, reduced, [len(group) for group in groups])
    assert found.ndcg == pytest.approx(sum(each) / len(each))


@pytest.mark.parametrize(
    ("reference", "reduced", "expected"),
    [
        ([3.0, 1.0], [1.0, 3.0], 1 / math.log2(3)),
        ([3.0, 1.0], [0.0, 0.0], 1 / math.log2(3)),
        ([2.0, 2.0], [1.0, 3.0], 1.0),
        ([4.0], [9.0], 1.0),
        ([4.0, 2.0, 0.0], [2.0, 3.0, 0.0], (0.5 + 1 / math.log2(3)) / (1 + 0.5 / math.log2(3))),
    ],
)
def test_ndcg(reference: list[float], reduced: list[float], expected: float) -> None:
    assert quality.ndcg(reference, reduced) == pytest.approx(expected)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_what_is_not_a_number_is_the_worst(broken: float) -> None:
    assert quality.compared([1.0, 2.0], [1.0, broken], [2]).ndcg == 0


@pytest.mark.parametrize(("reduced", "groups"), [([1.0], [2]), ([1.0, 2.0], [3]), ([1.0, 2.0], [2, 0])])
def test_sizes_that_do_not_fit_are_errors(reduced: list[float], groups: list[int]) -> None:
    with pytest.raises(ValueError, match="scores for groups"):
        quality.compared([1.0, 2.0], reduced, groups)


class Fixed:
    """Scores a pair by its first token, through a scale that may be broken."""

    name, padded = "fixed", False

    def __init__(self, scale: float) -> None:
        self._scale = scale
        self.largest = 0

    def prepare(self, pairs: Sequence[Pair]) -> list[float]:
        self.largest = max(self.largest, sum(map(len, pairs)))
        return [max(-1.0, min(1.0, pair.ids[0] * self._scale)) for pair in pairs]

    def compute(self, prepared: list[float]) -> list[float]:
        return prepared

    def collect(self, output: list[float]) -> list[float]:
        return output

    def close(self) -> None:
        pass


GROUPS = [[Pair([first, *[5] * length], [0] * (length + 1)) for first, length in enumerate((7, 900, 2, 400, 1500))]]


def test_the_floor_refuses_a_broken_scale_and_says_what_to_do() -> None:
    found = quality.measure(Fixed(0.1), Fixed(40.0), GROUPS)
    with pytest.raises(ConfigurationFailure) as refused:
        quality.require(found, 0.99, "int8")
    told = refused.value.sentence
    assert "spec.runtime.qualityFloor 0.99" in told
    assert f"{found.ndcg:.4f}" in told
    assert "spec.runtime.precision to auto" in told


def test_what_is_good_enough_passes() -> None:
    found = quality.measure(Fixed(0.1), Fixed(0.2), GROUPS)
    quality.require(found, 0.99, "int8")
    assert found.ndcg == pytest.approx(1)


def test_batches_stay_small() -> None:
    engine = Fixed(0.1)
    quality.scored(engine, GROUPS[0] * 10)
    assert engine.largest <= quality.TOKENS
