"""What one ranking of a golden set comes to, for the status and the metrics."""

import msgspec
import pytest
from rerank_api.reranker import Activation, QualityStatus
from rerank_operator.rollout.golden.golden_set import GoldenQuery, GoldenSet
from rerank_operator.rollout.golden.summary import calibration, cutoff, measures, summary

GOLDEN = GoldenSet(
    [
        GoldenQuery("q0", ["a", "b", "c"], [1, 0, 0]),
        GoldenQuery("q1", ["a", "b", "c"], [0, 0, 2]),
    ]
)
RIGHT, WRONG = [[0.9, 0.2, 0.1], [0.1, 0.3, 0.8]], [[0.9, 0.2, 0.1], [0.8, 0.3, 0.1]]


def found(scores: list[list[float]], metric: str = "ndcg@10", activation: Activation = "auto") -> QualityStatus:
    return summary(GOLDEN, scores, metric=metric, activation=activation, revision="abc", time="2027-01-15T08:00:00Z")


def test_means_over_the_queries_at_the_metrics_k():
    best = found(RIGHT)
    assert (best.revision, best.time, best.metric, best.queries) == ("abc", "2027-01-15T08:00:00Z", "ndcg@10", 2)
    assert measures(best) == {"ndcg@10": 1.0, "accuracy@10": 1.0, "mrr": 1.0}
    worse = found(WRONG, "accuracy@1")
    assert measures(worse) == {"ndcg@1": 0.5, "accuracy@1": 0.5, "mrr": pytest.approx((1 + 1 / 3) / 2, abs=1e-6)}
    assert found(WRONG).ndcg == pytest.approx((1 + 0.5) / 2), "the right one in third place: 1/log2(4)"


def test_calibration_by_hand():
    """Brier: squares of 0.1 0.2 0.1 0.1 0.3 0.2 over six. Bins: 0.1 (twice 0.1), 0.2, 0.3 without, 0.8, 0.9 with."""
    told = calibration(found(RIGHT))
    assert told["brier"] == pytest.approx((0.01 + 0.04 + 0.01 + 0.01 + 0.09 + 0.04) / 6, abs=1e-6)
    assert told["ece"] == pytest.approx((2 * 0.1 + 0.2 + 0.3 + 0.2 + 0.1) / 6, abs=1e-6)


@pytest.mark.parametrize(
    ("scores", "activation"),
    [(RIGHT, "identity"), ([[3.1, 0.2, -0.1], [0.1, 0.3, 0.8]], "auto"), ([[1.5, 0.2, 0.1], RIGHT[1]], "sigmoid")],
)
def test_scores_that_are_no_probabilities_have_no_calibration(scores: list[list[float]], activation: Activation):
    told = found(scores, activation=activation)
    assert calibration(told) == {}
    assert {"brier", "ece"}.isdisjoint(msgspec.to_builtins(told))


def test_a_measure_of_nothing_is_told_as_zero():
    """A status without it would say that nobody has looked."""
    upside_down = GoldenSet([GoldenQuery("q", ["a", "b"], [0, 1])])
    told = summary(upside_down, [[1.0, 0.0]], metric="ndcg@1", activation="auto", revision="a", time="t")
    assert msgspec.to_builtins(told)["ndcg"] == 0.0


@pytest.mark.parametrize(("metric", "k"), [("ndcg@5", 5), ("accuracy@999", 999), ("mrr", 10), ("ndcg@ten", 10)])
def test_the_k_of_a_metric(metric: str, k: int):
    assert cutoff(metric) == k
