"""Budgets: which one is tried, which one is kept, and that measuring does not run out of memory."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rerank_worker.batching import Policy
from rerank_worker.engine import EngineOutOfMemory, Pair, capacity
from rerank_worker.engine.capacity import Capacity, Sample, Trial
from rerank_worker.tokenization import PairTokenizer
from tokenizers import Tokenizer

LONGEST = 512


@dataclass
class Machine:
    """An engine, its clock and its memory. ``rate``: padded tokens a second once a batch has ``overhead`` behind it;
    ``bytes_per_token``: of a batch while it is computed."""

    rate: float = 100_000.0
    overhead: float = 0.002
    bytes_per_token: int = 10_000
    total: int = 10**9
    slower_above: int = 2**31
    name: str = "machine"
    padded: bool = False
    now: float = 0.0
    largest: int = 0
    peak_bytes: int = 0
    batches: list[int] = field(default_factory=list)

    def clock(self) -> float:
        return self.now

    def free(self) -> int:
        return self.total

    def start(self) -> None:
        self.peak_bytes = 0

    def peak(self) -> int:
        return self.peak_bytes

    def prepare(self, pairs: Sequence[Pair]) -> int:
        tokens = len(pairs) * max(map(len, pairs)) if self.padded else sum(map(len, pairs))
        if tokens * self.bytes_per_token > self.total:
            raise EngineOutOfMemory(f"{tokens} tokens")
        return tokens

    def compute(self, prepared: int) -> int:
        self.largest = max(self.largest, prepared)
        self.batches.append(prepared)
        self.peak_bytes = max(self.peak_bytes, prepared * self.bytes_per_token)
        self.now += self.overhead + prepared / (self.rate if prepared <= self.slower_above else self.rate / 2)
        return prepared

    def collect(self, output: int) -> list[float]:
        return []

    def close(self) -> None:
        return None


@pytest.fixture
def sample(tokenizer: Tokenizer) -> Sample:
    return Sample(PairTokenizer(tokenizer, LONGEST), range(5, 60))


def measure(machine: Machine, sample: Sample, seconds: float, **settings: Any) -> Capacity:
    policy = Policy(max_tokens=1, bucket=16, max_length=LONGEST, max_delay=0.0)
    memory = machine if settings.get("device") == "cuda" else None
    return capacity.measure(machine, policy, sample, seconds, clock=machine.clock, memory=memory, **settings)


def test_sample_lengths_are_those_of_real_pairs(sample: Sample) -> None:
    lengths = [len(pair) for pair in sample.pairs(200_000)]
    assert sum(lengths) / len(lengths) == pytest.approx(capacity.MEAN_TOKENS, rel=0.05)
    assert max(lengths) <= LONGEST
    assert sample.pairs(5_000) == sample.pairs(5_000)
    assert {len(pair) for pair in sample.full(3)} == {LONGEST}
    assert len(sample.documents(50)) == 50
    assert len({tuple(pair.ids[:9]) for pair in sample.documents(50)}) == 1


@pytest.mark.parametrize("longest", [8, 16, 64])
def test_samples_fit_short_models(tokenizer: Tokenizer, longest: int) -> None:
    short = Sample(PairTokenizer(tokenizer, longest), range(5, 60))
    assert {len(pair) for pair in short.full(2)} == {longest}
    assert all(4 < len(pair) <= longest for pair in short.pairs(500))


def test_nothing_is_run_without_time(sample: Sample) -> None:
    machine = Machine()
    assert measure(machine, sample, 0, device="cpu") == Capacity(None, 2_048)
    assert measure(machine, sample, 0, device="cpu", budget=300) == Capacity(None, 300)
    assert machine.batches == []


def test_the_cpu_takes_the_smallest_of_the_fast_budgets(sample: Sample) -> None:
    found = measure(Machine(overhead=0.0001), sample, 1.0, device="cpu")
    assert found.max_batch_tokens == 2_048
    assert [trial.budget for trial in found.trials] == [2_048, 4_096]
    assert found.tokens_per_second == pytest.approx(100_000, rel=0.05)


def test_the_cpu_takes_a_larger_budget_where_it_pays(sample: Sample) -> None:
    assert measure(Machine(overhead=0.004), sample, 1.0, device="cpu").max_batch_tokens == 4_096


def test_padding_counts_against_a_budget(sample: Sample) -> None:
    wide = Machine(padded=True, overhead=0.0001, slower_above=600)
    found = measure(wide, sample, 1.0, device="cpu")
    assert found.max_batch_tokens == 512
    assert found.tokens_per_second is not None
    assert found.tokens_per_second < 100_000


@pytest.mark.parametrize("rate", [300.0, 3_000.0, 11_000.0, 100_000.0, 1e7])
def test_the_time_is_kept_on_machines_of_any_speed(sample: Sample, rate: float) -> None:
    machine = Machine(rate=rate, overhead=0.00001)
    found = measure(machine, sample, 1.0, device="cpu")
    # At least one pair of a batch's own size is always scored: on a very slow machine that is what it costs.
    assert machine.now < max(2.0, 4 * capacity.MEAN_TOKENS / rate + 1.0)
    assert found.tokens_per_second is not None
    assert found.tokens_per_second == pytest.approx(rate, rel=0.5)


def test_a_budget_of_the_users_own_is_kept_on_the_cpu(sample: Sample) -> None:
    found = measure(Machine(), sample, 1.0, device="cpu", budget=777)
    assert (found.max_batch_tokens, found.lowered) == (777, None)
    assert found.tokens_per_second is not None


def test_a_gpu_grows_until_it_is_not_faster(sample: Sample) -> None:
    found = measure(Machine(rate=1e6, overhead=0.002, total=80 * 10**9), sample, 60.0, device="cuda")
    budgets = [trial.budget for trial in found.trials]
    assert budgets == [4_096 * 2**step for step in range(len(budgets))]
    assert 16_384 < found.max_batch_tokens < budgets[-1]
    assert found.bytes_per_token == pytest.approx(10_000, rel=0.01)


def test_a_gpu_stops_where_memory_does(sample: Sample) -> None:
    machine = Machine(rate=1e6, overhead=0.5, total=10_000 * 30_000)
    found = measure(machine, sample, 60.0, device="cuda")
    assert found.max_batch_tokens == 16_384
    assert machine.largest <= 0.8 * 30_000


def test_a_gpu_without_time_keeps_what_it_knows(sample: Sample) -> None:
    machine = Machine(rate=1e5, overhead=0.01)
    found = measure(machine, sample, 0.5, device="cuda")
    assert [trial.budget for trial in found.trials] == [4_096]
    assert found.max_batch_tokens == 4_096


def test_a_budget_that_does_not_fit_is_lowered_and_told(sample: Sample) -> None:
    machine = Machine(rate=1e6, total=10_000 * 30_000)
    found = measure(machine, sample, 60.0, device="cuda", budget=100_000)
    assert found.max_batch_tokens == 16_384
    assert found.lowered is not None
    assert "spec.batching.maxBatchTokens is 100000" in found.lowered
    assert "16384 is used" in found.lowered


def test_a_budget_that_fits_is_used_though_it_is_no_faster(sample: Sample) -> None:
    machine = Machine(rate=1e6, overhead=0.0, total=80 * 10**9)
    found = measure(machine, sample, 60.0, device="cuda", budget=100_000)
    assert (found.max_batch_tokens, found.lowered) == (100_000, None)
    in_a_hurry = measure(Machine(total=80 * 10**9), sample, 0.1, device="cuda", budget=100_000)
    assert (in_a_hurry.max_batch_tokens, in_a_hurry.lowered) == (100_000, None)


def test_memory_that_ends_before_its_time_keeps_the_budget_that_fitted(sample: Sample) -> None:
    class Fragmented(Machine):
        def peak(self) -> int:
            return 0

    found = measure(Fragmented(rate=1e6, overhead=0.5, total=10_000 * 20_000), sample, 60.0, device="cuda")
    assert found.max_batch_tokens == 16_384


def test_a_device_without_room_for_one_batch_says_so(sample: Sample) -> None:
    with pytest.raises(EngineOutOfMemory):
        measure(Machine(total=10_000 * 100), sample, 1.0, device="cuda")


@given(
    peaks=st.lists(st.integers(0, 10**9), min_size=1, max_size=8),
    room=st.integers(1, 10**11),
    asked=st.none() | st.integers(1, 10**6),
)
def test_no_budget_is_tried_that_the_last_ones_say_is_too_large(peaks: list[int], room: int, asked: int | None) -> None:
    trials = [Trial(4_096 * 2**step, 1000.0 * (step + 1), peak) for step, peak in enumerate(peaks)]
    following = capacity.next_budget(trials, room, LONGEST, asked)
    if following is not None:
        assert following > trials[-1].budget
        assert following * max(trial.bytes / trial.budget for trial in trials if trial.bytes is not None) <= room
        assert asked is None or following <= asked


@given(st.lists(st.floats(1.0, 1e6), min_size=1, max_size=8))
def test_the_best_budget_is_fast_and_no_smaller_one_is_as_fast(speeds: list[float]) -> None:
    trials = [Trial(1_024 * 2**step, speed) for step, speed in enumerate(speeds)]
    chosen = capacity.best(trials)
    assert chosen.tokens_per_second >= 0.95 * max(speeds)
    assert all(trial.tokens_per_second < 0.95 * max(speeds) for trial in trials if trial.budget < chosen.budget)


@given(st.lists(st.integers(1, 64), min_size=1, max_size=60), st.integers(1, 600))
def test_cutting_loses_and_doubles_nothing(lengths: list[int], budget: int) -> None:
    pairs = [Pair([index] * length, [0] * length) for index, length in enumerate(lengths)]
    batches = capacity.cut(pairs, Policy(budget, 1, 64, 0.0))
    assert sorted(pair.ids[0] for batch in batches for pair in batch) == list(range(len(pairs)))
