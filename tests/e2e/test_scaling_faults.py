"""A gateway killed under scaled load, and the operator killed or frozen in the middle of a wake: what clients saw.

Only requests in a killed gateway's own sockets may fail. Workers are paced (``harness.paced``); all else is real.
"""

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
from harness import traces
from harness.cluster import Cluster, wait_for
from harness.load import Call, Replay
from harness.paced import Profile
from harness.release import SYSTEM_NAMESPACE, Release, is_ready
from harness.scenario import Fleet, elastic, history, paced_pool, workers_watched
from harness.watching import Change
from rerank_api import names

pytestmark = [pytest.mark.local_only, pytest.mark.timeout(400)]

NAME, POOL = "elastic", "shared"
PROFILE = Profile(start_seconds=3, load_seconds=2)
"""Loading takes long enough for a fault to come in its midst."""
DEADLINE = 120.0


@pytest.fixture(scope="module")
def model(kube: Cluster, release: Release, test_namespace: str) -> str:
    kube.apply(
        paced_pool(POOL, test_namespace, PROFILE, size=1),
        elastic(NAME, test_namespace, PROFILE, POOL, idleTimeout="2s"),
    )
    return f"{test_namespace}/{NAME}"


def at_zero(kube: Cluster, namespace: str, changes: Callable[[], list[Change]]) -> Callable[[], bool]:
    """No worker of its own and none lent, and the pool's pod is there again."""

    def zero() -> bool:
        seen = history(NAME, changes())
        if not seen or seen[-1].fleet != Fleet():
            return False
        pods = kube.items("pods", "-n", namespace, "-l", f"{names.LABEL_WARM_POOL}={POOL}")
        return any(is_ready(pod) and names.LABEL_LOANED_TO not in pod["metadata"]["labels"] for pod in pods)

    return zero


def process(kube: Cluster, holder: str) -> dict[str, Any]:
    """The operator process that holds the Lease; the holder's name begins with its pod's."""
    return next(p for p in kube.processes(namespace=SYSTEM_NAMESPACE) if p["pod"] in holder)


def test_a_gateway_killed_under_scaled_load(kube: Cluster, release: Release, model: str, test_namespace: str):
    gateways = wait_for("two gateways", lambda: urls if len(urls := release.gateway_urls()) > 1 else None, timeout=60)
    victim = next(p for p in kube.processes(namespace=SYSTEM_NAMESPACE) if "gateway" in p["pod"])
    own = f"http://{victim['podIP']}:8080"
    trace = traces.flash_crowd(PROFILE.capacity, seconds=12, load=1.5)
    with workers_watched(kube, test_namespace) as changes:
        zero = at_zero(kube, test_namespace, changes)
        wait_for("no workers", zero, timeout=DEADLINE, poll=0.5)
        with Replay(lambda: gateways, model, trace.calls) as load:
            # From nothing, so that the gateway dies with requests that it holds.
            wait_for("requests on their way", lambda: time.monotonic() - load.began > 2, timeout=10)
            killed = time.monotonic()
            os.kill(victim["pid"], signal.SIGKILL)
            report = load.wait()
        print(json.dumps({"fault": "kill -9 gateway under scaled load", **report.summary()}))
        # What the dead gateway last said must not keep the fleet up.
        wait_for("no workers again", zero, timeout=DEADLINE, poll=0.5)
    assert [o for o in report.failed if o.gateway != own] == []
    # It is back within a second; until it has read the cluster it is not Ready, and says so to who asks it still.
    late = [o for o in report.failed if o.started > killed + 1]
    assert [o for o in late if o.status != 503 or '"starting"' not in (o.error or "")] == []
    assert len(report.outcomes) == len(trace.calls)


FAULTS = {"killed": signal.SIGKILL, "frozen": signal.SIGSTOP}


@pytest.mark.parametrize(
    ("fault", "moment"),
    [("killed", "before the claim"), ("killed", "after the claim"), ("frozen", "after the claim")],
)
def test_the_operator_fails_during_a_wake(
    kube: Cluster, release: Release, model: str, test_namespace: str, fault: str, moment: str
):
    gateways = wait_for("gateways", release.gateway_urls, timeout=60)
    with workers_watched(kube, test_namespace) as changes:
        zero = at_zero(kube, test_namespace, changes)
        wait_for("no workers", zero, timeout=DEADLINE, poll=0.5)
        if moment == "after the claim":
            # In a new pod the model is still being loaded when the claim comes.
            kube.kubectl("delete", "pods", "-n", test_namespace, "-l", f"{names.LABEL_WARM_POOL}={POOL}")
            wait_for("a new warm pod", zero, timeout=DEADLINE)
        leader = wait_for("a leader", release.leader, timeout=60)
        pid = process(kube, leader)["pid"]
        calls = [Call(0.2 * number, 500) for number in range(10)]
        try:
            with Replay(lambda: gateways, model, calls, timeout=DEADLINE) as load:
                if moment == "after the claim":
                    claimed = lambda: history(NAME, changes())[-1].fleet.claimed  # noqa: E731
                    wait_for("the claim", claimed, timeout=30, poll=0.05)
                os.kill(pid, FAULTS[fault])
                report = load.wait()
        finally:
            # Gone when it was frozen for so long that the kubelet has ended it.
            with contextlib.suppress(ProcessLookupError):
                if fault == "frozen":
                    os.kill(pid, signal.SIGCONT)
        print(json.dumps({"fault": f"operator {fault} {moment}", **report.summary()}))
        assert report.failed == []
        assert len(report.outcomes) == len(calls)
        # Whoever leads now takes the loan back, and one that wakes up does nothing that it has no right to.
        wait_for("no workers again", zero, timeout=DEADLINE, poll=0.5)
    wait_for(
        "both operators to be ready",
        lambda: sum(map(is_ready, release.pods("operator"))) >= 2,
        timeout=DEADLINE,
    )
