"""Builds what serves: verified files -> transformers model on its device -> engine, tokenizer and facts about both.

Runs in the engine thread, which owns the device. Ready means scored: the last step scores real inputs and refuses a
model whose scores are not finite.
"""

import logging
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rerank_api.worker_config import WorkerConfig

from rerank_worker.batching import Policy
from rerank_worker.engine import Engine, EngineOutOfMemory
from rerank_worker.failures import ConfigurationFailure, EnvironmentFailure, StartupFailure, out_of_memory
from rerank_worker.loading import settings, source, verify
from rerank_worker.loading.checkpoint import Checkpoint
from rerank_worker.loading.settings import ChosenActivation
from rerank_worker.tokenization import PairTokenizer, UnsupportedTokenizer

log = logging.getLogger(__name__)

# Padded tokens a batch. A CPU has no more parallelism to fill after a few pairs: beyond that a batch only falls out of
# its caches and pads more (measured on 2 cores: 30 pairs a CPU second in batches of 4, 14 in batches of 50).
DEFAULT_MAX_BATCH_TOKENS = {"cuda": 16_384, "cpu": 1_024}

# A tokenizer that disagrees with transformers on any of these is refused: its scores would be wrong in silence.
_SAMPLES = (
    ("short query", "A document, with punctuation; and UPPER case."),
    ("ünïcödé 中文 🙂", "tabs\tand\nlines  \u00a0 \u200d end"),
    ("q", ""),
    ("long", "a longer word, " * 4000),
)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that has scored."""

    engine: Engine
    tokenizer: PairTokenizer
    policy: Policy
    activation: ChosenActivation
    info: dict[str, Any]
    """Facts for /v1/info."""


def load(config: WorkerConfig, threads: int) -> Loaded:
    """The model that ``config`` asks for, warm. ``threads``: cores for torch. Raises a StartupFailure."""
    started = time.monotonic()
    folder = source.resolve(config.model)
    # From here on everything is local: a library that wants the network is wrong.
    source.go_offline()
    # Read when torch is first imported. Threads that spin while they wait take the cores from whoever shares them (the
    # tokenizer, the server, other pods): measured on 2 busy cores, 8 pairs a CPU second instead of 30.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    verify.check_files(folder)
    verify.check_lock(folder, config.model.sha256)
    model_config = verify.read_json(folder, "config.json")
    architecture = verify.check_config(model_config, verify.read_json(folder, "tokenizer_config.json"))
    own = settings.check_sentence_transformers(folder)
    activation = settings.choose_activation(config.activation, model_config, own)

    with ThreadPoolExecutor(max_workers=1) as pool:
        sums = pool.submit(verify.checksums, folder)
        loaded = _build(config, folder, model_config, architecture, threads)
        engine, tokenizer, policy, facts = loaded
        _warm_up(engine, tokenizer)
        digests = sums.result()
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
            "maxBatchTokens": policy.max_tokens,
            "lengthBucket": policy.bucket,
            "maxDelaySeconds": policy.max_delay,
            "sha256": digests,
            "loadSeconds": round(time.monotonic() - started, 3),
            **facts,
        },
    )


def _build(
    config: WorkerConfig, folder: Path, model_config: dict[str, Any], architecture: str, threads: int
) -> tuple[Engine, PairTokenizer, Policy, dict[str, Any]]:
    import torch
    import transformers
    from transformers.utils import logging as library_logging

    from rerank_worker.engine import device as devices
    from rerank_worker.engine import select
    from rerank_worker.engine.torch_errors import is_out_of_memory

    library_logging.set_verbosity_error()
    library_logging.disable_progress_bar()
    torch.set_num_threads(threads)
    device = devices.probe_device(config.device)
    precision = devices.probe_precision(config.precision, device)

    try:
        reference: Any = transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        limit = settings.own_limit(model_config, reference.model_max_length)
        preferred = verify.read_json(folder, "sentence_bert_config.json").get("max_seq_length")
        max_length = settings.choose_max_length(config.max_length, limit, preferred)
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
        )
        _check_vocabulary(checkpoint)
        tokenizer = _pair_tokenizer(reference, max_length)
        engine = select.choose(config.backend, checkpoint).engine
    except StartupFailure:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise out_of_memory("loading the model", str(error).splitlines()[0]) from error
        raise ConfigurationFailure(
            f"spec.model.uri: the model in {folder} cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    checkpoint.release()
    policy = Policy(
        max_tokens=config.max_batch_tokens or DEFAULT_MAX_BATCH_TOKENS[device],
        bucket=config.length_bucket,
        max_length=max_length,
        max_delay=config.max_delay_seconds,
    )
    return (
        engine,
        tokenizer,
        policy,
        {
            "engine": engine.name,
            "device": device,
            "deviceName": torch.cuda.get_device_name() if device == "cuda" else "cpu",
            "precision": precision,
            "threads": threads,
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


def _pair_tokenizer(reference: Any, max_length: int) -> PairTokenizer:
    """A PairTokenizer that agrees with ``reference``, the model's tokenizer in transformers, on sample texts."""
    if not reference.is_fast:
        raise ConfigurationFailure("spec.model.uri: the model's tokenizer has no fast version (tokenizer.json)")
    try:
        tokenizer = PairTokenizer(reference.backend_tokenizer, max_length, reference.truncation_side == "left")
    except UnsupportedTokenizer as error:
        raise ConfigurationFailure(f"spec.model.uri: the model's tokenizer is not supported: {error}") from error
    for query, document in _SAMPLES:
        ids = tokenizer.query(query)
        if tokenizer.room(ids) < 1:
            continue
        # As a batch of one: transformers takes a lone pair with an empty second text for a single text.
        expected = reference(
            [query], [document], truncation="only_second", max_length=max_length, return_token_type_ids=True
        )
        pair, _, _ = tokenizer.pair(ids, tokenizer.documents([document])[0])
        if pair.ids != expected["input_ids"][0] or pair.types != expected["token_type_ids"][0]:
            raise ConfigurationFailure(
                "spec.model.uri: the model's tokenizer is not supported: it tokenizes a text differently alone and in "
                "a pair"
            )
    return tokenizer


def _warm_up(engine: Engine, tokenizer: PairTokenizer) -> None:
    """Score a short pair and one of full length: allocates, and shows a model that cannot score before it is Ready."""
    query = tokenizer.query("warm-up")
    texts = ["one short document", "word " * tokenizer.max_length]
    try:
        for document in tokenizer.documents(texts):
            pair, _, _ = tokenizer.pair(query, document)
            logits = engine.collect(engine.compute(engine.prepare([pair])))
            if not all(math.isfinite(logit) for logit in logits):
                raise ConfigurationFailure(
                    "the model's scores are not finite numbers: set spec.runtime.precision to bfloat16 or float32, or "
                    "check the weights"
                )
    except StartupFailure:
        raise
    except EngineOutOfMemory as error:
        raise out_of_memory("scoring the first pair", str(error)) from error
    except Exception as error:
        raise EnvironmentFailure(f"the model does not score its first pair: {type(error).__name__}: {error}") from error
