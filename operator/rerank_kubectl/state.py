"""What a Reranker's status means to a person: what goes on, what holds it, whether it is over. Pure."""

from datetime import datetime

from rerank_api import names
from rerank_api.reranker import RejectedRevision, Reranker, RolloutStatus

ENDED = frozenset({"Promoted", "RolledBack", "Cancelled"})
USERS_CHECKS = frozenset({"errors", "latency"})
"""What is judged on users' requests."""
DIFFERENCE = "difference"
"""What an A/B test tells. It is never a verdict, so a promotion passes over nothing there."""

SERVES, NOT_PROMOTED, GOING_ON = 0, 1, 3
"""How a watched rollout ended; the exit statuses too."""


def observed(reranker: Reranker) -> bool:
    """Whether the operator has read the latest spec: else the status is about the one before."""
    return reranker.status.observed_generation >= reranker.metadata.generation


def canary(reranker: Reranker) -> RolloutStatus | None:
    """The rollout that goes on."""
    rollout = reranker.status.rollout
    return rollout if rollout is not None and rollout.phase not in ENDED else None


def held_by_annotation(reranker: Reranker) -> bool:
    return reranker.metadata.annotations.get(names.ANNOTATION_ROLLOUT_PAUSED, "").lower() == "true"


def rejected(reranker: Reranker) -> RejectedRevision | None:
    """The revision that is not tried again, where the spec still asks for it and nobody has asked for another try."""
    found = reranker.status.rejected_revision
    if found is None or reranker.status.updated_revision not in (None, found.revision):
        return None
    asked, since = time_in(reranker.metadata.annotations.get(names.ANNOTATION_RETRY, "")), time_in(found.time)
    return None if asked is not None and (since is None or asked > since) else found


def troubles(reranker: Reranker) -> dict[str, str]:
    """Why it does not serve, and what needs a person, in the operator's words; without a rejection, which has fields of
    its own."""
    found = {condition.type: condition for condition in reranker.status.conditions}
    ready, degraded = found.get("Ready"), found.get("Degraded")
    told = {}
    if ready is not None and ready.status != "True":
        told["not ready"] = f"{ready.reason}: {ready.message}"
    if degraded is not None and degraded.status == "True" and degraded.reason != "RevisionRejected":
        why = f"{degraded.reason}: {degraded.message}"
        told |= {"degraded": why} if why not in told.values() else {}
    annotations = found.get("Annotations")
    if annotations is not None and annotations.status == "False":
        told["no effect"] = annotations.message
    return told


def unproven(rollout: RolloutStatus) -> list[str]:
    """What a promotion by hand would pass over, a sentence each; empty where everything is passed."""
    left = [
        f"{check.name} says {check.verdict}: {check.message}"
        for check in rollout.checks
        if check.verdict != "pass" and check.name != DIFFERENCE
    ]
    if rollout.phase in ("Starting", "Golden", "Mirror"):
        left.append(f"no user's request has gone to it: it is in phase {rollout.phase}")
    elif not any(check.name in USERS_CHECKS for check in rollout.checks):
        left.append("nothing has been said yet about users' requests")
    return left


def ended(reranker: Reranker, followed: str | None) -> int | None:
    """SERVES or NOT_PROMOTED, or None while it goes on. ``followed``: the canary that has been seen to go on, whose end
    is asked for; without one it is asked whether what the spec asks for serves."""
    status = reranker.status
    if followed is not None and (status.rollout is None or status.rollout.revision != followed):
        return NOT_PROMOTED  # the spec has moved on
    if canary(reranker) is not None:
        return None
    if followed is not None and status.rollout is not None:
        return SERVES if status.rollout.phase == "Promoted" else NOT_PROMOTED
    if not observed(reranker):
        return None
    if rejected(reranker) is not None:
        return NOT_PROMOTED
    return SERVES if status.current_revision and status.current_revision == status.updated_revision else None


def time_in(text: str) -> datetime | None:
    """RFC 3339; None where it is no time (with a zone)."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo is not None else None
