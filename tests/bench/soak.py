"""A worker under mixed traffic for an hour: every answer is checked, and memory must stay flat. JSON out.

    python tests/bench/soak.py [--minutes 60] [--share 0.5] [--json FILE] [-- FLAGS OF rerank-worker serve]

The traffic is bounded: Poisson arrivals at a share of what the worker reached when it was measured at the start, never
more than so many requests at once. Of random size and priority: whole requests, very long documents, raw scores,
clients that hang up, deadlines that are too short, and inputs that must be refused. Exit code 1 when an answer was
wrong, or memory, open files or threads grew.
"""

import argparse
import asyncio
import datetime
import json
import math
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp

from worker import load, servers, workload

DEMO = servers.ROOT / ".state" / "models" / "demo-reranker"
QUERIES, POOL = 16, 24
LONG_CHARACTERS = (5_000, 50_000, 200_000, 1_000_000)
REFERENCE_CHARACTERS = 20_000
MOST_DOCUMENTS = 24
MOST_AT_ONCE = 48
LOOK_SECONDS, SAMPLE_SECONDS = 0.5, 10.0
"""How often the process is looked at, and what one kept sample stands for."""

REST_SECONDS = 20.0
"""Freed memory is given back every 15 s (rerank_worker.memory): in so long an idle worker has done so."""

ANSWER_TIMEOUT = 120.0
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2, "int8": 1e-1}
WARM_SHARE = 0.2
"""Of the run: allocators and caches fill up, so growth counts from then on."""

GROWTH_SHARE, GROWTH_MIB = 0.02, 24.0
"""What the line through the memory may rise over the rest of the run, and what the idle worker may have more after it
than before: the larger of the two."""

FLOOR_SECONDS = 300.0
"""The least memory in so long is what does not come back: above it lie the documents at work, and what they have left
until it is given back (rerank_worker.memory.keep_tidy), which differ with the moment."""

JUDGED_MINUTES = 15.0
"""In less, caches that fill up cannot be told from a leak."""

SPARE_FILES, SPARE_THREADS = 8, 4
KINDS = {"whole": 58, "long": 6, "raw": 6, "abandoned": 10, "hurried": 8, "refused": 12}

REFUSED: tuple[tuple[str, bytes, dict[str, str], int, str], ...] = (
    ("not JSON", b'{"query": "a", "documents": [', {}, 400, "invalid_request"),
    ("wrong type", b'{"query": "a", "documents": "b"}', {}, 400, "invalid_request"),
    ("unknown field", b'{"query": "a", "documents": ["b"], "top": 3}', {}, 400, "invalid_request"),
    ("no query", b'{"documents": ["b"]}', {}, 400, "invalid_request"),
    ("lone surrogate", b'{"query": "a", "documents": ["\\ud800"]}', {}, 400, "invalid_request"),
    ("not UTF-8", b'{"query": "\xff\xfe", "documents": ["b"]}', {}, 400, "invalid_request"),
    ("bad limit", b'{"query": "a", "documents": ["b"], "max_tokens_per_document": 0}', {}, 400, "invalid_request"),
    ("bad header", b'{"query": "a", "documents": ["b"]}', {"X-Rerank-Timeout-Ms": "soon"}, 400, "invalid_request"),
    ("query too long", json.dumps({"query": "word " * 600, "documents": ["b"]}).encode(), {}, 422, "too_long"),
)
"""What it is, body, headers, and the answer's status and code."""


@dataclass(frozen=True)
class Question:
    """A query, its documents (the last ones very long) and the plain model's scores of them."""

    query: str
    documents: tuple[str, ...]
    scores: tuple[float, ...]
    cut: frozenset[int]
    """Documents that must be told as truncated."""


@dataclass
class Findings:
    answers: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    held_back: int = 0
    seconds: list[tuple[float, float]] = field(default_factory=list)
    """When a whole request left, and how long it took."""
    samples: list[dict[str, float]] = field(default_factory=list)

    def fault(self, kind: str, what: str) -> None:
        self.answers[f"{kind} WRONG"] += 1
        if len(self.wrong) < 50:
            self.wrong.append(f"{kind}: {what}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--share", type=float, default=0.5, help="of the worker's capacity (default: 0.5)")
    parser.add_argument("--precision", choices=sorted(TOLERANCE), default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=workload.SEED)
    parser.add_argument("--json", type=Path)
    parser.add_argument("flags", nargs="*", help="more flags of rerank-worker serve, after --")
    options = parser.parse_args()
    # So that the worker is ended too.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    questions = make_questions()
    peer = servers.ours("worker", ["--precision", options.precision, *options.flags])
    place = servers.Place(DEMO, DEMO, servers.free_port(), options.threads)
    server = servers.Server(peer, place, servers.BENCH / "logs" / "soak.log")
    with server:
        capacity = measured_capacity(server, questions)
        print(f"capacity about {capacity:.1f} pairs/s; {options.minutes:g} minutes at {options.share:.0%}", flush=True)
        before = at_rest(server.pid)
        findings = asyncio.run(traffic(server, questions, options, capacity))
        after = at_rest(server.pid)
        info = server.get("/v1/info")
        alive = server.alive()
    result: dict[str, Any] = {
        "benchmark": "tests/bench/soak",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "minutes": options.minutes,
        "share": options.share,
        "capacity_pairs_per_second": capacity,
        "flags": ["--precision", options.precision, *options.flags],
        "info": info,
        "answers": dict(findings.answers),
        "held_back": findings.held_back,
        "wrong": findings.wrong,
        "idle_before": before,
        "idle_after": after,
        "alive": alive,
        "latency": latency(findings.seconds),
        "memory": memory(findings.samples),
        "samples": findings.samples,
    }
    result["verdicts"] = verdicts(result)
    text = json.dumps(result, indent=1).replace(str(servers.ROOT) + "/", "")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(text + "\n", encoding="utf-8")
    shown = {key: value for key, value in result.items() if key not in ("samples", "info", "flags")}
    print(json.dumps(shown, indent=1))
    return int(not all(result["verdicts"].values()))


def make_questions() -> list[Question]:
    requests = workload.build(DEMO, requests=QUERIES, documents=POOL)
    given = []
    for request in requests:
        filler = " ".join(request.documents)
        long = [(filler * (characters // len(filler) + 1))[:characters] for characters in LONG_CHARACTERS]
        given.append((request.query, [*request.documents, *long]))
    # The plain tokenizer needs minutes for a million characters; words are tokenized alike, so the start is enough.
    short = [(query, [text[:REFERENCE_CHARACTERS] for text in documents]) for query, documents in given]
    script = Path(__file__).parent / "worker" / "reference.py"
    done = subprocess.run(
        [sys.executable, script, DEMO], input=json.dumps(short), capture_output=True, text=True, check=True, timeout=900
    )
    found: list[list[float]] = json.loads(done.stdout)
    return [
        Question(
            query,
            tuple(documents),
            tuple(scores),
            frozenset(range(POOL, len(documents))),
        )
        for (query, documents), scores in zip(given, found, strict=True)
    ]


def measured_capacity(server: servers.Server, questions: Sequence[Question]) -> float:
    """Pairs a second that four clients reach in a few seconds."""
    bodies = [
        json.dumps({"query": question.query, "documents": question.documents[:POOL]}).encode() for question in questions
    ]
    load.closed(server.url, bodies, 4, 4)
    run = load.closed(server.url, bodies, 4, 12)
    if any(sample.status != 200 for sample in run.samples):
        raise SystemExit(f"the worker does not answer: {run.samples[0].answer[:300]!r}")
    return 12 * POOL / run.seconds


async def traffic(
    server: servers.Server, questions: Sequence[Question], options: argparse.Namespace, capacity: float
) -> Findings:
    """All requests, from the first to the last answer."""
    findings = Findings()
    chance = random.Random(options.seed)
    # A drawn request has so many pairs in the mean; those that are refused or hang up cost less.
    rate = options.share * capacity / ((1 + MOST_DOCUMENTS) / 2)
    begin = time.monotonic()
    end = begin + options.minutes * 60
    running: set[asyncio.Task[None]] = set()
    timeout = aiohttp.ClientTimeout(total=ANSWER_TIMEOUT)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        watching = asyncio.create_task(watch(server.pid, findings, begin))
        due = begin
        while due < end and server.alive():
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            due += chance.expovariate(rate)
            if len(running) >= MOST_AT_ONCE:
                findings.held_back += 1
                continue
            one = Client(session, server.url, findings, options.precision, begin)
            kind = chance.choices(list(KINDS), list(KINDS.values()))[0]
            task = asyncio.create_task(one.ask(kind, chance.choice(questions), random.Random(chance.random())))
            running.add(task)
            task.add_done_callback(running.discard)
        await asyncio.gather(*running)
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
    return findings


async def watch(pid: int, findings: Findings, begin: float) -> None:
    """Keeps the least and the most memory of each SAMPLE_SECONDS: what was freed is given back for moments only."""
    while True:
        sample = {"seconds": round(time.monotonic() - begin, 1), **facts(pid)}
        sample["most_rss_mib"] = sample["rss_mib"]
        findings.samples.append(sample)
        while time.monotonic() - begin < sample["seconds"] + SAMPLE_SECONDS:
            await asyncio.sleep(LOOK_SECONDS)
            now = facts(pid)["rss_mib"]
            sample["rss_mib"] = min(sample["rss_mib"], now)
            sample["most_rss_mib"] = max(sample["most_rss_mib"], now)


def at_rest(pid: int) -> dict[str, float]:
    """The facts of a worker that nobody asks, at the moment when it has the least memory."""
    seen = []
    for _ in range(round(REST_SECONDS)):
        time.sleep(1.0)
        seen.append(facts(pid))
    return min(seen, key=lambda one: one["rss_mib"])


def facts(pid: int) -> dict[str, float]:
    """Memory, open files and threads of the process."""
    process = Path("/proc") / str(pid)
    with suppress(OSError):
        return {
            "rss_mib": round(servers.rss_bytes(pid) / 2**20, 2),
            "files": len(list((process / "fd").iterdir())),
            "threads": len(list((process / "task").iterdir())),
        }
    return {"rss_mib": 0.0, "files": 0, "threads": 0}


@dataclass(frozen=True)
class Client:
    session: aiohttp.ClientSession
    url: str
    findings: Findings
    precision: str
    begin: float

    async def ask(self, kind: str, question: Question, chance: random.Random) -> None:
        """One request of that kind, and whether its answer is what it must be."""
        try:
            if kind == "refused":
                await self._refused(chance)
            elif kind == "abandoned":
                await self._abandoned(question, chance)
            else:
                await self._scored(kind, question, chance)
        except (aiohttp.ClientError, TimeoutError) as error:
            self.findings.fault(kind, f"{type(error).__name__}: {error}")

    async def _refused(self, chance: random.Random) -> None:
        what, body, headers, status, code = chance.choice(REFUSED)
        async with self.session.post(self.url, data=body, headers=headers) as response:
            found = await response.json()
        if (response.status, found.get("code")) == (status, code) and found.get("message"):
            self.findings.answers["refused"] += 1
        else:
            self.findings.fault(f"refused ({what})", f"{response.status} {found} instead of {status} {code}")

    async def _abandoned(self, question: Question, chance: random.Random) -> None:
        body = {"query": question.query, "documents": question.documents[:POOL]}
        request = asyncio.ensure_future(self.session.post(self.url, json=body))
        done, _ = await asyncio.wait([request], timeout=chance.expovariate(1 / 0.15))
        if done:
            (await request).close()
        else:
            # Closes the connection, as a client does that went away.
            request.cancel()
            with suppress(asyncio.CancelledError):
                await request
        self.findings.answers["abandoned"] += 1

    async def _scored(self, kind: str, question: Question, chance: random.Random) -> None:
        chosen = chance.sample(range(POOL), chance.randint(1, MOST_DOCUMENTS))
        if kind == "long":
            chosen = [*chosen[:4], *chance.sample(sorted(question.cut), chance.randint(1, 2))]
            chance.shuffle(chosen)
        headers = {"X-Rerank-Priority": chance.choice(("high", "normal", "low"))} if chance.random() < 0.5 else {}
        if kind == "hurried":
            headers["X-Rerank-Timeout-Ms"] = str(chance.randint(1, 60))
        body = {
            "query": question.query,
            "documents": [question.documents[index] for index in chosen],
            "raw_scores": kind == "raw",
        }
        started = time.monotonic()
        async with self.session.post(self.url, json=body, headers=headers) as response:
            found = await response.json()
        status = response.status
        if status == 429 and found.get("code") == "busy" and response.headers.get("Retry-After", "").isdigit():
            self.findings.answers[f"{kind} busy"] += 1
        elif status == 504 and kind == "hurried" and found.get("code") == "deadline":
            self.findings.answers["hurried late"] += 1
        elif status != 200:
            self.findings.fault(kind, f"{status} {found}")
        elif (problem := self._problem(question, chosen, found, kind == "raw")) is not None:
            self.findings.fault(kind, problem)
        else:
            self.findings.answers[kind] += 1
            if kind == "whole":
                self.findings.seconds.append((started - self.begin, time.monotonic() - started))

    def _problem(self, question: Question, chosen: Sequence[int], found: dict[str, Any], raw: bool) -> str | None:
        scores = [_sigmoid(score) for score in found["scores"]] if raw else found["scores"]
        if len(scores) != len(chosen):
            return f"{len(scores)} scores for {len(chosen)} documents"
        apart = max(abs(score - question.scores[index]) for score, index in zip(scores, chosen, strict=True))
        if not apart <= TOLERANCE[self.precision]:
            return f"a score is {apart:.3g} off"
        cut = {place for place, index in enumerate(chosen) if index in question.cut}
        told = set(found.get("truncated", []))
        if not cut <= told:
            return f"documents {sorted(cut)} were cut, told were {sorted(told)}"
        return None


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def latency(seconds: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Of whole requests, in the first and in the last quarter of the run."""
    if not seconds:
        return {}
    span = max(at for at, _ in seconds)
    parts = {
        "first_quarter": sorted(took for at, took in seconds if at <= span / 4),
        "last_quarter": sorted(took for at, took in seconds if at >= span * 3 / 4),
    }
    return {
        f"{name}_p{share * 100:.0f}_ms": round(times[min(len(times) - 1, int(share * len(times)))] * 1000, 1)
        for name, times in parts.items()
        if times
        for share in (0.5, 0.95)
    }


def memory(samples: Sequence[dict[str, float]]) -> dict[str, float]:
    """The least-squares line through the least memory of each FLOOR_SECONDS after warm-up."""
    last = samples[-1]["seconds"] if samples else 0.0
    rest = [one for one in samples if one["seconds"] >= WARM_SHARE * last]
    floors: dict[int, dict[str, float]] = {}
    for one in rest:
        part = int((one["seconds"] - rest[0]["seconds"]) / FLOOR_SECONDS)
        floors[part] = min(floors.get(part, one), one, key=lambda sample: sample["rss_mib"])
    if len(floors) < 3:
        return {}
    times = [one["seconds"] / 3600 for one in floors.values()]
    sizes = [one["rss_mib"] for one in floors.values()]
    middle, level = sum(times) / len(times), sum(sizes) / len(sizes)
    slope = sum((at - middle) * (size - level) for at, size in zip(times, sizes, strict=True)) / sum(
        (at - middle) ** 2 for at in times
    )
    return {
        "median_mib": median(one["rss_mib"] for one in rest),
        "min_mib": min(sizes),
        "max_mib": max(one["most_rss_mib"] for one in rest),
        "slope_mib_per_hour": slope,
        "rise_mib": slope * (times[-1] - times[0]),
        "allowed_rise_mib": max(GROWTH_SHARE * median(sizes), GROWTH_MIB),
    }


def verdicts(result: dict[str, Any]) -> dict[str, bool]:
    """What holds; memory only where the run was long enough to judge it."""
    before, after, found = result["idle_before"], result["idle_after"], result["memory"]
    judged = (
        {
            "memory flat": bool(found) and found["rise_mib"] <= found["allowed_rise_mib"],
            "idle memory as before": bool(found) and after["rss_mib"] <= before["rss_mib"] + found["allowed_rise_mib"],
        }
        if result["minutes"] >= JUDGED_MINUTES
        else {}
    )
    return {
        **judged,
        "every answer right": not result["wrong"] and sum(result["answers"].values()) > 0,
        "alive": result["alive"],
        "files closed": after["files"] <= before["files"] + SPARE_FILES,
        "threads ended": after["threads"] <= before["threads"] + SPARE_THREADS,
    }


if __name__ == "__main__":
    sys.exit(main())
