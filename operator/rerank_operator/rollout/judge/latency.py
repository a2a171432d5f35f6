"""Is the canary slower than stable? Compared at stable's own quantiles, so no limit has to be guessed.

A request exceeds a quantile when it takes longer than stable's did in that share of its latest requests, as known
before the look. Failed requests are left out: they are counted by errors.py.
"""

from collections import deque
from collections.abc import Sequence
from functools import cache
from statistics import NormalDist
from typing import Self

import msgspec

from rerank_operator.rollout.judge.dependence import Flags, design_effect, of_both
from rerank_operator.rollout.judge.evidence import Count, Evidence, Totals, share
from rerank_operator.rollout.judge.intervals import Intervals
from rerank_operator.rollout.judge.windows import Window, answered

QUANTILES = (0.5, 0.95, 0.99)
"""Where the canary may be slower: in general (first of all), in its tail, or in what clients take for hanging."""
MORE, LESS = (1.25, 1.6, 2.5, 6.0, 20.0), (0.9, 0.75, 0.5, 0.25)
"""Odds ratios of exceedances looked for."""
KEPT = 500
"""Latest requests of stable that its quantiles are taken from: few enough that those of another hour, or of a busier
machine, do not stand for it for long (a quantile that nobody exceeds any more tells nothing)."""
RENEWED = 100
"""New requests of stable after which they are taken again."""
COLD = 20
"""First answers of the canary, which are left out: they meet cold caches, and where stable is steady six slow ones
would be evidence enough."""
FEWEST = 100
"""Of them, before which nothing is compared: one request would be the quantile."""


class Exceedance(msgspec.Struct):
    """What was seen of one quantile."""

    quantile: float
    worse: Evidence
    fine: Evidence
    stable: Flags
    canary: Flags
    totals: Totals = msgspec.field(default_factory=Totals)

    def look(self, threshold: float, stable: Sequence[float], canary: Sequence[float], scales: Sequence[float]) -> None:
        """``scales``: the canary is taken to be so many times faster: what is tolerated, and the margin."""
        tolerated, margin = scales
        slow = [seconds > threshold for seconds in stable]
        rate = 1 - self.quantile
        limit = threshold * tolerated
        self.worse.add(Count(len(slow), sum(slow)), Count(len(canary), sum(took > limit for took in canary)), rate)
        # Where many of stable's requests took equally long none may exceed them: reaching them counts here, in both.
        limit = threshold * margin
        reached = sum(took >= threshold for took in stable), sum(took >= limit for took in canary)
        self.fine.add(Count(len(stable), reached[0]), Count(len(canary), reached[1]), rate)
        self.stable.extend(slow)
        late = [seconds > threshold for seconds in canary]
        self.canary.extend(late)
        self.totals.add(Count(len(slow), sum(slow)), Count(len(late), sum(late)))

    def design_effect(self) -> float | None:
        return of_both(design_effect(self.stable), design_effect(self.canary))


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
    intervals: Intervals
    cold: int = COLD
    """Answers of the canary that are still to be left out."""

    @classmethod
    def begin(cls, baseline: Window, tolerated: float, margin: float, steps: int) -> Self:
        """``tolerated``, ``margin``: shares by which the canary may be slower."""
        exceedances = [Exceedance(q, Evidence(MORE, steps), Evidence(LESS), Flags(), Flags()) for q in QUANTILES]
        intervals = Intervals(QUANTILES, [0] * len(QUANTILES), [0] * len(QUANTILES))
        found = cls(exceedances, deque(maxlen=KEPT), [], 0, tolerated, margin, intervals)
        for one in exceedances:
            one.fine.begin_step()
        seconds_before = answered(baseline)
        found._note(seconds_before)
        for one, threshold in zip(exceedances, found.thresholds, strict=False):
            one.stable.extend(seconds > threshold for seconds in seconds_before)
        return found

    def begin_step(self) -> None:
        for one in self.exceedances:
            one.worse.begin_step()

    def look(self, stable: Window, canary: Window) -> None:
        fast, new = answered(stable), answered(canary)
        new, self.cold = new[self.cold :], max(0, self.cold - len(new))
        scales = 1 + self.tolerated, 1 + self.margin
        for one, threshold in zip(self.exceedances, self.thresholds, strict=False):
            one.look(threshold, fast, new, scales)
        self.intervals.add(fast, new, self.margin)
        self._note(fast)

    def _note(self, stable: Sequence[float]) -> None:
        self.recent.extend(stable)
        self.fresh += len(stable)
        if len(self.recent) >= FEWEST and self.fresh >= RENEWED:
            ordered = sorted(self.recent)
            self.thresholds = [ordered[int(one.quantile * len(ordered))] for one in self.exceedances]
            self.fresh = 0

    def found(self, quantile: float) -> tuple[float, float, str]:
        """Evidence that the canary is slower at one of the quantiles; that it is not slower by the margin at this one;
        and the figures, for people."""
        effects = self.with_effects()
        worse = [one.worse.value(effect) for one, effect in effects]
        ours = QUANTILES.index(quantile)
        one, effect = effects[ours]
        worst = max(range(len(worse)), key=worse.__getitem__)
        told = self._told(worst if worse[worst] > 2 * max(worse[ours], 1.0) else ours)
        fine = (one.fine.value(effect) + self.intervals.value(ours)) / 2
        return sum(worse) / len(worse), fine, told

    def _told(self, place: int) -> str:
        if not self.thresholds:
            return f"stable's latency is not known yet: that takes {FEWEST} answers of it, and {len(self.recent)} came"
        one, threshold = self.exceedances[place], self.thresholds[place]
        stable, canary = one.totals.stable, one.totals.canary
        name, expected = f"stable's p{100 * one.quantile:g} ({threshold:.3g} s now)", 100 - 100 * one.quantile
        if not canary.requests:
            left_out = f"its first {COLD}, cold starts and failures are left out"
            return f"no answer of the canary to compare with {name} yet: {left_out}"
        return (
            f"canary slower than {name} in {share(canary)} of {canary.requests} requests ({expected:.3g} % expected), "
            f"stable in {share(stable)} of {stable.requests}"
        )

    def with_effects(self) -> list[tuple[Exceedance, float]]:
        """Each with its design effect. A tail has few events, and what is not seen in few is not absent: its effect is
        at least what the median's comes to there."""
        median = self.exceedances[0].design_effect() or 1.0
        return [
            (one, max(one.design_effect() or 1.0, 1 + _dependence_at(one.quantile) * (median - 1)))
            for one in self.exceedances
        ]


@cache
def _dependence_at(quantile: float) -> float:
    """Autocorrelation of exceedances over that at the median, where log latencies are normal and weakly alike: the
    square of the density at the quantile over the variance there."""
    density = NormalDist().pdf(NormalDist().inv_cdf(quantile))
    return density**2 / (quantile * (1 - quantile)) / (NormalDist().pdf(0) ** 2 / 0.25)
