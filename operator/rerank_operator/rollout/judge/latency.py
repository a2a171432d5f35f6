"""Is the canary slower than stable? Compared at stable's own quantiles, so no limit has to be guessed.

A request exceeds a quantile when it takes longer than stable's did in that share of its latest requests, as known
before the look. Failed requests are left out: they are counted by errors.py.
"""

from collections import deque
from collections.abc import Sequence
from typing import Self

import msgspec

from rerank_operator.rollout.judge.dependence import Flags, design_effect, larger
from rerank_operator.rollout.judge.evidence import Count, Evidence
from rerank_operator.rollout.judge.windows import Window

QUANTILES = (0.5, 0.95, 0.99)
"""Where the canary may be slower: in general, in its tail, or in what clients take for hanging."""
MORE, LESS = (1.25, 1.6, 2.5, 6.0, 20.0), (0.9, 0.75, 0.5, 0.25)
"""Odds ratios of exceedances looked for."""
KEPT = 2000
"""Latest requests of stable that its quantiles are taken from."""
RENEWED = 100
"""New requests of stable after which they are taken again."""
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
    thresholds: list[float]
    """By exceedance; empty where too little is known."""
    fresh: int
    """Requests of stable since they were taken."""
    tolerated: float
    margin: float

    @classmethod
    def begin(cls, baseline: Window, tolerated: float, margin: float, steps: int) -> Self:
        """``tolerated``, ``margin``: shares by which the canary may be slower."""
        exceedances = [Exceedance(q, Evidence(MORE, steps), Evidence(LESS), Flags(), Flags()) for q in QUANTILES]
        found = cls(exceedances, deque(maxlen=KEPT), [], 0, tolerated, margin)
        for one in exceedances:
            one.fine.begin_step()
        answered = _answered(baseline)
        found._note(answered)
        for one, threshold in zip(exceedances, found.thresholds, strict=False):
            one.stable.extend(seconds > threshold for seconds in answered)
        return found

    def begin_step(self) -> None:
        for one in self.exceedances:
            one.worse.begin_step()

    def look(self, stable: Window, canary: Window) -> None:
        fast, new = _answered(stable), _answered(canary)
        scales = 1 + self.tolerated, 1 + self.margin
        for one, threshold in zip(self.exceedances, self.thresholds, strict=False):
            one.look(threshold, fast, new, scales)
        self._note(fast)

    def _note(self, stable: Sequence[float]) -> None:
        self.recent.extend(stable)
        self.fresh += len(stable)
        if len(self.recent) >= FEWEST and self.fresh >= RENEWED:
            ordered = sorted(self.recent)
            self.thresholds = [ordered[int(one.quantile * len(ordered))] for one in self.exceedances]
            self.fresh = 0

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
