"""Start, ready, drain, end: the worker's life, and what its probes say in each part of it.

The port is open from the start, so a long load never looks like a dead worker. On SIGTERM the worker stops being ready
at once, goes on accepting for a moment (the gateway may not know yet), finishes what it has and ends.
"""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiohttp import web
from rerank_api.worker_config import WorkerConfig

from rerank_worker import memory
from rerank_worker.failures import EnvironmentFailure
from rerank_worker.loading.model import Loaded
from rerank_worker.loading.source import model_name
from rerank_worker.metrics import Metrics
from rerank_worker.scheduler import EngineThread
from rerank_worker.server.admin import AdminRoutes, read_token
from rerank_worker.server.admission import Admission
from rerank_worker.server.models import Limits, Model, Models
from rerank_worker.server.protocol import Refusal
from rerank_worker.server.routes import build_app
from rerank_worker.server.serving import Scorer

if TYPE_CHECKING:
    from rerank_worker.tracing import Tracing

log = logging.getLogger(__name__)

WATCH_INTERVAL = 1.0
"""Seconds between looks at the engine thread."""

STOP_TIMEOUT = 5.0
"""Seconds that handlers get to send their answers when the port closes."""

_ENDING = "the worker is shutting down: try another worker"


@dataclass(frozen=True, slots=True)
class Options:
    """How the process serves. ``lame_duck``: seconds that a draining worker still accepts; ``drain_timeout``: seconds
    after which it gives up on requests in flight (the kubelet's own grace period is usually shorter);
    ``waiting_tokens``, ``waiting_bytes``: tokens, and bytes of bodies, in flight beyond which the worker says that it
    is busy; ``admin_token_file``, ``admin_token_sha256``: one of them at most, and with neither the admin calls are
    switched off."""

    host: str
    port: int
    threads: int
    lame_duck: float = 3.0
    drain_timeout: float = 630.0
    stall_limit: float = 60.0
    waiting_tokens: int = 2**20
    waiting_bytes: int = 2**28
    admin_token_file: str | None = None
    admin_token_sha256: str | None = None
    models: Limits = field(default_factory=Limits)


class Server:
    """One worker. ``config``: the model that it serves from the start; None: it stands by until it is given models.
    ``load`` builds a model in that model's engine thread; ``prepare`` does beforehand what all loads need, in a thread,
    and gives facts for /v1/info (when standing by only). ``tracing``: None: no traces are exported."""

    def __init__(
        self,
        config: WorkerConfig | None,
        options: Options,
        load: Callable[[WorkerConfig], Loaded],
        prepare: Callable[[], dict[str, object]] = dict,
        tracing: "Tracing | None" = None,
    ) -> None:
        # Threads are ours (one clone each); the library's own pool would compete with torch for the cores.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        self._config = config
        self._options = options
        self._prepare = prepare
        self.metrics = Metrics()
        self.tracing = tracing
        self.bodies = Admission(options.waiting_bytes, "bytes of bodies", self.metrics.waiting_bytes)
        self._admission = Admission(options.waiting_tokens, "tokens", self.metrics.waiting_tokens)
        self._threads = ThreadPoolExecutor(options.threads, thread_name_prefix="tokenize")
        self.models = Models(load, self._scorer, self.metrics, options.stall_limit, options.models)
        self._own = None if config is None else self.models.own(config)
        token = read_token(options.admin_token_file, options.admin_token_sha256)
        self._admin = AdminRoutes(self.models, token, self.metrics)
        self._live: Callable[[], dict[str, object]] = dict
        self._info: dict[str, object] = {"standby": True} if config is None else {"model": model_name(config.model)}
        self._prepared = False
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._refusing = False
        self._terminate = asyncio.Event()
        self._hurry = asyncio.Event()
        self._signals: list[signal.Signals] = []
        self._runner: web.AppRunner | None = None
        self.port = options.port

    def _scorer(self, config: WorkerConfig, loaded: Loaded, engine: EngineThread) -> Scorer:
        return Scorer(config, loaded, engine, self.metrics, self._admission, self._threads, self._options.threads)

    # What the routes ask.

    def model(self, key: str | None) -> Model:
        if self._refusing:
            raise Refusal("unavailable", _ENDING)
        if key is not None:
            return self.models.get(key)
        if self._own is None:
            raise Refusal(
                "unavailable",
                "this worker stands by without a model of its own: load one with PUT /v1/models/{key} and score at "
                "/v1/models/{key}/score",
            )
        return self._own

    def entered(self) -> None:
        self._in_flight += 1
        self._idle.clear()
        self.metrics.in_flight.set(self._in_flight)

    def left(self) -> None:
        self._in_flight -= 1
        if self._in_flight == 0:
            self._idle.set()
        self.metrics.in_flight.set(self._in_flight)

    def draining(self) -> bool:
        return self._terminate.is_set()

    def not_live(self) -> str | None:
        return self.models.unhealthy()

    def not_ready(self) -> str | None:
        if self._terminate.is_set():
            return "the worker is draining"
        if self._own is not None:
            return None if self._own.state == "ready" else "the model is loading"
        return None if self._prepared else "the libraries are loading"

    def info(self) -> dict[str, object]:
        return self._info | self._live()

    # The worker's life.

    async def start(self) -> None:
        """Open the port. Raises EnvironmentFailure when the port is not free."""
        self._runner = web.AppRunner(
            build_app(self, self._admin),
            handler_cancellation=True,
            access_log=None,
            shutdown_timeout=STOP_TIMEOUT,
            # Compressed bodies are refused; one that is broken, or in a form that it does not know, aiohttp would
            # answer in its own way.
            auto_decompress=False,
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._options.host, self._options.port)
        try:
            await site.start()
        except OSError as error:
            await self._runner.cleanup()
            raise EnvironmentFailure(
                f"cannot listen on {self._options.host}:{self._options.port}: {error.strerror}"
            ) from error
        self.port = self._runner.addresses[0][1]
        log.info("listening", extra={"fields": {"host": self._options.host, "port": self.port}})

    async def become_ready(self) -> None:
        """Load the model until it has scored, or do what all loads need. Raises the StartupFailure that kept it from
        that."""
        started = time.monotonic()
        if self._own is None or self._config is None:
            self._info = await asyncio.to_thread(self._prepare)
            self._prepared = True
            log.info("standing by", extra={"fields": {"seconds": round(time.monotonic() - started, 3)}})
            return
        loaded = await self.models.load_own(self._own)
        seconds = time.monotonic() - started
        self.metrics.model_load.set(seconds)
        config = self._config
        self._info = {
            "namespace": config.namespace,
            "reranker": config.reranker,
            "revision": config.revision,
            **loaded.info,
        }
        self._live = self._own.live
        facts = {key: self._info.get(key) for key in ("model", "device", "precision", "maxLength", "activation")}
        log.info("ready", extra={"fields": {**facts, "seconds": round(seconds, 3)}})

    def terminate(self, received: signal.Signals) -> None:
        """Begin to drain; asked again, stop waiting."""
        self._signals.append(received)
        self._terminate.set()
        log.info("received a signal", extra={"fields": {"signal": received.name, "in_flight": self._in_flight}})
        if len(self._signals) > 1:
            self._hurry.set()

    async def drain(self) -> None:
        """Accept a little longer, then finish what is in flight; a second signal ends the wait."""
        # A person at a terminal (SIGINT) has no gateway that would have to hear of it first; nor has a loading worker.
        if (self._own is None or self._own.state == "ready") and self._signals[:1] != [signal.SIGINT]:
            await _first_of(self._options.lame_duck, self._hurry)
        self._refusing = True
        self._admin.close(_ENDING)
        await _first_of(self._options.drain_timeout, self._idle, self._hurry)
        if self._in_flight:
            log.warning("gave up on requests in flight", extra={"fields": {"in_flight": self._in_flight}})

    async def stop(self) -> None:
        """Close the port and end the engine threads; what still waits, for scores or a load, is answered with 503."""
        self._refusing = True
        self._admin.close(_ENDING)
        self.models.end(_ENDING)
        self.models.fail_all(_ENDING)
        if self._runner is not None:
            await self._runner.cleanup()
        self._threads.shutdown(wait=False, cancel_futures=True)
        await self.models.stop()
        if self.tracing is not None:
            await self.tracing.close()

    async def watch_engine(self) -> None:
        """Answer those who wait on an engine that died or stalled."""
        while True:
            await asyncio.sleep(WATCH_INTERVAL)
            for model in self.models.all():
                if (problem := model.unhealthy()) is not None:
                    fields = {"key": model.key, "problem": problem}
                    log.error("the engine makes no progress", extra={"fields": fields})
                    self.models.fail_all(problem, [model])

    async def run(self) -> int:
        """Serve until a signal asks to end; the exit code. Raises a StartupFailure when the worker cannot serve."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.terminate, number)
        await self.start()
        watching = asyncio.create_task(self.watch_engine())
        tidying = asyncio.create_task(memory.keep_tidy())
        loading = asyncio.create_task(self.become_ready())
        terminating = asyncio.create_task(self._terminate.wait())
        try:
            await asyncio.wait({loading, terminating}, return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                loading.result()
            await terminating
            await self.drain()
        finally:
            for task in (watching, tidying, loading, terminating):
                task.cancel()
            await self.stop()
            log.info("stopped")
        return 128 + self._signals[-1] if self._hurry.is_set() else 0


async def _first_of(longest: float, *events: asyncio.Event) -> None:
    """Wait until one of ``events`` is set, ``longest`` seconds at most."""
    waits = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait(waits, timeout=longest, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
