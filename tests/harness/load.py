"""Open-loop load on the gateways: requests leave on time whether or not earlier ones came back.

Bounded in number, in time and by the ``with`` block. It stands where clients behind a Service stand: a gateway that
refuses the connection is passed over for the next (a Service drops the endpoint), but a request once sent is never sent
again.
"""

import asyncio
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import aiohttp

LONGEST_SLEEP = 0.25
"""Seconds between two looks at whether the load shall end."""

QUERY = "which fox jumps over dogs"
WORD = "fox"
PAIR_WORDS = 110
"""Tokens of one pair at most: the mean of real passages."""


@dataclass(frozen=True)
class Outcome:
    """One request: when it was due (monotonic seconds), how long after that it ended, and what the client saw."""

    started: float
    seconds: float
    status: int | None
    error: str | None
    revision: str | None
    gateway: str
    tokens: int = 0
    priority: str = "normal"

    @property
    def ok(self) -> bool:
        return self.status == 200

    @property
    def ended(self) -> float:
        return self.started + self.seconds


@dataclass
class Report:
    outcomes: list[Outcome] = field(default_factory=list)
    late: float = 0.0
    """Longest that a request left after its time, in seconds: more than some tens of ms and the load was not as asked
    for."""

    @property
    def failed(self) -> list[Outcome]:
        return [o for o in self.outcomes if not o.ok]

    def since(self, instant: float) -> "Report":
        return Report([o for o in self.outcomes if o.started >= instant], self.late)

    def quantile(self, q: float) -> float:
        """Latency in seconds that a share ``q`` of the answered requests stayed under."""
        times = sorted(o.seconds for o in self.outcomes if o.ok)
        return times[min(len(times) - 1, int(q * len(times)))] if times else float("nan")

    def longest(self) -> float:
        return max((o.seconds for o in self.outcomes), default=float("nan"))

    def summary(self) -> dict[str, Any]:
        return {
            "requests": len(self.outcomes),
            "failed": len(self.failed),
            "failures": dict(Counter(f"{o.status} {o.error}" for o in self.failed)),
            "p50_ms": round(self.quantile(0.5) * 1000, 1),
            "p95_ms": round(self.quantile(0.95) * 1000, 1),
            "p99_ms": round(self.quantile(0.99) * 1000, 1),
            "max_ms": round(self.longest() * 1000, 1),
            "revisions": dict(Counter(o.revision for o in self.outcomes if o.ok)),
        }


class Call(NamedTuple):
    """One request of a trace: seconds after its beginning, tokens (query and special tokens included), priority."""

    at: float
    tokens: int
    priority: str = "normal"


class _Departure(NamedTuple):
    call: Call
    content: bytes


def content(model: str, tokens: int) -> bytes:
    """A Cohere-shaped body that costs about ``tokens`` where a word is a token and pairs have three special ones."""
    fixed = len(QUERY.split()) + 3
    documents = max(1, round(tokens / PAIR_WORDS))
    words, spare = divmod(max(documents, tokens - documents * fixed), documents)
    texts = [" ".join([WORD] * (words + (number < spare))) for number in range(documents)]
    return json.dumps({"model": model, "query": QUERY, "documents": texts}).encode()


class _OpenLoop:
    """Sends ``departures`` in a thread of its own until they are over or the ``with`` block ends, then waits for the
    answers."""

    MAX_SECONDS = 900.0
    MAX_REQUESTS = 100_000

    def __init__(
        self,
        urls: Callable[[], Sequence[str]],
        path: str,
        departures: Iterator[_Departure],
        timeout: float,
        headers: Mapping[str, str],
    ) -> None:
        self._urls, self._path, self._departures, self._timeout = urls, path, departures, timeout
        self._headers = {"Content-Type": "application/json", **headers}
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="load")
        self.report = Report()
        self.began = 0.0
        """Monotonic time of the schedule's zero; 0: not yet."""

    def __enter__(self) -> Self:
        self.began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self.wait()

    def wait(self) -> Report:
        """Until every request that left has ended. Raises what kept the load from being sent."""
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        return self.report

    @property
    def over(self) -> bool:
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:  # a thread has no caller: ``wait`` raises it
            self._failure = error

    async def _main(self) -> None:
        timeout = aiohttp.ClientTimeout(total=self._timeout)
        connector = aiohttp.TCPConnector(limit=0)
        async with (
            aiohttp.ClientSession(timeout=timeout, connector=connector, headers=self._headers) as session,
            asyncio.TaskGroup() as group,
        ):
            for number, departure in enumerate(itertools.islice(self._departures, self.MAX_REQUESTS)):
                if departure.call.at > self.MAX_SECONDS or not await self._due(departure.call.at):
                    break
                group.create_task(self._one(session, number, departure))

    async def _due(self, at: float) -> bool:
        """Sleeps until then; whether the load goes on."""
        due = self.began + at
        while not self._stop.is_set():
            left = due - time.monotonic()
            if left <= 0:
                self.report.late = max(self.report.late, -left)
                return True
            await asyncio.sleep(min(left, LONGEST_SLEEP))
        return False

    async def _one(self, session: aiohttp.ClientSession, number: int, departure: _Departure) -> None:
        call, urls = departure.call, list(self._urls())
        headers = {} if call.priority == "normal" else {"X-Rerank-Priority": call.priority}
        status = revision = None
        error: str | None = "no gateway is ready"
        url = ""
        for attempt in range(len(urls)):
            url = urls[(number + attempt) % len(urls)]
            try:
                async with session.post(url + self._path, data=departure.content, headers=headers) as response:
                    status, revision = response.status, response.headers.get("X-Rerank-Revision")
                    text = await response.text()
                    error = None if status == 200 else text[:300]
                break
            except aiohttp.ClientConnectorError as refused:
                error = f"connection refused: {refused}"
            except (aiohttp.ClientError, TimeoutError) as failure:
                status, error = None, f"{type(failure).__name__}: {failure}"
                break
        due = self.began + call.at
        seconds = time.monotonic() - due
        self.report.outcomes.append(Outcome(due, seconds, status, error, revision, url, call.tokens, call.priority))


class SteadyLoad(_OpenLoop):
    """``with SteadyLoad(urls, path, body, rate=10) as load: ...``; ``load.report`` holds what came of it.

    ``urls`` is called for each request and gives the gateways' base URLs.
    """

    def __init__(
        self, urls: Callable[[], Sequence[str]], path: str, body: Mapping[str, Any], rate: float, timeout: float = 30
    ) -> None:
        encoded = json.dumps(dict(body)).encode()
        departures = (_Departure(Call(number / rate, 0), encoded) for number in itertools.count())
        super().__init__(urls, path, departures, timeout, {})


class Replay(_OpenLoop):
    """The requests of a trace, each at its time: ``with Replay(urls, "search/products", calls) as load: load.wait()``.

    Leaving the block early sends no more, and waits for those that left.
    """

    def __init__(
        self,
        urls: Callable[[], Sequence[str]],
        model: str,
        calls: Iterable[Call],
        timeout: float = 120,
        path: str = "/v2/rerank",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        made: dict[int, bytes] = {}

        def encoded(tokens: int) -> bytes:
            # In steps of 50, so that a trace needs some tens of bodies: the load must not cost what it measures.
            size = max(1, 50 * round(tokens / 50))
            if size not in made:
                made[size] = content(model, size)
            return made[size]

        departures = (_Departure(call, encoded(call.tokens)) for call in sorted(calls))
        super().__init__(urls, path, departures, timeout, headers or {})
