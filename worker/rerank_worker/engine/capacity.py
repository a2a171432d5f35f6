"""What an engine can do here, by real forward passes: its speed in tokens a second and its best token budget.

Decisions (which budget to try next, which to keep) are functions of what was measured. Works on synthetic pairs only;
never provokes running out of memory: a budget is tried when the smaller ones say that it fits.
"""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Protocol

import numpy as np

from rerank_worker.batching import Backlog, Policy
from rerank_worker.engine import Engine, EngineOutOfMemory, Pair
from rerank_worker.engine.device import ChosenDevice
from rerank_worker.loading.checkpoint import Checkpoint
from rerank_worker.tokenization import PairTokenizer

log = logging.getLogger(__name__)

SECONDS: dict[ChosenDevice, float] = {"cpu": 1.0, "cuda": 3.0}
"""How long ``measure`` takes at start, about."""

MEAN_TOKENS = 110
"""Mean length of a realistic pair; lengths are log-normal (tests/bench/worker uses the same)."""

_SPREAD = 0.6
"""Standard deviation of the logarithm of a pair's length."""

CPU_BUDGETS = {True: (512, 1_024, 2_048), False: (2_048, 4_096)}
"""Budgets worth trying on a CPU, by whether batches are padded. A CPU has no more parallelism to fill after a few
pairs: beyond that a batch only falls out of its caches, pads more and keeps later requests waiting. Unpadded batches of
1,024 tokens are 7 % slower than of 2,048 in float32 and 25 % in int8 (MiniLM shape, 2 cores), which one look at start
does not always see."""

DEFAULT_BUDGETS: dict[tuple[ChosenDevice, bool], int] = {
    ("cpu", True): 1_024,
    ("cpu", False): 2_048,
    ("cuda", True): 16_384,
    ("cuda", False): 16_384,
}
"""What is used unmeasured, by device and by whether batches are padded."""

CUDA_FIRST, CUDA_LAST = 4_096, 1_048_576

MEMORY_SHARE = 0.8
"""Of the free memory: the rest is for fragmentation and for batches of shapes that were not tried."""

SAME_SPEED = 0.05
"""Speeds nearer than this count as equal; of equal budgets the smaller one keeps others waiting for less time."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One budget. ``tokens_per_second``: real tokens, padding not counted; ``bytes``: what the largest batch of
    full-length pairs took beyond the model itself (None: not known on this device)."""

    budget: int
    tokens_per_second: float
    bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Capacity:
    """``tokens_per_second``: None when nothing was measured. ``lowered``: why a budget that was asked for is not used,
    a sentence; None when it is."""

    tokens_per_second: float | None
    max_batch_tokens: int
    bytes_per_token: float | None = None
    trials: tuple[Trial, ...] = ()
    lowered: str | None = None


class Memory(Protocol):
    """Device memory, as ``measure`` needs to see it."""

    def free(self) -> int:
        """Bytes that this process could still take, its allocator's unused ones included."""
        ...

    def start(self) -> None:
        """Watch the peak from now on."""
        ...

    def peak(self) -> int:
        """Most bytes that were taken since ``start``, beyond those taken then."""
        ...


class CudaMemory:
    """The current CUDA device, by torch's allocator and the driver."""

    def __init__(self) -> None:
        self._allocated = 0
        self._free = 0

    def free(self) -> int:
        import torch

        return torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()

    def start(self) -> None:
        import torch

        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        self._allocated, self._free = torch.cuda.memory_allocated(), self.free()

    def peak(self) -> int:
        import torch

        torch.cuda.synchronize()
        # A replayed CUDA graph allocates nothing, but its pool has left the free memory when it was captured.
        return max(torch.cuda.max_memory_allocated() - self._allocated, self._free - self.free(), 0)


class Sample:
    """Synthetic pairs put together as the model's tokenizer does it: random ordinary tokens, no text."""

    def __init__(self, tokenizer: PairTokenizer, ordinary: Sequence[int], seed: int = 0) -> None:
        self._tokenizer = tokenizer
        self._ordinary = np.asarray(ordinary, dtype=np.int64)
        self._seed = seed
        self.max_length = tokenizer.max_length

    @classmethod
    def of(cls, checkpoint: Checkpoint, tokenizer: PairTokenizer) -> "Sample":
        """Tokens that both the tokenizer and the model's embeddings have, special ones left out."""
        size = min(len(checkpoint.tokenizer), checkpoint.config.get("vocab_size") or len(checkpoint.tokenizer))
        special = set(checkpoint.tokenizer.all_special_ids)
        return cls(tokenizer, [token for token in range(size) if token not in special])

    def pairs(self, tokens: int) -> list[Pair]:
        """Pairs of realistic length, together at least ``tokens`` long; the same ones at every call."""
        random = np.random.default_rng(self._seed)
        pairs: list[Pair] = []
        total = 0
        while total < tokens:
            pair = self._pair(random, _realistic_length(random, self.max_length))
            pairs.append(pair)
            total += len(pair)
        return pairs

    def documents(self, count: int) -> list[Pair]:
        """``count`` pairs of realistic length with one query."""
        random = np.random.default_rng(self._seed)
        query = self._tokens(random, self._query_length())
        return [self._pair(random, _realistic_length(random, self.max_length), query) for _ in range(count)]

    def full(self, count: int) -> list[Pair]:
        """``count`` pairs of the model's full length: the worst case for memory."""
        random = np.random.default_rng(self._seed)
        return [self._pair(random, self.max_length) for _ in range(count)]

    def _pair(self, random: np.random.Generator, length: int, query: list[int] | None = None) -> Pair:
        query = self._tokens(random, self._query_length()) if query is None else query
        room = self._tokenizer.room(query)
        document = self._tokens(random, max(1, min(room, room - (self.max_length - length))))
        return self._tokenizer.pair(query, document)[0]

    def _query_length(self) -> int:
        return max(1, min(8, self.max_length // 8))

    def _tokens(self, random: np.random.Generator, count: int) -> list[int]:
        return random.choice(self._ordinary, size=count).tolist()


def _realistic_length(random: np.random.Generator, longest: int) -> int:
    return min(longest, max(8, round(random.lognormal(math.log(MEAN_TOKENS) - _SPREAD**2 / 2, _SPREAD))))


def measure(
    engine: Engine,
    policy: Policy,
    sample: Sample,
    seconds: float,
    *,
    device: ChosenDevice,
    budget: int | None = None,
    memory: Memory | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Capacity:
    """The speed of ``engine`` and the token budget to serve with, in about ``seconds``; 0: nothing is run.

    ``engine`` has scored a pair of full length already. ``budget``: what the user asked for; then only the speed is
    measured, and a budget that would not fit into the device's memory is lowered. ``memory``: by default that of the
    CUDA device, and none for the CPU, where a budget is never large enough to matter. Raises EngineOutOfMemory when not
    even the smallest batch fits, and what the engine raises.
    """
    default = budget or DEFAULT_BUDGETS[device, engine.padded]
    policy = replace(policy, padded=engine.padded)
    if seconds <= 0:
        return Capacity(None, default)
    if memory is None and device == "cuda":
        memory = CudaMemory()
    deadline = clock() + seconds
    if memory is not None:
        capacity = _grow(engine, policy, sample, deadline, budget, default, memory, clock)
    else:
        capacity = _compare(engine, policy, sample, seconds, deadline, budget, default, clock)
    if capacity.lowered is not None:
        log.warning(capacity.lowered)
    return capacity


def _compare(
    engine: Engine,
    policy: Policy,
    sample: Sample,
    seconds: float,
    deadline: float,
    budget: int | None,
    default: int,
    clock: Callable[[], float],
) -> Capacity:
    """A few budgets in turn, until the deadline: the CPU's way."""
    first = sample.pairs(1)
    speed = _tokens(first) / run(engine, [first], clock)
    budgets = affordable(CPU_BUDGETS[engine.padded] if budget is None else (budget,), speed * seconds, default)
    tokens = max(budgets) if len(budgets) > 1 else min(max(budgets), int(speed * seconds / 2))
    pairs = sample.pairs(max(1, tokens))
    plans = {budget: cut(pairs, replace(policy, max_tokens=budget)) for budget in budgets}
    speeds: dict[int, list[float]] = {budget: [] for budget in budgets}
    while True:
        started = clock()
        for candidate, batches in plans.items():
            speeds[candidate].append(_tokens(pairs) / run(engine, batches, clock))
        now = clock()
        if now + (now - started) > deadline:
            break
    trials = tuple(Trial(candidate, median(found)) for candidate, found in speeds.items())
    chosen = best(trials)
    return Capacity(chosen.tokens_per_second, chosen.budget, None, trials)


def _grow(
    engine: Engine,
    policy: Policy,
    sample: Sample,
    deadline: float,
    budget: int | None,
    default: int,
    memory: Memory,
    clock: Callable[[], float],
) -> Capacity:
    """Larger and larger budgets, each first with pairs of full length, until memory or speed says stop: a GPU's way."""
    room = int(memory.free() * MEMORY_SHARE)
    trials: list[Trial] = []
    out_of_memory = False
    spent = 0.0
    while (candidate := next_budget(trials, room, sample.max_length, budget)) is not None:
        started = clock()
        # Twice the tokens, about twice the time.
        if trials and started + 2 * spent > deadline:
            break
        try:
            memory.start()
            run(engine, [sample.full(max(1, candidate // sample.max_length))], clock)
            taken = memory.peak()
            batches = cut(sample.pairs(2 * candidate), replace(policy, max_tokens=candidate))
            tokens = sum(map(_tokens, batches))
            run(engine, batches, clock)
            speed = median(tokens / run(engine, batches, clock) for _ in range(3))
        except EngineOutOfMemory:
            if not trials:
                raise
            out_of_memory = True
            break
        trials.append(Trial(candidate, speed, taken))
        spent = clock() - started
    per_token = max((trial.bytes or 0) / trial.budget for trial in trials)
    chosen = best(trials) if budget is None else trials[-1]
    lowered = None
    if budget is not None and chosen.budget < budget:
        if out_of_memory or per_token * budget > room:
            lowered = (
                f"spec.batching.maxBatchTokens is {budget}, but a batch of full-length pairs of so many tokens does "
                f"not fit into {MEMORY_SHARE:.0%} of the device's free memory: {chosen.budget} is used"
            )
        else:
            # There was no time to try it, and nothing speaks against it.
            chosen = replace(chosen, budget=budget)
    return Capacity(chosen.tokens_per_second, chosen.budget, per_token, tuple(trials), lowered)


def affordable(budgets: Sequence[int], tokens: float, default: int) -> tuple[int, ...]:
    """Those of ``budgets`` that can each be tried once when ``tokens`` can be scored in the time; else ``default``.

    Also keeps a slow machine from batches that would hold later requests up for long.
    """
    for count in range(len(budgets), 1, -1):
        if count * budgets[count - 1] <= tokens:
            return tuple(budgets[:count])
    return (default,)


def next_budget(trials: Sequence[Trial], room: int, longest: int, asked: int | None) -> int | None:
    """The budget to try after ``trials``; None: enough is known.

    ``room``: bytes that a batch may take; ``longest``: tokens of the longest pair; ``asked``: try no more than this and
    go on when speed does not grow, since it is what will be used.
    """
    last = CUDA_LAST if asked is None else max(asked, 1)
    if not trials:
        return min(max(CUDA_FIRST, longest), last)
    previous = trials[-1]
    if previous.budget >= last:
        return None
    grew = len(trials) < 2 or previous.tokens_per_second >= trials[-2].tokens_per_second * (1 + SAME_SPEED / 2)
    if asked is None and not grew:
        return None
    following = min(previous.budget * 2, last)
    per_token = max((trial.bytes or 0) / trial.budget for trial in trials)
    return following if per_token * following <= room else None


def best(trials: Sequence[Trial]) -> Trial:
    """The smallest budget that is as fast as the fastest one, but for noise."""
    fastest = max(trial.tokens_per_second for trial in trials)
    good = [trial for trial in trials if trial.tokens_per_second >= fastest * (1 - SAME_SPEED)]
    return min(good, key=lambda trial: trial.budget)


def policy_for(checkpoint: Checkpoint, padded: bool, max_tokens: int) -> Policy:
    """How batches of ``max_tokens`` are cut for an engine whose batches are ``padded``, or not."""
    return Policy(max_tokens, checkpoint.length_bucket, checkpoint.max_length, 0.0, padded)


def cut(pairs: Sequence[Pair], policy: Policy) -> list[list[Pair]]:
    """``pairs`` in the batches that serving would make of them when all had come in one request."""
    backlog: Backlog[None] = Backlog()
    if pairs:
        backlog.add(None, [len(pair) for pair in pairs], 0.0, math.inf)
    batches = []
    while backlog:
        batches.append([pairs[slot.index] for _, slot in backlog.take(policy)])
    return batches


def run(engine: Engine, batches: Sequence[Sequence[Pair]], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds to score ``batches``."""
    # A clock that is too coarse for a tiny model must not make it infinitely fast.
    return max(sum(laps(engine, batches, clock)), 1e-6)


def laps(
    engine: Engine, batches: Sequence[Sequence[Pair]], clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Seconds of each of ``batches``, from when the one before it was done; of an asynchronous engine the host prepares
    one while the device computes the one before, as it does when much waits."""
    ahead = int(getattr(engine, "asynchronous", False))
    done = clock()
    seconds: list[float] = []
    pending: deque[Any] = deque()
    for number, batch in enumerate(batches, 1):
        pending.append(engine.compute(engine.prepare(batch)))
        while len(pending) > ahead or (pending and number == len(batches)):
            engine.collect(pending.popleft())
            before, done = done, clock()
            seconds.append(done - before)
    return seconds


def _tokens(pairs: Sequence[Pair]) -> int:
    return sum(map(len, pairs))
