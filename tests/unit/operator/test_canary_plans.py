"""A canary's life as plans make it: who has how many workers and which requests, from the first gate to the end."""

from typing import Any, Literal

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rerank_api import names
from rerank_api.outcome import Outcome
from rerank_api.reranker import CheckVerdict, DifferedRequest, RolloutCheck
from rerank_operator.controller.actions import Apply, Scale
from rerank_operator.controller.kinds import CONTROLLER_REVISIONS, DEPLOYMENTS, PODS
from rerank_operator.controller.scene import LARGEST_OUTCOME
from rerank_operator.controller.times import format_time
from rerank_operator.manifests.pod_template import WorkerImage
from rerank_operator.rollout.canary import Findings
from unit.operator.build import KEY, MODEL_A, MODEL_B, World, crashed

NEWER = WorkerImage("registry.example/worker:2")
MODEL_C = {"uri": "file:///models/c"}
CANARY = {"strategy": "Canary", "steps": [5, 50], "goldenSet": {"configMap": "golden"}}


def check(name: str, verdict: CheckVerdict = "pass", message: str = "so it is") -> RolloutCheck:
    return RolloutCheck(name, verdict, message)


class Rollout(World):
    """A serves with ``replicas`` workers; B is wanted, and its first worker is up."""

    def __init__(self, replicas: int = 4, room: int = 1000, settle: bool = True, **rollout: Any) -> None:
        super().__init__(room)
        self.spec = {"replicas": replicas, "rollout": CANARY | rollout}
        self.a = self.want(MODEL_A, **self.spec)
        self.settle()
        self.b = self.want(MODEL_B, **self.spec)
        if settle:
            self.settle()

    def find(self, **found: Any) -> None:
        before = self.findings or Findings(self.b)
        self.findings = msgspec.structs.replace(before, **found)
        self.settle()

    @property
    def rollout(self) -> dict[str, Any]:
        return self.status["rollout"]

    @property
    def percents(self) -> dict[str, int]:
        return {share["revision"]: share["percent"] for share in self.status["traffic"]}

    def note(self, revision: str, name: str) -> str | None:
        found = {
            body["metadata"]["labels"][names.LABEL_REVISION]: body["metadata"].get("annotations", {})
            for body in self.store.children(CONTROLLER_REVISIONS, KEY)
        }
        return found[revision].get(name)


def told(world: World) -> list[str]:
    plan = world.step()
    return [event.reason for event in plan.events]


def test_a_good_canary_passes_its_gates_in_order_and_takes_over():
    world = Rollout(replicas=4)
    a, b = world.a, world.b
    assert world.rollout["phase"] == "Golden"
    assert (world.replicas(), world.percents) == ({a: 4, b: 1}, {a: 100, b: 0})
    assert world.status["currentRevision"] == a
    assert world.condition("CanaryHealthy") == ("Unknown", "JudgingGolden")
    assert world.condition("Progressing") == ("True", "Canary")

    world.find(golden=check("golden"))
    assert world.rollout["phase"] == "Mirror"
    assert world.percents == {a: 100, b: 0}

    world.find(mirror=check("mirror"))
    assert (world.rollout["phase"], world.rollout["percent"]) == ("Traffic", 5)
    assert (world.replicas(), world.percents) == ({a: 4, b: 1}, {a: 95, b: 5})

    world.find(step=1, requests=70)
    assert (world.replicas(), world.percents) == ({a: 4, b: 2}, {a: 50, b: 50})
    assert world.rollout["requests"] == 70

    world.findings = Findings(b, step=1, action="promote")
    while world.rollout["phase"] != "Promoted":
        world.step()
        world.run_one_pod()
    assert world.percents == {b: 100}, "it serves all requests, as the status says"
    world.findings = None
    world.settle()
    assert (world.replicas(), world.percents) == ({b: 4}, {b: 100})
    assert world.status["currentRevision"] == b
    assert (world.rollout["phase"], world.rollout["percent"]) == ("Promoted", 100)
    assert world.condition("CanaryHealthy") == ("True", "Promoted")
    assert world.condition("Progressing") == ("False", "RolloutComplete")
    outcome = msgspec.json.decode(world.note(b, names.ANNOTATION_OUTCOME) or "null")
    assert (outcome["phase"], [c["name"] for c in outcome["checks"]]) == ("Promoted", ["load", "golden", "mirror"])


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ({"golden": check("golden", "fail", "nDCG -0.2")}, "RanksWorse"),
        ({"golden": check("golden"), "mirror": check("mirror", "fail")}, "MirroredRequestsFailed"),
        ({"metrics": (check("errors", "fail"),)}, "MoreErrors"),
        ({"metrics": (check("errors", "hold"), check("latency", "fail"))}, "Slower"),
        ({"metrics": (check("errors"), check("conversion", "fail"))}, "BusinessMetricWorse"),
    ],
)
def test_a_bad_canary_is_taken_back_and_remembered(found: dict[str, Any], reason: str):
    world = Rollout()
    world.find(golden=check("golden"), mirror=check("mirror"))
    assert world.percents == {world.a: 95, world.b: 5}
    world.findings = msgspec.structs.replace(world.findings or Findings(world.b), **found)
    plan = world.step()  # weights first: its workers still end what they have
    assert (world.percents, world.replicas()) == ({world.a: 100, world.b: 0}, {world.a: 4, world.b: 1})
    assert plan.requeue_after == 0
    assert "RevisionRejected" in [event.reason for event in plan.events]
    world.settle()
    assert (world.percents, world.replicas()) == ({world.a: 100, world.b: 0}, {world.a: 4, world.b: 0})
    assert world.rollout["phase"] == "RolledBack"
    assert world.status["rejectedRevision"]["reason"] == reason
    assert world.condition("CanaryHealthy") == ("False", "RolledBack")
    assert world.condition("Degraded") == ("True", "RevisionRejected")
    assert "RolledBack" in (world.note(world.b, names.ANNOTATION_OUTCOME) or "")
    world.findings = None
    world.want(MODEL_B, **(world.spec | {"replicas": 5}))
    world.settle()
    assert world.replicas() == {world.a: 5, world.b: 0}, "the same revision is not tried again"


def test_a_rejected_revision_is_tried_again_when_asked_for_after_the_rejection():
    world = Rollout()
    world.find(golden=check("golden", "fail"))
    world.findings = None
    world.annotate(names.ANNOTATION_RETRY, format_time(world.now - 1e6))
    world.settle()
    assert world.rollout["phase"] == "RolledBack"
    world.annotate(names.ANNOTATION_RETRY, "soon")
    world.settle()
    assert world.rollout["phase"] == "RolledBack"
    world.annotate(names.ANNOTATION_RETRY, format_time(world.now + 1))
    world.settle()
    assert (world.rollout["phase"], "rejectedRevision" in world.status) == ("Golden", False)
    assert [c["name"] for c in world.rollout["checks"]] == ["load"]
    world.find(golden=check("golden", "fail"))
    assert (world.rollout["phase"], world.replicas()[world.b]) == ("RolledBack", 0), "asked for once, tried once"


def test_a_canary_that_cannot_load_touches_no_request():
    world = Rollout(settle=False)
    world.broken.add(world.b)
    world.settle()
    assert world.rollout["phase"] == "RolledBack"
    assert world.status["rejectedRevision"]["reason"] == "ModelLoadFailed"
    assert (world.percents, world.replicas()) == ({world.a: 100, world.b: 0}, {world.a: 4, world.b: 0})
    assert [(c["name"], c["verdict"]) for c in world.rollout["checks"]] == [("load", "fail")]


def test_a_canary_that_begins_to_crash_under_traffic_is_taken_back():
    world = Rollout()
    world.find(golden=check("golden"), mirror=check("mirror"))
    (worker,) = world.pods(world.b)
    status = crashed(world.b, 139, "segmentation fault", restarts=4)["status"]
    world.put(PODS, worker | {"status": status})
    world.settle()
    assert (world.rollout["phase"], world.status["rejectedRevision"]["reason"]) == ("RolledBack", "CrashLooping")


def test_by_hand_promoted_aborted_and_paused():
    world = Rollout()
    world.annotate(names.ANNOTATION_ROLLOUT_PAUSED, "true")
    world.find(golden=check("golden"))
    assert (world.rollout["phase"], world.condition("CanaryHealthy")) == ("Golden", ("Unknown", "Paused"))
    world.annotate(names.ANNOTATION_ROLLOUT_PAUSED, "false")
    world.settle()
    assert world.rollout["phase"] == "Mirror"
    world.annotate(names.ANNOTATION_PROMOTE, format_time(world.now))
    world.settle()
    assert world.rollout["phase"] == "Mirror"
    world.annotate(names.ANNOTATION_PROMOTE, world.rollout["started"])
    world.settle()
    assert (world.rollout["phase"], world.replicas()) == ("Promoted", {world.b: 4})

    world = Rollout()
    world.annotate(names.ANNOTATION_ABORT, world.rollout["started"])
    world.settle()
    assert (world.rollout["phase"], world.status["rejectedRevision"]["reason"]) == ("RolledBack", "Aborted")


def promoted_by_hand(world: Rollout) -> str:
    """Each message on the way is a promotion by hand; returns the last one."""
    world.annotate(names.ANNOTATION_PROMOTE, world.rollout["started"])
    notes = []
    while world.rollout["phase"] != "Promoted":
        notes += [event.note for event in world.step().events if event.reason == "CanaryPromoted"]
        assert "promoted by hand" in world.rollout["message"]
        world.run_one_pod()
    assert ["promoted by hand" in note for note in notes] == [True]
    world.settle()
    outcome = msgspec.json.decode(world.note(world.b, names.ANNOTATION_OUTCOME) or "null")
    assert outcome["message"] == world.rollout["message"]
    return outcome["message"]


@pytest.mark.parametrize("replicas", [1, 4])
@pytest.mark.parametrize(
    ("found", "said"),
    [
        ([], "in phase Golden, not passed: golden, mirror, errors, latency"),
        ([{"golden": check("golden")}], "in phase Mirror, not passed: mirror, errors, latency"),
        (
            [
                {"golden": check("golden"), "mirror": check("mirror")},
                {"metrics": (check("errors"), check("latency", "hold"))},
            ],
            "at step 1 of 2, not passed: latency",
        ),
        (
            [
                {"golden": check("golden"), "mirror": check("mirror")},
                {"metrics": (check("errors"), check("latency")), "step": 1},
            ],
            "at step 2 of 2, every check passed",
        ),
    ],
)
def test_a_promotion_by_hand_is_told_as_one_with_what_was_not_passed(
    found: list[dict[str, Any]], said: str, replicas: int
):
    """Status, history and Event said no more than what they say of the judge's own promotions."""
    world = Rollout(replicas)
    for one in found:
        world.find(**one)
    by_hand = f"promoted by hand (annotation {names.ANNOTATION_PROMOTE}) {said}"
    assert promoted_by_hand(world) == f"revision {world.b} serves all requests: {by_hand}"


def test_a_promotion_by_the_judge_is_not_told_as_one_by_hand():
    world = Rollout()
    world.find(golden=check("golden"), mirror=check("mirror"))
    world.findings = Findings(world.b, step=1, action="promote")
    world.step()
    assert world.rollout["phase"] == "Promoting"
    world.annotate(names.ANNOTATION_PROMOTE, world.rollout["started"])
    world.settle()
    assert world.rollout["message"] == f"revision {world.b} serves all requests"


def test_paused_it_still_goes_back():
    world = Rollout(paused=True)
    world.find(golden=check("golden", "fail"))
    assert world.rollout["phase"] == "RolledBack"


def test_undecided_at_the_deadline_it_waits_for_a_person():
    world = Rollout(deadline="10h")
    world.find(golden=check("golden"), mirror=check("mirror"))
    world.now += 11 * 3600
    assert "RolloutPaused" in told(world)
    assert "spec.rollout.deadline" in world.rollout["message"]
    world.find(step=1)
    assert (world.rollout["phase"], world.percents) == ("Traffic", {world.a: 95, world.b: 5})
    world.annotate(names.ANNOTATION_PROMOTE, world.rollout["started"])
    world.settle()
    assert world.rollout["phase"] == "Promoted"


def test_an_ab_test_holds_its_split_whatever_its_figures_say():
    world = Rollout(strategy="ABTest", steps=[50])
    world.find(golden=check("golden"), mirror=check("mirror"))
    worse = (check("errors", "fail"), check("latency", "hold"))
    world.find(metrics=worse, action="promote", step=1)
    assert (world.rollout["phase"], world.percents) == ("Traffic", {world.a: 50, world.b: 50})
    # Regression: after a day it was paused by the deadline, and a ticket asked for a decision.
    world.now += 14 * 86_400
    world.settle()
    assert "RolloutPaused" not in told(world)
    assert not world.rollout.get("paused")
    world.annotate(names.ANNOTATION_ABORT, world.rollout["started"])
    world.settle()
    assert world.rollout["phase"] == "RolledBack"


def test_what_a_person_has_promoted_is_not_taken_back_for_what_they_passed_over():
    """Regression: the strategy set back to Canary, while the workers of an A/B test's winner still loaded, made an old
    verdict strike."""
    world = Rollout(strategy="ABTest", steps=[50])
    world.find(golden=check("golden"), mirror=check("mirror"))
    world.find(metrics=(check("errors"), check("latency", "fail")))
    world.annotate(names.ANNOTATION_PROMOTE, world.rollout["started"])
    world.step()
    assert world.rollout["phase"] == "Promoting"
    world.findings = None
    world.want(MODEL_B, replicas=4, rollout=CANARY)
    world.settle()
    assert world.rollout["phase"] == "Promoted"


def test_an_ab_test_that_becomes_a_canary_waits_for_no_difference():
    world = Rollout(strategy="ABTest", steps=[50])
    world.find(golden=check("golden"), mirror=check("mirror"))
    world.find(metrics=(check("errors"), check("latency"), check("difference", "hold")))
    world.want(MODEL_B, replicas=4, rollout=CANARY)
    world.findings = None
    world.step()
    assert "difference" not in world.rollout["message"]
    assert "difference" not in {one["name"] for one in world.rollout["checks"]}


def images(world: World) -> dict[str, str]:
    return {
        body["metadata"]["labels"][names.LABEL_REVISION]: body["spec"]["template"]["spec"]["containers"][0]["image"]
        for body in world.store.children(DEPLOYMENTS, KEY)
    }


@pytest.mark.parametrize("strategy", ["Canary", "ABTest"])
def test_a_newer_image_reaches_both_arms(strategy: str):
    """Regression: stable kept the image and the tracing of before until the canary had ended, and the arms differed."""
    world = Rollout(strategy=strategy, steps=[50])
    world.find(golden=check("golden"), mirror=check("mirror"))
    world.worker = NEWER
    world.settle()
    assert images(world) == {world.a: NEWER.image, world.b: NEWER.image}
    assert (world.replicas()[world.a], world.percents) == (4, {world.a: 50, world.b: 50})


def test_a_newer_image_reaches_who_serves_where_the_target_was_rejected():
    """Regression: it reached the rejected revision only, which has no workers."""
    world = Rollout()
    world.find(golden=check("golden", "fail"))
    assert world.rollout["phase"] == "RolledBack"
    world.worker, world.findings = NEWER, None
    world.settle()
    assert images(world)[world.a] == NEWER.image
    assert world.replicas() == {world.a: 4, world.b: 0}
    assert world.step().actions == ()


def test_the_spec_turns_to_a_third_revision_or_back():
    world = Rollout()
    world.find(golden=check("golden"), mirror=check("mirror"))
    c = world.want(MODEL_C, **world.spec)
    world.step()
    assert world.percents == {world.a: 100, world.b: 0, c: 0}
    world.settle()
    assert world.percents == {world.a: 100, c: 0}
    assert (world.rollout["revision"], world.rollout["phase"]) == (c, "Golden")
    assert world.replicas() == {world.a: 4, c: 1}
    assert "Cancelled" in (world.note(world.b, names.ANNOTATION_OUTCOME) or "")
    world.findings = None
    world.want(MODEL_A, **world.spec)
    world.step()
    assert world.percents == {world.a: 100, c: 0}
    world.settle()
    assert (world.rollout["phase"], world.percents, world.replicas()) == ("Cancelled", {world.a: 100}, {world.a: 4})


def test_at_zero_a_canary_waits_and_gets_nothing_first():
    world = Rollout()
    world.want(MODEL_B, **(world.spec | {"replicas": 0, "scaling": {"minReplicas": 0}}))
    world.settle()
    assert (world.replicas(), world.percents) == ({world.a: 0, world.b: 0}, {world.a: 100, world.b: 0})
    world.want(MODEL_B, **world.spec)
    world.step()
    assert world.percents == {world.a: 100, world.b: 0}
    world.settle()
    assert (world.replicas(), world.rollout["phase"]) == ({world.a: 4, world.b: 1}, "Golden")


@pytest.mark.parametrize(("when_full", "stable"), [("wait", 4), ("replaceOne", 3), ("borrow", 4)])
def test_without_room_the_user_has_chosen(when_full: str, stable: int):
    gpus = {"resources": {"limits": {"nvidia.com/gpu": 1}}}
    world = World(room=4)
    spec = {"replicas": 4, "rollout": CANARY | {"whenFull": when_full}, "runtime": gpus}
    a = world.want(MODEL_A, **spec)
    world.settle()
    b = world.want(MODEL_B, **spec)
    for _ in range(30):
        world.step()
        world.run_one_pod()
    assert world.replicas() == {a: stable, b: 1}
    assert world.status["rollout"]["phase"] == ("Starting" if stable == 4 else "Golden")
    if when_full != "replaceOne":
        assert "nvidia.com/gpu" in world.status["rollout"]["message"]
    assert world.status["rollout"].get("borrowed", 0) == (1 if when_full == "borrow" else 0)
    if when_full == "borrow":
        world.room = 5  # the pool has given its room
        world.settle()
        assert world.status["rollout"]["phase"] == "Golden"
        world.annotate(names.ANNOTATION_ABORT, world.status["rollout"]["started"])
        world.settle()
        assert "borrowed" not in world.status["rollout"]


def test_one_stable_replica_is_never_given_up_for_room():
    gpus = {"resources": {"limits": {"nvidia.com/gpu": 1}}}
    world = World(room=1)
    spec = {"replicas": 1, "rollout": CANARY | {"whenFull": "replaceOne"}, "runtime": gpus}
    a = world.want(MODEL_A, **spec)
    world.settle()
    world.want(MODEL_B, **spec)
    for _ in range(30):
        world.step()
        world.run_one_pod()
        assert world.ready(a) == 1


def test_a_share_that_the_canary_cannot_carry_yet_is_not_given():
    world = Rollout(replicas=4)
    world.find(golden=check("golden"), mirror=check("mirror"))
    world.findings = msgspec.structs.replace(world.findings or Findings(world.b), step=1)
    world.step()
    assert world.percents == {world.a: 75, world.b: 25}, "one of two workers is up"
    world.settle()
    assert world.percents == {world.a: 50, world.b: 50}


def test_the_requests_that_differed_most_stay_with_the_rollout():
    world = Rollout()
    worst = (DifferedRequest("r-1", -0.5, 0.4), DifferedRequest("r-2", 0.2, 0.1))
    world.find(golden=check("golden"), mirror=check("mirror", "hold"), differed=worst)
    told = [{"requestId": "r-1", "agreement": -0.5, "drift": 0.4}, {"requestId": "r-2", "agreement": 0.2, "drift": 0.1}]
    assert world.rollout["differed"] == told
    world.findings = Findings(world.b, mirror=check("mirror"))  # another operator, that has not looked at them
    world.settle()
    assert (world.rollout["phase"], world.rollout["differed"]) == ("Traffic", told)
    world.find(metrics=(check("errors", "fail"),))
    assert world.rollout["phase"] == "RolledBack"
    outcome = msgspec.json.decode(world.note(world.b, names.ANNOTATION_OUTCOME) or "null")
    assert outcome["differed"] == told
    world.findings = None
    world.annotate(names.ANNOTATION_RETRY, format_time(world.now + 1))
    world.settle()
    assert "differed" not in world.rollout, "the next try has its own"


def outcome_of_b(world: Rollout) -> Outcome:
    return msgspec.json.decode(world.note(world.b, names.ANNOTATION_OUTCOME) or "null", type=Outcome)


def test_how_a_revision_ended_before_is_kept_beside_how_it_ends_now():
    """``history --revision`` had the evidence of a rollback no more once it was tried again and promoted."""
    world = Rollout()
    for tries in range(1, 8):
        world.find(golden=check("golden", "fail", f"try {tries}"))
        world.findings = None
        world.annotate(names.ANNOTATION_RETRY, format_time(world.now + 1))
        world.settle()
        assert world.rollout["phase"] == "Golden"
    world.annotate(names.ANNOTATION_PROMOTE, world.rollout["started"])
    world.settle()
    last = outcome_of_b(world)
    assert last.phase == "Promoted"
    assert [one.checks[1].message for one in last.earlier] == ["try 7", "try 6", "try 5", "try 4"]
    assert {one.phase for one in last.earlier} == {"RolledBack"}


def test_a_rollout_whose_end_is_written_twice_is_not_its_own_past():
    """The operator dies between the annotation and the status."""
    world = Rollout()
    world.findings = Findings(world.b, golden=check("golden", "fail"))
    for _ in range(3):
        world.now += 60
        world.carry_out(msgspec.structs.replace(world.plan(), status=None))
    world.settle()
    assert (outcome_of_b(world).phase, outcome_of_b(world).earlier) == ("RolledBack", ())


@pytest.mark.parametrize("before", ["{", "[]", '{"phase": "Flying"}'])
def test_a_past_that_is_not_understood_stops_nothing(before: str):
    world = Rollout()
    (kept,) = [
        body
        for body in world.store.children(CONTROLLER_REVISIONS, KEY)
        if body["metadata"]["labels"][names.LABEL_REVISION] == world.b
    ]
    noted = kept["metadata"] | {"annotations": {names.ANNOTATION_OUTCOME: before}}
    world.put(CONTROLLER_REVISIONS, kept | {"metadata": noted})
    world.find(golden=check("golden", "fail"))
    assert outcome_of_b(world).earlier == ()


def test_what_is_kept_of_earlier_rollouts_is_bounded():
    """An annotation is in the memory of every operator, and the API server takes so much of them and no more."""
    world = Rollout()
    for tries in "12345":
        world.find(golden=check("golden", "fail", tries * 6000))
        world.findings = None
        world.annotate(names.ANNOTATION_RETRY, format_time(world.now + 1))
        world.settle()
    assert len(world.note(world.b, names.ANNOTATION_OUTCOME) or "") <= LARGEST_OUTCOME
    assert [one.checks[1].message[0] for one in outcome_of_b(world).earlier] == ["4", "3"]


Evil = Literal["good", "golden", "mirror", "errors", "crash", "abort", "promote"]


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from(["step", "kill", "golden", "mirror", "next", "pods"]), max_size=40),
    st.sampled_from(["good", "errors", "abort", "golden"]),
    st.integers(1, 5),
)
def test_stable_never_has_fewer_workers_than_wanted_before_promotion(events: list[str], end: Evil, replicas: int):
    """Whatever the order in which things are seen, and however often the operator forgets what it found."""
    world = Rollout(replicas=replicas, settle=False)
    a, b = world.a, world.b
    found: dict[str, Any] = {}
    for event in [*events, "end"]:
        if event == "kill":
            world.findings = None
        elif event in ("golden", "mirror"):
            found[event] = check(event)
        elif event == "next":
            found["step"] = min(1, found.get("step", -1) + 1)
        elif event == "pods":
            world.run_one_pod()
        if event != "kill":
            world.findings = Findings(b, **found)
        before = world.status.get("rollout", {}).get("step", 0)
        world.step()
        assert world.replicas()[a] == replicas
        assert world.rollout.get("step", 0) >= before
        passed = {c["name"] for c in world.rollout.get("checks", ()) if c["verdict"] == "pass"}
        if not {"load", "golden", "mirror"} <= passed:
            assert world.percents.get(b, 0) == 0
    if end == "good":
        return
    if end == "abort":
        world.annotate(names.ANNOTATION_ABORT, world.rollout["started"])
    else:
        found["golden" if end == "golden" else "metrics"] = (
            check(end, "fail") if end == "golden" else (check("errors", "fail"),)
        )
    world.findings = Findings(b, **found)
    world.settle()
    assert world.percents == {a: 100, b: 0}
    assert world.replicas() == {a: replicas, b: 0}


def test_evidence_is_kept_with_the_canary_and_written_once():
    world = Rollout()
    world.find(golden=check("golden"), mirror=check("mirror"), evidence='{"phase": "Traffic"}')
    assert world.note(world.b, names.ANNOTATION_EVIDENCE) == '{"phase": "Traffic"}'
    plan = world.plan()
    assert not [action for action in plan.actions if isinstance(action, Apply | Scale)]
    world.annotate(names.ANNOTATION_ABORT, world.rollout["started"])
    actions = [action for action in world.step().actions if isinstance(action, Apply)]
    (left,) = [action.manifest["metadata"] for action in actions if action.kind is CONTROLLER_REVISIONS]
    assert left["annotations"].keys() == {names.ANNOTATION_OUTCOME}, "the evidence of one that has ended is not kept"


CONVERSION = {"name": "conversion", "query": 'orders{revision="{revision}"}', "maxDecrease": 0.05}


def test_an_ab_test_only_tells_of_the_users_own_metrics():
    world = Rollout(strategy="ABTest", steps=[50], prometheus=[CONVERSION])
    world.find(golden=check("golden"), mirror=check("mirror"))
    world.find(metrics=(check("conversion", "fail", "worse in 20 of 20 intervals"),))
    assert world.rollout["phase"] == "Traffic"
    assert world.percents == {world.a: 50, world.b: 50}
    assert {"name": "conversion", "verdict": "fail", "message": "worse in 20 of 20 intervals"} in world.rollout[
        "checks"
    ]


def test_a_query_that_is_not_in_the_spec_any_more_is_not_waited_for_nor_told_of():
    world = Rollout(prometheus=[CONVERSION])
    world.find(golden=check("golden"), mirror=check("mirror"))
    world.find(metrics=(check("errors"), check("conversion", "hold")))
    assert "conversion to be shown" in world.rollout["message"]
    world.want(MODEL_B, replicas=4, rollout=CANARY)
    world.find(metrics=(check("errors"),))
    assert [one["name"] for one in world.rollout["checks"]] == ["load", "golden", "mirror", "errors"]
    assert "conversion" not in world.rollout["message"]


def test_one_crashing_worker_of_several_does_not_undo_a_promotion():
    world = Rollout(replicas=4)
    world.find(golden=check("golden"), mirror=check("mirror"))
    world.find(step=1)
    world.findings = Findings(world.b, check("golden"), check("mirror"), step=1, action="promote")
    world.step()
    assert world.rollout["phase"] == "Promoting"
    worker = world.pods(world.b)[-1]
    world.put(PODS, worker | {"status": crashed(world.b, 139, "segmentation fault", restarts=4)["status"]})
    world.step()
    assert world.rollout["phase"] == "Promoting"
    assert world.percents[world.b] > 0
    for worker in world.pods(world.b):
        world.put(PODS, worker | {"status": crashed(world.b, 139, "segmentation fault", restarts=4)["status"]})
    world.step()
    assert world.rollout["phase"] == "RolledBack"
