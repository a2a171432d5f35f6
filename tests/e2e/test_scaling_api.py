"""The operator's process scaling on a genuine control plane without nodes; what it hears comes from a gateway in here.

The gateway's Pod and the workers' readiness are written by the test, since nothing runs; all else is Kubernetes' own.
"""

import contextlib
import http.server
import json
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.cluster import Cluster, wait_for
from harness.operators import TAKE_OVER_SECONDS, Start, operators_of, own_cluster
from harness.release import condition, reranker
from rerank_api import names
from rerank_api.demand import DEMAND_PATH, DemandLine, RerankerDemand, encode_line

pytestmark = pytest.mark.local_only

NAME = "products"
GATEWAYS = "gateways"
CAPACITY = 1000.0


class Gateway(http.server.ThreadingHTTPServer):
    """A gateway's admin port: tells ``demand`` ten times a second to whoever listens; silent while ``mute``."""

    daemon_threads = True

    def __init__(self, where: str) -> None:
        super().__init__(("127.0.0.1", 0), _Stream)
        self.demand = RerankerDemand(where, NAME, 0, 0, 0, 0, 0, 0, capacity=CAPACITY)
        self.mute = False
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def tell(self, **figures: Any) -> None:
        fields = {name: getattr(self.demand, name) for name in self.demand.__struct_fields__}
        self.demand = RerankerDemand(**(fields | figures))


class _Stream(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        gateway = self.server
        assert isinstance(gateway, Gateway)
        self.send_response(200 if self.path == DEMAND_PATH else 404)
        self.end_headers()
        full = True
        with contextlib.suppress(OSError):
            while True:
                if not gateway.mute:
                    line = DemandLine("gateway", time.time(), full, [gateway.demand])
                    self.wfile.write(encode_line(line))
                    full = False
                time.sleep(0.1)  # the pace of the protocol

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: pytest's output is the operators' logs."""


@pytest.fixture(scope="module")
def kube() -> Iterator[Cluster]:
    with own_cluster("scaling") as cluster:
        yield cluster


@pytest.fixture
def gateway(kube: Cluster, space: str) -> Iterator[Gateway]:
    made = Gateway(space)
    labels = {"app": GATEWAYS}
    port = {"name": "admin", "containerPort": made.server_address[1]}
    container = {
        "name": "gateway", "image": "x", "command": ["x"], "ports": [port],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }  # fmt: skip
    secure = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    kube.apply(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": GATEWAYS, "namespace": space},
            "spec": {
                "clusterIP": "None",
                "selector": labels,
                "ports": [{"name": names.GATEWAY_ADMIN_PORT_NAME, "port": 9090, "targetPort": "admin"}],
            },
        },
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "gateway", "namespace": space, "labels": labels},
            "spec": {"containers": [container], "securityContext": secure},
        },
    )
    set_status(kube, space, "gateway", {"phase": "Running", "podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}]})
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def operators(kube: Cluster, tmp_path: Path, space: str) -> Iterator[Start]:
    with operators_of(kube, tmp_path, f"--gateway-service={space}/{GATEWAYS}", "--namespace", space) as start:
        yield start


def set_status(kube: Cluster, where: str, pod: str, status: dict[str, Any]) -> None:
    patch = json.dumps({"status": status})
    kube.kubectl("patch", "pod", pod, "-n", where, "--subresource=status", "--type=merge", "-p", patch)


def workers(kube: Cluster, where: str) -> list[dict[str, Any]]:
    pods = kube.items("pods", "-n", where, "-l", f"rerank.dev/reranker={NAME}")
    return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]


def wait_workers(kube: Cluster, where: str, count: int) -> list[dict[str, Any]]:
    wait_for(f"{count} workers", lambda: len(workers(kube, where)) == count, timeout=TAKE_OVER_SECONDS)
    return workers(kube, where)


def make_ready(kube: Cluster, where: str, count: int) -> list[dict[str, Any]]:
    """All of the ``count`` workers that there are to be say that they are ready."""
    pods = wait_workers(kube, where, count)
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    ready = [{"type": kind, "status": "True", "lastTransitionTime": now} for kind in ("Ready", "PodScheduled")]
    for pod in pods:
        set_status(kube, where, pod["metadata"]["name"], {"phase": "Running", "conditions": ready})
    return pods


def ask_for(kube: Cluster, where: str, **spec: Any) -> None:
    kube.apply(reranker(NAME, where, "file:///models/a", **spec))


def found(kube: Cluster, where: str) -> dict[str, Any]:
    return kube.get("reranker", NAME, "-n", where)


def replicas(kube: Cluster, where: str) -> int:
    return sum(d["spec"]["replicas"] for d in kube.items("deployments", "-n", where))


def wait_replicas(kube: Cluster, where: str, count: int) -> None:
    wait_for(f"{count} replicas", lambda: replicas(kube, where) == count, timeout=TAKE_OVER_SECONDS)


def wait_scaling(kube: Cluster, where: str, reason: str) -> dict[str, Any]:
    """The condition Scaling once it says so."""

    def seen() -> dict[str, Any] | None:
        one = condition(found(kube, where), "Scaling")
        return one if one.get("reason") == reason else None

    return wait_for(f"Scaling={reason}", seen, timeout=TAKE_OVER_SECONDS)


def test_a_backlog_is_followed_at_once_and_another_leader_goes_on_from_there(
    kube: Cluster, space: str, operators: Start, gateway: Gateway
):
    leader = operators()
    wait_for("leadership", leader.leads, timeout=TAKE_OVER_SECONDS)
    standby = operators()
    ask_for(kube, space, scaling={"maxReplicas": 6})
    wait_replicas(kube, space, 1)
    gateway.tell(queued=500, queued_tokens=10**6, arrived_requests=500, arrived_tokens=10**6)
    wait_replicas(kube, space, 6)
    scaling = wait_for("the status", lambda: found(kube, space)["status"].get("scaling"), timeout=30)
    assert (scaling["mode"], scaling["desiredReplicas"], scaling["queuedRequests"]) == ("Auto", 6, 500)
    assert scaling["capacityTokensPerSecond"] == CAPACITY
    told = kube.kubectl("describe", "reranker", NAME, "-n", space).stdout
    assert re.search(r"DemandRose .* workers 1 to 6: .*500 requests wait", told)
    print(json.dumps({"decisions": leader.metric("rerank_operator_scaling_decision_seconds_count"),
                      "seconds": leader.metric("rerank_operator_scaling_decision_seconds_sum")}))  # fmt: skip
    assert leader.metric("rerank_operator_desired_replicas") == 6
    assert standby.metric("rerank_operator_gateways") == 1  # it listens, and decides nothing
    assert standby.metric("rerank_operator_scaling_decisions_total") == 0

    leader.signal(signal.SIGKILL)
    wait_for("the standby to lead", standby.leads, timeout=TAKE_OVER_SECONDS)
    wait_for("its decision", lambda: standby.metric("rerank_operator_desired_replicas") == 6, timeout=30)
    assert replicas(kube, space) == 6
    memory = json.loads(found(kube, space)["status"]["scaling"]["memory"])
    assert memory["slow"] > 0


def test_a_silent_gateway_lets_nothing_shrink(kube: Cluster, space: str, operators: Start, gateway: Gateway):
    operators()
    ask_for(kube, space, scaling={"idleTimeout": "1s"})
    wait_replicas(kube, space, 1)
    gateway.mute = True
    wait_scaling(kube, space, "DemandUnknown")
    make_ready(kube, space, 1)
    asked = time.monotonic()
    wait_for("more than the idle timeout", lambda: time.monotonic() > asked + 3, timeout=10)
    assert replicas(kube, space) == 1
    gateway.mute = False
    wait_replicas(kube, space, 0)
    wait_scaling(kube, space, "Idle")
    gateway.tell(queued=1, queued_tokens=10, arrived_requests=1, arrived_tokens=10, waking_since=time.time())
    wait_replicas(kube, space, 1)


def test_the_busiest_worker_is_the_one_that_stays(kube: Cluster, space: str, operators: Start, gateway: Gateway):
    operators()
    ask_for(kube, space, scaling={"minReplicas": 3, "maxReplicas": 3})
    pods = make_ready(kube, space, 3)
    uids = [pod["metadata"]["uid"] for pod in pods]
    gateway.tell(outstanding={uids[0]: 10, uids[1]: 9000, uids[2]: 0}, in_flight=1, in_flight_tokens=10)
    wait_for("all to be seen", lambda: found(kube, space)["status"].get("readyReplicas") == 3, timeout=30)
    ask_for(kube, space, scaling={"minReplicas": 1, "maxReplicas": 1})
    left = wait_workers(kube, space, 1)
    assert left[0]["metadata"]["uid"] == uids[1]


def test_a_hand_a_pause_and_a_bad_policy_hold_the_count_and_say_so(
    kube: Cluster, space: str, operators: Start, gateway: Gateway
):
    operators()
    ask_for(kube, space, scaling={"maxReplicas": 5})
    wait_replicas(kube, space, 1)
    kube.kubectl("scale", "reranker", NAME, "-n", space, "--replicas=2")
    wait_replicas(kube, space, 2)
    wait_scaling(kube, space, "ByHand")
    kube.kubectl("annotate", "reranker", NAME, "-n", space, f"{names.ANNOTATION_SCALING_PAUSED}=true")
    kube.kubectl("patch", "reranker", NAME, "-n", space, "--type=merge", "-p", '{"spec":{"replicas":null}}')
    wait_scaling(kube, space, "Paused")
    gateway.tell(queued=500, queued_tokens=10**6, arrived_requests=500, arrived_tokens=10**6)

    def would() -> bool:
        return "Demand would have 5 workers" in condition(found(kube, space), "Scaling").get("message", "")

    wait_for("what demand would have", would, timeout=TAKE_OVER_SECONDS)
    assert replicas(kube, space) == 2
    window = {"name": "x", "timezone": "Mars/Olympus", "start": "0 1 * * *", "end": "0 2 * * *", "minReplicas": 2}
    ask_for(kube, space, scaling={"maxReplicas": 5, "schedules": [window]})
    told = wait_scaling(kube, space, "InvalidPolicy")["message"]
    assert "spec.scaling.schedules[0].timezone: 'Mars/Olympus' is not a time zone" in told
    assert replicas(kube, space) == 2
    ask_for(kube, space, scaling={"maxReplicas": 5})
    kube.kubectl("annotate", "reranker", NAME, "-n", space, f"{names.ANNOTATION_SCALING_PAUSED}-")
    wait_replicas(kube, space, 5)
