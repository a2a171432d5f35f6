"""Requests that gateways have captured, out of their logs: as text for a terminal. Pure.

What is shown was redacted and cut by the gateway; nothing is asked for that was not logged. Whoever may write a
gateway's log may have written any of it: no field of it moves a terminal's cursor.
"""

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence

import msgspec
from rerank_api.reranker import Reranker

from rerank_kubectl.commands import Call
from rerank_kubectl.rendering import one_line, table, wrapped

GATEWAYS = "app.kubernetes.io/part-of=rerank,app.kubernetes.io/component=gateway"
LOGGER = "rerank_gateway.capture"
DISAGREEMENT = "canary_disagreement"


class Sample(msgspec.Struct, frozen=True):
    """One line of a gateway's log; a newer gateway's further fields are left out."""

    time: str
    logger: str
    id: str
    namespace: str
    reranker: str
    revision: str
    reason: str
    query: str
    documents: list[str]
    scores: list[float]
    """Of all documents, also of those that were not captured."""
    trace_id: str | None = None
    canary: str = ""
    """The revision that was asked too, of a disagreement; what follows is of it."""
    canary_scores: list[float] | None = None
    agreement: float | None = None
    drift: float | None = None


class Line(msgspec.Struct, frozen=True):
    text: str
    """As the gateway wrote it."""
    sample: Sample
    gateway: str
    """Namespace and pod whose log has it."""


_decoder = msgspec.json.Decoder(Sample)


def read(logs: Mapping[str, Sequence[str]], reranker: Reranker, disagreements: bool) -> list[Line]:
    """Those of this Reranker, oldest first. ``logs``: lines by gateway. ``disagreements``: only mirrored ones that a
    canary ranked otherwise."""
    owner, found = reranker.metadata, []
    for gateway, text in ((gateway, text) for gateway, lines in logs.items() for text in lines):
        try:
            sample = _decoder.decode(text)
        except msgspec.DecodeError:
            continue  # another logger's line, or one that a log's rotation has cut
        if sample.logger != LOGGER or (sample.namespace, sample.reranker) != (owner.namespace, owner.name):
            continue
        if sample.reason == DISAGREEMENT or not disagreements:
            found.append(Line(text, sample, gateway))
    return sorted(found, key=lambda line: line.sample.time)


def page(lines: Iterable[Line], width: int = 80) -> str:
    """Each with its documents, best first."""
    return "\n".join(_sample(line.sample, line.gateway, width) for line in lines)


def none_found(reranker: Reranker, gateways: int, since: float, disagreements: bool, call: Call) -> str:
    """Why there is nothing to show, and what to do."""
    metadata, capture = reranker.metadata, reranker.spec.observability.capture
    if capture is None:
        patch = json.dumps({"spec": {"observability": {"capture": {"percent": 1}}}}, separators=(",", ":"))
        words = ["kubectl", "patch", "reranker", metadata.name, "-n", metadata.namespace, "--type=merge", "-p", patch]
        return (
            f"{metadata.namespace}/{metadata.name} captures nothing: to have 1 % of its requests written to the "
            f"gateways' logs, redacted, with the users' consent: {shlex.join([*words, *call.flags()])}"
        )
    what = "request that a canary ranked otherwise" if disagreements else "request"
    return (
        f"the logs of {gateways} gateways hold no captured {what} of {metadata.namespace}/{metadata.name} of the last "
        f"{since:g} s: {capture.percent:g} % are captured, {capture.max_per_minute} a minute and gateway at most "
        "(spec.observability.capture.maxPerMinute), and a gateway that was started anew has a new log"
    )


def _sample(sample: Sample, gateway: str, width: int) -> str:
    lines = [
        one_line(f"{sample.time}  {sample.id}  {sample.reason}"),
        one_line(f"  gateway  {gateway}"),
        one_line(f"  revision {sample.revision}"),
        *([one_line(f"  canary   {sample.canary}, {_differs(sample)}")] if sample.canary else []),
        *([one_line(f"  trace    {sample.trace_id}")] if sample.trace_id else []),
        *wrapped(one_line(sample.query), width, "  query    ", " " * 11),
    ]
    canary = sample.canary_scores
    ranked = sorted(range(len(sample.documents)), key=lambda index: -_at(sample.scores, index))
    rows = [["SCORE", *(["CANARY"] if canary is not None else []), "DOCUMENT"]]
    for index in ranked:
        scores = [_score(sample.scores, index), *([_score(canary, index)] if canary is not None else [])]
        rows.append([*scores, one_line(sample.documents[index])])
    lines += [f"  {line}"[:width] for line in table(rows).splitlines()]
    if len(sample.scores) > len(sample.documents):
        lines.append(f"  and {len(sample.scores) - len(sample.documents)} documents more, which were not captured")
    return "\n".join(lines) + "\n"


def _differs(sample: Sample) -> str:
    order = "no order to compare" if sample.agreement is None else f"agreement {sample.agreement:.3f}"
    return order if sample.drift is None else f"{order}, largest difference {sample.drift:.3f}"


def _at(scores: list[float], index: int) -> float:
    return scores[index] if index < len(scores) else float("-inf")


def _score(scores: list[float], index: int) -> str:
    return f"{scores[index]:.4f}" if index < len(scores) else "-"
