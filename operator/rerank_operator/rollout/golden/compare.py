"""Two revisions on one golden set: how well each ranks it, how sure the difference is, and the verdict. Pure."""

from collections.abc import Sequence
from typing import Literal

import msgspec

from rerank_operator.rollout.golden.golden_set import GoldenSet
from rerank_operator.rollout.golden.measures import Quality
from rerank_operator.rollout.judge.judge import Settings, Verdict, judge_golden
from rerank_operator.rollout.judge.quality import compare

INTERVAL = 0.95
"""Of the differences that are told; the verdict has probabilities of its own (Settings)."""

Measure = Literal["ndcg", "accuracy", "reciprocal_rank"]
"""A field of Quality."""
_MEASURES: dict[str, Measure] = {"ndcg": "ndcg", "accuracy": "accuracy", "mrr": "reciprocal_rank"}
TOLD: dict[Measure, str] = {"ndcg": "nDCG", "accuracy": "accuracy", "reciprocal_rank": "MRR"}


def measured(metric: str, golden: GoldenSet) -> tuple[Measure, int]:
    """What ``spec.rollout.goldenSet.metric`` names, and how many of the first documents count for it."""
    name, _, k = metric.partition("@")
    return _MEASURES[name], int(k) if k else golden.k


class Compared(msgspec.Struct, frozen=True):
    """One measure: means, and the interval of canary minus stable; None: too few queries to tell."""

    measure: str
    stable: float
    canary: float
    low: float | None
    high: float | None


def compared(stable: Sequence[Quality], canary: Sequence[Quality], k: int) -> list[Compared]:
    """Of each measure; ``stable``, ``canary``: of the same queries in the same order."""
    measures = {f"nDCG@{k}": "ndcg", f"accuracy@{k}": "accuracy", "MRR": "reciprocal_rank"}
    return [
        _one(told, *([getattr(each, name) for each in arm] for arm in (stable, canary)))
        for told, name in measures.items()
    ]


def _one(measure: str, stable: Sequence[float], canary: Sequence[float]) -> Compared:
    half = (1 - INTERVAL) / 2
    found = compare(stable, canary, half, half)
    low, high = (found.low, found.high) if found is not None else (None, None)
    return Compared(measure, sum(stable) / len(stable), sum(canary) / len(canary), low, high)


def verdict(
    stable: Sequence[Quality],
    canary: Sequence[Quality],
    settings: Settings,
    measure: Measure = "ndcg",
    queries: int = 0,
) -> Verdict:
    """What the judge of a rollout says of the golden set by this measure: advance, rollback or hold. ``queries``: how
    many metrics of the user's own the rollout is judged by later."""
    arms = ([getattr(each, measure) for each in arm] for arm in (stable, canary))
    return judge_golden(*arms, settings, TOLD[measure], queries)
