"""Faults that are injected into workers are what their text says, and come on time."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness.cluster import wait_for
from harness.faults import sitecustomize
from harness.faults.sitecustomize import Fault, parse

SERVER = """
import sys
from aiohttp import web

async def score(request):
    return web.json_response({"scores": [1]})

async def health(request):
    return web.Response()

app = web.Application()
app.router.add_post("/v1/score", score)
app.router.add_get("/healthz", health)
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)
"""


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("slow=0.05", Fault(slow=0.05)),
        ("errors=0.02,slow=1", Fault(slow=1, errors=0.02)),
        ("crash=0", Fault(crash=0)),
    ],
)
def test_the_text_of_a_fault(text: str, fault: Fault):
    assert parse(text) == fault


@pytest.mark.parametrize("text", ["", "fast=1", "slow", "errors=often"])
def test_a_text_that_says_nothing_is_refused(text: str):
    with pytest.raises(ValueError, match=r".+"):
        parse(text)


@pytest.mark.parametrize(("share", "first"), [(0.02, 50), (0.1, 10), (1.0, 1), (0.5, 2)])
def test_every_so_many_th_request_fails(share: float, first: int):
    failed = [number for number in range(1, 1001) if Fault(errors=share).fails(number)]
    assert failed == list(range(first, 1001, first))


def test_none_fails_without_a_share():
    assert not any(Fault().fails(number) for number in range(1, 1001))


@contextmanager
def serving(fault: str) -> Generator[tuple[str, subprocess.Popen[bytes]]]:
    """A server that Python starts as it would a worker."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = str(Path(sitecustomize.__file__).parent)
    env = {**os.environ, "PYTHONPATH": folder, sitecustomize.VARIABLE: fault}
    with subprocess.Popen([sys.executable, "-c", SERVER, str(port)], env=env, stderr=subprocess.DEVNULL) as process:
        try:
            yield f"http://127.0.0.1:{port}", process
        finally:
            process.kill()


def ask(url: str, data: bytes | None = None) -> int:
    try:
        with urllib.request.urlopen(url, data, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def test_a_server_has_the_fault_where_it_scores_and_nowhere_else():
    with serving("errors=0.5,slow=0.05,crash=5") as (url, process):
        wait_for("the server", lambda: ask(f"{url}/healthz") == 200, timeout=30)
        assert [ask(f"{url}/healthz") for _ in range(4)] == [200] * 4
        began = time.monotonic()
        assert [ask(f"{url}/v1/score", b"{}") for _ in range(4)] == [200, 500, 200, 500]
        assert time.monotonic() - began >= 0.2
        assert ask(f"{url}/v1/score", b"{}") == 0
        assert process.wait(10) == sitecustomize.EXIT_CODE


def test_a_server_that_crashes_never_answers():
    with serving("crash=0") as (_, process):
        assert process.wait(30) == sitecustomize.EXIT_CODE
