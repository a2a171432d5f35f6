"""Scaling one Reranker in a small world: what is decided, whose word counts, what is remembered and what is written."""

from typing import Any

import msgspec
import pytest
from prometheus_client import REGISTRY
from rerank_api import names
from rerank_api.demand import DemandLine, RerankerDemand
from rerank_operator.controller.actions import Mark, Scale
from rerank_operator.controller.plan import Plan, make_plan
from rerank_operator.controller.scaler import Scaler, stored_memory
from rerank_operator.controller.status_writes import ASLEEP_STATUS_SECONDS, STATUS_SECONDS
from rerank_operator.controller.verdict import Verdict
from rerank_operator.demand.totals import Totals
from rerank_operator.scaling.decide import Memory
from rerank_operator.warm.observe import Loan
from unit.operator.build import KEY, MODEL_A, MODEL_B, NAME, NAMESPACE, PODS, RERANKERS, WORKER, World
from unit.operator.warm.pool import pod_body

CAPACITY = 10_000.0
GATEWAY = "10.0.0.1:9090"


class Scaled(World):
    """A world whose plans follow a scaler that hears one gateway; ``restart`` is another operator."""

    def __init__(self, room: int = 1000) -> None:
        super().__init__(room)
        self.gateway = RerankerDemand(*KEY, 0, 0, 0, 0, 0, 0)
        self.hearing = True
        self.due: list[tuple[str, str]] = []
        self.pools: list[tuple[str, str]] = []
        self.verdict: Verdict | None = None
        self.restart()

    def restart(self) -> None:
        self.totals = Totals()
        self.scaler = Scaler(
            self.store,
            self.totals,
            lambda: self.now,
            lambda: True,
            self.due.append,
            lambda namespace, pool: self.pools.append((namespace, pool)),
            lambda: self.now,
        )
        self.met = False

    def tell(self, **figures: Any) -> None:
        """The gateway's figures from now on."""
        self.gateway = msgspec.structs.replace(self.gateway, **figures)

    def request(self, tokens: int = 1000) -> None:
        """One more comes, and waits."""
        self.tell(
            queued=self.gateway.queued + 1,
            queued_tokens=self.gateway.queued_tokens + tokens,
            arrived_requests=self.gateway.arrived_requests + 1,
            arrived_tokens=self.gateway.arrived_tokens + tokens,
        )

    def serve(self) -> None:
        """All that waits is served."""
        self.tell(queued=0, queued_tokens=0, in_flight=0, in_flight_tokens=0, last_ended=self.now)

    def plan(self) -> Plan:
        if self.hearing:
            self.totals.found({GATEWAY}, self.now)
            if not self.met:
                self.totals.connected(GATEWAY)
            self.totals.line(GATEWAY, DemandLine("p", self.now, not self.met, [self.gateway]), self.now)
            self.met = True
        observed = self.observe()
        self.verdict = self.scaler.look(observed)
        return make_plan(observed, WORKER, self.now, self.problem, self.verdict)

    def carry_out(self, plan: Plan) -> None:
        super().carry_out(plan)
        if self.verdict is not None:
            self.scaler.carried_out(KEY)
            self.scaler.told(KEY, self.verdict)

    def step(self, seconds: float = 1.0) -> Plan:
        self.now += seconds - 60.0
        return super().step()

    def pass_time(self, seconds: int) -> None:
        for _ in range(seconds):
            self.step()
            while self.run_one_pod():
                pass

    @property
    def scaling(self) -> dict[str, Any]:
        return self.status["scaling"]

    def total(self) -> int:
        return sum(self.replicas().values())

    def annotate_all(self, annotations: dict[str, str]) -> None:
        for name, value in annotations.items():
            self.annotate(name, value)


def awake(room: int = 1000, **spec: Any) -> Scaled:
    """One worker that serves, whose capacity is known."""
    world = Scaled(room)
    world.want(**spec)
    world.tell(capacity=CAPACITY)
    world.pass_time(5)
    return world


def test_it_begins_with_one_worker_and_says_so():
    world = awake()
    assert world.total() == 1
    assert world.scaling["mode"] == "Auto"
    assert world.scaling["desiredReplicas"] == 1
    assert world.scaling["queuedRequests"] == 0
    assert world.scaling["capacityTokensPerSecond"] == CAPACITY
    assert "requests wait" in world.scaling["message"]
    assert world.condition("Scaling") == ("True", "WaitingForIdle")


def test_a_backlog_starts_workers_at_once_and_an_event_tells_why():
    world = awake()
    for _ in range(200):
        world.request(10_000)
    plan = world.step()
    assert world.total() > 1
    event = next(event for event in plan.events if event.action == "Scale")
    assert event.reason == "DemandRose"
    assert event.note.startswith(f"workers 1 to {world.total()}: a load of")
    assert world.scaling["desiredReplicas"] == world.total()


def test_to_zero_when_idle_and_awake_with_the_next_request():
    world = awake(scaling={"idleTimeout": "30s"})
    world.request()
    world.step()
    world.serve()
    ended = world.now
    world.pass_time(29)
    assert world.total() == 1
    world.pass_time(3)
    assert world.total() == 0
    assert world.condition("Ready") == ("False", "NoReplicasRequested")
    assert world.condition("Scaling")[0] == "True"
    assert world.status["scaling"]["lastRequestTime"].startswith("2027-01-15T08:00:")
    assert world.now - ended > 30
    world.request()
    world.tell(waking_since=world.now)
    world.step()
    assert world.total() == 1
    world.pass_time(2)
    assert world.condition("Ready") == ("True", "Serving")


def test_the_reason_of_a_change_is_told_though_others_were_looked_for_since():
    """Regression: the reconcile's own look found everything as it should be, and the Event said Steady."""
    world = awake()
    for _ in range(200):
        world.request(10_000)
    world.totals.line(GATEWAY, DemandLine("p", world.now, False, [world.gateway]), world.now)
    world.scaler._look_by_itself(KEY)
    assert world.due[-1] == KEY
    plan = world.step(0.1)
    assert [event.reason for event in plan.events if event.action == "Scale"] == ["DemandRose"]
    assert world.condition("Scaling") == ("True", "DemandRose")
    world.pass_time(10)
    assert world.condition("Scaling") != ("True", "DemandRose")


def sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"rerank_operator_{name}", labels) or 0.0


def test_a_wake_is_timed_from_the_request_that_waited_to_the_first_worker():
    world = awake(scaling={"idleTimeout": "10s"})
    world.pass_time(12)
    before = [sample("wake_seconds_count", way="cold"), sample("wake_seconds_sum", way="cold")]
    decided = sample("wake_phase_seconds_count", phase="decide")
    world.request()
    world.tell(waking_since=world.now)
    world.step()
    world.step(30.0)
    assert sample("wake_phase_seconds_count", phase="decide") == decided + 1
    world.tell(waking_since=None)  # the gateway sees the worker before the operator's watch does
    world.step()
    while world.run_one_pod():
        pass
    world.step()
    assert sample("wake_seconds_count", way="cold") == before[0] + 1
    assert sample("wake_seconds_sum", way="cold") - before[1] == pytest.approx(33.0)
    wakes = {"namespace": NAMESPACE, "reranker": NAME}
    assert sample("wakes_total", way="own", **wakes) == 1.0
    assert REGISTRY.get_sample_value("rerank_operator_wakes_total", wakes | {"way": "pool"}) == 0.0
    world.scaler.forget(KEY)
    assert REGISTRY.get_sample_value("rerank_operator_wakes_total", wakes | {"way": "own"}) is None


def test_never_to_zero_while_a_gateway_is_silent():
    world = awake(scaling={"idleTimeout": "10s"})
    world.hearing = False
    world.pass_time(60)
    assert world.total() == 1
    assert world.condition("Scaling") == ("Unknown", "DemandUnknown")
    assert world.status["scaling"]["desiredReplicas"] == 1


def test_down_goes_in_steps_though_each_is_carried_out_late():
    """Regression: a step that had not been written yet was taken back, for having just been taken."""
    world = awake(scaling={"minReplicas": 8, "idleTimeout": "1h"})
    world.pass_time(60)
    assert sample("minimum_replicas", namespace=NAMESPACE, reranker=NAME) == 8.0
    world.want(scaling={"idleTimeout": "1h"})
    seen = set()
    for _ in range(250):
        world.now += 0.5
        world.plan()  # looked at, not carried out
        world.step(0.5)
        seen.add(world.total())
        while world.run_one_pod():
            pass
    assert world.total() == 1
    assert seen <= {8, 4, 2, 1}
    assert sample("minimum_replicas", namespace=NAMESPACE, reranker=NAME) == 0.0


@pytest.mark.parametrize(
    ("spec", "annotations", "mode", "replicas"),
    [
        ({"replicas": 3}, {}, "ByHand", 3),
        ({"scaling": {"mode": "recommend"}}, {}, "Recommend", 1),
        ({}, {names.ANNOTATION_SCALING_PAUSED: "true"}, "Paused", 1),
        ({"suspend": True}, {}, "Suspended", 0),
        ({"replicas": 3, "suspend": True}, {}, "Suspended", 0),
    ],
)
def test_who_holds_the_count_is_obeyed_and_what_demand_would_have_is_told(
    spec: dict[str, Any], annotations: dict[str, str], mode: str, replicas: int
):
    world = awake()
    world.want(MODEL_A, **spec)
    world.annotate_all(annotations)
    world.pass_time(3)
    for _ in range(400):
        world.request(10_000)
    world.pass_time(3)
    assert world.total() == replicas
    assert world.scaling["mode"] == mode
    assert world.condition("Scaling") == ("False", mode)
    message = next(c["message"] for c in world.status["conditions"] if c["type"] == "Scaling")
    if mode != "Suspended":
        assert "Demand would have 8 workers: " in message
    if mode in ("Recommend", "Paused"):
        assert world.scaling["desiredReplicas"] == 8


def test_when_the_hand_is_taken_off_scaling_goes_on_from_what_is_there():
    world = awake(replicas=4)
    world.want()
    world.step()
    assert world.total() == 4
    assert world.scaling["mode"] == "Auto"
    world.pass_time(200)
    assert world.total() == 1


def test_after_a_suspension_it_begins_anew():
    world = awake(suspend=True)
    assert world.total() == 0
    world.want()
    world.pass_time(3)
    assert world.total() == 1


def test_a_policy_that_is_not_understood_keeps_what_is_there():
    world = awake(scaling={"minReplicas": 3})
    bad = {"name": "x", "timezone": "Mars/Olympus", "start": "0 1 * * *", "end": "0 2 * * *", "minReplicas": 2}
    world.want(scaling={"schedules": [bad]})
    world.pass_time(100)
    assert world.total() == 3
    assert world.condition("Scaling") == ("False", "InvalidPolicy")
    message = next(c["message"] for c in world.status["conditions"] if c["type"] == "Scaling")
    assert "spec.scaling.schedules[0].timezone: 'Mars/Olympus' is not a time zone" in message
    world.want(scaling={})
    world.pass_time(1)
    assert world.total() == 3


def test_another_operator_goes_on_where_the_last_one_was():
    world = awake()
    for _ in range(100):
        for _ in range(4):
            world.request(5_000)
        world.serve()
        world.pass_time(1)
    before, memory = world.total(), world.scaler._known[KEY].memory
    assert before >= 3
    world.restart()
    world.step()
    after = world.scaler._known[KEY].memory
    assert world.total() == before
    assert after.slow == pytest.approx(memory.slow, rel=0.2)
    for _ in range(20):
        for _ in range(4):
            world.request(5_000)
        world.serve()
        world.pass_time(1)
        assert world.total() == before


def test_a_standby_or_a_memory_that_is_not_understood_begins_afresh():
    assert stored_memory(None) == stored_memory("{") == stored_memory('{"buckets": 3}') == Memory()
    kept = msgspec.json.encode(Memory(seen=5.0, slow=3.0)).decode()
    assert stored_memory(kept) == Memory(seen=None, slow=3.0)


def test_at_rest_nothing_is_written_and_figures_only_now_and_then():
    world = awake(scaling={"idleTimeout": "20s"})
    world.pass_time(60)
    assert world.total() == 0
    versions = set()
    for _ in range(120):
        world.step()
        versions.add(world.store.get(RERANKERS, *KEY)["metadata"]["resourceVersion"])  # ty: ignore[not-subscriptable]
    assert len(versions) == 1
    busy = awake(scaling={"minReplicas": 2, "maxReplicas": 2})
    busy.pass_time(30)
    writes = 0
    for _ in range(60):
        busy.request(10)
        busy.serve()
        writes += busy.step().status is not None
    assert 60 / STATUS_SECONDS - 1 <= writes <= 60 / STATUS_SECONDS + 2
    assert ASLEEP_STATUS_SECONDS > STATUS_SECONDS


def test_how_long_a_worker_takes_to_start_is_measured_and_kept():
    world = awake()
    assert "startSeconds" not in world.scaling  # these pods tell no times
    body = world.pods()[0]
    unready = {"metadata": body["metadata"] | {"uid": "new", "name": "new"}}
    created = unready["metadata"] | {"creationTimestamp": "2027-01-15T08:00:00Z"}
    since = {"type": "Ready", "status": "True", "lastTransitionTime": "2027-01-15T08:00:42Z"}
    starting = body["status"] | {"conditions": [{"type": "Ready", "status": "False"}]}
    world.put(PODS, {"metadata": created, "status": starting})
    world.plan()
    world.put(PODS, {"metadata": created, "status": body["status"] | {"conditions": [since]}})
    world.plan()
    later = since | {"lastTransitionTime": "2027-01-15T09:00:00Z"}  # it was away for a while
    world.put(PODS, {"metadata": created, "status": body["status"] | {"conditions": [later]}})
    world.pass_time(1)
    verdict = world.verdict
    assert verdict is not None
    assert verdict.start_seconds == 42.0


def test_the_idlest_workers_go_first_and_unknown_is_not_idle():
    world = awake(scaling={"minReplicas": 5})
    world.pass_time(5)
    uids = [pod["metadata"]["uid"] for pod in world.pods()]
    world.put(PODS, world.pods()[4] | {"metadata": world.pods()[4]["metadata"] | {
        "annotations": {names.ANNOTATION_DELETION_COST: "-1"}}})  # fmt: skip
    world.tell(outstanding={uids[0]: 500, uids[1]: 0, uids[2]: 40, uids[4]: 900})
    world.want(scaling={"maxReplicas": 3})
    plan = world.plan()
    marks = {action.uid: action.cost for action in plan.actions if isinstance(action, Mark)}
    assert marks == {uids[1]: -2, uids[2]: -1, uids[4]: None}
    kinds = [type(action).__name__ for action in plan.actions]
    assert kinds.index("Mark") < kinds.index("Apply")
    assert all(not isinstance(action, Scale) for action in plan.actions)


def test_a_rollout_takes_the_count_that_demand_asks_for():
    world = awake()
    a = world.pods()[0]["metadata"]["labels"][names.LABEL_REVISION]
    for _ in range(200):
        world.request(10_000)
    world.step()
    wanted = world.total()
    b = world.want(MODEL_B)
    world.step()
    assert world.replicas() == {a: wanted, b: wanted}
    while world.run_one_pod():
        world.plan()
    world.pass_time(10)
    assert world.replicas() == {b: wanted}


def test_a_look_makes_the_reranker_due_only_when_something_is_to_be_written():
    world = awake()
    world.due.clear()
    world.now += 1
    world.plan()
    world.scaler._look_by_itself(KEY)
    assert world.due == []
    for _ in range(200):
        world.request(10_000)
    world.totals.line(GATEWAY, DemandLine("p", world.now, False, [world.gateway]), world.now)
    world.scaler._look_by_itself(KEY)
    assert world.due == [KEY]


def test_wishes_come_in_the_order_in_which_they_arose():
    world = awake(scaling={"warmPool": "shared"})
    assert [(wish.key, wish.loaners) for wish in world.scaler.wishes(NAMESPACE, "shared")] == [(KEY, 0)]
    assert world.scaler.wishes(NAMESPACE, "other") == []
    assert world.scaler.wishes("elsewhere", "shared") == []
    world.pools.clear()
    for _ in range(4):
        world.request(10_000)
    world.step()
    wish = world.scaler.wishes(NAMESPACE, "shared")[0]
    assert wish.loaners > 0
    assert wish.since == world.now
    assert world.pools == [(NAMESPACE, "shared")]
    # Who waits and then wishes for more keeps its place, or bursts that grow would never be served.
    first, loaners = wish.since, wish.loaners
    for _ in range(200):
        world.request(10_000)
    world.step()
    wish = world.scaler.wishes(NAMESPACE, "shared")[0]
    assert wish.loaners > loaners
    assert wish.since == first < world.now
    world.remove(RERANKERS, NAME)
    world.scaler._look_by_itself(KEY)
    assert world.scaler.wishes(NAMESPACE, "shared") == []


def lendable(world: Scaled, count: int) -> None:
    """Free pods in its pool."""
    for index in range(count):
        world.put(PODS, pod_body(index))


def silent(index: int, world: Scaled) -> dict[str, Any]:
    """A pod that serves it, of a node that does not report."""
    body = pod_body(index, loan=Loan(NAME, "r", world.now, "a model"))
    body["status"]["conditions"][0]["status"] = "False"
    return body


def test_a_warm_pod_on_a_silent_node_stands_in_for_nothing():
    """Regression: it counted as on its way, so no other was wished for, and no own replica was started."""
    world = awake(scaling={"warmPool": "shared", "idleTimeout": "10s"})
    world.pass_time(80)
    assert world.total() == 0
    world.put(PODS, silent(1, world))
    lendable(world, 1)
    world.request()
    world.step()
    (wish,) = world.scaler.wishes(NAMESPACE, "shared")
    assert wish.loaners == 1
    world.scaler.short = lambda _: "none is free"
    world.step()
    assert world.total() == 1


def test_how_long_a_node_was_silent_is_not_how_long_a_warm_pod_takes():
    world = awake(scaling={"warmPool": "shared"})
    since = world.now
    world.put(PODS, silent(1, world))
    world.step()
    world.pass_time(300)
    world.put(PODS, pod_body(1, loan=Loan(NAME, "r", since, "a model")))
    world.step()
    assert "wakeSeconds" not in world.scaling


@pytest.mark.parametrize(
    ("scaling", "annotations"),
    [({"mode": "recommend"}, {}), ({}, {names.ANNOTATION_SCALING_PAUSED: "true"})],
)
def test_while_scaling_is_held_nothing_is_wished_for_and_what_is_lent_stays(
    scaling: dict[str, Any], annotations: dict[str, str]
):
    """Regression: a pod whose node had been silent was given back when it came back, and never lent again."""
    world = awake(scaling={"warmPool": "shared"})
    world.want(scaling={"warmPool": "shared"} | scaling)
    world.annotate_all(annotations)
    world.step()
    assert world.scaler.wishes(NAMESPACE, "shared") == []


def test_free_pods_that_cannot_be_lent_to_it_stand_in_for_nothing():
    """Regression: a request at zero waited for as long as a replica takes to start before one was started at all."""
    world = awake(scaling={"warmPool": "shared", "idleTimeout": "10s"})
    lendable(world, 2)
    world.pass_time(80)
    assert world.total() == 0
    world.request()
    world.step()
    assert (world.total(), world.scaling["desiredLoaners"]) == (0, 1)  # the pool has yet to say that it cannot
    world.scaler.short = lambda _: "WarmPool shared: it asks for nvidia.com/gpu: 1, and the pods have none"
    world.step()
    assert world.total() == 1
    assert world.condition("Scaling") == ("True", "DemandRose")


def test_why_warm_pods_are_missing_is_written_when_it_begins_and_later_changes_wait():
    """Regression: the text counts the pool's loans, so each loan to others was a write for each that waited."""
    world = awake(scaling={"warmPool": "shared", "minReplicas": 1, "maxReplicas": 1})
    world.pass_time(60)
    world.step()
    lent = 0
    world.scaler.short = lambda _: f"of 9 pods {lent} are lent"
    assert world.step().status is not None
    writes = 0
    for _ in range(60):
        lent += 1
        writes += world.step().status is not None
    assert 60 / STATUS_SECONDS - 1 <= writes <= 60 / STATUS_SECONDS + 1
    assert "pods 6" in world.scaling["message"] or "pods 5" in world.scaling["message"]
    world.scaler.short = lambda _: None
    assert world.step().status is not None


def test_warm_pods_of_the_revision_before_have_their_share_until_they_have_loaded_the_new_one():
    world = awake(scaling={"warmPool": "shared"})
    old = world.pods()[0]["metadata"]["labels"][names.LABEL_REVISION]
    for index in range(3):
        world.put(PODS, pod_body(index, loan=Loan(NAME, old, world.now, "a model")))
    new = world.want(MODEL_B, scaling={"warmPool": "shared"})
    world.step()
    assert world.status["traffic"] == [{"revision": old, "percent": 100}]
    world.run_one_pod()
    world.step()
    shares = {share["revision"]: share["percent"] for share in world.status["traffic"]}
    assert shares == {old: 80, new: 20}
