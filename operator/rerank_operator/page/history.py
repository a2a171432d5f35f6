"""What has happened to each Reranker, read from how its status changes. Pure: told the objects and the time.

Every replica of the operator sees every status, so it does not matter which one leads. Two changes between two looks
count as one. What was before the first look is told as far as the status still has it. Never a query or a document:
the texts are those of conditions, decisions and checks.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import msgspec
from rerank_api.reranker import RolloutStatus

from rerank_operator.controller.conditions import CANARY_HEALTHY, DEGRADED, PROGRESSING, READY, SCALING
from rerank_operator.controller.events import of_rollout
from rerank_operator.controller.kinds import Key
from rerank_operator.controller.times import time_or_zero

MOST_NOTES = 50
"""Of one Reranker."""
_TOLD_ELSEWHERE = frozenset({CANARY_HEALTHY, PROGRESSING, SCALING})
"""Conditions that repeat what the rollout or the scaling says."""

Topic = Literal["scaling", "rollout", "condition"]


class Note(msgspec.Struct, frozen=True):
    """Something that happened."""

    time: float
    """Unix seconds: when it was seen, or what the status says where it was before."""
    topic: Topic
    reason: str
    """One word, as in conditions and Events."""
    text: str
    warning: bool = False
    brief: bool = False
    """Only a reason has changed, and no number: the next of this kind takes its place."""


class History:
    def __init__(self) -> None:
        self._seen: dict[Key, tuple[str, str, dict[str, Any]]] = {}
        """Uid, resource version and status of each Reranker at the last look."""
        self._notes: dict[Key, deque[Note]] = {}
        self._since: dict[Key, float] = {}

    def look(self, bodies: Iterable[dict[str, Any]], now: float) -> None:
        """All Rerankers as they are now (Unix seconds)."""
        present = set()
        for body in bodies:
            metadata, status = body["metadata"], body.get("status") or {}
            key = (metadata["namespace"], metadata["name"])
            present.add(key)
            uid, version = metadata.get("uid", ""), metadata["resourceVersion"]
            before = self._seen.get(key)
            if before is not None and before[:2] == (uid, version):
                continue
            if before is None or before[0] != uid:
                self._notes[key] = deque(sorted(already(status), key=lambda note: note.time), maxlen=MOST_NOTES)
                self._since[key] = now
            else:
                for note in changes(before[2], status, now):
                    self._add(self._notes[key], note)
            self._seen[key] = uid, version, status
        for gone in self._seen.keys() - present:
            del self._seen[gone], self._notes[gone], self._since[gone]

    @staticmethod
    def _add(notes: deque[Note], note: Note) -> None:
        last = next((old for old in reversed(notes) if old.topic == "scaling"), None)
        if note.brief and last is not None and last.brief:
            notes.remove(last)
        notes.append(note)

    def notes(self, key: Key) -> list[Note]:
        """Newest first."""
        return list(reversed(self._notes.get(key, ())))

    def since(self, key: Key) -> float | None:
        """The first look at it; what was before is known only as far as its status told it then."""
        return self._since.get(key)


def already(status: dict[str, Any]) -> list[Note]:
    """What a status tells of the time before it was first seen: since when conditions are as they are, the rollout."""
    notes = [
        Note(at, "condition", condition["reason"], _said(condition), _bad(condition))
        for condition in status.get("conditions", ())
        if condition["type"] not in _TOLD_ELSEWHERE and (at := time_or_zero(condition.get("lastTransitionTime")))
    ]
    rollout = _rollout(status)
    if rollout is not None:
        at = time_or_zero(rollout.ended or rollout.phase_started or rollout.started)
        notes += [_phase(rollout, at)] if at else []
    return notes


def changes(was: dict[str, Any], now: dict[str, Any], at: float) -> list[Note]:
    """What is new in the status ``now``."""
    return [*_scaling(was, now, at), *_rollouts(was, now, at), *_conditions(was, now, at)]


def _scaling(was: dict[str, Any], now: dict[str, Any], at: float) -> list[Note]:
    old, new = was.get("scaling") or {}, now.get("scaling") or {}
    if not new or not new.get("reason"):
        return []
    steps = [
        f"{what} {old.get(field, 0)} to {new.get(field, 0)}"
        for what, field in (("workers", "desiredReplicas"), ("warm pods", "desiredLoaners"))
        if old and old.get(field, 0) != new.get(field, 0)
    ]
    if not steps and (old.get("mode"), old.get("reason")) == (new.get("mode"), new["reason"]):
        return []
    would = "only recommended: " if new.get("mode") in ("Recommend", "Paused") else ""
    text = would + ", ".join(steps) + (": " if steps else "") + new.get("message", "")
    return [Note(at, "scaling", new["reason"], text, new["reason"] == "DemandUnknown", not steps)]


def _rollouts(was: dict[str, Any], now: dict[str, Any], at: float) -> list[Note]:
    old, new = _rollout(was), _rollout(now)
    notes = [
        Note(at, "rollout", event.reason, event.note, event.type == "Warning")
        for event in of_rollout(old, new)
        if event.reason != "CanaryPromoted"  # the phase says so
    ]
    same = old is not None and new is not None and (old.revision, old.started) == (new.revision, new.started)
    if new is not None and not (same and old is not None and old.phase == new.phase):
        notes.append(_phase(new, at))
    served, serves = was.get("currentRevision"), now.get("currentRevision")
    if serves and serves != served and not (new is not None and new.revision == serves):
        notes.append(Note(at, "rollout", "Serving", f"revision {serves} is what serves"))
    return notes


def _conditions(was: dict[str, Any], now: dict[str, Any], at: float) -> list[Note]:
    before = {condition["type"]: condition for condition in was.get("conditions", ())}
    return [
        Note(at, "condition", condition["reason"], _said(condition), _bad(condition))
        for condition in now.get("conditions", ())
        if condition["type"] not in _TOLD_ELSEWHERE and _answer(before.get(condition["type"], {})) != _answer(condition)
    ]


def _phase(rollout: RolloutStatus, at: float) -> Note:
    words = f"revision {rollout.revision}" + (f": {rollout.message}" if rollout.message else "")
    return Note(at, "rollout", rollout.phase, words, rollout.phase == "RolledBack")


def _rollout(status: Mapping[str, Any]) -> RolloutStatus | None:
    try:
        return msgspec.convert(status["rollout"], RolloutStatus) if status.get("rollout") else None
    except msgspec.ValidationError:  # of another version of the operator
        return None


def _answer(condition: Mapping[str, Any]) -> tuple[Any, ...]:
    return condition.get("status"), condition.get("reason")


def _said(condition: Mapping[str, Any]) -> str:
    return f"{condition['type']} is {condition['status']}: {condition.get('message', '')}"


def _bad(condition: Mapping[str, Any]) -> bool:
    return (condition["type"], condition["status"]) in ((DEGRADED, "True"), (READY, "Unknown")) or (
        condition["type"] == READY
        and condition["status"] == "False"
        and condition["reason"] not in ("Suspended", "NoReplicasRequested", "WaitingForWorkers")
    )
