"""A request wakes a Reranker that has no worker: from a warm pool, through a gateway, with the genuine model."""

import json
import time
import urllib.request
from typing import Any

from harness.cluster import Cluster, wait_for
from harness.release import Release, reranker, warm_pool
from rerank_api import names

NAME, POOL = "sleepy", "shared"
START_SECONDS = 240
"""Workers import their libraries, on a machine that may be busy."""


def pods(kube: Cluster, namespace: str, label: str) -> list[dict[str, Any]]:
    return kube.items("pods", "-n", namespace, "-l", f"{label}={NAME}")


def asleep(kube: Cluster, namespace: str) -> bool:
    return not pods(kube, namespace, names.LABEL_RERANKER) and not pods(kube, namespace, names.LABEL_LOANED_TO)


def preloaded(kube: Cluster, namespace: str) -> bool:
    status = kube.get("warmpool", POOL, "-n", namespace).get("status", {})
    return status.get("free") == 1 and [model["reranker"] for model in status["models"]] == [NAME]


def rerank(url: str, namespace: str) -> tuple[float, str]:
    """Seconds until the scores were there, and the revision that they are of."""
    body = {"model": f"{namespace}/{NAME}", "query": "a red shoe", "documents": ["red shoes", "a blue bag"]}
    request = urllib.request.Request(
        f"{url}/v1/rerank", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    began = time.monotonic()
    with urllib.request.urlopen(request, timeout=120) as answer:
        assert len(json.load(answer)["results"]) == 2
        return time.monotonic() - began, answer.headers["X-Rerank-Revision"]


def test_wakes_come_from_the_pool_and_the_pod_goes_back(
    kube: Cluster, release: Release, test_namespace: str, model_uri: str
):
    scaling = {"minReplicas": 0, "maxReplicas": 2, "idleTimeout": "5s", "warmPool": POOL}
    kube.apply(warm_pool(POOL, test_namespace, 1), reranker(NAME, test_namespace, model_uri, scaling=scaling))
    seconds = []
    with release.reach_gateways() as urls:
        for _ in range(3):
            wait_for("a free pod with the model", lambda: preloaded(kube, test_namespace), timeout=START_SECONDS)
            wait_for("no worker", lambda: asleep(kube, test_namespace), timeout=START_SECONDS)
            seconds.append(round(rerank(urls[0], test_namespace)[0], 3))
            (lent,) = pods(kube, test_namespace, names.LABEL_LOANED_TO)
            assert names.ANNOTATION_LOAN_SERVING in lent["metadata"]["annotations"]
            assert lent["metadata"]["labels"][names.LABEL_WARM_POOL] == POOL
    print(json.dumps({"wakes_seconds": seconds}))
    notes = [event["note"] for event in kube.items("events.events.k8s.io", "-n", test_namespace)]
    assert [note for note in notes if "claimed after" in note]


def test_a_new_model_takes_over_though_only_warm_pods_serve(
    kube: Cluster, release: Release, test_namespace: str, other_model_uri: str
):
    """Regression: warm pods went on serving the old revision, and the new one was never started."""
    wait_for("no worker", lambda: asleep(kube, test_namespace), timeout=START_SECONDS)
    old = kube.get("reranker", NAME, "-n", test_namespace)["status"]["currentRevision"]
    patch = json.dumps({"spec": {"model": {"uri": other_model_uri}}})
    kube.kubectl("patch", "reranker", NAME, "-n", test_namespace, "--type=merge", "-p", patch)
    served: list[str] = []
    with release.reach_gateways() as urls:

        def new_serves() -> bool:
            served.append(rerank(urls[0], test_namespace)[1])
            return served[-1] != old

        wait_for("scores of the new revision", new_serves, timeout=START_SECONDS)
    assert served[0] == old
    wait_for("the rollout told", lambda: _rolled_out(kube, test_namespace, served[-1]), timeout=30)


def _rolled_out(kube: Cluster, namespace: str, revision: str) -> bool:
    status = kube.get("reranker", NAME, "-n", namespace)["status"]
    progressing = next(c for c in status["conditions"] if c["type"] == "Progressing")
    return status["currentRevision"] == revision and progressing["status"] == "False"
