"""The options by which a person names a model and how it is to be run, for the commands beside serve; and the
operator's environment variable, which says the same in a pod."""

import argparse
import signal
import sys
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn, get_args

import msgspec
from rerank_api import names
from rerank_api.reranker import Activation, Backend, ChunkPooling, Compile, Device, LongDocuments, Precision
from rerank_api.worker_config import WorkerConfig

from rerank_worker.failures import ConfigurationFailure
from rerank_worker.loading.source import parse_model
from rerank_worker.server.protocol import explained

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it: 128 and the signal's number."""

TERMINATED = 143
"""The same after SIGTERM."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which is to end a command as Ctrl-C does."""


@contextmanager
def terminable() -> Generator[None]:
    """SIGTERM raises ``Terminated`` in the main thread, which is the one that calls this."""

    def end(*_: Any) -> NoReturn:
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


_FLAGS = (
    "max_length",
    "activation",
    "temperature",
    "device",
    "precision",
    "backend",
    "compile",
    "max_batch_tokens",
    "length_bucket",
    "long_documents",
    "chunk_pooling",
)


def add_model(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Which model, and on what. ``required``: False where the environment may name it."""
    group = parser.add_argument_group("model")
    own = "" if required else f" (default: what ${names.ENV_WORKER_CONFIG} says)"
    group.add_argument("--model", required=required, help=f"a folder, file:///path or hf://org/name{own}")
    group.add_argument("--revision", help="commit of an hf:// model")
    group.add_argument(
        "--max-length", type=int, help="tokens of query and document (default: the model's, at most 512)"
    )
    group.add_argument("--device", choices=get_args(Device), help="default: a GPU where there is one")
    group.add_argument("--threads", type=int, help="cores to use (default: those this process may use)")
    group.add_argument("--length-bucket", type=int, help="padded lengths are multiples of it (default: 16)")
    group.add_argument("--activation", choices=get_args(Activation), help="default: the model's own")
    group.add_argument("--temperature", type=float, help="divides logits before the activation (default: 1)")
    parser.add_argument("--log-format", choices=("json", "text"), default="text", help="default: %(default)s")


def add_engine(parser: argparse.ArgumentParser) -> None:
    """What serve takes besides, for a command that runs one engine."""
    group = parser.add_argument_group("engine")
    group.add_argument("--precision", choices=get_args(Precision), help="default: float16 on a GPU, else float32")
    group.add_argument("--backend", choices=get_args(Backend), help="default: the faster one of torch")
    group.add_argument("--compile", choices=get_args(Compile), help="default: auto")
    group.add_argument("--max-batch-tokens", type=int, help="tokens in one batch (default: measured at start)")
    group.add_argument("--long-documents", choices=get_args(LongDocuments), help="default: truncate")
    group.add_argument("--chunk-pooling", choices=get_args(ChunkPooling), help="default: max")


def config_of(arguments: argparse.Namespace, environment: Mapping[str, str]) -> WorkerConfig:
    """What the options say; where they name no model, the environment's configuration with the options laid over it.

    Raises ConfigurationFailure.
    """
    if arguments.threads is not None and arguments.threads < 1:
        raise ConfigurationFailure(f"--threads is {arguments.threads}: it must be at least 1")
    flags = {name: value for name in _FLAGS if (value := getattr(arguments, name, None)) is not None}
    if arguments.model is not None:
        return WorkerConfig(model=parse_model(arguments.model, arguments.revision), **flags)
    if arguments.revision is not None:
        raise ConfigurationFailure("--revision belongs to --model hf://ORG/NAME: name the model, or drop it")
    given = environment_config(environment)
    if given is None:
        raise ConfigurationFailure(
            f"name a model with --model (a folder or hf://org/name): ${names.ENV_WORKER_CONFIG} is not set here"
        )
    return msgspec.structs.replace(given, **flags)


def environment_config(environment: Mapping[str, str]) -> WorkerConfig | None:
    """What the operator's variable says; None where it is not set. Raises ConfigurationFailure."""
    given = environment.get(names.ENV_WORKER_CONFIG)
    if given is None:
        return None
    try:
        return msgspec.json.decode(given, type=WorkerConfig)
    except msgspec.DecodeError as error:
        raise ConfigurationFailure(
            f"${names.ENV_WORKER_CONFIG} is not a configuration that this worker understands (is the worker image "
            f"of the operator's release?): {explained(error, WorkerConfig)}"
        ) from error


_EVERY = {True: 0.5, False: 10.0}
"""Seconds between lines of progress, by whether a person watches."""


class Progress:
    """One line on stderr that tells how far a command is: rewritten in a terminal, now and then elsewhere."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._last = float("-inf")
        self._shown = False

    def show(self, text: str, now: bool = False) -> None:
        """``now``: though the last one was only just shown."""
        moment = time.monotonic()
        if not now and moment - self._last < _EVERY[self._terminal]:
            return
        self._last = moment
        # The end of a longer line before this one is wiped away.
        print(f"\r{text}\033[K" if self._terminal else text, end="" if self._terminal else "\n", file=sys.stderr)
        sys.stderr.flush()
        self._shown = True

    def end(self) -> None:
        """What follows on stderr begins on a line of its own."""
        if self._terminal and self._shown:
            print(file=sys.stderr)
        self._shown = False


def duration(seconds: float) -> str:
    """For people: 45 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
