"""A keyed work queue: a key waits at most once, is never worked on twice at a time, and backs off when it fails.

Knows nothing about what a key means. Time and randomness are passed in.
"""

import asyncio
import heapq
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class WorkQueue(Generic[K]):
    """Keys are handed out in the order in which they fall due. A key added while it is worked on comes again after."""

    def __init__(
        self,
        clock: Callable[[], float],
        random: Callable[[], float],
        first_delay: float = 0.25,
        longest_delay: float = 60.0,
        retry_floor: float = 1.0,
    ) -> None:
        """``retry_floor``: news about a failing key bring its retry forward, but no closer than this."""
        self._clock = clock
        self._random = random
        self._first_delay = first_delay
        self._longest_delay = longest_delay
        self._retry_floor = retry_floor
        self._due: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._order = 0
        self._working: dict[K, float] = {}
        self._again: dict[K, float] = {}
        self._failures: dict[K, int] = {}
        self._closed = False
        self._changed = asyncio.Event()

    def add(self, key: K, delay: float = 0.0) -> None:
        """Ask for ``key`` after ``delay`` seconds, or sooner if it was asked for sooner."""
        if key in self._failures:
            # Whatever a failing reconcile writes comes back as an event, and must not make it run hot.
            delay = max(delay, self._retry_floor)
        self._schedule(key, delay)

    def _schedule(self, key: K, delay: float) -> None:
        if self._closed:
            return
        due = self._clock() + max(0.0, delay)
        waiting = self._again if key in self._working else self._due
        if key in waiting and waiting[key] <= due:
            return
        waiting[key] = due
        if waiting is self._due:
            self._order += 1
            heapq.heappush(self._heap, (due, self._order, key))
            self._changed.set()

    async def get(self) -> tuple[K, float] | None:
        """The next key that is due, and how long it has been; None once the queue is closed. Pair with ``done``."""
        while not self._closed:
            if (ready := self._pop()) is not None:
                return ready
            self._changed.clear()
            wait = max(0.0, self._heap[0][0] - self._clock()) if self._heap else None
            try:
                async with asyncio.timeout(wait):
                    await self._changed.wait()
            except TimeoutError:
                continue
        return None

    def _pop(self) -> tuple[K, float] | None:
        now = self._clock()
        while self._heap:
            due, _, key = self._heap[0]
            if self._due.get(key) != due:
                heapq.heappop(self._heap)  # superseded by a sooner one, or cleared
                continue
            if due > now:
                return None
            heapq.heappop(self._heap)
            del self._due[key]
            self._working[key] = now
            return key, now - due
        return None

    def done(self, key: K, failed: bool = False) -> None:
        """``key`` is no longer worked on. ``failed``: it comes again after its backoff."""
        del self._working[key]
        again = self._again.pop(key, None)
        if failed:
            self._schedule(key, self._backoff(key))
        else:
            self._failures.pop(key, None)
        if again is not None:
            self.add(key, again - self._clock())

    def _backoff(self, key: K) -> float:
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        delay = min(self._first_delay * 2.0 ** min(failures - 1, 32), self._longest_delay)
        return delay * (0.75 + 0.25 * self._random())

    def clear(self) -> None:
        """Forget what waits (leadership is lost); what is worked on stays until it is done."""
        self._due.clear()
        self._heap.clear()
        self._again.clear()
        self._failures.clear()

    def close(self) -> None:
        self.clear()
        self._closed = True
        self._changed.set()

    def depth(self) -> int:
        """Keys that are due now."""
        now = self._clock()
        return sum(due <= now for due in self._due.values())

    def oldest_work(self) -> float:
        """Seconds for which the slowest key has been worked on."""
        return self._clock() - min(self._working.values(), default=self._clock())
