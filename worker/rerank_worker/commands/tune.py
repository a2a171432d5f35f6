"""``rerank-worker tune``: what is fastest for this model on this machine, as a table and as settings to paste.

Decisions (what to recommend and why) are functions of what ``trials`` measured. Never prints a query or a document.
"""

import argparse
import itertools
import json
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rerank_api import names
from rerank_api.reranker import Backend
from rerank_api.worker_config import WorkerConfig

from rerank_worker import memory
from rerank_worker.commands import trials
from rerank_worker.commands.options import (
    INTERRUPTED,
    TERMINATED,
    Progress,
    Terminated,
    add_model,
    config_of,
    terminable,
)
from rerank_worker.commands.rows import Bad, Fields, JsonLines, Place, format_of
from rerank_worker.commands.trials import Contender, Measured, Trial
from rerank_worker.engine import Pair, capacity, select
from rerank_worker.engine.device import ChosenPrecision, available_cores
from rerank_worker.engine.quantization import sample
from rerank_worker.failures import ConfigurationFailure, EnvironmentFailure
from rerank_worker.loading import source
from rerank_worker.loading.checkpoint import Checkpoint
from rerank_worker.loading.model import open_checkpoint
from rerank_worker.server.serving import final_scores
from rerank_worker.tokenization import PairTokenizer

MAX_PAIRS = 10_000
"""Of a file: measuring takes a part of a day otherwise, and the text of all is in memory."""

BACKENDS: dict[str, Backend] = {"onnxruntime": "onnx", "openvino": "openvino"}
"""spec.runtime.backend of engines that are not torch's."""

REDUCED_GAIN = 1.1
"""A precision below float32, or an engine that needs an export, must be so many times as fast to be worth it."""

QUALITY_FLOOR = 0.99
"""Least nDCG@10 of a reduced precision; spec.runtime.qualityFloor's default."""

LARGEST_DIFFERENCE = 0.05
"""Of a final score to float32's, where the quality was not measured."""

MOST_NICE = 19

LIBRARIES_BYTES = 2**29
"""About what torch and its kin take, before any model."""

BAR = 40
"""Characters of the longest bar of the curve."""

_EXAMPLES = f"""\
examples:
  rerank-worker tune --model ./model
  rerank-worker tune --model ./model --pairs mine.jsonl --seconds 300 --json > tuned.json
  rerank-worker tune --model ./model --engines torch-flat torch-padded --precisions float32 --documents 100
  rerank-worker tune --batch-sizes 8 16 32 64 --token-budgets 1024 2048 4096 --nice 10 --seconds 60

Without --pairs the documents are random tokens of the model's own vocabulary, with lengths as real ones have them
(log-normal, 110 tokens a pair on average). A file for --pairs is what the command score takes: JSON lines of
{{"query": "...", "document": "..."}}. Precisions are judged by how they rank a few texts of the worker's own, or those
of the file where a query has several documents (nDCG@10, with float32's scores as the gains). It ends when --seconds
are over, loading included: what would not end in time is not begun, and the report tells so. Ctrl-C and SIGTERM end it
with what was measured so far. Run it on a machine that does nothing else, with the cores that the worker will have.

Without --model it measures the model of ${names.ENV_WORKER_CONFIG}, as in a worker's pod, with the engines and the
precision that its configuration names. --nice N lets a worker beside it go first: it runs at that niceness and leaves
one core to it, so the figures compare with each other, and not with what a worker alone can do. It ends before it
loads anything where the model would not fit into memory beside what is there.

exit codes: 0 done; 64 the options, the file or the model are wrong; 71 memory or device; 130 interrupted; 143 SIGTERM.
"""


def add_parser(commands: Any) -> None:
    """Add the command to ``commands``, the subparsers of rerank-worker."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "tune",
        help="measure engines, precisions and batch sizes for a model on this machine",
        description="Measure every engine, precision and batch size for a model here, and recommend settings.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--documents",
        type=int,
        help="candidates to score (default: all of --pairs; without it 50, or the largest of --batch-sizes if more)",
    )
    parser.add_argument("--pairs", type=Path, help="a .jsonl file of your own pairs, instead of synthetic ones")
    sizes = " ".join(map(str, trials.BATCH_SIZES))
    parser.add_argument("--batch-sizes", nargs="+", type=int, metavar="PAIRS", help=f"default: {sizes}")
    parser.add_argument("--token-budgets", nargs="+", type=int, metavar="TOKENS", help="default: some for the device")
    parser.add_argument(
        "--engines",
        nargs="+",
        choices=sorted(select.ENGINES),
        help="default: all; without --model those of the configuration's backend",
    )
    known = sorted({precision for found in trials.PRECISIONS.values() for precision in found})
    parser.add_argument(
        "--precisions",
        nargs="+",
        choices=known,
        help="default: those the device may gain from; without --model the configuration's",
    )
    parser.add_argument(
        "--seconds", type=float, default=120.0, help="when to end, loading included (default: %(default)s)"
    )
    parser.add_argument(
        "--nice",
        type=int,
        default=0,
        help="run at this niceness (1 to 19) and leave one core to others, beside a worker that serves "
        "(default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON instead of a table")
    add_model(parser, required=False)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Measure and print; the exit code. Raises a StartupFailure."""
    for flag in ("documents", "batch_sizes", "token_budgets"):
        value = getattr(arguments, flag)
        if value is not None and min(value if isinstance(value, list) else [value]) < 1:
            raise ConfigurationFailure(f"--{flag.replace('_', '-')} is less than 1")
    if arguments.seconds <= 0:
        raise ConfigurationFailure("--seconds must be more than 0")
    if not 0 <= arguments.nice <= MOST_NICE:
        raise ConfigurationFailure(f"--nice is {arguments.nice}: it must be from 0 to {MOST_NICE}")
    # What a contender cannot do is in the table, not between its lines.
    logging.getLogger("rerank_worker").setLevel(logging.ERROR)
    config = config_of(arguments, environment)
    with terminable():
        return _run(arguments, config)


def _run(arguments: argparse.Namespace, config: WorkerConfig) -> int:
    started = time.perf_counter()
    progress = Progress()
    found = Measured()
    code = 0
    try:
        progress.show("reading the model", now=True)
        _check_room(config)
        # Before torch makes its threads, which inherit it.
        os.nice(arguments.nice)
        threads = arguments.threads or max(1, available_cores() - bool(arguments.nice))
        checkpoint, tokenizer, activation = open_checkpoint(config, threads)
        pairs, judged = _pairs(arguments, checkpoint, tokenizer)
        engines, precisions = _contenders(arguments, config, checkpoint)
        try:
            trials.measure(
                checkpoint,
                pairs,
                engines,
                precisions,
                trials.ways(checkpoint.device, arguments.batch_sizes, arguments.token_budgets),
                max(0.0, arguments.seconds - (time.perf_counter() - started)),
                lambda logits: final_scores(logits, config.temperature, activation),
                judged,
                progress.show,
                found,
            )
        except KeyboardInterrupt as interrupt:
            code = _code(interrupt)
    except KeyboardInterrupt as interrupt:
        progress.end()
        print("interrupted before anything was measured", file=sys.stderr)
        return _code(interrupt)
    progress.end()
    report = as_json if arguments.json else as_text
    print(report(found, config, checkpoint, pairs, code != 0, arguments.nice))
    return code


def _check_room(config: WorkerConfig) -> None:
    """Raises EnvironmentFailure where one engine alone is not expected to fit into the host's memory, as its model is
    made there: in a container that runs out of it the kernel ends the server too."""
    folder = source.resolve(config.model)
    needed = LIBRARIES_BYTES + 2 * sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    if needed > (unused := memory.unused_host()):
        raise EnvironmentFailure(
            f"measuring takes about {needed / 2**30:.1f} GiB of memory (the weights twice, and the libraries) and "
            f"{unused / 2**30:.1f} GiB are free here: raise the memory limit (spec.runtime.resources), or measure "
            "where no worker runs"
        )


def _contenders(
    arguments: argparse.Namespace, config: WorkerConfig, checkpoint: Checkpoint
) -> tuple[list[str], list[ChosenPrecision]]:
    """Engines and precisions to measure: what was asked for, else of a model that was named all, and of the
    environment's those that its configuration may serve with."""
    named = arguments.model is not None
    engines = arguments.engines or list(select.ENGINES if named else select.candidates(config.backend))
    precisions = arguments.precisions or (trials.PRECISIONS[checkpoint.device] if named else [checkpoint.precision])
    return list(dict.fromkeys(engines)), list(dict.fromkeys(precisions))


def _code(interrupt: KeyboardInterrupt) -> int:
    return TERMINATED if isinstance(interrupt, Terminated) else INTERRUPTED


def _pairs(
    arguments: argparse.Namespace, checkpoint: Checkpoint, tokenizer: PairTokenizer
) -> tuple[list[Pair], list[list[Pair]]]:
    """What to score, and pairs by query to judge rankings by: those of the file that rank something, or the worker's
    own texts.

    Raises ConfigurationFailure when a file has none, or a row of it is bad.
    """
    if arguments.pairs is None:
        # So that a batch of the size that was asked for is one.
        count = arguments.documents or max(50, *(arguments.batch_sizes or [0]))
        return capacity.Sample.of(checkpoint, tokenizer).documents(count), sample.judged(checkpoint)
    path: Path = arguments.pairs
    if not path.is_file():
        raise ConfigurationFailure(f"--pairs {path} is no file")
    if format_of(path, "--pairs") != "jsonl":
        raise ConfigurationFailure(f"--pairs {path} must be JSON lines (.jsonl)")
    most = min(arguments.documents or MAX_PAIRS, MAX_PAIRS)
    pairs: list[Pair] = []
    groups: dict[str, list[Pair]] = {}
    for row, _ in JsonLines(path, Fields("query", "document", "")).rows(Place()):
        if isinstance(row, Bad):
            raise ConfigurationFailure(f"--pairs {path}, line {row.number}: {row.reason}")
        query = tokenizer.query(row.query)
        if tokenizer.room(query) < 1:
            raise ConfigurationFailure(f"--pairs {path}, line {row.number}: the query leaves no room for a document")
        found = [tokenizer.pair(query, document)[0] for document in tokenizer.documents(row.documents)]
        pairs += found
        groups.setdefault(row.query, []).extend(found)
        if len(pairs) >= most:
            break
    if not pairs:
        raise ConfigurationFailure(f"--pairs {path} has no pairs")
    ranking = [group for group in groups.values() if len(group) > 1]
    return pairs[:most], ranking or sample.judged(checkpoint)


def acceptable(contender: Contender) -> bool:
    """Whether its scores are near enough to float32's."""
    if contender.precision == "float32":
        return True
    if contender.quality is not None:
        return contender.quality >= QUALITY_FLOOR
    return contender.difference is not None and contender.difference <= LARGEST_DIFFERENCE


def recommend(measured: Sequence[Trial]) -> tuple[Trial, str] | None:
    """The trial whose settings to use, and why; None where no token budget was measured.

    The plain choice is torch in float32; anything else must be faster by more than it costs to have. Of budgets that
    are equally fast the smallest is taken, which keeps others waiting for the shortest time.
    """
    usable = [trial for trial in measured if trial.way.unit == "tokens" and acceptable(trial.contender)]
    if not usable:
        return None

    def best(of: Sequence[Trial]) -> Trial:
        fastest = max(trial.pairs_per_second for trial in of)
        near = [trial for trial in of if trial.pairs_per_second >= fastest * (1 - capacity.SAME_SPEED)]
        return min(near, key=lambda trial: (trial.way.size, -trial.pairs_per_second))

    def plain(trial: Trial) -> bool:
        return trial.contender.precision == "float32" and trial.contender.name not in BACKENDS

    chosen = best(usable)
    plainest = [trial for trial in usable if plain(trial)]
    if not plainest:
        return chosen, f"{_name(chosen)} is the fastest that was measured ({_speed(chosen)})"
    usual = best(plainest)
    gain = chosen.pairs_per_second / usual.pairs_per_second
    if plain(chosen):
        return chosen, f"{_name(chosen)} is the fastest ({_speed(chosen)}) of all whose scores are near float32's"
    if gain < REDUCED_GAIN:
        return usual, (
            f"{_name(usual)} ({_speed(usual)}) is as fast as {_name(chosen)} but for {max(gain - 1, 0):.0%}, which is "
            "not worth its cost in scores or in starting"
        )
    return chosen, (
        f"{_name(chosen)} ({_speed(chosen)}) is {gain:.2f} times as fast as {_name(usual)} ({_speed(usual)})"
        + _price(chosen.contender)
    )


def _price(contender: Contender) -> str:
    if contender.precision == "float32":
        return ", with the same scores"
    if contender.quality is not None:
        return f", with an nDCG@10 of {contender.quality:.4f} where float32's ranking is 1"
    return f", with scores at most {contender.difference:.4f} from float32's"


def best_batch_size(measured: Sequence[Trial]) -> Trial | None:
    """The fastest of the batch sizes counted in pairs."""
    counted = [trial for trial in measured if trial.way.unit == "pairs" and acceptable(trial.contender)]
    return max(counted, key=lambda trial: trial.pairs_per_second, default=None)


def settings(trial: Trial, config: WorkerConfig, checkpoint: Checkpoint) -> str:
    """The spec of a Reranker that serves as ``trial`` did: YAML."""
    lines = ["spec:"]
    if config.max_length is not None:
        lines += ["  model:", f"    maxLength: {config.max_length}"]
    lines += [
        "  runtime:",
        f"    device: {checkpoint.device}",
        f"    backend: {BACKENDS.get(trial.contender.name, 'torch')}",
        f"    precision: {trial.contender.precision}",
        "  batching:",
        f"    maxBatchTokens: {trial.way.size}",
        f"    lengthBucket: {checkpoint.length_bucket}",
    ]
    return "\n".join(lines)


def as_text(
    found: Measured,
    config: WorkerConfig,
    checkpoint: Checkpoint,
    pairs: Sequence[Pair],
    interrupted: bool,
    nice: int = 0,
) -> str:
    """Tables and a recommendation, for people."""
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
        told = [f"  {contender.name} {contender.precision}: {contender.reason}" for contender in refused]
        parts.append("\n".join(["not served here:", *told]))
    parts += _notes(found, interrupted)
    if nice:
        parts.append(
            f"Measured at niceness {nice}, beside whatever else runs here: the figures compare with each other, and "
            "are not what a worker alone can do."
        )
    size = best_batch_size(found.trials)
    if size is not None:
        sizes = sorted({trial.way.size for trial in found.trials if trial.way.unit == "pairs"})
        parts.append(
            f"Of batch sizes {', '.join(map(str, sizes))}, {size.way.size} is the fastest: "
            f"{1000 * size.median:.1f} ms for {len(pairs)} pairs ({_name(size)})."
        )
    recommended = recommend(found.trials)
    parts += curves(found.trials, recommended[0].contender if recommended else size.contender if size else None)
    if recommended is not None:
        trial, why = recommended
        parts += [f"Recommended: {why}.", settings(trial, config, checkpoint)]
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


def as_json(
    found: Measured,
    config: WorkerConfig,
    checkpoint: Checkpoint,
    pairs: Sequence[Pair],
    interrupted: bool,
    nice: int = 0,
) -> str:
    """The same for programs."""
    recommended = recommend(found.trials)
    size = best_batch_size(found.trials)
    content = {
        "model": checkpoint.folder.name,
        "architecture": checkpoint.architecture,
        "device": checkpoint.device,
        "threads": checkpoint.threads,
        "maxLength": checkpoint.max_length,
        "lengthBucket": checkpoint.length_bucket,
        "pairs": len(pairs),
        "tokens": sum(map(len, pairs)),
        "interrupted": interrupted,
        "nice": nice,
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
            "yaml": settings(recommended[0], config, checkpoint),
        },
    }
    return json.dumps(content, indent=2)


def _name(trial: Trial) -> str:
    return f"{trial.contender.name} in {trial.contender.precision} with batches of {trial.way}"


def _speed(trial: Trial) -> str:
    return f"{trial.pairs_per_second:.1f} pairs/s"


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
