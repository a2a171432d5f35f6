"""/healthz, /readyz and /metrics on one port. /healthz asks for progress; an API server that is away does not fail it.

Read-only: nothing here changes anything, and nothing about users' data is shown.
"""

from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest


def application(trouble: Callable[[], str | None], ready: Callable[[], bool]) -> web.Application:
    async def healthz(_: web.Request) -> web.Response:
        found = trouble()
        return web.Response(text=found or "ok", status=500 if found else 200)

    async def readyz(_: web.Request) -> web.Response:
        if ready():
            return web.Response(text="ok")
        return web.Response(text="the cluster has not been listed yet", status=503)

    async def metrics(_: web.Request) -> web.Response:
        trouble()  # brings the gauges that are read on demand up to date
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", metrics)
    return app


async def serve(app: web.Application, host: str, port: int) -> web.AppRunner:
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    return runner
