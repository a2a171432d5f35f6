"""Our judge of rollouts against Flagger's and Kayenta's rules, by simulation: how often a healthy canary is rolled
back, and after how many requests a bad one; JSON out.

    python tests/bench/rollout.py [--runs 200] [--judges ours,flagger,kayenta] [--only SUBSTRING] [--samples FILE]
    python tests/bench/rollout.py --drawn 200 --runs 40 [--judges ours,flagger,kayenta]

Healthy canaries at each rate, share of errors and correlation of latencies; then bad ones at each rate. Each row can be
run alone: --only takes a part of its name. --samples adds healthy rows
that replay a file of recorded latencies (seconds, one a line; tests/bench/latencies.py records one) in both arms.
--drawn has so many healthy rows instead of all these, in which everything is drawn by chance: rate, steps, errors,
latencies and how alike neighbours are, bursts, and a golden set or none.

Every run is deterministic, and each judge meets the same draws. The figures are of a model (docs/canary-judge.md), not
of a cluster. A share of N runs is known to about 2 sqrt(share (1 - share) / N); none in 200 still allows 1.5 %.
"""

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rerank_operator.rollout.simulate.report import report
from rerank_operator.rollout.simulate.runs import JUDGES, simulate
from rerank_operator.rollout.simulate.scenario import (
    GOLDEN_CORRELATION,
    RUNS,
    WEIGHTS,
    Arm,
    Bursts,
    LogNormal,
    Quality,
    Samples,
    Scenario,
    read_samples,
)

HORIZONS = {0.2: 86_400.0, 1.0: 28_800.0, 5.0: 14_400.0, 50.0: 3_600.0}
"""Seconds, by requests a second: the less there is, the longer a rollout may take."""

P50, P95 = 0.05, 0.12
ARM = Arm(error_rate=0.001, latency=LogNormal(P50, P95), quality=None)
CORRELATION = 0.5
"""Of the latencies, where it is not what varies."""
ALIKE = (0.95, 0.99)
"""Correlations at which a day at 0.2 requests a second decides little."""
GOLDEN = Arm(error_rate=0.001, latency=LogNormal(P50, P95), quality=Quality(0.7, 0.2))
GOLDEN_QUERIES = 200
BURSTS = Bursts(factor=5.0, on=30.0, off=270.0)

BAD = {
    "p95 +20 %, p50 alike": replace(ARM, latency=LogNormal(P50, 1.2 * P95)),
    "p95 +20 %, p50 +20 %": replace(ARM, latency=LogNormal(1.2 * P50, 1.2 * P95)),
    "errors +1 point": replace(ARM, error_rate=0.011),
    "nDCG -0.02": replace(GOLDEN, quality=Quality(0.68, 0.2)),
    "gross, ten times slower": replace(ARM, latency=LogNormal(10 * P50, 10 * P95)),
    "gross, errors +10 points": replace(ARM, error_rate=0.101),
}


def scenario(rate: float, stable: Arm, canary: Arm, correlation: float | None = CORRELATION) -> Scenario:
    return Scenario(
        requests_per_second=rate,
        horizon=HORIZONS[rate],
        runs=RUNS,
        seed=0,
        weights=WEIGHTS,
        correlation=correlation,
        bursts=None,
        golden_queries=GOLDEN_QUERIES if stable.quality else 0,
        golden_correlation=GOLDEN_CORRELATION,
        stable=stable,
        canary=canary,
    )


def scenarios(recorded: Sequence[Samples]) -> Iterator[tuple[str, Scenario]]:
    for rate in HORIZONS:
        for errors in (0.001, 0.005):
            arm = replace(ARM, error_rate=errors)
            for correlation in (0.0, 0.5, 0.9, *(ALIKE if errors == ARM.error_rate and rate >= 1 else ())):
                name = f"healthy, {rate:g}/s, errors {errors:.1%}, correlation {correlation:g}"
                yield name, scenario(rate, arm, arm, correlation)
        for samples in recorded:
            arm = replace(ARM, latency=samples)
            yield f"healthy, {rate:g}/s, errors 0.1%, {Path(samples.file).name}", scenario(rate, arm, arm, None)
    yield "healthy, 5/s, bursts", replace(scenario(5.0, ARM, ARM), bursts=BURSTS)
    yield "healthy, 5/s, golden set", scenario(5.0, GOLDEN, GOLDEN)
    for what, canary in BAD.items():
        for rate in HORIZONS:
            yield f"{what}, {rate:g}/s", scenario(rate, GOLDEN if canary.quality else ARM, canary)


REQUESTS = (3_000.0, 60_000.0)
"""Of a rollout that is drawn, about."""
STEPS = (1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 40.0, 50.0, 60.0, 75.0, 90.0)


def drawn(number: int) -> tuple[str, Scenario]:
    """The same for the same number."""
    chance = random.Random(number)
    rate = chance.choice(list(HORIZONS))
    bursts, busier = None, 1.0
    if chance.random() < 0.5:
        bursts = Bursts(chance.uniform(2, 10), chance.uniform(10, 120), chance.uniform(60, 600))
        busier = (bursts.factor * bursts.on + bursts.off) / (bursts.on + bursts.off)
    weights = sorted(chance.sample(STEPS, chance.randint(1, 6)))
    errors = chance.choice((0.0, 0.0005, 0.001, 0.005, 0.02, chance.uniform(0, 0.05)))
    p50 = _between(chance, 0.01, 0.5)
    latency = LogNormal(p50, p50 * _between(chance, 1.2, 10))
    golden = chance.random() < 0.4
    quality = Quality(chance.uniform(0.4, 0.95), chance.uniform(0.1, 0.35)) if golden else None
    correlation = chance.choice((0.0, 0.5, 0.9, 0.95, 0.99, chance.uniform(0, 0.99)))
    arm = Arm(errors, latency, quality)
    found = replace(
        scenario(rate, arm, arm, correlation),
        seed=number,
        horizon=_between(chance, *REQUESTS) / rate / busier,
        weights=(*weights, 100.0) if chance.random() < 0.5 else tuple(weights),
        bursts=bursts,
        golden_queries=chance.randint(20, 500) if golden else 0,
    )
    return f"healthy, drawn {number}, {rate:g}/s", found


def _between(chance: random.Random, least: float, most: float) -> float:
    """As often in each of its octaves."""
    return math.exp(chance.uniform(math.log(least), math.log(most)))


HEAD = (
    "| scenario | judge | rolled back | promoted | held | canary's requests to rollback p50 / p90 "
    "| seconds to decision p50 | users' requests on the canary p50 |\n| --- | --- | --- | --- | --- | --- | --- | --- |"
)


def table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [HEAD]
    for row in rows:
        for place, one in enumerate(row["judges"]):
            touched = " / ".join(figure(one[f"canary_requests_to_rollback_{quantile}"]) for quantile in ("p50", "p90"))
            shares = " | ".join(f"{one[key]:.1%}" for key in ("rollback_rate", "promote_rate", "hold_rate"))
            decided, users = (figure(one[key]) for key in ("seconds_to_decision_p50", "user_requests_on_canary_p50"))
            name = "" if place else row["scenario"]
            lines.append(f"| {name} | {one['judge']} | {shares} | {touched} | {decided} | {users} |")
    return "\n".join(lines)


def totals(rows: Sequence[dict[str, Any]], judges: Sequence[str]) -> dict[str, Any]:
    """Of all healthy rollouts, by judge; ``most``: the largest share of one row that was rolled back."""
    found: dict[str, Any] = {}
    for place, judge in enumerate(judges):
        healthy = [row["judges"][place] for row in rows if row["scenario"].startswith("healthy")]
        counts = {
            what: sum(round(one[f"{what}_rate"] * one["runs"]) for one in healthy)
            for what in ("rollback", "promote", "hold")
        }
        most = max((one["rollback_rate"] for one in healthy), default=0.0)
        found[judge] = {"runs": sum(one["runs"] for one in healthy), **counts, "most": most}
    return found


def figure(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=RUNS, help=f"of each row and judge; default: {RUNS}")
    parser.add_argument("--judges", default=",".join(JUDGES), help="separated by commas; default: all")
    parser.add_argument("--only", default="", metavar="SUBSTRING", help="rows whose name has it")
    parser.add_argument("--samples", type=Path, action="append", default=[], metavar="FILE", help="repeatable")
    parser.add_argument(
        "--drawn", type=int, metavar="NUMBER", help="so many healthy rows at random, instead of all others"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the JSON goes; default: the output stream")
    parser.add_argument("--table", action="store_true", help="a table in Markdown on the error stream too")
    options = parser.parse_args()
    judges = options.judges.split(",")
    if not set(judges) <= JUDGES.keys():
        parser.error(f"--judges {options.judges}: must be of {', '.join(JUDGES)}")
    recorded = [read_samples(str(path), path) for path in options.samples]
    rows: list[dict[str, Any]] = []
    began = time.perf_counter()
    chosen = scenarios(recorded) if options.drawn is None else map(drawn, range(options.drawn))
    for name, found in chosen:
        if options.only in name:
            run = replace(found, runs=options.runs)
            row: dict[str, Any] = {"scenario": name, "judges": []}
            for judge in judges:
                one = report(judge, simulate(run, JUDGES[judge]), run)
                row["settings"] = one.pop("settings")
                row["judges"].append(one)
                print(f"{time.perf_counter() - began:7.1f} s  {name}: {judge} done", file=sys.stderr)
            rows.append(row)
    took = round(time.perf_counter() - began, 1)
    results = json.dumps({"took_seconds": took, "healthy": totals(rows, judges), "rows": rows}, indent=2)
    if options.json:
        options.json.write_text(results + "\n")
    else:
        print(results)
    if options.table:
        print(table(rows), file=sys.stderr)


if __name__ == "__main__":
    main()
