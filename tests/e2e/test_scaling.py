"""Scaling on demand through the real parts: a client's load, the gateways' streams, the operator, cold starts, zero."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from harness.cluster import ROOT, Cluster, wait_for
from harness.release import Release, condition, reranker, wait_settled

NAME = "elastic"
DEMO = json.loads((ROOT / "tests" / "models" / "demo_query.json").read_text())
PATIENCE = 120
"""Seconds: a cold start on a busy machine of two cores."""


@pytest.fixture(scope="module")
def elastic(kube: Cluster, release: Release, test_namespace: str, model_uri: str) -> str:
    """``namespace/name`` of a Reranker that is Ready and soon goes to zero."""
    requests = {"timeout": "5m", "wakeTimeout": "5m"}
    kube.apply(
        reranker(NAME, test_namespace, model_uri, scaling={"idleTimeout": "5s", "maxReplicas": 2}, requests=requests)
    )
    wait_settled(kube, NAME, test_namespace, timeout=PATIENCE)
    return f"{test_namespace}/{NAME}"


def replicas(kube: Cluster, namespace: str) -> int:
    found = kube.items("deployments", "-n", namespace, "-l", f"rerank.dev/reranker={NAME}")
    return sum(one["spec"]["replicas"] for one in found)


def body(model: str, documents: int) -> dict[str, Any]:
    texts = DEMO["documents"]
    return {"model": model, "query": DEMO["query"], "documents": [texts[i % len(texts)] for i in range(documents)]}


async def ask(urls: list[str], model: str, requests: int, documents: int) -> list[int]:
    """The status of each of ``requests`` sent at once, spread over the gateways."""
    async with httpx.AsyncClient(timeout=5 * PATIENCE, limits=httpx.Limits(max_connections=None)) as client:
        sent = [
            client.post(f"{urls[number % len(urls)]}/v2/rerank", json=body(model, documents))
            for number in range(requests)
        ]
        return [answer.status_code for answer in await asyncio.gather(*sent)]


def test_an_idle_reranker_goes_to_zero_and_the_next_requests_are_held_until_it_is_back(
    kube: Cluster, elastic: str, test_namespace: str, gateways: list[str]
):
    wait_for("zero", lambda: replicas(kube, test_namespace) == 0, timeout=PATIENCE)
    told = wait_for(
        "the status",
        lambda: condition(kube.get("reranker", NAME, "-n", test_namespace), "Scaling").get("reason") == "Idle",
        timeout=30,
    )
    assert told
    assert asyncio.run(ask(gateways, elastic, requests=4, documents=2)) == [200] * 4
    scaling = kube.get("reranker", NAME, "-n", test_namespace)["status"]["scaling"]
    assert scaling["desiredReplicas"] >= 1
    events = kube.items("events", "-n", test_namespace)
    notes = [event["message"] for event in events if event["involvedObject"]["name"] == NAME]
    assert any(note.startswith("workers 1 to 0: ") for note in notes)
    assert any(note.startswith("workers 0 to 1: ") for note in notes)


def test_a_backlog_starts_more_workers_and_no_request_is_lost(
    kube: Cluster, elastic: str, test_namespace: str, gateways: list[str]
):
    assert asyncio.run(ask(gateways, elastic, requests=24, documents=20)) == [200] * 24
    notes = [event["message"] for event in kube.items("events", "-n", test_namespace)]
    assert any(note.startswith(("workers 1 to 2: ", "workers 0 to 2: ")) for note in notes), notes
    scaling = kube.get("reranker", NAME, "-n", test_namespace)["status"]["scaling"]
    assert scaling["capacityTokensPerSecond"] > 0
    assert scaling["message"]
