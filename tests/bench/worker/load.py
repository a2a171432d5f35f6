"""The load: clients in one light asyncio loop, with bodies encoded beforehand and answers looked at afterwards.

Closed loop: so many clients, each asks again when it has its answer. Open loop: requests leave at times fixed
beforehand, and their latency counts from that intended time, so a server that stalls cannot hide it.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp
import numpy as np

TIMEOUT = 300.0
HEADERS = {"Content-Type": "application/json"}


@dataclass(frozen=True, slots=True)
class Sample:
    """One request: which, when it should have left and when its answer was there (perf_counter), and the answer."""

    number: int
    intended: float
    ended: float
    status: int | None
    answer: bytes

    @property
    def seconds(self) -> float:
        return self.ended - self.intended


@dataclass(frozen=True, slots=True)
class Run:
    """``seconds``: from the first request's start to the last one's end; ``own_cpu``: of this process meanwhile."""

    samples: list[Sample]
    seconds: float
    own_cpu: float
    late: float = 0.0
    """Longest that a request of the open loop left after its time."""


def closed(url: str, bodies: Sequence[bytes], clients: int, requests: int) -> Run:
    """``requests`` requests by ``clients`` clients; ``bodies`` in turn."""
    return asyncio.run(_closed(url, bodies, clients, requests))


def open_loop(url: str, bodies: Sequence[bytes], rate: float, seconds: float, seed: int) -> Run:
    """Poisson arrivals at ``rate`` a second for ``seconds``; waits for the last answer."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, size=max(1, int(rate * seconds * 3) + 20))
    times = np.cumsum(gaps)
    return asyncio.run(_open(url, bodies, [float(at) for at in times[times < seconds]] or [0.0]))


async def _closed(url: str, bodies: Sequence[bytes], clients: int, requests: int) -> Run:
    numbers = iter(range(requests))
    samples: list[Sample] = []

    async def client(session: aiohttp.ClientSession) -> None:
        for number in numbers:
            samples.append(await _one(session, url, bodies, number, time.perf_counter()))

    async with _session() as session:
        cpu, begin = time.process_time(), time.perf_counter()
        await asyncio.gather(*(client(session) for _ in range(clients)))
        seconds, used = time.perf_counter() - begin, time.process_time() - cpu
    return Run(samples, seconds, used)


async def _open(url: str, bodies: Sequence[bytes], times: Sequence[float]) -> Run:
    late = 0.0
    async with _session() as session, asyncio.TaskGroup() as group:
        cpu, begin = time.process_time(), time.perf_counter()
        tasks = []
        for number, at in enumerate(times):
            await asyncio.sleep(max(0.0, begin + at - time.perf_counter()))
            late = max(late, time.perf_counter() - begin - at)
            tasks.append(group.create_task(_one(session, url, bodies, number, begin + at)))
        samples = [await task for task in tasks]
        seconds, used = time.perf_counter() - begin, time.process_time() - cpu
    return Run(samples, seconds, used, late)


def _session() -> aiohttp.ClientSession:
    timeout = aiohttp.ClientTimeout(total=TIMEOUT)
    return aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0), headers=HEADERS)


async def _one(
    session: aiohttp.ClientSession, url: str, bodies: Sequence[bytes], number: int, intended: float
) -> Sample:
    status, answer = None, b""
    try:
        async with session.post(url, data=bodies[number % len(bodies)]) as response:
            answer = await response.read()
            status = response.status
    except (aiohttp.ClientError, TimeoutError) as error:
        answer = type(error).__name__.encode()
    return Sample(number, intended, time.perf_counter(), status, answer)
