"""The operator's processes against a control plane of their own, without nodes: what it writes, and who may write.

No chart and no workers: the operator runs from this checkout, so that it can be killed, frozen and looked into.
"""

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.cluster import ROOT, Cluster, wait_for
from harness.operators import TAKE_OVER_SECONDS, Operator, Start, operators_of, own_cluster
from harness.release import condition, reranker

pytestmark = pytest.mark.local_only

NAME = "products"


@pytest.fixture(scope="module")
def kube() -> Iterator[Cluster]:
    with own_cluster("operator") as cluster:
        yield cluster


@pytest.fixture
def operators(kube: Cluster, tmp_path: Path) -> Iterator[Start]:
    with operators_of(kube, tmp_path) as start:
        yield start


def start_pair(operators: Start) -> tuple[Operator, Operator]:
    """The leader and its standby."""
    leader = operators()
    wait_for("leadership", leader.leads, timeout=TAKE_OVER_SECONDS)
    return leader, operators()


def deployments(kube: Cluster, where: str) -> list[dict[str, Any]]:
    return kube.items("deployments", "-n", where, "-l", f"rerank.dev/reranker={NAME}")


def ask_for(kube: Cluster, where: str, replicas: int) -> None:
    kube.apply(reranker(NAME, where, "file:///models/a", replicas=replicas))


def wait_replicas(kube: Cluster, where: str, replicas: int) -> dict[str, Any]:
    def seen() -> dict[str, Any] | None:
        return next((d for d in deployments(kube, where) if d["spec"]["replicas"] == replicas), None)

    return wait_for(f"a Deployment of {replicas}", seen, timeout=TAKE_OVER_SECONDS)


def wait_reason(kube: Cluster, where: str, kind: str, reason: str) -> dict[str, Any]:
    """The Reranker, once its condition says so."""

    def seen() -> dict[str, Any] | None:
        found = kube.get("reranker", NAME, "-n", where)
        return found if condition(found, kind).get("reason") == reason else None

    return wait_for(f"{kind}={reason}", seen, timeout=TAKE_OVER_SECONDS)


def test_at_rest_nothing_is_written(kube: Cluster, space: str, operators: Start):
    one = operators()
    ask_for(kube, space, 1)
    wait_replicas(kube, space, 1)
    wait_reason(kube, space, "Ready", "Unschedulable")
    writes, lists = one.metric("rerank_operator_writes_total"), one.metric("rerank_operator_resyncs_total")
    wait_for("two lists", lambda: one.metric("rerank_operator_resyncs_total") >= lists + 2, timeout=60)
    assert one.metric("rerank_operator_writes_total") == writes
    assert one.metric("rerank_operator_missed_changes_total") == 0


def test_someone_elses_object_is_not_taken_over(kube: Cluster, space: str, operators: Start):
    selector = {"matchLabels": {"app": "mine"}}
    budget = {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": NAME, "namespace": space},
        "spec": {"minAvailable": 1, "selector": selector},
    }
    kube.apply(budget)
    operators()
    ask_for(kube, space, 2)
    found = condition(wait_reason(kube, space, "Degraded", "ApplyFailed"), "Degraded")
    assert f"PodDisruptionBudget {NAME} exists" in found["message"]
    assert kube.get("poddisruptionbudget", NAME, "-n", space)["spec"]["selector"] == selector
    wait_replicas(kube, space, 2)


def test_a_killed_leader_is_replaced(kube: Cluster, space: str, operators: Start):
    leader, standby = start_pair(operators)
    ask_for(kube, space, 1)
    wait_replicas(kube, space, 1)
    assert standby.metric("rerank_operator_writes_total") == 0
    leader.signal(signal.SIGKILL)
    killed = time.monotonic()
    ask_for(kube, space, 3)
    wait_replicas(kube, space, 3)
    print(json.dumps({"fault": "kill -9 of the leader, lease of 5 s", "s": round(time.monotonic() - killed, 1)}))
    assert standby.leads()


def test_a_leader_that_ends_hands_over_at_once(kube: Cluster, space: str, operators: Start):
    leader, standby = start_pair(operators)
    leader.signal(signal.SIGTERM)
    ended = time.monotonic()
    assert leader.process.wait(timeout=20) == 0
    assert "released" in leader.log.read_text()
    wait_for("the standby to lead", standby.leads, timeout=TAKE_OVER_SECONDS)
    print(json.dumps({"fault": "SIGTERM to the leader", "s": round(time.monotonic() - ended, 1)}))
    ask_for(kube, space, 1)
    wait_replicas(kube, space, 1)


def test_a_frozen_leader_writes_nothing_after_it_wakes(kube: Cluster, space: str, operators: Start):
    leader, standby = start_pair(operators)
    ask_for(kube, space, 1)
    wait_replicas(kube, space, 1)
    wait_reason(kube, space, "Ready", "Unschedulable")  # its last write: one on its way when it freezes is not a fault
    writes = leader.metric("rerank_operator_writes_total")
    leader.signal(signal.SIGSTOP)
    # Woken up, it would have all of this to do.
    ask_for(kube, space, 2)
    wait_replicas(kube, space, 2)
    assert standby.leads()
    ask_for(kube, space, 4)
    leader.signal(signal.SIGCONT)
    wait_replicas(kube, space, 4)
    lists = standby.metric("rerank_operator_resyncs_total")
    wait_for("a list by the other", lambda: standby.metric("rerank_operator_resyncs_total") > lists, timeout=30)
    assert not leader.leads()
    assert leader.metric("rerank_operator_writes_total") == writes
    assert standby.leads()


def test_an_api_server_that_is_away_is_survived(kube: Cluster, space: str, operators: Start):
    one = operators()
    wait_for("leadership", one.leads, timeout=TAKE_OVER_SECONDS)
    ask_for(kube, space, 1)
    wait_replicas(kube, space, 1)
    for away, back in (("freeze", "thaw"), ("kill", "start")):
        kube.devcluster(away, "apiserver")
        wait_for("the lease to be lost", lambda: not one.leads(), timeout=30)
        assert one.get("/healthz") == (200, "ok")
        kube.devcluster(back, "apiserver")
        wanted = 2 if away == "freeze" else 3
        wait_for("the API server", lambda: kube.kubectl("get", "--raw", "/readyz", check=False).returncode == 0, 60)
        returned = time.monotonic()
        ask_for(kube, space, wanted)
        wait_replicas(kube, space, wanted)
        print(json.dumps({"fault": f"{away} of the API server", "s": round(time.monotonic() - returned, 1)}))
    assert one.process.poll() is None


def test_a_namespaced_operator_leaves_others_alone(kube: Cluster, space: str, operators: Start):
    one = operators("--namespace", space)
    ask_for(kube, "default", 1)
    ask_for(kube, space, 1)
    wait_replicas(kube, space, 1)
    lists = one.metric("rerank_operator_resyncs_total")
    wait_for("another list", lambda: one.metric("rerank_operator_resyncs_total") > lists, timeout=30)
    assert deployments(kube, "default") == []
    kube.kubectl("delete", "reranker", NAME, "-n", "default")


def test_children_and_status_and_nothing_of_kopf(kube: Cluster, space: str, operators: Start):
    operators()
    ask_for(kube, space, 2)
    deployment = wait_replicas(kube, space, 2)
    found = wait_reason(kube, space, "Ready", "Unschedulable")
    assert "no nodes available" in condition(found, "Degraded")["message"]
    kinds = "deployments,controllerrevisions,poddisruptionbudgets"
    children = kube.items(kinds, "-n", space, "-l", f"rerank.dev/reranker={NAME}", "--show-managed-fields")
    assert sorted(child["kind"] for child in children) == ["ControllerRevision", "Deployment", "PodDisruptionBudget"]
    for thing in [found, *children]:
        metadata = thing["metadata"]
        assert "finalizers" not in metadata
        assert not [key for key in metadata.get("annotations", {}) if "kopf" in key]
    for child in children:
        owner = child["metadata"]["ownerReferences"][0]
        assert (owner["uid"], owner["controller"], owner["blockOwnerDeletion"]) == (
            found["metadata"]["uid"],
            True,
            True,
        )
        ours = [m for m in child["metadata"]["managedFields"] if m["manager"] == "rerank-operator"]
        assert [m["operation"] for m in ours] == ["Apply"]
    assert deployment["spec"]["template"]["spec"]["containers"][0]["command"] == ["rerank-worker", "serve"]
    kube.kubectl("delete", "reranker", NAME, "-n", space)
    wait_for(
        "garbage collection",
        lambda: not kube.items(f"{kinds},replicasets,pods", "-n", space),
        timeout=60,
    )


def test_the_crd_may_go_and_come_back(kube: Cluster, space: str, operators: Start):
    one = operators()
    ask_for(kube, space, 1)
    wait_replicas(kube, space, 1)
    kube.kubectl("delete", "crd", "rerankers.rerank.dev")
    wait_for("failing lists", lambda: "could not be listed" in one.log.read_text(), timeout=60)
    kube.kubectl("apply", "--server-side", "-f", ROOT / "crds" / "rerankers.yaml")
    wait_for("the CRD", lambda: kube.kubectl("get", "rerankers", "-A", check=False).returncode == 0, timeout=30)
    ask_for(kube, space, 2)
    wait_replicas(kube, space, 2)
    ask_for(kube, space, 3)
    wait_replicas(kube, space, 3)
    assert one.process.poll() is None
    assert one.get("/healthz") == (200, "ok")
