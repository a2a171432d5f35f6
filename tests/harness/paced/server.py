"""``rerank-worker`` with an engine that computes nothing and takes the time of the device in ``$RERANK_PACED``.

HTTP, admission, tokenizing in threads, scheduler, batching, admin calls, probes and draining are the worker's own. Not
real are the engine, the loading, the tokenizer (a word is a token) and the scores, which mean nothing. Never imports
torch: it starts in about a second.
"""

import asyncio
import logging
import os
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

import msgspec
from rerank_api import names
from rerank_api.worker_config import WorkerConfig
from rerank_worker import cli, logs
from rerank_worker.batching import Policy
from rerank_worker.engine import Pair
from rerank_worker.failures import StartupFailure, report
from rerank_worker.loading import source
from rerank_worker.loading.model import Loaded
from rerank_worker.server.lifecycle import Options, Server
from rerank_worker.tokenization import PairTokenizer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

from harness.paced import ENV_PROFILE, Profile

MAX_LENGTH = 512
CATCH_UP = 0.02
"""Seconds between two batches that count as this machine's own delay: a device that is kept busy has none."""


class PacedEngine:
    """Takes ``profile``'s time for each batch, one batch after the other."""

    name = "paced"
    padded = False

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._free_at = 0.0

    def prepare(self, pairs: Sequence[Pair]) -> list[int]:
        return [len(pair) for pair in pairs]

    def compute(self, prepared: list[int]) -> list[int]:
        now = time.monotonic()
        begin = self._free_at if now - self._free_at < CATCH_UP else now
        self._free_at = begin + self._profile.seconds(sum(prepared))
        return prepared

    def collect(self, output: list[int]) -> list[float]:
        time.sleep(max(0.0, self._free_at - time.monotonic()))
        return [length / MAX_LENGTH for length in output]

    def close(self) -> None:
        """Nothing is held."""


def word_tokenizer() -> Tokenizer:
    """A word is a token; pairs are put together as BERT's are."""
    tokenizer = Tokenizer(WordLevel({"[CLS]": 0, "[SEP]": 1, "[UNK]": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 0), ("[SEP]", 1)],
    )
    return tokenizer


def load(config: WorkerConfig, profile: Profile, seconds: float) -> Loaded:
    """The model that ``config`` names, as far as it is needed, after ``seconds``. Raises a StartupFailure."""
    source.resolve(config.model)
    time.sleep(seconds)
    capacity = profile.capacity
    return Loaded(
        engine=PacedEngine(profile),
        tokenizer=PairTokenizer(word_tokenizer(), MAX_LENGTH),
        policy=Policy(
            max_tokens=config.max_batch_tokens or profile.max_batch_tokens,
            bucket=config.length_bucket,
            max_length=MAX_LENGTH,
            max_delay=config.max_delay_seconds,
        ),
        activation="identity",
        info={
            "model": source.model_name(config.model),
            "architecture": "none: this worker stands in for a device",
            "engine": PacedEngine.name,
            "device": "cpu",
            "precision": "float32",
            "maxLength": MAX_LENGTH,
            "activation": "identity",
            "tokensPerSecond": None if capacity == float("inf") else round(capacity, 1),
            "memoryBytes": 0,
        },
    )


async def serve(config: WorkerConfig | None, options: Options, profile: Profile) -> int:
    def build(wanted: WorkerConfig) -> Loaded:
        own = wanted is config
        return load(wanted, profile, profile.load_seconds + (profile.start_seconds if own else 0.0))

    def stand_by() -> dict[str, object]:
        time.sleep(profile.start_seconds)
        return {"standby": True, "device": "cpu", "deviceName": "paced"}

    return await Server(config, options, build, stand_by).run()


def main() -> int:
    """The exit code."""
    arguments = cli.parser().parse_args()
    logs.set_up(arguments.log_format)
    try:
        profile = msgspec.json.decode(os.environ.get(ENV_PROFILE, "{}"), type=Profile)
        config = cli.read_config(arguments, os.environ)
        return asyncio.run(serve(config, cli.read_options(arguments, os.environ), profile))
    except StartupFailure as failure:
        report(failure, os.environ.get(names.ENV_TERMINATION_LOG))
        return failure.exit_code


def run() -> NoReturn:
    code = main()
    logging.shutdown()
    sys.stderr.flush()
    # As in the worker itself: a thread that sleeps in a load cannot be stopped.
    os._exit(code)


if __name__ == "__main__":
    run()
