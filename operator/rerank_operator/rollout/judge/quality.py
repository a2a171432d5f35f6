"""Does the canary rank worse than stable? The same golden queries, compared query by query.

One look, for the same model gives the same ranking again: more looks are no more evidence.
"""

from collections.abc import Sequence
from statistics import NormalDist, fmean, stdev

import msgspec

FEWEST = 10
"""Queries, in fewer of which no interval can be trusted."""


class Difference(msgspec.Struct, frozen=True):
    """The mean of canary minus stable, and bounds that it lies above and below with the probabilities asked for."""

    queries: int
    mean: float
    low: float
    high: float


def compare(stable: Sequence[float], canary: Sequence[float], above: float, below: float) -> Difference | None:
    """Of one measure (nDCG@k, accuracy@k, MRR) for each query, in the same order; None: too few queries to tell.

    ``above``, ``below``: probabilities that the true difference lies under ``low``, and over ``high``. Student's t:
    a mean of bounded differences is nearly normal for tens of queries. Raises ValueError where the lengths differ.
    """
    differences = [new - old for old, new in zip(stable, canary, strict=True)]
    count = len(differences)
    if count < FEWEST:
        return None
    mean, error = fmean(differences), stdev(differences) / count**0.5
    low, high = (_student(1 - chance, count - 1) * error for chance in (above, below))
    return Difference(count, mean, mean - low, mean + high)


def queries_for(difference: Difference, margin: float) -> int:
    """About how many golden queries it would take to exclude a drop by ``margin`` where there is none."""
    half = difference.mean - difference.low
    return max(difference.queries + 1, round(difference.queries * (half / margin) ** 2))


def _student(probability: float, freedom: int) -> float:
    """Quantile of Student's t (Abramowitz and Stegun 26.7.5): within 1 % of it from 9 degrees of freedom on."""
    z = NormalDist().inv_cdf(probability)
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )
