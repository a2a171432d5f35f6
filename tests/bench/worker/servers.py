"""The servers that are compared: how each is started, asked and stopped, and with which settings.

One runs at a time, on loopback. A server is ended by its own pid and never by name.
"""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[3]
BENCH = ROOT / ".state" / "bench"
BARE = Path(__file__).parent / "peers" / "bare.py"
START_TIMEOUT = 300.0
STOP_TIMEOUT = 20.0
TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


class ServerFailed(Exception):
    """A server that did not start; the message has the end of its log."""


@dataclass(frozen=True)
class Place:
    """Where and on what a server runs."""

    folder: Path
    onnx: Path
    port: int
    threads: int


@dataclass(frozen=True)
class Peer:
    """``settings``: for the record; ``exact``: its scores must equal the reference's."""

    name: str
    python: Path
    command: Callable[[Place], Sequence[str | Path]]
    ready: str
    path: str
    body: Callable[[str, Sequence[str]], dict[str, Any]]
    scores: Callable[[Any, int], list[float]]
    settings: Mapping[str, Any]
    packages: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    exact: bool = True

    def available(self) -> str | None:
        """What is missing to run it; None when nothing is."""
        return None if self.python.exists() else f"{self.name} is not installed: run with --setup"

    def versions(self) -> dict[str, str]:
        if not self.packages:
            return {}
        code = "import sys, json, importlib.metadata as m; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
        out = subprocess.run([self.python, "-c", code, *self.packages], capture_output=True, check=True, timeout=60)
        return json.loads(out.stdout)


def _plain(query: str, documents: Sequence[str]) -> dict[str, Any]:
    return {"query": query, "documents": list(documents)}


def _plain_scores(answer: Any, count: int) -> list[float]:
    return answer["scores"]


def _indexed(results: Sequence[Mapping[str, Any]], key: str, count: int) -> list[float]:
    scores = [float("nan")] * count
    for result in results:
        scores[result["index"]] = result[key]
    return scores


def ours(name: str, flags: Sequence[str]) -> Peer:
    """This project's worker with ``flags`` of its command line."""
    python = Path(sys.executable)
    return Peer(
        name=name,
        python=python,
        command=lambda place: [
            *(python, "-m", "rerank_worker", "serve", "--model", place.folder, "--port", str(place.port)),
            *("--threads", str(place.threads), "--lame-duck-seconds", "0"),
            *(() if "--device" in flags else ("--device", "cpu")),
            *flags,
        ],
        ready="/readyz",
        path="/v1/score",
        body=_plain,
        scores=_plain_scores,
        settings={"server": "rerank-worker serve", "flags": " ".join(flags) or "defaults"},
        packages=("torch", "transformers", "onnxruntime", "openvino"),
        exact=not any(word in flags for word in ("bfloat16", "int8", "float16")),
    )


def bare(name: str, python: Path, engine: str, batch: int, onnx: bool, packages: Sequence[str], what: str) -> Peer:
    return Peer(
        name=name,
        python=python,
        command=lambda place: [
            *(python, BARE, engine, "--folder", place.onnx if onnx else place.folder),
            *("--port", str(place.port), "--threads", str(place.threads), "--batch", str(batch)),
        ],
        ready="/readyz",
        path="/v1/score",
        body=_plain,
        scores=_plain_scores,
        settings={"server": "bare aiohttp, one model thread", "engine": what, "batch": batch},
        packages=packages,
    )


def infinity() -> Peer:
    python = BENCH / "infinity" / "bin" / "python"
    flags = ("--engine", "torch", "--device", "cpu", "--no-vector-disk-cache", "--log-level", "warning")
    return Peer(
        name="infinity",
        python=python,
        command=lambda place: [
            *(python.with_name("infinity_emb"), "v2", "--model-id", place.folder),
            *("--host", "127.0.0.1", "--port", str(place.port), *flags),
        ],
        ready="/health",
        path="/rerank",
        body=_plain,
        scores=lambda answer, count: _indexed(answer["results"], "relevance_score", count),
        settings={
            "server": "infinity_emb v2",
            "flags": " ".join(flags),
            "note": "its defaults (batch 32); without its cache on disk, which would answer repeated texts unscored",
        },
        packages=("infinity-emb", "torch", "transformers", "sentence-transformers"),
        environment={"DO_NOT_TRACK": "1"},
    )


def tei(binary: Path) -> Peer:
    """text-embeddings-router, where there is one (it is not on PyPI); ONNX backend."""
    flags = ("--max-client-batch-size", "64", "--auto-truncate")
    return Peer(
        name="tei",
        python=binary,
        command=lambda place: [
            *(binary, "--model-id", place.onnx, "--hostname", "127.0.0.1", "--port", str(place.port)),
            *flags,
        ],
        ready="/health",
        path="/rerank",
        body=lambda query, documents: {"query": query, "texts": list(documents), "raw_scores": False},
        scores=lambda answer, count: _indexed(answer, "score", count),
        settings={"server": "text-embeddings-router", "flags": " ".join(flags)},
    )


def known(tei_binary: Path | None) -> dict[str, Peer]:
    here = Path(sys.executable)
    st_onnx = BENCH / "st-onnx" / "bin" / "python"
    peers = [
        ours("ours", ("--precision", "float32")),
        ours("ours-bf16", ("--precision", "bfloat16")),
        ours("ours-int8", ("--precision", "int8")),
        bare(
            "st",
            here,
            "crossencoder",
            32,
            False,
            ("sentence-transformers", "torch", "transformers"),
            "sentence-transformers CrossEncoder.predict, its defaults",
        ),
        bare(
            "st-onnx-8",
            st_onnx,
            "crossencoder-onnx",
            8,
            True,
            ("sentence-transformers", "optimum-onnx", "onnxruntime", "transformers"),
            "sentence-transformers CrossEncoder.predict, backend onnx",
        ),
        bare("ort-4", here, "ort-sorted", 4, True, ("onnxruntime",), "ONNX Runtime by hand, a request's pairs sorted"),
        infinity(),
    ]
    if tei_binary is not None:
        peers.append(tei(tei_binary))
    return {peer.name: peer for peer in peers}


class Server:
    """``with Server(peer, place, log) as server``: started and ready; ended with the block. Raises ServerFailed."""

    def __init__(self, peer: Peer, place: Place, log: Path, environment: Mapping[str, str] | None = None) -> None:
        self.peer, self.place, self._log = peer, place, log
        self._environment = environment or {}
        self.url = f"http://127.0.0.1:{place.port}{peer.path}"
        self.start_seconds = 0.0
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        threads = str(self.place.threads)
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "TQDM_DISABLE": "1",
            **self.peer.environment,
            **self._environment,
        }
        begin = time.monotonic()
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("wb") as log:
            command = [str(word) for word in self.peer.command(self.place)]
            self._process = subprocess.Popen(
                command, cwd=BENCH, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        try:
            self._wait(begin + START_TIMEOUT)
        except BaseException:
            self._stop()
            raise
        self.start_seconds = time.monotonic() - begin
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def get(self, path: str) -> Any:
        """A JSON answer of the server; None where it has none."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.place.port}{path}", timeout=5) as response:
                return json.load(response)
        except (OSError, ValueError):
            return None

    def _wait(self, deadline: float) -> None:
        while time.monotonic() < deadline:
            if not self.alive():
                break
            with suppress(OSError, urllib.error.URLError):
                url = f"http://127.0.0.1:{self.place.port}{self.peer.ready}"
                with urllib.request.urlopen(url, timeout=5) as response:
                    if response.status == 200:
                        return
            time.sleep(0.1)
        state = "did not get ready in time" if self.alive() else "ended"
        tail = self._log.read_text(encoding="utf-8", errors="replace")[-1500:]
        raise ServerFailed(f"{self.peer.name} {state}; its log ends with:\n{tail}")

    def _stop(self) -> None:
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_TIMEOUT)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def cpu_seconds(pid: int) -> float:
    """CPU time that the process ``pid`` and its descendants have used."""
    return sum(sum(_stat(one)[2:6]) for one in _tree(pid)) / TICKS


def rss_bytes(pid: int) -> int:
    """Resident memory of the process ``pid`` and its descendants; pages that they share count for each."""
    return sum(_stat(one)[6] for one in _tree(pid)) * PAGE


def _tree(pid: int) -> list[int]:
    parents = {int(path.name): _stat(int(path.name))[1] for path in Path("/proc").iterdir() if path.name.isdigit()}
    found, frontier = [pid], [pid]
    while frontier:
        frontier = [child for child, parent in parents.items() if parent in frontier]
        found += frontier
    return found


def _stat(pid: int) -> tuple[int, int, int, int, int, int, int]:
    """pid, parent, user, system, children's user and system ticks, resident pages; nought for one that has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return pid, 0, 0, 0, 0, 0, 0
    # After the last parenthesis: a process name may hold anything.
    fields = text.rpartition(")")[2].split()
    return pid, int(fields[1]), int(fields[11]), int(fields[12]), int(fields[13]), int(fields[14]), int(fields[21])
