"""Every engine, precision and batch size on the same pairs, in turn, again and again: what ``tune`` measures.

Times are wall-clock, of scoring all pairs once. Engines take turns within a round, so that whatever else the machine
does meets all of them. Nothing here prints.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from statistics import median
from typing import Any, Literal

from rerank_worker import memory
from rerank_worker.batching import padded_length
from rerank_worker.engine import Engine, EngineLost, EngineOutOfMemory, EngineUnsupported, Pair, capacity, select
from rerank_worker.engine.device import ChosenDevice, ChosenPrecision, choose_precision
from rerank_worker.engine.quantization import quality
from rerank_worker.failures import StartupFailure
from rerank_worker.loading.checkpoint import Checkpoint

ROUNDS = 5
"""Times that everything is measured, where the time allows."""

BATCH_SIZES = (8, 16, 32, 64)
BUDGETS: dict[ChosenDevice, tuple[int, ...]] = {
    "cpu": (512, 1_024, 2_048, 4_096, 8_192, 16_384),
    "cuda": (2_048, 4_096, 8_192, 16_384, 32_768, 65_536, 131_072),
}
"""Token budgets, by device."""

PRECISIONS: dict[str, tuple[ChosenPrecision, ...]] = {
    "cpu": ("float32", "bfloat16", "int8"),
    "cuda": ("float32", "float16", "bfloat16", "float8"),
}

PREPARING = 0.5
"""Share of the time after which no further engine is loaded, compiled or compared, so that those which are there get
to be measured."""

NO_TIME = "there was no time for it: raise --seconds, or name fewer --engines"
"""Reason of a contender that may well serve here."""


@dataclass(frozen=True, slots=True)
class Way:
    """How pairs are put into batches: ``size`` pairs of like length, or as many as have ``size`` tokens together."""

    unit: Literal["pairs", "tokens"]
    size: int

    def __str__(self) -> str:
        return f"{self.size:,} {self.unit}"


@dataclass(slots=True)
class Contender:
    """An engine at a precision. ``reason``: why it does not serve here; None while it does.

    ``difference``: largest one of a final score to float32's; ``quality``: nDCG@10 of its rankings where float32's
    scores are the gains.
    """

    name: str
    precision: ChosenPrecision
    reason: str | None = None
    load_seconds: float | None = None
    difference: float | None = None
    quality: float | None = None


@dataclass(slots=True)
class Trial:
    """``seconds`` of each repeat, and ``laps`` of each batch in it; ``padding``: tokens computed only to fill batches
    up, over the real ones."""

    contender: Contender
    way: Way
    pairs: int
    tokens: int
    batches: int
    padding: float
    seconds: list[float] = field(default_factory=list)
    laps: list[list[float]] = field(default_factory=list)

    @property
    def settled(self) -> list[float]:
        """Without the first repeat, which allocates and warms caches, where there are enough."""
        return self.seconds[1:] if len(self.seconds) > 2 else self.seconds

    @property
    def median(self) -> float:
        return median(self.settled)

    @property
    def spread(self) -> float:
        """Slowest less fastest, over the median."""
        return (max(self.settled) - min(self.settled)) / self.median

    @property
    def p95_batch_seconds(self) -> float:
        """What 19 of 20 batches stay within (nearest rank, over all settled repeats)."""
        ordered = sorted(lap for laps in self.laps[-len(self.settled) :] for lap in laps)
        return ordered[math.ceil(0.95 * len(ordered)) - 1]

    @property
    def pairs_per_second(self) -> float:
        return self.pairs / self.median

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.median


@dataclass(slots=True)
class Measured:
    """What was found out so far; filled while measuring, so that an interrupted run has it too."""

    contenders: list[Contender] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)
    interleaved: bool = True
    """Whether all engines were in memory together and took turns."""
    unmeasured: int = 0
    """Combinations that there was no time for, of the engines that there was time to load."""


def ways(device: ChosenDevice, sizes: Sequence[int] | None = None, budgets: Sequence[int] | None = None) -> list[Way]:
    """Batch sizes and token budgets in turn, the usual budgets first: where time is short, both kinds have some.

    ``sizes``, ``budgets``: None: BATCH_SIZES, and the device's BUDGETS.
    """
    usual = capacity.DEFAULT_BUDGETS[device, False]
    budgets = sorted(set(budgets or BUDGETS[device]), key=lambda size: abs(math.log2(size / usual)))
    counted = [Way("pairs", size) for size in sorted(set(sizes or BATCH_SIZES))]
    found = [way for both in zip_longest([Way("tokens", size) for size in budgets], counted) for way in both]
    return [way for way in found if way is not None]


def batches_of(pairs: Sequence[Pair], way: Way, checkpoint: Checkpoint, padded: bool) -> list[list[Pair]]:
    """``pairs`` in the batches of ``way``; longest first, as serving has them."""
    if way.unit == "tokens":
        return capacity.cut(pairs, capacity.policy_for(checkpoint, padded, way.size))
    ordered = sorted(pairs, key=len, reverse=True)
    return [ordered[start : start + way.size] for start in range(0, len(ordered), way.size)]


def plans(
    pairs: Sequence[Pair], ways: Sequence[Way], checkpoint: Checkpoint, padded: bool
) -> dict[Way, list[list[Pair]]]:
    """The batches of each of ``ways``, but for ways that make those of an earlier one of their kind once more."""
    seen = []
    chosen = {}
    for way in ways:
        batches = batches_of(pairs, way, checkpoint, padded)
        shape = (way.unit, [len(batch) for batch in batches])
        if shape not in seen:
            seen.append(shape)
            chosen[way] = batches
    return chosen


def padding_of(batches: Sequence[Sequence[Pair]], checkpoint: Checkpoint) -> float:
    """Tokens that fill padded ``batches`` up, over the real ones."""
    real = sum(len(pair) for batch in batches for pair in batch)
    computed = sum(
        len(batch) * padded_length(max(map(len, batch)), checkpoint.length_bucket, checkpoint.max_length)
        for batch in batches
    )
    return computed / real - 1


def measure(
    checkpoint: Checkpoint,
    pairs: Sequence[Pair],
    engines: Sequence[str],
    precisions: Sequence[ChosenPrecision],
    ways: Sequence[Way],
    seconds: float,
    finish: Callable[[Sequence[float]], list[float]],
    judged: Sequence[Sequence[Pair]],
    tell: Callable[[str], None],
    found: Measured,
    clock: Callable[[], float] = time.perf_counter,
) -> None:
    """Measure into ``found`` what fits into ``seconds``, loading included: first to last, at least one engine once.

    What is expected not to end in time is not begun; only a load, or the first look at an engine, may run over.

    ``finish``: logits to final scores; ``judged``: pairs by query, by whose rankings reduced precisions are judged.
    Raises EngineLost, and KeyboardInterrupt when it is interrupted.
    """
    # float32 first: the others are compared with it.
    ordered = sorted(precisions, key=lambda precision: precision != "float32")
    found.contenders += [Contender(name, precision) for precision in ordered for name in engines]
    found.interleaved = _fit_together(checkpoint, len(found.contenders))
    groups = [found.contenders] if found.interleaved else [[contender] for contender in found.contenders]
    started = clock()
    tokens, of_judged = sum(map(len, pairs)), sum(len(pair) for query in judged for pair in query)
    reference = None if "float32" in precisions else _exact(checkpoint, pairs, engines, judged, finish, tell, clock)
    for number, group in enumerate(groups):
        # What one did not need is for those that follow.
        now, end = clock(), started + seconds
        deadline = now + max(0.0, end - now) / (len(groups) - number)
        enough = now + PREPARING * (deadline - now)
        built: list[tuple[Contender, Engine]] = []
        try:
            for contender in group:
                if (built or found.trials) and clock() > enough:
                    contender.reason = NO_TIME
                    continue
                tell(f"loading {contender.name} in {contender.precision}")
                engine = _build(contender, checkpoint, pairs, clock)
                if engine is not None:
                    built.append((contender, engine))
            _wait_until_compiled(built, tell, clock, enough)
            expected: dict[int, float] = {}
            for contender, engine in built:
                if (expected or found.trials) and clock() > enough:
                    contender.reason = NO_TIME
                    continue
                tell(f"comparing {contender.name} in {contender.precision}")
                before = clock()
                scored = _score(contender, engine, pairs, judged, finish)
                expected[id(contender)] = (clock() - before) * tokens / (tokens + of_judged)
                if scored is not None and reference is None and contender.precision == "float32":
                    reference = scored
                if scored is not None and reference is not None:
                    _compare(contender, scored, reference, judged)
            serving = [(contender, engine) for contender, engine in built if contender.reason is None]
            _race(serving, checkpoint, pairs, ways, deadline, expected, tell, found, clock)
        finally:
            for _, engine in built:
                engine.close()
            built.clear()
            checkpoint.release()
            memory.give_back()


def _build(
    contender: Contender, checkpoint: Checkpoint, pairs: Sequence[Pair], clock: Callable[[], float]
) -> Engine | None:
    """The engine, when it can score a pair; else its reason is set."""
    started = clock()
    engine: Engine | None = None
    try:
        choose_precision(contender.precision, checkpoint.device)
        engine = select.build(contender.name, checkpoint.at(contender.precision))
        logits = engine.collect(engine.compute(engine.prepare(pairs[:1])))
        if not all(map(math.isfinite, logits)):
            contender.reason = f"its scores are not finite numbers in {contender.precision}"
    except (EngineUnsupported, StartupFailure) as reason:
        contender.reason = str(reason)
    except EngineLost:
        raise
    except Exception as error:
        contender.reason = f"{type(error).__name__}: {error}"
    if contender.reason is None:
        contender.load_seconds = clock() - started
        return engine
    if engine is not None:
        engine.close()
    return None


@dataclass(frozen=True, slots=True)
class _Scored:
    """``scores``: final ones of the pairs; ``logits``: of what rankings are judged by."""

    scores: list[float]
    logits: list[float]


def _exact(
    checkpoint: Checkpoint,
    pairs: Sequence[Pair],
    engines: Sequence[str],
    judged: Sequence[Sequence[Pair]],
    finish: Callable[[Sequence[float]], list[float]],
    tell: Callable[[str], None],
    clock: Callable[[], float],
) -> _Scored | None:
    """float32's scores, where float32 itself is not to be measured; None where no engine has them."""
    for name in engines:
        tell(f"scoring with {name} in float32, to compare with")
        contender = Contender(name, "float32")
        engine = _build(contender, checkpoint, pairs, clock)
        if engine is None:
            continue
        scored = _score(contender, engine, pairs, judged, finish)
        engine.close()
        if scored is not None:
            return scored
    return None


def _fit_together(checkpoint: Checkpoint, contenders: int) -> bool:
    """Whether as many engines can be in memory, each counted with the weights on disk twice (the module it is made of
    may be float32)."""
    weights = sum(path.stat().st_size for path in checkpoint.folder.glob("*.safetensors"))
    return 2 * weights * contenders <= memory.unused() - (1 - memory.SHARE) * memory.total()


def _wait_until_compiled(
    built: Sequence[tuple[Contender, Engine]], tell: Callable[[str], None], clock: Callable[[], float], deadline: float
) -> None:
    """An engine whose layers are not compiled by ``deadline`` is measured as it is."""
    for contender, engine in built:
        compiler: Any = getattr(engine, "compiler", None)
        if compiler is not None:
            compiler.start()
        while compiler is not None and compiler.status == "pending" and clock() < deadline:
            tell(f"compiling {contender.name} in {contender.precision}")
            time.sleep(0.2)


def _score(
    contender: Contender,
    engine: Engine,
    pairs: Sequence[Pair],
    judged: Sequence[Sequence[Pair]],
    finish: Callable[[Sequence[float]], list[float]],
) -> _Scored | None:
    """What the engine makes of the pairs; None, with the reason set, when it fails or gives what is no number."""
    try:
        scores = finish(quality.scored(engine, pairs))
        logits = quality.scored(engine, [pair for group in judged for pair in group])
    except EngineLost:
        raise
    except Exception as error:
        contender.reason = f"{type(error).__name__}: {error}"
        return None
    if not all(map(math.isfinite, [*scores, *logits])):
        contender.reason = f"its scores are not finite numbers in {contender.precision}"
        return None
    return _Scored(scores, logits)


def _compare(contender: Contender, own: _Scored, exact: _Scored, judged: Sequence[Sequence[Pair]]) -> None:
    contender.difference = max(abs(one - other) for one, other in zip(own.scores, exact.scores, strict=True))
    if judged:
        contender.quality = quality.compared(exact.logits, own.logits, [len(group) for group in judged]).ndcg


def _race(
    serving: Sequence[tuple[Contender, Engine]],
    checkpoint: Checkpoint,
    pairs: Sequence[Pair],
    ways: Sequence[Way],
    deadline: float,
    expected: dict[int, float],
    tell: Callable[[str], None],
    found: Measured,
    clock: Callable[[], float],
) -> None:
    """All of ``serving`` in turn, again and again, but for what is expected to end after ``deadline``.

    ``expected``: seconds that all pairs took, by the contender's id; the last measurement of it counts.
    """
    tokens = sum(map(len, pairs))
    planned = {padded: plans(pairs, ways, checkpoint, padded) for padded in {engine.padded for _, engine in serving}}
    lanes: list[tuple[Trial, Engine, list[list[Pair]]]] = []
    for way in ways:
        for contender, engine in serving:
            batches = planned[engine.padded].get(way)
            if batches is None:
                continue
            padding = padding_of(batches, checkpoint) if engine.padded else 0.0
            lanes.append((Trial(contender, way, len(pairs), tokens, len(batches), padding), engine, batches))
    too_large: set[int] = set()
    for number in range(ROUNDS):
        for index, (trial, engine, batches) in enumerate(lanes):
            who = id(trial.contender)
            if index in too_large or (found.trials and clock() + expected[who] > deadline):
                continue
            name = f"{trial.contender.name} {trial.contender.precision}, {trial.way}"
            tell(f"round {number + 1} of at most {ROUNDS}, {index + 1}/{len(lanes)}: {name}")
            try:
                laps = capacity.laps(engine, batches, clock)
            except EngineOutOfMemory:
                too_large.add(index)
                continue
            trial.laps.append(laps)
            trial.seconds.append(max(sum(laps), 1e-6))
            expected[who] = trial.seconds[-1]
            if len(trial.seconds) == 1:
                found.trials.append(trial)
    found.unmeasured += sum(not trial.seconds and index not in too_large for index, (trial, _, _) in enumerate(lanes))
