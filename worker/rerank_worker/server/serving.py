"""How one request is served: admission, tokenizing in threads, the engine, and the scores' last step.

Admission counts tokens before any are made, so a full worker says so cheaply. Whatever ends a request early (its
deadline, its client, a drain) takes its waiting pairs out of the backlog.
"""

import asyncio
import math
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from rerank_api.reranker import LongDocuments
from rerank_api.wire import ScoreRequest, ScoreResponse

from rerank_worker.engine import Pair
from rerank_worker.loading.model import Loaded
from rerank_worker.loading.settings import ChosenActivation
from rerank_worker.metrics import Metrics
from rerank_worker.scheduler import EngineThread, Failed, Outcome, Work
from rerank_worker.server.protocol import Refusal

CHARACTERS_PER_TOKEN = 3
"""A cautious guess before tokenizing: English has about four."""

DOCUMENTS_PER_TASK = 32
"""Documents that one thread tokenizes before another request gets its turn."""


class Admission:
    """Bounds the tokens of all requests in flight; one request alone is always admitted."""

    def __init__(self, limit: int, metrics: Metrics) -> None:
        self._limit = limit
        self._metrics = metrics
        self._waiting = 0

    def check(self) -> None:
        """Raises Refusal (busy) when nothing more fits, whatever its size."""
        if self._waiting >= self._limit:
            raise Refusal("busy", f"{self._waiting} tokens wait here already (limit {self._limit}): try another worker")

    def enter(self, tokens: int) -> None:
        """Take ``tokens`` in. Raises Refusal (busy)."""
        if self._waiting > 0 and self._waiting + tokens > self._limit:
            raise Refusal(
                "busy",
                f"about {tokens} tokens do not fit beside the {self._waiting} that wait here (limit {self._limit}): "
                "try another worker",
            )
        self._waiting += tokens
        self._metrics.waiting_tokens.set(self._waiting)

    def leave(self, tokens: int) -> None:
        self._waiting -= tokens
        self._metrics.waiting_tokens.set(self._waiting)


def estimate_tokens(request: ScoreRequest, max_length: int) -> int:
    """About how many tokens a request will cost, from its characters."""
    query = len(request.query) // CHARACTERS_PER_TOKEN + 3
    return sum(min(max_length, query + len(text) // CHARACTERS_PER_TOKEN) for text in request.documents)


def final_scores(logits: Iterable[float], temperature: float, activation: ChosenActivation) -> list[float]:
    """Logits as the Reranker wants them."""
    scaled = [logit / temperature for logit in logits]
    return scaled if activation == "identity" else [_sigmoid(value) for value in scaled]


def _sigmoid(value: float) -> float:
    # Both forms keep exp's argument negative, which cannot overflow.
    if value >= 0:
        return 1 / (1 + math.exp(-value))
    return math.exp(value) / (1 + math.exp(value))


class Scorer:
    """Serves requests with a loaded model. ``threads``: how many tokenize at the same time; ``waiting_tokens``: the
    bound of admission."""

    def __init__(
        self,
        loaded: Loaded,
        engine: EngineThread,
        metrics: Metrics,
        *,
        temperature: float,
        long_documents: LongDocuments,
        threads: int,
        waiting_tokens: int,
    ) -> None:
        # Threads are ours (one clone each); the library's own pool would compete with torch for the cores.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        self._tokenizer = loaded.tokenizer
        self._activation: ChosenActivation = loaded.activation
        self._engine = engine
        self._metrics = metrics
        self._temperature = temperature
        self._long_documents = long_documents
        self._max_length = loaded.policy.max_length
        self._parallel = threads
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="tokenize")
        self.admission = Admission(waiting_tokens, metrics)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def score(self, request: ScoreRequest, deadline: float) -> ScoreResponse:
        """The answer, by ``deadline`` (of time.monotonic()). Raises Refusal."""
        if not request.documents:
            return ScoreResponse(scores=[], tokens=0)
        if deadline <= time.monotonic():
            self._metrics.dropped.labels("deadline").inc()
            raise Refusal("deadline", "the request came after its deadline")
        estimate = estimate_tokens(request, self._max_length)
        self.admission.enter(estimate)
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                with self._engine.expecting():
                    pairs, truncated = await self._tokenize(request)
                    outcome_of = self._submit(pairs, deadline)
                outcome = await outcome_of
        except TimeoutError as error:
            raise Refusal("deadline", "the deadline came before the scores") from error
        finally:
            self.admission.leave(estimate)
        if isinstance(outcome, Failed):
            raise Refusal(outcome.code, outcome.message)
        if not all(map(math.isfinite, outcome)):
            raise Refusal(
                "internal",
                "the model gave a score that is not a number: set spec.runtime.precision to bfloat16 or float32",
            )
        self._metrics.truncated_documents.inc(len(truncated))
        scores = outcome if request.raw_scores else final_scores(outcome, self._temperature, self._activation)
        return ScoreResponse(scores=scores, tokens=sum(map(len, pairs)), truncated=truncated)

    async def _tokenize(self, request: ScoreRequest) -> tuple[list[Pair], list[int]]:
        """The pairs and the indices of the documents that were cut. Raises Refusal (too_long)."""
        started = time.monotonic()
        loop = asyncio.get_running_loop()
        query = await loop.run_in_executor(self._threads, self._tokenizer.query, request.query)
        if self._tokenizer.room(query) < 1:
            raise Refusal(
                "too_long",
                f"the query has {len(query)} tokens or more and leaves no room for a document within "
                f"{self._max_length}: shorten it",
            )

        def pairs_of(start: int) -> list[tuple[Pair, bool, bool]]:
            texts = request.documents[start : start + DOCUMENTS_PER_TASK]
            limit = request.max_tokens_per_document
            return [self._tokenizer.pair(query, ids, limit) for ids in self._tokenizer.documents(texts)]

        results: list[tuple[Pair, bool, bool]] = []
        starts = range(0, len(request.documents), DOCUMENTS_PER_TASK)
        # Never more tasks queued than there are threads, so that a long request cannot keep short ones out.
        for first in range(0, len(starts), self._parallel):
            tasks = [
                loop.run_in_executor(self._threads, pairs_of, start) for start in starts[first : first + self._parallel]
            ]
            results.extend(result for part in await asyncio.gather(*tasks) for result in part)
        self._metrics.tokenize_time.observe(time.monotonic() - started)
        too_long = [index for index, (_, _, cut_to_fit) in enumerate(results) if cut_to_fit]
        if too_long and self._long_documents == "reject":
            named = ", ".join(map(str, too_long[:10]))
            raise Refusal(
                "too_long",
                f"{len(too_long)} documents do not fit into {self._max_length} tokens beside the query (documents "
                f"{named}{', ...' if len(too_long) > 10 else ''}) and spec.requests.longDocuments is reject: "
                "shorten them",
            )
        truncated = [index for index, (_, limited, cut_to_fit) in enumerate(results) if limited or cut_to_fit]
        return [pair for pair, _, _ in results], truncated

    def _submit(self, pairs: list[Pair], deadline: float) -> asyncio.Future[Outcome]:
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

        ticket = self._engine.submit(Work(pairs, deadline, finish))

        def drop_if_cancelled(done: asyncio.Future[Outcome]) -> None:
            if done.cancelled() and self._engine.abandon(ticket):
                late = time.monotonic() >= deadline
                self._metrics.dropped.labels("deadline" if late else "abandoned").inc()

        future.add_done_callback(drop_if_cancelled)
        return future
