"""Has a golden set ranked by one worker, straight at its pod, beside what users send: with low priority, two at a time.

Sends the set's texts to that worker and nowhere else. It is the worker's own protocol (rerank_api.wire), so that a
revision can be asked which no gateway sends anything to. ``ask`` does the same at an endpoint that users have.
"""

import asyncio
import ipaddress
import math
from collections.abc import Callable, Sequence

import aiohttp
import msgspec
from rerank_api import names, wire

from rerank_operator.rollout.golden.ask import CannotAsk
from rerank_operator.rollout.golden.golden_set import GoldenSet, LabelledQuery
from rerank_operator.rollout.golden.measures import Quality, quality

AT_ONCE = 2
SECONDS = 60.0
"""For one request."""
RUN_SECONDS = 600.0
"""For the whole set."""
TRIES = 8
"""Of one query, where the worker is busy, not there, or not in time."""
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 10.0
"""Seconds between two tries, twice as long each time; Retry-After asks for more, up to the longest."""
AGAIN = frozenset({429, 503, 504})
MOST_BYTES = 2**20
"""Of an answer: a thousand scores are some 20 KiB."""

_decoder = msgspec.json.Decoder(wire.ScoreResponse)
_refusals = msgspec.json.Decoder(wire.WorkerError)


class _Again(Exception):
    """No scores this time; ``pause``: seconds that the worker asks to wait."""

    def __init__(self, said: str, pause: float = 0.0) -> None:
        super().__init__(said)
        self.pause = pause


async def ask_worker(session: aiohttp.ClientSession, host: str, golden: GoldenSet, k: int) -> list[Quality]:
    """How well the worker at ``host`` ranks each query, in their order, by the first ``k`` documents. Arguments and
    errors as of ``scores_of``."""
    scores = await scores_of(session, host, golden.queries)
    return [quality(query.labels, found, k) for query, found in zip(golden.queries, scores, strict=True)]


async def scores_of(
    session: aiohttp.ClientSession,
    host: str,
    queries: Sequence[LabelledQuery],
    *,
    raw: bool = False,
    path: str = wire.SCORE_PATH,
    told: Callable[[], None] = lambda: None,
) -> list[list[float]]:
    """The scores of each query's documents, in their order, of the worker at ``host``.

    ``host``: the pod's address, or HOST:PORT where the port is another than a worker's. ``raw``: logits instead.
    ``path``: of the model, where that worker has several. ``told``: after each query. Raises CannotAsk at the first
    query that it does not score, or where all take longer than RUN_SECONDS: an average over the others would be of
    another set.
    """
    url = f"http://{_authority(host)}{path}"
    places = asyncio.Semaphore(AT_ONCE)
    done = 0

    async def one(number: int, query: LabelledQuery) -> list[float]:
        nonlocal done
        async with places:
            try:
                found = await _scores(session, url, wire.ScoreRequest(query.query, query.documents, raw_scores=raw))
            except (_Again, ValueError) as error:
                raise CannotAsk(f"worker {host}: queries[{number}]: {error}") from None
        done += 1
        told()
        return found

    async def all_of_them() -> list[list[float]]:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(number, query)) for number, query in enumerate(queries)]
        except* CannotAsk as failed:
            raise failed.exceptions[0] from None
        return [task.result() for task in tasks]

    try:
        return await asyncio.wait_for(all_of_them(), RUN_SECONDS)
    except TimeoutError:
        said = f"{done} of {len(queries)} queries were ranked in {RUN_SECONDS:g} s: make the golden set smaller"
        raise CannotAsk(f"worker {host}: {said}") from None


async def _scores(session: aiohttp.ClientSession, url: str, request: wire.ScoreRequest) -> list[float]:
    """Of each document, in their order. Raises _Again when it was tried too often, ValueError for another answer."""
    body = msgspec.json.encode(request)
    for attempt in range(TRIES - 1):
        try:
            return await _once(session, url, body, len(request.documents))
        except _Again as error:
            await asyncio.sleep(min(max(FIRST_PAUSE * 2**attempt, error.pause), LONGEST_PAUSE))
    return await _once(session, url, body, len(request.documents))


async def _once(session: aiohttp.ClientSession, url: str, body: bytes, documents: int) -> list[float]:
    headers = {
        "Content-Type": "application/json",
        wire.HEADER_PRIORITY: "low",
        wire.HEADER_TIMEOUT: str(round(SECONDS * 1000)),
    }
    limit = aiohttp.ClientTimeout(total=SECONDS, sock_connect=LONGEST_PAUSE)
    try:
        async with session.post(url, data=body, headers=headers, timeout=limit, allow_redirects=False) as response:
            content = bytearray()
            async for part in response.content.iter_any():
                content += part
                if len(content) > MOST_BYTES:
                    raise ValueError(f"answered with more than {MOST_BYTES} bytes")
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise _Again(f"cannot be asked: {str(error) or type(error).__name__}") from None
    if response.status != 200:
        said = f"answered {response.status}: {_message(content)}"
        if response.status not in AGAIN:
            raise ValueError(said)
        pause = response.headers.get("Retry-After", "")
        raise _Again(said, float(pause) if pause.isdecimal() and len(pause) < 6 else 0.0)
    scores = _decoder.decode(content).scores
    if len(scores) != documents or not all(map(math.isfinite, scores)):
        raise ValueError(f"answered with {len(scores)} scores for {documents} documents: each must have one")
    return scores


def _message(content: bytes | bytearray) -> str:
    try:
        return _refusals.decode(content).message[:300]
    except ValueError:
        return bytes(content[:300]).decode(errors="replace")


def _authority(host: str) -> str:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    return f"[{host}]:{names.WORKER_PORT}" if address.version == 6 else f"{host}:{names.WORKER_PORT}"
