"""The worker that stands in for a device: the real server's answers, the profile's capacity, and no torch."""

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import paced
from harness.cluster import ROOT, VENV_BIN
from harness.load import content
from harness.paced import Profile
from rerank_api import names, wire

FAST = Profile(tokens_per_second=1_000_000, batch_seconds=0.001, max_batch_tokens=1_000)


@pytest.mark.parametrize(
    ("profile", "capacity", "batch"),
    [
        (Profile(20_000, 0.002, 1_024), 1_024 / (0.002 + 1_024 / 20_000), 0.002 + 100 / 20_000),
        (Profile(20_000, 0.0, 1_024), 20_000, 100 / 20_000),
        (Profile(0, 0.01, 1_000), 100_000, 0.01),
        (Profile(0, 0.0), float("inf"), 0.0),
    ],
)
def test_profile(profile: Profile, capacity: float, batch: float):
    assert profile.capacity == pytest.approx(capacity)
    assert profile.seconds(100) == pytest.approx(batch)


@pytest.mark.parametrize("tokens", [1, 8, 9, 50, 110, 2_000, 2_017])
def test_content_costs_what_was_asked_for(tokens: int):
    body = json.loads(content("a/b", tokens))
    fixed = len(body["query"].split()) + 3
    cost = sum(fixed + len(text.split()) for text in body["documents"])
    # A pair has its query, its special tokens and a word at least.
    assert cost == max(tokens, fixed + 1)


def test_imports_no_torch():
    code = "import sys, harness.paced.server; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    assert subprocess.run([sys.executable, "-c", code], env=environment, timeout=60, check=False).returncode == 0


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[str]:
    """Base URL of a paced worker, started as a container is: by its name on the PATH."""
    environment = {
        **os.environ,
        **paced.environment(FAST, VENV_BIN),
        names.ENV_WORKER_CONFIG: json.dumps({"model": {"path": str(tmp_path)}}),
    }
    command = [paced.BIN / "rerank-worker", "serve", "--port", "0", "--lame-duck-seconds", "0"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        lines: list[dict[str, Any]] = []
        for line in process.stderr:
            lines.append(json.loads(line))
            if lines[-1]["message"] == "ready":
                break
        port = next((line["port"] for line in lines if line["message"] == "listening"), None)
        assert port, lines
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def test_serves_and_tells_its_capacity(worker: str):
    question = json.loads(content("", 500))
    body = json.dumps({"query": question["query"], "documents": question["documents"]}).encode()
    request = urllib.request.Request(worker + wire.SCORE_PATH, data=body)
    with urllib.request.urlopen(request, timeout=10) as response:
        answer = json.load(response)
        told = response.headers[wire.HEADER_CAPACITY]
    assert len(answer["scores"]) == len(question["documents"])
    assert answer["tokens"] == 500
    assert float(told) == pytest.approx(FAST.capacity, rel=0.01)
    with urllib.request.urlopen(worker + "/v1/info", timeout=10) as response:
        assert json.load(response)["engine"] == "paced"
