"""The engine thread: loads the model, cuts batches, computes them, hands scores back. It alone touches the device.

Every request that is accepted is finished exactly once, with scores or with an error, whatever happens to the engine:
an engine that raises fails its batch, one that dies or stalls makes the thread unhealthy and fails everything that
waits. Callbacks run in this thread (or in the one that calls ``fail_all``) and must only hand over.
"""

import logging
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from rerank_worker.batching import Backlog, Policy, Slot, halves
from rerank_worker.engine import EngineLost, EngineOutOfMemory, Pair
from rerank_worker.failures import StartupFailure, unexpected
from rerank_worker.loading.model import Loaded
from rerank_worker.metrics import Metrics

log = logging.getLogger(__name__)

IDLE_BEAT = 1.0
"""Seconds between signs of life when there is nothing to do."""

MAX_FAILED_BATCHES = 5
"""Failed batches in a row after which the engine counts as lost: a restart may help, going on does not."""


@dataclass(frozen=True, slots=True)
class Failed:
    """Why a request has no scores. ``unavailable``: another worker may have better luck; ``internal``: none will."""

    code: Literal["deadline", "unavailable", "internal"]
    message: str


Outcome: TypeAlias = list[float] | Failed


@dataclass(slots=True)
class Work:
    """One request's pairs; ``finish`` is called once, with one logit a pair or with why there are none."""

    pairs: Sequence[Pair]
    deadline: float
    finish: Callable[[Outcome], None]
    logits: list[float] = field(default_factory=list)
    pending: int = 0
    arrived: float = 0.0
    started: bool = False
    done: bool = False


class EngineThread:
    """``build`` loads the model, in the thread. ``stall_limit``: seconds that one batch may take before the thread
    counts as stalled."""

    def __init__(self, build: Callable[[], Loaded], metrics: Metrics, stall_limit: float = 60.0) -> None:
        self._build = build
        self._metrics = metrics
        self._stall_limit = stall_limit
        self._changed = threading.Condition()
        self._backlog: Backlog[Work] = Backlog()
        self._running: list[Work] = []
        self._coming = 0
        self._stopping = False
        self._beat = time.monotonic()
        self._lost: str | None = None
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)
        self.loaded: Future[Loaded] = Future()

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float) -> bool:
        """Ask the thread to end once nothing waits; whether it did within ``timeout`` seconds."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def unhealthy(self) -> str | None:
        """Why the thread does not make progress; None while it does, loads or has not been started."""
        if self._lost is not None:
            return self._lost
        if not self.loaded.done():
            return None
        if not self._thread.is_alive():
            return "the engine thread has ended"
        silent = time.monotonic() - self._beat
        if silent > self._stall_limit:
            return f"the engine has been busy with one batch for {silent:.0f} s (limit {self._stall_limit:.0f} s)"
        return None

    @contextmanager
    def expecting(self) -> Generator[None]:
        """Says that a request is being tokenized: a batch may wait for it, within the policy's max_delay."""
        with self._changed:
            self._coming += 1
        try:
            yield
        finally:
            with self._changed:
                self._coming -= 1
                self._changed.notify_all()

    def submit(self, work: Work) -> int:
        """Queue ``work`` (at least one pair); the ticket is for ``abandon``."""
        work.logits = [0.0] * len(work.pairs)
        work.pending = len(work.pairs)
        work.arrived = time.monotonic()
        with self._changed:
            ticket = self._backlog.add(work, [len(pair) for pair in work.pairs], work.arrived, work.deadline)
            self._changed.notify_all()
        # The thread may have died between the caller's check and now, with nobody left to answer.
        if (why := self.unhealthy()) is not None:
            self.fail_all(why)
        return ticket

    def abandon(self, ticket: int) -> bool:
        """Drop what nobody waits for any more; whether any of it was still waiting."""
        with self._changed:
            work = self._backlog.remove(ticket)
            if work is not None:
                work.done = True
        return work is not None

    def fail_all(self, why: str) -> None:
        """Answer everything that waits or runs with an error."""
        with self._changed:
            orphans = self._backlog.clear() + self._running
            self._running = []
            failed = [work for work in orphans if self._end(work)]
        for work in failed:
            work.finish(Failed("unavailable", why))

    def _main(self) -> None:
        try:
            loaded = self._build()
        except StartupFailure as failure:
            self.loaded.set_exception(failure)
            return
        except Exception as error:
            log.exception("loading failed")
            self.loaded.set_exception(unexpected(error))
            return
        self._beat = time.monotonic()
        self.loaded.set_result(loaded)
        try:
            self._serve(loaded)
        except BaseException as error:
            # Said in the log and in /healthz; there is no caller to raise to.
            self._lost = f"the engine stopped: {type(error).__name__}: {error}"
            log.exception("the engine thread died")
        finally:
            self.fail_all(self._lost or "the worker is shutting down")

    def _serve(self, loaded: Loaded) -> None:
        policy = loaded.policy
        failed_batches = 0
        while True:
            self._beat = time.monotonic()
            batch = self._next_batch(policy)
            if batch is None:
                return
            if not batch:
                continue
            self._beat = time.monotonic()
            try:
                policy = self._run(loaded, policy, batch)
                failed_batches = 0
            except EngineLost:
                raise
            except Exception as error:
                failed_batches += 1
                log.exception("a batch failed", extra={"fields": {"pairs": len(batch), "in_a_row": failed_batches}})
                self._fail(batch, Failed("internal", f"scoring failed: {type(error).__name__}"))
                if failed_batches >= MAX_FAILED_BATCHES:
                    raise EngineLost(f"{failed_batches} batches failed one after the other: {error}") from error

    def _next_batch(self, policy: Policy) -> list[tuple[Work, Slot]] | None:
        """A batch; an empty one when it is time for a sign of life; None to end."""
        with self._changed:
            free_since = time.monotonic()
            while True:
                now = time.monotonic()
                late = [work for work in self._backlog.expire(now) if self._end(work)]
                if late:
                    break
                if self._backlog:
                    due = self._backlog.due(policy, self._coming > 0 and not self._stopping)
                    if due <= now:
                        batch = self._backlog.take(policy)
                        self._running = list({id(work): work for work, _ in batch}.values())
                        self._metrics.batch_wait.observe(now - max(free_since, min(w.arrived for w in self._running)))
                        return batch
                    self._changed.wait(min(due - now, IDLE_BEAT))
                elif self._stopping:
                    return None
                elif now - free_since >= IDLE_BEAT:
                    return []
                else:
                    self._changed.wait(IDLE_BEAT)
        for work in late:
            self._metrics.dropped.labels("deadline").inc()
            work.finish(Failed("deadline", "the deadline came before the scores"))
        return []

    def _run(self, loaded: Loaded, policy: Policy, batch: Sequence[tuple[Work, Slot]]) -> Policy:
        """Compute a batch, in halves where it does not fit; the policy to go on with."""
        started = time.monotonic()
        for work, _ in batch:
            if not work.started:
                work.started = True
                self._metrics.queue_time.observe(started - work.arrived)
        engine = loaded.engine
        try:
            logits = engine.collect(engine.compute(engine.prepare([work.pairs[slot.index] for work, slot in batch])))
        except EngineOutOfMemory as error:
            why = str(error)
        else:
            self._observe(policy, batch, time.monotonic() - started)
            self._deliver(batch, logits)
            return policy
        # Outside of the except clause: the error's traceback keeps everything alive that the batch had allocated.
        if len(batch) == 1:
            log.error("one pair does not fit into memory", extra={"fields": {"tokens": batch[0][1].tokens}})
            message = f"out of memory scoring one pair of {batch[0][1].tokens} tokens: lower spec.model.maxLength"
            self._fail(batch, Failed("internal", message))
            return policy
        self._metrics.out_of_memory_recoveries.inc()
        # Never more than before: the longest pair may be above the budget.
        smaller = replace(policy, max_tokens=min(policy.max_tokens, max(policy.max_length, policy.max_tokens // 2)))
        log.warning(
            "a batch did not fit into memory: splitting it",
            extra={"fields": {"pairs": len(batch), "max_batch_tokens": smaller.max_tokens, "error": why}},
        )
        for half in halves(batch):
            self._beat = time.monotonic()
            smaller = self._run(loaded, smaller, half)
        return smaller

    def _observe(self, policy: Policy, batch: Sequence[tuple[Work, Slot]], seconds: float) -> None:
        metrics = self._metrics
        tokens = sum(slot.tokens for _, slot in batch)
        padded = len(batch) * policy.padded(max(slot.tokens for _, slot in batch))
        metrics.pairs.inc(len(batch))
        metrics.tokens.inc(tokens)
        metrics.padding_tokens.inc(padded - tokens)
        metrics.batch_pairs.observe(len(batch))
        metrics.batch_tokens.observe(padded)
        metrics.batch_requests.observe(len({slot.ticket for _, slot in batch}))
        metrics.engine_time.observe(seconds)

    def _deliver(self, batch: Sequence[tuple[Work, Slot]], logits: Sequence[float]) -> None:
        if len(logits) != len(batch):
            raise ValueError(f"the engine gave {len(logits)} scores for {len(batch)} pairs")
        finished = []
        with self._changed:
            for (work, slot), logit in zip(batch, logits, strict=True):
                work.logits[slot.index] = logit
                work.pending -= 1
                if work.pending == 0 and self._end(work):
                    finished.append(work)
        for work in finished:
            work.finish(work.logits)

    def _fail(self, batch: Sequence[tuple[Work, Slot]], failed: Failed) -> None:
        """End every request with a pair in ``batch``, the rest of its pairs included."""
        with self._changed:
            for ticket in {slot.ticket for _, slot in batch}:
                self._backlog.remove(ticket)
            ended = [work for work, _ in batch if self._end(work)]
        for work in ended:
            work.finish(failed)

    def _end(self, work: Work) -> bool:
        """Marks ``work`` as finished; whether it was not yet."""
        if work.done:
            return False
        work.done = True
        return True
