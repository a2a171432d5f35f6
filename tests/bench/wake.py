"""From nothing to the first score, with the demo model and the genuine worker: from a warm pool and cold. JSON out.

    python tests/bench/wake.py [--warm 30] [--swapped 10] [--cold 5] [--json FILE]

On a local cluster of its own (``--name``), everything real. Each wake: the Reranker has no worker; one request with
three short passages comes; the clock runs until its scores are there. Three series:

- warm: from a pool whose pod has the model, as it has where it holds all models of its Rerankers;
- swapped: two Rerankers in turn share a pod that holds one model: each wake unloads the other's and loads its own;
- cold: without a pool, and with no pool on the machine.

Phases, each from the end of the one before:

- told: until the gateway's demand line tells of the request (a second listener on the stream);
- decided (warm): until the operator has claimed a pod, by the time that it wrote on it; decided (cold): until the
  Deployment's new number of replicas came from the API server's watch;
- loaded (warm): until the pod is marked as serving, as watched: the worker is asked to have the model, and loads it
  where it has not; created and ready (cold): until the new pod is there, and until it is Ready: scheduled, started,
  libraries imported, model loaded and measured (``worker_seconds`` tells the worker's own parts of that);
- scored: until the client has its scores.
"""

import contextlib
import json
import sys
import time
import urllib.request
from collections.abc import Callable, Generator, Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from rerank_api import names

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness import figures
from harness.cluster import STATE, Cluster, devcluster, local_cluster, wait_for
from harness.demand_lines import DemandLines
from harness.load import Call, Outcome, Replay
from harness.release import SYSTEM_NAMESPACE, Release, is_ready, namespace, reranker, warm_pool
from harness.scenario import Fleet, fleet_of, history, workers_watched
from harness.watching import Change

NAMESPACE = "bench"
MODELS = {"good": "demo-reranker", "worse": "demo-reranker-worse"}
HOLDS_ALL, HOLDS_ONE = "shared", "single"
"""The pools: nothing is loaded in a wake from the first."""
IDLE_TIMEOUT = "2s"
SETTLE = 1.0
DEADLINE = 180.0
REQUEST_TOKENS = 3 * 40


def main() -> int:
    parser = figures.parser(__doc__)
    parser.add_argument("--warm", type=int, default=30, help="wakes from the pool (default: %(default)s)")
    parser.add_argument("--swapped", type=int, default=10, help="wakes that load the model (default: %(default)s)")
    parser.add_argument("--cold", type=int, default=5, help="wakes without a pool (default: %(default)s)")
    parser.add_argument("--name", default="e6-wake", help="the local cluster's name (default: %(default)s)")
    parser.add_argument("--keep", action="store_true", help="leave the cluster up")
    options = parser.parse_args()
    try:
        found = bench(local_cluster(options.name), options.warm, options.swapped, options.cold)
    finally:
        if not options.keep:
            devcluster("down", "--name", options.name)
    figures.publish(options, found)
    return 1 if any(found[series]["lost"] for series in ("warm", "swapped", "cold") if series in found) else 0


def bench(cluster: Cluster, warm: int, swapped: int, cold: int) -> dict[str, Any]:
    figures.note("chart")
    release = Release(cluster)
    release.install()
    cluster.apply(namespace(NAMESPACE))
    found: dict[str, Any] = {}
    if warm:
        with pool(cluster, HOLDS_ALL, models=8):
            cluster.apply(sleeper("warm", MODELS["good"], HOLDS_ALL))
            found["warm"] = series(cluster, release, ["warm"], warm, HOLDS_ALL, warm_phases)
        found["warm"]["operator_metrics"] = operator_metrics(cluster, release)
    if swapped:
        with pool(cluster, HOLDS_ONE, models=1):
            rerankers = [f"swapped-{name}" for name in MODELS]
            cluster.apply(*(sleeper(f"swapped-{name}", folder, HOLDS_ONE) for name, folder in MODELS.items()))
            found["swapped"] = series(cluster, release, rerankers, swapped, HOLDS_ONE, warm_phases)
    if cold:
        cluster.apply(sleeper("cold", MODELS["good"]))
        found["cold"] = series(cluster, release, ["cold"], cold, None, cold_phases)
    return found


def sleeper(name: str, folder: str, pool: str | None = None) -> dict[str, Any]:
    scaling = {"minReplicas": 0, "maxReplicas": 1, "idleTimeout": IDLE_TIMEOUT, **({"warmPool": pool} if pool else {})}
    uri = f"file://{STATE / 'models' / folder}"
    return reranker(name, NAMESPACE, uri, requests={"timeout": "60s"}, scaling=scaling)


@contextlib.contextmanager
def pool(cluster: Cluster, name: str, models: int) -> Generator[None]:
    """A WarmPool of one pod, gone afterwards: its process would have a share of the cores."""
    cluster.apply(warm_pool(name, NAMESPACE, 1, maxModelsPerPod=models))
    yield
    cluster.kubectl("delete", names.KIND, "--all", "-n", NAMESPACE, "--wait=true")
    cluster.kubectl("delete", names.WARM_POOL_PLURAL, name, "-n", NAMESPACE, "--wait=true")
    wait_for("the pods to go", lambda: not cluster.items("pods", "-n", NAMESPACE), timeout=DEADLINE)


def is_free(cluster: Cluster, pool: str) -> bool:
    """Whether the pool's pod is ready and lent to nobody."""
    pods = cluster.items("pods", "-n", NAMESPACE, "-l", f"{names.LABEL_WARM_POOL}={pool}")
    return any(is_ready(pod) and names.LABEL_LOANED_TO not in pod["metadata"]["labels"] for pod in pods)


Phases = Callable[[str, list[Change], float, float | None, float], dict[str, float] | None]


def series(
    cluster: Cluster, release: Release, rerankers: Sequence[str], count: int, pool: str | None, phases: Phases
) -> dict[str, Any]:
    """``count`` wakes of ``rerankers`` in turn, each from zero, and with the pod of ``pool`` free. The first of each
    is not counted: it finds out what a worker can do, and what the pool's pod is to hold."""
    gateways = wait_for("gateways", release.gateway_urls, timeout=60)
    lines = {name: DemandLines(gateways[0], NAMESPACE, name) for name in rerankers}
    total: list[float] = []
    parts: dict[str, list[float]] = {}
    workers: dict[str, list[float]] = {}
    lost: list[str] = []
    own = 0
    with workers_watched(cluster, NAMESPACE) as changes:

        def at_zero() -> bool:
            fleets = [seen[-1].fleet for name in rerankers if (seen := history(name, changes()))]
            return len(fleets) == len(rerankers) and set(fleets) == {Fleet()} and (not pool or is_free(cluster, pool))

        for number in range(-len(rerankers), count):
            name = rerankers[number % len(rerankers)]
            wait_for(f"{name} to have no workers", at_zero, timeout=DEADLINE)
            time.sleep(SETTLE)  # what is still on its way of the last wake must not be taken for this one
            sent, outcome = ask(gateways[0], name)
            if not outcome.ok:
                lost.append(f"{outcome.status} {outcome.error}")
                figures.note(f"{name} {number + 1} of {count}: LOST {lost[-1]}")
                continue
            seen = [change for change in changes() if change.seen >= sent]
            times = phases(name, seen, sent, lines[name].first_since(sent), sent + outcome.seconds)
            shown = ", ".join(f"{phase} {1000 * seconds:.0f}" for phase, seconds in (times or {}).items())
            figures.note(f"{name} {number + 1} of {count}: {1000 * outcome.seconds:.0f} ms ({shown})")
            if number < 0:
                continue
            total.append(outcome.seconds)
            own += any(moment.fleet.wanted for moment in history(name, seen))
            gather(parts, times or {})
            if pool != HOLDS_ALL:
                gather(workers, worker_seconds(seen, name, pool))
    return {
        "wakes": count,
        "lost": len(lost),
        "failures": lost[:10],
        "first_score": figures.spread(total),
        "phases": {phase: figures.spread(values) for phase, values in parts.items()},
        "worker_seconds": {part: round(median(values), 3) for part, values in workers.items()},
        "wakes_that_started_own_replicas": own,
    }


def ask(gateway: str, name: str) -> tuple[float, Outcome]:
    """One request; when it was sent (Unix seconds) and what came of it."""
    calls = [Call(0.0, REQUEST_TOKENS)]
    with Replay(lambda: [gateway], f"{NAMESPACE}/{name}", calls, timeout=DEADLINE) as load:
        sent = load.began - time.monotonic() + time.time()
        return sent, load.wait().outcomes[0]


def gather(lists: dict[str, list[float]], values: dict[str, float]) -> None:
    for name, value in values.items():
        lists.setdefault(name, []).append(value)


def differences(instants: dict[str, float]) -> dict[str, float]:
    """From the end of each phase to the end of the next; the first instant is the start."""
    return {name: at - before for (_, before), (name, at) in pairwise(instants.items())}


def warm_phases(
    name: str, changes: list[Change], sent: float, line: float | None, ended: float
) -> dict[str, float] | None:
    """None: something of it was not seen, so that no phase of this wake counts."""
    claimed = marked = None
    for change in sorted(changes, key=lambda change: change.seen):
        metadata = change.object["metadata"]
        if metadata.get("labels", {}).get(names.LABEL_LOANED_TO) == name:
            annotations = metadata.get("annotations", {})
            claimed = claimed or datetime.fromisoformat(annotations[names.ANNOTATION_LOANED_AT]).timestamp()
            if names.ANNOTATION_LOAN_SERVING in annotations:
                marked = marked or change.seen
    if line is None or claimed is None or marked is None:
        return None
    return differences({"sent": sent, "told": line, "decided": claimed, "loaded": marked, "scored": ended})


def cold_phases(
    name: str, changes: list[Change], sent: float, line: float | None, ended: float
) -> dict[str, float] | None:
    """As ``warm_phases``."""
    wrote = created = ready = None
    for change in sorted(changes, key=lambda change: change.seen):
        fleet = fleet_of(name, [change.object])
        wrote = wrote or (change.seen if fleet.wanted else None)
        created = created or (change.seen if fleet.pods else None)
        ready = ready or (change.seen if fleet.ready and fleet.pods else None)
    if line is None or wrote is None or created is None or ready is None:
        return None
    instants = {"sent": sent, "told": line, "decided": wrote, "created": created, "ready": ready, "scored": ended}
    return differences(instants)


def worker_seconds(changes: list[Change], name: str, pool: str | None) -> dict[str, float]:
    """What the worker that woke says about its load, in seconds: in all, and by part. Empty when it cannot be asked."""
    label, value = (names.LABEL_WARM_POOL, pool) if pool else (names.LABEL_RERANKER, name)
    addresses = [
        change.object.get("status", {}).get("podIP")
        for change in changes
        if change.object["metadata"].get("labels", {}).get(label) == value and change.kind != "DELETED"
    ]
    address = next((address for address in reversed(addresses) if address), None)
    if address is None:
        return {}
    with contextlib.suppress(OSError, ValueError):
        path = "/v1/models" if pool else "/v1/info"
        with urllib.request.urlopen(f"http://{address}:{names.WORKER_PORT}{path}", timeout=5) as answer:
            told = json.load(answer)
        if pool:
            told = next((m["facts"] for m in told["models"] if f".{name}." in m["key"] and m["state"] == "ready"), {})
        if "loadSeconds" in told:
            return {"load": told["loadSeconds"], **told.get("loadSecondsOf", {})}
    return {}


def operator_metrics(cluster: Cluster, release: Release) -> list[str]:
    """What the leading operator itself says about wakes so far: sums and counts of its histograms."""
    leader = release.leader()
    pods = [p for p in cluster.processes(namespace=SYSTEM_NAMESPACE) if p["pod"] in leader]
    if not pods:
        return []
    with contextlib.closing(urllib.request.urlopen(f"http://{pods[0]['podIP']}:9090/metrics", timeout=5)) as answer:
        lines = answer.read().decode().splitlines()
    return [line for line in lines if "wake" in line and not line.startswith("#") and "_bucket" not in line]


if __name__ == "__main__":
    sys.exit(main())
