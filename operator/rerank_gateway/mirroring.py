"""Asks a canary what stable has answered, so that both can be compared before a user meets the canary.

No user waits for it or sees what comes: it is sent after the user's scores are there, at low priority, once, and never
in a queue. It counts in no figure of users' requests, of demand or of capacity. Bounded in number, time and memory;
where a bound is reached the request is left out, which says nothing about the canary.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from rerank_api import wire
from rerank_api.answers import Mirrored

from rerank_gateway.agreement import drift, kendall
from rerank_gateway.answers import AnswerLog
from rerank_gateway.body import HeldBytes
from rerank_gateway.capture import Capture, Excerpt
from rerank_gateway.cluster.state import Endpoint, Route
from rerank_gateway.errors import ApiError
from rerank_gateway.forwarding import Broken, Forwarder, NotTaken
from rerank_gateway.metrics import Metrics, MirrorResult
from rerank_gateway.record import Record
from rerank_gateway.routing import draw_of
from rerank_gateway.waiting import Ticket

log = logging.getLogger(__name__)

MAX_OUTSTANDING = 4
"""Of one Reranker, at all its workers."""
LONGEST = 10.0
"""Seconds that one may take; never more than the Reranker's requests.timeout."""
HELD = 0.5
"""Of the bytes that the gateway may hold: beyond it they are the users' own."""
ROOM = 2.0
"""So many times as long as stable took, for each that is outstanding, there must be time: other gateways send theirs
too, and a canary must not fail for being asked by all at once."""


@dataclass(frozen=True, slots=True)
class _Asked:
    payload: bytes
    excerpt: Excerpt | None
    """None: nothing of it will be written to the log."""
    scores: list[float]
    """Stable's."""
    record: Record
    """Of the user's request, which has ended or is about to."""
    within: float
    """Seconds that the canary has."""


class Mirroring:
    def __init__(
        self,
        forwarder: Forwarder,
        answers: AnswerLog,
        held: HeldBytes,
        metrics: Metrics,
        capture: Capture,
        clock: Callable[[], float],
    ) -> None:
        self._forwarder = forwarder
        self._answers = answers
        self._held = held
        self._metrics = metrics
        self._capture = capture
        self._clock = clock
        self._running: dict[asyncio.Task[None], Endpoint] = {}
        self._turn = 0
        self._closed = False

    def offer(
        self, route: Route, payload: bytes, excerpt: Excerpt | None, response: wire.ScoreResponse, record: Record
    ) -> None:
        """A worker has just given a user's scores for all of ``payload``. Returns at once; the same request id is
        always mirrored, or never."""
        mirror = route.policy.mirror
        if mirror is None or self._closed or record.revision != mirror.stable:
            return
        # Its own draw: that of the split would always mirror the same users' requests.
        if draw_of(route, f"mirrored {record.request_id}") * 100 >= mirror.percent:
            return
        within = min(LONGEST, route.policy.timeout)
        endpoint = self._choose(route, mirror.revision, within, record.seconds)
        if endpoint is None:
            self._metrics.mirrored(route.key, "skipped")
            return
        asked = _Asked(payload, excerpt, response.scores, record, within)
        task = asyncio.create_task(self._ask(endpoint, asked))
        self._running[task] = endpoint
        task.add_done_callback(self._ended)

    async def close(self) -> None:
        """Cancels what runs; nothing is sent from now on."""
        self._closed = True
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def _choose(self, route: Route, revision: str, within: float, seconds: float) -> Endpoint | None:
        """The worker with the fewest of them, in turns; None where none may get one now."""
        own = [endpoint for endpoint in self._running.values() if (endpoint.namespace, endpoint.reranker) == route.key]
        ready = [endpoint for endpoint in route.set_aside if endpoint.revision == revision and endpoint.ready]
        if not ready or len(own) >= MAX_OUTSTANDING or (len(own) + 1) * seconds * ROOM > within:
            return None
        outstanding = Counter(endpoint.uid for endpoint in own)
        self._turn += 1
        first = self._turn % len(ready)
        return min([*ready[first:], *ready[:first]], key=lambda endpoint: outstanding[endpoint.uid])

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a mirrored request ended in an error of the gateway", exc_info=error)

    async def _ask(self, endpoint: Endpoint, asked: _Asked) -> None:
        result: MirrorResult = "skipped"
        if self._held.held + len(asked.payload) <= self._held.limit * HELD:
            with self._held.lease() as lease:
                lease.grow(len(asked.payload))
                result = await self._compare(endpoint, asked)
        self._metrics.mirrored((endpoint.namespace, endpoint.reranker), result)

    async def _compare(self, endpoint: Endpoint, asked: _Asked) -> MirrorResult:
        began, scores, record = self._clock(), asked.scores, asked.record
        # Its tokens are for queues, and it never enters one.
        ticket = Ticket(0, began + asked.within, draw=0.0, priority="low")
        try:
            response = await self._forwarder.score_once(
                endpoint, ticket, asked.payload, len(scores), record.request_id, record.trace
            )
        except NotTaken:
            return "skipped"
        except (Broken, ApiError):
            failed = Mirrored(record.seconds, self._clock() - began, failed=True, request_id=record.request_id)
            self._answers.mirrored(endpoint, failed)
            return "failed"
        took, theirs = self._clock() - began, response.scores
        compared = Mirrored(
            record.seconds,
            took,
            agreement=kendall(scores, theirs),
            drift=drift(scores, theirs),
            request_id=record.request_id,
        )
        self._answers.mirrored(endpoint, compared)
        self._capture.compared(asked.excerpt, endpoint.revision, scores, theirs, compared)
        return "ok"
