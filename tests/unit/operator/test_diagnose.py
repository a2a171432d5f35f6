"""Why workers are not ready: tables of pods as the API server returns them."""

from typing import Any

import pytest
from rerank_operator.controller.diagnose import blocked, diagnose, short_of
from rerank_operator.controller.observe import DeploymentState, pod_state
from unit.operator.build import crashed, pod, unschedulable

TRACEBACK = "Traceback (most recent call last):\n  File x\nKeyError: 'head'\n"


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    state = {"waiting": {"reason": reason, "message": message}}
    container = {"name": "worker", "ready": False, "restartCount": 0, "state": state}
    return pod("abc", ready=False, phase="Pending", containerStatuses=[container])


def deployment(**changes: Any) -> DeploymentState:
    return DeploymentState("products-abc", "abc", "uid", "1", {}, changes.pop("replicas", 2), **changes)


def silent(revision: str) -> dict[str, Any]:
    """The node controller has taken Ready away; what the kubelet said last is left."""
    body = pod(revision, ready=False)
    body["status"]["conditions"].append({"type": "ContainersReady", "status": "True"})
    return body


def restarting(code: int, words: str) -> dict[str, Any]:
    """Running again after it failed: what it said still counts until it is ready."""
    body = crashed("abc", code, words)
    body["status"]["containerStatuses"][0]["state"] = {"running": {}}
    return body


@pytest.mark.parametrize(
    ("body", "reason", "words", "hopeless"),
    [
        (crashed("abc", 64, "spec.model.uri: no such folder"), "ModelLoadFailed", "spec.model.uri: no such", True),
        (restarting(64, "spec.model.uri: no such folder"), "ModelLoadFailed", "no such folder", True),
        (crashed("abc", 71, "out of memory"), "ModelLoadFailed", "out of memory", False),
        (crashed("abc", 71, "out of memory", restarts=3), "ModelLoadFailed", "out of memory", True),
        (crashed("abc", 64, TRACEBACK), "ModelLoadFailed", "KeyError: 'head' (exit code 64", True),
        (crashed("abc", 64, ""), "ModelLoadFailed", "left no message", True),
        (crashed("abc", 137, "", reason="OOMKilled"), "OutOfMemory", "resources.limits.memory", False),
        (crashed("abc", 1, TRACEBACK), "CrashLooping", "KeyError: 'head'", False),
        (crashed("abc", 139, "", restarts=5), "CrashLooping", "exit code 139", True),
        (waiting("ImagePullBackOff", "Back-off pulling image"), "ImagePullFailed", "Back-off pulling image", True),
        (waiting("CreateContainerConfigError", 'secret "x" not found'), "PodCreationFailed", 'secret "x"', True),
        (silent("abc"), "NodeSilent", "kubectl get nodes", False),
        (unschedulable("abc"), "Unschedulable", "Insufficient nvidia.com/gpu", False),
    ],
)  # fmt: skip
def test_the_trouble_of_a_pod(body: dict[str, Any], reason: str, words: str, hopeless: bool):
    found = diagnose([pod_state(body)], None)
    assert found is not None
    assert (found.reason, found.hopeless) == (reason, hopeless)
    assert words in found.message


@pytest.mark.parametrize(
    "body",
    [
        pod("abc"),
        pod("abc", ready=False),
        waiting("ContainerCreating"),
        restarting(1, "once"),
        crashed("abc", 64, "x") | {"metadata": pod("abc")["metadata"] | {"deletionTimestamp": "2027-01-15T08:00:00Z"}},
    ],
    ids=["ready", "starting", "being created", "one crash may pass", "being stopped"],
)
def test_no_trouble(body: dict[str, Any]):
    assert diagnose([pod_state(body)], None) is None


def test_the_workers_own_words_come_before_the_schedulers():
    pods = [pod_state(unschedulable("abc", 0)), pod_state(crashed("abc", 64, "no such folder", 1))]
    found = diagnose(pods, None)
    assert found is not None
    assert found.reason == "ModelLoadFailed"


def test_pods_that_the_api_server_refuses():
    found = diagnose([], deployment(creation_failure='pods "x" is forbidden: violates PodSecurity "restricted"'))
    assert found is not None
    assert found.reason == "PodCreationFailed"
    assert "violates PodSecurity" in found.message


def test_a_start_that_takes_too_long():
    found = diagnose([pod_state(pod("abc", ready=False))], deployment(stalled="has timed out progressing"))
    assert found is not None
    assert (found.reason, found.hopeless) == ("ProgressDeadlineExceeded", True)


@pytest.mark.parametrize(
    ("message", "resources"),
    [
        ("0/2 nodes are available: 2 Insufficient nvidia.com/gpu. preemption: ...", {"nvidia.com/gpu"}),
        ("0/3 nodes are available: 1 Insufficient cpu, 2 Insufficient memory.", {"cpu", "memory"}),
        ("0/1 nodes are available: 1 node(s) had untolerated taint {gpu: true}.", set()),
        (
            "exceeded quota: g, requested: requests.nvidia.com/gpu=1, used: requests.nvidia.com/gpu=4",
            {"nvidia.com/gpu"},
        ),
        ("no nodes available to schedule pods", set()),
    ],
)
def test_short_of(message: str, resources: set[str]):
    assert short_of(message) == resources


def test_blocked_counts_those_that_have_waited():
    pods = [pod_state(unschedulable("abc", n, since="2027-01-15T08:00:00Z")) for n in range(2)]
    since, held = pods[0].unschedulable_since, frozenset({"nvidia.com/gpu"})
    assert blocked(pods, None, held, since + 4, patience=10) == (0, 6)
    assert blocked(pods, None, held, since + 10, patience=10) == (2, None)
    assert blocked(pods, None, frozenset({"cpu"}), since + 10, patience=10) == (0, None)


def test_pods_that_a_quota_keeps_away_are_blocked_too():
    quota = deployment(replicas=3, creation_failure="exceeded quota: g, requested: limits.nvidia.com/gpu=1, used: x")
    assert blocked([pod_state(pod("abc"))], quota, frozenset({"nvidia.com/gpu"}), 0, 10) == (2, None)
