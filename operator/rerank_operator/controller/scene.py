"""From what is observed to what a canary's course is decided by, and to what its rollouts leave behind. Pure."""

from collections.abc import Mapping
from typing import Any

import msgspec
from rerank_api import names
from rerank_api.outcome import Outcome
from rerank_api.reranker import RejectedRevision, Reranker, RolloutStatus

from rerank_operator.controller.diagnose import Diagnosis
from rerank_operator.controller.observe import Observed
from rerank_operator.controller.times import format_time, time_or_zero
from rerank_operator.rollout.canary import JUDGED, Course, Findings, Scene, outcome_of

MAY_PASS = frozenset({"ImagePullFailed"})
"""Hopeless only where a replica waits in vain: stable serves all the while, so a registry may take its time."""
MOST_EARLIER = 4
"""Rollouts of a revision that are kept beside its last one."""
LARGEST_OUTCOME = 32768
"""Bytes, with the earlier ones; they go first. Annotations have 256 KiB together, in the memory of every operator."""


def scene_of(
    observed: Observed,
    reranker: Reranker,
    target: str,
    desired: int,
    trouble: Diagnosis | None,
    stuck: int,
    findings: Findings | None,
    now: float,
) -> Scene:
    """``trouble``: of the target's workers; ``stuck``: those of them that find no room."""
    status, annotations = observed.status, reranker.metadata.annotations
    current = status.get("currentRevision")
    rejected = rejection_of(status)
    hopeless = trouble is not None and trouble.hopeless and trouble.reason not in MAY_PASS
    return Scene(
        now=now,
        time=format_time(now),
        rollout=reranker.spec.rollout,
        target=target,
        current=current,
        known=any(state.revision == current for state in observed.deployments)
        or any(state.revision == current and state.spec is not None for state in observed.revisions),
        desired=desired,
        ready=sum(pod.ready and pod.counts for pod in observed.pods if pod.revision == target),
        blocked=stuck,
        hopeless=(trouble.reason, trouble.message) if trouble is not None and hopeless else None,
        waiting=trouble.message if trouble is not None else "",
        state=observed.rollout,
        rejected=rejected,
        findings=findings,
        promote=annotations.get(names.ANNOTATION_PROMOTE, ""),
        abort=annotations.get(names.ANNOTATION_ABORT, ""),
        paused=annotations.get(names.ANNOTATION_ROLLOUT_PAUSED, "").lower() == "true",
        retry=retry_asked(annotations, rejected, now),
    )


def rejection_of(status: dict[str, Any]) -> RejectedRevision | None:
    found = status.get("rejectedRevision")
    try:
        return msgspec.convert(found, RejectedRevision) if found else None
    except msgspec.ValidationError:  # written in another form; that it was rejected still counts
        revision = found.get("revision") if isinstance(found, dict) else None
        return RejectedRevision(revision, "Unknown", "why is not understood") if isinstance(revision, str) else None


def retry_asked(annotations: Mapping[str, str], rejected: RejectedRevision | None, now: float) -> bool:
    """Whether a person has asked for another try since. A time to come asks for one then: it would else ask for the
    next try too, and for the one after it."""
    asked = time_or_zero(annotations.get(names.ANNOTATION_RETRY))
    # kubectl rerank asks for the second after the rejection, which may not have come yet.
    return rejected is not None and time_or_zero(rejected.time) < asked <= now + 1


def set_aside(observed: Observed, target: str) -> set[str]:
    """Revisions that were canaries, were never promoted and still have workers: they get no request, and carry none."""
    status, rollout = observed.status, observed.rollout
    shares = {share["revision"]: share["percent"] for share in status.get("traffic", ())}
    aside = {revision for revision, percent in shares.items() if not percent}
    # One that was being promoted, or was asked for without a canary since, has a share: it goes as another comes.
    if rollout is not None and (
        rollout.phase in JUDGED or (rollout.phase in ("RolledBack", "Cancelled") and not shares.get(rollout.revision))
    ):
        aside.add(rollout.revision)
    return aside & {pod.revision for pod in observed.pods} - {target, status.get("currentRevision")}


def notes_to_leave(
    observed: Observed, course: Course, findings: Findings | None, now: float
) -> dict[str, dict[str, str]]:
    """Annotations by revision that are not yet as they should be: evidence that goes on, and how a rollout ended.

    Of one that has ended no evidence is kept: tens of KiB for each revision, in the memory of every operator.
    """
    kept = {state.revision: state.notes for state in observed.revisions}
    left: dict[str, dict[str, str]] = {}
    if findings is not None and findings.evidence is not None and course.judging:
        left[findings.revision] = kept.get(findings.revision, {}) | {names.ANNOTATION_EVIDENCE: findings.evidence}
    ended = outcome_of(observed.rollout, course.state, format_time(now))
    if ended is not None:
        left[ended.revision] = {
            names.ANNOTATION_OUTCOME: _as_json(ended, kept.get(ended.revision, {}).get(names.ANNOTATION_OUTCOME))
        }
    return {revision: notes for revision, notes in left.items() if revision in kept and notes != kept[revision]}


def _as_json(ended: RolloutStatus, before: str | None) -> str:
    """``before``: the annotation as it is, perhaps of this same end: who died then had not told the status of it."""
    earlier = [one for one in _outcomes(before) if one.started != ended.started][:MOST_EARLIER]
    while True:
        kept = Outcome(**msgspec.structs.asdict(ended), earlier=tuple(earlier))
        text = msgspec.json.encode(kept)
        if not earlier or len(text) <= LARGEST_OUTCOME:
            return text.decode()
        earlier.pop()


def _outcomes(text: str | None) -> list[RolloutStatus]:
    """The latest first; none where it is not understood."""
    try:
        last = msgspec.json.decode(text, type=Outcome) if text is not None else None
    except msgspec.DecodeError:
        return []
    return [msgspec.structs.replace(last, earlier=()), *last.earlier] if last is not None else []
