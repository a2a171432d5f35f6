"""What one ranking of a golden set comes to, as status.quality and the metrics have it. Pure."""

from collections.abc import Sequence
from statistics import fmean

from rerank_api.reranker import Activation, QualityStatus

from rerank_operator.rollout.golden.calibration import brier, ece
from rerank_operator.rollout.golden.golden_set import GoldenSet
from rerank_operator.rollout.golden.measures import quality

K = 10
"""Documents that count where the metric names no number."""
DIGITS = 6
"""Of the figures: a status that differs in the last bit would be written again."""


def summary(
    golden: GoldenSet,
    scores: Sequence[Sequence[float]],
    *,
    metric: str,
    activation: Activation,
    revision: str,
    time: str,
) -> QualityStatus:
    """Means over the queries. ``scores``: of each query's documents, in their order. ``metric``: as
    spec.rollout.goldenSet.metric; ``time``: RFC 3339.

    The calibration is told where scores are probabilities: not with activation identity, nor where one lies outside of
    0 to 1 (with auto, the model decides which activation it has). Raises ValueError where a score is no number.
    """
    k = cutoff(metric)
    each = [quality(query.labels, found, k) for query, found in zip(golden.queries, scores, strict=True)]
    flat = [score for found in scores for score in found]
    relevant = [label > 0 for query in golden.queries for label in query.labels]
    likely = activation != "identity" and all(0 <= score <= 1 for score in flat)
    return QualityStatus(
        revision=revision,
        time=time,
        metric=metric,
        queries=len(each),
        ndcg=round(fmean(one.ndcg for one in each), DIGITS),
        accuracy=round(fmean(one.accuracy for one in each), DIGITS),
        mrr=round(fmean(one.reciprocal_rank for one in each), DIGITS),
        brier=round(brier(flat, relevant), DIGITS) if likely else None,
        ece=round(ece(flat, relevant), DIGITS) if likely else None,
    )


def measures(found: QualityStatus) -> dict[str, float]:
    """Each by the name that spec.rollout.goldenSet.metric would have for it."""
    k = cutoff(found.metric)
    return {f"ndcg@{k}": found.ndcg, f"accuracy@{k}": found.accuracy, "mrr": found.mrr}


def calibration(found: QualityStatus) -> dict[str, float]:
    """Empty where scores are no probabilities."""
    told = {"brier": found.brier, "ece": found.ece}
    return {name: value for name, value in told.items() if value is not None}


def cutoff(metric: str) -> int:
    """The K of ndcg@K and accuracy@K; with mrr, that of the others that are told beside it. So, too, of what is none:
    a status may have been written by others."""
    _, _, k = metric.partition("@")
    return int(k) if k.isdecimal() else K
