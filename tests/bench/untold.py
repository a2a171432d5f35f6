"""Starts the gateway or the worker without any metric: every count, gauge and histogram does nothing. For comparison.

    python tests/bench/untold.py gateway|worker ARGUMENTS

It replaces methods from outside; the product has no such switch, and nothing but a bench may use this.
"""

import sys
from typing import Any

import prometheus_client
from prometheus_client.metrics import MetricWrapperBase


def nothing(*_: Any, **__: Any) -> None:
    """Is what each metric does."""


def silence() -> None:
    """For metrics of prometheus_client: one child for all labels, and it does nothing."""
    MetricWrapperBase.labels = lambda self, *_, **__: self
    for kind in (prometheus_client.Counter, prometheus_client.Gauge, prometheus_client.Histogram):
        for name in ("inc", "dec", "set", "observe", "set_function"):
            if hasattr(kind, name):
                setattr(kind, name, nothing)


def silence_own(module: Any) -> None:
    """For collectors that ``module`` has written itself: whatever takes a value does nothing."""
    for kind in vars(module).values():
        if isinstance(kind, type) and "collect" in vars(kind):
            for name in ("observe", "inc", "add"):
                if name in vars(kind):
                    setattr(kind, name, nothing)


def main() -> None:
    what, *arguments = sys.argv[1:]
    sys.argv = [f"rerank-{what}", *arguments]
    silence()
    if what == "gateway":
        from rerank_gateway import metrics
        from rerank_gateway.__main__ import main as serve

        for name in ("answered", "retried", "mirrored"):
            setattr(metrics.Metrics, name, nothing)
        serve()
    else:
        from rerank_worker import metrics
        from rerank_worker.__main__ import main as serve

        silence_own(metrics)
        sys.exit(serve())


if __name__ == "__main__":
    main()
