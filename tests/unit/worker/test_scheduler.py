"""The engine thread: every request is finished exactly once, whatever happens; order, overlap, supervision, turns.

Most tests drive ``step`` themselves with a clock of their own, so that time passes only when the engine computes.
"""

import gc
import math
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from rerank_api.wire import Priority
from rerank_worker.engine import EngineLost, EngineOutOfMemory, Pair
from rerank_worker.failures import ConfigurationFailure
from rerank_worker.metrics import Metrics
from rerank_worker.scheduler import MAX_FAILED_BATCHES, EngineThread, Failed, Outcome, Work
from rerank_worker.turns import Turns

from .conftest import WAIT, ObedientEngine, make_loaded

SECONDS_PER_TOKEN = 0.001


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class SimulatedEngine:
    """Scores a pair by its length; each token takes a millisecond of ``clock``'s time."""

    clock: Clock
    asynchronous: bool = False
    padded: bool = False
    memory: float = math.inf
    """Tokens beyond which a batch is out of memory."""
    failures: list[Exception | None] = field(default_factory=list)
    """What the next batches raise when they are collected; None: nothing."""
    name: str = "simulated"
    log: list[str] = field(default_factory=list)
    batches: list[list[int]] = field(default_factory=list)
    closed: bool = False

    def prepare(self, pairs: Sequence[Pair]) -> list[int]:
        return [len(pair) for pair in pairs]

    def compute(self, prepared: list[int]) -> list[int]:
        if sum(prepared) > self.memory:
            raise EngineOutOfMemory("simulated")
        self.log.append(f"compute {len(self.batches)}")
        self.batches.append(prepared)
        return prepared

    def collect(self, output: list[int]) -> list[float]:
        self.clock.now += sum(output) * SECONDS_PER_TOKEN
        self.log.append(f"collect {next(n for n, batch in enumerate(self.batches) if batch is output)}")
        if self.failures and (failure := self.failures.pop(0)) is not None:
            raise failure
        return [float(tokens) for tokens in output]

    def close(self) -> None:
        self.closed = True


@dataclass(eq=False)
class Asked:
    """A request of a test and what became of it."""

    lengths: list[int]
    outcomes: list[Outcome] = field(default_factory=list)
    ticket: int = -1
    abandoned: bool = False

    @property
    def outcome(self) -> Outcome:
        (outcome,) = self.outcomes
        return outcome


class Bench:
    """An engine thread that is stepped by the test."""

    def __init__(
        self,
        engine: SimulatedEngine | None = None,
        turns: Turns | None = None,
        tokens_per_second: float | None = None,
        **policy: Any,
    ) -> None:
        self.clock = engine.clock if engine is not None else Clock()
        self.engine = engine or SimulatedEngine(self.clock)
        self.metrics = Metrics()
        self.thread = EngineThread(
            lambda: pytest.fail("not started"), self.metrics, 60.0, turns=turns, model="m", clock=self.clock
        )
        loaded = make_loaded(self.engine, **({"max_tokens": 32} | policy))  # ty: ignore[invalid-argument-type]
        self.thread.begin(replace(loaded, info=loaded.info | {"tokensPerSecond": tokens_per_second}))

    def ask(self, *lengths: int, priority: Priority = "normal", within: float = math.inf) -> Asked:
        asked = Asked(list(lengths))
        pairs = [Pair([1] * tokens, [0] * tokens) for tokens in lengths]
        work = Work(pairs, self.clock.now + within, asked.outcomes.append, priority)
        asked.ticket = self.thread.submit(work)
        return asked

    def drain(self, most: int = 10_000) -> None:
        """Step until nothing is left to do."""
        for _ in range(most):
            wait = self.thread.step()
            if wait is None or (wait > 0 and not self.thread._backlog):
                return
            self.clock.now += wait
        raise AssertionError("it does not come to an end")

    def metric(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


class EveryRequest(RuleBasedStateMachine):
    """Arrivals, clients that leave, time, failures and lack of memory in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.bench: Bench | None = None
        self.requests: list[Asked] = []

    @precondition(lambda self: self.bench is None)
    @rule(asynchronous=st.booleans(), padded=st.booleans())
    def start(self, asynchronous: bool, padded: bool) -> None:
        clock = Clock()
        self.bench = Bench(SimulatedEngine(clock, asynchronous, padded))

    @property
    def _bench(self) -> Bench:
        assert self.bench is not None
        return self.bench

    @precondition(lambda self: self.bench)
    @rule(
        lengths=st.lists(st.integers(1, 32), min_size=1, max_size=40),
        priority=st.sampled_from(["high", "normal", "low"]),
        within=st.sampled_from([0.0, 0.01, 0.1, 1.0, 1000.0]),
    )
    def arrive(self, lengths: list[int], priority: Priority, within: float) -> None:
        self.requests.append(self._bench.ask(*lengths, priority=priority, within=within))

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def abandon(self, data: st.DataObject) -> None:
        asked = data.draw(st.sampled_from(self.requests))
        if self._bench.thread.abandon(asked.ticket):
            assert not asked.abandoned
            assert not asked.outcomes
            asked.abandoned = True

    @precondition(lambda self: self.bench)
    @rule(seconds=st.sampled_from([0.001, 0.05, 2.0]))
    def wait(self, seconds: float) -> None:
        self._bench.clock.now += seconds

    @precondition(lambda self: self.bench)
    @rule(count=st.integers(1, 5))
    def work(self, count: int) -> None:
        for _ in range(count):
            self._bench.thread.step()

    @precondition(lambda self: self.bench)
    @rule(memory=st.sampled_from([8.0, 16.0, 31.0, math.inf]))
    def change_memory(self, memory: float) -> None:
        self._bench.engine.memory = memory

    @precondition(lambda self: self.bench)
    @rule()
    def fail(self) -> None:
        # Not so many in a row that the engine counts as lost: that has its own test.
        self._bench.engine.failures = [RuntimeError("odd"), None]

    @precondition(lambda self: self.bench)
    @rule()
    def fail_all(self) -> None:
        self._bench.thread.fail_all("asked for")

    @invariant()
    def at_most_once(self) -> None:
        assert all(len(asked.outcomes) <= 1 - asked.abandoned for asked in self.requests)

    def teardown(self) -> None:
        if self.bench is None:
            return
        self.bench.engine.failures = []
        self.bench.drain()
        for asked in self.requests:
            assert len(asked.outcomes) == 1 - asked.abandoned
            if asked.outcomes and not isinstance(asked.outcome, Failed):
                assert asked.outcome == asked.lengths
        assert self.bench.thread._backlog.tokens == 0
        assert not self.bench.thread._flights


TestEveryRequestIsFinishedOnce = EveryRequest.TestCase
TestEveryRequestIsFinishedOnce.settings = settings(max_examples=60, stateful_step_count=30)


def test_priorities_go_in_order_and_are_told_apart() -> None:
    bench = Bench(max_tokens=8)
    for tokens, priority in ((5, "low"), (6, "normal"), (7, "high")):
        bench.ask(tokens, priority=priority)
    bench.drain()
    assert bench.engine.batches == [[7], [6], [5]]
    counts = [bench.metric("rerank_worker_queue_time_seconds_count", priority=name) for name in ("high", "low")]
    assert counts == [1, 1]
    assert bench.metric("rerank_worker_queue_time_seconds_sum", priority="low") == pytest.approx(0.013)
    assert bench.metric("rerank_worker_pair_tokens_count") == 3
    assert bench.metric("rerank_worker_pair_tokens_sum") == 18


def test_an_engine_that_computes_by_itself_gets_the_next_batch_before_the_scores_are_asked_for() -> None:
    bench = Bench(SimulatedEngine(Clock(), asynchronous=True))
    first, second = bench.ask(*[16] * 6), bench.ask(16)
    bench.drain()
    # The last batch is not full: more may join it while the one before is computed.
    expected = ["compute 0", "compute 1", "collect 0", "compute 2", "collect 1", "collect 2", "compute 3", "collect 3"]
    assert bench.engine.log == expected
    assert (first.outcome, second.outcome) == ([16.0] * 6, [16.0])
    # Two batches that overlap are not counted as taking the time of both.
    assert bench.metric("rerank_worker_engine_time_seconds_sum") == pytest.approx(7 * 16 * SECONDS_PER_TOKEN)


def test_another_engine_computes_one_batch_after_the_other() -> None:
    bench = Bench()
    bench.ask(*[16] * 4)
    bench.drain()
    assert bench.engine.log == ["compute 0", "collect 0", "compute 1", "collect 1"]


def test_a_batch_that_fails_beside_another_fails_its_own_requests_only() -> None:
    bench = Bench(SimulatedEngine(Clock(), asynchronous=True, failures=[RuntimeError("odd")]))
    asked = [bench.ask(32) for _ in range(3)]
    bench.drain()
    assert isinstance(asked[0].outcome, Failed)
    assert [one.outcome for one in asked[1:]] == [[32.0], [32.0]]


@pytest.mark.parametrize("asynchronous", [True, False])
def test_lack_of_memory_splits_the_batch_and_the_budget_grows_again_below_what_failed(asynchronous: bool) -> None:
    bench = Bench(SimulatedEngine(Clock(), asynchronous, memory=1000), max_tokens=1600, max_length=32)
    asked = [bench.ask(*[16] * 100) for _ in range(2)]
    bench.drain()
    assert [one.outcome for one in asked] == [[16.0] * 100] * 2
    failures = bench.metric("rerank_worker_out_of_memory_recoveries_total")
    assert failures <= 2
    assert bench.metric("rerank_worker_batch_budget_tokens", model="m") <= 800
    for _ in range(40):
        bench.ask(*[16] * 500)
    bench.drain()
    assert bench.metric("rerank_worker_out_of_memory_recoveries_total") <= failures + 1
    assert 800 < bench.metric("rerank_worker_batch_budget_tokens", model="m") <= 1000


def test_the_rest_of_a_failed_request_is_not_scored() -> None:
    bench = Bench(SimulatedEngine(Clock(), failures=[RuntimeError("odd")]))
    failed, other = bench.ask(*[32] * 50), bench.ask(8)
    bench.drain()
    assert isinstance(failed.outcome, Failed)
    assert other.outcome == [8.0]
    assert bench.engine.batches == [[32], [8]]


@pytest.mark.parametrize("asynchronous", [True, False])
def test_whoever_gives_up_answers_the_batches_that_are_being_computed_too(asynchronous: bool) -> None:
    """The watch of a stalled engine calls ``fail_all`` while the thread waits for the device."""
    bench = Bench(SimulatedEngine(Clock(), asynchronous, memory=100))
    asked = [bench.ask(32) for _ in range(4)]
    told: list[int] = []

    def collect(output: list[int]) -> list[float]:
        if not told:
            bench.thread.fail_all("stalled")
            told.extend(len(one.outcomes) for one in asked)
        return [float(tokens) for tokens in output]

    bench.engine.collect = collect
    bench.drain()
    assert told == [1, 1, 1, 1]
    assert all(isinstance(one.outcome, Failed) for one in asked)


def test_what_is_known_not_to_fit_is_not_tried_again_in_parts() -> None:
    bench = Bench(SimulatedEngine(Clock(), memory=100), max_tokens=1600, max_length=32)
    asked = bench.ask(*[16] * 100)
    bench.drain()
    assert asked.outcome == [16.0] * 100
    # 1,600, 800, 400, 200 and 100 tokens once each; the other parts are cut before they are tried.
    assert bench.metric("rerank_worker_out_of_memory_recoveries_total") <= 5


def test_a_request_that_cannot_be_scored_in_time_is_told_so_at_once() -> None:
    bench = Bench()
    for _ in range(3):
        bench.ask(32)
    bench.drain()
    large, small = bench.ask(*[32] * 100, within=1.0), bench.ask(32, within=1.0)
    scored = len(bench.engine.batches)
    bench.drain()
    assert isinstance(large.outcome, Failed)
    assert large.outcome.code == "deadline"
    assert small.outcome == [32.0]
    assert len(bench.engine.batches) == scored + 1
    assert bench.metric("rerank_worker_dropped_requests_total", reason="unreachable") == 1


def test_a_batch_waits_for_company_when_it_pays_and_no_longer_than_the_policy_says() -> None:
    bench = Bench(max_delay=0.05)
    thread, clock = bench.thread, bench.clock
    # Batches take 20 ms and a millisecond for each token; tokenizing takes 5 ms.
    for tokens in (1, 2, 4, 8):
        thread._times.add(tokens, tokens, 0.02 + tokens * SECONDS_PER_TOKEN, 1000)
    with thread.expecting():
        clock.now += 0.005
    first = bench.ask(3)
    with thread.expecting():
        assert thread.step() == pytest.approx(0.005)
        assert not first.outcomes
        clock.now += 0.005
        second = bench.ask(4)
    bench.drain()
    assert bench.engine.batches == [[4, 3]]
    assert (first.outcome, second.outcome) == ([3.0], [4.0])
    with thread.expecting():
        third = bench.ask(5)
        clock.now += 0.051
        bench.drain()
        assert third.outcome == [5.0]
        bench.ask(6, priority="high")
        bench.drain()
        assert bench.engine.batches[-1] == [6]


@pytest.mark.parametrize("asynchronous", [True, False])
def test_the_capacity_that_was_measured_on_a_busy_node_is_corrected_by_what_is_served(asynchronous: bool) -> None:
    """It was told as measured for ever: 419 tokens/s of an engine that does 2,700."""
    bench = Bench(SimulatedEngine(Clock(), asynchronous), tokens_per_second=150.0)
    name = "rerank_worker_capacity_tokens_per_second"
    assert (bench.metric(name, model="m"), bench.thread.tokens_per_second) == (150, 150)
    bench.ask(*[16] * 60)
    bench.drain()
    assert bench.metric(name, model="m") == pytest.approx(1 / SECONDS_PER_TOKEN)
    assert bench.thread.tokens_per_second == pytest.approx(1 / SECONDS_PER_TOKEN)


def test_a_callback_that_fails_concerns_nobody_else() -> None:
    bench = Bench()

    def broken(_: Outcome) -> None:
        raise RuntimeError("the loop is closed")

    bench.thread.submit(Work([Pair([1], [0])], math.inf, broken))
    asked = bench.ask(1)
    bench.drain()
    assert asked.outcome == [1.0]


# With the real thread.


def started(
    engine: Any,
    *,
    clock: Callable[[], float] = time.monotonic,
    stall_limit: float = 60.0,
    turns: Turns | None = None,
    max_tokens: int = 256,
) -> EngineThread:
    build = partial(make_loaded, engine, max_tokens=max_tokens)
    thread = EngineThread(build, Metrics(), stall_limit, turns=turns, clock=clock)
    thread.start()
    thread.loaded.result(WAIT)
    return thread


@dataclass
class Answer:
    """Waits for a request's outcome."""

    came: threading.Event = field(default_factory=threading.Event)
    outcomes: list[Outcome] = field(default_factory=list)

    def __call__(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self.came.set()

    def wait(self) -> Outcome:
        assert self.came.wait(WAIT)
        (outcome,) = self.outcomes
        return outcome


def submit(thread: EngineThread, tokens: int = 4) -> Answer:
    answer = Answer()
    thread.submit(Work([Pair([1] * tokens, [0] * tokens)], math.inf, answer))
    return answer


def wait_until(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(int(WAIT / 0.002)):
        if condition():
            return
        pause.wait(0.002)
    raise AssertionError("it did not come to that")


def test_a_lost_engine_answers_what_waits_and_what_comes_later() -> None:
    engine = ObedientEngine(failures=[EngineLost("gone")])
    engine.open.clear()
    thread = started(engine, max_tokens=4)
    answers = [submit(thread) for _ in range(3)]
    engine.open.set()
    assert all(isinstance(answer.wait(), Failed) for answer in answers)
    wait_until(lambda: thread.unhealthy() is not None)
    assert "gone" in str(thread.unhealthy())
    late = submit(thread).wait()
    assert isinstance(late, Failed)
    assert late.code == "unavailable"


def test_who_comes_while_the_thread_ends_is_answered() -> None:
    late: list[Answer] = []

    class Closing(ObedientEngine):
        def close(self) -> None:
            # In the engine thread, which still lives.
            late.append(submit(thread))

    thread = started(Closing())
    assert thread.stop(WAIT)
    assert isinstance(late[0].wait(), Failed)


def test_an_engine_that_fails_always_counts_as_lost() -> None:
    thread = started(ObedientEngine(failures=[RuntimeError("odd")] * MAX_FAILED_BATCHES))
    for _ in range(MAX_FAILED_BATCHES):
        assert isinstance(submit(thread).wait(), Failed)
    wait_until(lambda: thread.unhealthy() is not None)


def test_who_comes_after_the_end_is_answered_and_the_engine_is_closed() -> None:
    engine = SimulatedEngine(Clock())
    thread = started(engine)
    assert thread.stop(WAIT)
    assert engine.closed
    assert isinstance(submit(thread).wait(), Failed)


def test_what_waits_is_scored_before_the_end() -> None:
    engine = ObedientEngine()
    engine.open.clear()
    thread = started(engine, max_tokens=4)
    answers = [submit(thread) for _ in range(3)]
    stopped = threading.Thread(target=thread.stop, args=(WAIT,))
    stopped.start()
    engine.open.set()
    assert [answer.wait() for answer in answers] == [[4.0]] * 3
    stopped.join(WAIT)


def test_a_batch_may_take_as_long_as_its_like_and_not_for_ever() -> None:
    """A slow engine that makes progress is not ended at the floor of 60 s (a large model on a CPU was)."""
    clock, engine = Clock(), ObedientEngine()
    thread = started(engine, clock=clock, stall_limit=60.0)
    thread._times.add(8, 4, 10.0, 256)
    engine.open.clear()
    answer = submit(thread)
    wait_until(lambda: engine.computing == 1)
    clock.now += 199
    assert thread.unhealthy() is None
    clock.now += 2
    assert "limit 200 s" in str(thread.unhealthy())
    engine.open.set()
    assert answer.wait() == [4.0]
    wait_until(lambda: thread.unhealthy() is None)
    thread.stop(WAIT)


def test_a_quick_engine_is_stalled_at_the_floor() -> None:
    clock, engine = Clock(), ObedientEngine()
    thread = started(engine, clock=clock, stall_limit=60.0)
    thread._times.add(8, 4, 0.01, 256)
    engine.open.clear()
    answer = submit(thread)
    wait_until(lambda: engine.computing == 1)
    clock.now += 61
    assert thread.unhealthy() is not None
    thread.fail_all("stalled")
    assert isinstance(answer.wait(), Failed)
    engine.open.set()
    thread.stop(WAIT)
    assert len(answer.outcomes) == 1


class Shared(ObedientEngine):
    """Notes in ``order`` whose batch the device runs, and that it runs one at a time."""

    def __init__(self, order: list[str], name: str, device: threading.Lock) -> None:
        super().__init__(name=name)
        self.order, self.device = order, device

    def compute(self, prepared: list[Pair]) -> list[float]:
        assert self.device.acquire(blocking=False), "two batches at a time"
        self.order.append(self.name)
        try:
            return super().compute(prepared)
        finally:
            self.device.release()


def test_models_that_share_a_device_take_turns() -> None:
    turns, order, device = Turns(), [], threading.Lock()
    engines = [Shared(order, name, device) for name in ("a", "b", "idle")]
    for engine in engines:
        engine.open.clear()
    threads = [started(engine, turns=turns, max_tokens=4) for engine in engines]
    answers = [submit(thread) for _ in range(20) for thread in threads[:2]]
    # Both have stood in line before the first batch ends.
    wait_until(turns.others_wait)
    for engine in engines:
        engine.open.set()
    assert all(answer.wait() == [4.0] for answer in answers)
    assert sorted(order) == ["a"] * 20 + ["b"] * 20
    both = order[: 2 * 15]
    assert all(first != second for first, second in pairwise(both)), order
    assert submit(threads[2]).wait() == [4.0]
    assert all(thread.stop(WAIT) for thread in threads)
    assert not turns.others_wait()


def test_a_model_whose_thread_dies_gives_its_turn_up() -> None:
    turns = Turns()
    lost = started(ObedientEngine(failures=[EngineLost("gone")]), turns=turns)
    other = started(ObedientEngine(), turns=turns)
    assert isinstance(submit(lost).wait(), Failed)
    assert submit(other).wait() == [4.0]
    assert other.stop(WAIT)


def test_turns_are_first_come_first_served_and_a_place_is_kept() -> None:
    turns = Turns()
    assert turns.wait("a", 0)
    assert not turns.wait("b", 0)
    assert not turns.wait("c", 0)
    assert turns.others_wait()
    turns.leave("a")
    assert not turns.wait("c", 0)
    assert turns.wait("b", 0)
    turns.leave("c")
    turns.leave("b")
    turns.leave("b")
    assert turns.wait("c", 0)


class _Weights:
    """What a load had in memory when it failed."""


@pytest.mark.parametrize("cause", [None, MemoryError("room")])
def test_a_load_that_failed_keeps_nothing_in_memory(cause: Exception | None) -> None:
    kept: list[weakref.ref[_Weights]] = []

    def read() -> None:
        weights = _Weights()
        kept.append(weakref.ref(weights))
        if cause is not None:
            raise cause

    def build() -> Any:
        weights = _Weights()
        kept.append(weakref.ref(weights))
        try:
            read()
        except MemoryError as error:
            raise ConfigurationFailure("too large") from error
        raise ConfigurationFailure("below the floor")

    thread = EngineThread(build, Metrics())
    gc.disable()
    try:
        thread.start()
        failure = thread.loaded.exception(WAIT)
        assert isinstance(failure, ConfigurationFailure)
        assert [found() for found in kept] == [None, None]
    finally:
        gc.enable()
