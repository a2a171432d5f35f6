"""How much of a resource all requests in flight hold together, and who is told to come back later.

Counting happens before any work is spent, so a full worker says so cheaply. One request alone is admitted beyond the
limit, up to ``ALONE`` times. Used by the event loop's thread only.
"""

import math
from typing import Protocol

from rerank_worker.server.protocol import Refusal

LONGEST_RETRY_AFTER = 30
"""Seconds: another worker, or a longer queue elsewhere, is a better guess than a wait beyond it."""


ALONE = 16
"""Times the limit that one request may take: what is far beyond it (10,000 documents in 64 chunks each are 300 million
tokens) would end the process for want of memory, and then the next one that it is tried at."""


class Gauge(Protocol):
    def set(self, value: float) -> None: ...


def retry_after(waiting: int, per_second: float | None) -> int:
    """Whole seconds until about ``waiting`` is worked off; 1 where the speed is not known."""
    if not per_second:
        return 1
    return max(1, min(math.ceil(waiting / per_second), LONGEST_RETRY_AFTER))


class Admission:
    """``limit`` of ``unit`` (a plural noun) in flight; ``gauge`` shows how much there is."""

    def __init__(self, limit: int, unit: str, gauge: Gauge) -> None:
        self._limit = limit
        self._unit = unit
        self._gauge = gauge
        self._held = 0

    def bound(self, amount: int) -> None:
        """Raises Refusal (too_long) where ``amount`` is more than one request may take, though nothing else waits."""
        most = ALONE * self._limit
        if amount > most:
            raise Refusal(
                "too_long",
                f"the request would take about {amount} {self._unit}, and one may take {most} here: send fewer or "
                "shorter documents, or a shorter query",
            )

    def check(self, per_second: float | None = None) -> None:
        """Raises Refusal (busy) when nothing more fits, whatever its size."""
        if self._held >= self._limit:
            raise self._busy(
                f"{self._held} {self._unit} wait here already (limit {self._limit}): try another worker", per_second
            )

    def fits(self, amount: int, beside: int = 0, per_second: float | None = None) -> None:
        """Raises Refusal (busy) unless ``amount`` fits. ``beside``: what the same request holds already."""
        others = self._held - beside
        if others > 0 and self._held + amount > self._limit:
            raise self._busy(
                f"about {amount + beside} {self._unit} do not fit beside the {others} that wait here (limit "
                f"{self._limit}): try another worker",
                per_second,
            )

    def enter(self, amount: int, beside: int = 0, per_second: float | None = None) -> None:
        """Take ``amount`` in. Raises Refusal (busy)."""
        self.fits(amount, beside, per_second)
        self._held += amount
        self._gauge.set(self._held)

    def leave(self, amount: int) -> None:
        self._held -= amount
        self._gauge.set(self._held)

    def _busy(self, message: str, per_second: float | None) -> Refusal:
        return Refusal("busy", message, retry_after(self._held, per_second))
