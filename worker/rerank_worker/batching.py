"""Which pairs go into the next batch: a policy of values, without threads, torch or a clock of its own.

A batch is padded to its longest pair, so pairs of like length go together, across requests. The oldest request always
has its longest waiting pair in the next batch, so every request advances and none starves. Requests that were
abandoned or ran out of time are dropped here, before any device time is spent on them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")

LOOK_AHEAD = 4
"""Batches' worth of waiting tokens among which pairs of like length are looked for."""


@dataclass(frozen=True, slots=True)
class Policy:
    """``max_tokens``: tokens a batch, padding included; ``bucket``: padded lengths are multiples of it; ``max_length``:
    the longest pair that the model takes; ``max_delay``: seconds that a batch waits for company at most."""

    max_tokens: int
    bucket: int
    max_length: int
    max_delay: float

    def padded(self, tokens: int) -> int:
        """Length that a batch is padded to when its longest pair has ``tokens``."""
        return padded_length(tokens, self.bucket, self.max_length)


def padded_length(tokens: int, bucket: int, max_length: int) -> int:
    """``tokens`` rounded up to a multiple of ``bucket``, but not beyond ``max_length``."""
    return max(tokens, min(-(-tokens // bucket) * bucket, max_length))


@dataclass(frozen=True, slots=True)
class Slot:
    """One pair of a waiting request: its place in the request and its length."""

    ticket: int
    index: int
    tokens: int


@dataclass(slots=True)
class _Waiting(Generic[Item]):
    item: Item
    arrived: float
    deadline: float
    slots: list[Slot]
    """Not yet in a batch, longest first."""
    tokens: int


@dataclass(slots=True)
class Backlog(Generic[Item]):
    """Requests with pairs that wait, oldest first. Not thread-safe."""

    _waiting: dict[int, _Waiting[Item]] = field(default_factory=dict)
    _next_ticket: int = 0
    tokens: int = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, item: Item, lengths: Sequence[int], arrived: float, deadline: float) -> int:
        """Queue a request whose pairs have ``lengths`` (at least one); the ticket names it from now on."""
        ticket = self._next_ticket
        self._next_ticket += 1
        slots = [Slot(ticket, index, tokens) for index, tokens in enumerate(lengths)]
        slots.sort(key=lambda slot: slot.tokens, reverse=True)
        total = sum(lengths)
        self._waiting[ticket] = _Waiting(item, arrived, deadline, slots, total)
        self.tokens += total
        return ticket

    def remove(self, ticket: int) -> Item | None:
        """Forget a request; None when it has nothing waiting any more."""
        waiting = self._waiting.pop(ticket, None)
        if waiting is None:
            return None
        self.tokens -= waiting.tokens
        return waiting.item

    def expire(self, now: float) -> list[Item]:
        """Remove and return the requests whose deadline has come."""
        late = [ticket for ticket, waiting in self._waiting.items() if waiting.deadline <= now]
        return [item for ticket in late if (item := self.remove(ticket)) is not None]

    def clear(self) -> list[Item]:
        """Remove and return everything."""
        items = [waiting.item for waiting in self._waiting.values()]
        self._waiting.clear()
        self.tokens = 0
        return items

    def due(self, policy: Policy, company_coming: bool) -> float:
        """The time at which the next batch is to be cut; minus infinity: at once.

        Waiting pays only while more pairs are on their way, and never once a batch is full.
        """
        if not company_coming or self.tokens >= policy.max_tokens:
            return float("-inf")
        return min(waiting.arrived for waiting in self._waiting.values()) + policy.max_delay

    def take(self, policy: Policy) -> list[tuple[Item, Slot]]:
        """Remove and return the next batch; empty when nothing waits."""
        chosen = choose(self._window(policy), policy)
        batch = [(self._waiting[slot.ticket].item, slot) for slot in chosen]
        taken: dict[int, set[int]] = {}
        for slot in chosen:
            taken.setdefault(slot.ticket, set()).add(slot.index)
        for ticket, indices in taken.items():
            waiting = self._waiting[ticket]
            used = sum(slot.tokens for slot in waiting.slots if slot.index in indices)
            waiting.slots = [slot for slot in waiting.slots if slot.index not in indices]
            waiting.tokens -= used
            self.tokens -= used
            if not waiting.slots:
                del self._waiting[ticket]
        return batch

    def _window(self, policy: Policy) -> list[Slot]:
        """The oldest request's pairs and, after them, later ones, up to a few batches' worth of tokens."""
        window: list[Slot] = []
        tokens = 0
        for waiting in self._waiting.values():
            window.extend(waiting.slots)
            tokens += waiting.tokens
            if tokens >= LOOK_AHEAD * policy.max_tokens:
                break
        return window


def choose(window: Sequence[Slot], policy: Policy) -> list[Slot]:
    """The next batch out of ``window`` (oldest request first), longest pair first.

    The oldest request's longest pair sets the padded length; the longest pairs that fit under it fill the budget, older
    requests first among equals. A pair above the budget goes alone.
    """
    if not window:
        return []
    oldest = window[0].ticket
    anchor = max((slot for slot in window if slot.ticket == oldest), key=lambda slot: slot.tokens)
    width = policy.padded(anchor.tokens)
    room = max(1, policy.max_tokens // width)
    others = [slot for slot in window if slot is not anchor and slot.tokens <= width]
    others.sort(key=lambda slot: (-slot.tokens, slot.ticket))
    return sorted([anchor, *others[: room - 1]], key=lambda slot: -slot.tokens)


def halves(batch: Sequence[Item]) -> Iterable[Sequence[Item]]:
    """The two halves of a batch that was too large; neighbours in length stay together."""
    middle = (len(batch) + 1) // 2
    return batch[:middle], batch[middle:]
