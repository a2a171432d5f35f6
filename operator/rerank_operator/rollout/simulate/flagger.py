"""Flagger's canary analysis, from its published rules and the settings of its own examples; looks at no ranking.

Sources, read in November 2026: fluxcd/flagger pkg/controller/{scheduler,scheduler_metrics}.go, pkg/canary/status.go,
pkg/metrics/observers/istio.go, pkg/metrics/providers/prometheus.go, docs/gitbook/usage/metrics.md and
docs/gitbook/tutorials/istio-progressive-delivery.md (interval 1m, threshold 5, success rate 99 %, p99 500 ms);
prometheus/prometheus promql/quantile.go. What they say:

- The first weight is set without a check. Then each interval checks the last interval's canary requests: success rate
  first, then duration; the first that fails ends the check, and the weight stays. A passed check goes one weight up;
  passed at the last weight, it promotes.
- Failed checks add up; no passed check takes one away. How many there are is asked before a check, so the rollback
  comes one interval after the last failed one.
- No requests: 0 / 0 is NaN, which is "no values found" (since pull request 1095), a failed check like any other.
- Stable is never looked at: the limits are absolute. A service whose p99 is above 500 ms needs another limit there.

Choices: the scenario's weights below 100 are its stepWeights, and the last of them its maxWeight. Duration's window is
the one minute of metrics.md (the tutorial has 30 s). The mesh is Istio, Flagger's default, with the buckets of Envoy.
Counters are read without gaps between scrapes. Checks of pods and webhooks always pass.
"""

from bisect import bisect_right
from collections.abc import Sequence

from rerank_operator.rollout.judge.windows import Window
from rerank_operator.rollout.simulate.policy import Outcome

INTERVAL = 60.0
THRESHOLD = 5
LEAST_SUCCESS = 99.0
"""Percent."""
MOST_DURATION = 500
"""Milliseconds, of the 99th percentile."""
QUANTILE = 0.99
BUCKETS = (0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1e3, 2.5e3, 5e3, 1e4, 3e4, 6e4, 3e5, 6e5, 1.8e6, 3.6e6)
"""Milliseconds; upper bounds of the buckets in which Envoy counts durations."""
INSTANT = 1e-6
"""Seconds, for sums of intervals."""


class Flagger:
    """``weights``: its stepWeights. It has no use for ``baseline`` and ``horizon``. ValueError: none is below
    100."""

    interval = INTERVAL

    def __init__(self, weights: Sequence[float], baseline: Window, horizon: float) -> None:
        self._steps = [weight for weight in weights if weight < 100]
        if not self._steps:
            raise ValueError(f"weights: {list(weights)} has none below 100; at 100 there is no step to check")
        self._step = 0
        self._failed = 0
        self._last_failed = ""
        self._due = INTERVAL
        self.reason = ""

    @property
    def weight(self) -> float:
        return self._steps[self._step]

    def golden(self, stable: Sequence[float], canary: Sequence[float]) -> None:
        """It does not look."""

    def look(self, now: float, stable: Window, canary: Window) -> Outcome | None:
        if now < self._due - INSTANT:
            return None  # The horizon, in the middle of an interval.
        self._due += INTERVAL
        if self._failed >= THRESHOLD:
            self.reason = self._last_failed
            return "rollback"
        if failed := failed_check(canary):
            self._failed += 1
            self._last_failed = failed
            return None
        if self._step == len(self._steps) - 1:
            return "promote"
        self._step += 1
        return None


def failed_check(canary: Window) -> str:
    """The metric that fails an interval's check; empty when it passes."""
    requests = len(canary.seconds)
    if not requests:
        return "no data"
    if (requests - len(canary.failed)) / requests * 100 < LEAST_SUCCESS:
        return "errors"
    # The observer cuts the duration off to whole milliseconds before the limit is applied.
    return "latency" if int(duration(canary.seconds)) > MOST_DURATION else ""


def duration(seconds: Sequence[float]) -> float:
    """The 99th percentile in milliseconds as Prometheus' ``histogram_quantile`` has it: linear within a bucket; the
    last bound when it lies beyond. ``seconds`` must not be empty."""
    ordered = sorted(seconds)
    rank = QUANTILE * len(ordered)
    below, begin = 0, 0.0
    for bound in BUCKETS:
        count = bisect_right(ordered, bound / 1000)
        if count >= rank:
            return begin + (bound - begin) * (rank - below) / (count - below)
        below, begin = count, bound
    return BUCKETS[-1]
