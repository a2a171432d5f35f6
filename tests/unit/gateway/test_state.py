"""Which Pods are endpoints, of whom and where, and what a Reranker says about its requests."""

import json
from typing import Any

import pytest
from rerank_api import names, wire
from rerank_gateway.cluster.state import CachePolicy, Endpoint, parse_pod, parse_policy

OWN = {names.LABEL_RERANKER: "products", names.LABEL_REVISION: "one"}
POOL = {names.LABEL_WARM_POOL: "shared"}
LOANED = POOL | {names.LABEL_LOANED_TO: "products", names.LABEL_LOANED_REVISION: "one"}
KEY = names.model_key("search", "products", "one")
SERVING = {names.ANNOTATION_LOAN_SERVING: KEY}


def _pod(labels: dict[str, str], annotations: dict[str, str] | None = None, **status: str) -> bytes:
    conditions = [{"type": kind, "status": value} for kind, value in (status or {"Ready": "True"}).items()]
    metadata = {"namespace": "search", "name": "pod", "uid": "uid", "labels": labels, "annotations": annotations or {}}
    return json.dumps({"metadata": metadata, "status": {"podIP": "10.0.0.1", "conditions": conditions}}).encode()


@pytest.mark.parametrize(
    ("pod", "path"),
    [
        pytest.param(_pod(OWN), wire.SCORE_PATH, id="own"),
        pytest.param(_pod(OWN, SERVING), wire.SCORE_PATH, id="own, whatever its annotations"),
        pytest.param(_pod({}), None, id="nobody's"),
        pytest.param(_pod(OWN, Ready="False", ContainersReady="False"), None, id="not ready"),
        pytest.param(_pod(POOL), None, id="warm and free"),
        pytest.param(_pod(LOANED), None, id="on loan, the model is not ready there"),
        pytest.param(_pod(LOANED, SERVING), f"/v1/models/{KEY}/score", id="on loan and serving"),
        pytest.param(_pod(POOL, SERVING), None, id="released, but for the mark"),
        pytest.param(_pod(OWN | POOL), None, id="a warm pod serves by its loan only"),
        pytest.param(
            _pod(LOANED, {names.ANNOTATION_LOAN_SERVING: names.model_key("search", "products", "zero")}),
            None,
            id="marked for another revision",
        ),
        pytest.param(_pod(LOANED, SERVING, Ready="False"), None, id="on loan, not ready"),
    ],
)
def test_which_pods_are_endpoints(pod: bytes, path: str | None) -> None:
    expected = None if path is None else Endpoint("uid", "search", "products", "one", "10.0.0.1", path=path)
    assert parse_pod(pod) == expected


def test_a_loaned_pod_of_a_silent_node_is_the_last_choice() -> None:
    endpoint = parse_pod(_pod(LOANED, SERVING, Ready="False", ContainersReady="True"))
    assert endpoint is not None
    assert not endpoint.ready


def _reranker(requests: dict[str, Any], status: dict[str, Any] | None = None, max_length: int | None = None) -> bytes:
    spec = {"model": {"uri": "file:///model", "maxLength": max_length}, "requests": requests}
    return json.dumps(
        {"metadata": {"namespace": "search", "name": "products"}, "spec": spec, "status": status or {}}
    ).encode()


def test_the_cache_is_off_unless_asked_for() -> None:
    assert parse_policy(_reranker({})).cache is None
    assert parse_policy(_reranker({"cache": {}})).cache == CachePolicy(64 * 2**20, 600.0)
    assert parse_policy(_reranker({"cache": {"maxBytes": "1Mi", "ttl": "30s"}})).cache == CachePolicy(2**20, 30.0)


def test_wake_timeout() -> None:
    assert parse_policy(_reranker({})).wake_timeout == 300.0
    assert parse_policy(_reranker({"wakeTimeout": "90s"})).wake_timeout == 90.0


@pytest.mark.parametrize(
    ("requests", "max_length", "longest", "chunked"),
    [
        ({}, None, 512, False),
        ({}, 8192, 8192, False),
        ({"longDocuments": "reject"}, 256, 256, False),
        ({"longDocuments": "chunk"}, 256, 256, True),
    ],
)
def test_what_pairs_are_cut_to(requests: dict[str, Any], max_length: int | None, longest: int, chunked: bool) -> None:
    policy = parse_policy(_reranker(requests, max_length=max_length))
    assert (policy.max_pair_tokens, policy.chunked) == (longest, chunked)


@pytest.mark.parametrize(
    ("status", "settled"),
    [
        ({}, None),
        ({"currentRevision": "one", "updatedRevision": "one"}, "one"),
        ({"currentRevision": "one", "updatedRevision": "two"}, None),
        ({"updatedRevision": "two"}, None),
    ],
)
def test_the_revision_that_will_serve_is_known_while_no_other_is_wanted(
    status: dict[str, Any], settled: str | None
) -> None:
    assert parse_policy(_reranker({}, status)).settled_revision == settled
