"""Draws what users would send and what the arms would answer, from a scenario and a run's number; no clock.

An arm's nth request is the same whichever judge looks on, and however often: judges are compared on the same draws.
"""

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator
from functools import cache
from itertools import accumulate, cycle, islice
from statistics import NormalDist

import numpy as np

from rerank_operator.rollout.judge.windows import Window
from rerank_operator.rollout.simulate import scenario as described

BASELINE_REQUESTS = 8192
"""What stable has answered before the rollout: as much as the judge can look at (rollout.judge.dependence.KEPT)."""

BLOCK = 1024
"""Requests that are drawn at once; a matter of speed only for correlated ones, but part of what a seed gives."""

Z95 = 1.6448536269514722
"""The standard normal's 0.95 quantile."""


class Traffic:
    """One run's requests."""

    def __init__(self, scenario: described.Scenario, run: int) -> None:
        seeds = np.random.SeedSequence([scenario.seed, run]).spawn(4)
        self._arrivals, self._golden, stable, canary = (np.random.default_rng(seed) for seed in seeds)
        self._scenario = scenario
        self._stable = _Answers(scenario.stable, scenario.correlation, stable)
        self._canary = _Answers(scenario.canary, scenario.correlation, canary)
        self.baseline = self._stable.take(BASELINE_REQUESTS)

    def golden(self) -> tuple[list[float], list[float]]:
        """nDCG of each golden query, of stable and of the canary; nothing where the scenario has none."""
        scenario, chance = self._scenario, self._golden
        if scenario.stable.quality is None or scenario.canary.quality is None:
            return [], []
        shared = scenario.golden_correlation
        easy = chance.standard_normal(scenario.golden_queries)
        other = shared * easy + math.sqrt(1 - shared**2) * chance.standard_normal(scenario.golden_queries)
        stable, canary = scenario.stable.quality, scenario.canary.quality
        return (
            np.clip(stable.ndcg + stable.sd * easy, 0, 1).tolist(),
            np.clip(canary.ndcg + canary.sd * other, 0, 1).tolist(),
        )

    def between(self, begin: float, end: float, weight: float) -> tuple[Window, Window]:
        """What stable and canary answer of the requests from ``begin`` to ``end`` (seconds since the rollout began).

        A Poisson process of which each request goes to the canary with ``weight`` percent: only counts are drawn, for
        no judge is told the moments.
        """
        requests = int(self._arrivals.poisson(expected(self._scenario, end) - expected(self._scenario, begin)))
        canary = int(self._arrivals.binomial(requests, weight / 100))
        return self._stable.take(requests - canary), self._canary.take(canary)


def expected(scenario: described.Scenario, seconds: float) -> float:
    """Requests to be expected in the first ``seconds``."""
    bursts = scenario.bursts
    if bursts is None:
        return scenario.requests_per_second * seconds
    cycles, rest = divmod(seconds, bursts.on + bursts.off)
    on = cycles * bursts.on + min(rest, bursts.on)
    return scenario.requests_per_second * (seconds + (bursts.factor - 1) * on)


class _Answers:
    """What one arm answers, request by request."""

    def __init__(self, arm: described.Arm, correlation: float | None, chance: np.random.Generator) -> None:
        self._errors, latencies = chance.spawn(2)
        self._error_rate = arm.error_rate
        self._blocks = _latencies(arm.latency, correlation, latencies)
        self._seconds: list[float] = []
        self._failed: list[int] = []

    def take(self, count: int) -> Window:
        """The next ``count`` requests."""
        while len(self._seconds) < count:
            block = next(self._blocks)
            failed = np.flatnonzero(self._errors.random(len(block)) < self._error_rate) + len(self._seconds)
            self._failed += failed.tolist()
            self._seconds += block
        seconds, self._seconds = self._seconds[:count], self._seconds[count:]
        end = bisect_left(self._failed, count)
        failed, self._failed = self._failed[:end], [place - count for place in self._failed[end:]]
        return Window(seconds, failed)


def _latencies(
    latency: described.LogNormal | described.Samples, correlation: float | None, chance: np.random.Generator
) -> Iterator[list[float]]:
    """Seconds, without end."""
    if isinstance(latency, described.Samples) and correlation is None:
        yield from _replayed(latency.seconds, chance)
    elif isinstance(latency, described.Samples):
        ordered, bounds = np.sort(latency.seconds), _bounds(len(latency.seconds))
        for block in _normals(correlation or 0.0, chance):
            yield ordered[np.searchsorted(bounds, block)].tolist()
    else:
        middle, sigma = math.log(latency.p50), math.log(latency.p95 / latency.p50) / Z95
        for block in _normals(correlation or 0.0, chance):
            yield np.exp(middle + sigma * block).tolist()


def _replayed(seconds: tuple[float, ...], chance: np.random.Generator) -> Iterator[list[float]]:
    """As recorded, from a random place on, round and round."""
    ring = cycle(seconds)
    deque(islice(ring, int(chance.integers(len(seconds)))), maxlen=0)
    while True:
        yield list(islice(ring, BLOCK))


@cache
def _bounds(count: int) -> np.ndarray:
    """What cuts the standard normal into ``count`` equally likely pieces, one for each sample."""
    normal = NormalDist()
    return np.array([normal.inv_cdf(place / count) for place in range(1, count)])


def _normals(correlation: float, chance: np.random.Generator) -> Iterator[np.ndarray]:
    """Standard normals, each correlated with the one before it: an autoregression of order one."""
    if correlation == 0:
        while True:
            yield chance.standard_normal(BLOCK)
    own = math.sqrt(1 - correlation**2)
    last = chance.standard_normal()
    while True:
        news = (own * chance.standard_normal(BLOCK)).tolist()
        values = list(accumulate(news, lambda before, new: correlation * before + new, initial=last))[1:]
        last = values[-1]
        yield np.array(values)
