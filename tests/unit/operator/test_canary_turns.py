"""Canaries where something unusual is done meanwhile: the spec turns, a status is incomplete, a word is nonsense."""

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rerank_api import names
from rerank_operator.controller.kinds import CONTROLLER_REVISIONS, DEPLOYMENTS, PODS, RERANKERS
from rerank_operator.controller.plan import make_plan
from rerank_operator.controller.times import format_time
from rerank_operator.controller.verdict import undecided
from rerank_operator.rollout.canary import Findings
from unit.operator.build import KEY, MODEL_A, MODEL_B, WORKER, World, pod
from unit.operator.test_canary_plans import CANARY, MODEL_C, Rollout, check

GPUS = {"resources": {"limits": {"nvidia.com/gpu": 1}}}


def in_traffic(**rollout: Any) -> Rollout:
    world = Rollout(**rollout)
    world.find(golden=check("golden"), mirror=check("mirror"))
    return world


def rolled_back() -> Rollout:
    world = Rollout()
    world.find(golden=check("golden", "fail"))
    world.findings = None
    return world


def stored(world: World, status: dict[str, Any]) -> None:
    body = world.store.get(RERANKERS, *KEY)
    assert body is not None
    world.put(RERANKERS, body | {"status": status})


def test_turned_back_while_it_is_promoted_it_is_cancelled_and_no_capacity_is_lost():
    world = in_traffic()
    world.findings = msgspec.structs.replace(world.findings or Findings(world.b), action="promote", step=1)
    while world.replicas()[world.a] > 1:
        world.step()
        world.run_one_pod()
    assert world.rollout["phase"] == "Promoting"
    world.findings = None
    world.want(MODEL_A, **world.spec)
    for _ in range(20):
        world.step()
        serving = {revision for revision, percent in world.percents.items() if percent}
        assert sum(world.ready(revision) for revision in serving) >= 4
        world.run_one_pod()
    assert (world.rollout["phase"], world.rollout["revision"]) == ("Cancelled", world.b)
    assert "Cancelled" in (world.note(world.b, names.ANNOTATION_OUTCOME) or "")
    assert (world.replicas(), world.percents) == ({world.a: 4}, {world.a: 100})


def test_a_revision_that_was_rolled_back_is_rolled_out_where_no_canary_is_asked_for_any_more():
    world = rolled_back()
    world.want(MODEL_C, replicas=4)
    world.settle()
    world.want(MODEL_B, replicas=4)
    world.settle()
    assert world.replicas() == {world.b: 4}

    world = rolled_back()
    world.want(MODEL_B, replicas=4)
    world.settle()
    assert world.replicas() == {world.a: 4, world.b: 0}
    world.annotate(names.ANNOTATION_RETRY, format_time(world.now + 1))
    world.settle()
    assert world.replicas() == {world.b: 4}


def test_a_retry_that_is_asked_for_in_the_future_is_one_retry():
    world = rolled_back()
    world.annotate(names.ANNOTATION_RETRY, format_time(world.now + 36_000))
    world.settle()
    assert world.rollout["phase"] == "RolledBack"
    world.now += 36_000
    world.settle()
    assert world.rollout["phase"] == "Golden"
    world.find(golden=check("golden", "fail"))
    assert world.rollout["phase"] == "RolledBack"


def test_a_rejection_that_is_not_understood_still_counts():
    world = rolled_back()
    stored(world, world.status | {"rejectedRevision": {"revision": world.b}})
    world.settle()
    assert world.status["rejectedRevision"]["revision"] == world.b
    assert (world.percents, world.replicas()) == ({world.a: 100, world.b: 0}, {world.a: 4, world.b: 0})


@pytest.mark.parametrize("lost", ["started", "phase", "stable"])
def test_a_rollout_that_is_not_understood_begins_anew(lost: str):
    world = in_traffic()
    world.findings = None
    kept = {name: value for name, value in world.rollout.items() if name != lost}
    stored(world, world.status | {"rollout": kept})
    world.settle()
    assert (world.rollout["phase"], world.percents) == ("Golden", {world.a: 100, world.b: 0})


def test_without_a_word_of_scaling_stable_keeps_its_replicas_whatever_the_canary_has():
    world = World(room=4)
    spec = {"rollout": CANARY | {"whenFull": "replaceOne"}, "runtime": GPUS}
    a = world.want(MODEL_A, replicas=4, **spec)
    world.settle()
    world.annotate(names.ANNOTATION_SCALING_PAUSED, "true")
    world.want(MODEL_A, **spec)
    world.settle()
    b = world.want(MODEL_B, **spec)
    for _ in range(30):
        world.step()
        world.run_one_pod()
    assert world.replicas() == {a: 3, b: 1}
    world.annotate(names.ANNOTATION_ABORT, world.status["rollout"]["started"])
    world.settle()
    assert world.replicas() == {a: 4, b: 0}


def test_warm_pods_of_a_revision_that_is_set_aside_get_no_request():
    world = in_traffic()
    world.findings = None
    c = world.want(MODEL_C, **world.spec)
    observed = world.observe()
    assert observed.reranker is not None
    verdict = msgspec.structs.replace(undecided(observed, observed.reranker), serving=1, warm={world.b: 1})
    plan = make_plan(observed, WORKER, world.now, verdict=verdict)
    assert plan.status is not None
    shares = [(share["revision"], share["percent"]) for share in plan.status["status"]["traffic"]]
    assert sorted(shares) == sorted([(world.a, 100), (world.b, 0), (c, 0)])


def test_a_canary_has_no_worker_before_the_status_says_that_it_gets_no_request():
    """Who dies between both leaves no worker that gateways take for one of a rollout without gates."""
    world = World()
    spec = {"replicas": 4, "rollout": CANARY}
    a = world.want(MODEL_A, **spec)
    world.settle()
    b = world.want(MODEL_B, **spec)
    plan = world.plan()
    world.carry_out(msgspec.structs.replace(plan, status=None))
    assert world.replicas().get(b, 0) == 0
    world.carry_out(plan)
    assert {share["revision"]: share["percent"] for share in world.status["traffic"]} == {a: 100, b: 0}
    assert plan.requeue_after == 0
    world.settle()
    assert world.replicas() == {a: 4, b: 1}


def test_promoted_by_hand_before_its_image_is_there_it_waits_for_it_and_is_not_called_rejected():
    world = World(room=4)
    spec = {"replicas": 4, "rollout": CANARY | {"whenFull": "replaceOne"}, "runtime": GPUS}
    world.want(MODEL_A, **spec)
    world.settle()
    b = world.want(MODEL_B, **spec)
    while not world.ready(b):
        world.step()
        for body in world.pods(b):
            if body["status"]["phase"] != "Pending":
                pulling = {"name": "worker", "ready": False, "restartCount": 0}
                pulling["state"] = {"waiting": {"reason": "ImagePullBackOff", "message": "back-off"}}
                world.put(PODS, body | {"status": body["status"] | {"containerStatuses": [pulling]}})
                world.annotate(names.ANNOTATION_PROMOTE, world.status["rollout"]["started"])
                world.step()
                world.step()
                assert world.status["rollout"]["phase"] == "Promoting"
                assert "rejectedRevision" not in world.status
                world.run_one_pod()
    world.settle()
    assert (world.status["rollout"]["phase"], world.replicas()) == ("Promoted", {b: 4})


def test_at_zero_it_is_not_said_that_a_worker_starts():
    world = World()
    spec = {"replicas": 0, "rollout": CANARY, "scaling": {"minReplicas": 0}}
    world.want(MODEL_A, **(spec | {"replicas": 1}))
    world.settle()
    world.want(MODEL_B, **spec)
    world.settle()
    assert world.status["rollout"]["phase"] == "Starting"
    assert "no worker is wanted" in world.status["rollout"]["message"]


def test_where_stable_is_gone_with_its_spec_each_revision_has_one_share():
    world = rolled_back()
    for kind in (DEPLOYMENTS, CONTROLLER_REVISIONS):
        (name,) = [
            body["metadata"]["name"]
            for body in world.store.children(kind, KEY)
            if body["metadata"]["labels"][names.LABEL_REVISION] == world.a
        ]
        world.remove(kind, name)
    for body in world.pods(world.a):
        world.remove(PODS, body["metadata"]["name"])
    for _ in range(10):
        world.step()
        world.run_one_pod()
        shares = [share["revision"] for share in world.status["traffic"]]
        assert len(shares) == len(set(shares))
    assert world.percents == {world.b: 100}


def test_woken_from_zero_a_canary_that_is_there_first_waits_for_stable():
    """Its share would else be everything, for gateways would find nobody else."""
    world = in_traffic()
    world.want(MODEL_B, **(world.spec | {"replicas": 0, "scaling": {"minReplicas": 0}}))
    world.settle()
    assert world.rollout["phase"] == "Traffic"
    world.want(MODEL_B, **world.spec)
    world.step()
    (first,) = world.pods(world.b)
    world.put(PODS, first | {"status": pod(world.b)["status"]})
    world.step()
    assert (world.ready(world.a), world.percents) == (0, {world.a: 100, world.b: 0})
    world.settle()
    assert world.percents == {world.a: 95, world.b: 5}


def test_where_all_of_stable_breaks_the_canary_keeps_the_share_that_it_had():
    world = in_traffic()
    for body in world.pods(world.a):
        world.put(PODS, body | {"status": pod(world.a, ready=False)["status"]})
    world.step()
    assert world.percents == {world.a: 95, world.b: 5}


def test_a_gate_that_is_not_asked_for_any_more_is_not_waited_for_in_words():
    world = Rollout()
    world.find(golden=check("golden", "hold", "too few queries"), mirror=check("mirror"))
    rollout = {name: value for name, value in CANARY.items() if name != "goldenSet"}
    world.want(MODEL_B, replicas=4, rollout=rollout)
    world.settle()
    assert world.rollout["phase"] == "Traffic"
    assert "golden" not in world.rollout["message"]


MODELS = (MODEL_A, MODEL_B, MODEL_C)
WORDS = {
    names.ANNOTATION_PROMOTE: ("", "STARTED", "x"),
    names.ANNOTATION_ABORT: ("", "STARTED", "x"),
    names.ANNOTATION_ROLLOUT_PAUSED: ("", "TRUE", "no"),
    names.ANNOTATION_RETRY: ("", "soon", "2027-01-15T08:10:00Z", "9999-12-31T23:59:59Z"),
    names.ANNOTATION_SCALING_PAUSED: ("true", "false"),
}
TURNS = st.one_of(
    st.sampled_from(["step", "pod", "forget", "no pod", "no deployment", "half"]),
    st.tuples(st.just("model"), st.sampled_from(MODELS)),
    st.tuples(st.just("replicas"), st.sampled_from([None, 0, 1, 4])),
    st.tuples(
        st.just("rollout"),
        st.fixed_dictionaries(
            {},
            optional={
                "strategy": st.sampled_from(["Canary", "Replace", "ABTest"]),
                "steps": st.sampled_from([[5], [1, 5, 25, 50], [99]]),
                "mirrorPercent": st.sampled_from([0, 10]),
                "whenFull": st.sampled_from(["wait", "replaceOne", "borrow"]),
                "goldenSet": st.sampled_from([{"configMap": "golden"}, None]),
            },
        ),
    ),
    st.tuples(
        st.just("find"), st.sampled_from(["golden", "mirror", "errors"]), st.sampled_from(["pass", "hold", "fail"])
    ),
    st.tuples(st.just("find"), st.just("step"), st.integers(0, 4)),
    st.tuples(st.just("find"), st.just("action"), st.just("promote")),
    st.sampled_from(sorted(WORDS)).flatmap(lambda name: st.tuples(st.just(name), st.sampled_from(WORDS[name]))),
)


BEGUN = (("model", MODEL_B), "pod", ("find", "golden", "pass"), ("find", "mirror", "pass"))
"""A canary that users meet."""


class Turning(World):
    """A world in which anything is done in any order."""

    def __init__(self, room: int) -> None:
        super().__init__(room)
        self.model = MODEL_A
        self.spec: dict[str, Any] = {"replicas": 4, "rollout": CANARY, "runtime": GPUS}
        self.want(self.model, **self.spec)
        for _ in range(10):
            self.step()
            self.run_one_pod()

    def turn(self, what: str, *how: Any) -> None:
        rollout = self.status.get("rollout", {})
        if what == "model":
            self.model = how[0]
        elif what == "replicas":
            self.spec = {name: value for name, value in self.spec.items() if name not in ("replicas", "scaling")}
            self.spec |= {"replicas": how[0]} if how[0] is not None else {}
            self.spec |= {"scaling": {"minReplicas": 0}} if how[0] == 0 else {}
        elif what == "rollout":
            changed = self.spec["rollout"] | how[0]
            self.spec |= {"rollout": {name: value for name, value in changed.items() if value is not None}}
        elif what == "find" and "revision" in rollout:
            found = how[1] if how[0] in ("step", "action") else check(how[0], how[1])
            field, found = ("metrics", (found,)) if how[0] == "errors" else (how[0], found)
            same = self.findings is not None and self.findings.revision == rollout["revision"]
            before = self.findings if same and self.findings is not None else Findings(rollout["revision"])
            self.findings = msgspec.structs.replace(before, **{field: found})
        elif what == "forget":
            self.findings = None
        elif what == "no pod" and self.pods():
            self.remove(PODS, self.pods()[0]["metadata"]["name"])
        elif what == "no deployment" and (found := self.store.children(DEPLOYMENTS, KEY)):
            self.remove(DEPLOYMENTS, found[0]["metadata"]["name"])
        elif what == "half":  # it ends between two writes, and another one begins
            plan = self.plan()
            self.carry_out(msgspec.structs.replace(plan, status=None))
            self.findings = None
        elif what in WORDS:
            self.annotate(what, rollout.get("started", "") if how[0] == "STARTED" else how[0])
        elif what == "pod":
            self.run_one_pod()
        if what in ("model", "replicas", "rollout"):
            self.want(self.model, **self.spec)


@settings(max_examples=60)
@given(st.lists(TURNS, max_size=50), st.sampled_from([5, 1000]), st.sampled_from([(), BEGUN]))
def test_in_whatever_order_things_are_done(turns: list[Any], room: int, first: tuple[Any, ...]):
    """Shares are one a revision and 100 together, a canary gets none before Traffic and never more than its share, and
    in the end nothing is left to do."""
    world = Turning(room)
    for turn in (*first, *turns):
        world.turn(*((turn,) if isinstance(turn, str) else turn))
        world.step()
        percents = {share["revision"]: share["percent"] for share in world.status["traffic"]}
        assert len(percents) == len(world.status["traffic"])
        assert sum(percents.values()) in (0, 100)
        assert all(percent >= 0 for percent in percents.values())
        rollout = world.status.get("rollout", {})
        if rollout.get("phase") in ("Starting", "Golden", "Mirror"):
            assert percents[rollout["revision"]] == 0
        if rollout.get("phase") == "Traffic":
            assert percents[rollout["revision"]] <= rollout["percent"]
    world.settle(150)
