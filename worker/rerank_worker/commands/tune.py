"""``rerank-worker tune``: what is fastest for this model on this machine, as a table and as settings to paste.

``trials`` measures, ``advice`` decides what to recommend and why, ``tune_report`` says so. Never prints a query or a
document.
"""

import argparse
import logging
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rerank_api import names
from rerank_api.worker_config import WorkerConfig

from rerank_worker import memory
from rerank_worker.commands import trials, tune_report
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
from rerank_worker.commands.trials import Measured
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
"""Measuring takes a part of a day otherwise, and all are in memory."""

MOST_NICE = 19

LIBRARIES_BYTES = 2**29
"""About what torch and its kin take, before any model."""

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
    for flag, most in (("documents", arguments.documents), ("batch-sizes", max(arguments.batch_sizes or [0]))):
        if most is not None and most > MAX_PAIRS:
            raise ConfigurationFailure(f"--{flag} is more than {MAX_PAIRS:,}")
    if not arguments.seconds > 0:  # nor is nan
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
    report = tune_report.as_json if arguments.json else tune_report.as_text
    print(report(tune_report.Run(found, config, checkpoint, pairs, code != 0, arguments.nice)))
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
    most = arguments.documents or MAX_PAIRS
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
