"""The engine thread: loads the model, cuts batches, computes them, hands scores back. It alone touches the device.

Every request that is accepted is finished exactly once, with scores or with an error, whatever happens to the engine
(only one that is abandoned is not): an engine that raises fails its batch, one that dies or stalls makes the thread
unhealthy and fails everything that waits. Callbacks run in this thread (or in the one that calls ``submit`` or
``fail_all``) and must only hand over. What goes when is decided elsewhere: batching, measured, turns.
"""

import logging
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from rerank_api.wire import Priority

from rerank_worker.batching import Backlog, Policy, Slot, halves
from rerank_worker.engine import Engine, EngineLost, EngineOutOfMemory, Pair
from rerank_worker.failures import StartupFailure, unexpected
from rerank_worker.loading.model import Loaded
from rerank_worker.measured import BatchTimes, Budget, Company, Speed, stall_limit
from rerank_worker.metrics import Metrics
from rerank_worker.trace import Batch, Trace
from rerank_worker.turns import Turns

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
    """One request's pairs; ``finish`` is called once, with one logit a pair or with why there are none.

    ``deadline``: of time.monotonic(). ``priority``: as in wire.HEADER_PRIORITY. ``trace``: where it is sampled. The
    other fields are the engine thread's own.
    """

    pairs: Sequence[Pair]
    deadline: float
    finish: Callable[[Outcome], None]
    priority: Priority = "normal"
    trace: Trace | None = None
    logits: list[float] = field(default_factory=list)
    pending: int = 0
    arrived: float = 0.0
    started: bool = False
    done: bool = False


@dataclass(slots=True)
class _Flight:
    """A batch that was started. One of ``output``, ``no_memory`` and ``failure`` (the error's kind) says what came.
    ``traces``: of the sampled requests in it."""

    batch: Sequence[tuple[Work, Slot]]
    launched: float
    traces: tuple[Trace, ...] = ()
    computing: float | None = None
    output: Any = None
    no_memory: str | None = None
    failure: str | None = None

    def failed(self) -> bool:
        return self.no_memory is not None or self.failure is not None


class EngineThread:
    """``build`` loads the model, in the thread, which closes the engine when it ends.

    ``stall_limit``: seconds that a batch may take at least before the thread counts as stalled; one that takes long by
    what was measured gets longer. ``turns``: shared by the threads whose models share a device, so that one computes at
    a time. ``model``: the model's key, for the metrics.

    An engine with ``asynchronous = True`` computes while the host goes on: while much waits, it is given the next batch
    before it is asked for the scores of the one before.
    """

    def __init__(
        self,
        build: Callable[[], Loaded],
        metrics: Metrics,
        stall_limit: float = 60.0,
        *,
        turns: Turns | None = None,
        model: str = "default",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._build = build
        self._metrics = metrics
        self._stall_floor = stall_limit
        self._turns = turns or Turns()
        self._model = model
        self._clock = clock
        # What the lock guards.
        self._changed = threading.Condition()
        self._changes = 0
        self._backlog: Backlog[Work] = Backlog()
        self._company = Company()
        self._flights: deque[_Flight] = deque()
        self._stopping = False
        self._closed: str | None = None
        # What only the engine thread writes.
        self._engine: Engine | None = None
        self._policy: Policy | None = None
        self._budget = Budget(0, 0)
        self._times = BatchTimes()
        self._speed = Speed(None)
        self._precision = ""
        self._seen = 0
        self._free_since = 0.0
        self._landed = 0.0
        self._failed_batches = 0
        self._in_line = False
        self._beat = clock()
        self._stall_limit = stall_limit
        self._lost: str | None = None
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)
        self.loaded: Future[Loaded] = Future()

    def start(self) -> None:
        # Running from now on: whoever stops waiting for it must not cancel it, for the thread sets it in the end.
        self.loaded.set_running_or_notify_cancel()
        self._thread.start()

    def stop(self, timeout: float) -> bool:
        """Ask the thread to end once nothing waits; whether it did within ``timeout`` seconds."""
        with self._changed:
            self._stopping = True
            self._notify()
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
        silent, limit = self._clock() - self._beat, self._stall_limit
        if silent > limit:
            return f"the engine has been busy with one batch for {silent:.0f} s (limit {limit:.0f} s)"
        return None

    @property
    def tokens_per_second(self) -> float | None:
        """What the model can score here, by what was measured at load and seen since; None: not known yet."""
        return self._speed.tokens_per_second

    @contextmanager
    def expecting(self) -> Generator[None]:
        """Says that a request is being tokenized: a batch may wait for it, within the policy's max_delay."""
        who = object()
        with self._changed:
            self._company.begin(who, self._clock())
        try:
            yield
        finally:
            with self._changed:
                self._company.end(who, self._clock())
                self._notify()

    def submit(self, work: Work) -> int:
        """Queue ``work`` (at least one pair); the ticket is for ``abandon``. Where the thread has ended, ``work`` is
        finished at once."""
        work.logits = [0.0] * len(work.pairs)
        work.pending = len(work.pairs)
        work.arrived = self._clock()
        lengths = [len(pair) for pair in work.pairs]
        with self._changed:
            ticket = self._backlog.add(work, lengths, work.arrived, work.deadline, work.priority)
            closed = self._closed
            self._notify()
        # The thread may have died between the caller's check and now, with nobody left to answer.
        if (why := closed or self.unhealthy()) is not None:
            self.fail_all(why)
        return ticket

    def abandon(self, ticket: int) -> bool:
        """Drop what nobody waits for any more; whether any of it was still waiting (``finish`` is then not called)."""
        with self._changed:
            work = self._backlog.remove(ticket)
            if work is not None:
                work.done = True
        return work is not None

    def fail_all(self, why: str) -> None:
        """Answer everything that waits or runs with an error."""
        with self._changed:
            orphans = self._backlog.clear() + [work for flight in self._flights for work, _ in flight.batch]
            failed = [work for work in orphans if _end(work)]
        for work in failed:
            _answer(work, Failed("unavailable", why))

    def _notify(self) -> None:
        """Wake the thread; the lock is held."""
        self._changes += 1
        self._changed.notify_all()

    # The thread.

    def _main(self) -> None:
        try:
            loaded = self._build()
        except StartupFailure as failure:
            _forget_frames(failure)
            self.loaded.set_exception(failure)
            return
        except Exception as error:
            log.exception("loading failed")
            self.loaded.set_exception(unexpected(error))
            return
        self.begin(loaded)
        self.loaded.set_result(loaded)
        try:
            while (wait := self.step()) is not None:
                if wait > 0:
                    with self._changed:
                        self._changed.wait_for(lambda: self._changes != self._seen, wait)
        except BaseException as error:
            # Said in the log and in /healthz; there is no caller to raise to.
            self._lost = f"the engine stopped: {type(error).__name__}: {error}"
            log.exception("the engine thread died")
        finally:
            with self._changed:
                self._closed = self._lost or "the worker is shutting down"
            self.fail_all(self._closed)
            self._leave_line()
            _close(loaded.engine)
            self._engine = None

    def begin(self, loaded: Loaded) -> None:
        """Take over what was built; the thread does, before its first ``step``."""
        self._engine = loaded.engine
        self._precision = loaded.info.get("precision", "")
        self._policy = replace(loaded.policy, padded=loaded.engine.padded)
        self._budget = Budget(loaded.policy.max_tokens, loaded.policy.max_tokens)
        self._metrics.batch_budget.labels(self._model).set(self._budget.tokens)
        self._set_speed(Speed(loaded.info.get("tokensPerSecond")))
        self._beat = self._free_since = self._landed = self._clock()

    def step(self) -> float | None:
        """Do what there is to do now; seconds until there may be more, if nobody notifies before (None: never again).

        Waits for the device, and for a turn at it, only.
        """
        assert self._engine is not None
        assert self._policy is not None
        engine, policy = self._engine, self._policy
        self._beat = now = self._clock()
        self._drop_late(now)
        if not self._flights:
            self._stall_limit = self._stall_floor
            with self._changed:
                self._seen = self._changes
                if not self._backlog:
                    # Others may use the device: whoever joins for nothing keeps them waiting.
                    self._leave_line()
                    return None if self._stopping else IDLE_BEAT
                company = float("inf") if self._stopping else self._company.expected(now)
                wait = self._backlog.due(policy, now, company, self._times.saved()) - now
            # In line for the device is waiting enough; and whose turn it is must not let the others wait for company.
            if wait > 0 and not self._in_line:
                return min(wait, IDLE_BEAT)
            self._in_line = True
            if not self._turns.wait(self, IDLE_BEAT) or not self._launch(engine, policy):
                return 0.0
        flight = self._flights[0]
        if getattr(engine, "asynchronous", False) and not flight.failed() and self._much_waits(policy):
            self._launch(engine, policy)
        self._land(engine, flight)
        with self._changed:
            self._flights.popleft()
        self._free_since = self._clock()
        if not self._flights:
            self._leave_line()
        return 0.0

    def _leave_line(self) -> None:
        if self._in_line:
            self._turns.leave(self)
            self._in_line = False

    def _much_waits(self, policy: Policy) -> bool:
        """Whether a full batch waits, so that company is not worth waiting for, and no other model does."""
        return self._backlog.tokens >= policy.max_tokens and not self._turns.others_wait()

    def _drop_late(self, now: float) -> None:
        with self._changed:
            late = [work for work in self._backlog.expire(now, self._times.fastest()) if _end(work)]
        for work in late:
            if work.deadline <= now:
                self._metrics.dropped.labels("deadline").inc()
                _answer(work, Failed("deadline", "the deadline came before the scores"))
            else:
                self._metrics.dropped.labels("unreachable").inc()
                seconds = work.deadline - now
                message = f"{work.pending} pairs cannot be scored within the {seconds:.3f} s that are left"
                _answer(work, Failed("deadline", message))

    def _launch(self, engine: Engine, policy: Policy) -> bool:
        """Start the next batch; whether there was one."""
        with self._changed:
            batch = self._backlog.take(policy)
            if not batch:
                # Abandoned since it was looked for.
                return False
            now = self._clock()
            flight = _Flight(batch, now)
            self._flights.append(flight)
        works = {id(work): work for work, _ in batch}.values()
        if len(self._flights) == 1:
            self._metrics.batch_wait.observe(now - max(self._free_since, min(work.arrived for work in works)))
        for work in works:
            if not work.started:
                work.started = True
                self._metrics.queue_time.labels(work.priority).observe(now - work.arrived)
                if work.trace is not None:
                    work.trace.waiting = (work.arrived, now)
        flight.traces = _traces(works)
        self._compute(engine, policy, flight)
        return True

    def _compute(self, engine: Engine, policy: Policy, flight: _Flight) -> None:
        lengths = [slot.tokens for _, slot in flight.batch]
        cost = policy.cost(lengths)
        expected = self._times.seconds(cost)
        if expected is None and (speed := self._speed.tokens_per_second) is not None:
            expected = cost / speed
        limit = stall_limit(self._stall_floor, expected, cost / policy.max_length)
        # Set before the sign of life: the limit of the batch before must not be held against this one.
        self._stall_limit = max(limit, self._stall_limit) if len(self._flights) > 1 else limit
        self._beat = self._clock()
        pairs = [work.pairs[slot.index] for work, slot in flight.batch]

        def compute() -> Any:
            prepared = engine.prepare(pairs)
            flight.computing = self._clock()
            return engine.compute(prepared)

        flight.output = _attempt(flight, compute)

    def _land(self, engine: Engine, flight: _Flight) -> None:
        """Wait for a batch and hand its scores back; in halves, one after the other, where it does not fit."""
        batch = flight.batch
        assert self._policy is not None
        logits: list[float] | None = None
        if not flight.failed():
            logits = _attempt(flight, lambda: _checked(engine.collect(flight.output), len(batch)))
        flight.output = None
        now, before = self._clock(), self._landed
        self._landed = now
        if flight.traces:
            self._trace(self._policy, engine, flight, before, now)
        if logits is not None:
            self._failed_batches = 0
            busy, alone = now - max(flight.launched, before), flight.launched >= before
            self._observe(self._policy, batch, now - max(flight.launched, self._free_since), busy, alone)
            self._deliver(batch, logits)
        elif flight.no_memory is None:
            self._failed_batches += 1
            self._fail(batch, Failed("internal", f"scoring failed: {flight.failure}"))
            if self._failed_batches >= MAX_FAILED_BATCHES:
                raise EngineLost(f"{self._failed_batches} batches failed one after the other: {flight.failure}")
        elif len(batch) == 1:
            tokens = batch[0][1].tokens
            log.error("one pair does not fit into memory", extra={"fields": {"tokens": tokens}})
            message = f"out of memory scoring one pair of {tokens} tokens: lower spec.model.maxLength"
            self._fail(batch, Failed("internal", message))
        else:
            self._metrics.out_of_memory_recoveries.inc()
            self._set_budget(self._budget.out_of_memory(self._policy.cost([slot.tokens for _, slot in batch])))
            log.warning(
                "a batch did not fit into memory: splitting it",
                extra={
                    "fields": {
                        "pairs": len(batch),
                        "max_batch_tokens": self._budget.tokens,
                        "error": flight.no_memory,
                    }
                },
            )
            for half in halves(batch):
                self._run_part(engine, half)

    def _run_part(self, engine: Engine, batch: Sequence[tuple[Work, Slot]]) -> None:
        """Compute a part of a batch that did not fit; nothing that is as large as what has just failed is tried."""
        assert self._policy is not None
        if len(batch) > 1 and self._budget.hopeless(self._policy.cost([slot.tokens for _, slot in batch])):
            for half in halves(batch):
                self._run_part(engine, half)
            return
        flight = _Flight(batch, self._clock(), _traces({id(work): work for work, _ in batch}.values()))
        self._compute(engine, self._policy, flight)
        self._land(engine, flight)

    def _set_budget(self, budget: Budget) -> None:
        assert self._policy is not None
        if budget.tokens != self._budget.tokens:
            self._policy = replace(self._policy, max_tokens=budget.tokens)
            self._metrics.batch_budget.labels(self._model).set(budget.tokens)
        self._budget = budget

    def _set_speed(self, speed: Speed) -> None:
        if speed.tokens_per_second is not None and speed.tokens_per_second != self._speed.tokens_per_second:
            self._metrics.capacity.labels(self._model).set(speed.tokens_per_second)
        self._speed = speed

    def _observe(
        self, policy: Policy, batch: Sequence[tuple[Work, Slot]], seconds: float, busy: float, alone: bool
    ) -> None:
        """``seconds``: from when the thread was free, or launched ``batch``; ``busy``: from when the batch before it
        had landed, or it was launched: two that overlap on the device share no second of it."""
        metrics = self._metrics
        lengths = [slot.tokens for _, slot in batch]
        tokens, cost = sum(lengths), policy.cost(lengths)
        self._times.add(cost, tokens, seconds, policy.max_tokens)
        self._set_speed(self._speed.after(tokens, cost, busy, policy.max_tokens, alone))
        self._set_budget(self._budget.fitted(cost))
        metrics.pairs.inc(len(batch))
        metrics.tokens.inc(tokens)
        metrics.padding_tokens.inc(cost - tokens)
        metrics.pair_tokens.observe(lengths)
        metrics.batch_pairs.observe(len(batch))
        metrics.batch_tokens.observe(cost)
        metrics.batch_requests.observe(len({slot.ticket for _, slot in batch}))
        metrics.engine_time.observe(seconds)

    def _trace(self, policy: Policy, engine: Engine, flight: _Flight, before: float, now: float) -> None:
        """Note, before anybody is answered, what became of ``flight``; ``before``: when the one before it had landed,
        which an asynchronous engine computes first."""
        lengths = [slot.tokens for _, slot in flight.batch]
        tokens = sum(lengths)
        noted = Batch(
            requests=flight.traces,
            started=flight.launched,
            computing=None if flight.computing is None else max(flight.computing, before),
            ended=now,
            pairs=len(lengths),
            tokens=tokens,
            padding=policy.cost(lengths) - tokens,
            engine=engine.name,
            precision=self._precision,
            error="out_of_memory" if flight.no_memory is not None else flight.failure,
        )
        for trace in flight.traces:
            trace.was_in(noted)

    def _deliver(self, batch: Sequence[tuple[Work, Slot]], logits: Sequence[float]) -> None:
        finished = []
        with self._changed:
            for (work, slot), logit in zip(batch, logits, strict=True):
                work.logits[slot.index] = logit
                work.pending -= 1
                if work.pending == 0 and _end(work):
                    finished.append(work)
        for work in finished:
            _answer(work, work.logits)

    def _fail(self, batch: Sequence[tuple[Work, Slot]], failed: Failed) -> None:
        """End every request with a pair in ``batch``, the rest of its pairs included."""
        with self._changed:
            for ticket in {slot.ticket for _, slot in batch}:
                self._backlog.remove(ticket)
            ended = [work for work, _ in batch if _end(work)]
        for work in ended:
            _answer(work, failed)


def _traces(works: Iterable[Work]) -> tuple[Trace, ...]:
    return tuple(work.trace for work in works if work.trace is not None)


def _end(work: Work) -> bool:
    """Marks ``work`` as finished, under the lock; whether it was not yet."""
    if work.done:
        return False
    work.done = True
    return True


def _answer(work: Work, outcome: Outcome) -> None:
    try:
        work.finish(outcome)
    except Exception:
        # One request's callback must not end another's batch.
        log.exception("handing over a request's outcome failed")


def _attempt(flight: _Flight, step: Callable[[], Any]) -> Any:
    """What ``step`` gives; None when it fails, and ``flight`` says how. Raises EngineLost.

    Nothing keeps the error: its traceback keeps everything alive that the batch had allocated.
    """
    try:
        return step()
    except EngineLost:
        raise
    except EngineOutOfMemory as error:
        flight.no_memory = str(error)
    except Exception as error:
        flight.failure = type(error).__name__
        log.exception("a batch failed", extra={"fields": {"pairs": len(flight.batch)}})
    return None


def _checked(logits: list[float], pairs: int) -> list[float]:
    if len(logits) != pairs:
        raise ValueError(f"the engine gave {len(logits)} scores for {pairs} pairs")
    return logits


def _close(engine: Engine) -> None:
    try:
        engine.close()
    except Exception:
        log.exception("closing the engine failed")


def _forget_frames(error: BaseException) -> None:
    """Empty the frames that ``error`` and its causes came through: they hold a model that nobody will use, for as long
    as anybody holds the error."""
    cause: BaseException | None = error
    while cause is not None:
        traceback.clear_frames(cause.__traceback__)
        cause = cause.__cause__ or cause.__context__
