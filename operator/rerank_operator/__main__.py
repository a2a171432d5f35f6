"""The operator's process: flags, logs, signals, and nothing that decides."""

import argparse
import asyncio
import logging
import os
import signal
import socket
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from rerank_api import otlp

from rerank_operator import logs
from rerank_operator.controller import health
from rerank_operator.controller.api import KubeApi, load_configuration
from rerank_operator.controller.leader import Terms
from rerank_operator.controller.reconcile import Controller, Settings
from rerank_operator.manifests.pod_template import WorkerImage, WorkerTraces
from rerank_operator.page import server as page_server
from rerank_operator.page.sampling import Sampling, Standing
from rerank_operator.rollout.prometheus import checked_url
from rerank_operator.warm.tokens import read_key

log = logging.getLogger(__name__)

T = TypeVar("T")

_ACCOUNT_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="rerank-operator",
        description="Keeps fleets of rerankers as their Reranker objects say. Reaches the cluster through KUBECONFIG, "
        "or through the service account of its pod.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--worker-image", required=True, help="image of the worker containers")
    add("--worker-image-pull-policy", default="IfNotPresent", choices=["Always", "IfNotPresent", "Never"])
    add(
        "--worker-otlp-endpoint",
        type=_checked(otlp.checked_endpoint),
        default=None,
        metavar="URL",
        help="collector that workers send their traces to over HTTP, such as http://collector.monitoring:4318; none: "
        "they make no traces. A change renews the pods",
    )
    add(
        "--worker-otlp-sample-ratio",
        type=_checked(otlp.checked_ratio),
        default=0.01,
        metavar="RATIO",
        help="share of the traces that begin in a worker; those of gateways are kept as the gateway decided",
    )
    add("--namespace", action="append", default=[], help="watch only this namespace (repeatable; none: all)")
    add("--lease-name", default="rerank-operator", help="name of the Lease that makes one replica the leader")
    add("--lease-namespace", default=None, help="its namespace (default: the pod's own, else default)")
    add("--lease-duration", type=float, default=15.0, help="seconds after which an unrenewed lease may be taken")
    add("--renew-deadline", type=float, default=10.0, help="seconds after which a leader that cannot renew stops")
    add("--retry-period", type=float, default=2.0, help="seconds between tries to take or renew the lease")
    add("--resync-seconds", type=float, default=60.0, help="seconds between full lists that repair drift")
    add(
        "--gateway-service",
        type=_namespaced,
        default=None,
        metavar="NAMESPACE/NAME",
        help="Service of the gateways, whose demand replicas follow; none: no Reranker gets fewer replicas by itself",
    )
    add(
        "--warm-pool-key-file",
        type=Path,
        default=None,
        help="secret from which the tokens of warm pods' workers are made; none: a random one, so that warm pods are "
        "renewed whenever the leader changes",
    )
    add(
        "--prometheus-url",
        type=_checked(checked_url),
        default=None,
        metavar="URL",
        help="Prometheus that spec.rollout.prometheus is asked of, such as http://prometheus.monitoring:9090; none: a "
        "canary that is to be judged by such queries is held",
    )
    add("--metrics-host", default="", help="address of /healthz, /readyz and /metrics; empty: all")
    add("--metrics-port", type=int, default=9090)
    add("--page-host", default="", help="address of the read-only page; empty: all")
    add("--page-port", type=int, default=8081, help="its port; 0: there is no page")
    add("--log-format", default="json", choices=["json", "text"])
    add("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    return parser.parse_args(arguments)


def _namespaced(text: str) -> tuple[str, str]:
    namespace, _, name = text.partition("/")
    if not namespace or not name or "/" in name:
        raise argparse.ArgumentTypeError(f"{text!r} must be a namespace and a name, such as rerank-system/gateway")
    return namespace, name


def _checked(check: Callable[[str], T]) -> Callable[[str], T]:
    """``check``, whose ValueError says what is wrong with a flag's text."""

    def flag(text: str) -> T:
        try:
            return check(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return flag


def main() -> None:
    arguments = parse_arguments()
    logs.set_up(arguments.log_format, arguments.log_level)
    try:
        terms = Terms(arguments.lease_duration, arguments.renew_deadline, arguments.retry_period)
    except ValueError as error:
        raise SystemExit(f"rerank-operator: {error}") from None
    asyncio.run(_run(arguments, terms, _warm_pool_key(arguments.warm_pool_key_file)))


async def _run(arguments: argparse.Namespace, terms: Terms, warm_pool_key: bytes | None) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    settings = Settings(
        worker=_worker(arguments),
        namespaces=tuple(arguments.namespace),
        lease_namespace=arguments.lease_namespace or _own_namespace(),
        lease_name=arguments.lease_name,
        identity=f"{os.environ.get('HOSTNAME') or socket.gethostname()}_{uuid.uuid4()}",
        terms=terms,
        resync_seconds=arguments.resync_seconds,
        gateway_service=arguments.gateway_service,
        prometheus_url=arguments.prometheus_url,
        warm_pool_key=warm_pool_key,
    )
    api = KubeApi(await load_configuration())
    controller = Controller(api, settings)
    app = health.application(controller.trouble, lambda: controller.synced)
    server = await health.serve(app, arguments.metrics_host, arguments.metrics_port)
    sampling = Sampling(controller.store, lambda: _standing(controller, settings))
    page = await page_server.start(sampling, arguments.page_host, arguments.page_port) if arguments.page_port else None
    try:
        await controller.run(stop)
    finally:
        if page is not None:
            await page.close()
        await server.cleanup()
        await api.close()


def _standing(controller: Controller, settings: Settings) -> Standing:
    return Standing(
        leads=controller.leader.leading,
        leader=controller.leader.holder,
        synced=controller.synced,
        listed=controller.listed,
        listing=settings.resync_seconds,
        trouble=controller.trouble() or "",
        gateways=controller.gateways,
    )


def _worker(arguments: argparse.Namespace) -> WorkerImage:
    endpoint = arguments.worker_otlp_endpoint
    traces = WorkerTraces(endpoint, arguments.worker_otlp_sample_ratio) if endpoint is not None else None
    return WorkerImage(arguments.worker_image, arguments.worker_image_pull_policy, traces)


def _warm_pool_key(path: Path | None) -> bytes | None:
    if path is None:
        log.warning("no --warm-pool-key-file: warm pods are renewed whenever the leader changes")
        return None
    try:
        return read_key(path)
    except (OSError, ValueError) as error:
        raise SystemExit(f"rerank-operator: --warm-pool-key-file: {error}") from None


def _own_namespace() -> str:
    return _ACCOUNT_NAMESPACE.read_text().strip() if _ACCOUNT_NAMESPACE.exists() else "default"


if __name__ == "__main__":
    main()
