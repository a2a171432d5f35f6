"""Traces on a local cluster, from nothing back to nothing, with and without a warm pool. JSON out.

    python tests/bench/scaling_cluster.py [--trace flash] [--pools 0 2] [--capacity 20000] [--json FILE]

Gateways, operator, API server and kubelets are real, and so is the HTTP load (open loop; nothing is retried). The
workers are PACED: the genuine server with an engine that computes nothing and takes the time of a stated device, for
replicas that share two cores add no capacity. Figures that come from this say so.

Traces: ``flash`` (nothing, then at once 3 times one replica's capacity for a minute, then nothing), ``diurnal`` (a day
in four minutes, up to 3 replicas' worth), ``on-off`` (four jobs of 20 s at 1.2 times one replica's capacity, 40 s
apart). About 25 minutes for all six runs.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness import figures, traces
from harness.cluster import Cluster, CommandError, devcluster, local_cluster, wait_for
from harness.paced import Profile
from harness.release import Release, is_ready, namespace
from harness.scenario import elastic, paced_pool, play

NAMESPACE, POOL = "bench", "shared"
TRACES: dict[str, Callable[[float], traces.Trace]] = {
    "flash": traces.flash_crowd,
    "diurnal": traces.diurnal,
    "on-off": traces.on_off,
}
DEADLINE = 300.0


def main() -> int:
    parser = figures.parser(__doc__)
    parser.add_argument("--trace", choices=list(TRACES), action="append", help="repeatable (default: all)")
    parser.add_argument("--pools", type=int, nargs="+", default=[0, 3], help="pods of the pool (default: 0 3)")
    parser.add_argument("--capacity", type=float, default=20_000.0, help="tokens/s of a replica (default: %(default)s)")
    parser.add_argument("--cold-start", type=float, default=10.0, help="seconds of a replica (default: %(default)s)")
    parser.add_argument("--load-seconds", type=float, default=0.3, help="of one model (default: %(default)s)")
    parser.add_argument("--idle-timeout", default="15s", help="spec.scaling.idleTimeout (default: %(default)s)")
    parser.add_argument("--name", default="e6-scaling", help="the local cluster's name (default: %(default)s)")
    parser.add_argument("--keep", action="store_true", help="leave the cluster up")
    options = parser.parse_args()
    profile = Profile(options.capacity, start_seconds=options.cold_start, load_seconds=options.load_seconds)
    lost = 0
    runs: list[dict[str, Any]] = []
    try:
        cluster = local_cluster(options.name)
        release = Release(cluster)
        figures.note("chart")
        release.install()
        for size in options.pools:
            for name in options.trace or list(TRACES):
                figures.note(f"{name} with a pool of {size}")
                run = one(cluster, release, profile, name, size, options.idle_timeout)
                runs.append({"run": name, "pool": size, **run})
                figures.note(tell(run))
                lost += run["clients"]["lost"] if "clients" in run else 1
    finally:
        if not options.keep:
            devcluster("down", "--name", options.name)
    stated = {**msgspec.to_builtins(profile), "capacityTokensPerSecond": round(profile.capacity, 1)}
    figures.publish(
        options, {"workers": "PACED: no computing, the time of this device", "profile": stated, "runs": runs}
    )
    return 1 if lost else 0


def one(
    cluster: Cluster, release: Release, profile: Profile, trace: str, size: int, idle_timeout: str
) -> dict[str, Any]:
    """One run in a namespace of its own, which is gone afterwards. A run that does not end in time is told as such."""
    home, name = f"{NAMESPACE}-{trace}-{size}", "played"
    cluster.apply(namespace(home))
    try:
        if size:
            cluster.apply(paced_pool(POOL, home, profile, size))
            wait_for("the pool", lambda: ready(cluster, home) >= size, timeout=DEADLINE)
        cluster.apply(elastic(name, home, profile, POOL if size else None, idleTimeout=idle_timeout))
        return play(cluster, release, home, name, TRACES[trace](profile.capacity), timeout=DEADLINE)
    except CommandError as error:
        return {"failed": str(error)}
    finally:
        cluster.kubectl("delete", "namespace", home, "--wait=true", "--timeout=120s", timeout=130, check=False)


def ready(cluster: Cluster, home: str) -> int:
    return sum(map(is_ready, cluster.items("pods", "-n", home)))


def tell(run: dict[str, Any]) -> str:
    if "failed" in run:
        return f"FAILED: {run['failed']}"
    clients, fleet = run["clients"], run["fleet"]
    return (
        f"{clients['requests']} requests, {clients['lost']} lost, p50 {clients['p50_ms']:.0f}, p95 "
        f"{clients['p95_ms']:.0f}, p99 {clients['p99_ms']:.0f} ms; own changes {fleet['own_changes']} (rises "
        f"{fleet['own_rises']} of the trace's {run['trace']['rises']}), loaner changes {fleet['loaner_changes']}; zero "
        f"after {fleet['zero_after_last_answer_s']:.0f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
