"""What has happened, from statuses one after the other: told once, newest first, bounded."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rerank_operator.controller.times import parse_time
from rerank_operator.page.history import MOST_NOTES, History, changes

KEY = ("search", "products")
NOW = parse_time("2027-01-15T08:00:00Z")


def body(version: int, uid: str = "u", **status: Any) -> dict[str, Any]:
    metadata = {"namespace": KEY[0], "name": KEY[1], "uid": uid, "resourceVersion": str(version)}
    return {"metadata": metadata, "status": status}


def scaling(reason: str, desired: int, message: str = "why", mode: str = "Auto", **more: Any) -> dict[str, Any]:
    return {"mode": mode, "reason": reason, "desiredReplicas": desired, "message": message, **more}


def condition(kind: str, status: str, reason: str, since: str = "2027-01-15T07:00:00Z") -> dict[str, Any]:
    return {"type": kind, "status": status, "reason": reason, "message": "so it is", "lastTransitionTime": since}


def rollout(phase: str, **more: Any) -> dict[str, Any]:
    return {"revision": "new", "stable": "old", "phase": phase, "started": "2027-01-15T07:30:00Z", **more}


@pytest.mark.parametrize(
    ("was", "now", "expected"),
    [
        pytest.param({}, {}, [], id="nothing"),
        pytest.param(
            {"scaling": scaling("Steady", 1)}, {"scaling": scaling("DemandRose", 3)},
            [("DemandRose", "workers 1 to 3: why", False)], id="more workers",
        ),
        pytest.param(
            {"scaling": scaling("Idle", 0)}, {"scaling": scaling("QueueWaits", 1, desiredLoaners=2)},
            [("QueueWaits", "workers 0 to 1, warm pods 0 to 2: why", False)], id="warm pods",
        ),
        pytest.param(
            {"scaling": scaling("Steady", 1, mode="Paused")}, {"scaling": scaling("DemandRose", 2, mode="Paused")},
            [("DemandRose", "only recommended: workers 1 to 2: why", False)], id="recommended",
        ),
        pytest.param(
            {"scaling": scaling("Steady", 1)}, {"scaling": scaling("DemandUnknown", 1)},
            [("DemandUnknown", "why", True)], id="a reason alone",
        ),
        pytest.param(
            {"scaling": scaling("Steady", 1, "1 waits")}, {"scaling": scaling("Steady", 1, "2 wait")}, [],
            id="other figures only",
        ),
        pytest.param(
            {"rollout": rollout("Mirror")}, {"rollout": rollout("Traffic", percent=5, message="5 %")},
            [
                ("CanaryStep", "canary new gets 5 % of the requests (step 1)", False),
                ("Traffic", "revision new: 5 %", False),
            ],
            id="a canary meets users",
        ),
        pytest.param(
            {"rollout": rollout("Traffic", percent=5)}, {"rollout": rollout("RolledBack", message="latency: slower")},
            [("RolledBack", "revision new: latency: slower", True)], id="taken back",
        ),
        pytest.param(
            {"currentRevision": "old"}, {"currentRevision": "new"},
            [("Serving", "revision new is what serves", False)], id="replaced without a canary",
        ),
        pytest.param(
            {"conditions": [condition("Ready", "True", "Serving")]},
            {"conditions": [condition("Ready", "False", "CrashLooping")]},
            [("CrashLooping", "Ready is False: so it is", True)], id="down",
        ),
        pytest.param(
            {"conditions": [condition("Scaling", "True", "Steady")]},
            {"conditions": [condition("Scaling", "True", "Idle")]}, [], id="what the scaling tells too",
        ),
    ],
)  # fmt: skip
def test_what_a_change_is_told_as(was: dict[str, Any], now: dict[str, Any], expected: list[tuple[str, str, bool]]):
    assert [(note.reason, note.text, note.warning) for note in changes(was, now, NOW)] == expected


def test_what_was_before_is_told_as_far_as_the_status_has_it():
    history = History()
    ended = rollout("Promoted", message="as good", ended="2027-01-15T07:45:00Z")
    history.look([body(1, conditions=[condition("Ready", "True", "Serving")], rollout=ended)], NOW)
    assert [(note.reason, note.time) for note in history.notes(KEY)] == [
        ("Promoted", parse_time("2027-01-15T07:45:00Z")),
        ("Serving", parse_time("2027-01-15T07:00:00Z")),
    ]
    assert history.since(KEY) == NOW


def test_a_reason_that_goes_back_and_forth_takes_one_line():
    history = History()
    history.look([body(1, scaling=scaling("Steady", 1))], NOW)
    history.look([body(2, scaling=scaling("DemandRose", 2))], NOW + 1)
    for number in range(10):
        reason = ("Stabilizing", "Steady")[number % 2]
        history.look([body(3 + number, scaling=scaling(reason, 2))], NOW + 2 + number)
    assert [note.reason for note in history.notes(KEY)] == ["Steady", "DemandRose"]


def test_a_namesake_has_a_history_of_its_own():
    history = History()
    history.look([body(1, scaling=scaling("Steady", 1))], NOW)
    history.look([body(2, scaling=scaling("DemandRose", 2))], NOW)
    assert history.notes(KEY)
    history.look([body(3, uid="v", scaling=scaling("Steady", 1))], NOW + 5)
    assert history.notes(KEY) == []
    assert history.since(KEY) == NOW + 5
    history.look([], NOW)
    assert history.since(KEY) is None


def test_what_another_version_has_written_is_no_end():
    history = History()
    history.look([body(1, rollout={"phase": 7}, conditions=[condition("Ready", "True", "Serving", since="?")])], NOW)
    history.look([body(2, rollout={"revision": []})], NOW)
    assert history.notes(KEY) == []


@given(st.lists(st.tuples(st.sampled_from(["Steady", "DemandRose", "Idle"]), st.integers(0, 5)), max_size=120))
def test_newest_first_and_never_more_than_fit(steps: list[tuple[str, int]]):
    history = History()
    for version, (reason, desired) in enumerate(steps):
        history.look([body(version, scaling=scaling(reason, desired))], NOW + version)
    notes = history.notes(KEY)
    assert len(notes) <= MOST_NOTES
    assert [note.time for note in notes] == sorted((note.time for note in notes), reverse=True)
    changed = sum(one != other for (_, one), (_, other) in pairwise(steps))
    told = sum(not note.brief for note in notes)
    assert told == changed if changed <= MOST_NOTES // 2 else told <= changed
