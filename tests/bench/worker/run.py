"""The worker against its peers, over HTTP on loopback, on the same cores: one command, JSON and tables.

    python tests/bench/worker/run.py [--shape minilm-l6 minilm-l12 bge-base] [--json FILE] [--floor]

One server runs at a time. Rounds go through all peers by turns, so that drift of the machine hits all alike. Each peer
must give the plain model's scores before it is timed. What runs beside the bench is measured too and stands in the
JSON: figures of a busy machine are noise. README.md beside this file says what is measured and how.
"""

import argparse
import datetime
import json
import math
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import load
import report
import servers
import shapes
import workload
from servers import Peer, Place, Server, ServerFailed
from shapes import NotReady

HERE = Path(__file__).parent
TOLERANCE = 1e-3
"""Largest difference of a score (0 to 1) from the plain model's; more is another computation, not a peer."""

CHECKED = 2
"""Requests whose scores are compared: 100 pairs."""

WARM_DOCUMENTS = 10
WARM_SECONDS = 3.0
SETTLE_SECONDS = 60.0
OPEN_SHARE_OF = 4
"""The capacity for the open loop is what so many clients of the closed loop reached in the same round."""

DEFAULTS: dict[str, tuple[tuple[str, ...], int, tuple[int, ...]]] = {
    "minilm-l6": (("ours", "ours-int8", "st", "st-onnx-8", "ort-4", "infinity"), 3, (1, 4, 16)),
    "minilm-l12": (("ours", "ours-int8", "st-onnx-8", "ort-4"), 2, (1, 4)),
    "bge-base": (("ours", "ours-int8", "st-onnx-8", "ort-4"), 2, (1,)),
}
"""Peers, rounds and closed-loop clients of each shape: by their rates about 18, 4 and 4 minutes on two cores."""


@dataclass(frozen=True)
class Plan:
    """What is measured of each peer in each round."""

    concurrency: Sequence[int]
    seconds: float
    documents: int
    open_share: float
    open_seconds: float
    open_peers: frozenset[str]


@dataclass
class Texts:
    """The workload as this peer wants it, encoded."""

    requests: list[workload.Request]
    bodies: list[bytes]
    warm: list[bytes]


def main() -> int:
    options = arguments()
    signal.signal(signal.SIGTERM, _end)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    if options.setup:
        subprocess.run([HERE / "setup.sh"], check=True)
    names = list(DEFAULTS) if options.shape == ["all"] else options.shape
    result: dict[str, Any] = {
        "benchmark": "tests/bench/worker",
        "command": " ".join(sys.argv[1:]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(),
        "cores": options.cores,
        "shapes": {},
    }
    known = servers.known(options.tei)
    for name, flags in options.variant:
        known[name] = servers.ours(name, shlex.split(flags))
    try:
        for name in names:
            peers, rounds, concurrency = DEFAULTS[name]
            wanted = options.peers or [
                *peers,
                *[extra for extra, _ in options.variant],
                *(["tei"] if options.tei else []),
            ]
            if unknown := set(wanted) - known.keys():
                raise NotReady(f"no such peer: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
            plan = Plan(
                concurrency=options.concurrency or concurrency,
                seconds=options.seconds,
                documents=options.documents,
                open_share=options.open_share,
                open_seconds=options.open_seconds,
                open_peers=frozenset(options.open_peers if name == "minilm-l6" or options.peers else ()),
            )
            measure_shape(name, [known[peer] for peer in wanted], options.rounds or rounds, plan, options, result)
    except NotReady as problem:
        print(problem, file=sys.stderr)
        return 2
    print(report.tables(result, options.floor))
    if options.floor:
        return int(any(row["holds"] is False for shape in result["shapes"].values() for row in shape["floors"]))
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=[*DEFAULTS, "all"], default=["minilm-l6"])
    parser.add_argument("--peers", nargs="+", help="default: those of the shape (ours-bf16 only when asked for)")
    parser.add_argument("--rounds", type=int, help="default: 3 for minilm-l6, else 2")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each closed loop, at least (default: 6)")
    parser.add_argument(
        "--concurrency", nargs="+", type=int, help="clients (default: 1 4 16; minilm-l12 1 4; bge-base 1)"
    )
    parser.add_argument("--documents", type=int, default=workload.DOCUMENTS, help="a request (default: 50)")
    parser.add_argument("--open-share", type=float, default=0.7, help="of the peer's own capacity (default: 0.7)")
    parser.add_argument("--open-seconds", type=float, default=20.0, help="of arrivals; 0: no open loop (default: 20)")
    parser.add_argument("--open-peers", nargs="*", default=["ours", "infinity"], help="default: ours infinity")
    parser.add_argument("--cores", type=int, default=2, help="for servers and load together (default: 2)")
    parser.add_argument("--variant", type=_variant, action="append", default=[], metavar="NAME=FLAGS")
    parser.add_argument("--tei", type=Path, help="a text-embeddings-router, to be measured beside the others")
    parser.add_argument("--setup", action="store_true", help="install the peers first (setup.sh)")
    parser.add_argument("--floor", action="store_true", help="also the table of what must hold; exit code 1 if not all")
    parser.add_argument("--json", type=Path, help="write everything measured here, anew after each round")
    return parser.parse_args()


def _variant(text: str) -> tuple[str, str]:
    name, equals, flags = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError("write it as NAME=FLAGS, such as 'openvino=--backend openvino'")
    return name, flags


def _end(number: int, _frame: FrameType | None) -> None:
    # So that the server that runs is ended too.
    sys.exit(128 + number)


def measure_shape(
    name: str, peers: Sequence[Peer], rounds: int, plan: Plan, options: argparse.Namespace, result: dict[str, Any]
) -> None:
    """All rounds of one shape into ``result``. Raises NotReady."""
    if missing := [problem for peer in peers if (problem := peer.available())]:
        raise NotReady("; ".join(missing))
    folder = shapes.folder(name)
    onnx = shapes.onnx(name, servers.BENCH / "st-onnx" / "bin" / "python")
    requests = workload.build(folder, documents=plan.documents)
    mean = round(sum(request.tokens for request in requests) / (len(requests) * plan.documents))
    expected = reference(folder, requests[:CHECKED])
    shape: dict[str, Any] = {
        "rounds": rounds,
        "workload": workload.describe(requests),
        "peers": {peer.name: {**peer.settings, "versions": peer.versions()} for peer in peers},
        "agreement": {},
        "left_out": {},
        "limits": [],
        "measurements": [],
        "info": {},
    }
    result["shapes"][name] = shape
    for number in range(rounds):
        place = Place(folder, onnx, 0, options.cores)
        shape["limits"].append({"round": number, **limits(place, mean)})
        # Another one first in each round: no peer always follows the same other.
        for peer in [*peers[number % len(peers) :], *peers[: number % len(peers)]]:
            if peer.name in shape["left_out"]:
                continue
            note(f"{name}: round {number + 1} of {rounds}: {peer.name}")
            log = servers.BENCH / "logs" / f"{name}-{peer.name}.log"
            texts = encode(peer, requests)
            try:
                with Server(peer, Place(folder, onnx, servers.free_port(), options.cores), log) as server:
                    if peer.name not in shape["agreement"]:
                        shape["agreement"][peer.name] = check(server, texts, expected)
                    shape["measurements"] += measure(server, texts, plan, number)
                    shape["info"].setdefault(peer.name, server.get("/v1/info"))
            except ServerFailed as problem:
                note(f"left out: {problem}")
                shape["left_out"][peer.name] = anonymous(str(problem))
        shape["summary"] = report.summary(shape["measurements"])
        shape["floors"] = report.floors(shape)
        result["ended"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(anonymous(json.dumps(result, indent=1)) + "\n", encoding="utf-8")


def encode(peer: Peer, requests: list[workload.Request]) -> Texts:
    def body(query: str, documents: Sequence[str]) -> bytes:
        return json.dumps(peer.body(query, documents), ensure_ascii=False).encode()

    return Texts(
        requests,
        [body(request.query, request.documents) for request in requests],
        [body(request.query, request.documents[:WARM_DOCUMENTS]) for request in reversed(requests)],
    )


def check(server: Server, texts: Texts, expected: list[list[float]]) -> dict[str, Any]:
    """Compare with the plain model. Raises ServerFailed when it is another computation."""
    peer = server.peer
    run = load.closed(server.url, texts.bodies[:CHECKED], 1, CHECKED)
    differences = []
    for sample in run.samples:
        if sample.status != 200:
            raise ServerFailed(f"{peer.name} answered {sample.status}: {sample.answer[:300]!r}")
        scores = peer.scores(json.loads(sample.answer), len(expected[sample.number]))
        pairs = zip(scores, expected[sample.number], strict=True)
        differences += [abs(score - right) for score, right in pairs]
    largest = max(differences)
    if not largest <= TOLERANCE and peer.exact:
        raise ServerFailed(f"{peer.name} gives other scores than the plain model: {largest:.3g} apart")
    return {
        "pairs": len(differences),
        "max_difference": largest,
        "mean_difference": sum(differences) / len(differences),
    }


def measure(server: Server, texts: Texts, plan: Plan, number: int) -> list[dict[str, Any]]:
    """Warm up, then every closed loop and the open one."""
    rate = warm_up(server, texts)
    settle(server)
    found = []
    for clients in plan.concurrency:
        # Not only whole waves: in a second, begun one, clients no longer move in step.
        count = max(math.ceil(1.5 * clients), round(plan.seconds * rate / plan.documents))
        before = meters(server)
        run = load.closed(server.url, texts.bodies, clients, count)
        found.append({"mode": f"closed-{clients}", **evaluate(server, texts, run, before)})
        rate = found[-1]["pairs_per_second"] or rate
    if server.peer.name in plan.open_peers and plan.open_seconds > 0:
        same = [one["pairs_per_second"] for one in found if one["mode"] == f"closed-{OPEN_SHARE_OF}"]
        arrivals = plan.open_share * (same[0] if same else rate) / plan.documents
        before = meters(server)
        run = load.open_loop(server.url, texts.bodies, arrivals, plan.open_seconds, workload.SEED + number)
        one = {"mode": f"open-{plan.open_share * 100:.0f}", **evaluate(server, texts, run, before)}
        found.append({**one, "arrivals_per_second": arrivals, "generator_late_ms": run.late * 1000})
    for one in found:
        one.update(peer=server.peer.name, round=number, start_seconds=round(server.start_seconds, 2))
    return found


def warm_up(server: Server, texts: Texts) -> float:
    """Small requests for a few seconds; the pairs a second of those after the first. Raises ServerFailed."""
    begin = time.monotonic()
    rate = 0.0
    while time.monotonic() - begin < WARM_SECONDS:
        run = load.closed(server.url, texts.warm, 2, 4)
        if any(sample.status != 200 for sample in run.samples):
            bad = next(sample for sample in run.samples if sample.status != 200)
            raise ServerFailed(f"{server.peer.name} answered {bad.status} while warming up: {bad.answer[:300]!r}")
        rate = 4 * WARM_DOCUMENTS / run.seconds
    return rate


def settle(server: Server) -> None:
    """Wait until the server is idle: some compile in the background."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < deadline:
        before = servers.cpu_seconds(server.pid)
        time.sleep(0.4)
        if servers.cpu_seconds(server.pid) - before < 0.06:
            return


def meters(server: Server) -> tuple[float, float]:
    """CPU seconds of the server, and of everything on these cores."""
    return servers.cpu_seconds(server.pid), busy_seconds()


def evaluate(server: Server, texts: Texts, run: load.Run, before: tuple[float, float]) -> dict[str, Any]:
    """The figures of one run; an answer that is not one finite score a document is a failure."""
    server_cpu = servers.cpu_seconds(server.pid) - before[0]
    others = busy_seconds() - before[1] - server_cpu - run.own_cpu
    failures: Counter[str] = Counter()
    good: list[load.Sample] = []
    for sample in run.samples:
        request = texts.requests[sample.number % len(texts.requests)]
        if sample.status != 200:
            failures[f"{sample.status} {sample.answer[:100].decode(errors='replace')}"] += 1
        elif not _complete(server.peer, sample.answer, len(request.documents)):
            failures["incomplete scores"] += 1
        else:
            good.append(sample)
    pairs = sum(len(texts.requests[sample.number % len(texts.requests)].documents) for sample in good)
    tokens = sum(texts.requests[sample.number % len(texts.requests)].tokens for sample in good)
    times = sorted(sample.seconds * 1000 for sample in good)
    return {
        "requests": len(run.samples),
        "failed": len(run.samples) - len(good),
        "failures": dict(failures),
        "seconds": run.seconds,
        "pairs_per_second": pairs / run.seconds,
        "tokens_per_second": tokens / run.seconds,
        "p50_ms": quantile(times, 0.5),
        "p95_ms": quantile(times, 0.95),
        "p99_ms": quantile(times, 0.99),
        "cpu_seconds_per_pair": server_cpu / pairs if pairs else None,
        "server_cores": server_cpu / run.seconds,
        "generator_cores": run.own_cpu / run.seconds,
        "other_cores": max(0.0, others) / run.seconds,
        "rss_mib": servers.rss_bytes(server.pid) / 2**20,
    }


def _complete(peer: Peer, answer: bytes, count: int) -> bool:
    try:
        scores = peer.scores(json.loads(answer), count)
    except (ValueError, KeyError, TypeError, IndexError):
        return False
    return len(scores) == count and all(math.isfinite(score) for score in scores)


def quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that ``share`` of all are not above; NaN of nothing."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else float("nan")


def busy_seconds() -> float:
    """CPU seconds that these cores have worked since boot, for whomever."""
    cores = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    total = 0
    for line in Path("/proc/stat").read_text(encoding="ascii").splitlines():
        name, *fields = line.split()
        if name in cores:
            user, nice, system, _idle, _wait, irq, soft, *_ = map(int, fields)
            total += user + nice + system + irq + soft
    return total / servers.TICKS


def reference(folder: Path, requests: Sequence[workload.Request]) -> list[list[float]]:
    given = json.dumps([[request.query, request.documents] for request in requests])
    return json.loads(_python("reference.py", folder, given=given))


def limits(place: Place, length: int) -> dict[str, Any]:
    note("packed limit")
    words = ["--folder", place.folder, "--onnx", place.onnx, "--threads", place.threads, "--length", length]
    return json.loads(_python("limits.py", *words, threads=place.threads))


def _python(script: str, *words: object, given: str = "", threads: int | None = None) -> str:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"} | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    command = [sys.executable, str(HERE / script), *map(str, words)]
    done = subprocess.run(command, input=given, env=environment, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise NotReady(f"{script} failed: {done.stderr[-1000:]}")
    return done.stdout


def commit() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True)
    return done.stdout.strip()


def machine() -> dict[str, Any]:
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    model = re.search(r"model name\s*:\s*(.+)", text)
    return {
        "cpu": model[1] if model else platform.machine(),
        "logical_cpus": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * servers.PAGE / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average_before": os.getloadavg(),
    }


def anonymous(text: str) -> str:
    """Without the checkout's own path."""
    return text.replace(str(workload.ROOT) + "/", "")


def note(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
