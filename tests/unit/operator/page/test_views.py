"""What the page is told of a fleet in every state, and that nothing unknown is told as a number."""

import math
from typing import Any

import msgspec
import pytest
from rerank_api import names
from rerank_api.reranker import parse_reranker
from rerank_operator.page import shapes, views
from unit.operator.page.people import CANARY, STABLE
from unit.operator.page.world import World

NOW = 1_800_000_000.0


@pytest.fixture(scope="module")
def world() -> World:
    return World(NOW)


@pytest.fixture(scope="module")
def rows(world: World) -> dict[str, shapes.Row]:
    told = views.fleet(list(world.bodies.values()), world.seen(), world.figures, 0.0)
    return {row.name: row for row in told.rerankers}


def detail(world: World, *key: str) -> shapes.Detail:
    found = views.detail(world.bodies[key], [], world.history, world.seen(), world.figures, 0.0)  # ty: ignore[invalid-argument-type]
    assert isinstance(found, shapes.Detail)
    return found


def test_states(rows: dict[str, shapes.Row]):
    assert {name: (row.state, row.reason) for name, row in rows.items()} == {
        "products": ("serving", "Serving"),
        "articles": ("serving", "Serving"),
        "questions": ("serving", "Serving"),
        "reviews": ("serving", "Serving"),
        "tickets": ("idle", "NoReplicasRequested"),
        "faq": ("suspended", "Suspended"),
        "macros": ("starting", "WaitingForWorkers"),
        "contracts": ("down", "CrashLooping"),
        "cases": ("degraded", "RevisionRejected"),
        "suggestions": ("serving", "Serving"),
        "recommendations-for-returning-customers": ("serving", "Serving"),
        "experiment": ("unknown", "NotUnderstood"),
    }


@pytest.mark.parametrize(
    ("conditions", "state"),
    [
        ([], "unknown"),
        ([("Ready", "Unknown", "NodeSilent")], "unknown"),
        ([("Ready", "False", "NoReplicasRequested"), ("Degraded", "True", "RevisionRejected")], "degraded"),
        ([("Ready", "False", "ImagePull"), ("Degraded", "False", "Healthy")], "down"),
        ([("Ready", "Unknown", "NodeSilent"), ("Degraded", "True", "Unschedulable")], "degraded"),
    ],
)
def test_the_word_for_other_conditions(conditions: list[tuple[str, str, str]], state: str):
    more = {"message": "", "observedGeneration": 1, "lastTransitionTime": ""}
    listed = [{"type": kind, "status": status, "reason": reason, **more} for kind, status, reason in conditions]
    body = {
        "metadata": {"namespace": "n", "name": "r"},
        "spec": {"model": {"uri": "file:///m"}},
        "status": {"conditions": listed},
    }
    assert views.standing(parse_reranker(body))[0] == state


def test_figures_of_now(rows: dict[str, shapes.Row]):
    products, reviews, questions = rows["products"], rows["reviews"], rows["questions"]
    assert products.rate == pytest.approx(38.7, rel=0.1)
    assert (products.waiting, products.failed) == (0, 0)
    assert products.latency is not None
    assert questions.latency is not None
    assert products.threshold == 0.15
    assert products.latency < 0.15 < questions.latency
    # 2.1 % of the requests fail where 0.1 % may; 39 % are slow where 5 % may.
    assert (reviews.burn, reviews.burning) == (pytest.approx(21), "availability")
    assert questions.burning == "latency"
    assert questions.burn == pytest.approx(7.15, rel=0.05)
    assert rows["suggestions"].waiting == 3
    assert rows["faq"].maintenance == NOW + 5400


@pytest.mark.parametrize(
    ("text", "until", "trouble"),
    [
        ("2027-01-15T09:00:00Z", NOW + 3600, ""),
        ("2027-01-15T07:00:00Z", None, ""),
        ("", None, ""),
        ("2027-01-15T09:00:00", None, "no RFC 3339 time with its zone"),
        ("2027-01-16", None, "no RFC 3339 time with its zone"),
        ("9999-12-31T23:59:59-08:00", None, "no RFC 3339 time with its zone"),
    ],
)
def test_maintenance_is_what_gateways_take_for_it(world: World, text: str, until: float | None, trouble: str):
    body = world.bodies["search", "products"]
    body = body | {"metadata": body["metadata"] | {"annotations": {names.ANNOTATION_MAINTENANCE: text}}}
    row = views.row(body, world.seen(), world.figures, 0.0)
    assert row.maintenance == until
    assert trouble in row.maintenance_trouble
    assert bool(row.maintenance_trouble) == bool(trouble)


def test_no_requests_are_no_burn_and_no_latency(rows: dict[str, shapes.Row]):
    tickets = rows["tickets"]
    assert tickets.rate == 0
    assert (tickets.burn, tickets.latency, tickets.failed) == (None, None, None)


def test_the_canary(world: World, rows: dict[str, shapes.Row]):
    assert (rows["articles"].canary, rows["articles"].percent, rows["articles"].paused) == ("Traffic", 25, False)
    assert rows["recommendations-for-returning-customers"].paused
    assert rows["cases"].canary == ""
    told = detail(world, "search", "articles")
    assert told.rollout is not None
    assert told.rollout.gates == ["Starting", "Golden", "Mirror", "Traffic", "Promoting"]
    assert [(one.revision, one.role, one.percent) for one in told.revisions] == [
        (STABLE, "stable", 75),
        (CANARY, "canary", 25),
    ]
    stable, canary = told.revisions
    assert stable.p95 is not None
    assert canary.p95 is not None
    assert canary.p95 < stable.p95
    assert {note.topic for note in told.history} == {"scaling", "rollout", "condition"}
    assert told.history[0].reason == "CanaryStep"


def test_objectives_are_counted_since_the_page_knows(world: World):
    availability, latency = detail(world, "search", "reviews").objectives
    assert (availability.objective, latency.threshold) == (0.999, 0.15)
    assert availability.total is not None
    assert availability.total_ever is not None
    assert availability.total_ever > 5 * availability.total
    assert availability.burn_ever == pytest.approx(21)


def test_an_hour_of_points(world: World):
    told = detail(world, "search", "products")
    assert len(told.times) == 720
    assert told.times[-1] - told.times[0] == 719 * 5
    assert set(map(len, told.points.values())) == {720}
    encoded = msgspec.json.encode(told)
    assert len(encoded) < 150_000  # every five seconds, over a port-forward
    text = msgspec.json.decode(encoded)
    assert text["points"]["rate"][0] is None  # nothing to compare the first look with


def test_old_figures_are_not_those_of_now(world: World):
    late = msgspec.structs.replace(world.seen(), time=NOW + world.seen().patience + 1)
    row = views.row(world.bodies["search", "products"], late, world.figures, 0.0)
    assert (row.rate, row.latency, row.burn, row.waiting, row.failed) == (None,) * 5
    assert row.ready == 4
    found = views.detail(world.bodies["search", "products"], [], world.history, late, world.figures, 0.0)
    assert isinstance(found, shapes.Detail)
    assert (found.codes, found.window) == ({}, 0.0)
    assert [one.rate for one in found.revisions] == [None]
    assert found.objectives[0].total is None
    assert found.objectives[0].total_ever


def test_what_the_status_does_not_say_is_not_known():
    assert views.staff_of({}) == views.Staff(None, None, 0)
    body: dict[str, Any] = {"status": {"readyReplicas": 2, "scaling": {"mode": "Paused", "desiredReplicas": 5}}}
    assert views.staff_of(body) == views.Staff(2, None, 0)


def test_a_reranker_that_is_not_understood_is_shown_as_that(world: World):
    found = views.detail(world.bodies["lab", "experiment"], [], world.history, world.seen(), world.figures, 0.0)
    assert isinstance(found, shapes.Lacking)
    assert "$.spec.model.uri" in found.message


def test_the_fleet_is_strict_json(world: World):
    told = views.fleet(list(world.bodies.values()), world.seen(), world.figures, 0.0)
    text = msgspec.json.encode(told)
    assert b"NaN" not in text
    assert b"Infinity" not in text

    def finite(value: Any) -> bool:
        if isinstance(value, dict | list):
            return all(map(finite, value.values() if isinstance(value, dict) else value))
        return not isinstance(value, float) or math.isfinite(value)

    assert finite(msgspec.json.decode(text))
