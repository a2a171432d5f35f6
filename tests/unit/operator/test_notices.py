"""Conditions that come and go: what they say, when they are there at all, and the Events of their coming and going."""

from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rerank_api import names
from rerank_api.reranker import QualityStatus
from rerank_operator.controller.kinds import RERANKERS
from rerank_operator.controller.notices import Measured
from rerank_operator.controller.plan import Plan, make_plan
from rerank_operator.controller.times import format_time
from unit.api.test_units import TIMES
from unit.operator.build import KEY, MODEL_A, WORKER, World

QUALITY = {"slo": {"quality": {"minimum": 0.9}}, "rollout": {"goldenSet": {"configMap": "golden"}}}


class Noticed(World):
    """A world whose plans know how the golden set was ranked."""

    def __init__(self, **spec: Any) -> None:
        super().__init__()
        self.measured: Measured | None = None
        self.revision = self.want(MODEL_A, replicas=1, **spec)
        self.settle()

    def plan(self) -> Plan:
        return make_plan(self.observe(), WORKER, self.now, self.problem, measured=self.measured)

    def rank(self, ndcg: float, **changes: Any) -> list[str]:
        """Reasons of the Events that it is worth."""
        status = QualityStatus(self.revision, format_time(self.now), "ndcg@10", 200, ndcg, 1.0, 0.8)
        self.measured = Measured(msgspec.structs.replace(status, **changes))
        return self.told()

    def told(self) -> list[str]:
        return [event.reason for event in self.step().events]

    @property
    def types(self) -> set[str]:
        return {condition["type"] for condition in self.status["conditions"]}

    def message(self, kind: str) -> str:
        return next(c["message"] for c in self.status["conditions"] if c["type"] == kind)


def test_a_reranker_that_asks_for_none_of_it_has_none():
    world = Noticed()
    assert world.types == {"Ready", "Progressing", "Degraded", "CanaryHealthy", "Scaling"}
    assert "quality" not in world.status


# --- RankingQuality ---


def test_the_ranking_is_held_against_the_minimum():
    world = Noticed(**QUALITY)
    assert world.condition("RankingQuality") == ("Unknown", "NotMeasured")
    assert world.rank(0.943) == []
    assert world.condition("RankingQuality") == ("True", "GoodEnough")
    assert "ndcg@10 is 0.943 in the mean over 200 queries, and 0.9 is asked for" in world.message("RankingQuality")
    assert (world.status["quality"]["ndcg"], world.status["quality"]["revision"]) == (0.943, world.revision)
    assert world.rank(0.9) == [], "as good as is asked for"
    assert world.rank(0.899) == ["RankingQualityLow"]
    assert world.condition("RankingQuality") == ("False", "BelowMinimum")
    assert world.rank(0.85) == [], "told once"
    assert world.rank(0.95) == ["RankingQualityRecovered"]


def test_the_measure_that_the_golden_set_names_decides():
    spec = QUALITY | {"rollout": {"goldenSet": {"configMap": "golden", "metric": "mrr"}}}
    world = Noticed(**spec)
    world.rank(1.0, metric="mrr")
    assert world.condition("RankingQuality") == ("False", "BelowMinimum")
    assert "mrr is 0.800" in world.message("RankingQuality")


@pytest.mark.parametrize("changes", [{"revision": "another"}, {"metric": "ndcg@5"}])
def test_what_was_measured_of_something_else_is_no_verdict(changes: dict[str, Any]):
    world = Noticed(**QUALITY)
    world.rank(0.1, **changes)
    assert world.condition("RankingQuality") == ("Unknown", "NotMeasured")


def test_another_minimum_counts_at_once():
    world = Noticed(**QUALITY)
    world.rank(0.92)
    world.want(MODEL_A, replicas=1, slo={"quality": {"minimum": 0.95}}, rollout=QUALITY["rollout"])
    assert world.told() == ["RankingQualityLow"]


def test_why_it_is_not_known_is_told():
    world = Noticed(**QUALITY)
    world.measured = Measured(waits="revision abc has no ready worker to rank the golden set")
    world.step()
    assert world.message("RankingQuality").endswith("yet: revision abc has no ready worker to rank the golden set")
    world.rank(0.95)
    assert world.measured is not None
    world.measured = msgspec.structs.replace(world.measured, waits="a canary is judged")
    world.step()
    assert world.condition("RankingQuality") == ("True", "GoodEnough"), "what was measured still is so"
    world.measured = msgspec.structs.replace(world.measured, failed="ConfigMap search/golden does not exist")
    world.step()
    assert world.condition("RankingQuality") == ("Unknown", "CannotMeasure")
    assert world.message("RankingQuality").startswith("ConfigMap search/golden does not exist. Before that, ndcg@10 is")


def test_the_result_stands_until_it_is_not_asked_for():
    world = Noticed(**QUALITY)
    world.rank(0.95)
    world.measured = None  # another operator, that has not looked
    assert world.step().status is None
    assert world.condition("RankingQuality") == ("True", "GoodEnough")
    world.want(MODEL_A, replicas=1)
    world.step()
    assert ("quality" in world.status, "RankingQuality" in world.types) == (False, False)


# --- Capturing ---


def test_capture_is_told_while_it_is_on():
    world = Noticed(observability={"capture": {}})
    assert world.condition("Capturing") == ("True", "Capturing")
    assert "1 % of the requests, 10 a minute of each gateway" in world.message("Capturing")
    world.want(MODEL_A, replicas=1, observability={"capture": {"percent": 0}})
    assert world.told() == ["CaptureEnded"]
    assert "Capturing" not in world.types
    world.want(MODEL_A, replicas=1, observability={"capture": {"percent": 0.5}})
    assert world.told() == ["CaptureStarted"]
    world.want(MODEL_A, replicas=1)
    assert world.told() == ["CaptureEnded"]


def test_an_object_that_is_not_understood_may_still_be_captured():
    world = Noticed(observability={"capture": {}})
    body = world.store.get(RERANKERS, *KEY)
    assert body is not None
    world.put(RERANKERS, body | {"spec": body["spec"] | {"replicas": "many"}})
    assert "CaptureEnded" not in world.told()
    assert world.condition("Capturing") == ("True", "Capturing")


# --- Maintenance ---


def test_maintenance_is_told_until_it_ends():
    world = Noticed()
    world.annotate(names.ANNOTATION_MAINTENANCE, format_time(world.now + 150))
    assert world.told() == ["MaintenanceStarted"]
    assert world.condition("Maintenance") == ("True", "Maintenance")
    assert f"until {format_time(world.now + 90)}" in world.message("Maintenance")
    assert world.told() == []
    assert world.told() == ["MaintenanceEnded"]
    assert "Maintenance" not in world.types


@pytest.mark.parametrize("text", ["tomorrow", "2027-01-15", "2027-01-15T10:00:00", "1800000000"])
def test_a_time_that_cannot_be_read_silences_nothing_and_is_told(text: str):
    world = Noticed()
    world.annotate(names.ANNOTATION_MAINTENANCE, text)
    assert world.told() == ["MaintenanceUnreadable"]
    assert world.condition("Maintenance") == ("False", "Unreadable")
    assert "no RFC 3339 time with its zone" in world.message("Maintenance")
    world.annotate(names.ANNOTATION_MAINTENANCE, "")
    world.step()
    assert "Maintenance" not in world.types


# --- what anybody may write ---

READ = [
    names.ANNOTATION_MAINTENANCE,
    names.ANNOTATION_RETRY,
    names.ANNOTATION_PROMOTE,
    names.ANNOTATION_ABORT,
    names.ANNOTATION_ROLLOUT_PAUSED,
    names.ANNOTATION_SCALING_PAUSED,
]


@given(st.dictionaries(st.sampled_from(READ), st.text() | TIMES))
@example({names.ANNOTATION_MAINTENANCE: "9999-12-31T23:59:59-08:00"})
@example({names.ANNOTATION_MAINTENANCE: "9999-12-31T23:59:59.9999999Z"})
@example({names.ANNOTATION_RETRY: "0001-01-01T00:00:00"})
def test_no_text_of_an_annotation_keeps_a_plan_from_being_made(annotations: dict[str, str]):
    world = Noticed()
    for name, text in annotations.items():
        world.annotate(name, text)
    plan = world.step()
    assert (plan.actions, world.condition("Ready")[0]) == ((), "True")


# --- Annotations ---


@pytest.mark.parametrize(
    ("annotation", "value", "said"),
    [
        (names.ANNOTATION_PROMOTE, "garbage", "promote: 'garbage' names no rollout by status.rollout.started"),
        (names.ANNOTATION_PROMOTE, "2027-01-15T08:00:00+00:00", "such as 2027-01-15T08:00:00Z: use kubectl rerank"),
        (names.ANNOTATION_ABORT, "true", "rerank.dev/abort: 'true' names no rollout"),
        (names.ANNOTATION_RETRY, "now", "rerank.dev/retry: 'now' is no RFC 3339 time"),
        (names.ANNOTATION_ROLLOUT_PAUSED, "yes", "rerank.dev/rollout-paused: 'yes' is neither true nor false"),
        (names.ANNOTATION_SCALING_PAUSED, "1", "rerank.dev/scaling-paused: '1' is neither true nor false"),
        ("rerank.dev/promot", "x", "rerank.dev/promot: this version knows no such annotation"),
        (names.ANNOTATION_ABORT, "x" * 5000, f"abort: '{'x' * 64}' names no rollout"),
    ],
)
def test_an_annotation_that_does_nothing_is_told(annotation: str, value: str, said: str):
    """A mistyped one was passed over in silence, and its writer waited for what never came."""
    world = Noticed()
    world.annotate(annotation, value)
    assert world.told() == ["AnnotationIgnored"]
    assert world.condition("Annotations") == ("False", "NotUnderstood")
    assert said in world.message("Annotations")
    assert world.told() == [], "told once"
    world.annotate(annotation, "")
    world.step()
    assert ("Annotations" in world.types) == (annotation == "rerank.dev/promot")


def test_each_annotation_that_does_nothing_is_told():
    """Regression: the second one was told in the condition only."""
    world = Noticed()
    world.annotate(names.ANNOTATION_RETRY, "now")
    assert world.told() == ["AnnotationIgnored"]
    world.annotate(names.ANNOTATION_ROLLOUT_PAUSED, "yes")
    assert world.told() == ["AnnotationIgnored"]
    assert world.told() == []


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (names.ANNOTATION_PROMOTE, "2026-12-31T23:59:59Z"),  # left over from an earlier rollout
        (names.ANNOTATION_ABORT, "2027-01-15T08:00:00Z"),
        (names.ANNOTATION_RETRY, "2027-01-15T09:00:00+01:00"),
        (names.ANNOTATION_ROLLOUT_PAUSED, "True"),
        (names.ANNOTATION_SCALING_PAUSED, "false"),
        ("kubectl.kubernetes.io/last-applied-configuration", "{}"),
        ("team", "search"),
    ],
)
def test_other_annotations_are_no_news(annotation: str, value: str):
    world = Noticed()
    world.annotate(annotation, value)
    assert "AnnotationIgnored" not in world.told()
    assert "Annotations" not in world.types
