"""How quickly the operator decides: the pure decision, and from demand at a gateway to the write. JSON out.

    python tests/bench/decide.py [--rounds 200] [--wakes 20] [--json FILE]
    python tests/bench/decide.py --pure          # without a cluster

- pure: ``scaling.decide`` for 1, 100 and 1,000 Rerankers in turn, each with a memory filled by two minutes of traffic,
  with and without a warm pool; microseconds of one decision and milliseconds of a pass over all of them.
- end to end: on a local cluster of its own (``--name``) with real gateways and a real operator, a request for a
  Reranker that has no worker. From its leaving the client, and from the gateway's demand line with it, until the
  Deployment's new number of replicas comes from the API server's watch; the request is then given up, and the next one
  waits for zero. Workers are told to take a minute to start, so that none ever serves.
"""

import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rerank_operator.scaling.decide import decide
from rerank_operator.scaling.demand import Demand, Fleet
from rerank_operator.scaling.memory import Memory
from rerank_operator.scaling.policy import Policy

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness import figures
from harness.cluster import Cluster, devcluster, local_cluster, wait_for
from harness.demand_lines import DemandLines
from harness.load import Call, Replay
from harness.paced import Profile
from harness.release import Release, namespace
from harness.scenario import Fleet as Workers
from harness.scenario import elastic, fleet_of, history, workers_watched

NAMESPACE, NAME = "bench", "decided"
COUNTS = (1, 100, 1_000)
FILL_SECONDS = 120
QUICK_START = Profile()
"""Its workers must serve in the end: what starts is not stopped before it could, so nothing would go back to zero."""
DEADLINE = 60.0


def main() -> int:
    parser = figures.parser(__doc__)
    parser.add_argument("--rounds", type=int, default=200, help="decisions of one Reranker (default: %(default)s)")
    parser.add_argument("--wakes", type=int, default=20, help="end to end (default: %(default)s)")
    parser.add_argument("--pure", action="store_true", help="only the pure decision: no cluster")
    parser.add_argument("--name", default="e6-decide", help="the local cluster's name (default: %(default)s)")
    parser.add_argument("--keep", action="store_true", help="leave the cluster up")
    options = parser.parse_args()
    found: dict[str, Any] = {"pure": pure(options.rounds)}
    if not options.pure:
        try:
            found["end_to_end"] = end_to_end(local_cluster(options.name), options.wakes)
        finally:
            if not options.keep:
                devcluster("down", "--name", options.name)
    figures.publish(options, found)
    return 0


# --- the pure decision ---


@dataclass
class Case:
    """One Reranker as it is between two decisions."""

    policy: Policy
    demand: Demand
    fleet: Fleet
    memory: Memory
    now: float

    def step(self) -> None:
        """A tenth of a second of traffic later, decide again."""
        self.now += 0.1
        demand = self.demand
        self.demand = replace(
            demand,
            arrived_requests=demand.arrived_requests + 1,
            arrived_tokens=demand.arrived_tokens + 2_000,
            last_ended=self.now,
        )
        decision = decide(self.policy, self.demand, self.fleet, self.memory, self.now)
        self.memory = decision.memory
        self.fleet = replace(self.fleet, wanted=decision.replicas, ready=decision.replicas)


def filled(pool: str | None) -> Case:
    demand = Demand(3, 6_000, 2, 4_000, 0, 0, None)
    fleet = Fleet(1, 1, 0, 0, 0, 20_000.0, 10.0, 1.0, 2 if pool else 0)
    case = Case(Policy(warm_pool=pool, latency_threshold=0.5), demand, fleet, Memory(), 1_800_000_000.0)
    for _ in range(FILL_SECONDS * 10):
        case.step()
    return case


def pure(rounds: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, pool in (("without a pool", None), ("with a pool", "shared")):
        original = filled(pool)
        for count in COUNTS:
            figures.note(f"pure, {name}: {count} Rerankers")
            cases = [replace(original) for _ in range(count)]
            each: list[float] = []
            passes: list[float] = []
            cpu = time.thread_time()
            for _ in range(max(5, rounds // count)):
                began = last = time.perf_counter()
                for case in cases:
                    case.step()
                    now = time.perf_counter()
                    each.append(now - last)
                    last = now
                passes.append(last - began)
            found[f"{count} Rerankers {name}"] = {
                "decision_cpu_us": round(1e6 * (time.thread_time() - cpu) / len(each), 1),
                "decision_p50_us": round(1e6 * figures.quantile(each, 0.5), 1),
                "decision_p99_us": round(1e6 * figures.quantile(each, 0.99), 1),
                "pass_p50_ms": round(1e3 * figures.quantile(passes, 0.5), 3),
                "pass_max_ms": round(1e3 * max(passes), 3),
            }
    return found


# --- end to end ---


def end_to_end(cluster: Cluster, wakes: int) -> dict[str, Any]:
    figures.note("end to end: chart and Reranker")
    release = Release(cluster)
    release.install()
    cluster.apply(namespace(NAMESPACE), elastic(NAME, NAMESPACE, QUICK_START, idleTimeout="1s"))
    gateways = wait_for("gateways", release.gateway_urls, timeout=60)
    lines = DemandLines(gateways[0], NAMESPACE, NAME)
    from_client: list[float] = []
    from_line: list[float] = []
    with workers_watched(cluster, NAMESPACE) as changes:

        def at_zero() -> bool:
            """A line that is still to come of the last request must not be taken for one of the next."""
            seen = history(NAME, changes())
            return bool(seen) and seen[-1].fleet == Workers() and not lines.waiting()

        for number in range(wakes):
            wait_for("zero replicas, and no line of a waiting request", at_zero, timeout=DEADLINE)
            with Replay(lambda: gateways[:1], f"{NAMESPACE}/{NAME}", [Call(0.0, 500)], timeout=30) as load:
                sent = load.began - time.monotonic() + time.time()

                def written(since: float = sent) -> float | None:
                    for change in changes():
                        wanted = fleet_of(NAME, [change.object]).wanted
                        if change.seen >= since and wanted > 0:
                            return change.seen
                    return None

                wrote = wait_for("the write", written, timeout=DEADLINE, poll=0.02)
                load.wait()
            from_client.append(wrote - sent)
            line = lines.first_since(sent)
            if line is not None:
                from_line.append(wrote - line)
            figures.note(f"wake {number + 1} of {wakes}: {1000 * from_client[-1]:.0f} ms")
    return {
        "request_to_write": figures.spread(from_client),
        "demand_line_to_write": figures.spread(from_line),
        "wakes_without_a_line": len(from_client) - len(from_line),
        "note": "the write is seen on the API server's watch",
    }


if __name__ == "__main__":
    sys.exit(main())
