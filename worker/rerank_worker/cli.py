"""The command line: what to serve and how, from flags (by hand) or from the operator's environment variable."""

import argparse
import asyncio
import logging
import math
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, NoReturn, get_args

from rerank_api import names, otlp
from rerank_api.reranker import Activation, Backend, ChunkPooling, Compile, Device, LongDocuments, Precision
from rerank_api.worker_config import WorkerConfig

from rerank_worker import logs
from rerank_worker.commands import score, tune
from rerank_worker.commands.options import environment_config
from rerank_worker.engine.device import available_cores
from rerank_worker.failures import ConfigurationFailure, EnvironmentFailure, StartupFailure, report, unexpected
from rerank_worker.loading.libraries import stand_by
from rerank_worker.loading.model import Loaded, check_ranges, load
from rerank_worker.loading.source import parse_model
from rerank_worker.server.admin import ENV_TOKEN_FILE, ENV_TOKEN_SHA256
from rerank_worker.server.lifecycle import Options, Server
from rerank_worker.server.models import Limits

if TYPE_CHECKING:
    from rerank_worker.tracing import Tracing

log = logging.getLogger(__name__)

LEAST_STALL = 2.0
"""Seconds: an engine that has nothing to do gives a sign of life each second."""

_EXAMPLES = """\
examples:
  rerank-worker serve --model ./model                     # POST /v1/score {"query": "...", "documents": ["..."]}
  rerank-worker tune  --model ./model                     # which engine, precision and batch size are fastest here
  rerank-worker score --model ./model --input pairs.jsonl --output scored.jsonl

Each command has a --help with more of them.
"""

_SERVE_EXAMPLES = f"""\
examples:
  rerank-worker serve --model ./model --port 8080
  rerank-worker serve --model hf://cross-encoder/ms-marco-MiniLM-L6-v2 --revision COMMIT --precision int8
  {names.ENV_WORKER_CONFIG}='{{"model": {{"path": "/models/a"}}, "precision": "int8"}}' rerank-worker serve
  rerank-worker serve --standby --admin-token-file admin-token --max-models 4

  curl --data '{{"query": "q", "documents": ["a", "b"]}}' localhost:8080/v1/score

exit codes: 0 drained; 64 the options, the files or the model are wrong; 71 memory, device, network or port; 128 and the
signal's number where a second signal cut the draining short.
"""


class _Parser(argparse.ArgumentParser):
    """Ends with the exit code that all mistakes of whoever starts the worker have."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(ConfigurationFailure.exit_code, f"{self.prog}: {message}\n")


def parser() -> argparse.ArgumentParser:
    top = _Parser(
        prog="rerank-worker",
        description="Serves cross-encoder rerankers over HTTP, scores files with them, and measures how fast they are.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"%(prog)s {version('rerank-worker')}")
    commands = top.add_subparsers(dest="command", required=True)
    serve = commands.add_parser(
        "serve",
        help="load a model and answer POST /v1/score",
        description=f"Serve a model named by flags, or by ${names.ENV_WORKER_CONFIG} (JSON) as the operator does.",
        epilog=_SERVE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    process = serve.add_argument_group("process")
    process.add_argument("--host", help=f"address to bind (default: ${names.ENV_POD_IP}, else 127.0.0.1)")
    process.add_argument("--port", type=int, default=names.WORKER_PORT, help="default: %(default)s; 0 picks a free one")
    process.add_argument("--log-format", choices=("json", "text"), default="json", help="default: %(default)s")
    process.add_argument("--threads", type=int, help="cores to use (default: those this process may use)")
    process.add_argument(
        "--lame-duck-seconds", type=float, default=3.0, help="go on accepting after SIGTERM (default: %(default)s)"
    )
    process.add_argument(
        "--stall-seconds", type=float, default=60.0, help="longest that a batch may take (default: %(default)s)"
    )
    process.add_argument(
        "--max-waiting-tokens", type=int, default=2**20, help="answer 429 beyond it (default: %(default)s)"
    )
    process.add_argument(
        "--max-waiting-bytes",
        type=int,
        default=2**28,
        help="answer 429 beyond so many bytes of bodies in flight (default: %(default)s)",
    )
    models = serve.add_argument_group("several models")
    models.add_argument(
        "--standby", action="store_true", help="start without a model, ready to be given some by admin calls"
    )
    models.add_argument(
        "--admin-token-file", help=f"holds the bearer token of the admin calls (default: ${ENV_TOKEN_FILE}, else off)"
    )
    models.add_argument("--max-models", type=int, default=8, help="most models in this process (default: %(default)s)")
    models.add_argument(
        "--max-model-bytes",
        type=int,
        help="most memory of all models together (default: 80 %% of the device's, or of the host's without one)",
    )
    model = serve.add_argument_group("model", f"only without ${names.ENV_WORKER_CONFIG}")
    model.add_argument("--model", help="a folder, file:///path or hf://org/name")
    model.add_argument("--revision", help="commit of an hf:// model")
    model.add_argument(
        "--max-length", type=int, help="tokens of query and document (default: the model's, at most 512)"
    )
    model.add_argument("--activation", choices=get_args(Activation), help="default: the model's own")
    model.add_argument("--temperature", type=float, help="divides logits before the activation (default: 1)")
    model.add_argument("--device", choices=get_args(Device), help="default: a GPU where there is one")
    model.add_argument("--precision", choices=get_args(Precision), help="default: float16 on a GPU, else float32")
    model.add_argument(
        "--max-batch-tokens", type=int, help="tokens in one batch, padding included (default: measured at start)"
    )
    model.add_argument("--max-delay-seconds", type=float, help="longest wait for a fuller batch (default: 0.005)")
    model.add_argument("--length-bucket", type=int, help="padded lengths are multiples of it (default: 16)")
    model.add_argument("--long-documents", choices=get_args(LongDocuments), help="default: truncate")
    model.add_argument(
        "--chunk-pooling", choices=get_args(ChunkPooling), help="of a long document's chunks; default: max"
    )
    model.add_argument("--backend", choices=get_args(Backend), help="default: the faster one of torch's two")
    model.add_argument("--compile", choices=get_args(Compile), help="default: auto")
    model.add_argument("--quality-floor", type=float, help="least nDCG@10 of int8 and float8 (default: 0.99)")
    score.add_parser(commands)
    tune.add_parser(commands)
    return top


_MODEL_FLAGS = (
    "max_length",
    "activation",
    "temperature",
    "device",
    "precision",
    "max_batch_tokens",
    "max_delay_seconds",
    "length_bucket",
    "long_documents",
    "chunk_pooling",
    "backend",
    "compile",
    "quality_floor",
)


def read_config(arguments: argparse.Namespace, environment: Mapping[str, str]) -> WorkerConfig | None:
    """What to serve; None: nothing yet (--standby). Raises ConfigurationFailure."""
    told = names.ENV_WORKER_CONFIG in environment
    flags = {name: value for name in _MODEL_FLAGS if (value := getattr(arguments, name)) is not None}
    if arguments.standby:
        if told or flags or arguments.model or arguments.revision:
            raise ConfigurationFailure(
                f"--standby starts without a model: drop the flags that name one, and unset ${names.ENV_WORKER_CONFIG}"
            )
        return None
    if told and (flags or arguments.model or arguments.revision):
        raise ConfigurationFailure(
            f"both ${names.ENV_WORKER_CONFIG} and flags say what to serve: drop the flags, or unset the variable"
        )
    given = environment_config(environment)
    if given is not None:
        config = given
    elif arguments.model is None:
        raise ConfigurationFailure(
            f"name a model with --model (a folder or hf://org/name), or set ${names.ENV_WORKER_CONFIG}"
        )
    else:
        config = WorkerConfig(model=parse_model(arguments.model, arguments.revision), **flags)
    check_ranges(config)
    return config


def read_options(arguments: argparse.Namespace, environment: Mapping[str, str]) -> Options:
    """How to serve. Raises ConfigurationFailure."""
    admin_token_file = arguments.admin_token_file or environment.get(ENV_TOKEN_FILE) or None
    admin_token_sha256 = environment.get(ENV_TOKEN_SHA256) or None
    if arguments.standby and admin_token_file is None and admin_token_sha256 is None:
        raise ConfigurationFailure(
            f"--standby waits for admin calls, which need --admin-token-file (or ${ENV_TOKEN_FILE}), or the token's "
            f"sha256 in ${ENV_TOKEN_SHA256}"
        )
    for flag in ("threads", "max_waiting_tokens", "max_waiting_bytes", "max_models", "max_model_bytes"):
        value = getattr(arguments, flag)
        if value is not None and value < 1:
            raise ConfigurationFailure(f"--{flag.replace('_', '-')} is {value}: it must be at least 1")
    if not 0 <= arguments.port <= 65535:
        raise ConfigurationFailure(f"--port is {arguments.port}: it must be from 0 to 65535")
    for flag, least in (("lame_duck_seconds", 0.0), ("stall_seconds", LEAST_STALL)):
        value = getattr(arguments, flag)
        # Not true of what is no number either.
        if not least <= value < math.inf:
            raise ConfigurationFailure(f"--{flag.replace('_', '-')} is {value}: it must be at least {least:g}")
    return Options(
        host=arguments.host or environment.get(names.ENV_POD_IP) or "127.0.0.1",
        port=arguments.port,
        threads=arguments.threads or available_cores(),
        lame_duck=arguments.lame_duck_seconds,
        stall_limit=arguments.stall_seconds,
        waiting_tokens=arguments.max_waiting_tokens,
        waiting_bytes=arguments.max_waiting_bytes,
        admin_token_file=admin_token_file,
        admin_token_sha256=admin_token_sha256,
        models=Limits(arguments.max_models, arguments.max_model_bytes),
    )


def main(arguments: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ) -> int:
    """Run the command line; the exit code."""
    parsed = parser().parse_args(arguments)
    logs.set_up(parsed.log_format)
    # In a pod the file is the server's, beside which a person may run the other commands.
    termination_log = None if "run" in parsed else environment.get(names.ENV_TERMINATION_LOG)
    try:
        if "run" in parsed:
            return parsed.run(parsed, environment)
        config = read_config(parsed, environment)
        options = read_options(parsed, environment)
        return asyncio.run(_serve(config, options, read_tracing(environment)))
    except StartupFailure as failure:
        report(failure, termination_log)
        return failure.exit_code
    except Exception as error:
        log.exception("nobody foresaw this")
        failure = unexpected(error)
        if "run" in parsed:
            failure = EnvironmentFailure(f"rerank-worker {parsed.command} failed: {type(error).__name__}: {error}")
        report(failure, termination_log)
        return failure.exit_code


def read_tracing(environment: Mapping[str, str]) -> "Tracing | None":
    """What exports traces, where the OTEL_* variables ask for it. Raises ConfigurationFailure."""
    try:
        if not otlp.traces_wanted(environment):
            return None
    except ValueError as error:
        raise ConfigurationFailure(str(error)) from error
    # Importing the SDK takes 0.2 s, which nobody pays who exports none.
    from rerank_worker.tracing import Tracing

    return Tracing()


async def _serve(config: WorkerConfig | None, options: Options, tracing: "Tracing | None") -> int:
    # Whoever loads a model into a process that stands by, or swaps one, waits for it.
    def build(wanted: WorkerConfig) -> Loaded:
        return load(wanted, options.threads, quick=wanted is not config)

    return await Server(config, options, build, lambda: stand_by(options.threads), tracing).run()
