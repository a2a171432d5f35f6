"""Evidence that something happens more often in one arm than in the other, valid at every look. Knows no metric.

For one look, let n requests of an arm have k events, and let (c, s) be rates of the canary and of stable, chosen before
the look, with p their mean weighted by the numbers of requests. Then

    (c/p)^kc ((1-c)/(1-p))^(nc-kc) (s/p)^ks ((1-s)/(1-p))^(ns-ks)

has a mean of at most 1 wherever both arms have the same rate, whatever it is, and, for c > s, wherever the canary's is
lower (Turner, Ly and Gruenwald, "Generic E-variables for exact sequential k-sample tests", 2021). So has the product
over looks, and any mean of such products; by Ville's inequality it ever reaches 1/alpha with a probability of at most
alpha, however often one looks. Both arms are compared within each look, so what changes for both (bursts, the hour of
the day, other weights) is no evidence.
"""

import math
from collections.abc import Sequence

import msgspec

_RARE = 1e-6
"""Rates nearer to 0 or 1 are taken for this."""


class Count(msgspec.Struct, frozen=True):
    """Of one arm in one look."""

    requests: int
    events: int


class Totals(msgspec.Struct):
    """Of all looks that compared both arms: for people, nothing is decided by them."""

    stable: Count = Count(0, 0)
    canary: Count = Count(0, 0)

    def add(self, stable: Count, canary: Count) -> None:
        self.stable = Count(self.stable.requests + stable.requests, self.stable.events + stable.events)
        self.canary = Count(self.canary.requests + canary.requests, self.canary.events + canary.events)


def share(count: Count) -> str:
    """Of the requests that had the event, in percent with two digits, for people."""
    if not count.requests:
        return "none"
    percent = 100 * count.events / count.requests
    return f"{percent:.2g} %" if percent < 99 else f"{percent:.3g} %"


class Evidence(msgspec.Struct):
    """What was seen so far, since the rollout began and, for trouble that comes with more traffic, since each of its
    steps began.

    ``tolerated``: so large a difference is none. It is as if that share of stable's requests without an event had one
    by chance; the mean over that chance is taken, so nothing is drawn.
    """

    ratios: tuple[float, ...]
    """Odds ratios of canary to stable that are looked for, all above 1 or all below: a true one lies near one of them,
    which costs a factor of at most their number."""
    steps: int = 1
    """Beginnings that there will be: half of the weight is the first one's, the others share the rest."""
    tolerated: float = 0.0
    logs: list[list[float]] = []
    """For each beginning the logarithm of the product above, by odds ratio."""

    def begin_step(self) -> None:
        self.logs.append([0.0] * len(self.ratios))

    def add(self, stable: Count, canary: Count, rate: float) -> None:
        """``rate``: of stable's events, as known before this look; a wrong one costs speed and nothing else."""
        if not stable.requests or not canary.requests:
            return
        share = canary.requests / (canary.requests + stable.requests)
        base = min(max(rate + self.tolerated * (1 - rate), _RARE), 1 - _RARE)
        for place, ratio in enumerate(self.ratios):
            odds = ratio * base / (1 - base)
            other = odds / (1 + odds)
            pooled = share * other + (1 - share) * base
            spared = self.tolerated * base / pooled + (1 - self.tolerated) * (1 - base) / (1 - pooled)
            seen = (
                canary.events * math.log(other / pooled)
                + (canary.requests - canary.events) * math.log((1 - other) / (1 - pooled))
                + stable.events * math.log(base / pooled)
                + (stable.requests - stable.events) * math.log(spared)
            )
            for logs in self.logs:
                logs[place] += seen

    def value(self, design_effect: float = 1.0) -> float:
        """Against "no difference": 1 is none, 100 is what chance gives once in a hundred rollouts.

        ``design_effect``: so many requests tell as much as an independent one (dependence.design_effect).
        """
        means = [mean_of_exponentials([log / design_effect for log in logs]) for logs in self.logs]
        return over_beginnings(means, self.steps)


def over_beginnings(values: Sequence[float], steps: int) -> float:
    """Evidence since each step began, of so many as there will be: half of the weight is the first one's, the others
    share the rest."""
    if steps < 2:
        return values[0]
    later = sum(values[1:]) + steps - len(values)  # a step to come: 1
    return (values[0] + later / (steps - 1)) / 2


def mean_of_exponentials(logs: Sequence[float]) -> float:
    """Infinite rather than an overflow."""
    highest = max(logs)
    if highest > 700:
        return math.inf
    return math.exp(highest) * sum(math.exp(log - highest) for log in logs) / len(logs)


BETS = (0.25, 0.5, 0.75, 0.95)
"""Shares that are bet; each has an equal part of the money. None is everything, which one lost bet would end."""


def capital(won: int, lost: int) -> float:
    """What is left of 1 after so many bets at even odds, in the mean over BETS: evidence against "half of them are won
    at most", whatever came before each (Shafer, "Testing by betting", 2021)."""
    return mean_of_exponentials([won * math.log1p(bet) + lost * math.log1p(-bet) for bet in BETS])
