"""The worker as a process, as the kubelet runs it: configured by its environment, ready, drained by SIGTERM."""

import asyncio
import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import pytest

from .conftest import save_model

T = TypeVar("T")


HEAPS = """
import ctypes, os, sys, threading
from rerank_worker.engine import process
process.prepare()
together = threading.Barrier(8)
def work():
    together.wait()
    blocks = [bytes(4000) for _ in range(1000)]
    together.wait()
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
libc = ctypes.CDLL(None)
libc.fdopen.restype = ctypes.c_void_p
libc.malloc_info.argtypes = [ctypes.c_int, ctypes.c_void_p]
out = libc.fdopen(sys.stdout.fileno(), b"w")
libc.malloc_info(0, out)
libc.fflush(None)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_info"), reason="malloc is not glibc's")
def test_threads_share_two_heaps_so_that_large_documents_leave_little_behind() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}
    done = subprocess.run(
        [sys.executable, "-c", HEAPS], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert 1 <= done.stdout.count("<heap nr=") <= 2


TIDY = """
import asyncio
from rerank_worker import memory
from rerank_worker.engine import process
process.keep_freed_memory()

async def main():
    blocks = [bytes(2048) for _ in range(100_000)]
    kept = blocks[::50]  # so that no heap is free at its end
    del blocks
    before = memory.taken()
    tidying = asyncio.create_task(memory.keep_tidy(pause=0.01))
    async with asyncio.timeout(30):
        while memory.taken() > before - 100 * 2**20:
            await asyncio.sleep(0.01)
    tidying.cancel()
    print(len(kept))

asyncio.run(main())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="malloc is not glibc's")
def test_what_lies_free_between_small_blocks_is_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", TIDY], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "2000", done.stderr


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


@pytest.mark.timeout(240)
async def test_a_standing_by_worker_is_given_models_and_gives_their_memory_back(
    tiny_bert: Path, tmp_path: Path
) -> None:
    big = tmp_path / "big"
    save_model(big, hidden_size=64, intermediate_size=100_000)  # 100 MB that the first pair needs
    token = tmp_path / "token"
    token.write_text("secret")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "rerank_worker", "serve", "--standby", "--port", "0", "--max-model-bytes", "500000000"),
        env=os.environ | {"RERANK_ADMIN_TOKEN_FILE": str(token), "POD_IP": "127.0.0.1"},
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    lines: list[dict[str, Any]] = []
    try:
        async with asyncio.timeout(200):
            while not lines or lines[-1]["message"] != "standing by":
                line = await process.stderr.readline()
                assert line, lines
                lines.append(json.loads(line))
            port = next(line["port"] for line in lines if line["message"] == "listening")
            headers = {"Authorization": "Bearer secret"}
            async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", headers=headers) as client:
                assert await _status(client, "/readyz") == 200
                facts = [await _put(client, key, tiny_bert) for key in ("a", "b")]
                parts = facts[1]["facts"]["loadSecondsOf"]
                assert {"read", "import", "build", "warmUp", "measure", "verify"} <= parts.keys()
                body = {"query": "q", "documents": ["some words here", "others"]}
                scores = [await _post(client, body, f"/v1/models/{key}/score") for key in ("a", "b")]
                assert scores[0] == scores[1]
                assert scores[0][0] == 200
                await _put(client, "c", big)
                await _delete(client, "c")
                before = _resident(process.pid)
                loaded = await _put(client, "c", big)
                grown = _resident(process.pid)
                assert grown - before > 60e6
                assert loaded["memoryBytes"] > 60e6
                await _delete(client, "c")
                assert grown - _resident(process.pid) > 60e6
                assert await _post(client, body, "/v1/models/a/score") == scores[0]
            process.send_signal(signal.SIGTERM)
            # Nothing more was said than fits into the pipe.
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def _put(client: aiohttp.ClientSession, key: str, folder: Path) -> dict[str, Any]:
    config = {"model": {"path": str(folder)}, "device": "cpu"}
    async with client.put(f"/v1/models/{key}", json=config) as response:
        answer = await response.json()
        assert response.status == 200, answer
        return answer


async def _delete(client: aiohttp.ClientSession, key: str) -> None:
    async with client.delete(f"/v1/models/{key}") as response:
        assert response.status == 200, await response.text()


async def _post(client: aiohttp.ClientSession, body: object, path: str = "/v1/score") -> tuple[int, list[float]]:
    async with client.post(path, json=body) as response:
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
