"""What ranks a golden set, as far as the operator sees it: the API that holds the set, and a worker's own protocol."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from rerank_operator.controller.api import ApiError

QUERIES = [{"query": f"q{n}", "documents": ["good", "bad"], "labels": [1, 0]} for n in range(20)]


class Api:
    """Has one ConfigMap, by whatever name, or none. ``error`` is what it says instead."""

    def __init__(self) -> None:
        self.data: dict[str, str] | None = {"golden.json": json.dumps({"queries": QUERIES})}
        self.version = 1
        self.error: Exception | None = None
        self.asked = 0

    async def get(self, kind: object, namespace: str, name: str) -> dict[str, Any]:
        self.asked += 1
        if self.error is not None:
            raise self.error
        if self.data is None:
            raise ApiError(404, "NotFound", "there is none")
        return {"metadata": {"resourceVersion": str(self.version)}, "data": self.data}

    def change(self, text: str) -> None:
        self.data, self.version = {"golden.json": text}, self.version + 1


class Worker:
    """Ranks rightly, once it may ``go``."""

    def __init__(self) -> None:
        self.asked = 0
        self.go = asyncio.Event()
        self.go.set()

    async def score(self, request: web.Request) -> web.Response:
        self.asked += 1
        await self.go.wait()
        texts = (await request.json())["documents"]
        return web.json_response({"scores": [1.0 if text == "good" else 0.0 for text in texts], "tokens": 1})


@asynccontextmanager
async def listening(*routes: web.RouteDef) -> AsyncGenerator[str]:
    """The address at which ``routes`` are answered."""
    app = web.Application()
    app.router.add_routes(routes)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
