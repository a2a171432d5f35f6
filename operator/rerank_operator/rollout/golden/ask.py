"""Has a golden set ranked by a rerank server, over HTTP. Sends its texts to that server and nowhere else.

Any server that answers Cohere's v2 shape will do: a gateway, with a Reranker's name in the path, or another product.
"""

import asyncio
import math
from collections.abc import Callable

import aiohttp
import msgspec

from rerank_operator.rollout.golden.golden_set import GoldenQuery, GoldenSet
from rerank_operator.rollout.golden.measures import Quality, quality

AT_ONCE = 4
"""Requests: enough to keep a worker busy, and little beside what users send."""
TIMEOUT = 120.0
"""Seconds for one query, a cold start included."""
TRIES = 5
"""Of one query, where the server says that it is busy or not there yet."""
LONGEST_PAUSE = 10.0
"""Seconds between two tries, whatever Retry-After says."""
AGAIN = frozenset({408, 429, 500, 502, 503, 504})


class CannotAsk(Exception):
    """A server that did not rank the golden set; the message names it, the query and what it said."""


class _Result(msgspec.Struct):
    index: int
    relevance_score: float


class _Answer(msgspec.Struct):
    results: list[_Result]


_answer_decoder = msgspec.json.Decoder(_Answer)


async def ask(url: str, golden: GoldenSet, key: str | None, told: Callable[[], None] = lambda: None) -> list[Quality]:
    """How well the server at ``url`` ranks each query, in their order. ``key``: its API key. ``told``: after each.

    Raises CannotAsk at the first query that it does not rank: an average over the others would be of another set.
    """
    places = asyncio.Semaphore(AT_ONCE)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    timeout = aiohttp.ClientTimeout(total=TIMEOUT)

    async def one(session: aiohttp.ClientSession, number: int, query: GoldenQuery) -> Quality:
        async with places:
            try:
                scores = await _scores(session, url, query)
                found = quality(query.labels, scores, golden.k)
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                said = str(error) or type(error).__name__
                raise CannotAsk(f"{url}: queries[{number}]: {said}") from None
        told()
        return found

    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(session, number, query)) for number, query in enumerate(golden.queries)]
        except* CannotAsk as failed:
            raise failed.exceptions[0] from None
    return [task.result() for task in tasks]


async def _scores(session: aiohttp.ClientSession, url: str, query: GoldenQuery) -> list[float]:
    """Of each document, in their order. Raises ValueError with what was answered instead."""
    body = {"query": query.query, "documents": query.documents}
    for attempt in range(1, TRIES + 1):
        async with session.post(url, json=body) as response:
            found = await response.read()
            if response.status == 200:
                return _in_order(found, len(query.documents))
            if response.status not in AGAIN or attempt == TRIES:
                raise ValueError(f"answered {response.status}: {found[:300].decode(errors='replace')}")
            pause = response.headers.get("Retry-After", "")
        await asyncio.sleep(min(float(pause) if pause.isdigit() else attempt, LONGEST_PAUSE))
    raise AssertionError("unreachable")


def _in_order(body: bytes, documents: int) -> list[float]:
    results = _answer_decoder.decode(body).results
    scores = {result.index: result.relevance_score for result in results}
    if scores.keys() != set(range(documents)) or not all(map(math.isfinite, scores.values())):
        raise ValueError(f"answered with scores of {len(scores)} of {documents} documents: each must have one")
    return [scores[index] for index in range(documents)]
