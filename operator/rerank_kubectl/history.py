"""What became of a Reranker's revisions: from its ControllerRevisions to text and JSON. Pure.

A revision that never was a canary has no outcome; that is told as such and never taken for a good one.
"""

import json
import textwrap
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import msgspec
from rerank_api import names
from rerank_api.outcome import Outcome
from rerank_api.reranker import Reranker, RolloutStatus

from rerank_kubectl.changes import Refused
from rerank_kubectl.rendering import checks_table, differed_table, in_full, since, table
from rerank_kubectl.state import ENDED, canary


class Kept(msgspec.Struct, frozen=True):
    """One revision that is kept."""

    revision: str
    number: int
    """Grows with each that becomes the target."""
    created: str
    spec: Any
    """As stored: what its workers are built from."""
    outcome: Outcome | None = None
    """How its rollouts ended; None: it never was a canary whose rollout ended."""
    unreadable: str = ""
    """Why its outcome is not understood."""


def read_history(items: Iterable[Any]) -> list[Kept]:
    """From ControllerRevisions as the API server returned them, newest first."""
    return sorted((_kept(item) for item in items), key=lambda kept: -kept.number)


def only(history: Sequence[Kept], revision: str) -> list[Kept]:
    """Raises Refused, naming those that there are."""
    found = [kept for kept in history if kept.revision == revision]
    if not found:
        there = ", ".join(kept.revision for kept in history) or "none"
        raise Refused(f"no revision {revision} is kept: there are {there}")
    return found


def history_table(history: Sequence[Kept], reranker: Reranker, width: int = 80) -> str:
    """A row for each rollout, the one that goes on too, and below it why."""
    if not history:
        return "no revision is kept yet\n"
    rows, whys = [["REVISION", "NUMBER", "WHEN", "NOW", "RESULT", "REQUESTS"]], [""]
    for kept in history:
        now = _now(kept, reranker)
        for rollout in _rollouts(kept, reranker):
            when = rollout.ended or rollout.started or kept.created or "-"
            rows.append([kept.revision, str(kept.number), when, now, _result(rollout), str(rollout.requests)])
            whys.append(rollout.message)
            now = "earlier"
        if kept.unreadable or now != "earlier":
            result = "?" if kept.unreadable else "no canary"
            rows.append([kept.revision, str(kept.number), kept.created or "-", now, result, "-"])
            whys.append(kept.unreadable)
    lines = []
    for line, why in zip(table(rows).splitlines(), whys, strict=True):
        lines.append(line)
        lines += textwrap.wrap(why, width, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
    return "\n".join(lines) + "\n"


def revision_page(kept: Kept, reranker: Reranker, now: datetime, width: int = 80) -> str:
    """One revision in full: how its rollouts go on and ended, each check, and its stored spec."""
    rollouts = _rollouts(kept, reranker)
    lines = [f"Revision {kept.revision} of {reranker.metadata.namespace}/{reranker.metadata.name}"]
    lines += [f"  number     {kept.number}", f"  created    {since(kept.created, now)}"]
    lines += [f"  now        {_now(kept, reranker)}"]
    if rollouts:
        lines += [f"  result     {_result(rollouts[0])}", *_rollout(rollouts[0], now, width)]
    elif not kept.unreadable:
        lines += ["  result     no canary"]
    if kept.unreadable:
        lines += ["", "Earlier: ?"] if rollouts else ["  result     ?"]
        lines += _why(kept.unreadable, width)
    for earlier in rollouts[1:]:
        lines += ["", f"Earlier: {earlier.phase}", *_rollout(earlier, now, width)]
    spec = json.dumps(kept.spec, indent=2, ensure_ascii=False)
    return "\n".join([*lines, "", "Its spec", textwrap.indent(spec, "  ")]) + "\n"


def _rollout(rollout: RolloutStatus, now: datetime, width: int) -> list[str]:
    lines = [f"  beside     {rollout.stable}", f"  began      {since(rollout.started, now) or '-'}"]
    lines += [f"  ended      {since(rollout.ended, now) or '-'}", f"  requests   {rollout.requests} of users"]
    lines += [*_why(rollout.message, width), "", *checks_table(rollout, width)]
    return lines + (["", *differed_table(rollout)] if rollout.differed else [])


def _why(why: str, width: int) -> list[str]:
    label = "  why        "
    return textwrap.wrap(why, width, initial_indent=label, subsequent_indent=" " * len(label), break_on_hyphens=False)


def history_json(history: Sequence[Kept], reranker: Reranker) -> dict[str, Any]:
    return {
        "namespace": reranker.metadata.namespace,
        "name": reranker.metadata.name,
        "currentRevision": reranker.status.current_revision,
        "rollout": in_full(canary(reranker)),
        "revisions": [in_full(kept) for kept in history],
    }


def _kept(item: Any) -> Kept:
    metadata = item.get("metadata", {})
    text = metadata.get("annotations", {}).get(names.ANNOTATION_OUTCOME)
    outcome, unreadable = None, ""
    if text is not None:
        try:
            outcome = msgspec.json.decode(text, type=Outcome)
        except msgspec.DecodeError as error:
            unreadable = f"its outcome (annotation {names.ANNOTATION_OUTCOME}) is not understood: {error}"
    return Kept(
        revision=metadata.get("labels", {}).get(names.LABEL_REVISION, "?"),
        number=item.get("revision", 0),
        created=metadata.get("creationTimestamp") or "",
        spec=item.get("data"),
        outcome=outcome,
        unreadable=unreadable,
    )


def _rollouts(kept: Kept, reranker: Reranker) -> list[RolloutStatus]:
    """Those of the revision that are known, the one that goes on first."""
    going = canary(reranker)
    found: list[RolloutStatus] = [going] if going is not None and going.revision == kept.revision else []
    return [*found, *([kept.outcome, *kept.outcome.earlier] if kept.outcome is not None else [])]


def _now(kept: Kept, reranker: Reranker) -> str:
    going = canary(reranker)
    if going is not None and going.revision == kept.revision:
        return "canary"
    return "serves" if reranker.status.current_revision == kept.revision else "-"


def _result(rollout: RolloutStatus) -> str:
    return rollout.phase if rollout.phase in ENDED else f"going on, {rollout.phase} {rollout.percent} %"
