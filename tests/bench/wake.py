"""From nothing to the first score, with the demo model and the genuine worker: from a warm pool and cold. JSON out.

    python tests/bench/wake.py [--warm 30] [--cold 5] [--json FILE]

On a local cluster of its own (``--name``), everything real. Each wake: the Reranker has no worker; one request with
three short passages comes; the clock runs until its scores are there. Phases, each from the end of the one before:

- told: until the gateway's demand line tells of the request (a second listener on the stream);
- decided (warm): until the operator has claimed a pod, by the time that it wrote on it; decided (cold): until the
  Deployment's new number of replicas came from the API server's watch;
- loaded (warm): until the pod is marked as serving (the model is loaded into it, if it is not in it), as watched; ready
  (cold): until the new pod is Ready: scheduled, started, libraries imported, model loaded;
- scored: until the client has its scores.
"""

import contextlib
import sys
import time
import urllib.request
from collections.abc import Callable
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from rerank_api import names

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness import figures
from harness.cluster import STATE, Cluster, devcluster, local_cluster, wait_for
from harness.demand_lines import DemandLines
from harness.load import Call, Replay
from harness.release import SYSTEM_NAMESPACE, Release, is_ready, namespace, reranker
from harness.scenario import Fleet, fleet_of, history, workers_watched
from harness.watching import Change

NAMESPACE, POOL = "bench", "shared"
IDLE_TIMEOUT = "2s"
SETTLE = 1.0
DEADLINE = 180.0
REQUEST_TOKENS = 3 * 40


def main() -> int:
    parser = figures.parser(__doc__)
    parser.add_argument("--warm", type=int, default=30, help="wakes from the pool (default: %(default)s)")
    parser.add_argument("--cold", type=int, default=5, help="wakes without one (default: %(default)s)")
    parser.add_argument("--pool", type=int, default=1, help="pods of the pool (default: %(default)s)")
    parser.add_argument("--name", default="e6-wake", help="the local cluster's name (default: %(default)s)")
    parser.add_argument("--keep", action="store_true", help="leave the cluster up")
    options = parser.parse_args()
    try:
        found = bench(local_cluster(options.name), options.warm, options.cold, options.pool)
    finally:
        if not options.keep:
            devcluster("down", "--name", options.name)
    figures.publish(options, found)
    return 0


def bench(cluster: Cluster, warm: int, cold: int, size: int) -> dict[str, Any]:
    figures.note("chart, pool and Rerankers")
    release = Release(cluster)
    release.install()
    uri = f"file://{STATE / 'models' / 'demo-reranker'}"
    scaling = {"minReplicas": 0, "maxReplicas": 1, "idleTimeout": IDLE_TIMEOUT}
    requests = {"timeout": "60s"}
    warm_one = reranker("warm", NAMESPACE, uri, requests=requests, scaling={**scaling, "warmPool": POOL})
    overlay = warm_one["spec"]["runtime"]["podTemplate"]
    cluster.apply(
        namespace(NAMESPACE),
        {
            "apiVersion": names.API_VERSION,
            "kind": names.WARM_POOL_KIND,
            "metadata": {"name": POOL, "namespace": NAMESPACE},
            "spec": {"size": size, "device": "cpu", "podTemplate": overlay},
        },
        warm_one,
    )
    found: dict[str, Any] = {}
    if warm:
        found["warm"] = series(cluster, release, "warm", warm, lambda: free(cluster) >= size, warm_phases)
        found["operator_metrics"] = operator_metrics(cluster, release)
    if cold:
        # The pool's processes would have a share of the cores, which nobody without a pool has to give.
        cluster.kubectl("delete", names.WARM_POOL_PLURAL, POOL, "-n", NAMESPACE, "--wait=true")
        cluster.apply(reranker("cold", NAMESPACE, uri, requests=requests, scaling=scaling))
        found["cold"] = series(cluster, release, "cold", cold, lambda: True, cold_phases)
    return found


def free(cluster: Cluster) -> int:
    """Warm pods that are ready and lent to nobody."""
    pods = cluster.items("pods", "-n", NAMESPACE, "-l", f"{names.LABEL_WARM_POOL}={POOL}")
    return sum(is_ready(pod) and names.LABEL_LOANED_TO not in pod["metadata"]["labels"] for pod in pods)


Phases = Callable[[str, list[Change], float, float | None, float], dict[str, float] | None]


def series(
    cluster: Cluster, release: Release, name: str, count: int, prepared: Callable[[], bool], phases: Phases
) -> dict[str, Any]:
    """``count`` wakes of the Reranker ``name``, each from zero and from a pool that is ``prepared``."""
    gateways = wait_for("gateways", release.gateway_urls, timeout=60)
    lines = DemandLines(gateways[0], NAMESPACE, name)
    total: list[float] = []
    parts: dict[str, list[float]] = {}
    lost: list[str] = []
    own: list[int] = []
    with workers_watched(cluster, NAMESPACE) as changes:

        def at_zero() -> bool:
            seen = history(name, changes())
            return bool(seen) and seen[-1].fleet == Fleet() and prepared()

        for number in range(count):
            wait_for(f"{name} to have no workers", at_zero, timeout=DEADLINE)
            time.sleep(SETTLE)  # what is still on its way of the last wake must not be taken for this one
            with Replay(
                lambda: gateways[:1], f"{NAMESPACE}/{name}", [Call(0.0, REQUEST_TOKENS)], timeout=DEADLINE
            ) as load:
                sent = load.began - time.monotonic() + time.time()
                outcome = load.wait().outcomes[0]
            if not outcome.ok:
                lost.append(f"{outcome.status} {outcome.error}")
                figures.note(f"{name} {number + 1} of {count}: LOST {lost[-1]}")
                continue
            total.append(outcome.seconds)
            seen = [change for change in changes() if change.seen >= sent]
            own.append(max((moment.fleet.wanted for moment in history(name, seen)), default=0))
            times = phases(name, seen, sent, lines.first_since(sent), sent + outcome.seconds)
            for phase, seconds in (times or {}).items():
                parts.setdefault(phase, []).append(seconds)
            shown = ", ".join(f"{phase} {1000 * seconds:.0f}" for phase, seconds in (times or {}).items())
            figures.note(f"{name} {number + 1} of {count}: {1000 * outcome.seconds:.0f} ms ({shown})")
    return {
        "wakes": count,
        "lost": len(lost),
        "failures": lost[:10],
        "first_score": figures.spread(total),
        "phases": {phase: figures.spread(values) for phase, values in parts.items()},
        "wakes_that_started_own_replicas": sum(wanted > 0 for wanted in own),
    }


def differences(instants: dict[str, float]) -> dict[str, float]:
    """From the end of each phase to the end of the next; the first instant is the start."""
    times = list(instants.items())
    return {name: at - before for (_, before), (name, at) in pairwise(times)}


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


def operator_metrics(cluster: Cluster, release: Release) -> list[str]:
    """What the leading operator itself says about wakes: sums and counts of its histograms."""
    leader = release.leader()
    pods = [p for p in cluster.processes(namespace=SYSTEM_NAMESPACE) if p["pod"] in leader]
    if not pods:
        return []
    with contextlib.closing(urllib.request.urlopen(f"http://{pods[0]['podIP']}:9090/metrics", timeout=5)) as answer:
        lines = answer.read().decode().splitlines()
    return [line for line in lines if "wake" in line and not line.startswith("#") and "_bucket" not in line]


if __name__ == "__main__":
    sys.exit(main())
