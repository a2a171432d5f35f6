"""In which order waiting requests go to workers: the gateway's policy. Knows no clock, no worker and no HTTP.

1. A retry goes first: it has waited its turn already.
2. Classes: high, then normal, then low. A class that lets others pass is owed one token for each YIELD of theirs, and
   once it is owed as much as its next request has, that request goes before them. So each class gets about a tenth of
   what is scored, however much of the others comes; and what comes in a lower class costs a higher one no more.
3. Clients, within a class: start-time fair queueing by tokens. A client's next request is stamped with the class's
   virtual time, or with the end of the client's last one (its stamp plus its tokens) if that is later; the lowest stamp
   goes. The virtual time is the last stamp that went, and moves on by tokens over clients at least, so that clients who
   come for the first time, over and over, cannot hold up one who came before. Source: Goyal, Vin and Cheng, Start-time
   Fair Queuing, SIGCOMM 1996.
4. Of one client: first come, first served. Not by deadline: whoever is impatient would pass the others.

A full queue makes room for a request whose class or client has less than its part of it: see ``Order.displaced``.

Nothing here is O(waiting requests), but for compactions, whose cost is spread over what made them necessary. Memory is
bounded by the waiting requests and by REMEMBERED clients in each class.
"""

import heapq
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from rerank_api.wire import Priority

Item = TypeVar("Item")

YIELD = 8
"""Tokens of others for which a class that let them pass is owed one."""

LARGEST_STEP = 65_536
"""Tokens of one request, at most, that others are compensated for at once: it pays for all of them itself, but moves
virtual time and what lower classes are owed by no more. Else those would have the worker to themselves for many seconds
after one very large request, and for nothing after one that was taken for large and then refused."""

REMEMBERED = 1024
"""Clients without a waiting request whose next stamp is known, in each class. Who is forgotten starts afresh."""

PRIORITIES: tuple[Priority, ...] = ("high", "normal", "low")


@dataclass(slots=True, eq=False)
class _Flow(Generic[Item]):
    """Waiting requests of one client in one class, and their tokens. ``stamp``: of the first of them."""

    client: str
    stamp: float
    items: OrderedDict[Item, int] = field(default_factory=OrderedDict)


@dataclass(slots=True, eq=False)
class _Class(Generic[Item]):
    size: int = 0
    owed: float = 0.0
    """Tokens that it may have scored before higher classes."""
    _now: float = 0.0
    """Virtual time."""
    _flows: dict[str, _Flow[Item]] = field(default_factory=dict)
    """By client; none is empty."""
    _heap: list[tuple[float, int, _Flow[Item]]] = field(default_factory=list)
    """Stamp, a number that makes entries unequal, flow: one entry a flow, and leftovers of stamps that are past."""
    _pushed: int = 0
    _left: dict[str, float] = field(default_factory=dict)
    """Of clients that have no flow now: their next stamp, unless the virtual time is later."""

    def add(self, item: Item, client: str, tokens: int) -> _Flow[Item]:
        flow = self._flows.get(client)
        if flow is None:
            flow = self._flows[client] = _Flow(client, max(self._now, self._left.pop(client, 0.0)))
            flow.items[item] = tokens
            self._push(flow)
        else:
            flow.items[item] = tokens
        self.size += 1
        return flow

    def first(self) -> tuple[Item, int] | None:
        """The request that goes next, and its tokens."""
        while self._heap:
            stamp, _, flow = self._heap[0]
            if flow.items and flow.stamp == stamp:
                return next(iter(flow.items.items()))
            heapq.heappop(self._heap)
        return None

    def remove(self, item: Item, flow: _Flow[Item], *, served: bool) -> None:
        """``served``: its tokens are charged to its client."""
        tokens = flow.items.pop(item)
        self.size -= 1
        if served:
            self._now = max(self._now + min(tokens, LARGEST_STEP) / len(self._flows), flow.stamp)
            flow.stamp += tokens
            self.owed = max(0.0, self.owed - tokens)
            if flow.items:
                self._push(flow)
        if not flow.items:
            self._forget(flow)

    def largest(self) -> _Flow[Item]:
        """Of the client with the most waiting requests. O(clients): for a full queue only."""
        return max(self._flows.values(), key=lambda flow: len(flow.items))

    def waiting(self, client: str) -> int:
        flow = self._flows.get(client)
        return len(flow.items) if flow is not None else 0

    def _push(self, flow: _Flow[Item]) -> None:
        self._pushed += 1
        heapq.heappush(self._heap, (flow.stamp, self._pushed, flow))
        if len(self._heap) > 2 * len(self._flows) + 64:
            self._heap = [entry for entry in self._heap if entry[2].items and entry[2].stamp == entry[0]]
            heapq.heapify(self._heap)

    def _forget(self, flow: _Flow[Item]) -> None:
        del self._flows[flow.client]
        if not self._flows:  # nobody is left who could be treated unfairly
            self._now = self.owed = 0.0
            self._heap.clear()
            self._left.clear()
            return
        self._left[flow.client] = flow.stamp
        if len(self._left) > REMEMBERED:
            del self._left[next(iter(self._left))]


class Order(Generic[Item]):
    """Waiting requests that compete for the same workers."""

    def __init__(self) -> None:
        self._classes: dict[Priority, _Class[Item]] = {priority: _Class() for priority in PRIORITIES}
        self._places: dict[Item, tuple[Priority, _Flow[Item]]] = {}
        self._retries: OrderedDict[Item, Priority] = OrderedDict()

    def __len__(self) -> int:
        return len(self._places) + len(self._retries)

    def add(self, item: Item, client: str, priority: Priority, tokens: int) -> None:
        """``tokens``: at least 1."""
        self._places[item] = (priority, self._classes[priority].add(item, client, tokens))

    def add_retry(self, item: Item, priority: Priority) -> None:
        self._retries[item] = priority

    def first(self) -> Item | None:
        """The request that goes next."""
        if self._retries:
            return next(iter(self._retries))
        chosen = None
        for of_class in self._classes.values():
            found = of_class.first()
            # Of two that are owed a turn the lower one has it first: it waits for longer.
            if found is not None and (chosen is None or of_class.owed >= found[1]):
                chosen = found[0]
        return chosen

    @property
    def high_waits(self) -> bool:
        return self._classes["high"].size > 0

    def take(self, item: Item) -> None:
        """It goes to a worker; that is charged to its client and its class."""
        if item in self._retries:
            del self._retries[item]
            return
        priority, flow = self._places.pop(item)
        tokens = flow.items[item]
        self._classes[priority].remove(item, flow, served=True)
        for lower in PRIORITIES[PRIORITIES.index(priority) + 1 :]:
            if self._classes[lower].size:
                self._classes[lower].owed += min(tokens, LARGEST_STEP) / YIELD

    def remove(self, item: Item) -> bool:
        """It waits here no longer, and nobody is charged for it. True: it was a retry."""
        if item in self._retries:
            del self._retries[item]
            return True
        priority, flow = self._places.pop(item)
        self._classes[priority].remove(item, flow, served=False)
        return False

    def displaced(self, client: str, priority: Priority) -> Item | None:
        """Who leaves a full queue for a new request of this client and priority; None: nobody, it is refused.

        Each class is sure of an eighth of the places. One that has more gives a place to a higher class, and to any
        class that has less; within a class, the client with the most gives one to a client with at least two less. It
        is always the last request of the client that has the most in its class.
        """
        sure = len(self) // YIELD
        own = self._classes[priority]
        for other in reversed(PRIORITIES):
            of_class = self._classes[other]
            if not of_class.size:
                continue
            largest = of_class.largest()
            if other == priority:
                gives = len(largest.items) > own.waiting(client) + 1
            else:
                higher = PRIORITIES.index(priority) < PRIORITIES.index(other)
                gives = of_class.size > sure and (higher or own.size < sure)
            if gives:
                return next(reversed(largest.items))
        return None
