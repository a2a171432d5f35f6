"""Kill -9 each part in turn under steady load: what clients saw, and how long until all was whole again.

Goal: no failed request but those in a killed gateway's own sockets. Each test prints its figures as one JSON line.
"""

import json
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
from harness.cluster import ROOT, Cluster, wait_for
from harness.load import Report, SteadyLoad
from harness.release import SYSTEM_NAMESPACE, Release, is_ready, reranker, wait_settled

pytestmark = pytest.mark.local_only

NAME = "steady"
RATE = 10.0
DEMO = json.loads((ROOT / "tests" / "models" / "demo_query.json").read_text())


@pytest.fixture(scope="module")
def model(kube: Cluster, release: Release, test_namespace: str, model_uri: str) -> str:
    kube.apply(reranker(NAME, test_namespace, model_uri, replicas=2, requests={"timeout": "20s"}))
    wait_settled(kube, NAME, test_namespace)
    return f"{test_namespace}/{NAME}"


def under_load(
    release: Release, model: str, what: str, fault: Callable[[], None], recovered: Callable[[], Any]
) -> tuple[Report, float]:
    """Steady load around ``fault``; what came of the requests and the seconds until ``recovered``."""
    gateways = release.gateway_urls()
    body = {"model": model, "query": DEMO["query"], "documents": [text[:120] for text in DEMO["documents"][:3]]}
    with SteadyLoad(lambda: gateways, "/v2/rerank", body, rate=RATE) as load:
        wait_for("steady traffic", lambda: len(load.report.outcomes) >= 30, timeout=30)
        begin = time.monotonic()
        fault()
        wait_for(f"recovery from {what}", recovered, timeout=120)
        recovery = time.monotonic() - begin
        seen = len(load.report.outcomes)
        wait_for("traffic after it", lambda: len(load.report.outcomes) >= seen + 30, timeout=60)
    report = load.report
    print(json.dumps({"fault": what, "recovery_s": round(recovery, 1), **report.summary()}))
    return report, recovery


def kill(process: dict[str, Any]) -> None:
    os.kill(process["pid"], signal.SIGKILL)


def all_ready(kube: Cluster, namespace: str, count: int, *selector: str) -> Callable[[], bool]:
    def ready() -> bool:
        pods = kube.items("pods", "-n", namespace, *selector)
        return sum(map(is_ready, pods)) >= count

    return ready


def restarted(kube: Cluster, namespace: str, pod: str, before: int) -> Callable[[], bool]:
    """True once ``pod`` was started again and is ready."""

    def again() -> bool:
        found = kube.get("pod", pod, "-n", namespace)
        counts = [c["restartCount"] for c in found["status"].get("containerStatuses", [])]
        return is_ready(found) and sum(counts) > before

    return again


def restarts(kube: Cluster, namespace: str, pod: str) -> int:
    found = kube.get("pod", pod, "-n", namespace)
    return sum(c["restartCount"] for c in found["status"]["containerStatuses"])


def test_kill_a_worker(kube: Cluster, release: Release, model: str, test_namespace: str):
    victim = kube.processes(namespace=test_namespace)[0]
    again = restarted(kube, test_namespace, victim["pod"], restarts(kube, test_namespace, victim["pod"]))
    report, _ = under_load(release, model, "kill -9 worker", lambda: kill(victim), again)
    assert report.failed == []


def test_kill_the_leader(kube: Cluster, release: Release, model: str):
    leader = wait_for("a leader", release.leader, timeout=60)
    victim = next(p for p in kube.processes(namespace=SYSTEM_NAMESPACE) if p["pod"] in leader)
    report, _ = under_load(
        release,
        model,
        "kill -9 leader",
        lambda: kill(victim),
        lambda: release.leader() not in ("", leader),
    )
    assert report.failed == []


def test_kill_a_gateway(kube: Cluster, release: Release, model: str):
    victim = next(p for p in kube.processes(namespace=SYSTEM_NAMESPACE) if "gateway" in p["pod"])
    again = restarted(kube, SYSTEM_NAMESPACE, victim["pod"], restarts(kube, SYSTEM_NAMESPACE, victim["pod"]))
    begin = time.monotonic()
    report, _ = under_load(release, model, "kill -9 gateway", lambda: kill(victim), again)
    own = f"http://{victim['podIP']}:8080"
    assert [o for o in report.failed if o.gateway != own] == []
    # Only what was in the killed gateway's own sockets may fail: one second of its share at the very most.
    assert len(report.failed) <= RATE, [f"{o.started - begin:.1f} {o.error}" for o in report.failed]


def test_kill_the_api_server(kube: Cluster, release: Release, model: str, test_namespace: str):
    def fault() -> None:
        kube.devcluster("kill", "apiserver")
        time.sleep(3)  # the time without an API server is the fault itself
        kube.devcluster("start", "apiserver")

    ready = all_ready(kube, test_namespace, 2, "-l", f"rerank.dev/reranker={NAME}")
    report, _ = under_load(release, model, "kill -9 API server, away 3 s", fault, ready)
    assert report.failed == []
    # The control plane works again, not only the data plane: a change goes through.
    kube.kubectl("scale", "reranker", NAME, "-n", test_namespace, "--replicas=1")
    wait_for(
        "the operator to act",
        lambda: kube.get("reranker", NAME, "-n", test_namespace)["status"]["replicas"] == 1,
        timeout=120,
    )


def test_a_frozen_leader_is_replaced_and_does_not_lead_when_it_wakes(kube: Cluster, release: Release, model: str):
    leader = wait_for("a leader", release.leader, timeout=60)
    victim = next(p for p in kube.processes(namespace=SYSTEM_NAMESPACE) if p["pod"] in leader)
    os.kill(victim["pid"], signal.SIGSTOP)
    try:
        wait_for("another leader", lambda: release.leader() not in ("", leader), timeout=60)
        taken_over_by = release.leader()
    finally:
        os.kill(victim["pid"], signal.SIGCONT)
    wait_for(
        "both operators to be ready",
        all_ready(kube, SYSTEM_NAMESPACE, 2, "-l", "app.kubernetes.io/component=operator"),
        120,
    )
    assert release.leader() == taken_over_by
