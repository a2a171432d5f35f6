"""Conditions that a Reranker has only while there is something to tell: RankingQuality, Capturing, Maintenance and
Annotations.

They say since when, and why, for whoever reads `kubectl describe`; nothing goes by them. Pure.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from rerank_api import names
from rerank_api.reranker import Capture, QualityStatus, Reranker, RerankerSpec
from rerank_api.units import parse_instant

from rerank_operator.controller.conditions import Answer
from rerank_operator.controller.times import format_time, time_or_zero
from rerank_operator.rollout.golden.summary import measures

RANKING_QUALITY, CAPTURING, MAINTENANCE = "RankingQuality", "Capturing", "Maintenance"
ANNOTATIONS = "Annotations"
LONGEST_VALUE = 64
"""Characters of an annotation's value that are told."""


class Measured(msgspec.Struct, frozen=True):
    """What is known of the ranking of the golden set, for spec.slo.quality."""

    latest: QualityStatus | None = None
    failed: str = ""
    """Why it could not be ranked since."""
    waits: str = ""
    """Why it is not ranked now, where there is a reason."""


def notices(reranker: Reranker, serving: str | None, measured: Measured, now: float) -> dict[str, Answer]:
    """By the condition's type. ``serving``: the revision that serves."""
    found = {
        RANKING_QUALITY: _ranking_quality(reranker.spec, serving, measured),
        CAPTURING: _capturing(reranker.spec.observability.capture),
        MAINTENANCE: _maintenance(reranker.metadata.annotations.get(names.ANNOTATION_MAINTENANCE, ""), now),
        ANNOTATIONS: _annotations(reranker.metadata.annotations),
    }
    return {kind: answer for kind, answer in found.items() if answer is not None}


def stored_notices(conditions: Sequence[Mapping[str, Any]]) -> dict[str, Answer]:
    """Those that stand, for an object that is not understood: whether they still hold nobody can tell."""
    return {
        condition["type"]: (condition["status"], condition["reason"], condition["message"])
        for condition in conditions
        if condition.get("type") in (RANKING_QUALITY, CAPTURING, MAINTENANCE, ANNOTATIONS)
    }


def counting(spec: RerankerSpec, serving: str | None, latest: QualityStatus | None) -> QualityStatus | None:
    """``latest``, where it is of the revision that serves and of the metric that is asked for."""
    source = spec.rollout.golden_set
    same = latest is not None and source is not None and (latest.revision, latest.metric) == (serving, source.metric)
    return latest if same else None


def _ranking_quality(spec: RerankerSpec, serving: str | None, measured: Measured) -> Answer | None:
    objective, source = spec.slo.quality, spec.rollout.golden_set
    if objective is None or source is None:
        return None
    found = counting(spec, serving, measured.latest)
    if found is None:
        why = measured.failed or measured.waits or "it is about to be"
        by = f" by revision {serving}" if serving else ""
        return "Unknown", "NotMeasured", f"the golden set has not been ranked{by} yet: {why}"
    value = measures(found)[found.metric]
    told = (
        f"{found.metric} is {value:.3f} in the mean over {found.queries} queries, and {objective.minimum:g} is asked "
        f"for (revision {found.revision}, ranked at {found.time})"
    )
    if measured.failed:
        return "Unknown", "CannotMeasure", f"{measured.failed}. Before that, {told}"
    if value < objective.minimum:
        return "False", "BelowMinimum", told
    return "True", "GoodEnough", told


def _capturing(capture: Capture | None) -> Answer | None:
    if capture is None or capture.percent <= 0:
        return None
    note = (
        f"{capture.percent:g} % of the requests, {capture.max_per_minute} a minute of each gateway at most, go to "
        f"the gateways' log, {capture.max_characters} characters of each text (spec.observability.capture)"
    )
    return "True", "Capturing", note


def _maintenance(until: str, now: float) -> Answer | None:
    if not until:
        return None
    try:
        end = parse_instant(until)
    except ValueError as error:
        return "False", "Unreadable", f"alerts are not silent: annotation {names.ANNOTATION_MAINTENANCE}: {error}"
    if end <= now:
        return None
    note = f"alerts are silent until {format_time(end)} (annotation {names.ANNOTATION_MAINTENANCE})"
    return "True", "Maintenance", note


def _annotations(annotations: Mapping[str, str]) -> Answer | None:
    """Those that were meant for the operator and do nothing. One that names an earlier rollout is none of them."""
    wrong = []
    for name, value in sorted(annotations.items()):
        if name in _UNDERSTOOD:
            understood, why = _UNDERSTOOD[name]
            if value and not understood(value):
                wrong.append(f"{name}: {value[:LONGEST_VALUE]!r} {why}")
        elif name.startswith(f"{names.GROUP}/") and name != names.ANNOTATION_MAINTENANCE:
            wrong.append(f"{name}: this version knows no such annotation")
    return ("False", "NotUnderstood", f"without effect: {'; '.join(wrong)}") if wrong else None


def _names_a_rollout(value: str) -> bool:
    """It is compared with status.rollout.started as text."""
    return format_time(time_or_zero(value)) == value


def _is_a_time(value: str) -> bool:
    return time_or_zero(value) > 0


def _is_a_switch(value: str) -> bool:
    return value.lower() in ("true", "false")


_NO_ROLLOUT = "names no rollout by status.rollout.started, such as 2027-01-15T08:00:00Z: use kubectl rerank"
_NO_SWITCH = "is neither true nor false"
_UNDERSTOOD: dict[str, tuple[Callable[[str], bool], str]] = {
    names.ANNOTATION_PROMOTE: (_names_a_rollout, _NO_ROLLOUT),
    names.ANNOTATION_ABORT: (_names_a_rollout, _NO_ROLLOUT),
    names.ANNOTATION_RETRY: (_is_a_time, "is no RFC 3339 time, such as 2027-01-15T08:00:00Z: use kubectl rerank retry"),
    names.ANNOTATION_ROLLOUT_PAUSED: (_is_a_switch, _NO_SWITCH),
    names.ANNOTATION_SCALING_PAUSED: (_is_a_switch, _NO_SWITCH),
}
"""Of what people write, but for maintenance, which has a condition of its own: what does something, else what is so."""
