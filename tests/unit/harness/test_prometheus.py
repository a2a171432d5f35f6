"""A real Prometheus scrapes pods as the chart's PodMonitors say: which ones, and under which labels."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from harness.cluster import Cluster
from harness.prometheus import exporter, needs_prometheus, of_pods, pod_monitors
from harness.release import RELEASE, SYSTEM_NAMESPACE
from harness.watching import Change
from rerank_api import names

pytestmark = needs_prometheus

_uids = itertools.count()


def pod(namespace: str, name: str, port: int, port_name: str, labels: dict[str, str], phase: str = "Running") -> Change:
    container = {"name": "main", "ports": [{"name": port_name, "containerPort": port}]}
    return Change(
        0.0,
        "ADDED",
        {
            "metadata": {"uid": str(next(_uids)), "namespace": namespace, "name": name, "labels": labels},
            "spec": {"containers": [container]},
            "status": {"phase": phase, "podIP": "127.0.0.1"},
        },
    )


def of_release(component: str) -> dict[str, str]:
    return {names.LABEL_NAME: "rerank-operator", names.LABEL_INSTANCE: RELEASE, names.LABEL_COMPONENT: component}


WORKER = {names.LABEL_COMPONENT: names.COMPONENT_WORKER, names.LABEL_MANAGED_BY: names.MANAGED_BY}
OWN = {names.LABEL_RERANKER: "shop", names.LABEL_REVISION: "abc"}
WARM = {names.LABEL_WARM_POOL: "shared"}
LENT = {**WARM, names.LABEL_LOANED_TO: "shop", names.LABEL_LOANED_REVISION: "abc"}


@pytest.fixture
def port() -> Any:
    with exporter(lambda: 'told{namespace="search",reranker="shop"} 1\ntold{namespace="",reranker=""} 2\n') as found:
        yield found


def test_pods_are_scraped_as_the_chart_says(port: int, tmp_path: Path):
    changes = [
        pod(SYSTEM_NAMESPACE, "gateway-0", port, "metrics", of_release("gateway")),
        pod(SYSTEM_NAMESPACE, "operator-0", port, "metrics", of_release("operator")),
        pod("other", "gateway-0", port, "metrics", of_release("gateway")),
        pod(SYSTEM_NAMESPACE, "gateway-1", port, "http", of_release("gateway")),
        pod("search", "own-0", port, "http", {**WORKER, **OWN}),
        pod("search", "warm-0", port, "http", {**WORKER, **WARM}),
        pod("search", "lent-0", port, "http", {**WORKER, **LENT}),
        pod("search", "over-0", port, "http", {**WORKER, **OWN}, phase="Failed"),
        gone := pod("search", "gone-0", port, "http", {**WORKER, **OWN}),
        Change(0.0, "DELETED", gone.object),
    ]
    monitors = pod_monitors(Cluster(kubeconfig=tmp_path / "none"), "200ms")
    with of_pods(lambda: changes, monitors, tmp_path, "200ms") as prometheus:
        prometheus.wait("count(up == 1) == 5", 30)
        targets = {found.labels["pod"]: dict(found.labels) for found in prometheus.query("up")}
        told = {found.labels["pod"]: dict(found.labels) for found in prometheus.query("told == 1")}
        nobody = {found.labels["pod"]: dict(found.labels) for found in prometheus.query("told == 2")}
    for labels in targets.values():
        assert labels.pop("instance") == f"127.0.0.1:{port}"
        assert labels.pop("__name__") == "up"
        assert labels.pop("container") == "main"
        labels.pop("endpoint")
    assert targets == {
        "gateway-0": {"job": "rerank-gateway", "namespace": SYSTEM_NAMESPACE, "pod": "gateway-0"},
        "operator-0": {"job": "rerank-operator", "namespace": SYSTEM_NAMESPACE, "pod": "operator-0"},
        "own-0": {"job": "rerank-worker", "namespace": "search", "pod": "own-0", "reranker": "shop", "revision": "abc"},
        "warm-0": {"job": "rerank-worker", "namespace": "search", "pod": "warm-0", "warm_pool": "shared"},
        "lent-0": {
            "job": "rerank-worker",
            "namespace": "search",
            "pod": "lent-0",
            "reranker": "shop",
            "revision": "abc",
            "warm_pool": "shared",
        },
    }
    assert told["gateway-0"]["namespace"] == "search", "as the gateway says, not where it runs"
    assert "exported_namespace" not in told["gateway-0"]
    assert "namespace" not in nobody["gateway-0"], "requests for no Reranker are not the gateway's own namespace's"
