"""Puts the gateway together and runs it until it is told to stop.

Going down: not ready at once, but serving until every client and proxy has noticed; then no new connection, what is in
flight ends, and the process exits.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
from aiohttp import web

from rerank_gateway import forwarding, logs
from rerank_gateway.access import AccessLine, observe_requests
from rerank_gateway.answers import AnswerLog, add_answers
from rerank_gateway.auth import ApiKeys, require_key
from rerank_gateway.body import HeldBytes
from rerank_gateway.cache import Caches
from rerank_gateway.capture import Capture
from rerank_gateway.cluster.state import Key
from rerank_gateway.cluster.watch import Source
from rerank_gateway.connections import Runner
from rerank_gateway.demand import Demand, add_demand
from rerank_gateway.ending import Ending
from rerank_gateway.errors import ApiError, errors_as_json
from rerank_gateway.health import HEALTH_PATH, add_health, add_metrics, add_readiness, unready
from rerank_gateway.metrics import Metrics
from rerank_gateway.mirroring import Mirroring
from rerank_gateway.routes import add_routes
from rerank_gateway.routing import Limits
from rerank_gateway.scoring import Scoring
from rerank_gateway.serving import Serving
from rerank_gateway.trace import pass_on
from rerank_gateway.waiting import Queues

if TYPE_CHECKING:
    from rerank_gateway.tracing import Tracing

log = logging.getLogger(__name__)

BACKLOG = 1024
# Before the end of a drain: time in which those who still wait get an answer.
LAST_WORDS = 1.0
# Longer than the idle time of common proxies in front, so that they close idle connections and not we.
KEEPALIVE_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Options:
    host: str = ""
    """Empty: all addresses, of both families. kubectl port-forward comes to localhost."""
    port: int = 8080
    admin_port: int = 9090
    api_keys_file: Path | None = None
    limits: Limits = field(default_factory=Limits)
    max_held_bytes: int = 2**30
    max_cache_bytes: int = 2**27
    """Of the result caches of all Rerankers together."""
    access_log_sample: float = 1.0
    """Share, 0 to 1, of the good answers in time that get their line in the log."""
    shutdown_delay: float = 5.0
    drain_timeout: float = 30.0


class Gateway:
    def __init__(
        self,
        options: Options,
        source: Source,
        clock: Callable[[], float],
        wall: Callable[[], float] = time.time,
        tracing: "Tracing | None" = None,
        write: Callable[[AccessLine], None] = logs.write,
    ) -> None:
        """``clock``: the event loop's; ``wall``: Unix time; ``tracing``: None where no traces are exported; ``write``:
        takes the lines about requests."""
        self.draining = False
        self._options = options
        self._source = source
        self._clock = clock
        self._tracing = tracing
        self._write = write
        self._queues = Queues(options.limits, clock, wall)
        self._caches = Caches(options.max_cache_bytes, clock)
        self._demand = Demand(self._queues, wall)
        self._answers = AnswerLog(self._demand.gateway, clock)
        self._held = HeldBytes(options.max_held_bytes)
        self._metrics = Metrics(clock, wall)
        self._metrics.observe(
            self._queues,
            lambda: source.table,
            self._caches,
            held_bytes=lambda: self.held_bytes,
            demand_readers=lambda: self._demand.readers,
            ready=lambda: unready(source, self.draining) is None,
        )
        self._capture = Capture(self._metrics, clock)
        self._ending = Ending()
        self._session: aiohttp.ClientSession | None = None
        self._mirroring: Mirroring | None = None
        self._api: web.AppRunner | None = None
        self._admin: web.AppRunner | None = None
        self._queues.on_change = self._demand.touched
        # In this order: the demand is told from the queues.
        for listener in (
            self._queues.update,
            self._demand.update,
            self._caches.update,
            self._answers.update,
            self._metrics.update,
            self._capture.update,
        ):
            source.subscribe(listener)

    @property
    def api_port(self) -> int:
        return _port(self._api)

    @property
    def admin_port(self) -> int:
        return _port(self._admin)

    @property
    def held_bytes(self) -> int:
        return self._held.held

    async def start(self) -> None:
        self._session = forwarding.open_session()
        forwarder = forwarding.Forwarder(self._session, self._metrics, self._answers, self._clock)
        self._mirroring = Mirroring(forwarder, self._answers, self._held, self._metrics, self._capture, self._clock)
        scoring = Scoring(self._queues, forwarder, self._mirroring, self._caches, self._capture, self._clock)
        serving = Serving(self._source, scoring, self._held, self._metrics, self._clock)
        options = self._options

        admin = web.Application(middlewares=[errors_as_json])
        add_health(admin, self._source, self._clock)
        add_readiness(admin, self._source, lambda: self.draining)
        add_metrics(admin, self._metrics, self._source)
        add_demand(admin, self._demand)
        add_answers(admin, self._answers)
        self._admin = await _listen(admin, options.host, options.admin_port, shutdown_timeout=1.0)

        begin = pass_on if self._tracing is None else self._tracing.begin
        observed = observe_requests(
            self._metrics,
            self._clock,
            lambda: self.draining,
            frozenset({HEALTH_PATH}),
            begin,
            self._threshold,
            self._write,
            options.access_log_sample,
        )
        middlewares = [observed, errors_as_json, self._ending.middleware]
        if options.api_keys_file is not None:
            middlewares.append(require_key(ApiKeys(options.api_keys_file, self._clock), frozenset({HEALTH_PATH})))
        api = web.Application(middlewares=middlewares)
        add_health(api, self._source, self._clock)
        add_routes(api, serving, self._source)
        self._api = await _listen(api, options.host, options.port, shutdown_timeout=options.drain_timeout)
        log.info("listening on %s:%d, health and metrics on port %d", options.host, self.api_port, self.admin_port)

    async def stop(self, hurry: asyncio.Event) -> None:
        """Drains and closes; ``hurry`` ends the wait for clients to notice."""
        self.draining = True
        if self._mirroring is not None:
            await self._mirroring.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._options.shutdown_delay):
                await hurry.wait()
        if self._api is not None:
            # What nobody has begun to score by then is told so, rather than cut off: its client tries another gateway.
            last_call = max(0.0, self._options.drain_timeout - LAST_WORDS)
            loop = asyncio.get_running_loop()
            loop.call_later(last_call, self._refuse_waiting)
            loop.call_later(self._options.drain_timeout, self._ending.cut)
            await self._api.cleanup()
        if self._admin is not None:
            await self._admin.cleanup()
        if self._session is not None:
            await self._session.close()
        await self._capture.close()
        if self._tracing is not None:
            await self._tracing.close()

    def _threshold(self, key: Key) -> float:
        """Seconds from which on an answer is late; infinite for what is no Reranker."""
        route = self._source.table.routes.get(key)
        return route.policy.objectives.threshold if route is not None else math.inf

    def _refuse_waiting(self) -> None:
        for _, queue in self._queues:
            message = "the gateway is going down and no worker was free in time: send the request again"
            queue.refuse_all(ApiError(503, "shutting_down", message, retry_after=1))


async def _listen(app: web.Application, host: str, port: int, shutdown_timeout: float) -> web.AppRunner:
    runner = Runner(
        app,
        access_log=None,
        handler_cancellation=True,  # a client that goes away frees its place and its worker
        auto_decompress=False,
        keepalive_timeout=KEEPALIVE_SECONDS,
        shutdown_timeout=shutdown_timeout,
    )
    await runner.setup()
    await web.TCPSite(runner, host, port, backlog=BACKLOG).start()
    return runner


def _port(runner: web.AppRunner | None) -> int:
    assert runner is not None, "not started"
    return runner.addresses[0][1]
