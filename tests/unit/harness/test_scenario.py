"""What a run's figures are computed from: the fleet out of watched objects, and how often a number rose."""

from typing import Any

import pytest
from harness import traces
from harness.scenario import Fleet, Moment, history, integral, rises
from harness.watching import Change
from rerank_api import names

OWN = {names.LABEL_RERANKER: "a"}


def thing(uid: str, labels: dict[str, str], spec: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"metadata": {"uid": uid, "name": uid, "labels": labels, **more.pop("metadata", {})}, "spec": spec, **more}


def pod(uid: str, labels: dict[str, str], ready: bool = False, annotations: dict[str, str] | None = None) -> Any:
    status = {"conditions": [{"type": "Ready", "status": "True" if ready else "False"}]}
    return thing(uid, labels, {}, status=status, metadata={"annotations": annotations or {}})


def test_history_follows_deployments_own_pods_and_loans():
    pool, lent = {names.LABEL_WARM_POOL: "p"}, {names.LABEL_WARM_POOL: "p", names.LABEL_LOANED_TO: "a"}
    serving = {names.ANNOTATION_LOAN_SERVING: "key"}
    changes = [
        Change(1, "ADDED", thing("d", OWN, {"replicas": 0})),
        Change(2, "ADDED", pod("w", pool, ready=True)),
        Change(3, "MODIFIED", pod("w", lent, ready=True)),
        Change(4, "MODIFIED", pod("w", lent, ready=True, annotations=serving)),
        Change(5, "MODIFIED", thing("d", OWN, {"replicas": 2})),
        Change(6, "ADDED", pod("o", OWN)),
        Change(7, "MODIFIED", pod("o", OWN, ready=True)),
        Change(8, "MODIFIED", pod("w", pool, ready=True)),
        Change(9, "DELETED", pod("o", OWN)),
        Change(10, "ADDED", thing("other", {names.LABEL_RERANKER: "b"}, {"replicas": 9})),
    ]
    assert history("a", reversed(changes)) == [
        Moment(1, Fleet()),
        Moment(3, Fleet(claimed=1)),
        Moment(4, Fleet(claimed=1, serving=1)),
        Moment(5, Fleet(wanted=2, claimed=1, serving=1)),
        Moment(6, Fleet(wanted=2, pods=1, claimed=1, serving=1)),
        Moment(7, Fleet(wanted=2, ready=1, pods=1, claimed=1, serving=1)),
        Moment(8, Fleet(wanted=2, ready=1, pods=1)),
        Moment(9, Fleet(wanted=2)),
    ]


@pytest.mark.parametrize(
    ("values", "expected"),
    [([], 0), ([0, 0], 0), ([1], 1), ([0, 1, 3, 3, 2, 1, 0], 1), ([0, 2, 1, 2, 0], 2), ([3, 0, 3, 0, 3], 3)],
)
def test_rises(values: list[int], expected: int):
    assert rises(values) == expected


def test_integral_counts_to_the_end():
    moments = [Moment(0, Fleet(pods=1)), Moment(10, Fleet(pods=3)), Moment(20, Fleet())]
    assert integral(moments, lambda fleet: fleet.pods, 30) == 40


@pytest.mark.parametrize("make", [traces.flash_crowd, traces.diurnal, traces.on_off])
def test_traces_are_the_same_every_time_and_ask_for_what_they_say(make: Any):
    one = make(20_000.0)
    assert one == make(20_000.0)
    times = [call.at for call in one.calls]
    assert times == sorted(times)
    # Of some hundreds of log-normal sizes the sum is within a fifth of what was meant.
    busy = {"flash crowd": 60 * 3.0, "diurnal": 240 * 3.0 * 0.525, "on/off": 4 * 20 * 1.2}[one.name]
    assert one.tokens / 20_000 == pytest.approx(busy, rel=0.2)
