"""Sends one query to a worker, and to another one when that worker is busy, gone, frozen or broken.

Scoring is idempotent, so a query may be sent again even when its first worker died midway. Retries end with the
request's deadline; queries that break workers end sooner, so that one bad query cannot take a whole fleet down.
"""

import asyncio
import io
import math
from collections.abc import Callable
from dataclasses import dataclass

import aiohttp
import msgspec
from rerank_api import wire
from yarl import URL

from rerank_gateway.answers import AnswerLog
from rerank_gateway.bounds import not_scored
from rerank_gateway.cluster.state import Endpoint
from rerank_gateway.errors import ApiError
from rerank_gateway.metrics import Metrics
from rerank_gateway.record import Record
from rerank_gateway.trace import Attempt, Trace
from rerank_gateway.waiting import Queue, Ticket

CONNECT_TIMEOUT = 2.0
# Workers close idle connections after a longer time; a connection that the worker just closed looks like its death.
KEEPALIVE_SECONDS = 15.0
MAX_BROKEN_ATTEMPTS = 3
# aiohttp writes a body at once unless it is a stream; large ones would hold up the event loop.
STREAMED_BODY_BYTES = 2**20
# A worker that has been silent for this long is asked whether it lives.
PROBE_AFTER = 1.0
PROBE_TIMEOUT = 1.5
FAILED_PROBES = 2
_ABSURD_TOKENS = 2**40


@dataclass(frozen=True, slots=True)
class _Pause:
    first: float
    longest: float


_BUSY_PAUSE = _Pause(0.05, 1.0)
_BROKEN_PAUSE = _Pause(0.1, 2.0)


class NotTaken(Exception):
    """The worker did not take the query; it says nothing about the worker's answers."""


class _Busy(NotTaken):
    """The worker has no room at the moment; the query was not scored."""


class _Unavailable(NotTaken):
    """The worker lives but does not score: it drains, loads, or is a warm pod without the model. Nothing was scored."""


class _Unreachable(NotTaken):
    """No connection; the query was not sent."""


class Broken(Exception):
    """The worker died, froze or gave a wrong answer after the query was sent."""


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: bytes
    capacity: float | None
    """Tokens a second that the worker says it can score."""


_response_decoder = msgspec.json.Decoder(wire.ScoreResponse)
_error_decoder = msgspec.json.Decoder(wire.WorkerError)


def open_session() -> aiohttp.ClientSession:
    """Connections to workers; how many are open is bounded by the queues' limits."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_SECONDS),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
    )


class Forwarder:
    def __init__(
        self, session: aiohttp.ClientSession, metrics: Metrics, answers: AnswerLog, clock: Callable[[], float]
    ) -> None:
        self._session = session
        self._metrics = metrics
        self._answers = answers
        self._clock = clock
        self._probes: dict[str, asyncio.Task[bool]] = {}

    async def score(
        self, queue: Queue, ticket: Ticket, payload: bytes, documents: int, record: Record
    ) -> wire.ScoreResponse:
        """Scores of ``payload``, a wire.ScoreRequest with that many documents; notes the way in ``record``.

        Raises ApiError: the queue's, the worker's refusal of the input, 504 at the deadline, or 502 when the query
        broke MAX_BROKEN_ATTEMPTS workers.
        """
        broken = 0
        while True:
            queued = self._clock()
            try:
                with record.trace.waiting():
                    endpoint = await queue.acquire(ticket, retry=record.attempts > 0)
            finally:
                record.waited += self._clock() - queued
            record.attempts += 1
            record.revision = endpoint.revision
            try:
                with record.trace.attempt(endpoint, record.attempts) as attempt:
                    answer = await self._send(endpoint, ticket, payload, record.request_id, attempt)
                    response = _checked(answer, documents, endpoint, ticket)
            except ApiError as error:
                if error.status != 504:
                    queue.succeeded(endpoint)
                self._answers.attempted(endpoint, queued, failed=True)
                raise
            except _Busy:
                self._retry(queue, ticket, endpoint, _BUSY_PAUSE, "busy", broken=False)
            except _Unavailable:
                self._retry(queue, ticket, endpoint, _BUSY_PAUSE, "busy", broken=True)
            except _Unreachable:
                self._retry(queue, ticket, endpoint, _BROKEN_PAUSE, "unreachable", broken=True)
            except Broken as error:
                self._answers.attempted(endpoint, queued, failed=True)
                self._retry(queue, ticket, endpoint, _BROKEN_PAUSE, "broken", broken=True)
                broken += 1
                if broken >= MAX_BROKEN_ATTEMPTS:
                    message = f"{broken} workers failed on this request, the last because {error}: change the request"
                    raise ApiError(502, "workers_failed", message) from None
            else:
                self._answers.attempted(endpoint, queued, failed=False)
                record.seconds = self._clock() - queued
                queue.succeeded(endpoint)
                queue.counted(ticket, response.tokens)
                if answer.capacity is not None:
                    queue.loads[endpoint.uid].capacity = answer.capacity
                return response
            finally:
                queue.release(ticket, endpoint)

    async def score_once(
        self, endpoint: Endpoint, ticket: Ticket, payload: bytes, documents: int, request_id: str, trace: Trace
    ) -> wire.ScoreResponse:
        """The same of one worker, by no queue and with no other try: nothing that is told of users' requests changes,
        but that ``trace``, of the request that this is a copy of, has a span for it.

        Raises NotTaken, Broken, or ApiError: the worker's refusal of the input, or 504 at the ticket's deadline.
        """
        with trace.attempt(endpoint, 1, mirrored=True) as attempt:
            answer = await self._send(endpoint, ticket, payload, request_id, attempt)
            return _checked(answer, documents, endpoint, ticket)

    def _retry(
        self, queue: Queue, ticket: Ticket, endpoint: Endpoint, pause: _Pause, reason: str, *, broken: bool
    ) -> None:
        queue.failed(endpoint, pause.first, pause.longest, broken=broken)
        ticket.avoid.add(endpoint.uid)
        self._metrics.retried(endpoint, reason)

    async def _send(
        self, endpoint: Endpoint, ticket: Ticket, payload: bytes, request_id: str, attempt: Attempt
    ) -> _Answer:
        post = asyncio.ensure_future(self._post(endpoint, ticket, payload, request_id, attempt))
        try:
            async with asyncio.timeout_at(ticket.deadline):
                await self._until_done_or_dead(endpoint, post)
                return await post
        except TimeoutError:
            raise not_scored(ticket.deadline, ticket.latest) from None
        finally:
            if not post.done():
                post.cancel()
                # The connection must be closed before the slot is given to the next request.
                await asyncio.gather(post, return_exceptions=True)

    async def _post(
        self, endpoint: Endpoint, ticket: Ticket, payload: bytes, request_id: str, attempt: Attempt
    ) -> _Answer:
        headers = {
            **attempt.headers,
            "Content-Type": "application/json",
            wire.HEADER_REQUEST_ID: request_id,
            wire.HEADER_TIMEOUT: str(max(1, int((ticket.deadline - self._clock()) * 1000))),
            wire.HEADER_PRIORITY: ticket.priority,
        }
        data = payload if len(payload) < STREAMED_BODY_BYTES else io.BytesIO(payload)
        url = _url(endpoint, endpoint.path)
        try:
            # No redirects: whoever may run a pod could send the gateway to any address that it can reach.
            async with self._session.post(url, data=data, headers=headers, allow_redirects=False) as response:
                attempt.status = response.status
                capacity = _capacity(response.headers.get(wire.HEADER_CAPACITY, ""))
                return _Answer(response.status, await response.read(), capacity)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise _Unreachable from error
        except (aiohttp.ClientError, OSError) as error:
            raise Broken("the connection was lost") from error

    async def _until_done_or_dead(self, endpoint: Endpoint, post: asyncio.Future[_Answer]) -> None:
        """Slow scoring is waited for; a worker whose health check does not answer either is given up."""
        failed = 0
        while not (await asyncio.wait({post}, timeout=PROBE_AFTER))[0]:
            probe = self._probe(endpoint)
            await asyncio.wait({post, probe}, return_when=asyncio.FIRST_COMPLETED)
            if post.done():
                return
            failed = 0 if probe.result() else failed + 1
            if failed >= FAILED_PROBES:
                raise Broken("the worker stopped answering")

    def _probe(self, endpoint: Endpoint) -> asyncio.Task[bool]:
        """One health check at a time for each endpoint, shared by all its requests."""
        probe = self._probes.get(endpoint.uid)
        if probe is None:
            probe = self._probes[endpoint.uid] = asyncio.create_task(self._is_alive(endpoint))
            probe.add_done_callback(lambda _: self._probes.pop(endpoint.uid, None))
        return probe

    async def _is_alive(self, endpoint: Endpoint) -> bool:
        limit = aiohttp.ClientTimeout(total=PROBE_TIMEOUT)
        try:
            url = _url(endpoint, wire.LIVE_PATH)
            async with self._session.get(url, timeout=limit, allow_redirects=False) as response:
                return response.status == 200
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False


def _url(endpoint: Endpoint, path: str) -> URL:
    return URL.build(scheme="http", host=endpoint.host, port=endpoint.port, path=path)


def _capacity(given: str) -> float | None:
    """The header's value; None where it is absent or makes no sense, for scores count for more than it."""
    plain = given.isascii() and given.isdigit() and len(given) < 16
    return (float(given) or None) if plain else None


def _checked(answer: _Answer, documents: int, endpoint: Endpoint, ticket: Ticket) -> wire.ScoreResponse:
    """The scores, if there is a finite one for each document. Raises what any other answer means."""
    if answer.status != 200:
        raise _refusal(answer, endpoint, ticket)
    try:
        response = _response_decoder.decode(answer.body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise Broken("its answer could not be read") from None
    if len(response.scores) != documents:
        raise Broken(f"it gave {len(response.scores)} scores for {documents} documents")
    if not all(map(math.isfinite, response.scores)):
        raise Broken("a score was not a finite number")
    if not all(0 <= index < documents for index in (*response.truncated, *response.chunked)):
        raise Broken("it named a document that it was not given")
    if not 0 <= response.tokens < _ABSURD_TOKENS:
        raise Broken("its count of tokens was impossible")
    return response


def _refusal(answer: _Answer, endpoint: Endpoint, ticket: Ticket) -> Exception:
    """What an answer other than 200 means: the input's fault ends the request, anything else is tried elsewhere."""
    status = answer.status
    if status == 429:
        return _Busy()
    if status == 503:
        return _Unavailable()
    if status == 404 and endpoint.path != wire.SCORE_PATH:
        # Its model has just been unloaded, or its process is a new one.
        return _Unavailable()
    if status in (400, 422, 504):
        try:
            error = _error_decoder.decode(answer.body)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return Broken(f"its answer {status} could not be read")
        if error.code == "deadline":
            return not_scored(ticket.deadline, ticket.latest)
        if error.code in ("invalid_request", "too_long"):
            return ApiError(status, error.code, error.message)
    return Broken(f"it answered {status}")
