"""One Reranker's life as plans make it, in a small world that behaves like the rest of Kubernetes."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rerank_api import names
from rerank_operator.controller.actions import Apply, Delete, Scale
from rerank_operator.controller.conditions import Problem
from unit.operator.build import (
    DEPLOYMENTS,
    KEY,
    MODEL_A,
    MODEL_B,
    NAME,
    NAMESPACE,
    NOW,
    PODS,
    RERANKERS,
    World,
    crashed,
    pod,
    unschedulable,
)

HOLDING_GPUS = {"resources": {"limits": {"nvidia.com/gpu": 1}}}


def reasons(world: World) -> list[str]:
    """Of the events that the next plan tells."""
    plan = world.step()
    told = [action.event for action in plan.actions if isinstance(action, Apply | Scale) and action.event]
    return [event.reason for event in [*told, *plan.events]]


def test_the_first_plan_makes_everything_and_the_next_nothing():
    world = World()
    a = world.want(replicas=2)
    plan = world.step()
    kinds = [action.kind.name for action in plan.actions if isinstance(action, Apply)]
    assert kinds == ["ControllerRevision", "PodDisruptionBudget", "Deployment"]
    assert world.replicas() == {a: 2}
    assert world.condition("Ready") == ("False", "WaitingForWorkers")
    assert world.condition("Progressing") == ("True", "RollingOut")
    world.settle()
    plan = world.plan()
    assert (plan.actions, plan.status, plan.events) == ((), None, ())
    assert world.condition("Ready") == ("True", "Serving")
    assert world.condition("Progressing") == ("False", "RolloutComplete")
    assert world.condition("Degraded") == ("False", "Healthy")
    assert world.status["traffic"] == [{"revision": a, "percent": 100}]
    assert (world.status["replicas"], world.status["readyReplicas"]) == (2, 2)


def test_owner_references_and_labels_tie_children_to_their_reranker():
    world = World()
    world.want(replicas=2)
    for action in world.plan().actions:
        assert isinstance(action, Apply)
        metadata = action.manifest["metadata"]
        assert [owner["uid"] for owner in metadata["ownerReferences"]] == ["uid-1"]
        assert metadata["labels"][names.LABEL_RERANKER] == NAME
        assert metadata["labels"][names.LABEL_MANAGED_BY] == names.MANAGED_BY


def test_a_spec_change_rolls_over_and_cleans_up():
    world = World()
    a = world.want(MODEL_A)
    world.settle()
    b = world.want(MODEL_B)
    assert "RolloutStarted" in reasons(world)
    assert world.replicas() == {a: 1, b: 1}
    assert world.status["traffic"] == [{"revision": a, "percent": 100}]
    assert (world.status["currentRevision"], world.status["updatedRevision"]) == (a, b)
    world.settle()
    assert world.replicas() == {b: 1}
    assert world.status["traffic"] == [{"revision": b, "percent": 100}]
    assert world.status["currentRevision"] == b
    revisions = {state.revision: state.number for state in world.observe().revisions}
    assert revisions == {a: 1, b: 2}


def test_going_back_makes_the_old_revision_the_newest_again():
    world = World()
    a, _ = world.want(MODEL_A), world.settle()
    world.want(MODEL_B)
    world.settle()
    assert world.want(MODEL_A) == a
    world.settle()
    assert world.replicas() == {a: 1}
    assert world.observe().revisions[0].revision == a
    assert world.observe().revisions[0].number == 3


def test_an_old_deployment_stays_until_its_last_worker_has_gone():
    world = World()
    a = world.want(MODEL_A)
    world.settle()
    world.want(MODEL_B)
    world.step()
    world.run_one_pod()
    draining = world.pods(a)[0]
    world.carry_out(world.plan())
    assert world.replicas()[a] == 0
    world.put(PODS, draining | {"metadata": draining["metadata"] | {"deletionTimestamp": "2027-01-15T08:00:00Z"}})
    state = world.deployment(a)
    assert state is not None
    world.put(DEPLOYMENTS, state | {"status": {"observedGeneration": 99, "replicas": 0}})
    assert world.plan().actions == ()
    world.remove(PODS, draining["metadata"]["name"])
    assert [type(action) for action in world.plan().actions] == [Delete]


def test_old_revisions_are_pruned_but_never_one_in_use():
    world = World()
    for number in range(14):
        last = world.want({"uri": f"file:///models/{number}"})
        world.settle()
    kept = [state.revision for state in world.observe().revisions]
    assert len(kept) == 11
    assert kept[0] == last


@pytest.mark.parametrize("requests", [{"timeout": "60s"}, {"maxDocuments": 10}])
def test_settings_outside_of_the_revision_do_not_make_a_new_one(requests: dict[str, Any]):
    world = World()
    a = world.want()
    world.settle()
    assert world.want(requests=requests) == a
    world.settle()
    assert world.replicas() == {a: 1}


def test_a_serving_old_deployment_is_scaled_but_its_template_is_not_touched():
    world = World()
    a = world.want(MODEL_A)
    world.settle()
    world.broken.add(world.want(MODEL_B, requests={"timeout": "60s"}, replicas=3))
    plan = world.step()
    assert [action.name for action in plan.actions if isinstance(action, Scale)] == [f"{NAME}-{a}"]
    assert [action.manifest["metadata"]["name"] for action in plan.actions if isinstance(action, Apply)][
        -1
    ] != f"{NAME}-{a}"
    assert world.replicas()[a] == 3


def test_suspend_and_resume():
    world = World()
    a = world.want(replicas=2)
    world.settle()
    world.want(replicas=2, suspend=True)
    assert "Suspended" in reasons(world)
    world.settle()
    assert world.replicas() == {a: 0}
    assert world.pods() == []
    assert world.condition("Ready") == ("False", "Suspended")
    assert world.observe().budget is None
    world.want(replicas=2)
    assert "Resumed" in reasons(world)
    world.settle()
    assert world.condition("Ready") == ("True", "Serving")


def test_no_replicas_requested():
    world = World()
    world.want(replicas=0)
    world.settle()
    assert world.condition("Ready") == ("False", "NoReplicasRequested")
    assert world.condition("Degraded") == ("False", "Healthy")


def test_a_changed_deployment_is_put_back_and_told():
    world = World()
    a = world.want(replicas=2)
    world.settle()
    found = world.deployment(a)
    assert found is not None
    world.put(DEPLOYMENTS, found | {"spec": found["spec"] | {"replicas": 7}})
    assert reasons(world) == ["DriftRepaired"]
    assert world.replicas() == {a: 2}


def test_a_deleted_deployment_is_made_again_and_told():
    world = World()
    a = world.want()
    world.settle()
    world.remove(DEPLOYMENTS, f"{NAME}-{a}")
    assert "DriftRepaired" in reasons(world)
    assert world.replicas() == {a: 1}


def test_the_old_deployment_comes_back_from_its_kept_revision():
    world = World()
    a = world.want(MODEL_A)
    world.settle()
    b = world.want(MODEL_B)
    world.broken.add(b)
    world.settle()
    world.remove(DEPLOYMENTS, f"{NAME}-{a}")
    world.settle()
    assert world.replicas() == {a: 1, b: 1}
    restored = world.deployment(a)
    assert restored is not None
    config = restored["spec"]["template"]["spec"]["containers"][0]["env"][0]["value"]
    assert "/models/a" in config


def test_our_own_new_wish_is_no_drift():
    world = World()
    world.want()
    world.settle()
    world.want(requests={"timeout": "60s"})
    plan = world.plan()
    assert [action.why for action in plan.actions if isinstance(action, Apply)] == ["update"]


def test_a_model_that_cannot_load_is_told_while_the_old_one_serves():
    world = World()
    a = world.want(MODEL_A)
    world.settle()
    b = world.want(MODEL_B)
    world.broken.add(b)
    world.settle()
    assert world.replicas() == {a: 1, b: 1}
    assert world.condition("Ready") == ("True", "Serving")
    assert world.condition("Degraded") == ("True", "ModelLoadFailed")
    message = next(c["message"] for c in world.status["conditions"] if c["type"] == "Degraded")
    assert "spec.model: no such file" in message
    assert "rejectedRevision" not in world.status


def test_no_spare_gpu_frees_one_old_replica_at_a_time():
    world = World(room=3)
    a = world.want(MODEL_A, runtime=HOLDING_GPUS, replicas=3)
    world.settle()
    b = world.want(MODEL_B, runtime=HOLDING_GPUS, replicas=3)
    lowest = 3
    for _ in range(40):
        world.step()
        lowest = min(lowest, world.ready())
        if not world.run_one_pod() and world.replicas() == {b: 3}:
            break
    assert world.replicas() == {b: 3}
    assert world.ready(b) == 3
    assert lowest == 2
    assert world.status["currentRevision"] == b
    assert a != b


def test_a_rollout_ends_though_more_workers_are_asked_for_than_fit():
    world = World(room=2)
    world.want(MODEL_A, runtime=HOLDING_GPUS, replicas=3)
    world.settle()
    b = world.want(MODEL_B, runtime=HOLDING_GPUS, replicas=3)
    lowest = 2
    for _ in range(40):
        world.step()
        lowest = min(lowest, world.ready())
        world.run_one_pod()
    assert world.replicas() == {b: 3}
    assert (world.ready(b), lowest) == (2, 1)
    assert world.status["currentRevision"] == b
    assert world.condition("Degraded") == ("True", "Unschedulable")


def test_turning_back_in_the_middle_of_a_rollout_loses_no_ready_worker():
    world = World()
    a = world.want(MODEL_A, replicas=4)
    world.settle()
    b = world.want(MODEL_B, replicas=4)
    while world.ready(a) > 1:
        world.step()
        world.run_one_pod()
    world.want(MODEL_A, replicas=4)
    while world.replicas() != {a: 4}:
        world.step()
        assert world.ready() >= 4
        world.run_one_pod()
    assert world.ready(b) == 0


def test_a_worker_that_hangs_on_a_lost_node_does_not_hold_up_the_making_of_room():
    world = World(room=1)
    a = world.want(MODEL_A, runtime=HOLDING_GPUS)
    world.settle()
    world.put(PODS, pod(a, 99, ready=False, metadata={"deletionTimestamp": "2027-01-15T08:00:00Z"}))
    b = world.want(MODEL_B, runtime=HOLDING_GPUS)
    world.carry_out(world.plan())
    world.put(PODS, unschedulable(b))
    world.now = NOW + 20
    assert not [action for action in world.plan().actions if isinstance(action, Scale)]
    world.now = NOW + 40
    assert [action.replicas for action in world.plan().actions if isinstance(action, Scale)] == [0]


def test_an_old_deployment_goes_though_an_evicted_pod_of_it_is_left():
    world = World()
    a = world.want(MODEL_A)
    world.settle()
    world.put(PODS, pod(a, 99, ready=False, phase="Failed"))
    b = world.want(MODEL_B)
    world.settle()
    assert world.replicas() == {b: 1}


def test_nothing_is_freed_for_what_the_old_revision_does_not_hold():
    world = World(room=1)
    a = world.want(MODEL_A)
    world.settle()
    world.want(MODEL_B, runtime=HOLDING_GPUS)
    for _ in range(5):
        world.step()
    assert world.replicas()[a] == 1
    assert world.condition("Degraded") == ("True", "Unschedulable")
    assert world.condition("Ready") == ("True", "Serving")


def test_nothing_is_freed_before_the_new_pod_has_waited():
    world = World(room=1)
    a = world.want(MODEL_A, runtime=HOLDING_GPUS)
    world.settle()
    world.want(MODEL_B, runtime=HOLDING_GPUS)
    world.step()
    waiting = next(p for p in world.pods() if p["status"]["phase"] == "Pending")
    scheduled = waiting["status"]["conditions"][0] | {"lastTransitionTime": "2027-01-15T08:00:00Z"}
    world.put(PODS, waiting | {"status": waiting["status"] | {"conditions": [scheduled]}})
    world.now = 1_800_000_000.0 + 4
    plan = world.plan()
    assert plan.actions == ()
    assert plan.requeue_after == pytest.approx(6.0)
    assert world.replicas()[a] == 1
    world.now += 6
    assert [action.replicas for action in world.plan().actions if isinstance(action, Scale)] == [0]


def test_a_revision_that_a_replica_was_freed_for_in_vain_is_taken_back_for_good():
    world = World(room=2)
    a = world.want(MODEL_A, runtime=HOLDING_GPUS, replicas=2)
    world.settle()
    b = world.want(MODEL_B, runtime=HOLDING_GPUS, replicas=2)
    world.broken.add(b)
    world.settle()
    assert world.replicas() == {a: 2, b: 0}
    assert world.ready(a) == 2
    assert world.condition("Degraded") == ("True", "RevisionRejected")
    assert world.condition("Progressing") == ("False", "RevisionRejected")
    assert world.condition("Ready") == ("True", "Serving")
    assert world.status["rejectedRevision"]["revision"] == b
    assert world.status["rejectedRevision"]["reason"] == "ModelLoadFailed"
    assert world.status["traffic"] == [{"revision": a, "percent": 100}]
    # The mark of lending is gone, and an unrelated change of the spec does not try again.
    deployment = world.deployment(a)
    assert deployment is not None
    assert names.ANNOTATION_LENT_TO not in deployment["metadata"]["annotations"]
    world.want(MODEL_B, runtime=HOLDING_GPUS, replicas=1)
    world.settle()
    assert world.replicas() == {a: 1, b: 0}
    # Going back clears the rejection; the same revision is then tried anew.
    world.want(MODEL_A, runtime=HOLDING_GPUS, replicas=1)
    world.settle()
    assert "rejectedRevision" not in world.status
    assert world.condition("Degraded") == ("False", "Healthy")
    world.broken.clear()
    world.want(MODEL_B, runtime=HOLDING_GPUS, replicas=1)
    world.settle()
    assert world.replicas() == {b: 1}


@pytest.mark.parametrize("nothing", [{"replicas": 0}, {"suspend": True}], ids=["scaled to zero", "suspended"])
def test_at_zero_a_failing_revision_does_not_take_the_place_of_the_one_that_served(nothing: dict[str, Any]):
    """Regression: at zero the target was taken for serving, and the good revision was gone when replicas came back."""
    world = World()
    a = world.want(MODEL_A, replicas=1)
    world.settle()
    b = world.want(MODEL_B, replicas=1)
    world.broken.add(b)
    world.settle()
    world.want(MODEL_B, **{"replicas": 1, **nothing})
    world.settle()
    assert set(world.replicas().values()) == {0}
    assert world.status["currentRevision"] == a
    world.want(MODEL_B, replicas=1)
    world.settle()
    assert world.ready(a) == 1
    assert world.condition("Ready") == ("True", "Serving")
    assert world.condition("Degraded") == ("True", "ModelLoadFailed")
    world.broken.clear()
    world.settle()
    assert world.replicas() == {b: 1}


def test_what_the_api_server_refuses_is_told_in_its_words():
    world = World()
    world.want()
    world.problem = Problem("ApplyFailed", "Deployment products-x was refused: spec.template.spec.tolerations[0]")
    plan = world.plan()
    assert plan.status is not None
    world.carry_out(plan)
    assert world.condition("Degraded") == ("True", "ApplyFailed")
    assert world.condition("Ready") == ("False", "ApplyFailed")


def test_an_overlay_that_goes_too_far_is_refused_and_the_old_revision_serves():
    world = World()
    a = world.want()
    world.settle()
    overlay = {"spec": {"containers": [{"name": "worker", "command": ["sh"]}]}}
    world.want(runtime={"podTemplate": overlay})
    world.settle()
    assert world.condition("Degraded") == ("True", "InvalidSpec")
    assert world.condition("Ready") == ("True", "Serving")
    assert world.replicas() == {a: 1}


def test_an_object_that_does_not_fit_is_told_and_nothing_is_touched():
    world = World()
    a = world.want()
    world.settle()
    body = world.store.get(RERANKERS, *KEY)
    assert body is not None
    world.put(RERANKERS, body | {"spec": {"model": {"uri": 7}}})
    plan = world.step()
    assert plan.actions == ()
    assert world.condition("Degraded") == ("True", "InvalidSpec")
    assert world.condition("Ready") == ("True", "Serving")
    assert world.status["traffic"] == [{"revision": a, "percent": 100}]


def test_a_reranker_that_is_being_deleted_is_left_alone():
    world = World()
    world.want()
    body = world.store.get(RERANKERS, *KEY)
    assert body is not None
    world.put(RERANKERS, body | {"metadata": body["metadata"] | {"deletionTimestamp": "2027-01-15T08:00:00Z"}})
    plan = world.plan()
    assert (plan.actions, plan.status) == ((), None)


def test_children_of_a_deleted_namesake_are_not_ours():
    world = World()
    a = world.want()
    world.settle()
    body = world.store.get(RERANKERS, *KEY)
    assert body is not None
    world.put(RERANKERS, {**body, "metadata": body["metadata"] | {"uid": "uid-2"}, "status": {}})
    created = [action for action in world.plan().actions if isinstance(action, Apply)]
    assert all(action.found_version is None for action in created)
    assert f"{NAME}-{a}" in [action.manifest["metadata"]["name"] for action in created]


def test_a_crash_of_one_worker_does_not_hide_that_others_serve():
    world = World()
    a = world.want(replicas=2)
    world.settle()
    first = world.pods(a)[0]
    world.put(PODS, first | {"status": crashed(a, 1, "Traceback\nValueError: x", restarts=4)["status"]})
    world.step()
    assert world.condition("Ready") == ("True", "Serving")
    assert world.condition("Degraded") == ("True", "CrashLooping")
    assert world.status["readyReplicas"] == 1


specs = st.fixed_dictionaries(
    {
        "model": st.sampled_from([{"uri": f"file:///models/{name}"} for name in "abc"]),
        "replicas": st.integers(0, 5),
        "suspend": st.booleans(),
        "runtime": st.just(HOLDING_GPUS),
    }
)


@settings(max_examples=60)
@given(changes=st.lists(st.tuples(specs, st.integers(0, 4)), min_size=1, max_size=5), room=st.integers(1, 6))
def test_any_history_of_specs_converges(changes: list[tuple[dict[str, Any], int]], room: int):
    """Specs change in the middle of rollouts; in the end only what was asked for last is there, as far as it fits."""
    world = World(room)
    for spec, steps in changes:
        revision = world.want(spec["model"], **{k: v for k, v in spec.items() if k != "model"})
        for _ in range(steps):
            world.step()
            world.run_one_pod()
            assert sum(share["percent"] for share in world.status["traffic"]) in (0, 100)
    world.settle(steps=80)
    wanted = 0 if changes[-1][0]["suspend"] else changes[-1][0]["replicas"]
    if wanted:
        assert world.replicas() == {revision: wanted}
        assert world.status["currentRevision"] == revision
    else:  # the Deployment of the revision that served last is kept beside it
        assert set(world.replicas().values()) == {0}
    assert world.ready(revision) == min(wanted, room)
    assert world.observe().metadata.namespace == NAMESPACE
