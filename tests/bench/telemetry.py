"""What telemetry costs gateway and worker: throughput and CPU time with it on against off. JSON out.

    python tests/bench/telemetry.py [--rounds 10] [--seconds 3] [--parts counting gateway worker] [--json FILE]

Some of each, started once:

- off: no metric does anything (untold.py), no trace, no line a request, never scraped;
- off again: the same, to tell what is noise (gateway only);
- counted: metrics and a line a request, not scraped, no trace (gateway only);
- on: metrics scraped every 5 seconds, a line a request, 1 in 100 requests traced to a collector on loopback;
- traced: the same with every request traced.

Gateway: at full load, one after the other for half a second until each had its seconds of the round, with a core of its
own where there are two; 16 clients that ask for 50 documents, and a worker that answers at once (full_load.py). What
counts is requests a second, and the CPU time of the gateway's process a request.

Worker: 16 clients, the demo model on one core, the workers loaded in turn; what counts is pairs a second.

Each round goes the other way round. Ratios are of medians over the rounds, with the range of the rounds' own ratios.
Beside it the series of one Reranker with one revision at a gateway, and those of a worker. Counting: in this process,
what the gateway does for one request's metrics, its line and a trace that is not kept, and how long a scrape of 300
Rerankers holds requests up; the least of many rounds.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import aiohttp
import msgspec
from rerank_gateway import access, logs
from rerank_gateway.cluster.state import Policy, build_table
from rerank_gateway.metrics import Metrics
from rerank_gateway.record import Record
from rerank_gateway.tracing import Tracing

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import full_load
import gateway as gateways
from harness import figures
from harness.cluster import STATE, VENV_BIN, Cluster, devcluster, local_cluster
from harness.load import PAIR_WORDS, content
from rerank_api import wire
from worker.servers import Peer, Place, Server, cpu_seconds, free_port, ours

from worker import workload

CLIENTS = 16
SCRAPE_SECONDS = 5.0
UNTOLD = (sys.executable, Path(__file__).with_name("untold.py"))
WARM_UP_ROUNDS = 1
SLICE_SECONDS = 0.5
"""Of load on one gateway at a time: the machine's speed changes within seconds."""
REQUESTS = 16
"""Of a worker, in each round."""
METRICS_PATH = "/metrics"


class Variant(NamedTuple):
    name: str
    told: bool
    """Its metrics count, and its requests have lines."""
    scraped: bool
    traced: float
    """Share of the requests."""


VARIANTS = (Variant("off", False, False, 0.0), Variant("on", True, True, 0.01), Variant("traced", True, True, 1.0))
OF_GATEWAYS = (*VARIANTS, Variant("off again", False, False, 0.0), Variant("counted", True, False, 0.0))
RERANKERS = 300
COUNTED = 2000
"""Requests, in each of as many rounds as COUNTING_ROUNDS."""
COUNTING_ROUNDS = 40


PARTS = ["counting", "gateway", "worker"]


def main() -> int:
    parser = figures.parser(__doc__)
    parser.add_argument("--name", default="telemetry", help="the local cluster's name (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=10, help="(default: %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=3.0, help="of a gateway's load in a round (default: %(default)s)"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    found: dict[str, Any] = {}
    if "counting" in options.parts:
        found["counting"] = of_counting()
    if "gateway" in options.parts:
        found["gateway"] = of_gateways(options)
    if "worker" in options.parts:
        found["worker"] = of_workers(options)
    figures.publish(options, found)
    return 0


@contextlib.contextmanager
def collector() -> Generator[str]:
    """The endpoint of an OTLP collector, a process of its own that drops what it gets."""
    port = free_port()
    program = (
        "import sys\n"
        "from aiohttp import web\n"
        "async def take(request):\n"
        "    await request.read()\n"
        "    return web.Response()\n"
        "app = web.Application(client_max_size=2**26)\n"
        "app.router.add_post('/{path:.*}', take)\n"
        "web.run_app(app, host='127.0.0.1', port=int(sys.argv[1]), print=None, access_log=None)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(port)])
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(15)


def environment(variant: Variant, endpoint: str) -> dict[str, str]:
    if not variant.traced:
        return {}
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": str(variant.traced),
    }


def in_turn(variants: Sequence[Variant], number: int) -> Sequence[Variant]:
    """All of them in each round, each round the other way round."""
    return variants if number % 2 == 0 else variants[::-1]


def compared(values: Mapping[str, list[float]], unit: str) -> dict[str, Any]:
    """Medians, and each variant against off."""
    off = values["off"]
    found: dict[str, Any] = {"unit": unit, "rounds": len(off)}
    for name, own in values.items():
        ratios = [one / other for one, other in zip(own, off, strict=True)]
        found[name] = {
            "median": round(statistics.median(own), 4),
            "against_off": round(statistics.median(own) / statistics.median(off), 4),
            "against_off_by_round": [round(min(ratios), 4), round(max(ratios), 4)],
        }
    return found


@contextlib.asynccontextmanager
async def scraped(url: str | None) -> AsyncGenerator[None]:
    """Asks ``url`` for its metrics now and then; None: nothing is asked."""

    async def scrape(client: aiohttp.ClientSession, url: str) -> None:
        while True:
            async with client.get(url, headers={"Accept": "application/openmetrics-text"}) as response:
                await response.read()
            await asyncio.sleep(SCRAPE_SECONDS)

    async with aiohttp.ClientSession() as client:
        task = asyncio.create_task(scrape(client, url)) if url is not None else None
        try:
            yield
        finally:
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)


def of_counting() -> dict[str, Any]:
    figures.note("counting: in this process")
    policies = [Policy("bench", f"served-{number}", traffic=(("0000000000", 100),)) for number in range(RERANKERS)]
    metrics = Metrics(time.monotonic)
    metrics.update(build_table(policies, []))
    records = [
        Record(
            "0" * 32, "/v2/rerank", policy.namespace, policy.name, "0000000000", 200, body_bytes=20_000, documents=50,
            tokens=4_000, attempts=1, waited=0.001, priority="normal",
        )
        for policy in policies
    ]  # fmt: skip
    for record in records:
        metrics.answered(record, 0.02)
    one = records[0]
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        line = _least(lambda: logs.write(access._line(one, 0.02, 1.0)), COUNTED)
    unsampled = environment(Variant("unsampled", told=True, scraped=False, traced=1e-9), "http://127.0.0.1:9")
    with patch.dict(os.environ, unsampled):
        tracing = Tracing(time.monotonic)
    begun = _least(lambda: tracing.begin({}, "POST", "/v2/rerank", 1.0), COUNTED)
    asyncio.run(tracing.close())
    return {
        "unsampled_trace_us_a_request": round(1e6 * begun, 2),
        "metrics_us_a_request": round(1e6 * _least(lambda: metrics.answered(one, 0.02), COUNTED), 2),
        "line_us_a_request": round(1e6 * line, 2),
        "rerankers": RERANKERS,
        "scrape_holds_requests_up_ms": round(1e3 * _least(metrics.snapshot, 1), 2),
    }


def _least(act: Callable[[], object], times: int) -> float:
    """Seconds of CPU time that one ``act`` takes."""
    least = math.inf
    for _ in range(COUNTING_ROUNDS):
        before = time.process_time()
        for _ in range(times):
            act()
        least = min(least, (time.process_time() - before) / times)
    return least


def of_gateways(options: argparse.Namespace) -> dict[str, Any]:
    with contextlib.ExitStack() as stack:
        core = stack.enter_context(first_core_left_free())
        endpoint = stack.enter_context(collector())
        stack.callback(devcluster, "down", "--name", options.name)
        cluster = local_cluster(options.name)
        gateways.prepare(cluster, (sys.executable, full_load.__file__, str(gateways.DOCUMENTS)))
        started = {variant.name: stack.enter_context(_gateway(cluster, variant, endpoint)) for variant in OF_GATEWAYS}
        return asyncio.run(_gateway_rounds(options, started, core))


@contextlib.contextmanager
def _gateway(cluster: Cluster, variant: Variant, endpoint: str) -> Generator[tuple[int, str, str]]:
    figures.note(f"gateway {variant.name}")
    program = (VENV_BIN / "rerank-gateway",) if variant.told else (*UNTOLD, "gateway")
    flags = () if variant.told else ("--log-level", "warning")
    with gateways.gateway(
        cluster, program, flags, environment(variant, endpoint), variant.name.replace(" ", "-")
    ) as made:
        yield made


async def _gateway_rounds(
    options: argparse.Namespace, started: Mapping[str, tuple[int, str, str]], core: set[int]
) -> dict[str, Any]:
    body = content(f"{gateways.NAMESPACE}/served", gateways.DOCUMENTS * PAIR_WORDS)
    rates: dict[str, list[float]] = {name: [] for name in started}
    cpu: dict[str, list[float]] = {name: [] for name in started}
    async with gateways.session() as client, contextlib.AsyncExitStack() as scrapes:
        for pid, api, _ in started.values():
            await gateways.serving(client, f"{api}/v2/rerank", body)
            _move(pid, core)
        for variant in OF_GATEWAYS:
            if variant.scraped:
                await scrapes.enter_async_context(scraped(f"{started[variant.name][2]}{METRICS_PATH}"))
        for number in range(WARM_UP_ROUNDS + options.rounds):
            figures.note(f"gateway: round {number + 1 - WARM_UP_ROUNDS} of {options.rounds}")
            sums = await _slices(started, body, options.seconds)
            for name, (answered, took, cpu_took) in sums.items() if number >= WARM_UP_ROUNDS else ():
                rates[name].append(answered / took)
                cpu[name].append(1000 * cpu_took / answered)
        series = await _series(client, f"{started['on'][2]}{METRICS_PATH}", 'reranker="served"')
    return {
        "series_a_reranker": series,
        "throughput": compared(rates, "requests a second"),
        "cpu_a_request": compared(cpu, "ms of the gateway's process"),
    }


async def _slices(
    started: Mapping[str, tuple[int, str, str]], body: bytes, seconds: float
) -> dict[str, tuple[float, float, float]]:
    """Of each gateway the requests answered, the seconds and the CPU seconds that they took."""
    sums = dict.fromkeys(started, (0.0, 0.0, 0.0))
    for number in range(max(1, round(seconds / SLICE_SECONDS))):
        for variant in in_turn(OF_GATEWAYS, number):
            pid, api, _ = started[variant.name]
            cpu, began = cpu_seconds(pid), time.monotonic()
            answered = await full_load.ask(f"{api}/v2/rerank", body, CLIENTS, SLICE_SECONDS)
            more = answered, time.monotonic() - began, cpu_seconds(pid) - cpu
            before = sums[variant.name]
            sums[variant.name] = before[0] + more[0], before[1] + more[1], before[2] + more[2]
    return sums


def _move(pid: int, cores: set[int]) -> None:
    """All threads of a process."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), cores)


@contextlib.contextmanager
def first_core_left_free() -> Generator[set[int]]:
    """By this process and what it starts, where there are others. The core."""
    cores = os.sched_getaffinity(0)
    first = {min(cores)}
    _move(os.getpid(), cores - first or cores)
    try:
        yield first
    finally:
        _move(os.getpid(), cores)


async def _series(client: aiohttp.ClientSession, url: str, named: str = "") -> int:
    """Series at ``url`` that have ``named`` among their labels."""
    async with client.get(url) as response:
        text = await response.text()
    return sum(not line.startswith("#") and named in line for line in text.splitlines())


def of_workers(options: argparse.Namespace) -> dict[str, Any]:
    model = STATE / "models" / "demo-reranker"
    bodies = [
        msgspec.json.encode({"query": request.query, "documents": request.documents})
        for request in workload.build(model, REQUESTS)
    ]
    with contextlib.ExitStack() as stack:
        endpoint = stack.enter_context(collector())
        servers: dict[str, Server] = {}
        for variant in VARIANTS:
            figures.note(f"worker {variant.name}")
            log = STATE / "bench" / f"telemetry-{variant.name}.log"
            server = Server(_worker(variant), Place(model, model, free_port(), 1), log, environment(variant, endpoint))
            servers[variant.name] = stack.enter_context(server)
        return asyncio.run(_worker_rounds(options, servers, bodies))


def _worker(variant: Variant) -> Peer:
    peer = ours("worker", ("--precision", "float32"))
    if variant.told:
        return peer

    def untold(place: Place) -> Sequence[str | Path]:
        python, _, module, *arguments = peer.command(place)
        assert module == "rerank_worker"
        return [python, *UNTOLD[1:], "worker", *arguments]

    return dataclasses.replace(peer, command=untold)


async def _worker_rounds(
    options: argparse.Namespace, servers: Mapping[str, Server], bodies: Sequence[bytes]
) -> dict[str, Any]:
    pairs: dict[str, list[float]] = {variant.name: [] for variant in VARIANTS}
    cpu: dict[str, list[float]] = {variant.name: [] for variant in VARIANTS}
    async with gateways.session() as client:
        for server in servers.values():
            await _load(client, server, bodies)
        for number in range(options.rounds):
            figures.note(f"worker: round {number + 1} of {options.rounds}")
            for variant in in_turn(VARIANTS, number):
                server = servers[variant.name]
                metrics = f"http://127.0.0.1:{server.place.port}{METRICS_PATH}"
                async with scraped(metrics if variant.scraped else None):
                    before = cpu_seconds(server.pid)
                    seconds = await _load(client, server, bodies)
                scored = len(bodies) * workload.DOCUMENTS
                pairs[variant.name].append(scored / seconds)
                cpu[variant.name].append(1000 * (cpu_seconds(server.pid) - before) / scored)
        series = await _series(client, f"http://127.0.0.1:{servers['on'].place.port}{METRICS_PATH}")
    return {
        "series_a_worker": series,
        "throughput": compared(pairs, "pairs/s"),
        "cpu_a_pair": compared(cpu, "ms of the worker's process"),
    }


async def _load(client: aiohttp.ClientSession, server: Server, bodies: Sequence[bytes]) -> float:
    """Seconds that all ``bodies`` take from CLIENTS clients; every round asks for the same."""
    waiting = iter(bodies)

    async def one() -> None:
        for body in waiting:
            # All at once are minutes of work where others use the cores too.
            async with client.post(server.url, data=body, headers={wire.HEADER_TIMEOUT: "600000"}) as response:
                assert response.status == 200, await response.text()
                await response.read()

    began = time.monotonic()
    await asyncio.gather(*(one() for _ in range(CLIENTS)))
    return time.monotonic() - began


if __name__ == "__main__":
    sys.exit(main())
