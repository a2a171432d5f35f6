"""Calibration: what Brier and ECE say of scores; the fit finds the temperature that labels were drawn by."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rerank_operator.rollout.golden import calibration
from rerank_operator.rollout.golden.calibration import HIGHEST, LOWEST, Labelled, probability


def drawn(temperature: float, count: int, seed: int = 7) -> tuple[list[float], list[bool]]:
    """Logits, and labels as they fall if sigmoid(logit / temperature) is true."""
    chance = random.Random(seed)
    logits = [chance.gauss(-1, 3) * temperature for _ in range(count)]
    return logits, [chance.random() < probability(logit, temperature) for logit in logits]


@pytest.mark.parametrize(
    ("scores", "relevant", "brier", "ece"),
    [
        ([1.0, 0.0], [True, False], 0.0, 0.0),
        ([1.0, 0.0], [False, True], 1.0, 1.0),
        ([0.5, 0.5], [True, False], 0.25, 0.0),
        # Two bins of two: |0.25 - 0.5| and |0.85 - 0.5|.
        ([0.2, 0.3, 0.8, 0.9], [True, False, True, False], (0.64 + 0.09 + 0.04 + 0.81) / 4, 0.55),
        # The same, but 0.25 and 0.25 share a bin.
        ([0.25, 0.25, 0.85, 0.85], [True, False, True, False], 0.3425, 0.3),
    ],
)
def test_brier_and_ece_by_hand(scores: list[float], relevant: list[bool], brier: float, ece: float):
    assert calibration.brier(scores, relevant) == pytest.approx(brier)
    assert calibration.ece(scores, relevant) == pytest.approx(ece)


def test_the_bins_hold_every_score_and_the_ends_belong_to_one():
    found = calibration.bins([0.0, 0.05, 0.1, 0.999, 1.0], [False, True, True, False, True])
    assert [one.count for one in found] == [2, 1, 0, 0, 0, 0, 0, 0, 0, 2]
    assert (found[0].score, found[0].relevant) == (pytest.approx(0.025), 0.5)
    assert (found[2].score, found[2].relevant) == (None, None)
    assert [one.low for one in found] == pytest.approx([number / 10 for number in range(10)])


@pytest.mark.parametrize(
    ("scores", "relevant", "said"),
    [([], [], "no scores"), ([0.5], [], "1 scores for 0"), ([1.5], [True], "sigmoid"), ([math.nan], [True], "no prob")],
)
def test_what_is_no_probability_is_refused(scores: list[float], relevant: list[bool], said: str):
    for measure in (calibration.brier, calibration.ece):
        with pytest.raises(ValueError, match=said):
            measure(scores, relevant)


def test_true_probabilities_have_the_error_of_chance_and_wrong_ones_more():
    logits, relevant = drawn(1.0, 20_000)
    scores = [probability(logit) for logit in logits]
    assert calibration.ece(scores, relevant) < 0.01
    assert calibration.ece(scores, relevant) < 2 * calibration.ece_by_chance(scores)
    sharper = [probability(logit, 0.3) for logit in logits]
    assert calibration.ece(sharper, relevant) > 5 * calibration.ece_by_chance(sharper)


def test_the_error_of_chance_is_what_many_draws_have():
    chance = random.Random(3)
    scores = [chance.random() for _ in range(500)]
    mean = sum(calibration.ece(scores, [chance.random() < score for score in scores]) for _ in range(300)) / 300
    assert calibration.ece_by_chance(scores) == pytest.approx(mean, rel=0.1)


@pytest.mark.parametrize("temperature", [0.05, 0.5, 1.0, 3.0, 40.0])
def test_the_fit_finds_the_temperature_that_the_labels_were_drawn_by(temperature: float):
    logits, relevant = drawn(temperature, 20_000)
    assert calibration.fit_temperature(logits, relevant) == pytest.approx(temperature, rel=0.05)


LABELLED = st.lists(st.tuples(st.floats(-50, 50), st.booleans()), min_size=2, max_size=40).filter(
    lambda pairs: len({label for _, label in pairs}) == 2
)


@settings(max_examples=300)
@given(LABELLED, st.floats(LOWEST, HIGHEST))
def test_no_temperature_is_likelier_than_the_fitted_one(pairs: list[tuple[float, bool]], other: float):
    logits, relevant = [logit for logit, _ in pairs], [label for _, label in pairs]
    fitted = calibration.fit_temperature(logits, relevant)
    assert LOWEST <= fitted <= HIGHEST
    best = calibration.negative_log_likelihood(logits, relevant, fitted)
    assert best <= calibration.negative_log_likelihood(logits, relevant, other) + 1e-9


@pytest.mark.parametrize(
    ("logits", "relevant", "fitted"),
    [
        ([5.0, -5.0], [True, False], LOWEST),  # told apart without an error: the surer, the likelier
        ([5.0, -5.0], [False, True], HIGHEST),  # the wrong way round
        ([0.0, 0.0], [True, False], HIGHEST),  # tells nothing
    ],
)
def test_scores_without_a_best_temperature_end_at_a_bound(logits: list[float], relevant: list[bool], fitted: float):
    assert calibration.fit_temperature(logits, relevant) == fitted


def test_the_likelihood_of_scores_far_out_is_a_number():
    assert calibration.negative_log_likelihood([1e6, -1e6], [False, True], 0.01) == pytest.approx(1e8)


@pytest.mark.parametrize(
    ("logits", "relevant", "said"),
    [([1.0, 2.0], [True, True], "all labels are equal"), ([1.0, math.inf], [True, False], "no number")],
)
def test_labels_that_fit_nothing_are_refused(logits: list[float], relevant: list[bool], said: str):
    with pytest.raises(ValueError, match=said):
        calibration.fit_temperature(logits, relevant)


def test_a_query_never_has_a_temperature_that_has_seen_it():
    # One query says the contrary of all others, which draws scores to the middle.
    usual = [Labelled([4.0, -4.0, 4.0, -4.0], [True, False, True, True]) for _ in range(4)]
    other = Labelled([4.0, -4.0], [False, True])
    found = calibration.cross_validated([*usual, other])
    assert found is not None
    assert found[-1] == calibration.fit_temperature(*calibration.flat(usual))
    assert found[0] == calibration.fit_temperature(*calibration.flat([*usual[1:], other])) > 1.5 * found[-1]


def test_folds_are_of_queries_in_turn():
    logits, relevant = drawn(2.0, 300)
    queries = [Labelled(logits[at : at + 10], relevant[at : at + 10]) for at in range(0, 300, 10)]
    found = calibration.cross_validated(queries)
    assert found is not None
    assert len(found) == 30
    assert len(set(found)) == calibration.FOLDS
    assert found[0] == found[calibration.FOLDS]


@pytest.mark.parametrize(
    "queries",
    [
        [],
        [Labelled([1.0, -1.0], [True, False])],
        [Labelled([1.0, -1.0], [True, False]), Labelled([1.0, 2.0], [True, True])],
    ],
)
def test_too_few_queries_are_not_validated_by_themselves(queries: list[Labelled]):
    assert calibration.cross_validated(queries) is None
