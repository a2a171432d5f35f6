"""What ``tune`` prints: tables, curves and a recommendation for people, the same as JSON for programs. Pure; holds no
text of a query or document."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass

from rerank_api.worker_config import WorkerConfig

from rerank_worker.commands import advice, trials
from rerank_worker.commands.trials import Contender, Measured, Trial
from rerank_worker.engine import Pair
from rerank_worker.failures import one_line
from rerank_worker.loading.checkpoint import Checkpoint

BAR = 40
"""Characters of the longest bar of the curve."""


@dataclass(frozen=True, slots=True)
class Run:
    """What was found, with which model, on what; ``interrupted``: before its end."""

    found: Measured
    config: WorkerConfig
    checkpoint: Checkpoint
    pairs: Sequence[Pair]
    interrupted: bool
    nice: int = 0


def as_text(run: Run) -> str:
    """Tables and a recommendation, for people."""
    found, checkpoint, pairs = run.found, run.checkpoint, run.pairs
    tokens = sum(map(len, pairs))
    parts = [
        f"{len(pairs)} pairs, {tokens} tokens ({tokens / len(pairs):.0f} a pair), {checkpoint.architecture} on "
        f"{checkpoint.device} with {checkpoint.threads} threads"
    ]
    rows = [
        [
            trial.contender.name,
            trial.contender.precision,
            str(trial.way),
            f"{trial.batches}",
            f"{1000 * trial.median:.1f}",
            f"{trial.spread:.0%}" if len(trial.settled) > 1 else "",
            f"{1000 * trial.p95_batch_seconds:.1f}",
            f"{trial.pairs_per_second:.1f}",
            f"{trial.tokens_per_second:.0f}",
            f"{trial.padding:.0%}",
        ]
        for trial in sorted(found.trials, key=lambda trial: _place(trial, found))
    ]
    head = [
        "engine",
        "precision",
        "batches of",
        "batches",
        "ms",
        "spread",
        "p95 batch ms",
        "pairs/s",
        "tokens/s",
        "padding",
    ]
    if rows:
        parts.append(_table(head, rows, left=3))
    serving = [contender for contender in found.contenders if contender.load_seconds is not None]
    if serving:
        head = ["engine", "precision", "load s", "score difference", "nDCG@10"]
        parts.append(
            _table(
                head,
                [
                    [
                        contender.name,
                        contender.precision,
                        f"{contender.load_seconds:.2f}",
                        "" if contender.difference is None else f"{contender.difference:.2g}",
                        "" if contender.quality is None else f"{contender.quality:.4f}",
                    ]
                    for contender in serving
                ],
                left=2,
            )
        )
    refused = [contender for contender in found.contenders if contender.reason not in (None, trials.NO_TIME)]
    if refused:
        told = [f"  {one.name} {one.precision}: {one_line(str(one.reason))}" for one in refused]
        parts.append("\n".join(["not served here:", *told]))
    parts += _notes(found, run.interrupted)
    if run.nice:
        parts.append(
            f"Measured at niceness {run.nice}, beside whatever else runs here: the figures compare with each other, "
            "and are not what a worker alone can do."
        )
    size = advice.best_batch_size(found.trials)
    if size is not None:
        sizes = sorted({trial.way.size for trial in found.trials if trial.way.unit == "pairs"})
        parts.append(
            f"Of batch sizes {', '.join(map(str, sizes))}, {size.way.size} is the fastest: "
            f"{1000 * size.median:.1f} ms for {len(pairs)} pairs ({advice.name_of(size)})."
        )
    recommended = advice.recommend(found.trials)
    parts += curves(found.trials, recommended[0].contender if recommended else size.contender if size else None)
    if recommended is not None:
        trial, why = recommended
        parts += [f"Recommended: {why}.", advice.settings(trial, run.config, checkpoint)]
    return "\n\n".join(parts)


def curves(measured: Sequence[Trial], of: Contender | None) -> list[str]:
    """Speed by batch size and by token budget, as bars of text; none where fewer than two were measured."""
    own = [trial for trial in measured if trial.contender is of]
    found = []
    for unit, title in (("pairs", "batch size"), ("tokens", "token budget")):
        points = sorted((trial for trial in own if trial.way.unit == unit), key=lambda trial: trial.way.size)
        if len(points) < 2:
            continue
        fastest = max(trial.pairs_per_second for trial in points)
        head = [title, "pairs/s", "p95 batch ms", ""]
        rows = [
            [
                str(trial.way),
                f"{trial.pairs_per_second:.1f}",
                f"{1000 * trial.p95_batch_seconds:.1f}",
                ("#" * round(BAR * trial.pairs_per_second / fastest)).ljust(BAR),
            ]
            for trial in points
        ]
        contender = points[0].contender
        found.append(f"{contender.name} in {contender.precision}:\n" + _table(head, rows, left=0))
    return found


def _place(trial: Trial, found: Measured) -> tuple[int, int, str, int]:
    """Where a trial stands in the table: an engine's precisions together."""
    engines = [contender.name for contender in found.contenders]
    contender = trial.contender
    return engines.index(contender.name), found.contenders.index(contender), trial.way.unit, trial.way.size


def _notes(found: Measured, interrupted: bool) -> list[str]:
    notes = []
    if interrupted:
        notes.append("Interrupted: this is what was measured until then.")
    late = [f"{one.name} in {one.precision}" for one in found.contenders if one.reason == trials.NO_TIME]
    if late:
        notes.append(f"There was no time for {', '.join(late)}: raise --seconds, or name fewer --engines.")
    if found.unmeasured:
        notes.append(
            f"{found.unmeasured} more rows would not have ended in time: raise --seconds, or name fewer --engines."
        )
    if not found.interleaved:
        notes.append("The engines do not fit into memory together: each was measured by itself, one after the other.")
    return notes


def as_json(run: Run) -> str:
    """The same for programs."""
    found, checkpoint, pairs = run.found, run.checkpoint, run.pairs
    recommended = advice.recommend(found.trials)
    size = advice.best_batch_size(found.trials)
    content = {
        "model": checkpoint.folder.name,
        "architecture": checkpoint.architecture,
        "device": checkpoint.device,
        "threads": checkpoint.threads,
        "maxLength": checkpoint.max_length,
        "lengthBucket": checkpoint.length_bucket,
        "pairs": len(pairs),
        "tokens": sum(map(len, pairs)),
        "interrupted": run.interrupted,
        "nice": run.nice,
        "interleaved": found.interleaved,
        "unmeasured": found.unmeasured,
        "engines": [
            {
                "engine": contender.name,
                "precision": contender.precision,
                "reason": contender.reason,
                "loadSeconds": contender.load_seconds,
                "scoreDifference": contender.difference,
                "ndcg10": contender.quality,
            }
            for contender in found.contenders
        ],
        "trials": [
            {
                "engine": trial.contender.name,
                "precision": trial.contender.precision,
                "unit": trial.way.unit,
                "size": trial.way.size,
                "batches": trial.batches,
                "padding": trial.padding,
                "seconds": trial.seconds,
                "medianSeconds": trial.median,
                "spread": trial.spread,
                "p95BatchSeconds": trial.p95_batch_seconds,
                "pairsPerSecond": trial.pairs_per_second,
                "tokensPerSecond": trial.tokens_per_second,
            }
            for trial in found.trials
        ],
        "fastestBatchSize": None if size is None else size.way.size,
        "recommended": None
        if recommended is None
        else {
            "engine": recommended[0].contender.name,
            "precision": recommended[0].contender.precision,
            "maxBatchTokens": recommended[0].way.size,
            "tokensPerSecond": recommended[0].tokens_per_second,
            "reason": recommended[1],
            "yaml": advice.settings(recommended[0], run.config, checkpoint),
        },
    }
    return json.dumps(content, indent=2)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    """Columns as wide as they need; the first ``left`` are texts, the others numbers."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = []
    for row in itertools.chain([head], rows):
        cells = [
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
