"""The last hour of each Reranker, from successive looks at all gateways. Pure: told what was seen and when.

Memory is bounded: points for charts in arrays of a fixed length, for large fleets further apart; sums for windows of a
few minutes; and sums since the page knows a Reranker. A gateway that was not heard makes what is told a part of the
whole, and is said so; where none was heard nothing is known, which is not zero.
"""

import math
from array import array
from collections import deque
from collections.abc import Iterable, Mapping

import msgspec

from rerank_operator.controller.kinds import Key
from rerank_operator.page import counting
from rerank_operator.page.exposition import Counts, Sample

STEP_SECONDS = 5.0
"""Between two looks, while somebody looks at the page."""
SPAN_SECONDS = 3600.0
"""That charts show."""
FULL_DETAIL = 500
"""Rerankers that have a point for each look; twice as many, one for every other look, and so on."""
MARK_SECONDS = 15.0
"""Between two marks, from which windows reach to now."""
LONGEST_WINDOW = 300.0
LATENCY_SECONDS = 30.0
"""Of requests whose quantiles a point has: fewer seconds say little, more come late."""
MOST_REVISIONS = 8
"""Of one Reranker that are told apart: those that were asked last."""

NAN = math.nan
COLUMNS = ("rate", "failed", "p50", "p95", "p99", "waiting", "inFlight", "ready", "desired", "loaned", "partial")
_Point = tuple[float, ...]
"""A value for each column; NaN where it is not known."""


class Staff(msgspec.Struct, frozen=True):
    """Who works for a Reranker, as its status says; None: it does not."""

    ready: int | None = None
    """Own workers that are ready."""
    desired: int | None = None
    loaned: int | None = None
    """Warm pods that serve it."""


class Window(msgspec.Struct, frozen=True):
    """What was counted in a span of time that ends with the last look."""

    seconds: float
    """How long it really is: less than was asked for where less is known."""
    counts: Counts

    @property
    def rate(self) -> float | None:
        """Requests a second; None: no gateway counts them."""
        return counting.requests(self.counts) / self.seconds if self.counts else None

    def served(self, sli: str) -> tuple[float, float] | None:
        """Good and all requests that count for an objective; None: no gateway counts them."""
        total = self.counts.get(f"{sli}/total")
        return None if total is None else (self.counts.get(f"{sli}/good", 0.0), total)


class Points(msgspec.Struct, frozen=True):
    """The last hour: seconds of the clock of ``take``, and for each of COLUMNS as many values."""

    times: list[float]
    columns: dict[str, list[float]]


class _Packed:
    """Counts in little room, for marks. Names are shared with ``like``, where they are the same."""

    __slots__ = ("names", "values")

    def __init__(self, counts: Counts, like: "_Packed | None" = None) -> None:
        names = tuple(counts)
        self.names = like.names if like is not None and like.names == names else names
        self.values = array("d", counts.values())

    def unpacked(self) -> Counts:
        return dict(zip(self.names, self.values, strict=True))


class _Mark(msgspec.Struct, frozen=True):
    at: float
    whole: _Packed
    revisions: dict[str, _Packed]

    def after(self, found: Mapping[str, Counts]) -> "_Mark":
        """The same, once it is known that so much more had been counted by then."""
        revisions = dict(self.revisions)
        for revision, counts in found.items():
            packed = revisions.get(revision, _Packed({}))
            revisions[revision] = _Packed(counting.added(packed.unpacked(), counts), packed)
        whole = counting.total((self.whole.unpacked(), *found.values()))
        return _Mark(self.at, _Packed(whole, self.whole), revisions)


class _Known:
    """What is kept of one Reranker."""

    def __init__(self, at: float, capacity: int) -> None:
        self.since = at
        self.whole: Counts = {}
        self.revisions: dict[str, Counts] = {}
        """Who was asked last stands last."""
        self.marks: deque[_Mark] = deque([_Mark(at, _Packed({}), {})])
        self.columns = [array("f", [NAN]) * capacity for _ in COLUMNS]
        self.rates: list[tuple[float, float]] = []
        """Since the last point: requests and failures a second, of each look."""

    def add(self, found: Mapping[str, Counts], began: float, at: float) -> None:
        """What was counted from ``began`` to ``at``. Of a gateway that was not heard for long it is no burst of now: it
        is taken to have come evenly, so that the marks within that time had a share of it."""
        for place in reversed(range(len(self.marks))):
            mark = self.marks[place]
            if mark.at <= began:
                break
            share = (mark.at - began) / (at - began)
            self.marks[place] = mark.after(
                {
                    revision: {name: share * value for name, value in counts.items()}
                    for revision, counts in found.items()
                }
            )
        for revision, counts in found.items():
            self.whole = counting.added(self.whole, counts)
            if any(counts.values()):
                self.revisions[revision] = counting.added(self.revisions.pop(revision, {}), counts)
            else:
                self.revisions.setdefault(revision, counts)
        while len(self.revisions) > MOST_REVISIONS:
            del self.revisions[next(iter(self.revisions))]

    def mark(self, at: float) -> None:
        last = self.marks[-1]
        if at - last.at < MARK_SECONDS:
            return
        whole = _packed(self.whole, last.whole)
        revisions = {name: _packed(counts, last.revisions.get(name)) for name, counts in self.revisions.items()}
        self.marks.append(_Mark(at, whole, revisions))
        while len(self.marks) > 2 and at - self.marks[1].at >= LONGEST_WINDOW:
            self.marks.popleft()

    def mark_before(self, at: float) -> _Mark:
        """The newest that is no younger than ``at``; else the oldest."""
        return next((mark for mark in reversed(self.marks) if mark.at <= at), self.marks[0])


class Figures:
    def __init__(self) -> None:
        self.since: float | None = None
        """The first look; None: there was none yet."""
        self.last: float | None = None
        """The last look at which a gateway was heard."""
        self._gateways: dict[str, tuple[Sample, float]] = {}
        """What each said last, and when."""
        self._known: dict[Key, _Known] = {}
        self._every = 1
        """Looks for one point."""
        self._looks = 0
        self._times: list[float] = []
        self._begin_anew(1)

    def _begin_anew(self, every: int) -> None:
        """With points for so many looks. Those that there were are forgotten: they have another distance."""
        self._every, self._looks = every, 0
        self._capacity = int(SPAN_SECONDS / STEP_SECONDS) // every
        self._times = []
        self._next = 0
        for known in self._known.values():
            known.columns = [array("f", [NAN]) * self._capacity for _ in COLUMNS]
            known.rates = []

    def take(self, at: float, samples: Mapping[str, Sample | None], staff: Mapping[Key, Staff]) -> None:
        """A look at ``at`` (a clock that never jumps): what each gateway said, by address, None where one was not
        heard; and every Reranker that there is."""
        self.since = at if self.since is None else self.since
        every = -(-len(staff) // FULL_DETAIL)
        if every > self._every:
            self._begin_anew(every)
        for gone in self._known.keys() - staff.keys():
            del self._known[gone]
        for key in staff.keys() - self._known.keys():
            self._known[key] = _Known(at, self._capacity)
        heard = {address: sample for address, sample in samples.items() if sample is not None}
        rates = self._count(at, heard)
        self._gateways = {address: told for address, told in self._gateways.items() if address in samples}
        if heard:
            self.last = at
        partial = len(heard) < len(samples)
        self._looks += 1
        due = self._looks % self._every == 0
        at_point = self._slot(at) if due else 0
        for key, known in self._known.items():
            if heard and key in rates:
                known.rates.append(rates[key])
            if due:
                point = self._point(at, key, known, staff[key], list(heard.values()), partial)
                for column, value in zip(known.columns, point, strict=True):
                    column[at_point] = value
                known.rates = []
            known.mark(at)

    def _count(self, at: float, heard: Mapping[str, Sample]) -> dict[Key, tuple[float, float]]:
        """Adds what was counted. Returns requests and failures a second of each Reranker that a gateway tells of."""
        rates: dict[Key, tuple[float, float]] = {}
        for address, sample in heard.items():
            before, self._gateways[address] = self._gateways.get(address), (sample, at)
            if before is None:
                continue  # what it has counted before is of an unknown time
            seconds = at - before[1]
            for key, revisions in counting.since(before[0], sample).items():
                if (known := self._known.get(key)) is None or seconds <= 0:
                    continue
                known.add(revisions, before[1], at)
                rate, failures = rates.get(key, (0.0, 0.0))
                for counts in revisions.values():
                    rate += counting.requests(counts) / seconds
                    failures += counting.failed(counts) / seconds
                rates[key] = rate, failures
        return rates

    def _slot(self, at: float) -> int:
        """Where the next point goes: over the oldest one, once there are as many as there may be."""
        if len(self._times) < self._capacity:
            self._times.append(at)
            return len(self._times) - 1
        place = self._next
        self._times[place] = at
        self._next = (place + 1) % self._capacity
        return place

    def _point(self, at: float, key: Key, known: _Known, staff: Staff, heard: list[Sample], partial: bool) -> _Point:
        looks = len(known.rates)
        recent = self._window(known, LATENCY_SECONDS, at).counts
        return (
            sum(rate for rate, _ in known.rates) / looks if looks else NAN,
            sum(failures for _, failures in known.rates) / looks if looks else NAN,
            *(_number(counting.quantile(share, recent)) if heard else NAN for share in (0.5, 0.95, 0.99)),
            _sum(sample.waiting.get(key) for sample in heard),
            _sum(sample.in_flight.get(key) for sample in heard),
            _number(staff.ready),
            _number(staff.desired),
            _number(staff.loaned),
            float(partial),
        )

    @staticmethod
    def _window(known: _Known, seconds: float, now: float, revision: str | None = None) -> Window:
        mark = known.mark_before(now - seconds)
        if revision is None:
            then, counts = mark.whole, known.whole
        else:
            then, counts = mark.revisions.get(revision, _Packed({})), known.revisions[revision]
        return Window(now - mark.at, counting.less(counts, then.unpacked()))

    def window(self, key: Key, seconds: float) -> Window | None:
        """The last ``seconds`` (LONGEST_WINDOW at most) before the last look; None: nothing is known of it."""
        known = self._known.get(key)
        if known is None or self.last is None or self.last <= known.since:
            return None
        return self._window(known, seconds, self.last)

    def revisions(self, key: Key, seconds: float) -> dict[str, Window]:
        """The same of each revision."""
        if self.window(key, seconds) is None:
            return {}
        known, last = self._known[key], self.last or 0.0
        return {revision: self._window(known, seconds, last, revision) for revision in known.revisions}

    def ever(self, key: Key) -> Window | None:
        """Since this page knows the Reranker."""
        known = self._known.get(key)
        if known is None or self.last is None or self.last <= known.since:
            return None
        return Window(self.last - known.since, known.whole)

    def waiting(self, key: Key) -> float | None:
        """Requests that waited at the gateways that were heard last; None: none tells."""
        return _known(_sum(sample.waiting.get(key) for sample, at in self._gateways.values() if at == self.last))

    def points(self, key: Key) -> Points | None:
        known = self._known.get(key)
        if known is None:
            return None
        count = len(self._times)
        order = [*range(self._next, count), *range(self._next)] if count == self._capacity else list(range(count))
        first = max(known.since, self._times[order[-1]] - SPAN_SECONDS) if order else 0.0
        order = [place for place in order if self._times[place] >= first]
        return Points(
            times=[self._times[place] for place in order],
            columns={
                name: [column[place] for place in order] for name, column in zip(COLUMNS, known.columns, strict=True)
            },
        )


def _packed(counts: Counts, last: _Packed | None) -> _Packed:
    """``last`` itself where nothing has changed since."""
    same = last is not None and len(last.values) == len(counts) and last.unpacked() == counts
    return last if same and last is not None else _Packed(counts, last)


def _sum(values: Iterable[float | None]) -> float:
    told = [value for value in values if value is not None]
    return sum(told) if told else NAN


def _number(value: float | None) -> float:
    return NAN if value is None else float(value)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
