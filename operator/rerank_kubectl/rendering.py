"""Rerankers as text for a terminal and as JSON. Pure: the time and the width are passed in.

Parts of both were written by others: what is printed goes through ``printable`` or ``json_text``.
"""

import json
import textwrap
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import msgspec
from rerank_api.reranker import QualityStatus, Reranker, RolloutStatus

from rerank_kubectl.commands import Call, next_commands
from rerank_kubectl.state import ENDED, canary, observed, rejected, time_in, troubles, unproven

DECIDED = ENDED | {"Promoting"}
"""Phases after the last step."""
_LABEL = 11


def reranker_table(rerankers: Sequence[Reranker], *, namespaces: bool) -> str:
    """One line a Reranker. ``namespaces``: with a column of them."""
    head = ["NAME", "PHASE", "PERCENT", "STEP", "REQUESTS", "REVISION"]
    rows = [_row(one) for one in rerankers]
    if namespaces:
        head.insert(0, "NAMESPACE")
        rows = [[one.metadata.namespace, *row] for one, row in zip(rerankers, rows, strict=True)]
    return table([head, *rows])


def table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "".join(f"{line.rstrip()}\n" for line in lines)


def status_page(reranker: Reranker, now: datetime, call: Call, width: int = 80) -> str:
    """Everything that stands in the status about revisions, and what can be done next."""
    status, rollout = reranker.status, reranker.status.rollout
    shares = ", ".join(f"{share.revision} {share.percent} %" for share in status.traffic)
    lines = [
        f"Reranker {reranker.metadata.namespace}/{reranker.metadata.name}",
        *_field("serves", status.current_revision or "none yet", width),
        *_field("asked for", status.updated_revision or "not known yet", width),
        *_field("traffic", shares or "no worker is ready", width),
    ]
    for label, why in troubles(reranker).items():
        lines += _field(label, why, width)
    if not observed(reranker):
        lines += _field("", "the operator has not read the latest spec yet: this is about the one before", width)
    if status.quality is not None:
        lines += _field("quality", _quality(status.quality, reranker, now), width)
    if rollout is not None:
        lines += ["", *_rollout(rollout, reranker, now, width)]
    turned_down = status.rejected_revision
    if turned_down is not None:
        lines += ["", f"Rejected {turned_down.revision}" + _at(turned_down.time, now)]
        lines += wrapped(f"{turned_down.reason}: {turned_down.message}", width, "  ")
        if rejected(reranker) is None and status.updated_revision == turned_down.revision:
            lines.append("  a person has asked to try it again")
    lines += ["", "What you can do"]
    for one in next_commands(reranker, call):
        lines += [f"  {one.what}:", f"    {one.command}"]
    return "\n".join(lines) + "\n"


def checks_table(rollout: RolloutStatus, width: int) -> list[str]:
    """Each check with its verdict, its figures beside it on as many lines as they need."""
    if not rollout.checks:
        return ["  no check has said anything yet"]
    broad = max(len("CHECK"), *(len(check.name) for check in rollout.checks))
    lines = [f"  {'CHECK'.ljust(broad)}  VERDICT  FIGURES"]
    for check in rollout.checks:
        first = f"  {check.name.ljust(broad)}  {check.verdict.ljust(7)}  "
        lines += wrapped(check.message or "-", width, first, " " * len(first))
    return lines


def differed_table(rollout: RolloutStatus) -> list[str]:
    """The ids of the mirrored requests that differed most, as logs, traces and samples have them; perhaps none."""
    if not rollout.differed:
        return []
    rows = [["DIFFERED MOST", "AGREEMENT", "LARGEST DIFFERENCE"]]
    for one in rollout.differed:
        rows.append([one_line(one.request_id), _figure(one.agreement), _figure(one.drift)])
    return [f"  {line}" for line in table(rows).splitlines()]


def progress_line(reranker: Reranker) -> str:
    """How far it is, in a line, for a log."""
    rollout = reranker.status.rollout
    if rollout is None:
        return f"no rollout; {reranker.status.current_revision or 'none'} serves"
    verdicts = ", ".join(f"{check.name} {check.verdict}" for check in rollout.checks)
    step = _step(reranker, rollout)
    parts = [f"{rollout.revision} {_phase(rollout)}", f"{rollout.percent} %", *([f"step {step}"] if step else [])]
    return ", ".join([*parts, f"{rollout.requests} requests"]) + (f": {verdicts}" if verdicts else "")


def status_json(reranker: Reranker, call: Call) -> dict[str, Any]:
    """Every field, also where it has its default; null where it is not known."""
    status, rollout = reranker.status, canary(reranker)
    return {
        "namespace": reranker.metadata.namespace,
        "name": reranker.metadata.name,
        "strategy": reranker.spec.rollout.strategy,
        "steps": list(reranker.spec.rollout.steps),
        "observed": observed(reranker),
        "currentRevision": status.current_revision,
        "updatedRevision": status.updated_revision,
        "traffic": in_full(status.traffic),
        "quality": in_full(status.quality),
        "rollout": in_full(status.rollout),
        "unproven": unproven(rollout) if rollout is not None else [],
        "rejectedRevision": in_full(status.rejected_revision),
        "conditions": in_full(status.conditions),
        "next": in_full(next_commands(reranker, call)),
    }


def in_full(value: Any) -> Any:
    """Structs as mappings by their names on the wire, with the fields that have their defaults, too."""
    if isinstance(value, msgspec.Struct):
        fields = msgspec.structs.fields(value)
        return {field.encode_name: in_full(getattr(value, field.name)) for field in fields}
    if isinstance(value, list | tuple):
        return [in_full(one) for one in value]
    return value


def one_line(text: str) -> str:
    """What users have written moves no terminal's cursor."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def printable(text: str) -> str:
    """The same of several lines."""
    return "\n".join(map(one_line, text.split("\n")))


def json_text(content: Any) -> str:
    """Likewise, over several lines."""
    return "\n".join(map(json_line, json.dumps(content, indent=2, ensure_ascii=False).split("\n")))


def json_line(text: str) -> str:
    """``text``, a line of JSON, with escapes for what would move a cursor: it reads as the same."""
    return "".join(letter if letter.isprintable() else _escaped(letter) for letter in text)


def _escaped(letter: str) -> str:
    if letter in "\t\r":
        return " "  # JSON has them between its values only
    units = letter.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[start : start + 4]}" for start in range(0, len(units), 4))


def since(text: str, now: datetime) -> str:
    """``text``, a time, with how long ago that is where it can be told."""
    began = time_in(text)
    return text if began is None else f"{text} ({_age((now - began).total_seconds())} ago)"


def _rollout(rollout: RolloutStatus, reranker: Reranker, now: datetime, width: int) -> Iterable[str]:
    strategy = reranker.spec.rollout.strategy
    yield f"Rollout of {rollout.revision} beside {rollout.stable}" + (f" ({strategy})" if strategy != "Replace" else "")
    yield from _field("phase", _phase(rollout) + _since(rollout.phase_started, now), width)
    if rollout.started:
        yield from _field("began", since(rollout.started, now), width)
    yield from _field("step", _steps(reranker, rollout), width)
    yield from _field("requests", f"{rollout.requests} of users that it has answered", width)
    if rollout.paused:
        yield from _field("paused", rollout.paused, width)
    if rollout.message and not (rollout.paused and rollout.paused in rollout.message):
        yield from _field("message", rollout.message, width)
    yield ""
    yield from checks_table(rollout, width)
    if rollout.differed:
        yield ""
        yield from differed_table(rollout)


def _quality(found: QualityStatus, reranker: Reranker, now: datetime) -> str:
    """How the golden set was ranked, with what was promised."""
    _, _, k = found.metric.partition("@")
    # As the operator counts where the metric names no number.
    k = k or "10"
    figures = [f"nDCG@{k} {found.ndcg:.3f}", f"accuracy@{k} {found.accuracy:.3f}", f"MRR {found.mrr:.3f}"]
    if found.brier is not None and found.ece is not None:
        figures += [f"Brier {found.brier:.3f}", f"ECE {found.ece:.3f}"]
    promised = reranker.spec.slo.quality
    least = f"; {found.metric} is to be {promised.minimum:g} at least" if promised is not None else ""
    return f"{', '.join(figures)} of {found.queries} queries by {found.revision}, {since(found.time, now)}{least}"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _row(reranker: Reranker) -> list[str]:
    rollout, name = reranker.status.rollout, reranker.metadata.name
    if rollout is None:
        phase = "Rejected" if rejected(reranker) is not None else "-"
        return [name, phase, "-", "-", "-", reranker.status.current_revision or "-"]
    return [
        name,
        _phase(rollout),
        f"{rollout.percent} %",
        _step(reranker, rollout) or "-",
        str(rollout.requests),
        rollout.revision,
    ]


def _phase(rollout: RolloutStatus) -> str:
    return f"{rollout.phase} (paused)" if rollout.paused else rollout.phase


def _step(reranker: Reranker, rollout: RolloutStatus) -> str:
    """The step that it is in, of how many; 0 before the first, nothing after the last."""
    if rollout.phase in DECIDED:
        return ""
    total = len(reranker.spec.rollout.steps)
    return f"{min(rollout.step + (rollout.phase == 'Traffic'), total)}/{total}"


def _steps(reranker: Reranker, rollout: RolloutStatus) -> str:
    """The same with the percents, the present one in brackets; where it is decided, how many it has passed."""
    steps, within = reranker.spec.rollout.steps, rollout.phase == "Traffic"
    number = min(rollout.step + within, len(steps))
    percents = ", ".join(f"[{step}]" if within and at == number else str(step) for at, step in enumerate(steps, 1))
    passed = " passed" if rollout.phase in DECIDED else ""
    return f"{number} of {len(steps)}{passed} ({percents} %); {rollout.percent} % of the requests now"


def _since(text: str, now: datetime) -> str:
    return f", since {since(text, now)}" if text else ""


def _at(text: str, now: datetime) -> str:
    return f" at {since(text, now)}" if text else ""


def _age(seconds: float) -> str:
    """In the two largest units, as kubectl writes it."""
    whole = max(0, int(seconds))
    for unit, smaller, size, rest in (("d", "h", 86400, 3600), ("h", "m", 3600, 60), ("m", "s", 60, 1)):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // rest}{smaller}"
    return f"{whole}s"


def _field(label: str, text: str, width: int) -> list[str]:
    first = f"  {label.ljust(_LABEL)}"
    return wrapped(text, width, first, " " * len(first))


def wrapped(text: str, width: int, first: str, others: str | None = None) -> list[str]:
    """Long words (paths, revisions) stay whole, so that they can be copied."""
    return textwrap.wrap(
        text,
        width,
        initial_indent=first,
        subsequent_indent=first if others is None else others,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [first.rstrip()]
