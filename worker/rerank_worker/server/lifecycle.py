"""Start, ready, drain, end: the worker's life, and what its probes say in each part of it.

The port is open from the start, so a long load never looks like a dead worker. On SIGTERM the worker stops being ready
at once, goes on accepting for a moment (the gateway may not know yet), finishes what it has and ends.
"""

import asyncio
import logging
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web
from rerank_api.worker_config import WorkerConfig

from rerank_worker.failures import EnvironmentFailure
from rerank_worker.loading.model import Loaded
from rerank_worker.loading.source import model_name
from rerank_worker.metrics import Metrics
from rerank_worker.scheduler import EngineThread
from rerank_worker.server.protocol import Refusal
from rerank_worker.server.routes import build_app
from rerank_worker.server.serving import Scorer

log = logging.getLogger(__name__)

WATCH_INTERVAL = 1.0
"""Seconds between looks at the engine thread."""

STOP_TIMEOUT = 5.0
"""Seconds that the engine thread gets to end once nothing waits."""


@dataclass(frozen=True, slots=True)
class Options:
    """How the process serves. ``lame_duck``: seconds that a draining worker still accepts; ``drain_timeout``: seconds
    after which it gives up on requests in flight (the kubelet's own grace period is usually shorter);
    ``waiting_tokens``: tokens in flight beyond which the worker says that it is busy."""

    host: str
    port: int
    threads: int
    lame_duck: float = 3.0
    drain_timeout: float = 630.0
    stall_limit: float = 60.0
    waiting_tokens: int = 2**20


class Server:
    """One worker. ``build`` loads the model in the engine thread."""

    def __init__(self, config: WorkerConfig, options: Options, build: Callable[[], Loaded]) -> None:
        self._config = config
        self._options = options
        self.metrics = Metrics()
        self._engine = EngineThread(build, self.metrics, options.stall_limit)
        self._scorer: Scorer | None = None
        self._info: dict[str, object] = {"model": model_name(config.model)}
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._refusing = False
        self._terminate = asyncio.Event()
        self._hurry = asyncio.Event()
        self._signals: list[signal.Signals] = []
        self._runner: web.AppRunner | None = None
        self.port = options.port

    # What the routes ask.

    def scorer(self) -> Scorer:
        if self._refusing:
            raise Refusal("unavailable", "the worker is shutting down: try another worker")
        if (problem := self._engine.unhealthy()) is not None:
            raise Refusal("unavailable", problem)
        if self._scorer is None:
            raise Refusal("unavailable", "the model is loading")
        return self._scorer

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
        return self._engine.unhealthy()

    def not_ready(self) -> str | None:
        if self._terminate.is_set():
            return "the worker is draining"
        return None if self._scorer is not None else "the model is loading"

    def info(self) -> dict[str, object]:
        return self._info

    # The worker's life.

    async def start(self) -> None:
        """Open the port and begin to load. Raises EnvironmentFailure when the port is not free."""
        self._runner = web.AppRunner(
            build_app(self), handler_cancellation=True, access_log=None, shutdown_timeout=STOP_TIMEOUT
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
        self._engine.start()
        log.info("listening", extra={"fields": {"host": self._options.host, "port": self.port}})

    async def become_ready(self) -> None:
        """Wait until the model has scored. Raises the StartupFailure that kept it from that."""
        started = time.monotonic()
        loaded = await asyncio.wrap_future(self._engine.loaded)
        seconds = time.monotonic() - started
        self.metrics.model_load.set(seconds)
        config = self._config
        self._info = {
            "namespace": config.namespace,
            "reranker": config.reranker,
            "revision": config.revision,
            **loaded.info,
        }
        self.metrics.info.info({key: str(self._info.get(key, "")) for key in ("device", "precision", "architecture")})
        self._scorer = Scorer(
            loaded,
            self._engine,
            self.metrics,
            temperature=config.temperature,
            long_documents=config.long_documents,
            threads=self._options.threads,
            waiting_tokens=self._options.waiting_tokens,
        )
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
        if self._scorer is not None and self._signals[:1] != [signal.SIGINT]:
            await _first_of(self._options.lame_duck, self._hurry)
        self._refusing = True
        await _first_of(self._options.drain_timeout, self._idle, self._hurry)
        if self._in_flight:
            log.warning("gave up on requests in flight", extra={"fields": {"in_flight": self._in_flight}})

    async def stop(self) -> None:
        """Close the port and end the engine thread; what still waits is answered with 503."""
        self._refusing = True
        self._engine.fail_all("the worker is shutting down")
        if self._runner is not None:
            await self._runner.cleanup()
        if self._scorer is not None:
            self._scorer.close()
            if not await asyncio.to_thread(self._engine.stop, STOP_TIMEOUT):
                log.warning("the engine thread did not end")

    async def watch_engine(self) -> None:
        """Answer those who wait on an engine that died or stalled."""
        while True:
            await asyncio.sleep(WATCH_INTERVAL)
            if (problem := self._engine.unhealthy()) is not None:
                log.error("the engine makes no progress", extra={"fields": {"problem": problem}})
                self._engine.fail_all(problem)

    async def run(self) -> int:
        """Serve until a signal asks to end; the exit code. Raises a StartupFailure when the worker cannot serve."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.terminate, number)
        await self.start()
        watching = asyncio.create_task(self.watch_engine())
        loading = asyncio.create_task(self.become_ready())
        terminating = asyncio.create_task(self._terminate.wait())
        try:
            await asyncio.wait({loading, terminating}, return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                loading.result()
            await terminating
            await self.drain()
        finally:
            for task in (watching, loading, terminating):
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
