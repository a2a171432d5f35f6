"""The worker as a process, as the kubelet runs it: configured by its environment, ready, drained by SIGTERM."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import aiohttp
import pytest

T = TypeVar("T")


@pytest.mark.timeout(180)
async def test_from_start_to_sigterm(tiny_bert: Path) -> None:
    config = {"model": {"path": str(tiny_bert)}, "device": "cpu", "reranker": "products", "maxBatchTokens": 512}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "rerank_worker", "serve", "--port", "0", "--lame-duck-seconds", "2"),
        env=os.environ | {"RERANK_WORKER_CONFIG": json.dumps(config), "POD_IP": "127.0.0.1"},
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    lines: list[dict[str, object]] = []
    try:
        async with asyncio.timeout(150):
            while not lines or lines[-1]["message"] != "ready":
                line = await process.stderr.readline()
                assert line, lines
                lines.append(json.loads(line))
            port = next(line["port"] for line in lines if line["message"] == "listening")
            async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client:
                body = {"query": "q", "documents": ["some words here"] * 2000}
                request = asyncio.create_task(_post(client, body))
                await _until(lambda: _text(client, "/metrics"), lambda text: "_batch_pairs_count 0.0" not in text)
                process.send_signal(signal.SIGTERM)
                await _until(lambda: _status(client, "/readyz"), lambda status: status == 503)
                # The gateway may not know yet: what still comes is still served.
                status, scores = await _post(client, {"query": "q", "documents": ["a"]})
                assert (status, len(scores)) == (200, 1)
                status, scores = await request
                assert (status, len(scores)) == (200, 2000)
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    rest = [json.loads(line) for line in (await process.stderr.read()).splitlines()]
    assert rest[-1]["message"] == "stopped"


async def _post(client: aiohttp.ClientSession, body: object) -> tuple[int, list[float]]:
    async with client.post("/v1/score", json=body) as response:
        return response.status, (await response.json())["scores"]


async def _until(ask: Callable[[], Awaitable[T]], good: Callable[[T], bool]) -> None:
    """Ask until the answer is good; the caller's deadline ends it otherwise."""
    while not good(await ask()):  # noqa: ASYNC110 (another process is asked)
        await asyncio.sleep(0.01)


async def _text(client: aiohttp.ClientSession, path: str) -> str:
    async with client.get(path) as response:
        return await response.text()


async def _status(client: aiohttp.ClientSession, path: str) -> int:
    async with client.get(path) as response:
        return response.status
