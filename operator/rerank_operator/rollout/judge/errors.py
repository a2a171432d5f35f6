"""Does the canary fail more often than stable? Counts only: what went wrong is not looked at."""

from typing import Self

import msgspec

from rerank_operator.rollout.judge.dependence import Flags, design_effect, of_both
from rerank_operator.rollout.judge.evidence import Count, Evidence, Totals, share
from rerank_operator.rollout.judge.windows import Window

MORE, LESS = (1.15, 1.5, 3.0, 10.0, 100.0), (0.95, 0.9, 0.75, 0.5, 0.25, 0.1, 0.01)
"""Odds ratios looked for: a point more is 1.1 where ten in a hundred fail, and ten where one in a thousand does."""


class Errors(msgspec.Struct):
    """What was seen of both arms' failures."""

    worse: Evidence
    """That the canary fails more often than stable by more than what is tolerated."""
    fine: Evidence
    """That it does not fail more often by the margin."""
    stable: Flags
    canary: Flags
    requests: int = 0
    """Of stable, before and during the rollout."""
    failed: int = 0
    totals: Totals = msgspec.field(default_factory=Totals)

    @classmethod
    def begin(cls, baseline: Window, tolerated: float, margin: float, steps: int) -> Self:
        """``tolerated``, ``margin``: differences of the shares of requests that fail."""
        found = cls(Evidence(MORE, steps, tolerated), Evidence(LESS, tolerated=margin), Flags(), Flags())
        found.fine.begin_step()
        found._note(baseline)
        return found

    def begin_step(self) -> None:
        self.worse.begin_step()

    def look(self, stable: Window, canary: Window) -> None:
        rate = (self.failed + 0.5) / (self.requests + 1)
        counts = Count(len(stable.seconds), len(stable.failed)), Count(len(canary.seconds), len(canary.failed))
        self.worse.add(*counts, rate)
        self.fine.add(*counts, rate)
        self.totals.add(*counts)
        self._note(stable)
        self.canary.extend(_flags(canary))

    def told(self) -> str:
        """The figures, for people."""
        stable, canary = self.totals.stable, self.totals.canary
        if not canary.requests:
            return "nothing to compare yet"
        return (
            f"canary {canary.events} of {canary.requests} failed ({share(canary)}), "
            f"stable {stable.events} of {stable.requests} ({share(stable)})"
        )

    def design_effect(self) -> float:
        return of_both(design_effect(self.stable), design_effect(self.canary)) or 1.0

    def _note(self, stable: Window) -> None:
        self.requests += len(stable.seconds)
        self.failed += len(stable.failed)
        self.stable.extend(_flags(stable))


def _flags(window: Window) -> list[bool]:
    flags = [False] * len(window.seconds)
    for place in window.failed:
        flags[place] = True
    return flags
