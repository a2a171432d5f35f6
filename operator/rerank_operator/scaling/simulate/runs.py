"""Puts a run together: which controller each Reranker gets, and the best target of a baseline."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from typing import Any, Literal

from rerank_operator.scaling.policy import Policy
from rerank_operator.scaling.schedules import floor as scheduled_floor
from rerank_operator.scaling.simulate.controller import Controller
from rerank_operator.scaling.simulate.fleet import Plant, Run, Simulation
from rerank_operator.scaling.simulate.inputs import Arrival, Manifest
from rerank_operator.scaling.simulate.keda_hpa import KedaHpa
from rerank_operator.scaling.simulate.kpa import Kpa
from rerank_operator.scaling.simulate.ours import Ours
from rerank_operator.scaling.simulate.report import report

ControllerName = Literal["ours", "kpa", "keda-hpa"]

TARGETS = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)
"""Requests at once per replica: from less than one to twice what a replica serves at once."""

NEARLY = 1.02
"""Shares of misses this close count as equal."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is replayed; ``manifests`` has one item for each trace."""

    names: Sequence[str]
    traces: Sequence[Sequence[Arrival]]
    manifests: Sequence[Manifest]
    plant: Plant


def simulate(case: Case, controller: ControllerName, target: float | None = None) -> dict[str, Any]:
    """The report of one run. Of a baseline ``target`` None is the best of ``TARGETS`` for this case."""
    if controller == "ours":
        return _report(case, controller, None)
    if target is not None:
        return _report(case, controller, target)
    swept = [_report(case, controller, target) for target in TARGETS]
    found = swept[best(case, swept)]
    found["swept"] = [
        {
            "target": one["target"],
            "replica_seconds": one["total"]["replica_seconds"],
            "slo_miss_ratio": one["total"]["slo_miss_ratio"],
            "lost": one["total"]["lost"],
        }
        for one in swept
    ]
    return found


def best(case: Case, swept: Sequence[dict[str, Any]]) -> int:
    """The place of the run that one would choose: the cheapest that meets the objective of latency over all requests;
    if none does, the cheapest of those with the fewest misses."""
    allowed = 1 - max(manifest.policy.latency_quantile for manifest in case.manifests)
    misses = [one["total"]["slo_miss_ratio"] for one in swept]
    bar = max(allowed, min(misses) * NEARLY)
    return min(
        (place for place, miss in enumerate(misses) if miss <= bar),
        key=lambda place: swept[place]["total"]["cost_replica_seconds"],
    )


def _report(case: Case, controller: ControllerName, target: float | None) -> dict[str, Any]:
    found = report(controller, case.names, run(case, controller, target))
    if target is not None:
        found["target"] = target
    return found


def run(case: Case, controller: ControllerName, target: float | None) -> Run:
    """``target``: of a baseline; the plant's warm pods are for our own controller only."""
    pods = case.plant.warm_pods if controller == "ours" else 0
    manifests = [_with_pool(manifest, pods) for manifest in case.manifests]
    floors = [_floor(manifest.policy, case.plant.cold_start) for manifest in manifests]
    controllers: list[Controller] = []
    for manifest, floor in zip(manifests, floors, strict=True):
        if controller == "ours":
            controllers.append(Ours(manifest.policy))
        elif target is None:
            raise ValueError(f"{controller} needs a target")
        else:
            controllers.append((Kpa if controller == "kpa" else KedaHpa)(manifest.policy, floor, target))
    plant = replace(case.plant, warm_pods=pods)
    return Simulation(case.traces, manifests, controllers, plant, floors).run()


def _with_pool(manifest: Manifest, pods: int) -> Manifest:
    """Each Reranker takes part in the pool when there is one, and none does when there is none."""
    pool = (manifest.policy.warm_pool or "simulated") if pods else None
    return replace(manifest, policy=replace(manifest.policy, warm_pool=pool))


def _floor(policy: Policy, lead: float) -> Callable[[float], int]:
    """Replicas that there must be at a moment (Unix seconds): minReplicas, raised by schedules, which lead by the time
    of a start, as KEDA's cron scaler advises."""

    @cache
    def scheduled(minute: int) -> int:
        return scheduled_floor(policy.schedules, datetime.fromtimestamp(60 * minute, UTC), lead)

    def floor(now: float) -> int:
        return max(policy.min_replicas, scheduled(int(now // 60))) if policy.schedules else policy.min_replicas

    return floor
