"""When a CUDA graph is captured and what serves where none can be. Capturing itself needs a GPU and is not run here."""

from typing import Any

import pytest
import torch
from rerank_worker.engine.device import CAPTURING
from rerank_worker.engine.torch_flat.graphs import FAILURES, SEEN, Bucket, Graphs

BUCKET = Bucket(256, 8, 64)


class Host:
    def to(self, device: str, non_blocking: bool = False) -> "Host":
        return self


class Buffer:
    def copy_(self, host: Host, non_blocking: bool) -> None:
        """Where the graph reads its inputs."""


class Graph:
    def replay(self) -> None:
        """Writes the result."""


def make(monkeypatch: pytest.MonkeyPatch, *errors: Exception) -> tuple[Graphs, list[str]]:
    """Graphs whose first captures fail with ``errors``, and what is captured or run without a graph."""
    log: list[str] = []
    left = list(errors)

    def capture(self: Graphs, host: Any, bucket: Bucket) -> Any:
        log.append("capture")
        if left:
            raise left.pop(0)
        return Graph(), Buffer(), "replayed"

    def forward(buffer: Any, bucket: Bucket) -> Any:
        log.append("forward")
        return "forward"

    monkeypatch.setattr(Graphs, "_capture", capture)
    return Graphs(forward), log


def run(made: Graphs, bucket: Bucket = BUCKET) -> Any:
    host: Any = Host()
    return made.run(host, bucket)


def test_a_bucket_is_captured_once_when_it_was_seen_often(monkeypatch: pytest.MonkeyPatch) -> None:
    made, log = make(monkeypatch)
    assert [run(made) for _ in range(SEEN + 2)] == ["forward"] * SEEN + ["replayed"] * 2
    assert log == ["forward"] * SEEN + ["capture"]


def test_a_capture_that_fails_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made, log = make(monkeypatch, RuntimeError("operation not permitted"), torch.OutOfMemoryError("no room"))
    assert [run(made) for _ in range(SEEN + 3)] == ["forward"] * (SEEN + 2) + ["replayed"]
    assert log.count("capture") == 3


def test_captures_that_keep_failing_end(monkeypatch: pytest.MonkeyPatch) -> None:
    made, log = make(monkeypatch, *[RuntimeError("no")] * (FAILURES + 5))
    assert {run(made) for _ in range(SEEN + FAILURES + 5)} == {"forward"}
    assert log.count("capture") == FAILURES


def test_nothing_is_captured_beside_another_capture_or_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    made, log = make(monkeypatch)
    with CAPTURING:
        assert {run(made) for _ in range(SEEN + 3)} == {"forward"}
    assert "capture" not in log
    assert run(made) == "replayed"
