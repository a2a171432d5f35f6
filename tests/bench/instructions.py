"""Instructions that the gateway takes for a request, with telemetry on and off. JSON out, some minutes.

    python tests/bench/instructions.py [--requests 256] [--slices 4] [--rate 1447] [--json FILE]

For differences of some percent, which throughput does not show where the machine's speed changes within seconds: how
fast the cores are changes no instruction count. How many requests come together does, and that changes with who else
runs: between slices, and so between runs, a percent or two are chance. valgrind's callgrind counts; the kernel's own
work (a write, a send) is not in it, nor what a cache miss costs.

A real gateway process for each mode, one after the other; API server, worker and collector are stand-ins in this
process. 16 clients ask for 50 documents, the same requests in each mode:

- off: no metric does anything (untold.py), no trace, no line a request;
- counted: metrics and a line a request, as installed;
- unsampled: traces are exported too, and none is kept;
- traced: every request is, and its spans are sent when a batch is full, never because time has passed: a gateway is
  fifty times slower here, and would send fifty times as often.

A mode's figure is the median of its slices: about once in 1,500 requests Python looks at all objects, which takes as
long as twenty requests, in every mode. Computed from these is what the throughput bench measures as "on": 1 in 100
traced, and a scrape every 5 seconds at the requests a second that --rate says.
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import shutil
import statistics
import sys
import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from rerank_api import names

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import full_load
import gateway as gateways
from harness import figures
from harness.cluster import VENV_BIN
from harness.load import PAIR_WORDS, content
from telemetry import CLIENTS, METRICS_PATH, SCRAPE_SECONDS, UNTOLD, Variant, environment
from worker.servers import free_port

MODES = {
    "off": Variant("off", told=False, scraped=False, traced=0.0),
    "counted": Variant("counted", told=True, scraped=True, traced=0.0),
    "unsampled": Variant("unsampled", told=True, scraped=True, traced=1e-9),
    "traced": Variant("traced", told=True, scraped=True, traced=1.0),
}
SHARE_TRACED = 0.01
SCRAPES = 5
WARM_UP = 100
START_SECONDS = 300.0
"""In which a gateway must have started, and a slice be done."""
WORKER_HOST = "127.83.0.1"
"""Its port is fixed: an address that nothing else is likely to have."""
# A batch of spans is sent every so many; the queue must not overflow while the thread that sends is slow.
BATCHES = {"OTEL_BSP_SCHEDULE_DELAY": "3600000", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "256"}


def main() -> int:
    parser = figures.parser(__doc__)
    parser.add_argument("--requests", type=int, default=256, help="in a slice (default: %(default)s)")
    parser.add_argument("--slices", type=int, default=4, help="of each mode (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=1447.0, help="requests a second (default: %(default)s)")
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=list(MODES))
    options = parser.parse_args()
    missing = [name for name in ("valgrind", "callgrind_control") if shutil.which(name) is None]
    if missing:
        print(f"{' and '.join(missing)} not on PATH: install the package valgrind", file=sys.stderr)
        return 1
    figures.publish(options, asyncio.run(measure(options)))
    return 0


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {}
    async with _surroundings() as around:
        for mode in options.modes:
            figures.note(f"{mode}: starting")
            found[mode] = await _of_mode(MODES[mode], around, options)
            if "off" in found:
                found[mode]["against_off"] = round(found[mode]["a_request"] / found["off"]["a_request"], 4)
    if set(found) == set(MODES):
        off, unsampled, traced = (found[mode]["a_request"] for mode in ("off", "unsampled", "traced"))
        scrapes = found["unsampled"]["a_scrape"] / (options.rate * SCRAPE_SECONDS)
        on = unsampled + SHARE_TRACED * (traced - unsampled) + scrapes
        found["on, computed"] = {"a_request": round(on), "against_off": round(on / off, 4)}
    return found


@contextlib.asynccontextmanager
async def _surroundings() -> AsyncGenerator[str]:
    """Stand-ins for the API server, which knows one Reranker and its worker, and for the collector. Their URL."""
    reranker = {
        "metadata": {"namespace": gateways.NAMESPACE, "name": "served", "resourceVersion": "1"},
        "spec": {"model": {"uri": "file:///model"}, "requests": {"timeout": "10m", "queueLimit": 100_000}},
    }
    pod = {
        "metadata": {
            "namespace": gateways.NAMESPACE,
            "name": "served",
            "uid": "served",
            "labels": {names.LABEL_RERANKER: "served", names.LABEL_REVISION: "0000000000"},
        },
        "status": {"podIP": WORKER_HOST, "conditions": [{"type": "Ready", "status": "True"}]},
    }
    objects = {names.PLURAL: [reranker], "pods": [pod]}

    async def get(request: web.Request) -> web.StreamResponse:
        if "watch" not in request.query:
            items = objects.get(request.path.rpartition("/")[2], [])
            return web.json_response({"metadata": {"resourceVersion": "1"}, "items": items})
        silent = web.StreamResponse()
        await silent.prepare(request)
        await asyncio.sleep(float(request.query.get("timeoutSeconds", 30)))
        return silent

    async def take(request: web.Request) -> web.Response:
        await request.read()
        return web.Response()

    app = web.Application(client_max_size=2**26)
    app.router.add_get("/{path:.*}", get)
    app.router.add_post("/{path:.*}", take)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    worker = asyncio.create_task(full_load.serve(WORKER_HOST, gateways.DOCUMENTS))
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)
        await runner.cleanup()


async def _of_mode(mode: Variant, around: str, options: argparse.Namespace) -> dict[str, Any]:
    body = content(f"{gateways.NAMESPACE}/served", gateways.DOCUMENTS * PAIR_WORDS)
    with tempfile.TemporaryDirectory() as folder:
        async with _gateway(mode, around, Path(folder)) as (counter, api, admin), gateways.session() as client:
            asked = f"{api}/v2/rerank"
            async with asyncio.timeout(START_SECONDS):
                await _ready(client, f"{admin}/readyz")
                await full_load.ask_times(asked, body, CLIENTS, WARM_UP)
            await counter.since_last()
            slices = []
            for number in range(options.slices):
                figures.note(f"{mode.name}: slice {number + 1} of {options.slices}")
                async with asyncio.timeout(START_SECONDS):
                    await full_load.ask_times(asked, body, CLIENTS, options.requests)
                slices.append(round(await counter.since_last() / options.requests))
            for _ in range(SCRAPES):
                async with client.get(admin + METRICS_PATH, headers={"Accept": "application/openmetrics-text"}) as page:
                    await page.read()
            scrape = round(await counter.since_last() / SCRAPES)
    return {"a_request": statistics.median_low(slices), "slices": slices, "a_scrape": scrape}


class _Counter:
    """Of a process under callgrind, which writes its counts to files that begin with ``out``."""

    def __init__(self, pid: int, out: Path) -> None:
        self._pid = pid
        self._out = out
        self._dumps = 0

    async def since_last(self) -> int:
        """Instructions of all its threads since it was asked before."""
        self._dumps += 1
        control = await asyncio.create_subprocess_exec(
            "callgrind_control", "--dump", str(self._pid),
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        async with asyncio.timeout(60):
            if await control.wait() != 0:
                raise RuntimeError(f"callgrind_control cannot reach process {self._pid}")
            while True:
                file = self._out.with_suffix(f".{self._dumps}")
                totals = re.search(r"^totals: (\d+)$", file.read_text() if file.exists() else "", re.MULTILINE)
                if totals is not None:
                    return int(totals[1])
                await asyncio.sleep(0.1)


@contextlib.asynccontextmanager
async def _gateway(mode: Variant, around: str, folder: Path) -> AsyncGenerator[tuple[_Counter, str, str]]:
    """A gateway that is counted: its counter, its API's and its admin port's base URL."""
    port, admin = free_port(), free_port()
    program = (sys.executable, VENV_BIN / "rerank-gateway") if mode.told else (*UNTOLD, "gateway")
    flags = () if mode.told else ("--log-level", "warning")
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            "valgrind", "--tool=callgrind", f"--callgrind-out-file={folder / 'counts'}",
            f"--log-file={folder / 'valgrind'}", *program, "--host", "127.0.0.1", "--port", str(port),
            "--admin-port", str(admin), "--kubeconfig", _kubeconfig(folder, around), "--shutdown-delay", "0",
            "--drain-timeout", "1", *flags,
            env=os.environ | environment(mode, around) | BATCHES | {"PYTHONHASHSEED": "0"},
            stdout=log, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
    try:
        yield (
            _Counter(process.pid, folder / "counts"),
            f"http://127.0.0.1:{port}",
            f"http://127.0.0.1:{admin}",
        )
    finally:
        process.kill()  # all that was wanted of it is written
        await process.wait()


def _kubeconfig(folder: Path, server: str) -> Path:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    file = folder / "kubeconfig"
    file.write_text(json.dumps(config))
    return file


async def _ready(client: aiohttp.ClientSession, url: str) -> None:
    while True:
        with contextlib.suppress(aiohttp.ClientError):
            async with client.get(url) as response:
                if response.status == 200:
                    return
        await asyncio.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main())
