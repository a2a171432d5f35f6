"""How far scores are probabilities of being relevant, and the temperature that makes them so. Pure, plain Python.

A temperature never changes an order, so it says nothing about how well a model ranks: that is ``measures``.
"""

import math
from collections.abc import Sequence

import msgspec

BINS = 10
LOWEST, HIGHEST = 0.01, 100.0
"""Bounds of spec.model.temperature."""
FOLDS = 5

_STEPS = 200
"""Of the search: bisection alone needs some 60 to the last digit."""


class Bin(msgspec.Struct, frozen=True):
    """The documents whose scores lie in [low, low + 0.1), 1 itself in the last."""

    low: float
    count: int
    score: float | None
    """The mean; None where there are none."""
    relevant: float | None
    """The share."""


class Labelled(msgspec.Struct, frozen=True):
    """One query's documents, in the same order."""

    logits: Sequence[float]
    """As the model gave them, without temperature and activation."""
    relevant: Sequence[bool]


def probability(logit: float, temperature: float = 1.0) -> float:
    """As a worker with activation sigmoid scores it."""
    value = logit / temperature
    # Both forms keep exp's argument negative, which cannot overflow.
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))


def brier(scores: Sequence[float], relevant: Sequence[bool]) -> float:
    """The mean squared difference of score and label, 0 to 1, less is better (Brier, 1950).

    ``scores``: from 0 to 1. Raises ValueError where there are none, or one is no probability.
    """
    _check(scores, relevant)
    return sum((score - label) ** 2 for score, label in zip(scores, relevant, strict=True)) / len(scores)


def bins(scores: Sequence[float], relevant: Sequence[bool]) -> list[Bin]:
    """Ten of equal width, for a reliability diagram. Arguments and errors as of ``brier``."""
    _check(scores, relevant)
    found: list[list[tuple[float, bool]]] = [[] for _ in range(BINS)]
    for score, label in zip(scores, relevant, strict=True):
        found[min(int(score * BINS), BINS - 1)].append((score, label))
    return [
        Bin(
            low=number / BINS,
            count=len(inside),
            score=sum(score for score, _ in inside) / len(inside) if inside else None,
            relevant=sum(label for _, label in inside) / len(inside) if inside else None,
        )
        for number, inside in enumerate(found)
    ]


def ece(scores: Sequence[float], relevant: Sequence[bool]) -> float:
    """Expected calibration error: the mean distance of score and share of relevant over ``bins``, each by its count
    (Naeini et al., Obtaining well calibrated probabilities using Bayesian binning, 2015). 0 to 1, less is better.
    Arguments and errors as of ``brier``."""
    return sum(
        one.count * abs(one.score - one.relevant)
        for one in bins(scores, relevant)
        if one.score is not None and one.relevant is not None
    ) / len(scores)


def ece_by_chance(scores: Sequence[float]) -> float:
    """About the ECE that ``scores`` would have if they were true probabilities, for labels fall by chance: an ECE that
    is no larger shows no error. Of each bin: the mean distance of a normal variable from its mean."""
    spread = [0.0] * BINS
    for score in scores:
        spread[min(int(score * BINS), BINS - 1)] += score * (1 - score)
    return sum(math.sqrt(2 / math.pi * variance) for variance in spread) / len(scores)


def negative_log_likelihood(logits: Sequence[float], relevant: Sequence[bool], temperature: float) -> float:
    """The mean over the labels, in nats."""
    total = 0.0
    for logit, label in zip(logits, relevant, strict=True):
        value = (-logit if label else logit) / temperature
        total += max(value, 0.0) + math.log1p(math.exp(-abs(value)))  # log(1 + e^value), without overflow
    return total / len(logits)


def fit_temperature(logits: Sequence[float], relevant: Sequence[bool]) -> float:
    """The temperature from LOWEST to HIGHEST under which the labels are likeliest (Guo et al., On calibration of modern
    neural networks, 2017).

    The negative log-likelihood is convex in 1/temperature, so its slope has one root: Newton's steps, and bisection
    where they would leave the bracket. Raises ValueError where all labels are equal, or a logit is not finite.
    """
    if len(set(relevant)) < 2:
        raise ValueError("all labels are equal: a temperature needs relevant documents and others")
    if not all(map(math.isfinite, logits)):
        raise ValueError("a score is no number")
    low, high = 1 / HIGHEST, 1 / LOWEST
    if _slope(logits, relevant, low)[0] >= 0:
        return HIGHEST
    if _slope(logits, relevant, high)[0] <= 0:
        return LOWEST
    inverse = 1.0
    for _ in range(_STEPS):
        slope, curvature = _slope(logits, relevant, inverse)
        if slope < 0:
            low = inverse
        else:
            high = inverse
        step = inverse - slope / curvature if curvature > 0 else high
        # The geometric mean: the bracket spans four powers of ten.
        following = step if low < step < high else math.sqrt(low * high)
        if abs(following - inverse) <= 1e-12 * inverse:
            break
        inverse = following
    return 1 / inverse


def cross_validated(queries: Sequence[Labelled]) -> list[float] | None:
    """For each query the temperature that is fitted without its fold: scores under it show what a temperature does for
    queries that it was not fitted to. None: too few queries, or without some fold all labels are equal."""
    folds = min(FOLDS, len(queries))
    if folds < 2:
        return None
    temperatures = []
    for fold in range(folds):
        logits, relevant = flat([query for number, query in enumerate(queries) if number % folds != fold])
        if len(set(relevant)) < 2:
            return None
        temperatures.append(fit_temperature(logits, relevant))
    return [temperatures[number % folds] for number in range(len(queries))]


def flat(queries: Sequence[Labelled]) -> tuple[list[float], list[bool]]:
    """Logits and labels of all documents."""
    return (
        [logit for query in queries for logit in query.logits],
        [label for query in queries for label in query.relevant],
    )


def _slope(logits: Sequence[float], relevant: Sequence[bool], inverse: float) -> tuple[float, float]:
    """First and second derivative of the log-likelihood's negative by 1/temperature, times the number of labels."""
    first = second = 0.0
    for logit, label in zip(logits, relevant, strict=True):
        likely = probability(logit, 1 / inverse)
        first += (likely - label) * logit
        second += likely * (1 - likely) * logit * logit
    return first, second


def _check(scores: Sequence[float], relevant: Sequence[bool]) -> None:
    if not scores:
        raise ValueError("no scores: nothing can be said about their calibration")
    if len(scores) != len(relevant):
        raise ValueError(f"{len(scores)} scores for {len(relevant)} labels: each must have one")
    if not all(0 <= score <= 1 for score in scores):
        raise ValueError("a score is no probability: set spec.model.activation to sigmoid")
