"""One rerank request from body to answer: read, find its Reranker, decode, wait, forward, render. And the feedback on
answers, which is read and counted.

Owns the order of the checks: what is cheap to refuse is refused first, and nothing is decoded beyond its limits.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
from aiohttp import web
from rerank_api import wire

from rerank_gateway import feedback, routing
from rerank_gateway.access import HEADER_REVISION
from rerank_gateway.auth import KEY_INDEX
from rerank_gateway.body import HeldBytes, Lease, check_size, read_body
from rerank_gateway.cluster.state import Key, Route, RoutingTable
from rerank_gateway.cluster.watch import Source
from rerank_gateway.errors import ApiError
from rerank_gateway.metrics import FORGET_AFTER, Metrics
from rerank_gateway.ordering import PRIORITIES
from rerank_gateway.protocol import cohere, tei
from rerank_gateway.protocol.common import Envelope, RerankAnswer, RerankQuery, decode, invalid
from rerank_gateway.record import RECORD, Record
from rerank_gateway.scoring import Plan, Scoring
from rerank_gateway.waiting import Ticket

HEADER_CLIENT = "X-Rerank-Client"
"""Who asks, in the client's own words: clients take turns. Counts only where there are no API keys."""

HEADER_STICKY = "X-Rerank-Sticky"
"""Whose requests are to meet the same revision while traffic is split: a user's or a session's id."""

HEADER_CANDIDATE_FETCH = "X-Rerank-Candidate-Fetch-Ms"
"""How long the client took to find the documents that it wants ranked."""

_LONGEST_FETCH = 600_000
_NAME = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")

_envelope_decoder = msgspec.json.Decoder(Envelope)

Render = Callable[[RerankAnswer], bytes]


@dataclass(frozen=True, slots=True)
class _Job:
    """A request that is good and may wait."""

    route: Route
    model: str
    """As the client named it."""
    plan: Plan
    refuse_truncation: bool
    render: Render


class Serving:
    def __init__(
        self, source: Source, scoring: Scoring, held: HeldBytes, metrics: Metrics, clock: Callable[[], float]
    ) -> None:
        self._source = source
        self._scoring = scoring
        self._held = held
        self._metrics = metrics
        self._clock = clock

    async def rerank(self, request: web.Request, api_version: str, with_texts: bool) -> web.Response:
        """``with_texts``: a body with ``texts`` instead of ``documents`` is understood too."""
        record = request[RECORD]
        path = _reranker_in_path(request)
        self._require_sync()
        timeout, priority, client = _asked_timeout(request), _asked_priority(request), _client(request)
        sticky = _name(request, HEADER_STICKY)
        record.priority, record.patience, record.candidate_fetch = priority, timeout, _candidate_fetch(request)
        with self._held.lease() as lease:
            # Only what is needed for the answer stays in memory while the request waits: neither body nor documents.
            body = await self._read(request, path, lease, record)
            job = self._accept(body, path, with_texts, api_version, sticky or record.request_id, lease, record)
            del body
            ticket = Ticket(job.plan.estimate, self._clock() + timeout, job.plan.draw, priority, client)
            scored = await self._scoring.score(job.route, job.plan, ticket, record)
        record.truncated = len(scored.truncated)
        record.chunked = len(scored.chunked)
        if job.refuse_truncation and scored.truncated:
            where = f"texts[{scored.truncated[0]}]"
            message = f"{where}: is longer than the model takes, and truncate is false: shorten it"
            raise ApiError(422, "too_long", message, field=where)
        answer = RerankAnswer(
            record.request_id, job.model, scored.scores, scored.tokens, scored.truncated, scored.chunked
        )
        return web.Response(body=job.render(answer), content_type="application/json")

    async def feedback(self, request: web.Request) -> web.Response:
        """Its Reranker is not noted in the record: what is counted of Rerankers' requests is about answers."""
        self._require_sync()
        with self._held.lease() as lease:
            body = await read_body(request, feedback.MAX_BODY_BYTES, None, lease)
            request[RECORD].body_bytes = len(body)
            given = feedback.parse(body)
        route = routing.find_route(self._source.table, _reranker_in_path(request), given.model)
        revision = given.revision or ""
        if not self._metrics.knows(route.key, revision):
            recently = f"within the last {FORGET_AFTER / 60:.0f} minutes"
            what = f"{route.label} has none of that name, nor had {recently}: {HEADER_REVISION} of the answer tells it"
            raise invalid("revision", what)
        self._metrics.labelled(route.key, revision, *feedback.tally(given.labels))
        return web.Response(status=204)

    def _accept(
        self,
        body: bytes,
        path: Key | None,
        with_texts: bool,
        api_version: str,
        split_by: str,
        lease: Lease,
        record: Record,
    ) -> _Job:
        """Decodes and checks; what was found is noted in ``record``. ``split_by``: what decides on the revision."""
        record.body_bytes = len(body)
        envelope = decode(_envelope_decoder, body)
        route = routing.find_route(self._source.table, path, envelope.model)
        record.namespace, record.reranker = route.key
        check_size(len(body), route.policy.max_body_bytes, route.label)
        query, render = _parse(body, route, with_texts and envelope.has_texts, api_version)
        record.documents = len(query.documents)
        plan = self._scoring.plan(route, query, routing.draw_of(route, split_by), lease, record)
        return _Job(route, envelope.model or route.label, plan, query.refuse_truncation, render)

    async def _read(self, request: web.Request, path: Key | None, lease: Lease, record: Record) -> bytes:
        """The body, limited by its Reranker's own limit where the path tells which one that is."""
        table = self._source.table
        if path is None and len(table.routes) > 1:
            largest = max(table.routes.values(), key=lambda route: route.policy.max_body_bytes)
            return await read_body(request, largest.policy.max_body_bytes, largest.label, lease)
        route = routing.find_route(table, path, None)
        try:
            return await read_body(request, route.policy.max_body_bytes, route.label, lease)
        except ApiError as error:
            if error.status == 429:  # no fault of the request, so it counts as one of the Reranker's
                record.namespace, record.reranker = route.key
            raise

    def _require_sync(self) -> None:
        if not self._source.synced:
            raise ApiError(503, "starting", "the gateway has not read the Rerankers yet: retry", retry_after=1)


def list_models(table: RoutingTable) -> bytes:
    """In the shape of OpenAI's list of models."""
    models = [
        {
            "id": route.label,
            "object": "model",
            "created": route.policy.created,
            "owned_by": route.policy.namespace,
            "ready": route.ready and not route.policy.suspended,
        }
        for route in table.routes.values()
    ]
    return msgspec.json.encode({"object": "list", "data": models})


def _parse(body: bytes, route: Route, by_texts: bool, api_version: str) -> tuple[RerankQuery, Render]:
    limit, label = route.policy.max_documents, route.label
    if by_texts:
        texts_request, query = tei.parse(body, limit, label)
        return query, lambda answer: tei.render(texts_request, answer)
    documents_request, query = cohere.parse(body, limit, label)
    return query, lambda answer: cohere.render(documents_request, answer, api_version)


def _reranker_in_path(request: web.Request) -> Key | None:
    namespace = request.match_info.get("namespace")
    return (namespace, request.match_info["name"]) if namespace else None


def _stated(request: web.Request, header: str) -> str | None:
    """Sent twice, it is one value with a comma (RFC 9110, 5.2), which none of ours may have: nobody's is preferred."""
    given = request.headers.getall(header, None)
    return None if given is None else ",".join(given)


def _asked_timeout(request: web.Request) -> float:
    """Seconds that the client will wait at most; infinite when it does not say."""
    given = _stated(request, wire.HEADER_TIMEOUT)
    if given is None:
        return math.inf
    if not (given.isascii() and given.isdigit() and len(given) < 10 and int(given) > 0):
        raise invalid(wire.HEADER_TIMEOUT, "expected a whole number of milliseconds above 0")
    return int(given) / 1000


def _candidate_fetch(request: web.Request) -> float | None:
    """Seconds; None when the client does not say."""
    given = _stated(request, HEADER_CANDIDATE_FETCH)
    if given is None:
        return None
    if not (given.isascii() and given.isdigit() and len(given) < 10 and int(given) <= _LONGEST_FETCH):
        raise invalid(HEADER_CANDIDATE_FETCH, f"expected a whole number of milliseconds up to {_LONGEST_FETCH}")
    return int(given) / 1000


def _asked_priority(request: web.Request) -> wire.Priority:
    given = _stated(request, wire.HEADER_PRIORITY)
    given = "normal" if given is None else given.strip().lower()
    for priority in PRIORITIES:
        if priority == given:
            return priority
    raise invalid(wire.HEADER_PRIORITY, f"expected one of {', '.join(PRIORITIES)}")


def _client(request: web.Request) -> str:
    """Whose turn the request uses up. Where there are keys, no header is believed: it would multiply one's turns."""
    index = request.get(KEY_INDEX)
    if index is not None:
        return f"key {index}"
    given = _name(request, HEADER_CLIENT)
    return f"peer {request.remote}" if given is None else f"name {given}"


def _name(request: web.Request, header: str) -> str | None:
    given = _stated(request, header)
    if given is not None and not _NAME.fullmatch(given):
        raise invalid(header, "expected 1 to 128 letters, digits or any of . _ : / + = @ -")
    return given
