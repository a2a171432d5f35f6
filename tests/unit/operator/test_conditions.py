"""Conditions from facts, and Events from changes of conditions."""

from itertools import pairwise
from typing import Any

import msgspec
import pytest
from rerank_api.reranker import Metadata, RejectedRevision, RolloutPhase, RolloutStatus, ScalingState
from rerank_operator.controller.conditions import Facts, Problem, judge
from rerank_operator.controller.diagnose import Diagnosis
from rerank_operator.controller.events import Allowance, Event, manifest, of_rollout, transitions
from rerank_operator.controller.verdict import Verdict

NOW = 1_800_000_000.0
LOAD = Diagnosis("ModelLoadFailed", "no such folder")
GPU = Diagnosis("Unschedulable", "Insufficient nvidia.com/gpu")
REFUSED = Problem("ApplyFailed", "tolerations[0].operator")
REJECTED = RejectedRevision("new", "ModelLoadFailed", "no such folder")

SILENT = Diagnosis("NodeSilent", "the node of pod products-a-1 does not report")

SERVING: dict[str, Any] = {"desired": 2, "ready": 2, "target": "a", "current": "a", "target_ready": 2}
STARTING: dict[str, Any] = {"desired": 2, "ready": 0, "target": "a", "current": None}
ROLLING: dict[str, Any] = {"desired": 2, "ready": 3, "target": "b", "current": "a", "target_ready": 1}
BROKEN = STARTING | {"target_trouble": LOAD}
STOPPED = SERVING | {"suspended": True, "desired": 0}


@pytest.mark.parametrize(
    ("facts", "ready", "progressing", "degraded"),
    [
        (SERVING, "True Serving", "False RolloutComplete", "False Healthy"),
        (STARTING, "False WaitingForWorkers", "True RollingOut", "False Healthy"),
        (ROLLING, "True Serving", "True RollingOut", "False Healthy"),
        (SERVING | {"target_updated": False}, "True Serving", "True RollingOut", "False Healthy"),
        (STOPPED, "False Suspended", "False Suspended", "False Healthy"),
        (SERVING | {"desired": 0}, "False NoReplicasRequested", "False NoReplicasRequested", "False Healthy"),
        (BROKEN, "False ModelLoadFailed", "True RollingOut", "True ModelLoadFailed"),
        (STARTING | {"target_trouble": GPU}, "False Unschedulable", "True RollingOut", "True Unschedulable"),
        (ROLLING | {"target_trouble": LOAD}, "True Serving", "True RollingOut", "True ModelLoadFailed"),
        (ROLLING | {"serving_trouble": LOAD}, "True Serving", "True RollingOut", "True ModelLoadFailed"),
        (ROLLING | {"rejected": REJECTED}, "True Serving", "False RevisionRejected", "True RevisionRejected"),
        (STARTING | {"problem": REFUSED}, "False ApplyFailed", "False ApplyFailed", "True ApplyFailed"),
        (SERVING | {"problem": REFUSED}, "True Serving", "False ApplyFailed", "True ApplyFailed"),
        (BROKEN | {"problem": REFUSED}, "False ApplyFailed", "False ApplyFailed", "True ApplyFailed"),
        # Regression: an API server that was away for a while made Ready False, though clients were served.
        (SERVING | {"ready": 0, "target_ready": 0, "unheard": 2, "target_trouble": SILENT},
         "Unknown NodeSilent", "True WaitingForWorkers", "True NodeSilent"),
        # Regression: a worker of a lost node was called a rollout, and nothing was called wrong.
        (SERVING | {"ready": 1, "target_ready": 1, "unheard": 1, "target_trouble": SILENT},
         "True Serving", "True WaitingForWorkers", "True NodeSilent"),
        (BROKEN | {"desired": 0}, "False NoReplicasRequested", "False NoReplicasRequested", "False Healthy"),
        # Regression: a model that cannot be loaded was forgotten as soon as its last worker had gone for idleness.
        (BROKEN | {"desired": 0, "target_trouble": None, "last_trouble": LOAD},
         "False NoReplicasRequested", "False NoReplicasRequested", "True ModelLoadFailed"),
        (SERVING | {"last_trouble": LOAD}, "True Serving", "False RolloutComplete", "False Healthy"),
        (STOPPED | {"last_trouble": LOAD}, "False Suspended", "False Suspended", "False Healthy"),
    ],
)  # fmt: skip
def test_conditions(facts: dict[str, Any], ready: str, progressing: str, degraded: str):
    judged = judge(Facts(**facts), [], 3, NOW)
    assert [f"{c.status} {c.reason}" for c in judged][:3] == [ready, progressing, degraded]
    assert [c.type for c in judged] == ["Ready", "Progressing", "Degraded", "CanaryHealthy", "Scaling"]
    assert all(c.message and c.observed_generation == 3 for c in judged)


@pytest.mark.parametrize(
    ("desired", "ready", "message"),
    [
        (2, 1, "1 of 2 workers are ready"),
        (2, 2, "2 of 2 workers are ready"),
        (1, 2, "2 workers are ready, 1 wanted"),
    ],
)
def test_who_is_ready_is_told_beside_who_is_wanted(desired: int, ready: int, message: str):
    judged = judge(Facts(desired=desired, ready=ready, target="a", current="a"), [], 1, NOW)
    assert next(c.message for c in judged if c.type == "Ready") == message


def test_a_reranker_that_warm_pods_serve_is_ready():
    lent = Verdict("Auto", replicas=0, loaners=2, serving=2)
    facts = Facts(desired=0, ready=0, target="a", current="a", verdict=lent)
    judged = {c.type: c for c in judge(facts, [], 1, NOW)}
    assert (judged["Ready"].status, judged["Ready"].message) == (
        "True",
        "0 of 0 workers are ready, and 2 warm pods serve",
    )
    assert judged["Progressing"].status == "False"


def test_a_revision_that_has_not_served_is_not_rolled_out_though_warm_pods_serve():
    """Regression: they served the old revision, and RolloutComplete named the new one as what runs."""
    lent = Verdict("Auto", replicas=0, loaners=1, serving=1)
    judged = {c.type: c for c in judge(Facts(desired=0, ready=0, target="b", current="a", verdict=lent), [], 1, NOW)}
    assert (judged["Progressing"].status, judged["Progressing"].reason) == ("True", "RollingOut")
    assert "revision b has not served yet" in judged["Progressing"].message


def test_a_policy_that_cannot_be_followed_needs_a_person():
    odd = Verdict("Auto", replicas=1, invalid="spec.scaling.schedules[0].timezone: 'Mars' is not a time zone")
    judged = {c.type: c for c in judge(Facts(**SERVING, verdict=odd), [], 1, NOW)}
    assert (judged["Degraded"].status, judged["Degraded"].reason) == ("True", "InvalidPolicy")


@pytest.mark.parametrize(("mode", "said"), [("Recommend", "scaling.mode is recommend"), ("Paused", "scaling-paused")])
def test_at_zero_the_one_who_holds_it_there_is_named(mode: ScalingState, said: str):
    facts = Facts(desired=0, ready=0, target="a", current="a", verdict=Verdict(mode, replicas=0))
    judged = {c.type: c for c in judge(facts, [], 1, NOW)}
    assert said in judged["Ready"].message


def test_the_worker_s_words_are_the_message():
    judged = {c.type: c for c in judge(Facts(**STARTING, target_trouble=LOAD), [], 1, NOW)}
    assert judged["Ready"].message == judged["Degraded"].message == "no such folder"


def test_the_time_of_transition_changes_with_the_status_only():
    old = [
        {"type": "Ready", "status": "False", "reason": "Unschedulable", "lastTransitionTime": "2020-01-01T00:00:00Z"},
        {"type": "Degraded", "status": "True", "reason": "x", "lastTransitionTime": "2020-01-01T00:00:00Z"},
    ]
    times = {c.type: c.last_transition_time for c in judge(Facts(**STARTING), old, 1, NOW)}
    assert times.pop("Scaling") == "2027-01-15T08:00:00Z"
    assert times == {
        "Ready": "2020-01-01T00:00:00Z",
        "Progressing": "2027-01-15T08:00:00Z",
        "Degraded": "2027-01-15T08:00:00Z",
        "CanaryHealthy": "2027-01-15T08:00:00Z",
    }


def stored(facts: dict[str, Any], current: str | None, updated: str) -> dict[str, Any]:
    conditions = judge(Facts(**facts), [], 1, NOW)
    listed = [{"type": c.type, "status": c.status, "reason": c.reason} for c in conditions]
    return {"conditions": listed, "currentRevision": current, "updatedRevision": updated}


@pytest.mark.parametrize(
    ("old", "facts", "complete", "reasons"),
    [
        ({}, STARTING, False, []),
        (stored(STARTING, None, "a"), SERVING, True, ["RolloutComplete", "Serving"]),
        (stored(SERVING, "a", "a"), SERVING, True, []),
        (stored(SERVING, "a", "a"), ROLLING, False, ["RolloutStarted"]),
        (stored(ROLLING, "a", "b"), SERVING | {"target": "b", "current": "b"}, True, ["RolloutComplete"]),
        (stored(STARTING, None, "a"), BROKEN, False, ["ModelLoadFailed"]),
        (stored(BROKEN, None, "a"), BROKEN, False, []),
        (stored(BROKEN, None, "a"), SERVING, True, ["RolloutComplete", "Serving", "Recovered"]),
        (stored(SERVING, "a", "a"), STOPPED, False, ["Suspended"]),
        (stored(STOPPED, "a", "a"), STARTING | {"current": "a"}, False, ["Resumed"]),
        (stored(SERVING, "a", "a"), STARTING | {"current": "a"}, False, ["WaitingForWorkers"]),
        (stored(ROLLING, "a", "b"), ROLLING | {"rejected": REJECTED}, False, ["RevisionRejected"]),
    ],
)  # fmt: skip
def test_events_tell_transitions_only(old: dict[str, Any], facts: dict[str, Any], complete: bool, reasons: list[str]):
    made = Facts(**facts)
    told = transitions(old, judge(made, [], 1, NOW), made.current, made.target, complete)
    assert [event.reason for event in told] == reasons


def test_an_event_fits_the_api():
    regarding = Metadata("products", "search", "uid-1", resource_version="7")
    made = manifest(Event("Warning", "ModelLoadFailed", "Reconcile", "ü" * 2000), regarding, "host_1", NOW)
    assert len(made["note"].encode()) <= 1024
    assert made["regarding"]["uid"] == "uid-1"
    assert made["eventTime"] == "2027-01-15T08:00:00.000000Z"
    assert made["metadata"]["name"].startswith("products.")


def test_events_are_bounded_for_each_reranker():
    allowance = Allowance(burst=3, every=10.0)
    assert [allowance.take("a", "Normal", 0.0) for _ in range(5)] == [True, True, True, False, False]
    assert allowance.take("a", "Warning", 0.0), "what goes as it should leaves room for what does not"
    assert allowance.take("b", "Normal", 0.0)
    assert [allowance.take("a", "Normal", 10.0) for _ in range(2)] == [True, False]
    allowance.keep({"b"})
    assert allowance.take("a", "Normal", 10.0)


@pytest.mark.parametrize("phases", [("Traffic", "Promoting", "Promoted"), ("Traffic", "Promoted", "Promoted")])
def test_a_promotion_is_told_once_also_where_it_takes_no_time(phases: tuple[RolloutPhase, ...]):
    states = [RolloutStatus("new", "old", phase, message="no worse", started="now") for phase in phases]
    told = [event for was, now in pairwise(states) for event in of_rollout(was, now)]
    assert [(event.reason, event.note) for event in told] == [("CanaryPromoted", "canary new: no worse")]


def test_that_a_pause_is_over_is_told_only_where_the_canary_goes_on():
    """Its beginning was told, and its end was not: who let it go on, and when, stood nowhere."""
    paused = RolloutStatus("new", "old", "Traffic", paused="spec.rollout.paused is true", started="now")
    (event,) = of_rollout(paused, msgspec.structs.replace(paused, paused=""))
    told = "canary new goes on; it was paused: spec.rollout.paused is true"
    assert (event.type, event.reason, event.note) == ("Normal", "RolloutResumed", told)
    for phase in ("Promoting", "RolledBack", "Cancelled"):
        ended = msgspec.structs.replace(paused, paused="", phase=phase)
        assert "RolloutResumed" not in {event.reason for event in of_rollout(paused, ended)}
    assert of_rollout(paused, paused) == ()
    another = msgspec.structs.replace(paused, paused="", started="later")
    assert "RolloutResumed" not in {event.reason for event in of_rollout(paused, another)}
