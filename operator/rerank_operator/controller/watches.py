"""Runs kopf, which keeps the watches, in a thread and event loop of its own, and starts it again when it fails.

Apart from the controller's loop for two reasons: kopf cancels every task of its loop when it stops, and each loop's
beat shows on its own whether it still turns.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import kopf

from rerank_operator.controller import handlers, metrics
from rerank_operator.controller.handlers import Sink
from rerank_operator.controller.leader import steady_clock

log = logging.getLogger(__name__)

LONGEST_DELAY = 30.0
STOP_SECONDS = 5.0


class Watches:
    def __init__(self, sink: Sink, served: Callable[[], Coroutine[Any, Any, bool]], namespaces: Sequence[str]) -> None:
        """``sink`` is called in the loop that calls ``start``; ``served``: whether the API has our kind by now."""
        self._sink = sink
        self._served = served
        self._namespaces = namespaces
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._main, name="watches", daemon=True)
        self._beat = steady_clock()
        self._home: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        self._home = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self) -> None:
        self._stop.set()
        await asyncio.to_thread(self._thread.join, STOP_SECONDS)

    def silence(self) -> float:
        """Seconds since the watching loop last turned."""
        return steady_clock() - self._beat

    def _main(self) -> None:
        asyncio.run(self._run())

    async def _run(self) -> None:
        beat = asyncio.create_task(self._keep_beating())
        delay = 1.0
        while not self._stop.is_set():
            started = steady_clock()
            try:
                await self._wait_until_served()
                await self._watch(beat)
            except Exception as error:  # whatever ends kopf, watching must go on
                log.error("the watches failed and are started again: %s: %s", type(error).__name__, error)
                log.debug("where they failed", exc_info=error)
                metrics.WATCH_RESTARTS.inc()
            delay = 1.0 if steady_clock() - started > LONGEST_DELAY else min(delay * 2, LONGEST_DELAY)
            await self._sleep(delay)
        beat.cancel()

    async def _keep_beating(self) -> None:
        while True:
            self._beat = steady_clock()
            await asyncio.sleep(1)

    async def _wait_until_served(self) -> None:
        assert self._home is not None
        while not self._stop.is_set():
            answer = asyncio.run_coroutine_threadsafe(self._served(), self._home)
            if await asyncio.wrap_future(answer):
                return
            await self._sleep(2.0)

    async def _sleep(self, seconds: float) -> None:
        await asyncio.to_thread(self._stop.wait, seconds)

    async def _watch(self, beat: asyncio.Task[None]) -> None:
        if self._stop.is_set():
            return
        tasks = await kopf.spawn_tasks(
            registry=handlers.registry(self._hand_over),
            settings=handlers.settings(),
            standalone=True,
            clusterwide=not self._namespaces,
            namespaces=self._namespaces,
            stop_flag=self._stop,
        )
        current = asyncio.current_task()
        await kopf.run_tasks(tasks, ignored={beat, current} if current else {beat})

    def _hand_over(self, *event: Any) -> None:
        assert self._home is not None
        self._home.call_soon_threadsafe(self._sink, *event)
