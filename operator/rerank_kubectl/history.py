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
from rerank_api.reranker import Reranker, RolloutStatus

from rerank_kubectl.changes import Refused
from rerank_kubectl.rendering import checks_table, differed_table, in_full, since
from rerank_kubectl.state import canary


class Kept(msgspec.Struct, frozen=True):
    """One revision that is kept."""

    revision: str
    number: int
    """Grows with each that becomes the target."""
    created: str
    spec: Any
    """As stored: what its workers are built from."""
    outcome: RolloutStatus | None = None
    """How its last rollout ended; None: it never was a canary whose rollout ended."""
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
    if not history:
        return "no revision is kept yet\n"
    lines = [_line("REVISION", "NUMBER", "WHEN", "NOW", "RESULT", "REQUESTS")]
    for kept in history:
        outcome = kept.outcome
        when = outcome.ended if outcome is not None and outcome.ended else kept.created
        requests = str(outcome.requests) if outcome is not None else "-"
        lines.append(_line(kept.revision, str(kept.number), when or "-", _now(kept, reranker), _result(kept), requests))
        why = kept.unreadable or (outcome.message if outcome is not None else "")
        lines += textwrap.wrap(why, width, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
    return "\n".join(lines) + "\n"


def revision_page(kept: Kept, reranker: Reranker, now: datetime, width: int = 80) -> str:
    """One revision in full: how its rollout ended, each check, and its stored spec."""
    lines = [f"Revision {kept.revision} of {reranker.metadata.namespace}/{reranker.metadata.name}"]
    lines += [f"  number     {kept.number}", f"  created    {since(kept.created, now)}"]
    lines += [f"  now        {_now(kept, reranker)}", f"  result     {_result(kept)}"]
    outcome = kept.outcome
    if outcome is not None:
        lines += [f"  beside     {outcome.stable}", f"  began      {since(outcome.started, now) or '-'}"]
        lines += [f"  ended      {since(outcome.ended, now) or '-'}", f"  requests   {outcome.requests} of users"]
    why = kept.unreadable or (outcome.message if outcome is not None else "")
    lines += textwrap.wrap(
        why, width, initial_indent="  why        ", subsequent_indent=" " * 13, break_on_hyphens=False
    )
    if outcome is not None:
        lines += ["", *checks_table(outcome, width)]
        if outcome.differed:
            lines += ["", *differed_table(outcome)]
    spec = json.dumps(kept.spec, indent=2, ensure_ascii=False)
    return "\n".join([*lines, "", "Its spec", textwrap.indent(spec, "  ")]) + "\n"


def history_json(history: Sequence[Kept], reranker: Reranker) -> dict[str, Any]:
    return {
        "namespace": reranker.metadata.namespace,
        "name": reranker.metadata.name,
        "currentRevision": reranker.status.current_revision,
        "revisions": [in_full(kept) for kept in history],
    }


def _kept(item: Any) -> Kept:
    metadata = item.get("metadata", {})
    text = metadata.get("annotations", {}).get(names.ANNOTATION_OUTCOME)
    outcome, unreadable = None, ""
    if text is not None:
        try:
            outcome = msgspec.json.decode(text, type=RolloutStatus)
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


def _now(kept: Kept, reranker: Reranker) -> str:
    going = canary(reranker)
    if going is not None and going.revision == kept.revision:
        return "canary"
    return "serves" if reranker.status.current_revision == kept.revision else "-"


def _result(kept: Kept) -> str:
    if kept.unreadable:
        return "?"
    return kept.outcome.phase if kept.outcome is not None else "no canary"


def _line(revision: str, number: str, when: str, now: str, result: str, requests: str) -> str:
    return f"{revision:<10}   {number:<6}   {when:<20}   {now:<6}   {result:<10}   {requests}".rstrip()
