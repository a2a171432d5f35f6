"""Which engine serves a model: those that the spec allows and that can, and among several the fastest by measurement.

Never picks an engine that the spec rules out; one that is asked for by name and cannot serve is an error.
"""

import importlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

from rerank_api.reranker import Backend, Compile

from rerank_worker.engine import Engine, EngineLost, EngineUnsupported, Pair, capacity
from rerank_worker.failures import ConfigurationFailure
from rerank_worker.loading.checkpoint import Checkpoint

log = logging.getLogger(__name__)

ENGINES = {
    "torch-flat": "rerank_worker.engine.torch_flat",
    "torch-padded": "rerank_worker.engine.torch_padded",
    "torch-decoder": "rerank_worker.engine.torch_decoder",
    "onnxruntime": "rerank_worker.engine.onnx_runtime",
    "openvino": "rerank_worker.engine.open_vino",
}
"""Modules with a ``build(checkpoint)``, by the engine's name."""

_BACKENDS: dict[Backend, tuple[str, ...]] = {
    "auto": ("torch-flat", "torch-padded", "torch-decoder"),
    "torch": ("torch-flat", "torch-padded", "torch-decoder"),
    "onnx": ("onnxruntime",),
    "openvino": ("openvino",),
}
"""The preferred first: it is taken where nothing is measured, and when another one is not clearly faster."""

SECONDS = 0.5
"""How long comparing engines takes at start, about."""

COMPARED_BYTES = 512 * 2**20
"""Largest weights of a model whose engines are compared: they are in memory together meanwhile."""


@dataclass(frozen=True, slots=True)
class Selected:
    """``speeds``: tokens a second of the engines that were compared, by name; empty when none were. ``reasons``: why
    the others that the spec allows do not serve."""

    engine: Engine
    speeds: Mapping[str, float] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)


def candidates(backend: Backend) -> Sequence[str]:
    """Names of the engines that ``spec.runtime.backend`` allows, the preferred first."""
    return _BACKENDS[backend]


def check_compile(backend: Backend, asked: Compile) -> None:
    """Refuse a compiler for an engine that has none. Raises ConfigurationFailure."""
    if asked == "always" and backend in ("onnx", "openvino"):
        raise ConfigurationFailure(
            f"spec.runtime.compile is always, but only torch compiles and spec.runtime.backend is {backend}: set "
            "spec.runtime.compile to auto, or spec.runtime.backend to torch"
        )


def build(name: str, checkpoint: Checkpoint) -> Engine:
    """The engine called ``name``. Raises EngineUnsupported, or what loading raises."""
    engine: Engine = importlib.import_module(ENGINES[name]).build(checkpoint)
    return engine


def choose(
    backend: Backend,
    checkpoint: Checkpoint,
    sample: capacity.Sample | None = None,
    seconds: float | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Selected:
    """The fastest engine that can serve ``checkpoint``; the others' memory is given back.

    ``seconds``: of comparing (None: SECONDS). Without a ``sample``, with no time or with a large model, the preferred
    one. Raises ConfigurationFailure when none can serve, and what loading raises.
    """
    check_compile(backend, checkpoint.compile)
    seconds = SECONDS if seconds is None else seconds
    comparing = sample is not None and seconds > 0 and _weights(checkpoint) <= COMPARED_BYTES
    built: list[Engine] = []
    reasons: dict[str, str] = {}
    for name in candidates(backend):
        try:
            built.append(build(name, checkpoint))
        except EngineUnsupported as reason:
            log.info("an engine cannot serve this model", extra={"fields": {"engine": name, "reason": str(reason)}})
            reasons[name] = str(reason)
        except EngineLost:
            raise
        except Exception as error:
            # There is one that serves already, and perhaps no room for two.
            if not built:
                raise
            log.warning("an engine does not start", extra={"fields": {"engine": name, "error": str(error)}})
            reasons[name] = f"{type(error).__name__}: {error}"
        if built and not comparing:
            break
    if not built:
        told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise ConfigurationFailure(
            f"spec.runtime.backend {backend} with precision {checkpoint.precision}: no engine of the worker can serve "
            f"the model so ({told})"
        )
    if len(built) == 1 or sample is None:
        return Selected(built[0], {}, reasons)
    speeds = compare(built, sample, seconds, checkpoint, clock)
    winner = fastest(speeds)
    log.info("engines compared", extra={"fields": {"chosen": winner, "tokens_per_second": speeds}})
    for engine in built:
        if engine.name != winner:
            engine.close()
    return Selected(next(engine for engine in built if engine.name == winner), speeds, reasons)


def judge(engine: Engine, checkpoint: Checkpoint, floor: float) -> float | None:
    """nDCG@10 of the engine's rankings where float32's are the truth; None where its precision needs no judging.

    Builds a float32 engine for it and closes it again. Raises ConfigurationFailure below ``floor``
    (spec.runtime.qualityFloor), and what loading raises.
    """
    if checkpoint.precision not in ("int8", "float8"):
        return None
    from rerank_worker.engine.quantization import quality, sample

    exact = choose("torch", replace(checkpoint, precision="float32", compile="never")).engine
    try:
        found = quality.measure(exact, engine, sample.judged(checkpoint))
    finally:
        exact.close()
    quality.require(found, floor, checkpoint.precision)
    return found.ndcg


def compare(
    engines: Sequence[Engine],
    sample: capacity.Sample,
    seconds: float,
    checkpoint: Checkpoint,
    clock: Callable[[], float],
) -> dict[str, float]:
    """Tokens a second of each engine on the same pairs, in turn, each at its usual budget. One that fails has 0."""
    started = clock()
    one = sample.pairs(1)
    speeds: dict[str, list[float]] = {}
    for engine in engines:
        # Twice: the first time may allocate.
        found = _speed(engine, [one], clock) and _speed(engine, [one], clock)
        speeds[engine.name] = [found]
    running = [engine for engine in engines if speeds[engine.name][0] > 0]
    # Two rounds in what is left of the time, if all are as fast as with a pair alone.
    slowest = min((speeds[engine.name][0] for engine in running), default=0.0)
    tokens = int(slowest * seconds / 2 / len(engines))
    pairs = sample.pairs(tokens) if tokens > len(one[0]) else []
    batches = {}
    for engine in running:
        budget = capacity.DEFAULT_BUDGETS[checkpoint.device, engine.padded]
        batches[engine.name] = capacity.cut(pairs, capacity.policy_for(checkpoint, engine.padded, budget))
    while len(running) > 1 and pairs:
        before = clock()
        for engine in running:
            speeds[engine.name].append(_speed(engine, batches[engine.name], clock))
        now = clock()
        if now + (now - before) > started + seconds:
            break
    # What a pair alone takes says little about batches, where there were any.
    return {name: round(median(found[1:] or found), 1) for name, found in speeds.items()}


def fastest(speeds: Mapping[str, float]) -> str:
    """The first of ``speeds`` unless another one is faster by more than noise."""
    preferred = next(iter(speeds))
    other = max(speeds, key=lambda name: speeds[name])
    return other if speeds[other] > speeds[preferred] * (1 + capacity.SAME_SPEED) else preferred


def _speed(engine: Engine, batches: Sequence[Sequence[Pair]], clock: Callable[[], float]) -> float:
    tokens = sum(len(pair) for batch in batches for pair in batch)
    try:
        return tokens / capacity.run(engine, batches, clock)
    except EngineLost:
        raise
    except Exception as error:
        log.warning("an engine cannot score", extra={"fields": {"engine": engine.name, "error": str(error)}})
        return 0.0


def _weights(checkpoint: Checkpoint) -> int:
    return sum(path.stat().st_size for path in checkpoint.folder.glob("*.safetensors"))
