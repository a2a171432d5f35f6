"""What goes wrong shows in the Reranker's conditions, in the worker's or the scheduler's own words."""

from typing import Any

import pytest
from harness.cluster import Cluster, CommandError, wait_for
from harness.release import Release, condition, reranker, wait_settled


def wait_condition(
    kube: Cluster, namespace: str, name: str, kind: str, reason: str, timeout: float = 90
) -> dict[str, Any]:
    def seen() -> dict[str, Any] | None:
        found = condition(kube.get("reranker", name, "-n", namespace), kind)
        return found if found.get("reason") == reason else None

    try:
        return wait_for(f"{kind}={reason} on {name}", seen, timeout)
    except CommandError as error:
        dump = kube.kubectl("get", "reranker,pods", name, "-n", namespace, "-o", "yaml", check=False).stdout
        raise CommandError(f"{error}\n{dump}") from None


@pytest.fixture(autouse=True)
def clean(kube: Cluster, release: Release, test_namespace: str):
    yield
    kube.kubectl("delete", "rerankers", "--all", "-n", test_namespace, "--timeout=60s")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"model": {"uri": "file:///run/rerank/models/absent"}}, "/run/rerank/models/absent"),
        ({"model": {"sha256": {"model.safetensors": "0" * 64}}}, "model.safetensors"),
        ({"model": {"maxLength": 4096}}, "maxLength"),
        ({"runtime": {"device": "cuda"}}, "cuda"),
    ],
    ids=["no such folder", "checksum", "longer than the model", "no GPU"],
)
def test_a_model_that_cannot_load_says_why(
    kube: Cluster, test_namespace: str, model_uri: str, spec: dict[str, Any], words: str
):
    manifest = reranker("broken", test_namespace, model_uri)
    for section, fields in spec.items():
        manifest["spec"][section] = {**manifest["spec"].get(section, {}), **fields}
    kube.apply(manifest)
    degraded = wait_condition(kube, test_namespace, "broken", "Degraded", "ModelLoadFailed")
    print(degraded["message"])
    assert words in degraded["message"]
    ready = condition(kube.get("reranker", "broken", "-n", test_namespace), "Ready")
    assert (ready["status"], ready["reason"]) == ("False", "ModelLoadFailed")


def test_no_gpu_left_is_told_in_the_schedulers_words(kube: Cluster, test_namespace: str, model_uri: str):
    gpus = {"limits": {"nvidia.com/gpu": 1000}}
    kube.apply(reranker("hungry", test_namespace, model_uri, runtime={"device": "auto", "resources": gpus}))
    degraded = wait_condition(kube, test_namespace, "hungry", "Degraded", "Unschedulable")
    assert "Insufficient nvidia.com/gpu" in degraded["message"]


def test_a_bad_pod_template_is_told_in_the_api_servers_words(kube: Cluster, test_namespace: str, model_uri: str):
    overlay = {"spec": {"tolerations": [{"operator": "Sometimes"}]}}
    kube.apply(reranker("overlaid", test_namespace, model_uri, runtime={"podTemplate": overlay}))
    degraded = wait_condition(kube, test_namespace, "overlaid", "Degraded", "ApplyFailed")
    assert "operator" in degraded["message"]


def test_a_bad_new_revision_leaves_the_old_one_serving(kube: Cluster, test_namespace: str, model_uri: str):
    kube.apply(reranker("careful", test_namespace, model_uri))
    good = wait_settled(kube, "careful", test_namespace)["status"]["currentRevision"]
    broken = reranker("careful", test_namespace, model_uri)
    broken["spec"]["model"]["sha256"] = {"model.safetensors": "0" * 64}
    kube.apply(broken)
    wait_condition(kube, test_namespace, "careful", "Degraded", "ModelLoadFailed")
    found = kube.get("reranker", "careful", "-n", test_namespace)
    assert condition(found, "Ready")["status"] == "True"
    assert found["status"]["currentRevision"] == good
    assert found["status"]["traffic"] == [{"revision": good, "percent": 100}]
    kube.apply(reranker("careful", test_namespace, model_uri))
    assert wait_settled(kube, "careful", test_namespace)["status"]["currentRevision"] == good


@pytest.mark.local_only
def test_a_rollout_with_no_spare_gpu_does_not_deadlock(
    kube: Cluster, test_namespace: str, model_uri: str, other_model_uri: str
):
    free = sum(int(node["status"]["allocatable"].get("nvidia.com/gpu", 0)) for node in kube.items("nodes"))
    runtime = {"device": "auto", "resources": {"limits": {"nvidia.com/gpu": free // 2}}}
    kube.apply(reranker("tight", test_namespace, model_uri, runtime=runtime, replicas=2))
    before = wait_settled(kube, "tight", test_namespace)["status"]["currentRevision"]
    kube.apply(reranker("tight", test_namespace, other_model_uri, runtime=runtime, replicas=2))
    after = wait_settled(kube, "tight", test_namespace, timeout=180)["status"]["currentRevision"]
    assert after != before


@pytest.mark.local_only
def test_a_broken_revision_gives_the_gpu_back(kube: Cluster, test_namespace: str, model_uri: str):
    free = sum(int(node["status"]["allocatable"].get("nvidia.com/gpu", 0)) for node in kube.items("nodes"))
    runtime = {"device": "auto", "resources": {"limits": {"nvidia.com/gpu": free // 2}}}
    kube.apply(reranker("rescued", test_namespace, model_uri, runtime=runtime, replicas=2))
    good = wait_settled(kube, "rescued", test_namespace)["status"]["currentRevision"]
    broken = reranker("rescued", test_namespace, model_uri, runtime=runtime, replicas=2)
    broken["spec"]["model"]["sha256"] = {"model.safetensors": "0" * 64}
    kube.apply(broken)
    degraded = wait_condition(kube, test_namespace, "rescued", "Degraded", "RevisionRejected", timeout=180)
    assert "model.safetensors" in degraded["message"]

    def restored() -> bool:
        status = kube.get("reranker", "rescued", "-n", test_namespace)["status"]
        return status["readyReplicas"] == 2 and status["currentRevision"] == good

    wait_for("the old revision at full size", restored, timeout=120)
