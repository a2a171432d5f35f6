"""Steady open-loop load on the gateways: requests leave on time whether or not earlier ones came back.

Bounded in rate and by the ``with`` block. It stands where clients behind a Service stand: a gateway that refuses the
connection is passed over for the next (a Service drops the endpoint), but a request once sent is never sent again.
"""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import aiohttp


@dataclass(frozen=True)
class Outcome:
    """One request: when it left (monotonic seconds), how long it took, and what the client saw."""

    started: float
    seconds: float
    status: int | None
    error: str | None
    revision: str | None
    gateway: str

    @property
    def ok(self) -> bool:
        return self.status == 200


@dataclass
class Report:
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def failed(self) -> list[Outcome]:
        return [o for o in self.outcomes if not o.ok]

    def since(self, instant: float) -> "Report":
        return Report([o for o in self.outcomes if o.started >= instant])

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
            "p99_ms": round(self.quantile(0.99) * 1000, 1),
            "max_ms": round(self.longest() * 1000, 1),
            "revisions": dict(Counter(o.revision for o in self.outcomes if o.ok)),
        }


class SteadyLoad:
    """``with SteadyLoad(urls, path, body, rate=10) as load: ...``; ``load.report`` holds what came of it.

    ``urls`` is called for each request and gives the gateways' base URLs.
    """

    MAX_SECONDS = 600

    def __init__(
        self, urls: Callable[[], Sequence[str]], path: str, body: dict[str, Any], rate: float, timeout: float = 30
    ) -> None:
        self._urls, self._path, self._body, self._interval, self._timeout = urls, path, body, 1 / rate, timeout
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), name="steady-load")
        self.report = Report()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join()

    async def _main(self) -> None:
        timeout = aiohttp.ClientTimeout(total=self._timeout)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session, asyncio.TaskGroup() as group:
            begin = time.monotonic()
            sent = 0
            while not self._stop.is_set() and time.monotonic() < begin + self.MAX_SECONDS:
                group.create_task(self._one(session, sent))
                sent += 1
                await asyncio.sleep(max(0.0, begin + sent * self._interval - time.monotonic()))

    async def _one(self, session: aiohttp.ClientSession, number: int) -> None:
        urls = list(self._urls())
        started = time.monotonic()
        status = error = revision = None
        url = ""
        for attempt in range(len(urls)):
            url = urls[(number + attempt) % len(urls)]
            try:
                async with session.post(url + self._path, json=self._body) as response:
                    status, revision = response.status, response.headers.get("X-Rerank-Revision")
                    text = await response.text()
                    error = None if status == 200 else text[:300]
                break
            except aiohttp.ClientConnectorError as refused:
                error = f"connection refused: {refused}"
            except (aiohttp.ClientError, TimeoutError) as failure:
                status, error = None, f"{type(failure).__name__}: {failure}"
                break
        seconds = time.monotonic() - started
        self.report.outcomes.append(Outcome(started, seconds, status, error, revision, url))
