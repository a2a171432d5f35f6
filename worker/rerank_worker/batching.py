"""Which pairs go into the next batch: a policy of values, without threads, torch or a clock of its own.

Order. The backlog counts the batches that it has cut. A request's rank is that count when it comes plus the patience of
its priority (in batches); the lowest rank goes first, then the earliest deadline, then who came first. So priority is a
head start and not a wall: once PATIENCE["low"] batches were cut since a low request came, nothing that comes later goes
before it, whatever its priority. A request of more than WHOLE batches gets its pairs in turns: after each batch its
rank grows by STRETCH for a full batch (times the number of such requests), so together they are sure of one batch in
STRETCH + 1 and get every batch that nobody else wants.

Example: batches of 1,024 tokens, 40,000 tokens/s: 39 batches/s. A request of 10,000 documents (110 tokens each: 1,074
batches) takes batch 0 and is ranked 0 + 32 + 8 = 40. Requests of 10 documents (1.1 batches) come 20 a second, 21
batches/s: one that comes at batch 3 is ranked 35 and goes before the large one's next pairs; it waits for the batch
that is being computed, and at most for one of the large request's. First come, first served, it would wait 27 s.

Nothing here is O(pairs that wait): a batch costs its window of pairs, and a look at each waiting request's deadline.
"""

import heapq
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, NamedTuple, TypeVar

from rerank_api.wire import Priority

Item = TypeVar("Item")

LOOK_AHEAD = 4
"""Batches' worth of waiting tokens among which pairs of like length are looked for, where batches are padded."""

PATIENCE: dict[Priority, int] = {"high": 0, "normal": 32, "low": 64}
"""Batches by which later requests of a higher priority may go before one of this priority."""

WHOLE = 16
"""A request of at most so many batches is served in one go; a larger one in turns."""

STRETCH = 8
"""Batches of others that may come between two of a large request."""

MAX_DELAY = 0.1
"""Seconds beyond which no batch waits for company, whatever the policy says."""


@dataclass(frozen=True, slots=True)
class Policy:
    """``max_tokens``: tokens a batch; ``bucket``: padded lengths are multiples of it; ``max_length``: the longest pair
    that the model takes; ``max_delay``: seconds that a batch waits for company at most; ``padded``: whether a batch
    costs its longest pair times their number, or (False, a flat engine) only the tokens that are there."""

    max_tokens: int
    bucket: int
    max_length: int
    max_delay: float
    padded: bool = True

    def width(self, tokens: int) -> int:
        """Length that a padded batch has when its longest pair has ``tokens``."""
        return padded_length(tokens, self.bucket, self.max_length)

    def cost(self, lengths: Sequence[int]) -> int:
        """Tokens that a batch of pairs of ``lengths`` (at least one) makes the engine compute."""
        return len(lengths) * self.width(max(lengths)) if self.padded else sum(lengths)


def padded_length(tokens: int, bucket: int, max_length: int) -> int:
    """``tokens`` rounded up to a multiple of ``bucket``, but not beyond ``max_length``."""
    return max(tokens, min(-(-tokens // bucket) * bucket, max_length))


class Slot(NamedTuple):
    """One pair of a waiting request: its place in the request and its length."""

    ticket: int
    index: int
    tokens: int


@dataclass(slots=True)
class _Waiting(Generic[Item]):
    item: Item
    arrived: float
    deadline: float
    priority: Priority
    lengths: Sequence[int]
    order: deque[int]
    """Indices of the pairs not yet in a batch, longest first."""
    total: int
    tokens: int
    rank: float
    in_turns: bool = False


@dataclass(slots=True)
class Backlog(Generic[Item]):
    """Requests with pairs that wait. Not thread-safe."""

    tokens: int = 0
    batches: int = 0
    """Cut so far."""
    _waiting: dict[int, _Waiting[Item]] = field(default_factory=dict)
    _heap: list[tuple[float, float, int]] = field(default_factory=list)
    """Rank, deadline, ticket: one entry a waiting request, and leftovers of removed ones."""
    _next_ticket: int = 0
    _high: int = 0
    _in_turns: int = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(
        self, item: Item, lengths: Sequence[int], arrived: float, deadline: float, priority: Priority = "normal"
    ) -> int:
        """Queue a request whose pairs have ``lengths`` (at least one); the ticket names it from now on."""
        ticket = self._next_ticket
        self._next_ticket += 1
        order = deque(sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True))
        total = sum(lengths)
        rank = float(self.batches + PATIENCE[priority])
        self._waiting[ticket] = _Waiting(item, arrived, deadline, priority, lengths, order, total, total, rank)
        heapq.heappush(self._heap, (rank, deadline, ticket))
        self.tokens += total
        self._high += priority == "high"
        return ticket

    def remove(self, ticket: int) -> Item | None:
        """Forget a request; None when it has nothing waiting any more."""
        waiting = self._waiting.pop(ticket, None)
        if waiting is None:
            return None
        self.tokens -= waiting.tokens
        self._high -= waiting.priority == "high"
        self._in_turns -= waiting.in_turns
        if len(self._heap) > 2 * len(self._waiting) + 64:
            self._heap = [entry for entry in self._heap if entry[2] in self._waiting]
            heapq.heapify(self._heap)
        return waiting.item

    def expire(self, now: float, fastest: float = float("inf")) -> list[Item]:
        """Remove and return the requests whose deadline has come, or comes before the engine could have computed their
        own tokens at ``fastest`` tokens/s. What waits before them is not counted: it may be abandoned yet."""
        late = [
            ticket for ticket, waiting in self._waiting.items() if waiting.deadline <= now + waiting.tokens / fastest
        ]
        return [item for ticket in late if (item := self.remove(ticket)) is not None]

    def clear(self) -> list[Item]:
        """Remove and return everything."""
        return [item for ticket in list(self._waiting) if (item := self.remove(ticket)) is not None]

    def due(self, policy: Policy, now: float, company: float, saved: float) -> float:
        """The time at which to look again or to cut; minus infinity: cut at once; infinity: nothing waits.

        ``company``: seconds until the next request is expected (infinity: none is on its way); ``saved``: seconds that
        a shared batch saves. A batch waits when those that would be delayed lose less than is saved, and company comes
        within the delay; never when it is full, or when something of high priority waits.
        """
        if not self._waiting:
            return float("inf")
        latest = next(iter(self._waiting.values())).arrived + min(policy.max_delay, MAX_DELAY)
        pays = company * len(self._waiting) < saved
        if self._high or self.tokens >= policy.max_tokens or now + company > latest or not pays:
            return float("-inf")
        return min(latest, now + company)

    def take(self, policy: Policy) -> list[tuple[Item, Slot]]:
        """Remove and return the next batch, longest pair first; empty when nothing waits."""
        window: list[Slot] = []
        shown: list[tuple[int, int]] = []
        tokens, enough = 0, policy.max_tokens * (LOOK_AHEAD if policy.padded else 1)
        while self._heap and tokens < enough:
            ticket = heapq.heappop(self._heap)[2]
            if (waiting := self._waiting.get(ticket)) is None:
                continue
            before = len(window)
            for index in waiting.order:
                window.append(Slot(ticket, index, waiting.lengths[index]))
                tokens += window[-1].tokens
                if tokens >= enough:
                    break
            shown.append((ticket, len(window) - before))
        chosen = choose(window, policy)
        batch = [(self._waiting[slot.ticket].item, slot) for slot in chosen]
        self.batches += bool(batch)
        taken: dict[int, set[int]] = {}
        for slot in chosen:
            taken.setdefault(slot.ticket, set()).add(slot.index)
        whole = sum(slot.tokens for slot in chosen)
        for ticket, count in shown:
            self._settle(ticket, count, taken.get(ticket, set()), whole, policy)
        return batch

    def _settle(self, ticket: int, shown: int, taken: set[int], whole: int, policy: Policy) -> None:
        """Take ``taken`` (among the first ``shown`` pairs) out of a request, and rank it anew."""
        waiting = self._waiting[ticket]
        left = [index for index in islice(waiting.order, shown) if index not in taken]
        for _ in range(shown):
            waiting.order.popleft()
        waiting.order.extendleft(reversed(left))
        used = sum(waiting.lengths[index] for index in taken)
        waiting.tokens -= used
        self.tokens -= used
        if not waiting.order:
            self.remove(ticket)
            return
        if taken and waiting.total > WHOLE * policy.max_tokens:
            self._in_turns += not waiting.in_turns
            waiting.in_turns = True
            turn = STRETCH * self._in_turns
            # What it got while nobody else wanted it is not held against it: never further back than a turn from now.
            latest = self.batches + PATIENCE[waiting.priority] + turn
            waiting.rank = min(waiting.rank + turn * used / whole, latest)
        heapq.heappush(self._heap, (waiting.rank, waiting.deadline, ticket))


def choose(window: Sequence[Slot], policy: Policy) -> list[Slot]:
    """The next batch out of ``window`` (in the order of rank, each request's longest pair first), longest pair first.

    Flat: what comes first and fits. Padded: the first pair sets the length; the longest pairs that fit under it fill
    the budget, earlier requests first among equals. A pair above the budget goes alone.
    """
    if not window:
        return []
    first, room = window[0], policy.max_tokens
    if policy.padded:
        width = policy.width(first.tokens)
        others = sorted((slot for slot in window[1:] if slot.tokens <= width), key=lambda slot: -slot.tokens)
        return sorted([first, *others[: max(0, room // width - 1)]], key=lambda slot: -slot.tokens)
    chosen = [first]
    room -= first.tokens
    for slot in window[1:]:
        if slot.tokens <= room:
            chosen.append(slot)
            room -= slot.tokens
    return sorted(chosen, key=lambda slot: -slot.tokens)


def halves(batch: Sequence[Item]) -> Iterable[Sequence[Item]]:
    """The two halves of a batch that was too large; neighbours in length stay together."""
    middle = (len(batch) + 1) // 2
    return batch[:middle], batch[middle:]
