"""The scores of one request: the cache has some of them, a worker gives the others.

Never mixes two revisions in one answer: if the worker that took the rest is of another revision than the known scores,
it is asked for all of them. What is known altogether waits for nobody and is no demand.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import msgspec
from rerank_api import wire

from rerank_gateway.body import Lease
from rerank_gateway.cache import Caches, DocumentScore, Pairs, by_document, expected_revision, together
from rerank_gateway.capture import Capture, Excerpt
from rerank_gateway.cluster.state import Route
from rerank_gateway.errors import ApiError
from rerank_gateway.forwarding import Forwarder
from rerank_gateway.mirroring import Mirroring
from rerank_gateway.protocol.common import RerankQuery
from rerank_gateway.record import Record
from rerank_gateway.waiting import Queue, Queues, Ticket

# Special tokens of a pair, and characters in a token: rough, for queues correct it by what workers count.
_TOKENS_PER_PAIR = 3
_CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True, slots=True)
class Work:
    """What a worker has to score."""

    payload: bytes
    """A wire.ScoreRequest."""
    documents: int
    estimate: int
    """Tokens, told from the characters."""


@dataclass(frozen=True, slots=True)
class Cached:
    """What was known when the request came."""

    pairs: Pairs
    revision: str | None
    """Of the known scores; None: there are none."""
    known: Sequence[DocumentScore | None]

    @property
    def missing(self) -> list[int]:
        return [index for index, score in enumerate(self.known) if score is None]


@dataclass(frozen=True, slots=True)
class Plan:
    """How a request gets its scores. Whole texts are in the payloads only, so that nothing else holds them while it
    waits."""

    draw: float
    """The request's own, 0 <= draw < 1: by it the traffic is split, and the cache is asked."""
    everything: Work | None
    """None: all is known."""
    rest: Work | None = None
    """What is not known, where some is."""
    cached: Cached | None = None
    """None: the Reranker has no cache."""
    excerpt: Excerpt | None = None
    """None: nothing of it will be written to the log."""

    @property
    def estimate(self) -> int:
        """Tokens that a worker will have to score."""
        work = self.rest or self.everything
        return work.estimate if work is not None else 0


class Scoring:
    def __init__(
        self,
        queues: Queues,
        forwarder: Forwarder,
        mirroring: Mirroring,
        caches: Caches,
        capture: Capture,
        clock: Callable[[], float],
    ) -> None:
        self._queues = queues
        self._forwarder = forwarder
        self._mirroring = mirroring
        self._caches = caches
        self._capture = capture
        self._clock = clock

    def plan(self, route: Route, query: RerankQuery, draw: float, lease: Lease, record: Record) -> Plan:
        """Asks the cache; what it said is noted in ``record``."""
        excerpt = self._capture.excerpt(route, query, record, lease)
        pairs = self._caches.pairs(route, query)
        if pairs is None:
            return Plan(draw, _work(query, route), excerpt=excerpt)
        queue = self._queues.get(route.key)
        revision = expected_revision(route, queue.loads if queue is not None else {}, draw, self._clock())
        known = self._caches.find(route, pairs, revision) if revision is not None else [None] * len(pairs.digests)
        cached = Cached(pairs, revision, known)
        missing = cached.missing
        record.cached = len(known) - len(missing)
        if not missing:
            record.cache = "hit"
            return Plan(draw, None, cached=cached, excerpt=excerpt)
        record.cache = "partial" if record.cached else "miss"
        rest = None
        if record.cached:
            rest = _work(replace(query, documents=[query.documents[index] for index in missing]), route)
            lease.grow(len(rest.payload))
        return Plan(draw, _work(query, route), rest, cached, excerpt)

    async def score(self, route: Route, plan: Plan, ticket: Ticket, record: Record) -> wire.ScoreResponse:
        """``ticket``: for ``plan.estimate`` tokens. Raises ApiError as Forwarder.score does."""
        response = await self._score(route, plan, ticket, record)
        self._capture.answered(plan.excerpt, response.scores)
        return response

    async def _score(self, route: Route, plan: Plan, ticket: Ticket, record: Record) -> wire.ScoreResponse:
        cached = plan.cached
        if plan.everything is None:
            assert cached is not None
            assert cached.revision is not None
            record.revision = cached.revision
            return together([score for score in cached.known if score is not None])
        queue = self._queues.of(route)
        if plan.rest is not None:
            assert cached is not None
            response = await self._complete(queue, ticket, plan.rest, cached, record)
            if response is not None:
                return response
            record.cache, record.cached = "miss", 0
            # The same place in the queue, as if it were tried again.
            ticket.estimate = plan.everything.estimate
            ticket.tokens = max(1, round(ticket.estimate * queue.tokens_per_estimate))
        response = await self._forward(queue, ticket, plan.everything, record)
        if cached is not None:
            self._keep(queue, cached.pairs, response, record)
        if queue.route is not None:  # else the Reranker was deleted meanwhile
            self._mirroring.offer(queue.route, plan.everything.payload, plan.excerpt, response, record)
        return response

    async def _complete(
        self, queue: Queue, ticket: Ticket, rest: Work, cached: Cached, record: Record
    ) -> wire.ScoreResponse | None:
        """The known scores with those of the rest; None when everything has to be asked for after all."""
        try:
            response = await self._forward(queue, ticket, rest, record)
        except ApiError as error:
            if error.status in (400, 422):
                return None  # it names a document by its place in the rest, not in what the client has sent
            raise
        missing = cached.missing
        scored = self._keep(queue, cached.pairs.of(missing), response, record)
        if record.revision != cached.revision:
            return None
        found = dict(zip(missing, scored, strict=True))
        return together([score or found[index] for index, score in enumerate(cached.known)])

    async def _forward(self, queue: Queue, ticket: Ticket, work: Work, record: Record) -> wire.ScoreResponse:
        response = await self._forwarder.score(queue, ticket, work.payload, work.documents, record)
        record.tokens += response.tokens
        return response

    def _keep(self, queue: Queue, pairs: Pairs, response: wire.ScoreResponse, record: Record) -> list[DocumentScore]:
        scored = by_document(response, pairs.weights)
        if queue.route is not None:  # else the Reranker was deleted meanwhile
            self._caches.keep(queue.route, pairs, record.revision, scored)
        return scored


def _work(query: RerankQuery, route: Route) -> Work:
    request = wire.ScoreRequest(query.query, query.documents, query.raw_scores, query.max_tokens_per_document)
    estimate = estimate_tokens(query, route.policy.max_pair_tokens, chunked=route.policy.chunked)
    return Work(msgspec.json.encode(request), len(query.documents), estimate)


def estimate_tokens(query: RerankQuery, longest: int, *, chunked: bool) -> int:
    """Tokens of all pairs; ``longest``: what one may have, and is cut to unless long documents are ``chunked``.

    Never more than ``longest`` for a query with a document that is not chunked: a query that fills that alone is
    refused by the worker, and its length times the documents would turn demand and turns upside down.
    """
    head = min(len(query.query) // _CHARACTERS_PER_TOKEN + _TOKENS_PER_PAIR, longest)
    bounds = [query.max_tokens_per_document, None if chunked else longest - head]
    cut = min((bound * _CHARACTERS_PER_TOKEN for bound in bounds if bound is not None), default=None)
    characters = sum(len(document) if cut is None else min(len(document), cut) for document in query.documents)
    return characters // _CHARACTERS_PER_TOKEN + head * len(query.documents)
