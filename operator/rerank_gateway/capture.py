"""Writes what a few requests asked and got to the log, for Rerankers that ask for it (spec.observability.capture).

The only place where texts of requests reach a log: cut, redacted, at most so many a minute, each line under the id of
its request. Which requests are chosen is up to their ids, never to what is in them. No answer waits for it: a thread of
its own redacts the texts, and what it has no time for is left out and counted.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

from rerank_api.answers import Mirrored

from rerank_gateway.body import Lease
from rerank_gateway.cluster.state import CapturePolicy, Key, Route, RoutingTable
from rerank_gateway.metrics import Metrics
from rerank_gateway.protocol.common import RerankQuery
from rerank_gateway.record import Record
from rerank_gateway.redaction import beginning, redact_beginning
from rerank_gateway.routing import draw_of

log = logging.getLogger(__name__)

MOST_DOCUMENTS = 20
"""The first ones of a request."""
MOST_PENDING = 64
"""Requests whose texts are being redacted or wait for it."""
WORST = 10
"""Of each canary, so many of the requests that it answered most differently are known at a time."""
SAME_ORDER = 1 - 1e-9
SAME_SCORES = 0.01
"""Differences up to here are rounding, as other hardware gives."""
DECIMALS = 6
MINUTE = 60.0
PAUSE = 0.001
"""Seconds after each text, in which the event loop goes on: two threads have but one interpreter."""

Reason = Literal["sampled", "canary_disagreement"]


@dataclass(frozen=True, slots=True)
class Excerpt:
    """The beginnings of a request's texts, not redacted yet."""

    route: Route
    record: Record
    sampled: bool
    """To be written whatever comes of it."""
    query: str
    documents: Sequence[str]
    characters: int
    """Of each text, that may be written."""


@dataclass(slots=True)
class _Reranker:
    """One that captures now."""

    policy: CapturePolicy
    written: deque[float] = field(default_factory=deque)
    """When lines of the last minute were."""
    canary: str = ""
    worst: list[tuple[float, float]] = field(default_factory=list)
    """How much that canary differed, of the lines about it: the worst WORST, ascending."""


class Capture:
    def __init__(self, metrics: Metrics, clock: Callable[[], float]) -> None:
        self._metrics = metrics
        self._clock = clock
        self._on: dict[Key, _Reranker] = {}
        self._writer = ThreadPoolExecutor(1, "capture")
        self._room = threading.BoundedSemaphore(MOST_PENDING)

    def update(self, table: RoutingTable) -> None:
        """For each new routing table: who captures from now on."""
        before = self._on
        self._on = {}
        for key, route in table.routes.items():
            if route.policy.capture is not None:
                one = self._on[key] = before.get(key) or _Reranker(route.policy.capture)
                one.policy = route.policy.capture

    def excerpt(self, route: Route, query: RerankQuery, record: Record, lease: Lease) -> Excerpt | None:
        """What of a request may be written once it is answered; None: nothing will be."""
        one = self._on.get(route.key)
        if one is None:
            return None
        # Its own draw, else always the same users' requests were mirrored, served by a canary and captured.
        sampled = draw_of(route, f"captured {record.request_id}") * 100 < one.policy.percent
        if not sampled and route.policy.mirror is None:
            return None
        characters = one.policy.max_characters
        text = beginning(query.query, characters)
        documents = [beginning(document, characters) for document in query.documents[:MOST_DOCUMENTS]]
        size = len(text) + sum(map(len, documents))
        if not lease.has_room(size):
            if sampled:
                self._metrics.captured(route.key, "limited")
            return None
        lease.grow(size)
        return Excerpt(route, record, sampled, text, documents, characters)

    def answered(self, excerpt: Excerpt | None, scores: Sequence[float]) -> None:
        """A user's request has its scores. Returns at once."""
        if excerpt is not None and excerpt.sampled:
            self._take(excerpt, "sampled", scores, {})

    def compared(
        self, excerpt: Excerpt | None, canary: str, scores: Sequence[float], theirs: Sequence[float], found: Mirrored
    ) -> None:
        """A canary has answered ``theirs`` to what stable gave ``scores``. Returns at once."""
        differs = difference(found)
        one = self._on.get(excerpt.route.key) if excerpt is not None else None
        if excerpt is None or one is None or differs is None:
            return
        if one.canary != canary:
            one.canary, one.worst = canary, []
        if len(one.worst) == WORST and differs <= one.worst[0]:
            return
        told = {
            "canary": canary,
            "canary_scores": _rounded(theirs),
            "agreement": found.agreement,
            "drift": found.drift,
        }
        if self._take(excerpt, "canary_disagreement", scores, told):
            one.worst = sorted([*one.worst, differs])[-WORST:]

    async def close(self) -> None:
        """When what was taken is written."""
        await asyncio.to_thread(self._writer.shutdown)

    def _take(self, excerpt: Excerpt, reason: Reason, scores: Sequence[float], told: dict[str, Any]) -> bool:
        """Whether it will be written; ``told``: beside what each line has."""
        one, record, now = self._on.get(excerpt.route.key), excerpt.record, self._clock()
        if one is None:
            return False  # capture was switched off meanwhile
        most = one.policy.max_per_minute
        if reason == "sampled" and excerpt.route.policy.mirror is not None:
            most -= most // 2  # the other half is for what the canary ranks otherwise: samples alone would use up all
        taken = _within(one, now, most) and self._room.acquire(blocking=False)
        self._metrics.captured(excerpt.route.key, "captured" if taken else "limited")
        if taken:
            one.written.append(now)
            fields = {
                "id": record.request_id,
                "trace_id": record.trace_id,
                "namespace": record.namespace,
                "reranker": record.reranker,
                "revision": record.revision,
                "reason": reason,
                "scores": _rounded(scores),
                **told,
            }
            self._writer.submit(_write, fields, excerpt).add_done_callback(self._written)
        return taken

    def _written(self, writing: "Future[None]") -> None:
        self._room.release()
        if (error := writing.exception()) is not None:
            log.error("the texts of a request could not be written", exc_info=error)


def difference(compared: Mirrored) -> tuple[float, float] | None:
    """How differently a canary has answered, the more the greater: first by order, then by scores. None: the same."""
    order = 1.0 if compared.agreement is None else compared.agreement
    drift = compared.drift or 0.0
    return (1 - order, drift) if order < SAME_ORDER or drift > SAME_SCORES else None


def _within(one: _Reranker, now: float, most: int) -> bool:
    """Whether one more may be written. Over any minute, and not by a bucket that is refilled: its first minute would
    have twice as many."""
    while one.written and one.written[0] <= now - MINUTE:
        one.written.popleft()
    return len(one.written) < most


def _write(fields: dict[str, Any], excerpt: Excerpt) -> None:
    """On the thread: redacts, then writes."""
    texts: list[str] = []
    for text in (excerpt.query, *excerpt.documents):
        texts.append(redact_beginning(text, excerpt.characters))
        time.sleep(PAUSE)
    log.info("captured", extra={"fields": {**fields, "query": texts[0], "documents": texts[1:]}})


def _rounded(scores: Sequence[float]) -> list[float]:
    return [round(score, DECIMALS) for score in scores]
