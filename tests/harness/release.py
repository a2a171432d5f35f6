"""The installed chart: put in with real Helm, and the ways to reach its gateways and read its Rerankers."""

import contextlib
import hashlib
import re
import subprocess
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from rerank_api import names

from harness.cluster import ROOT, Cluster, CommandError, wait_for

CHART = ROOT / "helm" / "rerank-operator"
RELEASE = "rerank-operator"
SYSTEM_NAMESPACE = "rerank-system"
GATEWAY_PORT = 8080

RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/warn": "restricted"}


def namespace(name: str) -> dict[str, Any]:
    """A namespace that admits only pods of the restricted Pod Security Standard."""
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": RESTRICTED}}


def image_values(key: str, image: str) -> list[str]:
    """The chart's values for an image written as ``registry/repository:tag`` or ``...@sha256:...``."""
    name, _, digest = image.partition("@")
    repository, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:  # no tag: the colon, if any, was a registry's port
        repository, tag = name, ""
    return [f"{key}.repository={repository}", f"{key}.tag={tag}", f"{key}.digest={digest}"]


def code_of_checkout() -> str:
    """A digest of the sources that operator and gateway run on the local cluster."""
    digest = hashlib.sha256()
    for path in sorted([ROOT / "uv.lock", *(ROOT / "operator").rglob("*.py")]):
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes() + b"\0")
    return f"sha256-{digest.hexdigest()[:16]}"


def address_value(cluster: Cluster) -> str:
    """The chart's value for where to listen: on the local cluster all pods share the machine's ports."""
    return f"bindToPodIP={str(cluster.local).lower()}"


def is_ready(pod: dict[str, Any]) -> bool:
    conditions = pod.get("status", {}).get("conditions", [])
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
    return ready and "deletionTimestamp" not in pod["metadata"]


@dataclass(frozen=True)
class Release:
    """The chart as installed in ``cluster``."""

    cluster: Cluster

    def install(self, *values: str, timeout: float = 180) -> None:
        """``helm upgrade --install`` and wait until operator and gateway are available."""
        self.cluster.apply(namespace(SYSTEM_NAMESPACE))
        if self.cluster.local:
            # No image tag tells that the code has changed, and a running process keeps the code that it started with.
            code = code_of_checkout()
            values = (f"operator.podAnnotations.code={code}", f"gateway.podAnnotations.code={code}", *values)
        sets = [part for value in (address_value(self.cluster), *values) for part in ("--set", value)]
        self.cluster.helm(
            "upgrade", "--install", RELEASE, CHART, "--namespace", SYSTEM_NAMESPACE, "--wait",
            "--timeout", f"{timeout:.0f}s", *sets, timeout=timeout + 30,
        )  # fmt: skip

    def uninstall(self) -> None:
        self.cluster.helm("uninstall", RELEASE, "--namespace", SYSTEM_NAMESPACE, "--wait", "--timeout", "120s")

    def pods(self, component: str) -> list[dict[str, Any]]:
        return self.cluster.items("pods", "-n", SYSTEM_NAMESPACE, "-l", f"app.kubernetes.io/component={component}")

    def gateway_urls(self) -> list[str]:
        """Base URLs of the ready gateway pods: reachable from this machine on the local cluster only."""
        return [f"http://{p['status']['podIP']}:{GATEWAY_PORT}" for p in self.pods("gateway") if is_ready(p)]

    @contextlib.contextmanager
    def reach_gateways(self) -> Generator[list[str]]:
        """Base URLs under which the gateways answer: pod addresses here, a port-forward to the Service elsewhere."""
        if self.cluster.local:
            yield wait_for("a ready gateway", self.gateway_urls, timeout=60)
            return
        context = ["--context", self.cluster.context] if self.cluster.context else []
        forward = subprocess.Popen(
            ["kubectl", "--kubeconfig", str(self.cluster.kubeconfig), *context, "-n", SYSTEM_NAMESPACE,
             "port-forward", f"service/{RELEASE}-gateway", ":80"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        try:
            line = forward.stdout.readline() if forward.stdout else ""
            match = re.search(r"127\.0\.0\.1:(\d+)", line)
            if match is None:
                raise CommandError(f"kubectl port-forward: {line}")
            yield [f"http://127.0.0.1:{match[1]}"]
        finally:
            forward.terminate()
            forward.wait(10)

    def leader(self) -> str:
        """Name of the operator pod that holds the Lease; empty when nobody does."""
        leases = self.cluster.items("leases", "-n", SYSTEM_NAMESPACE)
        return next((lease["spec"].get("holderIdentity") or "" for lease in leases), "")


def condition(reranker: dict[str, Any], kind: str) -> dict[str, Any]:
    """The condition ``kind`` of a Reranker, if it was observed at the present generation; else an empty mapping."""
    generation = reranker["metadata"]["generation"]
    for found in reranker.get("status", {}).get("conditions", []):
        if found["type"] == kind and found["observedGeneration"] == generation:
            return found
    return {}


def is_settled(reranker: dict[str, Any]) -> bool:
    """Ready, and nothing of an older revision is left in the traffic."""
    status = reranker.get("status", {})
    return (
        condition(reranker, "Ready").get("status") == "True"
        and condition(reranker, "Progressing").get("status") == "False"
        and status.get("currentRevision") == status.get("updatedRevision")
    )


def wait_settled(cluster: Cluster, name: str, namespace: str, timeout: float = 120) -> dict[str, Any]:
    """The Reranker once the revision that its spec asks for serves everything."""

    def settled() -> dict[str, Any] | None:
        reranker = cluster.get("reranker", name, "-n", namespace)
        return reranker if is_settled(reranker) else None

    try:
        return wait_for(f"{namespace}/{name} to be ready", settled, timeout)
    except CommandError as error:
        status = cluster.kubectl("get", "reranker,pods,events", "-n", namespace, "-o", "wide", check=False).stdout
        describe = cluster.kubectl("get", "reranker", name, "-n", namespace, "-o", "yaml", check=False).stdout
        raise CommandError(f"{error}\n{status}\n{describe}") from None


SMALL = {"spec": {"containers": [{"name": "worker", "env": [{"name": "OMP_NUM_THREADS", "value": "1"}]}]}}
"""Small enough for two cores, on which several workers are not to fight for them."""


def reranker(name: str, namespace: str, uri: str, **spec: Any) -> dict[str, Any]:
    """A Reranker manifest on the CPU, with SMALL pods. Without ``replicas`` it is scaled on demand."""
    runtime = {"device": "cpu", **spec.pop("runtime", {})}
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"model": {"uri": uri}, "runtime": {"podTemplate": SMALL, **runtime}, **spec},
    }


def warm_pool(name: str, namespace: str, size: int, **spec: Any) -> dict[str, Any]:
    """A WarmPool manifest on the CPU; its pods are SMALL where ``podTemplate`` is not given."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.WARM_POOL_KIND,
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"size": size, "device": "cpu", "podTemplate": SMALL, **spec},
    }
