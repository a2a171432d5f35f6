"""Builds what serves: verified files -> transformers model on its device -> engine, tokenizer and facts about both.

Runs in the engine thread, which owns the device. Ready means scored: the last step scores real inputs and refuses a
model whose scores are not finite.
"""

import logging
import math
import time
from collections.abc import Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rerank_api.worker_config import WorkerConfig

from rerank_worker import memory
from rerank_worker.batching import Policy
from rerank_worker.engine import Engine, EngineLost, EngineOutOfMemory, capacity
from rerank_worker.failures import (
    ConfigurationFailure,
    EnvironmentFailure,
    StartupFailure,
    first_line,
    is_of_the_machine,
    no_number,
    out_of_memory,
)
from rerank_worker.loading import agreement, libraries, prompts, settings, source, verify, weights
from rerank_worker.loading.checkpoint import Checkpoint
from rerank_worker.loading.settings import ChosenActivation
from rerank_worker.tokenization import PairTokenizer

log = logging.getLogger(__name__)

QUICK_SECONDS = 0.25
"""How long measuring takes at most where somebody waits for the model."""

TOKENIZERS = 4
"""Threads at most whose tokenizer is made while the model loads; a first request of 50 documents uses as many."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that has scored."""

    engine: Engine
    tokenizer: PairTokenizer
    policy: Policy
    activation: ChosenActivation
    info: dict[str, Any]
    """Facts for /v1/info."""

    def live(self) -> dict[str, Any]:
        """Facts that change while the model serves."""
        compiler = getattr(self.engine, "compiler", None)
        return {} if compiler is None else {"compile": compiler.status, "compileFailures": compiler.failures}


class _Parts:
    """Seconds that each part of loading took, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timed(self, name: str) -> Generator[None]:
        started = time.monotonic()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - started, 3)


def load(config: WorkerConfig, threads: int, quick: bool = False) -> Loaded:
    """The model that ``config`` asks for, warm. Raises a StartupFailure.

    ``threads``: cores for torch. ``quick``: somebody waits, so the preferred engine is taken without comparing and its
    capacity measured for ``QUICK_SECONDS`` only.
    """
    started = time.monotonic()
    check_ranges(config)
    parts = _Parts()
    with parts.timed("read"):
        folder = source.resolve(config.model)
    sealed = verify.seal(folder)
    with parts.timed("verify"):
        # What says how the weights are read is checked before it is read.
        lock = config.model.sha256
        known = verify.check_lock(folder, {name: lock[name] for name in lock if not name.endswith(".safetensors")})
    with ThreadPoolExecutor(max_workers=1) as pool:
        # The weights run nothing: they are checked beside everything else, and nothing serves before that has ended.
        verified = pool.submit(_verify, folder, config, known)
        try:
            loaded = _load(config, folder, threads, quick, parts)
        except Exception:
            # A file that was changed is why a load fails, rather than what the failure says.
            verified.result()
            verify.check_seal(folder, sealed)
            raise
        with parts.timed("verify"):
            digests = verified.result()
    verify.check_seal(folder, sealed)
    if compiler := getattr(loaded.engine, "compiler", None):
        # In its own thread, after the first requests.
        compiler.start()
    seconds = {"loadSeconds": round(time.monotonic() - started, 3), "loadSecondsOf": parts.seconds}
    log.info("loaded", extra={"fields": {"model": source.model_name(config.model), **seconds}})
    sums = {
        "sha256": digests,
        "modelSha256": verify.weights_sha256(digests),
        "tokenizerSha256": digests["tokenizer.json"],
    }
    return replace(loaded, info=loaded.info | sums | seconds)


def check_ranges(config: WorkerConfig) -> None:
    """Refuse numbers that cannot work; the CRD's own bounds are narrower. Raises ConfigurationFailure."""
    length, batch, delay, temperature = (
        config.max_length,
        config.max_batch_tokens,
        config.max_delay_seconds,
        config.temperature,
    )
    for name, flag, value, good, rule in (
        ("model.maxLength", "--max-length", length, length is None or length >= 1, "at least 1"),
        ("model.temperature", "--temperature", temperature, 0 < temperature < math.inf, "more than 0"),
        ("batching.maxDelay", "--max-delay-seconds", delay, 0 <= delay < math.inf, "0 or more"),
        ("batching.lengthBucket", "--length-bucket", config.length_bucket, config.length_bucket >= 1, "at least 1"),
        ("batching.maxBatchTokens", "--max-batch-tokens", batch, batch is None or batch >= 1, "at least 1"),
        (
            "runtime.qualityFloor",
            "--quality-floor",
            config.quality_floor,
            0 <= config.quality_floor <= 1,
            "from 0 to 1",
        ),
    ):
        if not good:
            raise ConfigurationFailure(f"spec.{name} ({flag}) is {value}: it must be {rule}")


def _verify(folder: Path, config: WorkerConfig, known: Mapping[str, str]) -> dict[str, str]:
    digests = verify.checksums(folder, known)
    verify.check_lock(folder, config.model.sha256, digests)
    weights.check_numbers(folder)
    return digests


def _load(config: WorkerConfig, folder: Path, threads: int, quick: bool, parts: _Parts) -> Loaded:
    model_config, architecture, activation = _read(config, folder)
    with parts.timed("import"):
        libraries.import_libraries(threads, [architecture])
    before = memory.taken()
    checkpoint, tokenizer = _checkpoint(config, folder, model_config, architecture, threads, parts)
    with ThreadPoolExecutor(max_workers=1) as pool:
        # Beside the building, most of which is not Python's.
        prepared = pool.submit(tokenizer.prepare, min(threads, TOKENIZERS))
        engine, policy, facts = _build(config, checkpoint, tokenizer, quick, parts)
        prepared.result()
    return Loaded(
        engine=engine,
        tokenizer=tokenizer,
        policy=policy,
        activation=activation,
        info={
            "model": source.model_name(config.model),
            "modelRevision": source.resolved_revision(config.model, folder),
            "architecture": architecture,
            "activation": activation,
            "temperature": config.temperature,
            "maxLength": policy.max_length,
            "longDocuments": config.long_documents,
            "chunkPooling": config.chunk_pooling,
            "maxBatchTokens": policy.max_tokens,
            "lengthBucket": policy.bucket,
            "maxDelaySeconds": policy.max_delay,
            "memoryBytes": max(0, memory.taken() - before),
            **facts,
        },
    )


def open_checkpoint(config: WorkerConfig, threads: int) -> tuple[Checkpoint, PairTokenizer, ChosenActivation]:
    """The model that ``config`` asks for before an engine is built of it: what measuring engines begins with.

    Raises a StartupFailure.
    """
    check_ranges(config)
    folder = source.resolve(config.model)
    model_config, architecture, activation = _read(config, folder)
    libraries.import_libraries(threads, [architecture])
    return *_checkpoint(config, folder, model_config, architecture, threads, _Parts()), activation


def _read(config: WorkerConfig, folder: Path) -> tuple[dict[str, Any], str, ChosenActivation]:
    """config.json, the architecture and the activation, of a model that may be loaded."""
    # From here on everything is local: a library that wants the network is wrong.
    source.go_offline()
    verify.check_files(folder)
    model_config = verify.read_json(folder, "config.json")
    architecture = verify.check_config(model_config, verify.read_json(folder, "tokenizer_config.json"))
    weights.check_weights(folder, model_config)
    own = settings.check_sentence_transformers(folder, architecture)
    return model_config, architecture, settings.choose_activation(config.activation, model_config, own)


@contextmanager
def _told(folder: Path) -> Generator[None]:
    """What libraries raise while they load the model in ``folder``, as a StartupFailure."""
    from rerank_worker.engine.torch_errors import is_out_of_memory

    try:
        yield
    except StartupFailure:
        raise
    except Exception as error:
        if isinstance(error, EngineOutOfMemory) or is_out_of_memory(error):
            raise out_of_memory("loading the model", first_line(error)) from error
        if isinstance(error, EngineLost):
            raise EnvironmentFailure(f"the device was lost while the model was loaded: {error}") from error
        if is_of_the_machine(error):
            raise EnvironmentFailure(f"cannot read the model in {folder}: {type(error).__name__}: {error}") from error
        raise ConfigurationFailure(
            f"spec.model.uri: the model in {folder} cannot be loaded: {type(error).__name__}: {error}"
        ) from error


def _checkpoint(
    config: WorkerConfig,
    folder: Path,
    model_config: dict[str, Any],
    architecture: str,
    threads: int,
    parts: _Parts,
) -> tuple[Checkpoint, PairTokenizer]:
    from rerank_worker.engine import device as devices

    device = devices.probe_device(config.device)
    precision = devices.probe_precision(config.precision, device)
    with _told(folder):
        with parts.timed("read"):
            reference = _tokenizer(folder)
        limit = settings.own_limit(model_config, reference.model_max_length)
        preferred = verify.read_json(folder, "sentence_bert_config.json").get("max_seq_length")
        max_length = settings.choose_max_length(config.max_length, limit, preferred)
        prompt = prompts.read_prompt(folder, architecture, reference) if architecture in verify.DECODERS else None
        checkpoint = Checkpoint(
            folder=folder,
            config=model_config,
            architecture=architecture,
            tokenizer=reference,
            device=device,
            precision=precision,
            max_length=max_length,
            length_bucket=config.length_bucket,
            threads=threads,
            compile=config.compile,
            prompt=prompt,
        )
        _check_vocabulary(checkpoint)
        tokenizer = (
            agreement.pair_tokenizer(reference, max_length)
            if prompt is None
            else prompts.pair_tokenizer(reference, prompt, max_length)
        )
    return checkpoint, tokenizer


def _tokenizer(folder: Path) -> Any:
    """The model's tokenizer in transformers. Raises ConfigurationFailure, and the machine's own errors as they are."""
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        if isinstance(error, MemoryError) or is_of_the_machine(error):
            raise
        # Libraries tell the line of their own code, or a key that is missing there.
        raise ConfigurationFailure(
            f"spec.model.uri: the model's tokenizer cannot be read ({type(error).__name__}: {first_line(error)}): copy "
            "tokenizer.json and tokenizer_config.json again, or save the model's fast tokenizer into the folder"
        ) from error


def _build(
    config: WorkerConfig, checkpoint: Checkpoint, tokenizer: PairTokenizer, quick: bool, parts: _Parts
) -> tuple[Engine, Policy, dict[str, Any]]:
    import torch
    import transformers

    from rerank_worker.engine import select

    device, precision = checkpoint.device, checkpoint.precision
    with _told(checkpoint.folder):
        sample = capacity.Sample.of(checkpoint, tokenizer)
        with parts.timed("build"):
            selected = select.choose(config.backend, checkpoint, None if quick else sample)
        with parts.timed("judge"):
            ndcg = select.judge(selected.engine, checkpoint, config.quality_floor)
    checkpoint.release()
    if selected.speeds or ndcg is not None:
        # What was compared with and not chosen has left its weights behind.
        memory.give_back()
    engine = selected.engine
    policy = Policy(
        max_tokens=config.max_batch_tokens or capacity.DEFAULT_BUDGETS[device, engine.padded],
        bucket=config.length_bucket,
        max_length=checkpoint.max_length,
        max_delay=config.max_delay_seconds,
    )
    with parts.timed("warmUp"):
        _warm_up(engine, tokenizer, precision)
    with parts.timed("measure"):
        seconds = QUICK_SECONDS if quick else capacity.SECONDS[device]
        measured = _measure(engine, policy, sample, seconds, device, config.max_batch_tokens)
    policy = replace(policy, max_tokens=measured.max_batch_tokens)
    return (
        engine,
        policy,
        {
            "engine": engine.name,
            "device": device,
            "deviceName": torch.cuda.get_device_name() if device == "cuda" else "cpu",
            "precision": precision,
            "threads": checkpoint.threads,
            "tokensPerSecond": None if measured.tokens_per_second is None else round(measured.tokens_per_second, 1),
            "bytesPerToken": None if measured.bytes_per_token is None else round(measured.bytes_per_token, 1),
            "enginesCompared": dict(selected.speeds),
            "ndcg10": None if ndcg is None else round(ndcg, 5),
            "versions": {"torch": str(torch.__version__), "transformers": transformers.__version__},
        },
    )


def _check_vocabulary(checkpoint: Checkpoint) -> None:
    """Such a token in a request would fail its batch on the CPU, and on a GPU break the device for all."""
    tokens, rows = max(checkpoint.tokenizer.get_vocab().values()) + 1, checkpoint.config.get("vocab_size", 0)
    if tokens > rows:
        raise ConfigurationFailure(
            f"spec.model.uri: the model's tokenizer has {tokens} tokens where its weights have embeddings for {rows}: "
            "use the tokenizer that the model was trained with"
        )


def _warm_up(engine: Engine, tokenizer: PairTokenizer, precision: str) -> None:
    """Score a short pair and one of full length: allocates, and shows a model that cannot score before it is Ready."""
    query = tokenizer.query("warm-up")
    texts = ["one short document", "word " * tokenizer.max_length]
    try:
        for document in tokenizer.documents(texts):
            pair, _, _ = tokenizer.pair(query, document)
            logits = engine.collect(engine.compute(engine.prepare([pair])))
            if not all(math.isfinite(logit) for logit in logits):
                raise ConfigurationFailure(f"the model's scores are not finite numbers: {no_number(precision)}")
    except StartupFailure:
        raise
    except EngineOutOfMemory as error:
        raise out_of_memory("scoring the first pair", str(error)) from error
    except Exception as error:
        raise EnvironmentFailure(f"the model does not score its first pair: {type(error).__name__}: {error}") from error


def _measure(
    engine: Engine,
    policy: Policy,
    sample: capacity.Sample,
    seconds: float,
    device: Any,
    budget: int | None,
) -> capacity.Capacity:
    try:
        return capacity.measure(engine, policy, sample, seconds, device=device, budget=budget)
    except EngineOutOfMemory as error:
        raise out_of_memory("measuring the model's speed", str(error)) from error
    except Exception as error:
        raise EnvironmentFailure(f"the model does not score batches: {type(error).__name__}: {error}") from error
