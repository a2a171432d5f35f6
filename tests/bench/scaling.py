"""Our controller against Knative's and KEDA's, by simulation: cost, misses, losses, scale events; JSON out.

    python tests/bench/scaling.py [--seeds held-out|tuning] [--hours 1] [--table]

Six traces from seeded generators (``TRACES``), each alone and all as a fleet. The baselines have no pool, and for each
set and seed the best of their targets *for that very trace* (the cheapest that meets the objective, or else the fewest
misses): hindsight that no user has. Ours has the policy of the manifest below and the pools of ``POOLS``. The policy
was tuned on the tuning seeds; the held-out ones were run a few times meanwhile, and nothing was chosen by them.

Every run is deterministic. The figures are of a model (docs/simulate.md), not of a cluster.
"""

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Callable
from typing import Any

from rerank_operator.scaling.policy import policy_from_manifest
from rerank_operator.scaling.simulate.fleet import Plant
from rerank_operator.scaling.simulate.inputs import Arrival, Limits, Manifest
from rerank_operator.scaling.simulate.runs import Case, ControllerName, simulate

SEEDS = {"tuning": (1, 2, 3), "held-out": (101, 102, 103)}
CAPACITY, COLD_START, WARM_START = 20_000.0, 60.0, 1.5
MEAN_TOKENS = 2_000
"""A replica serves ten such requests a second."""

MANIFEST = {
    "kind": "Reranker",
    "spec": {
        "scaling": {"minReplicas": 0, "maxReplicas": 12, "warmPool": "shared"},
        "slo": {"latency": {"quantile": 0.95, "threshold": "500ms"}},
    },
}
POOLS = {"diurnal": 0, "bursty": 4, "flash": 3, "on-off": 2, "poisson": 1, "heavy": 1, "fleet": 4}
"""Warm pods of each set, chosen with the tuning seeds by --pools; all but the fleet's with an earlier policy."""

Rate = Callable[[float], float]
Tokens = Callable[[random.Random], int]


def usual_tokens(chance: random.Random) -> int:
    """Log-normal around ``MEAN_TOKENS``: a query with some tens of documents."""
    spread = 0.5
    return max(1, round(chance.lognormvariate(math.log(MEAN_TOKENS) - spread**2 / 2, spread)))


def heavy_tokens(chance: random.Random) -> int:
    """Pareto, exponent 1.5: most requests are small, some are a hundred times as large."""
    return min(200_000, round(700 * chance.paretovariate(1.5)))


def arrivals(chance: random.Random, rate: Rate, most: float, seconds: float, tokens: Tokens) -> list[Arrival]:
    """A Poisson process of ``rate`` (requests a second, at most ``most``); one in ten is high and one in ten low."""
    found: list[Arrival] = []
    now = chance.expovariate(most)
    while now < seconds:
        if chance.random() * most < rate(now):
            found.append((round(now, 4), tokens(chance), chance.choices((0, 1, 2), (1, 8, 1))[0]))
        now += chance.expovariate(most)
    return found


def diurnal(chance: random.Random, seconds: float) -> list[Arrival]:
    """One smooth day: 1 to 30 requests a second."""
    phase = chance.uniform(0, 2 * math.pi)
    return arrivals(
        chance, lambda t: 15.5 + 14.5 * math.sin(2 * math.pi * t / seconds + phase), 30, seconds, usual_tokens
    )


def bursty(chance: random.Random, seconds: float) -> list[Arrival]:
    """Nothing but bursts of 15 to 45 s, shorter than a cold start, 15 to 30 requests a second."""
    found: list[Arrival] = []
    begin = chance.expovariate(1 / 300)
    while begin < seconds:
        length, rate = chance.uniform(15, 45), chance.uniform(15, 30)
        burst = arrivals(chance, lambda _, rate=rate: rate, 30, min(length, seconds - begin), usual_tokens)
        found += [(round(begin + moment, 4), tokens, priority) for moment, tokens, priority in burst]
        begin += length + chance.expovariate(1 / 400)
    return found


def flash(chance: random.Random, seconds: float) -> list[Arrival]:
    """A quiet service that a crowd finds within seconds: three times one replica's capacity for ten minutes."""
    begin = chance.uniform(0.25, 0.5) * seconds

    def rate(moment: float) -> float:
        if moment < begin:
            return 1.0
        if moment < begin + 600:
            return min(30.0, 1 + 3 * (moment - begin))
        return 1 + 29 * math.exp(-(moment - begin - 600) / 300)

    return arrivals(chance, rate, 30, seconds, usual_tokens)


def on_off(chance: random.Random, seconds: float) -> list[Arrival]:
    """Jobs of 4 to 12 minutes at 12 requests a second, with 10 to 25 minutes of nothing between them."""
    found: list[Arrival] = []
    begin = chance.uniform(0, 900)
    while begin < seconds:
        length = min(chance.uniform(240, 720), seconds - begin)
        job = arrivals(chance, lambda _: 12.0, 12, length, usual_tokens)
        found += [(round(begin + moment, 4), tokens, priority) for moment, tokens, priority in job]
        begin += length + chance.uniform(600, 1500)
    return found


def poisson(chance: random.Random, seconds: float) -> list[Arrival]:
    """A request every four minutes."""
    return arrivals(chance, lambda _: 1 / 240, 1 / 240, seconds, usual_tokens)


def heavy(chance: random.Random, seconds: float) -> list[Arrival]:
    """Six requests a second whose sizes have a heavy tail."""
    return arrivals(chance, lambda _: 6.0, 6, seconds, heavy_tokens)


TRACES: dict[str, Callable[[random.Random, float], list[Arrival]]] = {
    "diurnal": diurnal,
    "bursty": bursty,
    "flash": flash,
    "on-off": on_off,
    "poisson": poisson,
    "heavy": heavy,
}
CONTROLLERS: tuple[ControllerName, ...] = ("ours", "kpa", "keda-hpa")


def traces(seed: int, seconds: float) -> dict[str, list[Arrival]]:
    return {name: make(random.Random(f"{name} {seed}"), seconds) for name, make in TRACES.items()}


def case(found: dict[str, list[Arrival]], pods: int) -> Case:
    manifest = Manifest("bench", "model", policy_from_manifest(MANIFEST), Limits())
    plant = Plant(CAPACITY, COLD_START, WARM_START, pods)
    return Case(list(found), list(found.values()), [manifest] * len(found), plant)


def summary(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """The reports of several seeds as one: sums, misses over all requests, the longest p95 of the waits."""
    totals = [report["total"] for report in reports]
    requests = sum(total["requests"] for total in totals)
    found: dict[str, Any] = {
        "cost_replica_seconds": round(sum(total["cost_replica_seconds"] for total in totals)),
        "warm_idle_seconds": round(sum(report["warm_idle_seconds"] for report in reports)),
        "slo_miss_ratio": round(sum(total["slo_miss_ratio"] * total["requests"] for total in totals) / requests, 5),
        "lost": sum(total["lost"] + total["unfinished"] for total in totals),
        "wait_p95_seconds": max(total["wait_p95_seconds"] for total in totals),
        "scale_events": sum(total["scale_events"] for total in totals),
        "requests": requests,
    }
    if "target" in reports[0]:
        found["targets"] = [report["target"] for report in reports]
        found["swept"] = [report["swept"] for report in reports]
    return found


def verdict(row: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Ours against each baseline, as shares of its cost and of its misses."""
    ours = row["ours"]
    found: dict[str, Any] = {}
    for name in ("kpa", "keda-hpa"):
        other = row[name]
        found[name] = {
            "cost_ratio": round(ours["cost_replica_seconds"] / other["cost_replica_seconds"], 3),
            "miss_ratio": round(ours["slo_miss_ratio"] / other["slo_miss_ratio"], 3)
            if other["slo_miss_ratio"]
            else None,
            "costs_more_at_more_misses": ours["cost_replica_seconds"] > other["cost_replica_seconds"]
            and ours["slo_miss_ratio"] > other["slo_miss_ratio"],
        }
    return found


def bench(
    seeds: tuple[int, ...], seconds: float, pools: dict[str, int], controllers: tuple[ControllerName, ...]
) -> Any:
    sets = {seed: traces(seed, seconds) for seed in seeds}
    found: dict[str, Any] = {}
    for name in (*TRACES, "fleet"):
        row: dict[str, Any] = {}
        for controller in controllers:
            reports = []
            for seed in seeds:
                chosen = sets[seed] if name == "fleet" else {name: sets[seed][name]}
                reports.append(simulate(case(chosen, pools[name]), controller))
            row[controller] = summary(reports)
            print(f"{name} {controller}: done", file=sys.stderr)
        if len(controllers) == len(CONTROLLERS):
            row["verdict"] = verdict(row)
        found[name] = {"warm_pods": pools[name], **row}
    return found


def lines(found: dict[str, Any]) -> str:
    rows = ["set       controller   cost   idle   misses    lost  wait p95  events  targets"]
    for name, row in found.items():
        for controller in CONTROLLERS:
            if controller in row:
                one = row[controller]
                targets = " ".join(format(target, "g") for target in one.get("targets", []))
                cost, idle, misses = (
                    one[key] for key in ("cost_replica_seconds", "warm_idle_seconds", "slo_miss_ratio")
                )
                rows.append(
                    f"{name:9} {controller:9} {cost:8} {idle:6} {misses:8.3%} {one['lost']:6} "
                    f"{one['wait_p95_seconds']:9.3f} {one['scale_events']:7}  {targets}"
                )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", choices=list(SEEDS), default="held-out")
    parser.add_argument("--hours", type=float, default=1.0, help="length of each trace")
    parser.add_argument("--table", action="store_true", help="a table on the error stream too")
    parser.add_argument(
        "--pools", action="store_true", help="only ours, with pools of 0 to 4 pods: how POOLS was chosen"
    )
    options = parser.parse_args()
    seeds, seconds = SEEDS[options.seeds], 3600 * options.hours
    began = time.perf_counter()
    if options.pools:
        results = {
            f"{pods} warm pods": bench(seeds, seconds, dict.fromkeys(POOLS, pods), ("ours",)) for pods in range(5)
        }
        for title, found in results.items():
            print(title, lines(found), sep="\n", file=sys.stderr)
    else:
        results = bench(seeds, seconds, POOLS, CONTROLLERS)
        if options.table:
            print(lines(results), file=sys.stderr)
    setting = {
        "seeds": seeds,
        "hours": options.hours,
        "capacity_tokens_per_second": CAPACITY,
        "cold_start_seconds": COLD_START,
        "warm_start_seconds": WARM_START,
        "manifest": MANIFEST,
        "took_seconds": round(time.perf_counter() - began, 1),
    }
    print(json.dumps({"setting": setting, "sets": results}, indent=2))


if __name__ == "__main__":
    main()
