"""The batching policy in simulated time, and what it costs in real time; JSON out.

    python tests/bench/batching.py [--seconds 60] [--speed 40000] [--fixed 0.001]

1. head_of_line: one request of 10,000 documents beside 20 requests/s of 10 documents, on an engine that takes a fixed
   time a batch and then so many tokens a second. Latencies of the small requests and when the large one ends, under the
   policy that serves the oldest request first, and under the worker's own.
2. delay: small requests on an idle engine whose batches have a high fixed cost: latency and batches with and without
   waiting for company.
3. costs: microseconds of cutting one batch, by how many pairs wait; of adding a request; of handing a request's outcome
   to an event loop. Real time, medians: they vary with the machine.

The simulation draws from a fixed seed and has no other source of chance.
"""

import argparse
import asyncio
import heapq
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rerank_worker.batching import Backlog, Policy, Slot
from rerank_worker.measured import BatchTimes, Company

MEAN_TOKENS, SPREAD, LONGEST = 110, 0.6, 512


class Queue(Protocol):
    """What both policies are."""

    def __len__(self) -> int: ...

    def add(self, item: int, lengths: Sequence[int], arrived: float, deadline: float) -> int: ...

    def take(self, policy: Policy) -> list[tuple[int, Slot]]: ...


@dataclass
class OldestFirst:
    """The policy before: the oldest request's longest pair sets the length; its pairs and, up to four batches' worth of
    tokens, those of later requests fill the batch."""

    waiting: dict[int, list[Slot]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.waiting)

    def add(self, item: int, lengths: Sequence[int], arrived: float, deadline: float) -> int:
        slots = [Slot(item, index, tokens) for index, tokens in enumerate(lengths)]
        self.waiting[item] = sorted(slots, key=lambda slot: -slot.tokens)
        return item

    def take(self, policy: Policy) -> list[tuple[int, Slot]]:
        window: list[Slot] = []
        for slots in self.waiting.values():
            window += slots
            if sum(slot.tokens for slot in window) >= 4 * policy.max_tokens:
                break
        width = policy.width(window[0].tokens)
        others = sorted((slot for slot in window[1:] if slot.tokens <= width), key=lambda slot: -slot.tokens)
        chosen = [window[0], *others[: max(0, policy.max_tokens // width - 1)]]
        for ticket in {slot.ticket for slot in chosen}:
            gone = {slot.index for slot in chosen if slot.ticket == ticket}
            self.waiting[ticket] = [slot for slot in self.waiting[ticket] if slot.index not in gone]
            if not self.waiting[ticket]:
                del self.waiting[ticket]
        return [(slot.ticket, slot) for slot in chosen]


@dataclass(frozen=True)
class Device:
    """Seconds of a batch: ``fixed``, and its tokens at ``speed``."""

    fixed: float
    speed: float

    def seconds(self, policy: Policy, batch: Sequence[tuple[int, Slot]]) -> float:
        return self.fixed + policy.cost([slot.tokens for _, slot in batch]) / self.speed


def lengths(chance: random.Random, documents: int) -> list[int]:
    """Log-normal, mean about 110 tokens."""
    return [max(8, min(LONGEST, round(chance.lognormvariate(4.52, SPREAD)))) for _ in range(documents)]


def serve(
    queue: Queue, policy: Policy, device: Device, arrivals: Sequence[tuple[float, list[int]]]
) -> dict[int, float]:
    """Latency of each request of ``arrivals`` (moment and lengths of the pairs, in order of time)."""
    now, coming = 0.0, list(enumerate(arrivals))[::-1]
    left: dict[int, int] = {}
    latency: dict[int, float] = {}
    while coming or len(queue):
        if not len(queue):
            now = max(now, coming[-1][1][0])
        while coming and coming[-1][1][0] <= now:
            number, (moment, pairs) = coming.pop()
            queue.add(number, pairs, moment, float("inf"))
            left[number] = len(pairs)
        batch = queue.take(policy)
        now += device.seconds(policy, batch)
        for number, _ in batch:
            left[number] -= 1
            if left[number] == 0:
                latency[number] = now - arrivals[number][0]
    return latency


def quantiles(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        f"p{percent}_ms": round(1000 * ordered[min(len(ordered) - 1, len(ordered) * percent // 100)], 1)
        for percent in (50, 95, 99)
    }


def head_of_line(seconds: float, device: Device, seed: int = 1) -> dict[str, Any]:
    chance = random.Random(seed)
    small: list[tuple[float, list[int]]] = []
    moment = 0.0
    while (moment := moment + chance.expovariate(20)) < seconds:
        small.append((moment, lengths(chance, 10)))
    large = (0.0, lengths(chance, 10_000))
    found: dict[str, Any] = {}
    policies: list[tuple[str, Callable[[], Queue], bool]] = [
        ("oldest_first_padded", OldestFirst, True),
        ("oldest_first_flat", OldestFirst, False),
        ("by_rank_padded", Backlog, True),
        ("by_rank_flat", Backlog, False),
    ]
    for name, queue, padded in policies:
        policy = Policy(1024, 16, LONGEST, 0.005, padded)
        beside = serve(queue(), policy, device, [large, *small])
        alone = serve(queue(), policy, device, small)
        found[name] = {
            "small_beside_large": quantiles([latency for number, latency in beside.items() if number]),
            "small_alone": quantiles(list(alone.values())),
            "large_ends_after_s": round(beside[0], 2),
        }
    return found


def delay(fixed: float, rate: float, tokenizing: float, seed: int = 2) -> dict[str, Any]:
    """One pair a request at ``rate`` a second: each is tokenized for about ``tokenizing`` seconds and then queued."""
    found = {}
    device = Device(fixed, 1_000_000)
    for name, longest in (("at_once", 0.0), ("when_it_pays", 0.005)):
        chance = random.Random(seed)
        policy = Policy(16_384, 16, LONGEST, longest, False)
        backlog: Backlog[int] = Backlog()
        times, company = BatchTimes(), Company()
        events: list[tuple[float, int, str]] = []
        moment, arrived, latencies, batches, free = 0.0, [], [], 0, 0.0
        for number in range(4000):
            moment += chance.expovariate(rate)
            arrived.append(moment)
            heapq.heappush(events, (moment, number, "comes"))
        now = 0.0
        while events or backlog:
            due = float("inf")
            if backlog:
                due = max(now, free)
                if due == now:
                    due = max(now, backlog.due(policy, now, company.expected(now), times.saved()))
            if backlog and due <= now:
                batch = backlog.take(policy)
                seconds = device.seconds(policy, batch)
                cost = policy.cost([slot.tokens for _, slot in batch])
                times.add(cost, cost, seconds, policy.max_tokens)
                free = now + seconds
                batches += 1
                latencies += [free - arrived[number] for number, _ in batch]
            elif events and events[0][0] <= due:
                now, number, what = heapq.heappop(events)
                if what == "comes":
                    company.begin(number, now)
                    ready = now + tokenizing * chance.uniform(0.5, 1.5)
                    heapq.heappush(events, (ready, number, "is tokenized"))
                else:
                    company.end(number, now)
                    backlog.add(number, lengths(chance, 1), now, float("inf"))
            else:
                now = due
        mean = round(1000 * statistics.mean(latencies), 2)
        found[name] = quantiles(latencies) | {"mean_ms": mean, "batches": batches}
    return found


def median_microseconds(run: Callable[[], object], times: int) -> float:
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        run()
        taken.append(time.perf_counter() - started)
    return round(1e6 * statistics.median(taken), 1)


def costs() -> dict[str, Any]:
    chance = random.Random(3)
    found: dict[str, Any] = {"take": {}}
    for budget in (1024, 16_384):
        for padded in (True, False):
            policy = Policy(budget, 16, LONGEST, 0.005, padded)
            row: dict[str, float] = {}
            for documents in (1_000, 10_000, 100_000):
                backlog: Backlog[int] = Backlog()
                backlog.add(0, lengths(chance, documents), 0.0, float("inf"))
                for number in range(50):
                    backlog.add(number, lengths(chance, 10), 0.0, float("inf"))
                takes = min(50, documents * 60 // budget)
                row[f"{documents} pairs"] = median_microseconds(lambda: backlog.take(policy), takes)  # noqa: B023
            found["take"][f"{budget} tokens, {'padded' if padded else 'flat'}"] = row
    for documents in (10, 10_000):
        pairs = lengths(chance, documents)
        backlog = Backlog()
        add = lambda: backlog.add(0, pairs, 0.0, float("inf"))  # noqa: B023, E731
        found[f"add {documents} pairs"] = median_microseconds(add, 50)
    for requests in (10, 1_000):
        backlog = Backlog()
        for number in range(requests):
            backlog.add(number, [100], 0.0, float("inf"))
        found[f"expire among {requests} requests"] = median_microseconds(lambda: backlog.expire(1.0, 1000.0), 200)  # noqa: B023
    found["hand a request's outcome to an event loop"] = asyncio.run(_hand_over())
    return found


async def _hand_over() -> float:
    """As the engine thread does it for each request that it finishes."""
    loop = asyncio.get_running_loop()
    return await asyncio.to_thread(
        lambda: median_microseconds(lambda: loop.call_soon_threadsafe(lambda _: None, [0.0] * 50), 2000)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of small requests")
    parser.add_argument("--speed", type=float, default=40_000.0, help="tokens a second of the simulated engine")
    parser.add_argument("--fixed", type=float, default=0.001, help="seconds that it takes for any batch")
    options = parser.parse_args()
    device = Device(options.fixed, options.speed)
    print(
        json.dumps(
            {
                "engine": {"tokens_per_second": device.speed, "fixed_seconds_a_batch": device.fixed},
                "head_of_line": head_of_line(options.seconds, device),
                "delay_at_1000_requests_per_second": {
                    f"{fixed * 1000:g} ms a batch, tokenized in {tokenizing * 1000:g} ms": delay(
                        fixed, 1000, tokenizing
                    )
                    for fixed, tokenizing in ((0.0002, 0.001), (0.004, 0.001), (0.004, 0.02))
                },
                "delay_at_20_requests_per_second": delay(0.004, 20, 0.001),
                "costs_microseconds": costs(),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
