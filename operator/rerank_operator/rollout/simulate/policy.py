"""What the simulator asks of a judge, whoever wrote it.

A policy must never know more than a judge in a cluster would: no true rates, no time but the one it is told.
"""

from collections.abc import Sequence
from typing import Literal, Protocol

from rerank_operator.rollout.judge.windows import Window

Outcome = Literal["rollback", "promote"]


class Policy(Protocol):
    """One judge of one rollout. It ends with the first outcome that it returns."""

    @property
    def interval(self) -> float:
        """Seconds between two looks, above 0."""
        ...

    @property
    def weight(self) -> float:
        """Percent of the users' requests that go to the canary from now on. 100 is for after the promotion only: with
        nobody left on stable there is nothing to compare with."""
        ...

    @property
    def reason(self) -> str:
        """What decided (``errors``, ``latency``, ``quality``, ...); empty while nothing has."""
        ...

    def golden(self, stable: Sequence[float], canary: Sequence[float]) -> Outcome | None:
        """nDCG of each golden query, the same queries in the same order for both, before any user's request; not asked
        where the scenario has none. None: go on, or hold for ever: the weight then stays 0."""
        ...

    def look(self, now: float, stable: Window, canary: Window) -> Outcome | None:
        """``now``: seconds since the rollout began. The windows hold what came since the last look. None: go on."""
        ...


class MakePolicy(Protocol):
    """A new policy for each run."""

    def __call__(self, weights: Sequence[float], baseline: Window, horizon: float) -> Policy:
        """``weights``: percent a step, ascending, the last perhaps 100. ``baseline``: what stable did before the
        rollout (``traffic.BASELINE_REQUESTS`` requests). ``horizon``: seconds after which it is over anyway."""
        ...
