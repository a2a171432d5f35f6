"""What the engine thread learns while it serves: how long batches take, how fast the model is, when company comes, what
fits into memory.

Values in, values out: no clock, no threads. Nothing here is remembered across a restart.
"""

from dataclasses import dataclass, field, replace
from statistics import median

DECAY = 0.98
"""What an older measurement counts for when a new one comes: about the last 50 matter."""

GROW_AFTER = 32
"""Nearly full batches that fit, after which the budget grows by a sixteenth."""

FORGET_AFTER = 10_000
"""Nearly full batches that fit, after which a size that failed may be tried again: whatever shared the memory then may
be gone."""

STALL_SAFETY = 20.0
"""A batch counts as stalled when it takes so many times longer than batches of its size do."""

UNMEASURED = 10.0
"""Most times the floor of the stall limit, for a batch of an engine whose speed is not known yet."""

BEST_CASE = 2.0
"""An engine is never faster than so many times its own mean over nearly full batches."""

RECENT = 15
"""Batches whose median speed counts as the engine's."""

ENOUGH = 5
"""Batches before which nothing is concluded from them."""

STEP = 1.1
"""Most times that the speed which is told grows or shrinks with one batch: six times too low is mended after 19."""

CLEARLY = 1.25
"""Times as fast as what is told, from which on a batch that is not full shows that more is possible."""


@dataclass(slots=True)
class BatchTimes:
    """Seconds of a batch as ``fixed + tokens * each``: decayed least squares over the batches seen."""

    _count: float = 0.0
    _tokens: float = 0.0
    _seconds: float = 0.0
    _squares: float = 0.0
    _products: float = 0.0
    _full_tokens: float = 0.0
    _full_seconds: float = 0.0

    def add(self, cost: int, tokens: int, seconds: float, budget: int) -> None:
        """A batch took ``seconds`` for ``cost`` tokens, padding included, ``tokens`` of them real; it might have cost
        ``budget``."""
        self._count = self._count * DECAY + 1
        self._tokens = self._tokens * DECAY + cost
        self._seconds = self._seconds * DECAY + seconds
        self._squares = self._squares * DECAY + cost * cost
        self._products = self._products * DECAY + cost * seconds
        if 2 * cost >= budget:
            self._full_tokens = self._full_tokens * DECAY + tokens
            self._full_seconds = self._full_seconds * DECAY + seconds

    def line(self) -> tuple[float, float] | None:
        """Fixed seconds of a batch and seconds for each token; None before the first batch."""
        if self._count == 0:
            return None
        spread = self._count * self._squares - self._tokens**2
        # Batches of one size do not tell the two apart: all goes to the tokens, and nothing is gained by sharing.
        if spread <= 1e-6 * self._count * self._squares:
            return 0.0, self._seconds / self._tokens
        each = (self._count * self._products - self._tokens * self._seconds) / spread
        fixed = (self._seconds - each * self._tokens) / self._count
        if fixed < 0:
            return 0.0, self._seconds / self._tokens
        return (fixed, each) if each >= 0 else (self._seconds / self._count, 0.0)

    def saved(self) -> float:
        """Seconds that two requests save by sharing a batch."""
        line = self.line()
        return 0.0 if line is None else line[0]

    def seconds(self, cost: int) -> float | None:
        """How long a batch of ``cost`` tokens should take; None before the first batch."""
        line = self.line()
        return None if line is None else line[0] + cost * line[1]

    def fastest(self) -> float:
        """Real tokens/s that the engine surely does not exceed; infinity while that is not known."""
        return BEST_CASE * self._full_tokens / self._full_seconds if self._full_seconds > 0 else float("inf")


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens/s that the model can score here, for whoever shares work out: as measured at load, then corrected by what
    is served. Full batches correct it either way. One that is not, but is ``CLEARLY`` faster, shows that more is
    possible, else a figure that is too low would keep batches from ever getting full; that it is slow shows nothing.
    The median of the last ones counts, and it is approached by ``STEP`` a batch: neither one slow batch (other
    processes, a capture) nor one that was timed too short makes a fleet grow or shrink."""

    tokens_per_second: float | None
    """None: neither measured nor seen yet."""
    _seen: tuple[float, ...] = ()

    def after(self, tokens: int, cost: int, seconds: float, budget: int, alone: bool = True) -> "Speed":
        """After a batch of ``tokens`` real ones took ``seconds`` of the device; ``cost`` and ``budget`` as in
        BatchTimes. ``alone``: the device had nothing to do when it came, so that it surely took that long."""
        if seconds <= 0:
            return self
        found, now = tokens / seconds, self.tokens_per_second
        full = 2 * cost >= budget
        if not full and not (alone and now is not None and found > CLEARLY * now):
            return self
        seen = (*self._seen, found)[-RECENT:]
        if len(seen) < ENOUGH:
            return Speed(now, seen)
        middle = median(seen)
        return Speed(middle if now is None else min(max(middle, now / STEP), now * STEP), seen)


@dataclass(slots=True)
class Company:
    """Requests that are being tokenized, by when that began, and how long it takes on average."""

    _began: dict[object, float] = field(default_factory=dict)
    _mean: float | None = None

    def __len__(self) -> int:
        return len(self._began)

    def begin(self, who: object, now: float) -> None:
        self._began[who] = now

    def end(self, who: object, now: float) -> None:
        took = now - self._began.pop(who)
        self._mean = took if self._mean is None else self._mean + (1 - DECAY) * (took - self._mean)

    def expected(self, now: float) -> float:
        """Seconds until the next of them is there; infinity when there is none, or nothing is known. One that has taken
        longer than usual is expected to take as long again."""
        if self._mean is None:
            return float("inf")
        ages = [now - began for began in self._began.values()]
        return min((self._mean - age if age < self._mean else max(age, 1e-6) for age in ages), default=float("inf"))


@dataclass(frozen=True, slots=True)
class Budget:
    """Tokens a batch may cost. Halved where a batch was out of memory; then it grows again in small steps, up to seven
    eighths of the smallest size that failed: the steps end less than a sixteenth above what fits, so that after a
    second failure the ceiling is below it."""

    tokens: int
    limit: int
    """What was configured or measured at start."""
    failed: int | None = None
    """The smallest cost that did not fit."""
    good: int = 0
    since: int = 0
    """Nearly full batches that fit since the last change, and since the last failure."""

    def out_of_memory(self, cost: int) -> "Budget":
        """After a batch of ``cost`` tokens did not fit."""
        failed = cost if self.failed is None else min(cost, self.failed)
        return replace(self, tokens=max(1, min(self.tokens, cost // 2)), failed=failed, good=0, since=0)

    def hopeless(self, cost: int) -> bool:
        """Whether as little as that did not fit before."""
        return self.failed is not None and cost >= self.failed

    def fitted(self, cost: int) -> "Budget":
        """After a batch of ``cost`` tokens fitted; a small one tells nothing."""
        if (self.failed is None and self.tokens == self.limit) or 4 * cost < 3 * self.tokens:
            return self
        after = replace(self, good=self.good + 1, since=self.since + 1)
        if after.since >= FORGET_AFTER:
            after = replace(after, failed=None)
        ceiling = after.limit if after.failed is None else min(after.limit, max(1, after.failed * 7 // 8))
        if after.good < GROW_AFTER or after.tokens >= ceiling:
            return after
        return replace(after, tokens=min(ceiling, after.tokens + max(1, after.tokens // 16)), good=0)


def stall_limit(floor: float, expected: float | None, length: float) -> float:
    """Seconds after which a batch counts as stalled. ``floor``: what is asked for, long enough for one pair of full
    length; ``expected``: what such a batch takes; ``length``: its tokens in pairs of full length, which is all that is
    known before the first batch."""
    if expected is None:
        return floor * min(UNMEASURED, max(1.0, length))
    return max(floor, STALL_SAFETY * expected)
