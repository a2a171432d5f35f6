"""Writes docs/metrics.md: every metric of gateway, worker and operator, read from the code that defines it.

Run by `make generate`; a unit test holds page and code together.
"""

from collections.abc import Iterator
from pathlib import Path

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase
from rerank_gateway.cache import Caches
from rerank_gateway.cluster.state import RoutingTable
from rerank_gateway.metrics import Metrics as GatewayMetrics
from rerank_gateway.waiting import Queues
from rerank_operator.controller import metrics as operator_metrics
from rerank_worker.metrics import Metrics as WorkerMetrics

PAGE = Path(__file__).parents[1] / "metrics.md"


def main() -> None:
    PAGE.write_text(render())


def render() -> str:
    """The whole page, as Markdown."""
    parts = [
        ("Gateway", "port 9090", _gateway()),
        ("Worker", "port 8080", WorkerMetrics().registry),
        ("Operator", "port 9090", REGISTRY),
    ]
    lines = [
        "# Metrics",
        "",
        "<!-- Written by docs/reference/metrics.py: change the code, then `make generate`. -->",
        "",
        "Base units throughout; labels are bounded (objects that exist, HTTP codes, fixed reasons). Beside these "
        "stands what prometheus_client adds by itself: `process_*`, `python_*`, and in the plain text format "
        "`*_created`.",
    ]
    for title, port, registry in parts:
        lines += ["", f"## {title} ({port})", "", "| metric | type | labels | what |", "| --- | --- | --- | --- |"]
        lines += sorted(_rows(registry))
    return "\n".join(lines) + "\n"


def _gateway() -> CollectorRegistry:
    metrics = GatewayMetrics(clock=lambda: 0.0)
    queues = Queues(limits=None, clock=lambda: 0.0)  # ty: ignore[invalid-argument-type]
    metrics.observe(queues, RoutingTable, Caches(0, lambda: 0.0), lambda: 0, lambda: 0, lambda: True)
    return metrics.snapshot()


def _rows(registry: CollectorRegistry) -> Iterator[str]:
    # prometheus_client has no public way to ask a metric for its labels before it has a sample.
    for collector in list(registry._collector_to_names):
        own = registry is not REGISTRY or collector in vars(operator_metrics).values()
        if own:  # else the client library's: process_*, python_*
            wrapped = isinstance(collector, MetricWrapperBase)
            for family in collector.describe() if wrapped else collector.collect():
                labels = collector._labelnames if wrapped else getattr(family, "_labelnames", ())
                name = family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")
                yield f"| `{name}` | {family.type} | {', '.join(labels)} | {family.documentation} |"


if __name__ == "__main__":
    main()
