"""Twelve Rerankers in various states: the objects, their pods, and what each is asked."""

from collections.abc import Mapping
from typing import Any

from rerank_api import names
from rerank_operator.controller.kinds import Key
from rerank_operator.controller.times import format_time
from unit.operator.build import pod, unschedulable
from unit.operator.page.traffic import Traffic

STABLE, CANARY = "7c9d0a1f42", "e81b52c6d3"


class People:
    """As they are at Unix time ``now``."""

    def __init__(self, now: float) -> None:
        self.now = now
        self.bodies: dict[Key, dict[str, Any]] = {}
        self.traffic: dict[Key, dict[str, Traffic]] = {}
        self.pods: dict[Key, list[tuple[dict[str, Any], bool]]] = {}
        """Of each: whether it is a warm pod on loan."""
        self._everybody()

    def add(
        self,
        namespace: str,
        name: str,
        conditions: Mapping[str, tuple[str, str, str]],
        *,
        ready: int = 0,
        desired: int = 0,
        loaners: int = 0,
        traffic: Traffic | None = None,
        canary: Traffic | None = None,
        spec: dict[str, Any] | None = None,
        annotations: dict[str, str] | None = None,
        reason: str = "Steady",
        mode: str = "Auto",
        **status: Any,
    ) -> None:
        key = (namespace, name)
        listed = [
            {
                "type": kind,
                "status": answer[0],
                "reason": answer[1],
                "message": answer[2],
                "observedGeneration": 3,
                "lastTransitionTime": format_time(self.now - 4000 - 100 * number),
            }
            for number, (kind, answer) in enumerate(conditions.items())
        ]
        scaling = {
            "mode": mode,
            "desiredReplicas": desired,
            "loaners": loaners,
            "reason": reason,
            "message": f"a load of {0.62 * desired:.2f} replicas, 0 requests wait and 3 are served by {ready} replicas "
            f"and {loaners} warm pods; {desired} are needed: it is what is needed",
            "capacityTokensPerSecond": 81_340.0,
            "queuedRequests": 0,
        }
        self.bodies[key] = {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {
                "name": name,
                "namespace": namespace,
                "uid": f"uid-{namespace}-{name}",
                "generation": 3,
                "resourceVersion": str(len(self.bodies) + 1),
                "annotations": annotations or {},
                "creationTimestamp": format_time(self.now - 9 * 86400),
            },
            "spec": {
                "model": {
                    "uri": "hf://cross-encoder/ms-marco-MiniLM-L6-v2",
                    "revision": "c5ee24cb16019beea0893ab7796b1df96625c6b8",
                },
                "scaling": {"minReplicas": 0, "maxReplicas": 8},
                "slo": {"latency": {"quantile": 0.95, "threshold": "150ms"}},
                **(spec or {}),
            },
            "status": {
                "observedGeneration": 3,
                "replicas": desired,
                "readyReplicas": ready,
                "currentRevision": STABLE,
                "updatedRevision": STABLE,
                "traffic": [{"revision": STABLE, "percent": 100}],
                "scaling": scaling,
                "conditions": listed,
                **status,
            },
        }
        self.traffic[key] = {STABLE: traffic or Traffic(0.0)} | ({CANARY: canary} if canary else {})
        started = {"type": "Ready", "status": "True", "lastTransitionTime": format_time(self.now - 5000)}
        alive = [started, {"type": "PodScheduled", "status": "True"}]
        self.pods[key] = [(pod(STABLE, number, conditions=alive), False) for number in range(ready)]
        self.pods[key] += [
            (pod("", number, conditions=alive, metadata={"name": f"pool-{number}", "labels": {}}), True)
            for number in range(loaners)
        ]
        if canary:
            self.pods[key].append((pod(CANARY, 0, conditions=alive), False))

    def _everybody(self) -> None:
        serving = {
            "Ready": ("True", "Serving", "{0} of {0} workers are ready"),
            "Progressing": ("False", "RolloutComplete", f"revision {STABLE} is what runs"),
            "Degraded": ("False", "Healthy", "nothing is known to be wrong"),
            "CanaryHealthy": ("True", "NoCanary", "no canary has been tried"),
            "Scaling": ("True", "Steady", "it is what is needed"),
        }

        def well(ready: int, **others: tuple[str, str, str]) -> dict[str, tuple[str, str, str]]:
            return {kind: (one[0], one[1], one[2].format(ready)) for kind, one in {**serving, **others}.items()}

        self.add("search", "products", well(4), ready=4, desired=4, traffic=Traffic(42))
        self.add(
            "search",
            "articles",
            well(4, CanaryHealthy=("Unknown", "JudgingTraffic", f"revision {CANARY}: 25 % of the requests")),
            ready=4,
            desired=3,
            traffic=Traffic(20),
            canary=Traffic(6.5, median=0.05, begins=2700),
            spec={
                "rollout": {
                    "strategy": "Canary",
                    "steps": [1, 5, 25, 50],
                    "goldenSet": {"configMap": "articles-golden"},
                }
            },
            updatedRevision=CANARY,
            rollout=self._canary(),
        )
        self.bodies["search", "articles"]["status"]["traffic"] = [
            {"revision": STABLE, "percent": 75},
            {"revision": CANARY, "percent": 25},
        ]
        self.add("search", "questions", well(2), ready=2, desired=2, traffic=Traffic(15, median=0.125, spread=0.5))
        self.add("search", "reviews", well(2), ready=2, desired=2, traffic=Traffic(8, errors=0.021))
        self.add(
            "support",
            "tickets",
            well(0, Ready=("False", "NoReplicasRequested", "there is no demand: the next request starts a worker")),
            reason="Idle",
        )
        self.add(
            "support",
            "faq",
            well(0, Ready=("False", "Suspended", "spec.suspend is true: set it to false to serve again")),
            mode="Suspended",
            reason="",
            annotations={names.ANNOTATION_MAINTENANCE: format_time(self.now + 5400)},
        )
        self.add(
            "support",
            "macros",
            well(0, Ready=("False", "WaitingForWorkers", "none of 1 workers is ready yet")),
            desired=1,
            reason="ReplicasStarting",
            traffic=Traffic(0.4, begins=3570, waiting=7),
        )
        self.pods["support", "macros"] = [(unschedulable(STABLE), False)]
        crash = "the worker has crashed 4 times: out of memory on the device: lower batching.maxBatchTokens"
        self.add(
            "legal",
            "contracts",
            well(0, Ready=("False", "CrashLooping", crash), Degraded=("True", "CrashLooping", crash)),
            desired=2,
            reason="DemandRose",
            traffic=Traffic(1.2, errors=1.0),
        )
        worse = (
            f"revision {CANARY} was taken back and is tried again when the model, runtime or batching part of the spec "
            "changes, or when asked to (kubectl rerank retry): RanksWorse: nDCG@10 0.612 against 0.664 over 50 queries"
        )
        self.add(
            "legal",
            "cases",
            well(
                1,
                Degraded=("True", "RevisionRejected", worse),
                CanaryHealthy=("False", "RolledBack", f"revision {CANARY}: nDCG@10 0.612 against 0.664"),
            ),
            ready=1,
            desired=1,
            traffic=Traffic(3),
            spec={"rollout": {"strategy": "Canary", "goldenSet": {"configMap": "cases-golden"}}},
            rejectedRevision={"revision": CANARY, "reason": "RanksWorse", "message": worse},
            rollout={
                **self._canary(),
                "phase": "RolledBack",
                "percent": 0,
                "step": 0,
                "requests": 0,
                "message": "golden: nDCG@10 0.612 against 0.664 over 50 queries: surely worse by more than 0.02",
                "ended": format_time(self.now - 700),
                "checks": [
                    {"name": "load", "verdict": "pass", "message": "1 worker is ready"},
                    {"name": "golden", "verdict": "fail", "message": "nDCG@10 0.612 against 0.664 over 50 queries"},
                ],
            },
        )
        self.add(
            "shop", "suggestions", well(1), ready=1, desired=2, loaners=2, reason="WarmPodsServe",
            traffic=Traffic(31, wave=0.9, waiting=3),
        )  # fmt: skip
        self.add(
            "shop",
            "recommendations-for-returning-customers",
            well(1, CanaryHealthy=("Unknown", "Paused", f"revision {CANARY}: paused")),
            ready=2,
            desired=1,
            traffic=Traffic(2.5),
            canary=Traffic(0.03, begins=1000),
            spec={"rollout": {"strategy": "Canary"}},
            rollout={
                **self._canary(),
                "percent": 1,
                "step": 0,
                "requests": 14,
                "paused": "the deadline of 24h has passed with 14 of 20 requests",
            },
        )
        self.add("lab", "experiment", {}, traffic=None)
        self.bodies["lab", "experiment"]["spec"]["model"] = {"uri": 7}
        self.bodies["lab", "experiment"]["status"] = {}

    def _canary(self) -> dict[str, Any]:
        return {
            "revision": CANARY,
            "stable": STABLE,
            "phase": "Traffic",
            "message": "25 % of the requests: 1,162 requests, 4m12s of 10m",
            "percent": 25,
            "step": 2,
            "requests": 1162,
            "started": format_time(self.now - 1300),
            "phaseStarted": format_time(self.now - 900),
            "checks": [
                {"name": "load", "verdict": "pass", "message": "1 worker is ready, its first scores are finite"},
                {
                    "name": "golden",
                    "verdict": "pass",
                    "message": "nDCG@10 0.671 against 0.664 over 50 queries: a drop by 0.02 is excluded (p 0.002)",
                },
                {
                    "name": "mirror",
                    "verdict": "pass",
                    "message": "200 requests, none failed; Kendall's tau 0.93 in the mean (0.90 is asked for)",
                },
                {
                    "name": "errors",
                    "verdict": "hold",
                    "message": "canary 0 of 1,162 failed, stable 1 of 6,140; a rise by 0.01 is not excluded yet",
                },
                {
                    "name": "latency",
                    "verdict": "hold",
                    "message": "95th percentile 104 ms against 121 ms; longer by 20 % is not excluded yet",
                },
            ],
        }
