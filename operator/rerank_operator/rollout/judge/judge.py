"""The verdict on a canary: go on, take the next step, promote it, or roll it back. Decides; carries out nothing.

Fails at any look with enough evidence that the canary is worse. A healthy one fails with at most ``error_probability``
in a whole rollout, however long it takes: that probability is split over the metrics, and each metric's evidence runs
through all steps (evidence.py). That is proven for requests that are independent within an arm; for others it rests on
an estimate of how alike they are (dependence.py), which holds within limits (docs/canary-judge.md, "Too alike").

A step is passed by requests, not by minutes, while nothing looks suspicious. Promotion asks for more than silence: for
evidence that no metric is worse by its margin. Where neither can be shown the verdict is hold, for as long as it takes:
no data is no verdict.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec

from rerank_operator.rollout.judge.difference import Effects
from rerank_operator.rollout.judge.errors import Errors
from rerank_operator.rollout.judge.latency import QUANTILES, Latency
from rerank_operator.rollout.judge.quality import FEWEST, compare, queries_for
from rerank_operator.rollout.judge.windows import Window, joined, latest, rounded

Action = Literal["hold", "advance", "promote", "rollback"]

SUSPICION = 2.0
"""Evidence against a metric above which no step is taken: half of the healthy rollouts come to it once, and wait until
it has gone. A bad canary gets no more traffic, and the fewer the requests it gets the more each of them tells."""


TOGETHER = 20
"""Requests of both arms that are compared at once. What they have in common must be learnt from them each time, which
costs about as much as one request tells. When to look may depend on counts, not on what came out."""
WAITING = 2048
"""Latest requests of one arm that are kept while the other has none to compare them with."""


_Chance = Annotated[float, msgspec.Meta(ge=1e-6, le=0.5)]
_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
_Margin = Annotated[float, msgspec.Meta(gt=0, le=1)]


class Settings(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """What a user may choose. Raises ValueError (msgspec.ValidationError where it is decoded) naming the field."""

    error_probability: _Chance = 0.01
    """That a healthy canary is rolled back, in a whole rollout."""
    miss_probability: _Chance = 0.1
    """That a metric which is worse by its margin is passed."""
    step_requests: Annotated[int, msgspec.Meta(ge=1)] = 20
    """To the canary, before its next step. Enough to meet what is grossly wrong; the rest is asked of the promotion."""
    step_seconds: Annotated[float, msgspec.Meta(ge=0, le=604_800)] = 60.0
    """That a step takes at least: what comes with more traffic takes a moment to show."""
    errors_tolerated: _Share = 0.0005
    """A larger share of failed requests, by so much, is no regression."""
    errors_margin: _Margin = 0.01
    latency_tolerated: _Share = 0.05
    """Slower by this share is no regression."""
    latency_margin: Annotated[float, msgspec.Meta(gt=0, le=10)] = 0.2
    latency_quantile: float = 0.95
    """Where the margin must be excluded: one of latency.QUANTILES."""
    ndcg_tolerated: _Share = 0.001
    """A drop of the mean by so much is no regression."""
    ndcg_margin: _Margin = 0.02

    def __post_init__(self) -> None:
        if self.latency_quantile not in QUANTILES:
            told = ", ".join(map(str, QUANTILES))
            raise ValueError(f"latencyQuantile: {self.latency_quantile} must be one of {told}")
        for metric in ("errors", "latency", "ndcg"):
            tolerated, margin = getattr(self, f"{metric}_tolerated"), getattr(self, f"{metric}_margin")
            if margin <= tolerated:
                raise ValueError(f"{metric}Margin: {margin:g} must be more than {metric}Tolerated, {tolerated:g}")


class MetricVerdict(msgspec.Struct, frozen=True):
    """What one metric says, and the figures behind it."""

    name: str
    verdict: Literal["pass", "fail", "hold"]
    message: str
    worse: float = 1.0
    """Evidence that the canary is worse; 1 is none."""


class Verdict(msgspec.Struct, frozen=True):
    action: Action
    reason: str
    """The metric that decided, or that is waited for; "requests" where they are too few; "" where none stands out."""
    metrics: tuple[MetricVerdict, ...] = ()


def judge_golden(
    stable: Sequence[float], canary: Sequence[float], settings: Settings, measure: str = "nDCG", queries: int = 0
) -> Verdict:
    """``stable``, ``canary``: nDCG of each golden query, in the same order, before any user's request; or another
    measure from 0 to 1, which is called ``measure`` in messages. ``queries``: metrics of the user's own (series.py)."""
    found = compare(stable, canary, settings.miss_probability, chance_of_each(settings, golden=True, queries=queries))
    if found is None:
        told = f"too few golden queries to compare: {len(stable)}, where it takes {FEWEST} at least, mostly hundreds"
        metric = MetricVerdict("quality", "hold", told)
        return Verdict("hold", "quality", (metric,))
    told = f"{measure} {found.mean:+.4f} over {found.queries} queries, between {found.low:+.4f} and {found.high:+.4f}"
    if found.high < -settings.ndcg_tolerated:
        return Verdict("rollback", "quality", (MetricVerdict("quality", "fail", told),))
    margin = settings.ndcg_margin
    if found.low <= -margin:
        told += f": a drop of {margin:g} is not excluded; that takes about {queries_for(found, margin)} queries"
        return Verdict("hold", "quality", (MetricVerdict("quality", "hold", told),))
    return Verdict("advance", "", (MetricVerdict("quality", "pass", told),))


def chance_of_each(settings: Settings, *, golden: bool, queries: int = 0) -> float:
    """That one metric fails a healthy canary: errors, latency, quality where there is a golden set, and each of the
    user's own metrics (series.py) share what is allowed for a rollout."""
    return settings.error_probability / (2 + golden + queries)


class Seen(msgspec.Struct):
    """All that later verdicts depend on, besides the weights and the settings."""

    errors: Errors
    latency: Latency
    step: int = 0
    """Steps that are passed."""
    since: float = 0.0
    """When this step began, in seconds since the rollout did."""
    requests: int = 0
    """Of the canary in this step."""
    canary_requests: int = 0
    """Since the rollout began."""
    stable: Window = Window()
    """Not compared yet, as the next."""
    canary: Window = Window()

    def begin_step(self, now: float) -> None:
        self.since = now
        self.requests = 0
        self.errors.begin_step()
        self.latency.begin_step()


class Judge:
    """One rollout. ``weights``: percent of the requests at each step, ascending; at 100 nobody is left to compare with,
    so what passes the step before is promoted. ``baseline``: what stable did before it began.
    """

    def __init__(
        self,
        weights: Sequence[float],
        baseline: Window,
        settings: Settings,
        *,
        golden: bool = True,
        queries: int = 0,
    ) -> None:
        """``golden``: whether there is a golden set; its share of the error probability goes to the others if not.
        ``queries``: how many metrics of the user's own (series.py) have a share of it too."""
        self.weights = below_100(weights)
        self.settings = settings
        self.golden = golden
        self.queries = queries
        self._chance = chance_of_each(settings, golden=golden, queries=queries)
        baseline, steps = rounded(baseline), len(self.weights)
        errors = Errors.begin(baseline, settings.errors_tolerated, settings.errors_margin, steps)
        latency = Latency.begin(baseline, settings.latency_tolerated, settings.latency_margin, steps)
        self.seen = Seen(errors, latency)
        self.seen.begin_step(0.0)

    @property
    def weight(self) -> float:
        """Percent of the requests that the canary gets now."""
        return self.weights[self.seen.step]

    @property
    def step(self) -> int:
        """Steps that are passed, of those below 100 percent; the weight in force is ``weights[step]``."""
        return self.seen.step

    @property
    def canary_requests(self) -> int:
        """That were told of, since the rollout began."""
        return self.seen.canary_requests

    @property
    def effects(self) -> Effects:
        """How alike neighbours are, as known by now."""
        median, p95, _ = (effect for _, effect in self.seen.latency.with_effects())
        return Effects(self.seen.errors.design_effect(), median, p95)

    def skip_to(self, step: int, now: float) -> None:
        """Begins steps up to this one without a verdict on those before: they were taken already, and what led to it
        was not kept. Raises ValueError where there is no such step; one that is passed changes nothing."""
        if step >= len(self.weights):
            raise ValueError(f"step: {step} must be below {len(self.weights)}, the number of steps below 100 percent")
        while self.seen.step < step:
            self.seen.step += 1
            self.seen.begin_step(now)

    def look(self, now: float, stable: Window, canary: Window, *, go_on: bool = True) -> Verdict:
        """What both arms have answered since the last look; too little of it is kept for the next, and changes nothing.

        ``now``: seconds since the rollout began. ``go_on``: False where a person has paused it: it may still go back.
        """
        seen = self.seen
        seen.requests += len(canary.seconds)
        seen.canary_requests += len(canary.seconds)
        seen.stable, seen.canary = joined(seen.stable, rounded(stable)), joined(seen.canary, rounded(canary))
        counts = len(seen.stable.seconds), len(seen.canary.seconds)
        if all(counts) and sum(counts) >= TOGETHER:
            seen.errors.look(seen.stable, seen.canary)
            seen.latency.look(seen.stable, seen.canary)
            seen.stable = seen.canary = Window()
        else:
            seen.stable, seen.canary = latest(seen.stable, WAITING), latest(seen.canary, WAITING)
        metrics = (self._judge_errors(), self._judge_latency())
        failed = next((metric for metric in metrics if metric.verdict == "fail"), None)
        if failed is not None:
            return Verdict("rollback", failed.name, metrics)
        return self._next(now, metrics) if go_on else Verdict("hold", "paused", metrics)

    def _next(self, now: float, metrics: tuple[MetricVerdict, ...]) -> Verdict:
        seen, settings = self.seen, self.settings
        last = seen.step == len(self.weights) - 1
        waiting = next((metric.name for metric in metrics if metric.verdict == "hold"), "")
        short = now - seen.since < settings.step_seconds
        if short or seen.requests < settings.step_requests:
            return Verdict("hold", "requests", metrics)
        if any(metric.worse >= SUSPICION for metric in metrics) or (last and waiting):
            return Verdict("hold", waiting, metrics)
        if last:
            return Verdict("promote", "", metrics)
        seen.step += 1
        seen.begin_step(now)
        return Verdict("advance", "", metrics)

    def _judge_errors(self) -> MetricVerdict:
        errors = self.seen.errors
        effect = errors.design_effect()
        return self._metric("errors", errors.told(), errors.worse.value(effect), errors.fine.value(effect))

    def _judge_latency(self) -> MetricVerdict:
        worse, fine, told = self.seen.latency.found(self.settings.latency_quantile)
        return self._metric("latency", told, worse, fine)

    def _metric(self, name: str, figures: str, worse: float, fine: float) -> MetricVerdict:
        needed, enough = 1 / self._chance, 1 / self.settings.miss_probability
        told = (
            f"{figures}; evidence of worse {worse:.3g} of {needed:.3g}, "
            f"of not worse by the margin {fine:.3g} of {enough:.3g}"
        )
        verdict = "fail" if worse >= needed else "pass" if fine >= enough else "hold"
        return MetricVerdict(name, verdict, told, worse)


def below_100(weights: Sequence[float]) -> list[float]:
    """The steps at which both arms serve. Raises ValueError where there is none."""
    found = [weight for weight in weights if weight < 100]
    if not found:
        raise ValueError("weights: there must be a step below 100 percent, at which both arms can be compared")
    return found
