"""Is the canary slower than stable? Compared at stable's own quantiles, so no limit has to be guessed.

A request exceeds a quantile when it takes longer than stable's did in that share of its latest requests, as known
before the look. Failed requests are left out: they are counted by errors.py.
"""

from collections import deque
from collections.abc import Sequence
from typing import Self

import msgspec

from rerank_operator.rollout.judge.dependence import Flags, design_effect, larger
from rerank_operator.rollout.judge.evidence import LESS, MORE, Count, Evidence
from rerank_operator.rollout.judge.windows import Window

QUANTILES = (0.5, 0.95, 0.99)
"""Where the canary may be slower: in general, in its tail, or in what clients take for hanging."""
KEPT = 2000
"""Latest requests of stable that its quantiles are taken from."""
FEWEST = 100
"""Of them, before which nothing is compared: one request would be the quantile."""


class Exceedance(msgspec.Struct):
    """What was seen of one quantile."""

    quantile: float
    worse: Evidence
    fine: Evidence
    stable: Flags
    canary: Flags

    def look(self, threshold: float, stable: Sequence[float], canary: Sequence[float], scales: Sequence[float]) -> None:
        """``scales``: the canary is taken to be so many times faster: what is tolerated, and the margin."""
        tolerated, margin = scales
        slow = [seconds > threshold for seconds in stable]
        count = Count(len(slow), sum(slow))
        rate = 1 - self.quantile
        self.worse.add(count, _exceeding(canary, threshold * tolerated), rate)
        self.fine.add(count, _exceeding(canary, threshold * margin), rate)
        self.stable.extend(slow)
        self.canary.extend(seconds > threshold for seconds in canary)

    def design_effect(self) -> float | None:
        return larger(design_effect(self.stable), design_effect(self.canary))


class Latency(msgspec.Struct):
    """What was seen of both arms' latencies."""

    exceedances: list[Exceedance]
    recent: deque[float]
    tolerated: float
    margin: float

    @classmethod
    def begin(cls, baseline: Window, tolerated: float, margin: float, steps: int) -> Self:
        """``tolerated``, ``margin``: shares by which the canary may be slower."""
        found = cls(
            [Exceedance(quantile, Evidence(MORE, steps), Evidence(LESS), Flags(), Flags()) for quantile in QUANTILES],
            deque(_answered(baseline), KEPT),
            tolerated,
            margin,
        )
        ordered = sorted(found.recent)
        for one in found.exceedances:
            one.fine.begin_step()
            if ordered:
                threshold = _quantile(ordered, one.quantile)
                one.stable.extend(seconds > threshold for seconds in _answered(baseline))
        return found

    def begin_step(self) -> None:
        for one in self.exceedances:
            one.worse.begin_step()

    def look(self, stable: Window, canary: Window) -> None:
        fast, new = _answered(stable), _answered(canary)
        if len(self.recent) >= FEWEST:
            ordered = sorted(self.recent)
            scales = 1 + self.tolerated, 1 + self.margin
            for one in self.exceedances:
                one.look(_quantile(ordered, one.quantile), fast, new, scales)
        self.recent.extend(fast)

    def worse(self) -> float:
        """Evidence that the canary is slower at one of the quantiles."""
        return sum(one.worse.value(effect) for one, effect in self._with_effects()) / len(self.exceedances)

    def fine(self, quantile: float) -> float:
        """Evidence that it is not slower by the margin at that one."""
        return next(one.fine.value(effect) for one, effect in self._with_effects() if one.quantile == quantile)

    def _with_effects(self) -> list[tuple[Exceedance, float]]:
        """Where a tail has too few events to tell, its neighbour's effect is taken: tails are alike for less long."""
        found, effect = [], 1.0
        for one in self.exceedances:
            effect = one.design_effect() or effect
            found.append((one, effect))
        return found


def _answered(window: Window) -> Sequence[float]:
    if not window.failed:
        return window.seconds
    failed = set(window.failed)
    return [seconds for place, seconds in enumerate(window.seconds) if place not in failed]


def _exceeding(values: Sequence[float], threshold: float) -> Count:
    return Count(len(values), sum(value > threshold for value in values))


def _quantile(ordered: Sequence[float], quantile: float) -> float:
    return ordered[min(len(ordered) - 1, int(quantile * len(ordered)))]
