"""What the gateway costs: added latency, requests/s of a core, memory of held requests. JSON out.

    python tests/bench/gateway.py [--requests 500] [--seconds 10] [--held 10000] [--json FILE]

On a local cluster of its own (``--name``): a real gateway process that watches it, and a paced worker that takes no
time for a batch (HTTP, tokenizing and batching are the worker's own), both on loopback, without an operator.

- latency: one client asks the worker directly and through the gateway in turn, with the same 50 documents; the
  difference of the quantiles is what the gateway adds, both HTTP hops and decoding and encoding of the body included.
- rate: 16 clients ask as fast as they are answered; requests are divided by the CPU time that the gateway process took,
  which does not depend on who else has the cores.
- held: so many requests for a Reranker without workers; memory of the gateway process when all of them wait, and after
  they have gone away.
"""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from rerank_api import names, wire
from rerank_api.worker_config import ModelSource, WorkerConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness import figures, paced
from harness.cluster import ROOT, STATE, VENV_BIN, Cluster, CommandError, devcluster, local_cluster, wait_for
from harness.load import PAIR_WORDS, content
from harness.release import is_ready
from worker.servers import cpu_seconds, free_port, rss_bytes

NAMESPACE = "bench"
DOCUMENTS = 50
CLIENTS = 16
INSTANT = paced.Profile(tokens_per_second=0, batch_seconds=0, max_batch_tokens=65_536)
WARM_UP = 50
OPENED_AT_ONCE = 200
HOLD_DEADLINE = 180.0


def main() -> int:
    parser = figures.parser(__doc__)
    parser.add_argument("--name", default="e6-gateway", help="the local cluster's name (default: %(default)s)")
    parser.add_argument("--keep", action="store_true", help="leave the cluster up")
    parser.add_argument("--requests", type=int, default=500, help="on each way, for the latency (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of full load (default: %(default)s)")
    parser.add_argument("--held", type=int, default=10_000, help="requests held at once (default: %(default)s)")
    options = parser.parse_args()
    try:
        cluster = local_cluster(options.name)
        worker = prepare(cluster)
        with gateway(cluster) as (pid, api, admin):
            measured = asyncio.run(bench(options.requests, options.seconds, options.held, pid, worker, api, admin))
    finally:
        if not options.keep:
            devcluster("down", "--name", options.name)
    figures.publish(options, {"worker": "PACED: a batch takes no time", **measured})
    return 0


def prepare(cluster: Cluster, command: Sequence[str] = ("rerank-worker", "serve")) -> str:
    """Two Rerankers that nobody reconciles: ``served``, with a worker, and ``asleep``, without. The worker's URL.
    ``command``: what runs as the worker."""
    figures.note("cluster: definitions, Rerankers, worker")
    for file in sorted((ROOT / "crds").glob("*.yaml")):
        cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", file)
    cluster.kubectl("wait", "--for=condition=Established", "crd/rerankers.rerank.dev", "--timeout=30s")
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    wait_for(
        "the namespace's service account",
        lambda: cluster.kubectl("get", "serviceaccount", "default", "-n", NAMESPACE).stdout,
        timeout=30,
    )
    uri = f"file://{STATE / 'models' / 'demo-reranker'}"
    for name in ("served", "asleep"):
        cluster.apply(
            {
                "apiVersion": names.API_VERSION,
                "kind": names.KIND,
                "metadata": {"name": name, "namespace": NAMESPACE},
                "spec": {
                    "model": {"uri": uri},
                    "requests": {"timeout": "10m", "wakeTimeout": "10m", "queueLimit": 100_000},
                },
            }
        )
    config = WorkerConfig(ModelSource(path=str(STATE / "models" / "demo-reranker")), max_delay_seconds=0.0)
    cluster.apply(worker_pod(config, command))

    def address() -> str | None:
        pod = cluster.get("pod", "served", "-n", NAMESPACE)
        return pod["status"]["podIP"] if is_ready(pod) else None

    return f"http://{wait_for('the worker', address, timeout=60)}:{names.WORKER_PORT}{wire.SCORE_PATH}"


def worker_pod(config: WorkerConfig, command: Sequence[str]) -> dict[str, Any]:
    variables = paced.environment(INSTANT, VENV_BIN) | {
        names.ENV_WORKER_CONFIG: msgspec.json.encode(config).decode(),
        "OMP_NUM_THREADS": "1",
    }
    labels = {
        names.LABEL_NAME: names.APP_NAME,
        names.LABEL_COMPONENT: names.COMPONENT_WORKER,
        names.LABEL_MANAGED_BY: names.MANAGED_BY,
        names.LABEL_RERANKER: "served",
        names.LABEL_REVISION: "0000000000",
    }
    address = {"name": names.ENV_POD_IP, "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
    container = {
        "name": names.WORKER_CONTAINER,
        "image": "paced",
        "command": list(command),
        "env": [address, *({"name": name, "value": value} for name, value in variables.items())],
        "readinessProbe": {"httpGet": {"path": wire.READY_PATH, "port": names.WORKER_PORT}, "periodSeconds": 1},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "served", "namespace": NAMESPACE, "labels": labels},
        "spec": {"containers": [container], "terminationGracePeriodSeconds": 5},
    }


@contextlib.contextmanager
def gateway(
    cluster: Cluster,
    program: Sequence[str | Path] = (VENV_BIN / "rerank-gateway",),
    flags: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    label: str = "gateway",
) -> Generator[tuple[int, str, str]]:
    """A gateway process: its pid, its API's and its admin port's base URL."""
    figures.note("gateway: starting")
    port, admin_port = free_port(), free_port()
    log = STATE / "clusters" / f"{cluster.name}-{label}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*program, "--host", "127.0.0.1", "--port", str(port), "--admin-port", str(admin_port),
             "--kubeconfig", cluster.kubeconfig, "--max-held-bytes", "2Gi", "--shutdown-delay", "0",
             "--drain-timeout", "5", *flags],
            env=os.environ | dict(environment or {}), stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        yield process.pid, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{admin_port}"
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(15)


async def bench(
    requests: int, seconds: float, held: int, pid: int, worker: str, api: str, admin: str
) -> dict[str, Any]:
    question = json.loads(content("model", DOCUMENTS * PAIR_WORDS))
    direct = json.dumps({"query": question["query"], "documents": question["documents"]}).encode()
    through = content(f"{NAMESPACE}/served", DOCUMENTS * PAIR_WORDS)
    url = f"{api}/v2/rerank"
    async with session() as client:
        await serving(client, url, through)
        figures.note(f"latency: {requests} requests on each way, one at a time")
        latency = await added_latency(client, worker, direct, url, through, requests)
        figures.note(f"rate: {CLIENTS} clients for {seconds:g} s")
        rate = await rate_of_a_core(client, url, through, seconds, pid)
    figures.note(f"held: {held} requests for a Reranker without workers")
    memory = await held_requests(url, admin, held, pid)
    return {
        "documents_a_request": len(question["documents"]),
        "body_bytes": len(through),
        "latency": latency,
        "rate": rate,
        "held": memory,
    }


@contextlib.asynccontextmanager
async def session() -> AsyncGenerator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=600),
        headers={"Content-Type": "application/json"},
    ) as client:
        yield client


async def ask(client: aiohttp.ClientSession, url: str, body: bytes) -> float:
    """Seconds that the answer took. Raises CommandError for any but 200."""
    began = time.perf_counter()
    async with client.post(url, data=body) as response:
        text = await response.read()
        if response.status != 200:
            raise CommandError(f"{url}: {response.status} {text[:300]!r}")
    return time.perf_counter() - began


async def serving(client: aiohttp.ClientSession, url: str, body: bytes) -> None:
    """Until the gateway listens, knows the Rerankers and has its worker."""
    async with asyncio.timeout(60):
        while True:
            try:
                await ask(client, url, body)
                return
            except (aiohttp.ClientError, CommandError):
                await asyncio.sleep(0.2)


async def added_latency(
    client: aiohttp.ClientSession, worker: str, direct: bytes, url: str, through: bytes, requests: int
) -> dict[str, Any]:
    ways: dict[str, tuple[str, bytes]] = {"direct": (worker, direct), "gateway": (url, through)}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(WARM_UP + requests):
        # In turn, so that whatever else the machine does meets both ways.
        for name, (where, body) in ways.items():
            took = await ask(client, where, body)
            if number >= WARM_UP:
                times[name].append(took)
    found: dict[str, Any] = {name: figures.spread(values) for name, values in times.items()}
    for share in ("p50", "p99"):
        found[f"added_{share}_ms"] = round(found["gateway"][f"{share}_ms"] - found["direct"][f"{share}_ms"], 3)
    return found


async def rate_of_a_core(
    client: aiohttp.ClientSession, url: str, body: bytes, seconds: float, pid: int
) -> dict[str, Any]:
    end = time.monotonic() + seconds
    times: list[float] = []

    async def one() -> None:
        while time.monotonic() < end:
            times.append(await ask(client, url, body))

    began, gateway_before, own_before = time.monotonic(), cpu_seconds(pid), time.process_time()
    await asyncio.gather(*(one() for _ in range(CLIENTS)))
    took, cpu = time.monotonic() - began, cpu_seconds(pid) - gateway_before
    return {
        "clients": CLIENTS,
        "requests": len(times),
        "requests_per_second": round(len(times) / took, 1),
        "gateway_cpu_seconds": round(cpu, 2),
        "requests_per_second_of_a_core": round(len(times) / cpu, 1),
        "gateway_cpu_ms_per_request": round(1000 * cpu / len(times), 3),
        "client_cpu_seconds": round(time.process_time() - own_before, 2),
        "latency": figures.spread(times),
    }


async def held_requests(url: str, admin: str, count: int, pid: int) -> dict[str, Any]:
    body = content(f"{NAMESPACE}/asleep", DOCUMENTS * PAIR_WORDS)
    before = rss_bytes(pid)
    ended: list[str] = []

    async def hold(client: aiohttp.ClientSession) -> None:
        async with client.post(url, data=body) as response:
            ended.append(f"{response.status} {(await response.text())[:200]}")

    async with session() as client:
        began = time.monotonic()
        tasks: list[asyncio.Task[None]] = []
        while len(tasks) < count:
            more = min(OPENED_AT_ONCE, count - len(tasks))
            tasks += [asyncio.create_task(hold(client)) for _ in range(more)]
            while await waiting(client, admin) + len(ended) < len(tasks):
                if time.monotonic() - began > HOLD_DEADLINE:
                    raise CommandError(
                        f"only {await waiting(client, admin)} of {len(tasks)} requests wait; {ended[:3]}"
                    )
                await asyncio.sleep(0.05)
        filled = time.monotonic() - began
        full, waits = rss_bytes(pid), await waiting(client, admin)
        figures.note(f"held: {waits} wait; letting them go")
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        began = time.monotonic()
        while await waiting(client, admin):
            if time.monotonic() - began > HOLD_DEADLINE:
                raise CommandError("requests still wait, though their clients have gone")
            await asyncio.sleep(0.1)
        emptied = time.monotonic() - began
        # Part of what is measured, memory two seconds later: allocators give back when they like, and nothing tells.
        await asyncio.sleep(2)
        after = rss_bytes(pid)
    return {
        "asked": count,
        "waiting": waits,
        "answered_early": ended[:5],
        "answered_early_count": len(ended),
        "body_bytes": len(body),
        "mib_before": round(before / 2**20, 1),
        "mib_full": round(full / 2**20, 1),
        "mib_after": round(after / 2**20, 1),
        "kib_per_request": round((full - before) / 2**10 / max(1, waits), 2),
        "fill_seconds": round(filled, 1),
        "empty_seconds": round(emptied, 1),
    }


async def waiting(client: aiohttp.ClientSession, admin: str) -> int:
    """Requests that wait for ``asleep``, as the gateway's own metric says."""
    async with client.get(f"{admin}/metrics") as response:
        text = await response.text()
    for line in text.splitlines():
        if line.startswith("rerank_gateway_waiting_requests{") and 'reranker="asleep"' in line:
            return int(float(line.rpartition(" ")[2]))
    return 0


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
