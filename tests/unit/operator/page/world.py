"""A fleet to look at: twelve Rerankers with an hour of traffic at two gateways, and what has happened to them."""

from typing import Any

import msgspec
from rerank_operator.controller.kinds import Key
from rerank_operator.controller.observe import pod_state
from rerank_operator.page import shapes, views
from rerank_operator.page.exposition import Counts, Sample
from rerank_operator.page.figures import STEP_SECONDS, Figures
from rerank_operator.page.history import History
from rerank_operator.page.sampling import MISSED_LOOKS
from unit.operator.page.people import People
from unit.operator.page.traffic import counted

GATEWAYS = {"10.0.0.1:9090": "gateway-6d9c7-4kx2p", "10.0.0.2:9090": "gateway-6d9c7-t8w5n"}


class World:
    """The fleet at Unix time ``now``. It answers as ``page.app`` asks."""

    def __init__(self, now: float, looks: int = 720) -> None:
        self.now = now
        people = People(now)
        self.bodies, self.traffic, self.pods = people.bodies, people.traffic, people.pods
        self.figures = Figures()
        self.history = History()
        self.silent: dict[str, tuple[float, str]] = {}
        self.standing: dict[str, Any] = {"leads": True, "leader": "operator-0_1"}
        self.synced = True
        self.listed: float | None = now - 20
        self.trouble = ""
        self._sums: dict[tuple[str, Key, str], float] = {}
        self._tell()
        for look in range(looks):
            self.look(now - (looks - 1 - look) * STEP_SECONDS)

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
        for version, (ago, key, change) in enumerate(sorted(steps, key=lambda step: -step[0]), len(final) + 1):
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
            metadata = {**body["metadata"], "resourceVersion": str(version)}
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
