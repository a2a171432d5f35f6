"""Where one request's time goes: 50 documents through the real server, stage by stage. JSON and tables.

    python tests/bench/stages.py [--requests 20] [--json FILE] [-- FLAGS OF rerank-worker serve]

The server is the real one in a process of its own, with timestamps taken where its parts meet (monotonic time is the
same for both processes); it serves one request at a time. Then the engine alone is profiled: which share of its CPU
time goes into linear layers, attention and the rest. Only what the server's log and answers cannot show is hooked.
"""

import argparse
import datetime
import functools
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from worker import servers, workload

DEMO = servers.ROOT / ".state" / "models" / "demo-reranker"
START_TIMEOUT, STOP_TIMEOUT = 180.0, 30.0
WARM_REQUESTS = 4
STAGES = (
    ("client encode", "JSON of the request"),
    ("HTTP in", "sending, parsing, body read, admission"),
    ("JSON decode", ""),
    ("tokenize", "and waiting for a thread"),
    ("queue, batch wait", "submitted until the first batch is prepared"),
    ("prepare", "host inputs of all batches"),
    ("compute", "forward passes"),
    ("collect", "waiting for and reading outputs"),
    ("between batches", "cutting batches, handing out logits"),
    ("post-process", "to the event loop, activation"),
    ("JSON encode", ""),
    ("HTTP out", "writing, reading"),
    ("client decode", "JSON of the answer"),
)
"""In the order in which a request meets them, and what each holds."""

LINEAR = (
    "aten::addmm",
    "aten::mm",
    "aten::linear",
    "mkldnn",
    "mkl_linear",
    "_int_mm",
    "_scaled_mm",
    "quantized",
    "onednn",
)
ATTENTION = ("scaled_dot_product", "flash_attention", "aten::bmm", "aten::baddbmm", "softmax", "flex_attention")

Event = tuple[str, float, float]
"""What, and its start and end in seconds of the monotonic clock."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=DEMO)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--label", default="", help="what to call it in the JSON, such as 'padded engine'")
    parser.add_argument("--part", choices=("server", "engine"), help=argparse.SUPPRESS)
    parser.add_argument("--events", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("flags", nargs="*", help="more flags of rerank-worker serve, after --")
    options = parser.parse_args()
    if options.part == "server":
        serve_with_timestamps(options.events, options.flags)
    elif options.part == "engine":
        print(json.dumps(profile_engine(options.folder, options.threads, options.flags)))
    else:
        measure(options)


def measure(options: argparse.Namespace) -> None:
    requests = workload.build(options.folder, requests=WARM_REQUESTS + options.requests)
    with tempfile.TemporaryDirectory() as scratch:
        events_file = Path(scratch) / "events.json"
        times, info, events = run_requests(options, requests, events_file)
    rows = [stages_of(client, events) for client in times[WARM_REQUESTS:]]
    result = {
        "benchmark": "tests/bench/stages",
        "label": options.label,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "load_average": os.getloadavg(),
        "flags": options.flags,
        "engine": info.get("engine"),
        "info": info,
        "requests": len(rows),
        "pairs": len(requests[0].documents),
        "tokens": round(sum(request.tokens for request in requests) / len(requests)),
        "batches": median([row.pop("batches") for row in rows]),
        "total_ms": figure([sum(row.values()) for row in rows]),
        "stages_ms": {name: figure([row[name] for row in rows]) for name, _ in STAGES},
        "engine_cpu": json.loads(own_process("engine", options)),
    }
    text = json.dumps(result, indent=1).replace(str(servers.ROOT) + "/", "")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(text + "\n", encoding="utf-8")
    print(table(result))


def figure(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "median": round(median(ordered), 4),
        "p10": round(ordered[len(ordered) // 10], 4),
        "p90": round(ordered[len(ordered) * 9 // 10], 4),
    }


def table(result: Mapping[str, Any]) -> str:
    total = result["total_ms"]["median"]
    name = result["label"] or result["engine"]
    lines = [
        f"{name}: one request of {result['pairs']} documents, {result['tokens']} tokens, "
        f"{result['batches']:g} batches; medians of {result['requests']} requests, one at a time",
        f"{'stage':<20} {'ms':>9} {'share':>7}",
    ]
    for name, what in STAGES:
        took = result["stages_ms"][name]["median"]
        lines.append(f"{name:<20} {took:>9.3f} {took / total:>7.1%}  {what}")
    lines.append(f"{'total':<20} {total:>9.3f}")
    shares = ", ".join(f"{name} {share:.1%}" for name, share in result["engine_cpu"]["shares"].items())
    lines.append(f"CPU time of the engine: {shares or result['engine_cpu']['note']}")
    return "\n".join(lines)


# The client's side.


def run_requests(
    options: argparse.Namespace, requests: Sequence[workload.Request], events_file: Path
) -> tuple[list[list[Event]], dict[str, Any], list[Event]]:
    """The client's own events of each request, /v1/info, and the server's events."""
    port = servers.free_port()
    command = [
        *(sys.executable, __file__, "--part", "server", "--events", str(events_file), "--"),
        *("--model", str(options.folder), "--port", str(port), "--threads", str(options.threads)),
        *("--device", "cpu", "--lame-duck-seconds", "0", *options.flags),
    ]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    log: list[str] = []
    reader = threading.Thread(target=lambda: log.extend(server.stderr or ()), daemon=True)
    reader.start()
    try:
        wait_ready(port, server, log)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        times = [ask(connection, request) for request in requests]
        connection.request("GET", "/v1/info")
        info = json.load(connection.getresponse())
    finally:
        server.send_signal(signal.SIGINT)
        try:
            server.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait(STOP_TIMEOUT)
    return times, info, [tuple(event) for event in json.loads(events_file.read_text(encoding="utf-8"))]


def wait_ready(port: int, server: "subprocess.Popen[str]", log: Sequence[str]) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline and server.poll() is None:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise SystemExit("the server did not get ready:\n" + "".join(log[-20:]))


def ask(connection: http.client.HTTPConnection, request: workload.Request) -> list[Event]:
    """One request; what the client did, in order."""
    moments = [time.monotonic()]
    body = json.dumps({"query": request.query, "documents": request.documents}).encode()
    moments.append(time.monotonic())
    connection.request("POST", "/v1/score", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    answer = response.read()
    moments.append(time.monotonic())
    decoded = json.loads(answer)
    moments.append(time.monotonic())
    if response.status != 200 or len(decoded["scores"]) != len(request.documents):
        raise SystemExit(f"the server answered {response.status}: {answer[:300]!r}")
    names = ("encode", "wait", "decode")
    return [(name, start, end) for name, start, end in zip(names, moments, moments[1:], strict=False)]


def stages_of(client: Sequence[Event], events: Iterable[Event]) -> dict[str, float]:
    """Milliseconds at each stage of one request, which together make all of its time; and its ``batches``."""
    spans = {name: (start, end) for name, start, end in client}
    sent, received = spans["wait"]
    mine: dict[str, list[tuple[float, float]]] = {}
    for name, start, end in events:
        if sent <= start and end <= received:
            mine.setdefault(name, []).append((start, end))
    decode, submit, answer = mine["decode"][0], mine["submit"][0], mine["answer"][0]
    steps = {name: sorted(mine.get(name, [])) for name in ("prepare", "compute", "collect")}
    first = min(start for step in steps.values() for start, _ in step)
    last = max(end for step in steps.values() for _, end in step)
    busy = {name: sum(end - start for start, end in step) for name, step in steps.items()}
    seconds = {
        "client encode": spans["encode"][1] - spans["encode"][0],
        "HTTP in": decode[0] - sent,
        "JSON decode": decode[1] - decode[0],
        "tokenize": submit[0] - decode[1],
        "queue, batch wait": first - submit[0],
        **busy,
        "between batches": last - first - sum(busy.values()),
        "post-process": answer[0] - last,
        "JSON encode": answer[1] - answer[0],
        "HTTP out": received - answer[1],
        "client decode": spans["decode"][1] - spans["decode"][0],
    }
    return {**{name: value * 1000 for name, value in seconds.items()}, "batches": len(steps["compute"])}


# The server's side.


def serve_with_timestamps(events_file: Path, flags: Sequence[str]) -> None:
    """rerank-worker serve, with the moments written to ``events_file`` when it has ended."""
    from rerank_worker import cli, scheduler
    from rerank_worker.server import protocol

    events: list[Event] = []

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            start = time.monotonic()
            try:
                return function(*arguments, **named)
            finally:
                events.append((name, start, time.monotonic()))

        return call

    def hook(owner: Any, attribute: str, name: str) -> None:
        if not hasattr(owner, attribute):
            raise SystemExit(f"{owner.__name__}.{attribute} is no more: say here where '{name}' happens now")
        setattr(owner, attribute, timed(name, getattr(owner, attribute)))

    hook(protocol, "decode", "decode")
    hook(protocol, "answer", "answer")
    hook(scheduler.EngineThread, "submit", "submit")
    load = cli.load

    @functools.wraps(load)
    def load_and_hook(*arguments: Any, **named: Any) -> Any:
        loaded = load(*arguments, **named)
        for step in ("prepare", "compute", "collect"):
            hook(type(loaded.engine), step, step)
        return loaded

    setattr(cli, "load", load_and_hook)  # noqa: B010, the type of a function is its own
    try:
        cli.main(["serve", *flags])
    finally:
        events_file.write_text(json.dumps(events), encoding="utf-8")


# The engine alone.


def own_process(part: str, options: argparse.Namespace) -> str:
    command = [
        *(sys.executable, __file__, "--part", part, "--folder", str(options.folder)),
        *("--threads", str(options.threads), "--", *options.flags),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise SystemExit(f"the profile of the engine failed: {done.stderr[-1500:]}")
    return done.stdout.splitlines()[-1]


def profile_engine(folder: Path, threads: int, flags: Sequence[str]) -> dict[str, Any]:
    """Shares of the engine's CPU time by kind of operator, for one request in batches of like length."""
    import torch
    from rerank_worker import cli

    arguments = cli.parser().parse_args(["serve", "--model", str(folder), "--device", "cpu", *flags])
    config = cli.read_config(arguments, {})
    assert config is not None
    loaded = cli.load(config, threads)
    request = workload.build(folder, requests=1)[0]
    query = loaded.tokenizer.query(request.query)
    pairs = [loaded.tokenizer.pair(query, ids)[0] for ids in loaded.tokenizer.documents(list(request.documents))]
    batches = cut(sorted(pairs, key=len), loaded.policy.max_tokens, loaded.engine.padded)
    engine = loaded.engine
    for batch in batches:
        engine.collect(engine.compute(engine.prepare(batch)))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for batch in batches:
            engine.collect(engine.compute(engine.prepare(batch)))
    averages = sorted(profiler.key_averages(), key=lambda one: one.self_cpu_time_total, reverse=True)
    total = sum(one.self_cpu_time_total for one in averages)
    sums = {"linear layers": 0.0, "attention": 0.0, "rest": 0.0}
    for one in averages:
        sums[kind_of(one.key)] += one.self_cpu_time_total
    seen = total > 0 and sums["linear layers"] > 0
    return {
        "engine": engine.name,
        "batches": len(batches),
        "shares": {name: round(took / total, 4) for name, took in sums.items()} if seen else {},
        "note": "" if seen else "the engine does not compute with torch's operators",
        "operators_ms": {one.key: round(one.self_cpu_time_total / 1000, 3) for one in averages[:15]},
    }


def kind_of(operator: str) -> str:
    if any(word in operator for word in ATTENTION):
        return "attention"
    return "linear layers" if any(word in operator for word in LINEAR) else "rest"


def cut(pairs: Sequence[Any], budget: int, padded: bool) -> list[list[Any]]:
    """Batches of at most ``budget`` tokens, in order; padded ones cost their longest pair times their number."""
    batches: list[list[Any]] = []
    cost = 0
    for pair in pairs:
        grown = (len(batches[-1]) + 1) * len(pair) if batches and padded else cost + len(pair)
        if not batches or grown > budget:
            batches.append([])
            grown = len(pair)
        batches[-1].append(pair)
        cost = grown
    return batches


if __name__ == "__main__":
    main()
