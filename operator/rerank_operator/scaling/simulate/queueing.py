"""How requests wait and are served: a queue with priorities that age, and replicas that share their speed.

The same for every controller. Nothing here knows how many replicas there should be.
"""

import math
from collections import deque
from heapq import heappush

from rerank_operator.scaling.simulate.inputs import PRIORITIES

HANDICAP = (0.0, 1.0, 5.0)
"""Seconds by which a request of each priority counts as later than it came: a low one that has waited 5 s longer than a
high one goes first, so that none starves."""

Held = tuple[float, int, float, float, int]
"""Of a request that a replica serves: what each request of its batch has been given when it ends, a number that settles
ties, when it arrived, when it was taken, tokens."""


class Waiting:
    """The requests of one Reranker that no replica has taken: (arrived, tokens) by priority."""

    __slots__ = ("count", "lines", "timeout", "tokens")

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.lines: tuple[deque[tuple[float, int]], ...] = tuple(deque() for _ in PRIORITIES)
        self.count = 0
        self.tokens = 0

    def add(self, arrived: float, tokens: int, priority: int) -> None:
        self.lines[priority].append((arrived, tokens))
        self.count += 1
        self.tokens += tokens

    def take(self) -> tuple[float, int]:
        """The request that goes first; there must be one."""
        first, best = None, math.inf
        for line, handicap in zip(self.lines, HANDICAP, strict=True):
            if line and line[0][0] + handicap < best:
                first, best = line, line[0][0] + handicap
        assert first is not None
        self.count -= 1
        arrived, tokens = first.popleft()
        self.tokens -= tokens
        return arrived, tokens

    def expire(self, now: float) -> list[float]:
        """Removes the requests whose time is over at ``now``; returns the moments at which it was."""
        if not self.count or self.timeout == math.inf:
            return []
        ended = []
        for line in self.lines:
            while line and line[0][0] + self.timeout <= now:
                arrived, tokens = line.popleft()
                self.count -= 1
                self.tokens -= tokens
                ended.append(arrived + self.timeout)
        return ended


class Replica:
    """A worker: the requests of its batch have equal shares of its speed, and a new one joins at any moment.

    ``attained`` is how many tokens each request of the batch has been given since the batch was last empty; a request
    ends when it has grown by its own tokens. So the next one to end is the first of a heap, whatever joins.
    """

    __slots__ = ("attained", "batch", "clear_at", "draining", "pod", "since", "told", "version")

    def __init__(self, told: float, pod: str | None = None) -> None:
        self.told = told
        self.pod = pod
        """The warm pod that it is; None: of the Reranker's own Deployment."""
        self.draining = False
        self.batch: list[Held] = []
        self.attained = 0.0
        self.since = 0.0
        """When ``attained`` was last brought up to date."""
        self.clear_at = 0.0
        """When it has nothing left to do, if nothing joins."""
        self.version = 0
        """Changes with the batch: an end that was foreseen for an older one is none."""

    def join(self, now: float, speed: float, number: int, arrived: float, tokens: int) -> float:
        """Takes a request; returns when the next one of the batch ends."""
        batch = self.batch
        if batch:
            self.attained += (now - self.since) * speed / len(batch)
            self.clear_at += tokens / speed
        else:
            self.attained = 0.0
            self.clear_at = now + tokens / speed
        self.since = now
        self.version += 1
        heappush(batch, (self.attained + tokens, number, arrived, now, tokens))
        return self.next_end(now, speed)

    def next_end(self, now: float, speed: float) -> float:
        """When the next request of the batch ends; ``attained`` must be that of ``now``."""
        return now + (self.batch[0][0] - self.attained) * len(self.batch) / speed
