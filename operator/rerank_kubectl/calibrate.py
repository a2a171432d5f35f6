"""What labels and logits say of a Reranker's temperature: figures before and after, remarks, the patch. Pure.

The figures of "after" are of queries that the temperature was not fitted to, wherever there are enough.
"""

import json
import shlex
from collections.abc import Sequence
from typing import Any

import msgspec
from rerank_api.reranker import Reranker
from rerank_operator.rollout.golden import calibration
from rerank_operator.rollout.golden.calibration import HIGHEST, LOWEST, Bin, Labelled
from rerank_operator.rollout.golden.golden_set import LabelledQuery

from rerank_kubectl.commands import Call
from rerank_kubectl.rendering import in_full, table, wrapped
from rerank_kubectl.state import canary, observed

FEWEST = 30
"""Relevant documents, and others: with 30 of 240 the fitted temperature varies by 14 % (one sigma, 200 draws)."""
FEWEST_QUERIES = 10
DIGITS = 4
"""Of the temperature that is proposed."""
SAME = 0.01
"""Temperatures that differ by a smaller share change no score by more than 0.003."""
SHIFT = 0.05
"""Between mean score and share of relevant documents."""
BAR = 30


class Figures(msgspec.Struct, frozen=True, rename="camel"):
    """Of scores against labels; less is better, of all three."""

    temperature: float | None
    """None: each query has that of its fold."""
    log_loss: float
    brier: float
    ece: float
    ece_by_chance: float
    """About what the ECE of true probabilities would be, with as many labels."""
    mean_score: float
    bins: list[Bin]


class Report(msgspec.Struct, frozen=True, rename="camel"):
    namespace: str
    name: str
    revision: str
    labels: str
    """Where they are from."""
    worker: str
    activation: str
    queries: int
    documents: int
    relevant: int
    temperature: float
    """In force in the worker."""
    fitted: float
    before: Figures
    after: Figures
    """On the labels that it was fitted to."""
    validated: Figures | None
    """Of queries under a temperature that was fitted without them; None: too few queries."""
    folds: list[float]
    """The temperatures of the folds."""
    doubts: list[str]
    """Why the fitted temperature should not be applied, a sentence each."""
    notes: list[str]


def labelled(queries: Sequence[LabelledQuery], logits: Sequence[Sequence[float]]) -> list[Labelled]:
    """Relevant is what has a label above 0."""
    return [
        Labelled(found, [label > 0 for label in query.labels]) for query, found in zip(queries, logits, strict=True)
    ]


def report(
    reranker: Reranker,
    revision: str,
    labels: str,
    worker: str,
    activation: str,
    temperature: float,
    queries: Sequence[Labelled],
) -> Report:
    """``queries``: with labels of both kinds, as ``one_kind`` makes sure of."""
    logits, relevant = calibration.flat(queries)
    fitted = min(max(float(f"{calibration.fit_temperature(logits, relevant):.{DIGITS}g}"), LOWEST), HIGHEST)
    folds = calibration.cross_validated(queries)
    before, after = _figures(queries, [temperature] * len(queries)), _figures(queries, [fitted] * len(queries))
    validated = _figures(queries, folds) if folds is not None else None
    found = Report(
        namespace=reranker.metadata.namespace,
        name=reranker.metadata.name,
        revision=revision,
        labels=labels,
        worker=worker,
        activation=activation,
        queries=len(queries),
        documents=len(relevant),
        relevant=sum(relevant),
        temperature=temperature,
        fitted=fitted,
        before=before,
        after=after,
        validated=validated,
        folds=sorted(set(folds)) if folds is not None else [],
        doubts=[],
        notes=[],
    )
    return msgspec.structs.replace(found, doubts=_doubts(found, reranker), notes=_notes(found))


def one_kind(queries: Sequence[LabelledQuery]) -> str | None:
    """Why nothing can be fitted to these labels; None: something can."""
    kinds = {label > 0 for query in queries for label in query.labels}
    if len(kinds) == 2:
        return None
    what = "relevant" if True in kinds else "not relevant"
    count = sum(len(query.labels) for query in queries)
    return f"all {count} labels say {what}: a temperature needs documents of both kinds"


def patch(found: Report) -> dict[str, Any]:
    return {"spec": {"model": {"temperature": found.fitted}}}


def same(found: Report) -> bool:
    """Whether there is nothing to change."""
    return abs(found.fitted / found.temperature - 1) < SAME


def patch_command(found: Report, call: Call) -> str:
    words = ["kubectl", "patch", "reranker", found.name, "-n", found.namespace, "--type=merge", "-p"]
    return shlex.join([*words, json.dumps(patch(found), separators=(",", ":")), *call.flags()])


def page(found: Report, call: Call, width: int = 80) -> str:
    share = found.relevant / found.documents
    lines = [
        f"Calibration of {found.namespace}/{found.name}, revision {found.revision}",
        f"  worker    {found.worker} (activation {found.activation})",
        *wrapped(
            f"{found.documents} documents of {found.queries} queries: {found.labels}", width, "  labels    ", " " * 12
        ),
        f"            {found.relevant} are relevant ({share:.1%})",
        "",
        *_measures(found),
        "",
    ]
    shown = found.validated if found.validated is not None else found.after
    how = "other queries" if found.validated is not None else "the labels it was fitted to"
    lines += [f"In force, temperature {found.temperature:g}", *_diagram(found.before.bins), ""]
    lines += [f"Fitted, temperature {found.fitted:g}, on {how}", *_diagram(shown.bins), ""]
    lines += ["  # the share that is relevant, | the mean score: right is a bar up to its |", ""]
    for kind, texts in (("Doubt", found.doubts), ("Note", found.notes)):
        for text in texts:
            lines += wrapped(f"{kind}: {text}", width, "", "  ")
    if same(found):
        lines.append("Nothing to change: the temperature in force is the fitted one.")
    else:
        lines += ["To set it, as a new revision that is rolled out as any other:", f"  {patch_command(found, call)}"]
    return "\n".join(lines) + "\n"


def as_json(found: Report, call: Call) -> dict[str, Any]:
    return in_full(found) | {"patch": patch(found), "command": patch_command(found, call)}


def _figures(queries: Sequence[Labelled], temperatures: Sequence[float]) -> Figures:
    scaled = [
        logit / temperature for query, temperature in zip(queries, temperatures, strict=True) for logit in query.logits
    ]
    relevant = [label for query in queries for label in query.relevant]
    scores = [calibration.probability(value) for value in scaled]
    return Figures(
        temperature=temperatures[0] if len(set(temperatures)) == 1 else None,
        log_loss=calibration.negative_log_likelihood(scaled, relevant, 1.0),
        brier=calibration.brier(scores, relevant),
        ece=calibration.ece(scores, relevant),
        ece_by_chance=calibration.ece_by_chance(scores),
        mean_score=sum(scores) / len(scores),
        bins=calibration.bins(scores, relevant),
    )


def _doubts(found: Report, reranker: Reranker) -> list[str]:
    others = found.documents - found.relevant
    doubts = []
    if found.activation != "sigmoid":
        doubts.append(
            "the activation is identity: users get logits over the temperature, which are no probabilities with any "
            "temperature; the figures are of their sigmoid. Set spec.model.activation to sigmoid, too"
        )
    if found.fitted <= LOWEST:
        doubts.append(
            f"the fitted temperature is at its bound, {LOWEST:g}: the labels are told apart without an error, so that "
            "no score is sure enough. More labels, and harder ones, would tell"
        )
    if found.fitted >= HIGHEST:
        doubts.append(
            f"the fitted temperature is at its bound, {HIGHEST:g}, where every score is about 0.5: the scores do not "
            "tell these labels apart, or lie on one side of zero, which no temperature mends"
        )
    if min(found.relevant, others) < FEWEST or found.queries < FEWEST_QUERIES:
        doubts.append(
            f"too few labels: {found.relevant} relevant ones and {others} others of {found.queries} queries; give at "
            f"least {FEWEST} of each and {FEWEST_QUERIES} queries"
        )
    if found.validated is None:
        doubts.append("too few queries to test the temperature on queries that it was not fitted to")
    elif found.validated.log_loss >= found.before.log_loss and not same(found):
        doubts.append(
            "on queries that it was not fitted to, the temperature is no better than the one in force: "
            f"log loss {found.validated.log_loss:.4f}, in force {found.before.log_loss:.4f}"
        )
    if not observed(reranker):
        doubts.append("the operator has not read the latest spec yet: a patch would change a spec that does not serve")
    elif reranker.status.updated_revision not in (None, found.revision):
        doubts.append(
            f"the spec asks for revision {reranker.status.updated_revision} and not for {found.revision}, which was "
            "asked here: a patch would change the other one"
        )
    if canary(reranker) is not None:
        doubts.append("a rollout goes on, which a patch would replace by one of another revision")
    return doubts


def _notes(found: Report) -> list[str]:
    share, figures = found.relevant / found.documents, found.validated or found.after
    notes = []
    if abs(figures.mean_score - share) > max(SHIFT, 2 * figures.ece_by_chance):
        notes.append(
            f"the mean score is {figures.mean_score:.2f}, and {share:.2f} of the documents are relevant: a temperature "
            "stretches scores about 0.5 and does not shift them, so part of the error stays"
        )
    if figures.ece <= figures.ece_by_chance:
        notes.append("the ECE that is left is no larger than chance makes it with so many labels")
    return notes


def _measures(found: Report) -> list[str]:
    rows = [["", "temperature", "log loss", "Brier", "ECE"], _row("in force", f"{found.temperature:g}", found.before)]
    if found.validated is not None:
        spread = f"{found.folds[0]:.3g} to {found.folds[-1]:.3g}"
        rows.append(_row("fitted, on other queries", spread, found.validated))
    rows.append(_row("fitted, on the same labels", f"{found.fitted:g}", found.after))
    chance = f"(an ECE of about {(found.validated or found.after).ece_by_chance:.4f} is chance)"
    return [f"  {line}" for line in [*table(rows).splitlines(), chance]]


def _row(label: str, temperature: str, figures: Figures) -> list[str]:
    return [label, temperature, f"{figures.log_loss:.4f}", f"{figures.brier:.4f}", f"{figures.ece:.4f}"]


def _diagram(bins: Sequence[Bin]) -> list[str]:
    """A line for each bin. A bar that ends at its mark is a bin that tells the truth."""
    rows = [["SCORE", "COUNT", "MEAN", "RELEVANT", ""]]
    for one in bins:
        place = f"{one.low:.1f}-{one.low + 0.1:.1f}"
        if one.score is None or one.relevant is None:
            rows.append([place, "0", "-", "-", ""])
            continue
        mark, bar = min(int(one.score * BAR), BAR - 1), round(one.relevant * BAR)
        drawn = "".join("|" if at == mark else "#" if at < bar else "." for at in range(BAR))
        rows.append([place, str(one.count), f"{one.score:.3f}", f"{one.relevant:.3f}", drawn])
    return [f"  {line}" for line in table(rows).splitlines()]
