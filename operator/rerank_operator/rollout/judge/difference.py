"""How two arms differ, for a person who decides: shares of failures and quantiles of seconds, with 95 % intervals.

Running figures of each arm, bounded however long it takes. Gives no verdict: an interval holds for one look at it, and
who looks until it excludes 0 will see that by chance; what goes back by itself is the judge's (judge.py).
"""

import math
from collections.abc import Sequence
from statistics import NormalDist

import msgspec

from rerank_operator.rollout.judge.windows import Window, answered

LEVEL = 0.95
QUANTILES = (0.5, 0.95)
WIDTH = math.log(1.02)
"""Of a bucket, in logarithms: seconds are known to 2 %."""
LEAST, MOST = 1e-4, 1e5
"""Seconds; others count as these. Some 1050 buckets."""

_Z = NormalDist().inv_cdf((1 + LEVEL) / 2)


class Figures(msgspec.Struct):
    """Of one arm, since its comparison began. JSON-able."""

    requests: int = 0
    failed: int = 0
    buckets: dict[int, int] = {}
    """Requests that did not fail, by the bucket of their seconds."""

    def add(self, window: Window) -> None:
        self.requests += len(window.seconds)
        self.failed += len(window.failed)
        for seconds in answered(window):
            bucket = math.floor(math.log(min(max(seconds, LEAST), MOST)) / WIDTH)
            self.buckets[bucket] = self.buckets.get(bucket, 0) + 1


class Effects(msgspec.Struct, frozen=True):
    """Design effects, 1 or more: so many requests tell as much as an independent one (dependence.py)."""

    errors: float = 1.0
    p50: float = 1.0
    p95: float = 1.0


class Difference(msgspec.Struct, frozen=True):
    """Of one measure: canary minus stable, between ``low`` and ``high``.

    Shares of requests for errors; for seconds, shares of stable's.
    """

    measure: str
    """errors, p50 or p95."""
    stable: float
    canary: float
    """Share that failed, or seconds."""
    difference: float
    low: float
    high: float


class _Estimate(msgspec.Struct, frozen=True):
    """Of one arm."""

    value: float
    low: float
    high: float


def differences(stable: Figures, canary: Figures, effects: Effects) -> list[Difference]:
    """Of each measure for which there are requests enough in both arms for an interval."""
    found = [_errors(stable, canary, effects.errors)]
    found += [_seconds(stable, canary, *each) for each in zip(QUANTILES, (effects.p50, effects.p95), strict=True)]
    return [one for one in found if one is not None]


def told(stable: Figures, canary: Figures, effects: Effects) -> str:
    """The differences in words; of which there are too few requests, that."""
    parts = [f"{canary.requests} requests against stable's {stable.requests}"]
    known = {one.measure: one for one in differences(stable, canary, effects)}
    for measure in ("errors", "p50", "p95"):
        one = known.get(measure)
        if one is None:
            parts.append(f"{measure}: too few to compare")
            continue
        if measure == "errors":
            values = f"{100 * one.canary:.3g} % against {100 * one.stable:.3g} %"
            name, unit = "failed", " points"
        else:
            values, name, unit = f"{one.canary:.3g} s against {one.stable:.3g} s", measure, " %"
        change, low, high = (_signed(100 * share) for share in (one.difference, one.low, one.high))
        parts.append(f"{name} {values} ({change}{unit}, between {low} and {high})")
    return "; ".join(parts)


def _signed(number: float) -> str:
    return f"{number:+.3g}" if abs(number) < 1000 else f"{number:+.0f}"


def _errors(stable: Figures, canary: Figures, effect: float) -> Difference | None:
    if not stable.requests or not canary.requests:
        return None
    old, new = _wilson(stable, effect), _wilson(canary, effect)
    return Difference("errors", old.value, new.value, new.value - old.value, *_apart(old, new))


def _wilson(figures: Figures, effect: float) -> _Estimate:
    """Share of failures (Wilson, "Probable inference, the law of succession, and statistical inference", 1927)."""
    count, rate = figures.requests / effect, figures.failed / figures.requests
    middle = rate + _Z**2 / (2 * count)
    half = _Z * math.sqrt(rate * (1 - rate) / count + _Z**2 / (4 * count**2))
    scale = 1 + _Z**2 / count
    return _Estimate(rate, min((middle - half) / scale, rate), max((middle + half) / scale, rate))


def _seconds(stable: Figures, canary: Figures, quantile: float, effect: float) -> Difference | None:
    old, new = _quantile(stable, quantile, effect), _quantile(canary, quantile, effect)
    if old is None or new is None:
        return None
    low, high = (math.expm1(bound) for bound in _apart(old, new))
    before, after = math.exp(old.value), math.exp(new.value)
    return Difference(f"p{100 * quantile:g}", before, after, after / before - 1, low, high)


def _quantile(figures: Figures, quantile: float, effect: float) -> _Estimate | None:
    """Logarithm of the seconds, and the order statistics that it lies between; None where there are no such two."""
    count = sum(figures.buckets.values())
    half = _Z * math.sqrt(count * quantile * (1 - quantile) * effect)
    ranks = math.floor(count * quantile - half), math.ceil(count * quantile), math.ceil(count * quantile + half) + 1
    if ranks[0] < 1 or ranks[-1] > count:
        return None
    low, middle, high = _buckets(figures.buckets, ranks)
    return _Estimate((middle + 0.5) * WIDTH, low * WIDTH, (high + 1) * WIDTH)


def _buckets(buckets: dict[int, int], ranks: Sequence[int]) -> list[int]:
    """In which each rank, counted from 1 and ascending, lies."""
    found: list[int] = []
    reached = 0
    for bucket in sorted(buckets):
        reached += buckets[bucket]
        while len(found) < len(ranks) and ranks[len(found)] <= reached:
            found.append(bucket)
    return found


def _apart(old: _Estimate, new: _Estimate) -> tuple[float, float]:
    """Interval of new minus old: the square root of the sum of the squares of what each may be off (Newcombe,
    "Interval estimation for the difference between independent proportions", 1998, method 10; for other figures Zou and
    Donner, "Construction of confidence limits about effect measures", 2008)."""
    difference = new.value - old.value
    low = difference - math.hypot(new.value - new.low, old.high - old.value)
    high = difference + math.hypot(new.high - new.value, old.value - old.low)
    return low, high
