"""``rerank-worker score``: offline scoring of a file of pairs, with the engine, tokenizer and batches of serving.

Reading and tokenizing the next chunk overlap computing this one. A chunk counts once its scores are on the disk, so a
run that is killed goes on after the last one; scores never depend on where that was, nor on the pairs beside them
beyond rounding. Never prints a query or a document.
"""

import argparse
import itertools
import math
import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rerank_api.worker_config import WorkerConfig

from rerank_worker import chunking
from rerank_worker.commands.journal import Journal, checksum
from rerank_worker.commands.options import INTERRUPTED, Progress, add_engine, add_model, config_of, duration
from rerank_worker.commands.rows import Bad, Fields, Place, Reader, Result, Row, format_of, reader
from rerank_worker.engine import Pair
from rerank_worker.engine.device import available_cores
from rerank_worker.failures import ConfigurationFailure, EnvironmentFailure
from rerank_worker.loading.model import Loaded, load
from rerank_worker.metrics import Metrics
from rerank_worker.scheduler import EngineThread, Failed, Outcome, Work
from rerank_worker.server.serving import final_scores
from rerank_worker.tokenization import PairTokenizer

CHUNK_PAIRS = 16_384
CHUNK_CHARACTERS = 32 * 2**20
"""A chunk ends at so many pairs or characters, though it has fewer rows: long lists must not fill the memory."""

STALL_SECONDS = 600.0
"""A batch that takes longer counts as stuck. Nobody waits for an answer here, so it is more than serving allows."""

AHEAD = 2
"""Chunks that are tokenized before the one before them is computed."""

TASK_DOCUMENTS = 64
"""Documents that one thread tokenizes at a time."""

_EXAMPLES = """\
input:
  JSON lines (.jsonl): {"query": "...", "document": "..."} a line, with any other fields; or Parquet (.parquet) with
  such columns. The document may be a list of texts: the score is a list then. Blank lines are no rows.
output:
  the rows of the input in their order, with the field score added; a file appears when all is scored. Killed at any
  moment, the same command goes on after the last complete chunk (OUTPUT.part and OUTPUT.progress hold it until then).

examples:
  rerank-worker score --model ./model --input pairs.jsonl --output scored.jsonl
  rerank-worker score --model ./model --input pairs.parquet --output scored.parquet --score-field relevance
  rerank-worker score --model ./model --input pairs.jsonl --output raw.jsonl --raw-scores --skip-bad --precision int8

exit codes: 0 done; 64 the options, the file or the model are wrong; 71 memory, disk or device; 130 interrupted.
"""


def add_parser(commands: Any) -> None:
    """Add the command to ``commands``, the subparsers of rerank-worker."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "score",
        help="score a file of pairs offline",
        description="Score a file of (query, document) pairs: resumable, with the scores that serve would give.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--input", type=Path, required=True, help="a .jsonl or .parquet file")
    parser.add_argument("--output", type=Path, required=True, help="a .jsonl file, or .parquet where the input is one")
    parser.add_argument("--query-field", default="query", help="default: %(default)s")
    parser.add_argument("--document-field", default="document", help="default: %(default)s")
    parser.add_argument("--score-field", default="score", help="default: %(default)s")
    parser.add_argument(
        "--batch-rows",
        type=int,
        default=2048,
        help="rows among which pairs of like length are batched; also what a killed run loses (default: %(default)s)",
    )
    parser.add_argument("--raw-scores", action="store_true", help="the model's logits, without activation")
    parser.add_argument("--skip-bad", action="store_true", help="give rows that cannot be scored a null and an error")
    parser.add_argument("--restart", action="store_true", help="forget a run that was begun; replace the output")
    add_model(parser)
    add_engine(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Score the file; the exit code. Raises a StartupFailure."""
    source, output = arguments.input, arguments.output
    if arguments.batch_rows < 1:
        raise ConfigurationFailure("--batch-rows is less than 1")
    if not source.is_file():
        raise ConfigurationFailure(f"--input {source} is no file")
    try:
        source.open("rb").close()
    except OSError as error:
        raise ConfigurationFailure(f"--input {source} cannot be read: {error.strerror}") from error
    if output.is_dir():
        raise ConfigurationFailure(f"--output {output} is a folder: name a file in it")
    if not output.parent.is_dir():
        raise ConfigurationFailure(f"--output {output}: there is no folder {output.parent}")
    if output.exists() and output.samefile(source):
        raise ConfigurationFailure("--input and --output are the same file")
    fields = Fields(arguments.query_field, arguments.document_field, arguments.score_field)
    if len({fields.query, fields.document, fields.score}) < 3:
        raise ConfigurationFailure("--query-field, --document-field and --score-field must be three names")
    if fields.score == "error":
        raise ConfigurationFailure("--score-field is error, which is for the reason of a bad row: choose another name")
    rows = reader(source, format_of(output, "--output"), fields)
    config = config_of(arguments, environment)
    journal = Journal(output, arguments.restart)
    progress = Progress()
    try:
        return _run(arguments, config, rows, journal, progress)
    except OSError as error:
        # Of the disk: engines and loading have failures of their own.
        raise EnvironmentFailure(f"{error}: make room or mend it, and run the command again to go on") from error
    except KeyboardInterrupt:
        progress.end()
        print(f"interrupted after {journal.done.rows} rows: run the command again to go on", file=sys.stderr)
        return INTERRUPTED
    finally:
        progress.end()
        journal.close()


def _run(
    arguments: argparse.Namespace, config: WorkerConfig, rows: Reader, journal: Journal, progress: Progress
) -> int:
    source: Path = arguments.input
    journal.check(
        input={"bytes": source.stat().st_size, "sha256": checksum(source)},
        query_field=arguments.query_field,
        document_field=arguments.document_field,
        score_field=arguments.score_field,
        **{"choice of raw scores": arguments.raw_scores},
    )
    progress.show("loading the model", now=True)
    threads = arguments.threads or available_cores()
    engine = EngineThread(lambda: load(config, threads), Metrics(), STALL_SECONDS)
    engine.start()
    try:
        loaded = _loaded(engine)
        info = loaded.info
        # Names for people: they are in the message of a refusal.
        journal.check(
            model=info["sha256"],
            precision=info["precision"],
            max_length=loaded.policy.max_length,
            activation=loaded.activation,
            temperature=config.temperature,
            **{"choice for long documents": [config.long_documents, config.chunk_pooling]},
        )
        journal.begin()
        if journal.done.rows:
            progress.show(f"going on after {journal.done.rows} rows", now=True)
        started = time.monotonic()
        before = journal.done
        with ThreadPoolExecutor(threads, thread_name_prefix="tokenize") as pool:
            scorer = _Scorer(loaded, engine, config, pool, arguments.raw_scores)
            for _ in scorer.score(rows, journal, arguments.batch_rows, arguments.skip_bad):
                progress.show(_told(rows, journal, before.pairs, rows.fraction(before.place), started))
    finally:
        engine.fail_all("the command ends")
        engine.stop(0.0)
    progress.show("writing the output", now=True)
    rows.write(arguments.output, journal.results(), arguments.skip_bad or journal.done.bad > 0)
    journal.remove()
    progress.end()
    done = journal.done
    print(
        f"{arguments.output}: {done.rows} rows, {done.pairs} pairs, {done.truncated} documents cut to fit, "
        f"{done.bad} bad rows ({(done.pairs - before.pairs) / (time.monotonic() - started):.1f} pairs/s)",
        file=sys.stderr,
    )
    return 0


def _loaded(engine: EngineThread) -> Loaded:
    while True:
        try:
            # A wait that can be interrupted.
            return engine.loaded.result(1.0)
        except NotYet:
            if engine.loaded.done():
                raise


def _told(rows: Reader, journal: Journal, pairs: int, fraction: float, started: float) -> str:
    done, seconds = journal.done, time.monotonic() - started
    now = rows.fraction(done.place)
    left = f", {duration(seconds * (1 - now) / (now - fraction))} left" if now > fraction else ""
    return f"{done.rows} rows ({now:.0%}), {(done.pairs - pairs) / seconds:.1f} pairs/s{left}"


@dataclass(slots=True)
class _Chunk:
    rows: list[Row | Bad]
    place: Place
    pairs: list[Pair] = field(default_factory=list)
    counts: list[list[int]] = field(default_factory=list)
    """Of each row that is not bad: pairs of each document."""
    truncated: int = 0
    outcome: Future[Outcome] = field(default_factory=Future)


class _Scorer:
    """Chunks of rows to results, in order, through the engine thread that serves requests elsewhere."""

    def __init__(
        self, loaded: Loaded, engine: EngineThread, config: WorkerConfig, pool: ThreadPoolExecutor, raw: bool
    ) -> None:
        # Threads are ours (one clone each); the library's own pool would compete with torch for the cores.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        self._tokenizer: PairTokenizer = loaded.tokenizer
        self._activation = loaded.activation
        self._engine = engine
        self._config = config
        self._pool = pool
        self._raw = raw

    def score(self, rows: Reader, journal: Journal, batch_rows: int, skip_bad: bool) -> Iterator[None]:
        """Append every chunk of ``rows`` after ``journal.done`` to ``journal``, one a step."""
        running: deque[_Chunk] = deque()
        for chunk in _chunks(rows.rows(journal.done.place), journal.done.place, batch_rows):
            self._submit(chunk)
            bad = next((row for row in chunk.rows if isinstance(row, Bad)), None)
            if bad is not None and not skip_bad:
                while running:
                    self._finish(running.popleft(), journal)
                    yield
                where = "line" if rows.format == "jsonl" else "row"
                raise ConfigurationFailure(
                    f"{where} {bad.number}: {bad.reason} (mend it, or add --skip-bad to go on without such rows)"
                )
            running.append(chunk)
            if len(running) >= AHEAD:
                self._finish(running.popleft(), journal)
                yield
        while running:
            self._finish(running.popleft(), journal)
            yield

    def _submit(self, chunk: _Chunk) -> None:
        """Tokenize ``chunk`` and queue its pairs; rows that cannot be scored become Bad."""
        texts = list(dict.fromkeys(row.query for row in chunk.rows if isinstance(row, Row)))
        queries = dict(zip(texts, self._pool.map(self._tokenizer.query, texts), strict=True))
        results = list(self._pool.map(lambda rows: [self._pairs(row, queries) for row in rows], _parts(chunk.rows)))
        chunk.rows = [row for part in results for row, _, _, _ in part]
        for row, pairs, counts, truncated in itertools.chain.from_iterable(results):
            if isinstance(row, Row):
                chunk.pairs.extend(pairs)
                chunk.counts.append(counts)
                chunk.truncated += truncated
        if chunk.pairs:
            self._engine.submit(Work(chunk.pairs, math.inf, chunk.outcome.set_result))
        else:
            chunk.outcome.set_result([])

    def _pairs(self, row: Row | Bad, queries: dict[str, list[int]]) -> tuple[Row | Bad, list[Pair], list[int], int]:
        """The row, its pairs, how many each document has, and how many documents were cut."""
        if isinstance(row, Bad):
            return row, [], [], 0
        tokenizer, query = self._tokenizer, queries[row.query]
        if tokenizer.room(query) < 1:
            reason = f"the query leaves no room for a document within {tokenizer.max_length} tokens"
            return Bad(row.number, reason), [], [], 0
        long = self._config.long_documents
        found: list[tuple[list[Pair], bool]] = []
        if long == "chunk":
            documents = tokenizer.documents(row.documents, chunking.most_tokens(tokenizer.room(query)))
            for document in documents:
                parts, _, cut = tokenizer.chunks(query, document)
                found.append((parts, cut))
        else:
            for document in tokenizer.documents(row.documents):
                pair, _, cut = tokenizer.pair(query, document)
                found.append(([pair], cut))
        truncated = sum(cut for _, cut in found)
        if truncated and long == "reject":
            reason = f"{truncated} documents do not fit into {tokenizer.max_length} tokens beside the query"
            return Bad(row.number, reason), [], [], 0
        return row, [pair for parts, _ in found for pair in parts], [len(parts) for parts, _ in found], truncated

    def _finish(self, chunk: _Chunk, journal: Journal) -> None:
        """Wait for the scores of ``chunk`` and write them. Raises a StartupFailure when there are none."""
        logits = self._wait(chunk)
        if not all(map(math.isfinite, logits)):
            raise ConfigurationFailure("a score is not a finite number: set --precision to bfloat16 or float32")
        counts = list(itertools.chain.from_iterable(chunk.counts))
        pooled = chunking.pool(logits, counts, self._config.chunk_pooling)
        scores = pooled if self._raw else final_scores(pooled, self._config.temperature, self._activation)
        left = iter(scores)
        results: list[Result] = []
        for row in chunk.rows:
            if isinstance(row, Bad):
                results.append({"error": row.reason})
            else:
                own = [next(left) for _ in row.documents]
                results.append(own[0] if row.single else own)
        bad = sum(isinstance(row, Bad) for row in chunk.rows)
        journal.append(results, chunk.place, len(chunk.pairs), bad, chunk.truncated)

    def _wait(self, chunk: _Chunk) -> list[float]:
        while True:
            try:
                outcome = chunk.outcome.result(1.0)
                break
            except NotYet:
                # A stalled engine answers nothing by itself.
                if (why := self._engine.unhealthy()) is not None:
                    raise EnvironmentFailure(f"{why}: run the command again to go on") from None
        if isinstance(outcome, Failed):
            raise EnvironmentFailure(f"{outcome.message}: run the command again to go on")
        return outcome


def _chunks(rows: Iterator[tuple[Row | Bad, Place]], place: Place, batch_rows: int) -> Iterator[_Chunk]:
    """``rows`` after ``place`` in chunks of bounded size."""
    chunk = _Chunk([], place)
    pairs = characters = 0
    for row, chunk.place in rows:
        chunk.rows.append(row)
        if isinstance(row, Row):
            pairs += len(row.documents)
            characters += len(row.query) + sum(map(len, row.documents))
        if len(chunk.rows) >= batch_rows or pairs >= CHUNK_PAIRS or characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk = _Chunk([], chunk.place)
            pairs = characters = 0
    if chunk.rows:
        yield chunk


def _parts(rows: Sequence[Row | Bad]) -> list[list[Row | Bad]]:
    """``rows`` in parts of about TASK_DOCUMENTS documents."""
    parts: list[list[Row | Bad]] = [[]]
    documents = 0
    for row in rows:
        parts[-1].append(row)
        documents += len(row.documents) if isinstance(row, Row) else 1
        if documents >= TASK_DOCUMENTS:
            parts.append([])
            documents = 0
    return parts
