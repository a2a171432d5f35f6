"""Traces for runs on a cluster: seeded arrivals of minutes, in units of what one replica can do.

Pure; the same seed gives the same trace.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from harness.load import Call

MEAN_TOKENS = 2_000
SPREAD = 0.5
"""Standard deviation of the logarithm of a request's tokens: a query with some tens of documents."""


@dataclass(frozen=True)
class Trace:
    """``rises``: how often the demand itself rises and falls again, which is how often a fleet has reason to."""

    name: str
    calls: tuple[Call, ...]
    rises: int

    @property
    def seconds(self) -> float:
        return self.calls[-1].at if self.calls else 0.0

    @property
    def tokens(self) -> int:
        return sum(call.tokens for call in self.calls)


def arrivals(
    chance: random.Random, load: Callable[[float], float], most: float, seconds: float, capacity: float
) -> list[Call]:
    """A Poisson process whose tokens come at ``load(t)`` (at most ``most``) times ``capacity`` tokens/s; one request in
    ten is high and one in ten low."""
    rate = most * capacity / MEAN_TOKENS
    found: list[Call] = []
    now = chance.expovariate(rate)
    while now < seconds:
        if chance.random() * most < load(now):
            tokens = max(50, round(chance.lognormvariate(math.log(MEAN_TOKENS) - SPREAD**2 / 2, SPREAD)))
            found.append(Call(round(now, 4), tokens, chance.choices(("high", "normal", "low"), (1, 8, 1))[0]))
        now += chance.expovariate(rate)
    return found


def flash_crowd(capacity: float, seconds: float = 60.0, load: float = 3.0, seed: int = 1) -> Trace:
    """Nothing, then at once ``load`` times what one replica can do, then nothing."""
    calls = arrivals(random.Random(f"flash {seed}"), lambda _: load, load, seconds, capacity)
    return Trace("flash crowd", tuple(calls), rises=1)


def diurnal(capacity: float, seconds: float = 240.0, load: float = 3.0, seed: int = 1) -> Trace:
    """One day, compressed: from a twentieth of ``load`` up to it and back."""

    def at(moment: float) -> float:
        return load * (0.05 + 0.95 * (1 - math.cos(2 * math.pi * moment / seconds)) / 2)

    calls = arrivals(random.Random(f"diurnal {seed}"), at, load, seconds, capacity)
    return Trace("diurnal", tuple(calls), rises=1)


def on_off(
    capacity: float, on: float = 20.0, off: float = 40.0, times: int = 4, load: float = 1.2, seed: int = 1
) -> Trace:
    """``times`` jobs of ``on`` seconds at ``load``, with ``off`` seconds of nothing between them."""
    chance = random.Random(f"on-off {seed}")
    calls = [
        call._replace(at=round(call.at + number * (on + off), 4))
        for number in range(times)
        for call in arrivals(chance, lambda _: load, load, on, capacity)
    ]
    return Trace("on/off", tuple(calls), rises=times)
