"""How well a reduced precision ranks where float32's own ranking is the truth, and the floor below which none serves.

``compared`` and what it is made of are pure. A model's quality for its users is not known here: only what the
reduction takes away from it.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

from rerank_worker.engine import Engine, Pair
from rerank_worker.failures import ConfigurationFailure

log = logging.getLogger(__name__)

CUTOFF = 10
TOKENS = 2048
"""A batch of the comparison."""


@dataclass(frozen=True, slots=True)
class Quality:
    """``ndcg``: nDCG@10, 0 to 1, means over queries like ``agreement``: the share of pairs of documents that come in
    the same order, 0 to 1. ``largest``, ``mean``: difference of scores (logits). All worst when a score is not a
    number."""

    ndcg: float
    agreement: float
    largest: float
    mean: float


def compared(reference: Sequence[float], reduced: Sequence[float], groups: Sequence[int]) -> Quality:
    """``groups``: documents of each query, which follow one another in both sequences of scores.

    Raises ValueError when the sizes do not fit.
    """
    if len(reference) != len(reduced) or sum(groups) != len(reference) or not reference or min(groups) < 1:
        raise ValueError(f"{len(reference)} and {len(reduced)} scores for groups of {sum(groups)}")
    if not all(map(math.isfinite, [*reference, *reduced])):
        return Quality(0.0, 0.0, math.inf, math.inf)
    found, agreements, start = [], [], 0
    for size in groups:
        truth, own = reference[start : start + size], reduced[start : start + size]
        found.append(ndcg(truth, own))
        agreements.append(agreement(truth, own))
        start += size
    differences = [abs(one - other) for one, other in zip(reference, reduced, strict=True)]
    return Quality(
        sum(found) / len(found),
        sum(agreements) / len(agreements),
        max(differences),
        sum(differences) / len(differences),
    )


def ndcg(reference: Sequence[float], scores: Sequence[float]) -> float:
    """nDCG@10 of one query ranked by ``scores``; a document's gain grows from 0 for the lowest ``reference`` to 1 for
    the highest. Documents with equal scores count as in their worst order."""
    low, high = min(reference), max(reference)
    if low == high:
        return 1.0
    gains = [(score - low) / (high - low) for score in reference]
    order = sorted(range(len(gains)), key=lambda index: (-scores[index], gains[index]))
    return _discounted([gains[index] for index in order]) / _discounted(sorted(gains, reverse=True))


def agreement(reference: Sequence[float], scores: Sequence[float]) -> float:
    """Share of the pairs of documents that differ by ``reference`` and come in the same order by ``scores``."""
    same = total = 0
    for first, truth in enumerate(reference):
        for second in range(first):
            if truth != reference[second]:
                total += 1
                higher = scores[first] > scores[second] if truth > reference[second] else scores[first] < scores[second]
                same += higher
    return same / total if total else 1.0


def _discounted(gains: Sequence[float]) -> float:
    return sum(gain / math.log2(rank + 2) for rank, gain in enumerate(gains[:CUTOFF]))


def measure(reference: Engine, reduced: Engine, groups: Sequence[Sequence[Pair]]) -> Quality:
    """Score ``groups`` (pairs by query) with both engines."""
    pairs = [pair for group in groups for pair in group]
    return compared(scored(reference, pairs), scored(reduced, pairs), [len(group) for group in groups])


def require(quality: Quality, floor: float, precision: str) -> None:
    """Refuse ``quality`` below ``floor`` (spec.runtime.qualityFloor). Raises ConfigurationFailure."""
    fields = {"precision": precision, "ndcg": round(quality.ndcg, 5), "agreement": round(quality.agreement, 5)}
    log.info("reduced precision compared with float32", extra={"fields": fields | {"floor": floor}})
    if quality.ndcg < floor:
        raise ConfigurationFailure(
            f"spec.runtime.precision {precision}: the model ranks with an nDCG@10 of {quality.ndcg:.4f} where its "
            f"float32 ranking is 1, below spec.runtime.qualityFloor {floor:g}: set spec.runtime.precision to auto, or "
            "lower spec.runtime.qualityFloor"
        )


def scored(engine: Engine, pairs: Sequence[Pair]) -> list[float]:
    """Scores of ``pairs`` in their order, in batches of like lengths."""
    scores = [0.0] * len(pairs)
    batch: list[int] = []
    for index in sorted(range(len(pairs)), key=lambda index: len(pairs[index])):
        if batch and (len(batch) + 1) * len(pairs[index]) > TOKENS:
            _score(engine, pairs, batch, scores)
            batch = []
        batch.append(index)
    if batch:
        _score(engine, pairs, batch, scores)
    return scores


def _score(engine: Engine, pairs: Sequence[Pair], batch: list[int], scores: list[float]) -> None:
    found = engine.collect(engine.compute(engine.prepare([pairs[index] for index in batch])))
    for index, score in zip(batch, found, strict=True):
        scores[index] = score
