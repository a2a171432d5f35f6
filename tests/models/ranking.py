"""Ranking quality: nDCG@10 for one relevant passage a query, and paired bootstrap intervals. Pure functions."""

import math
from collections.abc import Sequence

import numpy as np

CUTOFF = 10
RESAMPLES = 10_000


def ndcg(scores: Sequence[float], relevant: int) -> float:
    """nDCG@10 of one query with a single relevant passage; ties count against the method."""
    rank = sum(score >= scores[relevant] for score in scores)
    return 1 / math.log2(rank + 1) if rank <= CUTOFF else 0.0


def bootstrap_interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile interval of the mean, resampling queries."""
    array = np.asarray(values)
    picks = np.random.default_rng(seed).integers(0, array.size, size=(RESAMPLES, array.size))
    low, high = np.percentile(array[picks].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)
