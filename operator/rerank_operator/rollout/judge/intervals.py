"""Is the canary not slower by a margin? Its quantile against stable's of the same moments, interval by interval.

What makes both arms slow at once (a busy hour, a busy machine) says nothing about either, yet makes requests alike, so
that thousands of them tell as little as tens (dependence.py). Two quantiles of one interval have all of that in common.
A canary that is slower by the margin is found so in half of the intervals or more, so who bets a share of what he has
at even odds on "it is not" gains nothing by it (Shafer, "Testing by betting", 2021). Only for letting a canary pass:
where one arm alone has its slow spells, longer than an interval, its intervals are alike, and a bad one may pass.
"""

from collections.abc import Sequence

import msgspec

from rerank_operator.rollout.judge.evidence import capital

ANSWERS = 100
"""Of each arm, that an interval has at least: its 95th percentile is the fifth slowest."""
KEPT = 400
"""Of each arm at most, evenly spread over the interval."""


class Sample(msgspec.Struct):
    """Seconds of one arm in the interval that goes on: every one, or every second, fourth... where there are many."""

    seconds: list[float] = []
    every: int = 1
    came: int = 0

    def add(self, seconds: Sequence[float]) -> None:
        for one in seconds:
            if self.came % self.every == 0:
                self.seconds.append(one)
            self.came += 1
            if len(self.seconds) > KEPT:
                self.seconds = self.seconds[::2]
                self.every *= 2

    def quantile(self, share: float) -> float:
        return sorted(self.seconds)[int(share * len(self.seconds))]


class Intervals(msgspec.Struct):
    """Counts of intervals by quantile, and the answers since the last one."""

    quantiles: tuple[float, ...]
    fine: list[int]
    """Intervals in which the canary's quantile was below stable's with the margin."""
    slower: list[int]
    stable: Sample = msgspec.field(default_factory=Sample)
    canary: Sample = msgspec.field(default_factory=Sample)

    def add(self, stable: Sequence[float], canary: Sequence[float], margin: float) -> None:
        """``margin``: the share by which the canary may be slower."""
        self.stable.add(stable)
        self.canary.add(canary)
        if min(self.stable.came, self.canary.came) < ANSWERS:
            return
        for place, share in enumerate(self.quantiles):
            fine = self.canary.quantile(share) < self.stable.quantile(share) * (1 + margin)
            (self.fine if fine else self.slower)[place] += 1
        self.stable, self.canary = Sample(), Sample()

    def value(self, place: int) -> float:
        """Evidence against "slower by the margin" at that quantile: 1 is none."""
        return capital(self.fine[place], self.slower[place])
