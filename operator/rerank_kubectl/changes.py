"""What promote, abort, pause, resume and retry do: the annotations that they set, or why they do not. Pure.

A promotion or an abort names the revision that was looked at, so that it never strikes one that came since.
"""

from datetime import UTC, datetime, timedelta

import msgspec
from rerank_api import names
from rerank_api.reranker import Reranker, RolloutStatus

from rerank_kubectl.commands import Call, command, patch_command
from rerank_kubectl.state import canary, held_by_annotation, observed, rejected, time_in, unproven


class Refused(Exception):
    """Not done; the text says why, and what to do instead."""


class Change(msgspec.Struct, frozen=True):
    """What is to be written; nothing where it is so already."""

    said: str
    annotations: dict[str, str | None] = {}
    """None: removed."""
    but: str = ""
    """Why that does not do all that was asked for."""


def promote(reranker: Reranker, revision: str | None, force: bool, call: Call) -> Change:
    """``revision``: the one that the person means; None: whichever is the canary. Raises Refused."""
    rollout = _canary(reranker, "promote", revision, call)
    if rollout.phase == "Promoting":
        return Change(f"{_of(rollout, reranker)} is being promoted already")
    left = unproven(rollout)
    if left and not force:
        again = command("promote", reranker, call, f"--revision={rollout.revision}", "--force")
        listed = "".join(f"\n  - {one}" for one in left)
        raise Refused(
            f"{_of(rollout, reranker)} is not promoted: it has not shown that it is no worse.{listed}\n"
            f"To send it all requests in spite of that: {again}"
        )
    return Change(
        f"{_of(rollout, reranker)} is to be promoted: the gates that are left are skipped",
        {names.ANNOTATION_PROMOTE: rollout.started, names.ANNOTATION_ABORT: None},
    )


def abort(reranker: Reranker, revision: str | None, call: Call) -> Change:
    """Never asks twice: until a canary is promoted, stable has all its workers. Raises Refused."""
    rollout = _canary(reranker, "abort", revision, call)
    late = " (some of its workers may have gone: requests wait until they are back)" * (rollout.phase == "Promoting")
    return Change(
        f"{_of(rollout, reranker)} is to be taken back: {rollout.stable} serves all requests again{late}, and this "
        f"revision is not tried any more; to try it again: {command('retry', reranker, call)}",
        {names.ANNOTATION_ABORT: rollout.started, names.ANNOTATION_PROMOTE: None},
    )


def pause(reranker: Reranker, call: Call) -> Change:
    """Raises Refused."""
    rollout = canary(reranker)
    if rollout is not None and rollout.phase == "Promoting":
        raise Refused(
            f"{_of(rollout, reranker)} is being promoted, which no pause stops; to take it back: "
            f"{command('abort', reranker, call)}"
        )
    if reranker.spec.rollout.strategy == "Replace":
        raise Refused(
            f"{_name(reranker)} has spec.rollout.strategy Replace, which has no canary to pause: set it to Canary"
        )
    if reranker.spec.rollout.paused:
        return Change(f"{_name(reranker)} is paused already: spec.rollout.paused is true")
    if held_by_annotation(reranker):
        return Change(f"{_name(reranker)} is paused already")
    said = (
        f"{_of(rollout, reranker)} is to stay where it is ({where(rollout)}); it is still taken back where it is worse"
        if rollout is not None
        else f"{_name(reranker)} has no canary now; the next one is to wait until it is resumed"
    )
    return Change(said, {names.ANNOTATION_ROLLOUT_PAUSED: "true"})


def resume(reranker: Reranker, call: Call) -> Change:
    """Raises Refused."""
    rollout = canary(reranker)
    there = names.ANNOTATION_ROLLOUT_PAUSED in reranker.metadata.annotations
    if reranker.spec.rollout.paused:
        but = f"spec.rollout.paused is true and holds it: {patch_command(reranker, call)}"
        if not there:
            raise Refused(but)
        return Change(
            f"the annotation that paused {_name(reranker)} is removed", {names.ANNOTATION_ROLLOUT_PAUSED: None}, but
        )
    if there:
        return Change(f"{_name(reranker)} is to go on", {names.ANNOTATION_ROLLOUT_PAUSED: None})
    if rollout is not None and rollout.paused:
        raise Refused(f"nobody has paused {_of(rollout, reranker)}: {rollout.paused}")
    return Change(f"{_name(reranker)} is not paused")


def retry(reranker: Reranker, now: datetime, call: Call) -> Change:
    """The time that is written is the rejection's, a second later: with a clock that is ahead, a later rejection would
    be tried again for ever. ``now`` where the rejection has no time. Raises Refused."""
    found = rejected(reranker)
    if found is None:
        raise Refused(f"{_name(reranker)} {_no_rejection(reranker, call)}")
    since = time_in(found.time)
    asked = (now if since is None else since + timedelta(seconds=1)).astimezone(UTC)
    return Change(
        f"revision {found.revision} of {_name(reranker)} is to be tried again; it was rejected: {found.reason}",
        {
            names.ANNOTATION_RETRY: asked.strftime("%Y-%m-%dT%H:%M:%SZ"),
            names.ANNOTATION_ABORT: None,
            names.ANNOTATION_PROMOTE: None,
        },
    )


def where(rollout: RolloutStatus) -> str:
    return f"phase {rollout.phase}, {rollout.percent} % of the requests"


def _no_rejection(reranker: Reranker, call: Call) -> str:
    found = reranker.status.rejected_revision
    if found is None:
        return f"has no rejected revision to try again; what goes on: {command('status', reranker, call)}"
    if reranker.status.updated_revision not in (None, found.revision):
        return (
            f"asks for revision {reranker.status.updated_revision} by now, not for the rejected {found.revision}: "
            "apply the spec of that one again first"
        )
    return f"is to try revision {found.revision} again already"


def _canary(reranker: Reranker, verb: str, revision: str | None, call: Call) -> RolloutStatus:
    rollout, last = canary(reranker), reranker.status.rollout
    if rollout is None:
        why = (
            "no rollout of a canary has begun"
            if last is None
            else f"the last rollout, of revision {last.revision}, is over ({last.phase})"
        )
        hint = "" if observed(reranker) else "; the operator has not read the latest spec yet: look again in a moment"
        raise Refused(f"{_name(reranker)} has no canary to {verb}: {why}{hint}")
    if revision not in (None, rollout.revision):
        raise Refused(
            f"the canary of {_name(reranker)} is {rollout.revision}, not {revision}: look at it before you {verb} it: "
            f"{command('status', reranker, call)}"
        )
    return rollout


def _name(reranker: Reranker) -> str:
    return f"{reranker.metadata.namespace}/{reranker.metadata.name}"


def _of(rollout: RolloutStatus, reranker: Reranker) -> str:
    return f"canary {rollout.revision} of {_name(reranker)}"
