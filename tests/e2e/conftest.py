"""Fixtures of the end-to-end tests: one cluster and one release a session, one namespace a module or a test.

By default the cluster is the local one that RERANK_E2E_CLUSTER names (e2e), left running for the next session; two at
once need two. With KUBECONFIG,
RERANK_E2E_OPERATOR_IMAGE and RERANK_E2E_WORKER_IMAGE set, the same tests run on that cluster, with the models that
RERANK_E2E_MODEL_URI and RERANK_E2E_OTHER_MODEL_URI name; tests that kill processes by pid are skipped there.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.cluster import STATE, Cluster, local_cluster
from harness.release import Release, image_values, namespace

OPERATOR_IMAGE = os.environ.get("RERANK_E2E_OPERATOR_IMAGE")
WORKER_IMAGE_VARIABLE = "RERANK_E2E_WORKER_IMAGE"
MODEL_URI = os.environ.get("RERANK_E2E_MODEL_URI")
OTHER_MODEL_URI = os.environ.get("RERANK_E2E_OTHER_MODEL_URI")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if OPERATOR_IMAGE:
        skip = pytest.mark.skip(reason="kills or freezes processes by pid: local cluster only")
        for item in items:
            if item.get_closest_marker("local_only"):
                item.add_marker(skip)


@pytest.fixture(scope="session")
def kube() -> Cluster:
    """The cluster under test, without the chart."""
    if OPERATOR_IMAGE:
        return Cluster(kubeconfig=Path(os.environ["KUBECONFIG"]))
    return local_cluster(os.environ.get("RERANK_E2E_CLUSTER", "e2e"), nodes=2)


@pytest.fixture(scope="session")
def release(kube: Cluster) -> Release:
    """The chart, installed and available."""
    values = []
    if OPERATOR_IMAGE:
        values = image_values("image", OPERATOR_IMAGE) + image_values("worker.image", os.environ[WORKER_IMAGE_VARIABLE])
    installed = Release(kube)
    installed.install(*values)
    return installed


@pytest.fixture(scope="module")
def test_namespace(request: pytest.FixtureRequest, kube: Cluster) -> Iterator[str]:
    """A fresh namespace that enforces the restricted Pod Security Standard; gone after the module."""
    name = "t-" + re.sub(r"[^a-z0-9]+", "-", request.module.__name__.rsplit(".", 1)[-1].removeprefix("test_").lower())
    remove(kube, name)  # what a run that was killed has left behind
    kube.apply(namespace(name))
    yield name
    remove(kube, name)


def remove(kube: Cluster, name: str) -> None:
    """The namespace and all in it. Pods first: where one is left at its first look, the namespace controller looks
    again after half of that pod's grace period, which is more than five minutes for a warm pod. Some tests have removed
    the definitions by then."""
    kinds = "rerankers.rerank.dev,warmpools.rerank.dev"
    first = ("delete", kinds, "--all", "-n", name, "--cascade=foreground", "--wait=true", "--timeout=90s")
    kube.kubectl(*first, check=False, timeout=100)
    kube.kubectl("delete", "namespace", name, "--ignore-not-found", "--wait=true", "--timeout=90s", timeout=100)


@pytest.fixture
def space(kube: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace for one test, under the same Standard."""
    name = "o-" + re.sub(r"[^a-z0-9]+", "-", request.node.name.lower())[:50].strip("-")
    kube.apply(namespace(name))
    yield name
    kube.kubectl("delete", "rerankers", "--all", "-n", name)
    kube.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="module")
def gateways(release: Release) -> Iterator[list[str]]:
    """Base URLs under which the gateways answer."""
    with release.reach_gateways() as urls:
        yield urls


@pytest.fixture(scope="session")
def model_uri() -> str:
    return MODEL_URI or f"file://{STATE / 'models' / 'demo-reranker'}"


@pytest.fixture(scope="session")
def other_model_uri() -> str:
    """Another model that loads: the deliberately worse revision of the demo model."""
    return OTHER_MODEL_URI or f"file://{STATE / 'models' / 'demo-reranker-worse'}"
