"""How good a ranking is, by the grades of what was ranked: nDCG, accuracy and reciprocal rank. Pure.

Documents with equal scores count in the worst order: a model that tells nothing apart has not ranked.
"""

import math
from collections.abc import Sequence

import msgspec


class Quality(msgspec.Struct, frozen=True):
    """Of one query's ranking, each from 0 to 1."""

    ndcg: float
    """nDCG at k, with gains of 2^grade - 1 (Burges et al., Learning to rank using gradient descent, 2005)."""
    accuracy: float
    """1 where a relevant document (grade above 0) is among the first k, else 0."""
    reciprocal_rank: float
    """1 over the place of the first relevant document, however far down."""


def quality(grades: Sequence[int], scores: Sequence[float], k: int) -> Quality:
    """``grades``, ``scores``: of each document, in the same order; at least one grade is above 0.

    Raises ValueError where a score is no number.
    """
    if any(math.isnan(score) for score in scores):
        raise ValueError("a score is no number")
    ranked = [grade for _, grade in sorted((-score, grade) for score, grade in zip(scores, grades, strict=True))]
    first = next(place for place, grade in enumerate(ranked) if grade > 0)
    return Quality(
        ndcg=_gain(ranked[:k]) / _gain(sorted(grades, reverse=True)[:k]),
        accuracy=float(first < k),
        reciprocal_rank=1 / (first + 1),
    )


def _gain(grades: Sequence[int]) -> float:
    return sum((2**grade - 1) / math.log2(place + 2) for place, grade in enumerate(grades))
