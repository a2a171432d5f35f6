"""Starts and ends the page. An edge: where the page cannot be had, the operator goes on without it and says so."""

import asyncio
import logging

from aiohttp import web

from rerank_operator.page.app import application
from rerank_operator.page.sampling import Sampling

log = logging.getLogger(__name__)

IDLE_SECONDS = 15.0
"""After which a connection that asks for nothing is closed."""
CLOSE_SECONDS = 1.0
"""For what is being answered when the process ends."""


class Page:
    """The page while it runs."""

    def __init__(self, runner: web.AppRunner, sampling: asyncio.Task[None]) -> None:
        self._runner = runner
        self._sampling = sampling

    @property
    def port(self) -> int:
        return self._runner.addresses[0][1]

    async def close(self) -> None:
        await self._runner.cleanup()
        self._sampling.cancel()
        await asyncio.wait([self._sampling], timeout=CLOSE_SECONDS)


async def start(sampling: Sampling, host: str, port: int) -> Page | None:
    """None: nobody can listen there, for the reason that the log tells."""
    runner = web.AppRunner(
        application(sampling),
        access_log=None,
        handle_signals=False,
        keepalive_timeout=IDLE_SECONDS,
        shutdown_timeout=CLOSE_SECONDS,
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        log.warning("there is no page, for --page-host and --page-port cannot be listened on: %s", error)
        await runner.cleanup()
        return None
    return Page(runner, asyncio.create_task(sampling.run(), name="page"))
