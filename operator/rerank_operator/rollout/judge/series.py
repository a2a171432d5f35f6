"""Is a metric of the user's own worse in the canary? Of each arm one value an interval is all that is known.

An interval is a point: the canary's value is beyond the limit, measured by stable's of the same moment, or it is not.
The canary is worse where it is beyond the limit in more than half of the intervals. Who bets a share of what he has,
at even odds, that the next interval is so has no more in the mean than he began with where at most half are, whatever
came before; so by Ville's inequality he ever has 1/alpha times as much with a probability of at most alpha, however
often one looks. That is the evidence; the same bet on "not beyond" is the evidence that it is fine (Shafer, "Testing by
betting", 2021; Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", 2023).

How the values vary need not be known, and intervals may be alike. But an interval in which next to nothing was counted
tells next to nothing: where few of a canary's rare events are expected, most intervals have fewer than expected. No
value of one arm, or one that no share can be taken of, is no point: missing data is no evidence for either side.
"""

import math
from collections.abc import Sequence
from typing import Self

import msgspec

from rerank_operator.rollout.judge.evidence import capital, over_beginnings
from rerank_operator.rollout.judge.judge import SUSPICION, MetricVerdict, Verdict


class Limit(msgspec.Struct, frozen=True):
    """How far from stable's value, as a share of it, the canary's may be."""

    share: float
    higher: bool
    """A higher value is worse; False: a lower one is."""

    def beyond(self, stable: float, canary: float) -> bool:
        """``stable``: above 0."""
        return canary > stable * (1 + self.share) if self.higher else canary < stable * (1 - self.share)


class Values(msgspec.Struct, frozen=True):
    """What one interval gave."""

    stable: float | None = None
    canary: float | None = None
    """None, and NaN: no data."""
    trouble: str = ""
    """Why they could not be asked for; then they count for nothing."""


class Series(msgspec.Struct):
    """What was seen of one metric. JSON-able, and a few numbers however long it takes."""

    asked: str
    """What it is a series of; where that is another one, it begins anew."""
    at: float
    """When it was last asked for, or began; Unix seconds."""
    points: list[tuple[int, int]] = []
    """Since each step began: intervals beyond the limit, and others."""
    last: Values = Values()
    """Of the last interval, as far as they are finite."""

    @classmethod
    def begin(cls, asked: str, now: float) -> Self:
        """The first value comes an interval later, when it tells of the canary's own time only."""
        return cls(asked, now)

    def reach(self, step: int) -> None:
        """So many steps are passed; trouble that comes with more traffic is looked for from each of them on."""
        self.points += [(0, 0)] * (step + 1 - len(self.points))

    def add(self, values: Values, limit: Limit) -> None:
        """One interval. ``reach`` has been told of the step that it is in."""
        trouble = values.trouble or _without(values)
        kept = (one if one is not None and math.isfinite(one) else None for one in (values.stable, values.canary))
        self.last = Values(*kept, trouble)
        if trouble:
            return
        assert values.stable is not None
        assert values.canary is not None
        beyond = limit.beyond(values.stable, values.canary)
        self.points = [(worse + beyond, fine + (not beyond)) for worse, fine in self.points]

    def judge(self, name: str, limit: Limit, steps: int, chance: float, miss: float) -> MetricVerdict:
        """``steps``: that there are in all. ``chance``: that a canary which is no worse fails. ``miss``: that one which
        is worse passes; it does not while there is evidence against it, either."""
        worse, fine = self.evidence(steps)
        needed, enough = 1 / chance, 1 / miss
        told = (
            f"{self._told(limit)}; evidence of worse {worse:.3g} of {needed:.3g}, "
            f"of not worse by the limit {fine:.3g} of {enough:.3g}"
        )
        passed = fine >= enough and worse < SUSPICION
        return MetricVerdict(name, "fail" if worse >= needed else "pass" if passed else "hold", told, worse)

    def evidence(self, steps: int) -> tuple[float, float]:
        """That it is worse, and that it is not; 1 is none."""
        if not self.points:
            return 1.0, 1.0
        worse = over_beginnings([capital(worse, fine) for worse, fine in self.points], steps)
        beyond, others = self.points[0]
        return worse, capital(others, beyond)

    def _told(self, limit: Limit) -> str:
        """The figures, for people."""
        last = self.last
        if last.trouble:
            parts = [last.trouble]
        elif last.stable is None or last.canary is None:
            parts = ["nothing to compare yet"]
        else:
            change = 100 * (last.canary / last.stable - 1)
            allowed = 100 * limit.share if limit.higher else -100 * limit.share
            values = f"canary {last.canary:.4g}, stable {last.stable:.4g}"
            parts = [f"{values} ({change:+.3g} %, up to {allowed:+.3g} % is allowed)"]
        beyond, others = self.points[0] if self.points else (0, 0)
        if beyond + others:
            parts.append(f"worse in {beyond} of {beyond + others} intervals")
        return "; ".join(parts)


def suspicious(own: Sequence[MetricVerdict]) -> bool:
    """Whether no step is to be taken for now."""
    return any(metric.worse >= SUSPICION for metric in own)


def together(said: Verdict, own: Sequence[MetricVerdict]) -> Verdict:
    """What the judge says of errors and latency, and what the user's own metrics say: one that fails is enough to go
    back, and all must pass for a promotion."""
    metrics = (*said.metrics, *own)
    failed = next((metric.name for metric in own if metric.verdict == "fail"), None)
    if failed is not None and said.action != "rollback":
        return Verdict("rollback", failed, metrics)
    waiting = next((metric.name for metric in own if metric.verdict == "hold"), None)
    if waiting is not None and said.action == "promote":
        return Verdict("hold", waiting, metrics)
    return Verdict(said.action, said.reason, metrics)


def _without(values: Values) -> str:
    """Why there is no point; empty where there is one."""
    missing = [
        arm for arm, value in (("stable", values.stable), ("canary", values.canary)) if value is None or value != value
    ]
    if missing:
        return f"the query has no data for {' and '.join(missing)}"
    assert values.stable is not None
    assert values.canary is not None
    if not (math.isfinite(values.stable) and math.isfinite(values.canary)):
        return f"a value is not finite: canary {values.canary:g}, stable {values.stable:g}"
    if values.stable <= 0:
        return f"stable's value is {values.stable:.4g}, of which no share can be taken (canary {values.canary:.4g})"
    return ""
