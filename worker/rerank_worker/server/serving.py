"""How one request is served: admission, tokenizing in threads, the engine, and the scores' last step.

Admission counts tokens before any are made, so a full worker says so cheaply. Whatever ends a request early (its
deadline, its client, a drain) takes its waiting pairs out of the backlog.
"""

import asyncio
import math
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from rerank_api.wire import Priority, ScoreRequest, ScoreResponse
from rerank_api.worker_config import WorkerConfig

from rerank_worker import chunking
from rerank_worker.engine import Pair
from rerank_worker.failures import no_number
from rerank_worker.loading.model import Loaded
from rerank_worker.loading.settings import ChosenActivation
from rerank_worker.metrics import Metrics
from rerank_worker.scheduler import EngineThread, Failed, Outcome, Work
from rerank_worker.server.admission import Admission
from rerank_worker.server.protocol import Refusal
from rerank_worker.tokenization import Fitted
from rerank_worker.trace import Trace

CHARACTERS_PER_TOKEN = 3
"""A cautious guess before tokenizing: English has about four."""

DOCUMENTS_PER_TASK = (8, 32)
"""Fewest and most documents that one thread tokenizes before another request gets its turn: fewer would cost more in
handing over than they take."""


def estimate_tokens(request: ScoreRequest, max_length: int, chunked: bool = False) -> int:
    """About how many tokens a request will cost, from its characters. ``chunked``: long documents are not cut."""
    query = min(len(request.query) // CHARACTERS_PER_TOKEN + 3, max_length)
    room = max(1, max_length - query)
    limit = request.max_tokens_per_document
    most = chunking.most_tokens(room) if chunked else room
    total = 0
    for text in request.documents:
        tokens = len(text) // CHARACTERS_PER_TOKEN
        tokens = min(tokens, most) if limit is None else min(tokens, most, limit)
        if tokens <= room:
            total += query + tokens
        else:
            # Every chunk but the last is full.
            total += min(chunking.count(tokens, room), chunking.MAX_CHUNKS) * max_length
    return total


@dataclass(frozen=True, slots=True)
class Prepared:
    """A tokenized request. ``counts``: pairs of each document (more than one: its chunks); None: one each.
    ``truncated``, ``chunked``: indices of documents."""

    pairs: list[Pair]
    counts: list[int] | None
    truncated: list[int]
    chunked: list[int]


def final_scores(logits: Iterable[float], temperature: float, activation: ChosenActivation) -> list[float]:
    """Logits as the Reranker wants them."""
    scaled = [logit / temperature for logit in logits]
    return scaled if activation == "identity" else [_sigmoid(value) for value in scaled]


def _sigmoid(value: float) -> float:
    # Both forms keep exp's argument negative, which cannot overflow.
    if value >= 0:
        return 1 / (1 + math.exp(-value))
    return math.exp(value) / (1 + math.exp(value))


def share(documents: int, threads: int) -> int:
    """Documents for each of ``threads``, so that a request of the usual size keeps all of them busy."""
    fewest, most = DOCUMENTS_PER_TASK
    return max(fewest, min(-(-documents // threads), most))


def _named(documents: Sequence[int]) -> str:
    """The first of some documents' indices, for people."""
    return ", ".join(map(str, documents[:10])) + (", ..." if len(documents) > 10 else "")


class Scorer:
    """Serves requests with a loaded model. ``threads``: a pool of ``parallel`` threads that tokenize; ``admission``: of
    tokens, shared by all models of the process."""

    def __init__(
        self,
        config: WorkerConfig,
        loaded: Loaded,
        engine: EngineThread,
        metrics: Metrics,
        admission: Admission,
        threads: ThreadPoolExecutor,
        parallel: int,
    ) -> None:
        self._config = config
        self._tokenizer = loaded.tokenizer
        self._activation: ChosenActivation = loaded.activation
        self._precision: str | None = loaded.info.get("precision")
        self._engine = engine
        self._metrics = metrics
        self._max_length = loaded.policy.max_length
        self._threads = threads
        self._parallel = parallel
        self._admission = admission
        self._chunking = config.long_documents == "chunk"

    def check(self) -> None:
        """Raises Refusal (busy) when no request at all is admitted now."""
        self._admission.check(self._engine.tokens_per_second)

    @property
    def tokens_per_second(self) -> float | None:
        """What the model can score here; None: not known yet."""
        return self._engine.tokens_per_second

    async def score(
        self, request: ScoreRequest, deadline: float, priority: Priority = "normal", trace: Trace | None = None
    ) -> ScoreResponse:
        """The answer, by ``deadline`` (of time.monotonic()). Raises Refusal."""
        if trace is not None:
            trace.model, trace.documents = self._config, len(request.documents)
        if not request.documents:
            return ScoreResponse(scores=[], tokens=0)
        if deadline <= time.monotonic():
            self._metrics.dropped.labels("deadline").inc()
            raise Refusal("deadline", "the request came after its deadline")
        estimate = estimate_tokens(request, self._max_length, self._chunking)
        self._admission.bound(estimate)
        self._admission.enter(estimate, per_second=self._engine.tokens_per_second)
        submitted = False
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                with self._engine.expecting():
                    prepared = await self._tokenize(request, trace)
                    outcome_of = self._submit(prepared.pairs, deadline, priority, trace)
                    submitted = True
                outcome = await outcome_of
        except TimeoutError as error:
            if not submitted:
                self._metrics.dropped.labels("deadline").inc()
            raise Refusal("deadline", "the deadline came before the scores") from error
        except asyncio.CancelledError:
            # What has been submitted is counted when it leaves the backlog.
            if not submitted:
                self._metrics.dropped.labels("abandoned").inc()
            raise
        finally:
            self._admission.leave(estimate)
        if isinstance(outcome, Failed):
            raise Refusal(outcome.code, outcome.message)
        return self._answer(request, prepared, outcome)

    def _answer(self, request: ScoreRequest, prepared: Prepared, logits: list[float]) -> ScoreResponse:
        if not all(map(math.isfinite, logits)):
            raise self._no_number(prepared, logits)
        if prepared.counts is not None:
            logits = chunking.pool(logits, prepared.counts, self._config.chunk_pooling)
        self._metrics.scores.observe(logits, self._config.temperature)
        self._metrics.truncated_documents.inc(len(prepared.truncated))
        self._metrics.truncated_requests.inc(bool(prepared.truncated))
        self._metrics.chunked_documents.inc(len(prepared.chunked))
        return ScoreResponse(
            scores=logits if request.raw_scores else final_scores(logits, self._config.temperature, self._activation),
            tokens=sum(map(len, prepared.pairs)),
            truncated=prepared.truncated,
            chunked=prepared.chunked,
        )

    def _no_number(self, prepared: Prepared, logits: Sequence[float]) -> Refusal:
        bad = [index for index, logit in enumerate(logits) if not math.isfinite(logit)]
        documents = bad if prepared.counts is None else chunking.documents(bad, prepared.counts)
        remedy = no_number(self._precision)
        return Refusal("internal", f"the model gave no number for documents {_named(documents)}: {remedy}")

    async def _tokenize(self, request: ScoreRequest, trace: Trace | None) -> Prepared:
        """Raises Refusal (too_long)."""
        started = time.monotonic()
        loop = asyncio.get_running_loop()
        query = await loop.run_in_executor(self._threads, self._tokenizer.query, request.query)
        room = self._tokenizer.room(query)
        if room < 1:
            raise Refusal(
                "too_long",
                f"the query has {len(query)} tokens or more and leaves no room for a document within "
                f"{self._max_length}: shorten it",
            )
        most = chunking.most_tokens(room) if self._chunking else None
        fit = self._tokenizer.chunks if self._chunking else self._tokenizer.one
        limit = request.max_tokens_per_document
        size = share(len(request.documents), self._parallel)

        def fitted(start: int) -> list[Fitted]:
            texts = request.documents[start : start + size]
            return [fit(query, ids, limit) for ids in self._tokenizer.documents(texts, most)]

        results: list[Fitted] = []
        tokens = 0
        starts = range(0, len(request.documents), size)
        # Never more tasks queued than there are threads, so that a long request cannot keep short ones out.
        for first in range(0, len(starts), self._parallel):
            tasks = [
                loop.run_in_executor(self._threads, fitted, start) for start in starts[first : first + self._parallel]
            ]
            for part in await asyncio.gather(*tasks):
                results.extend(part)
                tokens += sum(len(pair) for pairs, _, _ in part for pair in pairs)
            # Counted now: a query of many short words leaves little room, and long documents many chunks.
            self._admission.bound(tokens)
        ended = time.monotonic()
        self._metrics.tokenize_time.observe(ended - started)
        prepared = self._prepared(results)
        if trace is not None:
            trace.tokenizing = (started, ended)
            trace.tokens, trace.truncated = tokens, len(prepared.truncated)
        return prepared

    def _prepared(self, results: list[Fitted]) -> Prepared:
        if self._config.long_documents == "reject":
            too_long = [index for index, (_, _, cut_to_fit) in enumerate(results) if cut_to_fit]
            if too_long:
                raise Refusal(
                    "too_long",
                    f"{len(too_long)} documents do not fit into {self._max_length} tokens beside the query (documents "
                    f"{_named(too_long)}) and spec.requests.longDocuments is reject: "
                    "shorten them",
                )
        pairs = [pair for parts, _, _ in results for pair in parts]
        truncated = [index for index, (_, limited, cut_to_fit) in enumerate(results) if limited or cut_to_fit]
        if len(pairs) == len(results):
            return Prepared(pairs, None, truncated, [])
        counts = [len(parts) for parts, _, _ in results]
        in_part = set(truncated)
        whole = [index for index, count in enumerate(counts) if count > 1 and index not in in_part]
        return Prepared(pairs, counts, truncated, whole)

    def _submit(
        self, pairs: list[Pair], deadline: float, priority: Priority, trace: Trace | None
    ) -> asyncio.Future[Outcome]:
        """Queue the pairs; the future gives the outcome, and cancelling it takes them out of the backlog."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Outcome] = loop.create_future()

        def deliver(outcome: Outcome) -> None:
            if not future.done():
                future.set_result(outcome)

        def finish(outcome: Outcome) -> None:
            try:
                loop.call_soon_threadsafe(deliver, outcome)
            except RuntimeError:
                # The loop has closed: the process is ending and nobody waits any more.
                return

        ticket = self._engine.submit(Work(pairs, deadline, finish, priority, trace))

        def drop_if_cancelled(done: asyncio.Future[Outcome]) -> None:
            if done.cancelled() and self._engine.abandon(ticket):
                late = time.monotonic() >= deadline
                self._metrics.dropped.labels("deadline" if late else "abandoned").inc()

        future.add_done_callback(drop_if_cancelled)
        return future
