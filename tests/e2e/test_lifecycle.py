"""One Reranker's life through the real parts: applied, scored, changed under load, scaled, suspended, deleted."""

import json
from typing import Any

import cohere
import httpx
import pytest
from harness.cluster import ROOT, Cluster, wait_for
from harness.load import SteadyLoad
from harness.release import Release, condition, reranker, wait_settled

NAME = "products"
DEMO = json.loads((ROOT / "tests" / "models" / "demo_query.json").read_text())
SMALL: dict[str, Any] = {"query": DEMO["query"], "documents": [text[:120] for text in DEMO["documents"][:3]]}


@pytest.fixture(scope="module")
def served(kube: Cluster, release: Release, test_namespace: str, model_uri: str) -> str:
    """``namespace/name`` of a Reranker that is Ready."""
    # By hand: replicas that share this machine's cores serve no faster, and those that start take them away.
    kube.apply(reranker(NAME, test_namespace, model_uri, replicas=1, requests={"timeout": "30s"}))
    wait_settled(kube, NAME, test_namespace)
    return f"{test_namespace}/{NAME}"


def children(kube: Cluster, namespace: str, name: str) -> list[str]:
    kinds = "deployments,replicasets,pods,controllerrevisions,poddisruptionbudgets"
    found = kube.items(kinds, "-n", namespace, "-l", f"rerank.dev/reranker={name}")
    return [f"{item['kind']}/{item['metadata']['name']}" for item in found]


def test_real_scores_through_the_cohere_sdk(served: str, gateways: list[str]):
    client = cohere.ClientV2(api_key="unused", base_url=gateways[0])
    answer = client.rerank(model=served, query=DEMO["query"], documents=DEMO["documents"], top_n=10)
    scores = [r.relevance_score for r in answer.results]
    assert len(scores) == 10
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= s <= 1 for s in scores)
    assert {r.index for r in answer.results} & set(DEMO["relevant"])


def test_status_and_columns_tell_what_runs(kube: Cluster, served: str, test_namespace: str):
    found = kube.get("reranker", NAME, "-n", test_namespace)
    assert found["status"]["readyReplicas"] == 1
    assert found["status"]["traffic"] == [{"revision": found["status"]["currentRevision"], "percent": 100}]
    assert condition(found, "Degraded")["status"] == "False"
    row = kube.kubectl("get", "rr", NAME, "-n", test_namespace).stdout
    assert found["status"]["currentRevision"] in row


def test_a_new_revision_takes_over_without_a_failed_request(
    kube: Cluster, served: str, test_namespace: str, gateways: list[str]
):
    before = kube.get("reranker", NAME, "-n", test_namespace)["status"]["currentRevision"]
    with SteadyLoad(lambda: gateways, "/v2/rerank", {"model": served, **SMALL}, rate=10) as load:
        wait_for("traffic on the old revision", lambda: len(load.report.outcomes) > 20, 30)
        patch = {"spec": {"batching": {"maxDelay": "2ms"}}}
        kube.kubectl("patch", "reranker", NAME, "-n", test_namespace, "--type=merge", "-p", json.dumps(patch))
        after = wait_settled(kube, NAME, test_namespace)["status"]["currentRevision"]
        seen = len(load.report.outcomes)
        wait_for("traffic on the new revision", lambda: len(load.report.outcomes) > seen + 30, 30)
    print(json.dumps(load.report.summary()))
    assert after != before
    assert load.report.failed == []
    assert load.report.outcomes[-1].revision == after
    gone = wait_for(
        "the old Deployment to go",
        lambda: f"Deployment/{NAME}-{before}" not in children(kube, test_namespace, NAME),
        timeout=90,
    )
    assert gone


def test_scale_subresource(kube: Cluster, served: str, test_namespace: str):
    kube.kubectl("scale", "reranker", NAME, "-n", test_namespace, "--replicas=2")
    found = wait_settled(kube, NAME, test_namespace)
    assert found["status"]["readyReplicas"] == 2
    assert "PodDisruptionBudget/products" in children(kube, test_namespace, NAME)
    kube.kubectl("scale", "reranker", NAME, "-n", test_namespace, "--replicas=1")
    wait_for(
        "one replica",
        lambda: kube.get("reranker", NAME, "-n", test_namespace)["status"]["replicas"] == 1,
        timeout=90,
    )


def test_drift_is_repaired(kube: Cluster, served: str, test_namespace: str, gateways: list[str]):
    revision = kube.get("reranker", NAME, "-n", test_namespace)["status"]["currentRevision"]
    deployment = f"{NAME}-{revision}"
    uid = kube.get("deployment", deployment, "-n", test_namespace)["metadata"]["uid"]
    kube.kubectl("delete", "deployment", deployment, "-n", test_namespace, "--wait=false")

    def put_back() -> bool:
        found = [d for d in kube.items("deployments", "-n", test_namespace) if d["metadata"]["name"] == deployment]
        return bool(found) and found[0]["metadata"]["uid"] != uid

    wait_for("the Deployment to be put back", put_back, timeout=60)
    wait_settled(kube, NAME, test_namespace)


def test_suspend_frees_the_workers_and_says_so(kube: Cluster, served: str, test_namespace: str, gateways: list[str]):
    kube.kubectl("patch", "reranker", NAME, "-n", test_namespace, "--type=merge", "-p", '{"spec":{"suspend":true}}')
    wait_for(
        "no pods",
        lambda: not kube.items("pods", "-n", test_namespace, "-l", f"rerank.dev/reranker={NAME}"),
        timeout=90,
    )
    found = kube.get("reranker", NAME, "-n", test_namespace)
    assert condition(found, "Ready")["reason"] == "Suspended"
    client = cohere.ClientV2(api_key="unused", base_url=gateways[0])
    with pytest.raises(Exception, match=r"(?i)suspended"):
        client.rerank(model=served, query="q", documents=["d"], request_options={"max_retries": 0})
    kube.kubectl("patch", "reranker", NAME, "-n", test_namespace, "--type=merge", "-p", '{"spec":{"suspend":false}}')
    wait_settled(kube, NAME, test_namespace)


def test_the_first_request_waits_for_a_cold_start(
    kube: Cluster, release: Release, test_namespace: str, gateways: list[str], model_uri: str
):
    kube.apply(reranker("cold", test_namespace, model_uri, requests={"timeout": "60s"}))
    client = cohere.ClientV2(api_key="unused", base_url=gateways[0])
    wait_for(
        "the gateway to know it",
        lambda: f"{test_namespace}/cold" in httpx.get(f"{gateways[0]}/v1/models").text,
        timeout=20,
    )
    answer = client.rerank(model=f"{test_namespace}/cold", query=SMALL["query"], documents=SMALL["documents"])
    assert len(answer.results) == len(SMALL["documents"])
    kube.kubectl("delete", "reranker", "cold", "-n", test_namespace)


def test_delete_leaves_nothing_behind(kube: Cluster, served: str, test_namespace: str):
    kube.kubectl("delete", "reranker", NAME, "-n", test_namespace, "--timeout=60s")
    wait_for("everything of it to go", lambda: children(kube, test_namespace, NAME) == [], timeout=90)
