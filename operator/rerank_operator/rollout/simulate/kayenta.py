"""Kayenta's judge NetflixACAJudge-v1.0 in a Spinnaker canary stage, from its published rules; looks at no ranking.

Sources, read in November 2026: spinnaker/spinnaker kayenta/kayenta-judge/.../{NetflixACAJudge,
classifiers/metric/MannWhitneyClassifier,stats/EffectSizes,scorers/WeightedSumScorer}.scala,
orca/orca-kayenta/.../{RunCanaryIntervalsStage,MonitorKayentaCanaryTask}.kt, spinnaker/orca
AggregateCanaryResultsTask.kt, and Spinnaker's guides/user/canary/best-practices. What they say:

- Lifetime 3 hours, a run every hour over all points since the start, no warm-up. An interval above the lifetime is the
  lifetime; what a lifetime leaves over is not judged.
- Canary against a fresh baseline of the same version as stable and the same size and traffic as the canary.
- A metric is High when the 98 % interval of its shift lies above a quarter of the estimate, and the canary's mean is
  not below the baseline's (a mean of 0 leaves that out). Equal data passes. An arm without points makes it Nodata; one
  that has no interval at all makes it an error, which counts neither way. Where each arm has a single value, noise of
  1e-5 of it is added.
- By default: minutes without requests are left out, outliers stay, no metric is critical or must have data.
- Score: percent of the metrics that pass; 0 when half of them or more are Nodata. At most 75 fails at once, and below
  95 after the last run. Fewer than 50 points are worth a warning, no more.

Choices: the guide's error rate (percent), mean and p95 of latency (milliseconds), one point a minute, each fails by
increase only and is a group of its own, of equal weight, as the guide would have it for what is critical: one High of
three is a score of 67. The baseline is the first of the minute's requests on stable, as many as the canary had. The
weight is the scenario's last below 100 for the whole time: the stage moves no traffic. A shorter horizon shortens the
lifetime. The noise is the normal's quantiles and no draw, so that a run repeats itself.
"""

from collections.abc import Sequence
from statistics import NormalDist, fmean, quantiles
from typing import Literal

from rerank_operator.rollout.judge.windows import Window
from rerank_operator.rollout.simulate.mann_whitney import AllTied, shift
from rerank_operator.rollout.simulate.policy import Outcome

POINT = 60.0
"""Seconds."""
LIFETIME, INTERVAL = 3 * 3600.0, 3600.0
CONFIDENCE = 0.98
TOLERANCE = 0.25
PASS, MARGINAL = 95.0, 75.0
MOST_NODATA = 0.5
"""Share of the metrics."""
NOISE = 1e-5
INSTANT = 1e-6
"""Seconds, for sums of intervals."""
REASONS = {"error rate": "errors", "mean latency": "latency", "p95 latency": "latency"}

Label = Literal["pass", "high", "nodata", "error"]


class Kayenta:
    """``weights``: the last below 100 is held. ``horizon``: bounds the lifetime. It has no use for ``baseline``: what
    stable did earlier is no fresh baseline. ValueError without a weight below 100."""

    interval = POINT

    def __init__(self, weights: Sequence[float], baseline: Window, horizon: float) -> None:
        below = [weight for weight in weights if weight < 100]
        if not below:
            raise ValueError(f"weights: {list(weights)} has none below 100; at 100 there is no baseline left")
        self.weight = below[-1]
        lifetime = min(LIFETIME, horizon)
        self._every = min(INTERVAL, lifetime)
        self._runs_left = int(lifetime / self._every + INSTANT)
        self._due = self._every
        self._baseline: dict[str, list[float]] = {metric: [] for metric in REASONS}
        self._canary: dict[str, list[float]] = {metric: [] for metric in REASONS}
        self.reason = ""

    def golden(self, stable: Sequence[float], canary: Sequence[float]) -> None:
        """It does not look."""

    def look(self, now: float, stable: Window, canary: Window) -> Outcome | None:
        for points, window in ((self._canary, canary), (self._baseline, first(stable, len(canary.seconds)))):
            for metric, value in point(window).items():
                points[metric].append(value)
        if now < self._due - INSTANT:
            return None
        self._due += self._every
        self._runs_left -= 1
        labels = {metric: classify(self._canary[metric], self._baseline[metric]) for metric in REASONS}
        reached = score(list(labels.values()))
        if reached <= MARGINAL or (not self._runs_left and reached < PASS):
            self.reason = next((REASONS[metric] for metric, label in labels.items() if label == "high"), "no data")
            return "rollback"
        return None if self._runs_left else "promote"


def first(window: Window, count: int) -> Window:
    """The first ``count`` requests, or all there are."""
    return Window(window.seconds[:count], [place for place in window.failed if place < count])


def point(window: Window) -> dict[str, float]:
    """What a minute adds to each metric's series; nothing without requests."""
    seconds = window.seconds
    if not seconds:
        return {}
    p95 = quantiles(seconds, n=20, method="inclusive")[-1] if len(seconds) > 1 else seconds[0]
    return {
        "error rate": 100 * len(window.failed) / len(seconds),
        "mean latency": 1000 * fmean(seconds),
        "p95 latency": 1000 * p95,
    }


def classify(canary: Sequence[float], baseline: Sequence[float]) -> Label:
    """One metric's series, points in any order; direction: increase."""
    if not canary or not baseline:
        return "nodata"
    if sorted(canary) == sorted(baseline) or len({*canary, *baseline}) == 1:
        return "pass"
    if len(set(canary)) == 1 and len(set(baseline)) == 1:
        canary, baseline = _noisy(canary), _noisy(baseline)
    try:
        found = shift(canary, baseline, CONFIDENCE)
    except AllTied:
        return "error"
    here, there = fmean(canary), fmean(baseline)
    above = here >= there or here == 0 or there == 0
    return "high" if found.low > TOLERANCE * abs(found.estimate) and above else "pass"


def score(labels: Sequence[Label]) -> float:
    """0 to 100, each label a group of equal weight; a group without data scores in full."""
    if labels.count("nodata") >= MOST_NODATA * len(labels):
        return 0.0
    return round(100 * (1 - labels.count("high") / len(labels)), 2)


def _noisy(values: Sequence[float]) -> list[float]:
    count, normal = len(values), NormalDist()
    return [value * (1 + NOISE * normal.inv_cdf((place + 0.5) / count)) for place, value in enumerate(values)]
