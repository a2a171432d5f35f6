"""Replica seconds and what they cost: added up from what was seen, never from what was not."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from rerank_operator.controller.kinds import CONTROLLER_REVISIONS, RERANKERS
from rerank_operator.controller.usage import Meter, Usage, Whose
from rerank_operator.warm.observe import Loan
from unit.operator.build import KEY, MODEL_A, MODEL_B, NAME, NAMESPACE, PODS, World
from unit.operator.warm.pool import pod_body

OWN: Whose = ("a", "own")
LENT: Whose = ("a", "loan")


def test_between_two_looks_counts_what_the_earlier_one_saw():
    meter = Meter(120)
    assert meter.look(KEY, {OWN: 2}, 100.0) == {}, "since when it is so nobody knows"
    assert meter.look(KEY, {OWN: 3, LENT: 1}, 130.0) == {OWN: 60.0}
    assert meter.look(KEY, {}, 140.0) == {OWN: 30.0, LENT: 10.0}
    assert meter.look(KEY, {OWN: 1}, 150.0) == {}


def test_a_gap_is_not_filled():
    meter = Meter(120)
    meter.look(KEY, {OWN: 2}, 0.0)
    assert meter.look(KEY, {OWN: 2}, 120.5) == {}
    assert meter.look(KEY, {OWN: 2}, 130.5) == {OWN: 20.0}, "from there it goes on"


def test_who_is_forgotten_begins_anew():
    meter = Meter(120)
    meter.look(KEY, {OWN: 2}, 0.0)
    meter.forget(KEY)
    assert meter.look(KEY, {OWN: 2}, 10.0) == {}


@given(st.lists(st.tuples(st.floats(0, 119), st.floats(0, 1), st.integers(0, 9)), min_size=1, max_size=30))
def test_more_looks_at_the_same_make_no_more_seconds(steps: list[tuple[float, float, int]]):
    # Waits of just the longest gap would be longer or not as sums of floats are rounded.
    rare, often, now, held = Meter(120), Meter(120), 0.0, 0
    rare.look(KEY, {OWN: held}, now)
    often.look(KEY, {OWN: held}, now)
    few = many = 0.0
    for wait, share, workers in steps:
        many += sum(often.look(KEY, {OWN: held}, now + share * wait).values())
        now, held = now + wait, workers
        few += sum(rare.look(KEY, {OWN: held}, now).values())
        many += sum(often.look(KEY, {OWN: held}, now).values())
    assert many == pytest.approx(few)


# --- as metrics ---


class Used(World):
    """A world with a steady clock of its own, whose usage is looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = 0.0
        self.usage = Usage(self.store, lambda: self.clock, 120)

    def pass_seconds(self, seconds: float) -> None:
        self.usage.look(self.observe())
        self.clock += seconds
        self.usage.look(self.observe())


def seconds(revision: str, source: str = "own") -> float | None:
    labels = {"namespace": NAMESPACE, "reranker": NAME, "revision": revision, "source": source}
    return REGISTRY.get_sample_value("rerank_operator_replica_seconds_total", labels)


def cost(revision: str) -> float | None:
    labels = {"namespace": NAMESPACE, "reranker": NAME, "revision": revision}
    return REGISTRY.get_sample_value("rerank_operator_cost_total", labels)


def used(**spec: Any) -> tuple[Used, str]:
    world = Used()
    revision = world.want(MODEL_A, **({"replicas": 2} | spec))
    world.settle()
    return world, revision


def test_ready_workers_count_and_have_their_price():
    world, revision = used(cost={"replicaHour": 3.6})
    world.usage.look(world.observe())
    assert (seconds(revision), cost(revision)) == (0.0, 0.0), "there from the first look, for the increase"
    world.pass_seconds(100)
    assert seconds(revision) == 200.0
    assert cost(revision) == pytest.approx(0.2)
    (worker, _) = world.pods()
    world.put(PODS, worker | {"metadata": worker["metadata"] | {"deletionTimestamp": "2027-01-15T08:00:00Z"}})
    world.pass_seconds(10)
    assert seconds(revision) == 210.0, "who is being stopped is not counted"
    world.usage.forget(KEY)
    assert (seconds(revision), cost(revision)) == (None, None)


def test_without_a_price_there_is_no_cost():
    world, revision = used()
    world.pass_seconds(10)
    assert (seconds(revision), cost(revision)) == (20.0, None)
    world.want(MODEL_A, replicas=2, cost={"replicaHour": 1})
    world.pass_seconds(10)
    assert cost(revision) == pytest.approx(20 / 3600)
    world.want(MODEL_A, replicas=2)
    world.pass_seconds(10)
    assert (seconds(revision), cost(revision)) == (60.0, None)
    world.usage.reset()
    assert seconds(revision) is None


def test_lent_warm_pods_count_for_the_revision_that_they_serve():
    world, revision = used()
    for index, serving in enumerate(("key", "key", None)):
        world.put(PODS, pod_body(index, loan=Loan(NAME, revision, 0.0, serving)))
    world.pass_seconds(10)
    assert (seconds(revision), seconds(revision, "loan")) == (20.0, 20.0)
    world.usage.reset()
    assert seconds(revision, "loan") is None


def test_a_revision_that_is_not_kept_any_more_leaves_the_metrics():
    world, old = used()
    world.pass_seconds(10)
    new = world.want(MODEL_B, replicas=2)
    world.settle()
    world.pass_seconds(10)
    assert (seconds(old), seconds(new)) == (20.0, 20.0), "it may come back"
    world.remove(CONTROLLER_REVISIONS, f"{NAME}-{old}")
    world.pass_seconds(10)
    assert (seconds(old), seconds(new)) == (None, 40.0)
    world.usage.keep(set())
    assert seconds(new) is None


def test_an_object_that_is_not_understood_still_has_workers():
    world, revision = used(cost={"replicaHour": 1})
    body = world.store.get(RERANKERS, *KEY)
    assert body is not None
    world.put(RERANKERS, body | {"spec": {"model": 7}})
    world.pass_seconds(10)
    assert (seconds(revision), cost(revision)) == (20.0, None)
    world.usage.reset()
