"""The command `rerank-gateway`: options, signals and exit code."""

import argparse
import asyncio
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from kubernetes.aio.config import ConfigException
from rerank_api import otlp, units

from rerank_gateway import logs
from rerank_gateway.app import Gateway, Options
from rerank_gateway.cluster.api import connect, getter
from rerank_gateway.cluster.watch import ClusterSource
from rerank_gateway.routing import Limits

if TYPE_CHECKING:
    from rerank_gateway.tracing import Tracing

log = logging.getLogger("rerank_gateway")

EXIT_CONFIGURATION = 64


def main() -> None:
    arguments = _parser().parse_args()
    logs.configure(arguments.log_level)
    try:
        asyncio.run(_run(arguments, _tracing()))
    except (ConfigException, OSError, _BadEnvironment) as error:
        log.critical("cannot start: %s", error)
        sys.exit(EXIT_CONFIGURATION)


class _BadEnvironment(Exception):
    """Traces cannot be exported as the environment asks."""


def _tracing() -> "Tracing | None":
    try:
        if not otlp.traces_wanted(os.environ):
            return None
    except ValueError as error:
        raise _BadEnvironment(str(error)) from None
    from rerank_gateway.tracing import Tracing  # takes a second or so to load

    return Tracing(time.monotonic)


async def _run(arguments: argparse.Namespace, tracing: "Tracing | None") -> None:
    asked_to_stop, hurry = asyncio.Event(), asyncio.Event()

    def stop() -> None:
        # The second signal ends the wait for clients to notice.
        (hurry if asked_to_stop.is_set() else asked_to_stop).set()

    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop)

    async with await connect(arguments.kubeconfig) as api:
        source = ClusterSource(getter(api), arguments.namespace, time.monotonic)
        gateway = Gateway(_options(arguments), source, time.monotonic, tracing=tracing)
        await gateway.start()
        source.start()
        await asked_to_stop.wait()
        log.info("stopping: in-flight requests end first")
        await gateway.stop(hurry)
        await source.stop()
    log.info("stopped")


def _options(arguments: argparse.Namespace) -> Options:
    return Options(
        host=arguments.host,
        port=arguments.port,
        admin_port=arguments.admin_port,
        api_keys_file=arguments.api_keys_file,
        limits=Limits(arguments.max_outstanding_requests, arguments.max_outstanding_tokens),
        max_held_bytes=arguments.max_held_bytes,
        max_cache_bytes=arguments.max_cache_bytes,
        access_log_sample=arguments.access_log_sample,
        shutdown_delay=arguments.shutdown_delay,
        drain_timeout=arguments.drain_timeout,
    )


def _parser() -> argparse.ArgumentParser:
    defaults = Options()
    parser = argparse.ArgumentParser(
        prog="rerank-gateway",
        description="Serves the rerank API for all Rerankers of a cluster: holds, routes and retries requests.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--host", default=defaults.host, help="address to listen on; empty: all")
    parser.add_argument("--port", type=int, default=defaults.port, help="port of the rerank API")
    parser.add_argument(
        "--admin-port",
        type=int,
        default=defaults.admin_port,
        help="port of /healthz, /readyz, /metrics, the demand stream and the answers",
    )
    parser.add_argument(
        "--namespace", action="append", default=[], help="serve this namespace only; repeatable (none: all)"
    )
    parser.add_argument("--kubeconfig", help="none: $KUBECONFIG if set, else the pod's service account")
    parser.add_argument(
        "--api-keys-file", type=Path, help="require one of these keys, one a line; read again when the file changes"
    )
    parser.add_argument(
        "--max-held-bytes",
        type=_quantity,
        default=defaults.max_held_bytes,
        help="bytes of request bodies held at once, such as 1Gi; beyond it clients get 429. "
        "The process may need three times as much memory at that point",
    )
    parser.add_argument(
        "--max-cache-bytes",
        type=_quantity,
        default=defaults.max_cache_bytes,
        help="memory of the result caches of all Rerankers together (spec.requests.cache), such as 128Mi",
    )
    parser.add_argument(
        "--max-outstanding-requests",
        type=_positive,
        default=defaults.limits.requests,
        help="requests sent to one worker at once; the rest waits here",
    )
    parser.add_argument(
        "--max-outstanding-tokens",
        type=_positive,
        default=defaults.limits.tokens,
        help="tokens sent to one worker at once at most, of a single request at most half of it; less by its capacity",
    )
    parser.add_argument(
        "--shutdown-delay",
        type=_seconds,
        default=defaults.shutdown_delay,
        help="after SIGTERM, keep accepting for so long, until everyone has noticed (seconds, or 5s, 1m30s)",
    )
    parser.add_argument(
        "--drain-timeout",
        type=_seconds,
        default=defaults.drain_timeout,
        help="then give requests in flight this long; "
        "terminationGracePeriodSeconds must exceed both together by a few seconds",
    )
    parser.add_argument(
        "--access-log-sample",
        type=_share,
        default=defaults.access_log_sample,
        help="share (0 to 1) of the requests answered well and within their Reranker's spec.slo.latency.threshold that "
        "get a line in the log; all others always do",
    )
    parser.add_argument(
        "--log-level", choices=["debug", "info", "warning", "error"], default="info", help="least level"
    )
    return parser


def _quantity(text: str) -> int:
    try:
        return units.parse_quantity(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = units.parse_duration(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    if not 0 <= seconds <= 3600:
        raise argparse.ArgumentTypeError("must be between 0 and 1 hour")
    return seconds


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError("must be a number from 0 to 1")
    return share


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError("must be a whole number above 0")
    return int(text)


if __name__ == "__main__":
    main()
