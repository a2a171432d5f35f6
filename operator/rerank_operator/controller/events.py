"""Which Events a change of state is worth. Only transitions make Events: what stays as it is stays silent. Pure.

What was is read from the stored status, so a restart of the operator repeats nothing.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from rerank_api import names
from rerank_api.reranker import Condition, Metadata, RolloutStatus

from rerank_operator.controller.conditions import DEGRADED, READY
from rerank_operator.controller.notices import ANNOTATIONS, CAPTURING, MAINTENANCE, RANKING_QUALITY
from rerank_operator.controller.times import format_micro_time
from rerank_operator.controller.verdict import Verdict
from rerank_operator.rollout.canary import JUDGED

LONGEST_NOTE = 1024
"""The API server's limit, in bytes."""

BEGIN_AND_END = {
    CAPTURING: ("CaptureStarted", "CaptureEnded", "Capture"),
    MAINTENANCE: ("MaintenanceStarted", "MaintenanceEnded", "Silence"),
}
"""Reasons and action of conditions that come and go: what was done with users' texts, and with alerts, must be found
later."""


class Event(msgspec.Struct, frozen=True):
    type: Literal["Normal", "Warning"]
    reason: str
    action: str
    """What the operator did or tried, for programs."""
    note: str


def transitions(
    old: dict[str, Any], conditions: Sequence[Condition], current: str | None, target: str | None, complete: bool
) -> tuple[Event, ...]:
    """``old``: the status as stored; the rest as it is about to be stored."""
    events = []
    served, wanted = old.get("currentRevision"), old.get("updatedRevision")
    if target != wanted and served and target != served:
        note = f"revision {target} is taking over from {served}"
        events.append(Event("Normal", "RolloutStarted", "Rollout", note))
    if current != served and current == target and complete:
        events.append(Event("Normal", "RolloutComplete", "Rollout", f"revision {current} serves all requests"))
    before = {condition.get("type"): condition for condition in old.get("conditions", ())}
    for condition in conditions:
        events.extend(of_condition(before.get(condition.type, {}), condition))
    true = {condition.type for condition in conditions if condition.status == "True"}
    for kind, (_, ended, action) in BEGIN_AND_END.items():
        if before.get(kind, {}).get("status") == "True" and kind not in true:
            events.append(Event("Normal", ended, action, f"no longer: {before[kind].get('message')}"))
    return tuple(events)


def of_rollout(was: RolloutStatus | None, now: RolloutStatus | None) -> tuple[Event, ...]:
    """What a canary has come to since ``was``. That it was taken back, the condition Degraded tells."""
    if now is None:
        return ()
    same = was is not None and (was.revision, was.started) == (now.revision, now.started)
    had = {check.name: check.verdict for check in was.checks} if was is not None and same else {}
    canary, events = f"canary {now.revision}", []
    for check in now.checks:
        if check.verdict == "pass" and had.get(check.name) != "pass" and check.name in ("load", "golden", "mirror"):
            events.append(Event("Normal", "GatePassed", "Rollout", f"{canary}: {check.name}: {check.message}"))
    before = was.percent if was is not None and same else 0
    if now.phase == "Traffic" and now.percent != before:
        note = f"{canary} gets {now.percent} % of the requests (step {now.step + 1})"
        events.append(Event("Normal", "CanaryStep", "Rollout", note))
    if now.paused and not (was is not None and same and was.paused):
        events.append(Event("Warning", "RolloutPaused", "Rollout", f"{canary}: {now.paused}"))
    if was is not None and same and was.paused and not now.paused and now.phase in JUDGED:
        events.append(Event("Normal", "RolloutResumed", "Rollout", f"{canary} goes on; it was paused: {was.paused}"))
    # Where enough of its workers are up already, no status says Promoting.
    decided = ("Promoting", "Promoted")
    if now.phase in decided and not (was is not None and same and was.phase in decided):
        events.append(Event("Normal", "CanaryPromoted", "Rollout", f"{canary}: {now.message}"))
    return tuple(events)


def scaled(was: dict[str, Any], verdict: Verdict | None) -> tuple[Event, ...]:
    """``was``: status.scaling as stored. Told is each change of what demand asks for, carried out or not."""
    decision = verdict.decision if verdict else None
    if (
        verdict is None
        or decision is None
        or verdict.mode not in ("Auto", "Recommend")
        or was.get("mode") != verdict.mode
    ):
        return ()
    changes = [
        f"{what} {before} to {now}"
        for what, before, now in (
            ("workers", was.get("desiredReplicas", 0), verdict.desired),
            ("warm pods", was.get("desiredLoaners", 0), verdict.desired_loaners),
        )
        if before != now
    ]
    if not changes:
        return ()
    would = "only recommended: " if verdict.mode == "Recommend" else ""
    return (Event("Normal", decision.reason, "Scale", f"{would}{', '.join(changes)}: {decision.message}"),)


def of_condition(was: dict[str, Any], now: Condition) -> list[Event]:
    changed = (was.get("status"), was.get("reason")) != (now.status, now.reason)
    if not changed and (now.type != ANNOTATIONS or was.get("message") == now.message):
        return []
    if now.type == DEGRADED and now.status == "True":
        return [Event("Warning", now.reason, "Reconcile", now.message)]
    if now.type == DEGRADED and was.get("status") == "True":
        return [Event("Normal", "Recovered", "Reconcile", f"no longer {was.get('reason')}")]
    if now.type == READY and now.reason == "Suspended":
        return [Event("Normal", "Suspended", "Suspend", "all workers are being stopped: spec.suspend is true")]
    if now.type == READY and was.get("reason") == "Suspended":
        return [Event("Normal", "Resumed", "Resume", "workers are being started: spec.suspend is false")]
    if now.type == READY and now.status == "True":
        return [Event("Normal", "Serving", "Serve", now.message)]
    if now.type == READY and was.get("status") == "True" and now.reason == "WaitingForWorkers":
        return [Event("Warning", "WaitingForWorkers", "Serve", now.message)]
    if now.type in BEGIN_AND_END and now.status == "True":
        began, _, action = BEGIN_AND_END[now.type]
        return [Event("Normal", began, action, now.message)]
    if now.type == MAINTENANCE and now.status == "False":
        return [Event("Warning", "MaintenanceUnreadable", "Silence", now.message)]
    if now.type == ANNOTATIONS:
        return [Event("Warning", "AnnotationIgnored", "Read", now.message)]
    if now.type == RANKING_QUALITY and now.status == "False":
        return [Event("Warning", "RankingQualityLow", "Measure", now.message)]
    if now.type == RANKING_QUALITY and now.status == "True" and was.get("status") == "False":
        return [Event("Normal", "RankingQualityRecovered", "Measure", now.message)]
    return []


def manifest(event: Event, regarding: Metadata, instance: str, now: float, kind: str = names.KIND) -> dict[str, Any]:
    """The Event object. Its name is made of its content and time: the same one is never stored twice."""
    time = format_micro_time(now)
    digest = hashlib.sha256(f"{regarding.uid}{event.reason}{event.note}{time}".encode()).hexdigest()[:16]
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": f"{regarding.name}.{digest}", "namespace": regarding.namespace},
        "regarding": {
            "apiVersion": names.API_VERSION,
            "kind": kind,
            "namespace": regarding.namespace,
            "name": regarding.name,
            "uid": regarding.uid,
            "resourceVersion": regarding.resource_version,
        },
        "type": event.type,
        "reason": event.reason,
        "action": event.action,
        "note": event.note.encode()[:LONGEST_NOTE].decode(errors="ignore"),
        # No deprecatedLastTimestamp and the like, by which kubectl describe sorts: of events.k8s.io/v1 the API server
        # refuses them (ValidateEventCreate of Kubernetes: "needs to be unset").
        "eventTime": time,
        "reportingController": names.FIELD_MANAGER,
        "reportingInstance": instance[:128],
    }


class Allowance:
    """A bound on the Events of each type of each Reranker: ``burst`` at once, then one every ``every`` seconds. What
    goes as it should leaves room to tell what does not."""

    def __init__(self, burst: int = 20, every: float = 60.0) -> None:
        self._burst = burst
        self._every = every
        self._spent: dict[tuple[str, str], tuple[float, float]] = {}

    def take(self, uid: str, kind: str, now: float) -> bool:
        """``kind``: Normal or Warning."""
        spent, since = self._spent.get((uid, kind), (0.0, now))
        spent = max(0.0, spent - (now - since) / self._every)
        allowed = spent + 1 <= self._burst
        self._spent[uid, kind] = (spent + allowed, now)
        return allowed

    def keep(self, uids: set[str]) -> None:
        """Forget Rerankers that are gone."""
        self._spent = {key: spent for key, spent in self._spent.items() if key[0] in uids}
