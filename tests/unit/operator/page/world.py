"""A fleet to look at: twelve Rerankers in various states with an hour of traffic at two gateways, made by formula."""

import math
from collections.abc import Mapping
from typing import Any

import msgspec
from rerank_api import names
from rerank_operator.controller.kinds import Key
from rerank_operator.controller.observe import pod_state
from rerank_operator.controller.times import format_time
from rerank_operator.page import shapes, views
from rerank_operator.page.exposition import Counts, Sample
from rerank_operator.page.figures import STEP_SECONDS, Figures
from rerank_operator.page.history import History
from rerank_operator.page.sampling import MISSED_LOOKS
from unit.operator.build import pod, unschedulable

EDGES = (0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 10.0, math.inf)
GATEWAYS = {"10.0.0.1:9090": "gateway-6d9c7-4kx2p", "10.0.0.2:9090": "gateway-6d9c7-t8w5n"}
STABLE, CANARY = "7c9d0a1f42", "e81b52c6d3"


class Traffic(msgspec.Struct, frozen=True):
    """What one revision is asked, at a moment ``at`` seconds after the beginning: requests a second in all."""

    mean: float
    wave: float = 0.3
    """Share by which it swings."""
    median: float = 0.06
    """Latency in seconds; log-normal."""
    spread: float = 0.45
    errors: float = 0.0
    waiting: int = 0
    begins: float = 0.0

    def rate(self, at: float) -> float:
        if at < self.begins:
            return 0.0
        slow, quick = math.sin(at / 700 + self.mean), math.sin(at / 61 + 2 * self.mean)
        return max(0.0, self.mean * (1 + self.wave * (0.7 * slow + 0.3 * quick)))

    def within(self, seconds: float) -> float:
        """The share that is answered within so many."""
        return 0.5 * (1 + math.erf(math.log(seconds / self.median) / (self.spread * math.sqrt(2))))


def counted(traffic: Traffic, amount: float, threshold: float) -> Counts:
    """What a gateway has counted of ``amount`` requests."""
    bad = amount * traffic.errors
    good = amount - bad
    late = good * (1 - traffic.within(threshold))
    return {
        "code/200": good,
        **({"code/503": bad} if bad else {}),
        "availability/total": amount,
        "availability/good": good,
        "latency/total": good,
        "latency/good": good - late,
        **{
            f"le/{'+Inf' if math.isinf(edge) else edge}": good * (1 if math.isinf(edge) else traffic.within(edge))
            for edge in EDGES
        },
    }


class World:
    """The fleet at Unix time ``now``. It answers as ``page.app`` asks."""

    def __init__(self, now: float, looks: int = 720) -> None:
        self.now = now
        self.bodies: dict[Key, dict[str, Any]] = {}
        self.traffic: dict[Key, dict[str, Traffic]] = {}
        self.pods: dict[Key, list[tuple[dict[str, Any], bool]]] = {}
        self.figures = Figures()
        self.history = History()
        self.silent: dict[str, tuple[float, str]] = {}
        self.standing: dict[str, Any] = {"leads": True, "leader": "operator-0_1"}
        self.synced = True
        self.listed: float | None = now - 20
        self.trouble = ""
        self._sums: dict[tuple[str, Key, str], float] = {}
        self._version = 0
        self._people()
        self._tell()
        for look in range(looks):
            self.look(now - (looks - 1 - look) * STEP_SECONDS)

    # --- the fleet ---

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
        self._version += 1
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
                "resourceVersion": str(self._version),
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

    def _people(self) -> None:
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

    # --- what the page has seen ---

    def _tell(self) -> None:
        """What happened within the last minutes, as statuses told it one after the other."""
        final = dict(self.bodies)
        before = dict(final)
        for key in (("search", "articles"), ("search", "products")):
            status = {name: value for name, value in final[key]["status"].items() if name != "rollout"}
            before[key] = {**final[key], "status": {**status, "scaling": {**status["scaling"], "desiredReplicas": 1}}}
        self.history.look(before.values(), self.now - 3600)
        long_enough = "have been needed for longer than a replica takes to start"
        articles, products = ("search", "articles"), ("search", "products")

        def rollout(phase: str, percent: int, step: int, message: str, passed: int) -> dict[str, Any]:
            checks = final[articles]["status"]["rollout"]["checks"][:passed]
            return {"phase": phase, "percent": percent, "step": step, "message": message, "checks": checks}

        steps: list[tuple[float, Key, dict[str, Any]]] = [
            (3000, articles, {"scaling": ("DemandRose", 2, f"2 {long_enough}")}),
            (1300, articles, {"rollout": rollout("Starting", 0, 0, "its first worker starts", 0)}),
            (1240, articles, {"rollout": rollout("Golden", 0, 0, "the golden set is ranked", 1)}),
            (1100, articles, {"rollout": rollout("Mirror", 0, 0, "copies of 10 % of the requests", 2)}),
            (900, articles, {"rollout": rollout("Traffic", 1, 0, "1 % of the requests", 3)}),
            (700, articles, {"rollout": rollout("Traffic", 5, 1, "5 % of the requests", 5)}),
            (480, articles, {"scaling": ("DemandRose", 3, f"3 {long_enough}")}),
            (252, articles, {"rollout": {}}),
            (2500, products, {"scaling": ("DemandRose", 5, f"5 {long_enough}")}),
            (1500, products, {"scaling": ("Stabilizing", 5, "more were needed a while ago")}),
            (800, products, {"scaling": ("DemandFell", 4, "4 would have done for long enough")}),
        ]
        for ago, key, change in sorted(steps, key=lambda step: -step[0]):
            body = self.bodies[key] = before[key]
            status = dict(body["status"])
            if "rollout" in change:
                status["rollout"] = {**final[key]["status"]["rollout"], **change["rollout"]}
            if "scaling" in change:
                reason, desired, why = change["scaling"]
                message = f"a load of {desired - 0.4:.2f} replicas, 2 requests wait: {why}"
                status["scaling"] = {
                    **status["scaling"],
                    "reason": reason,
                    "desiredReplicas": desired,
                    "message": message,
                }
            self._version += 1
            metadata = {**body["metadata"], "resourceVersion": str(self._version)}
            before[key] = self.bodies[key] = {**body, "metadata": metadata, "status": status}
            self.history.look(before.values(), self.now - ago)

    def look(self, unix: float) -> None:
        """One look at both gateways."""
        at = unix - self.now + 3600
        samples: dict[str, Sample | None] = {}
        for number, address in enumerate(GATEWAYS):
            if address in self.silent:
                samples[address] = None
                continue
            counts: dict[Key, dict[str, Counts]] = {}
            waiting: dict[Key, float] = {}
            for key, revisions in self.traffic.items():
                for revision, traffic in revisions.items():
                    place = (address, key, revision)
                    share = (0.55, 0.45)[number] * STEP_SECONDS * traffic.rate(at)
                    self._sums[place] = self._sums.get(place, 0.0) + share
                    counts.setdefault(key, {})[revision] = counted(traffic, self._sums[place], 0.15)
                    busy = traffic.waiting and traffic.rate(at) > traffic.mean / 2
                    waiting[key] = waiting.get(key, 0.0) + (traffic.waiting if busy and number == 0 else 0)
            flight = {
                key: float(round(sum(one.rate(at) * one.median for one in each.values())))
                for key, each in self.traffic.items()
            }
            samples[address] = Sample(1.0, counts, waiting, flight)
        staff = {key: views.staff_of(body) for key, body in self.bodies.items()}
        self.figures.take(unix, samples, staff)

    def seen(self) -> shapes.Seen:
        return shapes.Seen(
            time=self.now + 1,
            synced=self.synced,
            listed=self.listed,
            listing=60.0,
            trouble=self.trouble,
            gateways=[
                shapes.Gateway(name, address not in self.silent, *self.silent.get(address, (None, "")))
                for address, name in GATEWAYS.items()
            ],
            gateways_named=True,
            looked=self.figures.last,
            since=self.figures.since,
            patience=MISSED_LOOKS * STEP_SECONDS,
            **self.standing,
        )

    async def fleet(self) -> bytes:
        return msgspec.json.encode(views.fleet(list(self.bodies.values()), self.seen(), self.figures, 0.0))

    async def reranker(self, key: Key) -> bytes | None:
        body = self.bodies.get(key)
        if body is None:
            return None
        pods = [(pod_state(one), loaned) for one, loaned in self.pods[key]]
        return msgspec.json.encode(views.detail(body, pods, self.history, self.seen(), self.figures, 0.0))
