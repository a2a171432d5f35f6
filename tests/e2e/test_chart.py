"""The chart with real Helm: accepted by the API server, installed, upgraded, rolled back, uninstalled without a trace.

The releases here are their own: what the other tests use is not touched. What changes the whole cluster (CRDs, user
roles) runs on a cluster that lives only for it.
"""

import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from harness.cluster import Cluster, devcluster, local_cluster, wait_for
from harness.release import (
    CHART,
    SYSTEM_NAMESPACE,
    Release,
    address_value,
    code_of_checkout,
    image_values,
    reranker,
    warm_pool,
)

NAME = "chart-test"
OPERATOR, GATEWAY = f"{NAME}-rerank-operator", f"{NAME}-rerank-gateway"
DEMAND, KEY = f"{NAME}-rerank-demand", f"{NAME}-rerank-warm-pools"
EVERY_KIND = (
    "deployments,replicasets,pods,services,serviceaccounts,roles,rolebindings,poddisruptionbudgets,leases,"
    "networkpolicies,ingresses,endpointslices,secrets"
)


def chart_images() -> list[str]:
    """The images of a cluster that really pulls them, as for the rest of the end-to-end tests."""
    values = []
    for key, variable in (("image", "RERANK_E2E_OPERATOR_IMAGE"), ("worker.image", "RERANK_E2E_WORKER_IMAGE")):
        if variable in os.environ:
            values += [part for value in image_values(key, os.environ[variable]) for part in ("--set", value)]
    return values


def deployed(kube: Cluster, home: str, name: str) -> dict[str, Any]:
    return kube.get("deployment", name, "-n", home)


def available(deployment: dict[str, Any]) -> bool:
    conditions = deployment["status"].get("conditions", [])
    return any(c["type"] == "Available" and c["status"] == "True" for c in conditions)


def command_of(deployment: dict[str, Any]) -> list[str]:
    return deployment["spec"]["template"]["spec"]["containers"][0]["command"]


def left_over(kube: Cluster, home: str) -> list[str]:
    """Objects of the release, by its label and by its name; Helm's own record is a Secret."""
    found = []
    for item in kube.items(EVERY_KIND, "-n", home):
        metadata = item["metadata"]
        labelled = metadata.get("labels", {}).get("app.kubernetes.io/instance") == NAME
        if labelled or NAME in metadata["name"]:
            found.append(f"{item['kind']}/{metadata['name']}")
    for item in kube.items("clusterroles,clusterrolebindings", "-l", f"app.kubernetes.io/instance={NAME}"):
        found.append(f"{item['kind']}/{item['metadata']['name']}")
    return found


@pytest.fixture(scope="module")
def values(kube: Cluster, test_namespace: str) -> list[str]:
    """A release beside another one: no CRDs, no user roles, its own namespace only."""
    own = ["crds.enabled=false", "rbac.aggregateToUserRoles=false", f"watchNamespaces={{{test_namespace}}}"]
    return [*chart_images(), *(part for value in [address_value(kube), *own] for part in ("--set", value))]


@pytest.fixture(scope="module")
def helm(kube: Cluster, release: Release, test_namespace: str, values: list[str]) -> Any:
    """``helm("upgrade", "--install", ...)``: Helm on this module's own release, in its own namespace."""

    def helm(command: str, *args: str, timeout: float = 240) -> str:
        chart = [str(CHART), *values] if command in {"install", "upgrade"} else []
        return kube.helm(command, NAME, *chart, *args, "--namespace", test_namespace, timeout=timeout).stdout

    return helm


@pytest.mark.parametrize(
    "more",
    [
        {},
        {
            "networkPolicy": {"enabled": True, "gatewayFrom": [{"podSelector": {}}]},
            "gateway": {
                "ingress": {"enabled": True, "hosts": ["rerank.example.com"], "tls": [{"secretName": "t"}]},
                "apiKeys": {"existingSecret": "keys"},
                "service": {"type": "NodePort"},
            },
            "operator": {"tolerations": [{"operator": "Exists"}], "nodeSelector": {"pool": "system"}},
            "security": {"runAsUser": None},
        },
    ],
    ids=["defaults", "everything"],
)
def test_the_api_server_accepts_every_field(
    kube: Cluster, release: Release, test_namespace: str, tmp_path: Any, more: dict[str, Any]
):
    path = tmp_path / "values.yaml"
    path.write_text(yaml.safe_dump({**more, "watchNamespaces": [test_namespace], "crds": {"enabled": False}}))
    manifests = kube.helm("template", NAME, CHART, "--namespace", test_namespace, "--values", path).stdout
    kube.kubectl("apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-", input=manifests)


@pytest.mark.local_only
def test_the_processes_under_test_run_this_checkout(release: Release):
    """A cluster left from an earlier run would else be tested with the code of then."""
    release.install()
    code = code_of_checkout()

    def all_new() -> bool:
        pods = release.pods("operator") + release.pods("gateway")
        return len(pods) == 4 and all(pod["metadata"].get("annotations", {}).get("code") == code for pod in pods)

    wait_for("the old processes to end", all_new, timeout=60)


def test_install_upgrade_rollback_uninstall(kube: Cluster, helm: Any, test_namespace: str):
    notes = helm("install", "--wait", "--timeout", "180s")
    assert f"service/{GATEWAY}" in notes
    example = re.search(r"<<'EOF'\n(.*?)\nEOF\n", notes, flags=re.DOTALL)
    assert example is not None
    assert f"namespace: {test_namespace}" in example[1]
    kube.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", "-", input=example[1])
    for name in (OPERATOR, GATEWAY):
        found = deployed(kube, test_namespace, name)
        assert available(found)
        assert found["status"]["readyReplicas"] == 2
    wait_for("the Lease", lambda: kube.items("leases", "-n", test_namespace), timeout=60)
    key = kube.get("secret", KEY, "-n", test_namespace)["data"]["key"]
    demand = kube.get("service", DEMAND, "-n", test_namespace)["spec"]
    assert {(port["name"], port["targetPort"]) for port in demand["ports"]} == {("metrics", "metrics")}
    selector = ",".join(f"{label}={value}" for label, value in demand["selector"].items())
    assert len(kube.items("pods", "-n", test_namespace, "-l", selector)) == 2

    helm("upgrade", "--wait", "--timeout", "180s", "--set", "gateway.logLevel=debug", "--set", "operator.replicas=1")
    gateway = deployed(kube, test_namespace, GATEWAY)
    assert "--log-level=debug" in command_of(gateway)
    assert available(gateway)
    assert deployed(kube, test_namespace, OPERATOR)["spec"]["replicas"] == 1
    budgets = kube.items("poddisruptionbudgets", "-n", test_namespace)
    assert [b["metadata"]["name"] for b in budgets] == [GATEWAY]
    assert kube.get("secret", KEY, "-n", test_namespace)["data"]["key"] == key

    helm("rollback", "1", "--wait", "--timeout", "180s")
    assert "--log-level=info" in command_of(deployed(kube, test_namespace, GATEWAY))
    assert kube.get("secret", KEY, "-n", test_namespace)["data"]["key"] == key, "a new key renews every warm pod"
    assert deployed(kube, test_namespace, OPERATOR)["status"]["readyReplicas"] == 2

    helm("uninstall", "--wait", "--timeout", "120s")
    wait_for("nothing of the release", lambda: not left_over(kube, test_namespace), timeout=60)


def test_a_bad_value_changes_nothing(kube: Cluster, helm: Any, test_namespace: str):
    with pytest.raises(AssertionError, match="additional properties 'replica' not allowed"):
        helm("install", "--set", "gateway.replica=3")
    assert left_over(kube, test_namespace) == []


def status_of(url: str, key: str | None) -> int:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"} if key else {})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_api_keys_come_from_the_secret(kube: Cluster, helm: Any, test_namespace: str):
    if not kube.local:
        pytest.skip("needs pod addresses that this machine can reach")
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys", "namespace": test_namespace}}
    kube.apply({**secret, "stringData": {"list": "first-key\nsecond-key\n"}})
    keys = ["--set", "gateway.apiKeys.existingSecret=keys", "--set", "gateway.apiKeys.key=list"]
    helm("install", "--wait", "--timeout", "180s", "--set", "gateway.replicas=1", "--set", "operator.replicas=1", *keys)
    (pod,) = kube.items("pods", "-n", test_namespace, "-l", "app.kubernetes.io/component=gateway")
    url = f"http://{pod['status']['podIP']}:8080/v1/models"
    assert {key: status_of(url, key) for key in (None, "wrong", "first-key", "second-key")} == {
        None: 401,
        "wrong": 401,
        "first-key": 200,
        "second-key": 200,
    }
    helm("uninstall", "--wait", "--timeout", "120s")


ALLOWED = [
    ("operator", "list", "rerankers.rerank.dev", True),
    ("operator", "patch", "rerankers.rerank.dev/status", True),
    ("operator", "update", "rerankers.rerank.dev", False),
    ("operator", "delete", "rerankers.rerank.dev", False),
    ("operator", "patch", "deployments.apps", True),
    ("operator", "watch", "warmpools.rerank.dev", True),
    ("operator", "patch", "warmpools.rerank.dev/status", True),
    ("operator", "patch", "warmpools.rerank.dev", False),
    ("operator", "patch", "pods", True),
    ("operator", "create", "pods", False),
    ("operator", "delete", "pods", False),
    ("operator", "create", "pods/exec", False),
    ("operator", "get", "services", False),
    ("operator", "get", "secrets", False),
    ("operator", "create", "roles.rbac.authorization.k8s.io", False),
    ("gateway", "watch", "pods", True),
    ("gateway", "watch", "rerankers.rerank.dev", True),
    ("gateway", "patch", "rerankers.rerank.dev/status", False),
    ("gateway", "patch", "pods", False),
    ("gateway", "delete", "pods", False),
    ("gateway", "list", "warmpools.rerank.dev", False),
    ("gateway", "get", "secrets", False),
    ("gateway", "update", "leases.coordination.k8s.io", False),
]


def test_accounts_may_do_what_they_need_and_no_more(kube: Cluster, release: Release):
    names = {"operator": "rerank-operator", "gateway": "rerank-operator-gateway"}
    wrong = []
    for component, verb, resource, allowed in ALLOWED:
        account = f"system:serviceaccount:{SYSTEM_NAMESPACE}:{names[component]}"
        resource, _, subresource = resource.partition("/")
        more = [f"--subresource={subresource}"] if subresource else []
        answer = kube.kubectl("auth", "can-i", verb, resource, *more, "--as", account, "-n", "default", check=False)
        if (answer.stdout.strip() == "yes") is not allowed:
            wrong.append(f"{component} {verb} {resource}: {answer.stdout.strip()}")
    assert wrong == []
    service = ("auth", "can-i", "get", "service/rerank-operator-demand", "-n", SYSTEM_NAMESPACE)
    account = f"system:serviceaccount:{SYSTEM_NAMESPACE}:{names['operator']}"
    assert kube.kubectl(*service, "--as", account, check=False).stdout.strip() == "yes"


@pytest.fixture
def fresh() -> Iterator[Cluster]:
    """A local cluster with nothing in it, gone afterwards."""
    devcluster("down", "--name", "chart")  # what a run that was killed has left behind
    cluster = local_cluster("chart")
    try:
        yield cluster
    finally:
        cluster.devcluster("down")


def crds(cluster: Cluster) -> list[str]:
    return [c["metadata"]["name"] for c in cluster.items("crds") if c["spec"]["group"] == "rerank.dev"]


@pytest.mark.local_only
def test_crds_outlive_the_release_unless_told_otherwise(fresh: Cluster):
    release = Release(fresh)
    release.install()
    assert crds(fresh) == ["rerankers.rerank.dev", "warmpools.rerank.dev"]
    fresh.apply(reranker("kept", "default", "file:///nowhere", suspend=True))
    fresh.apply(warm_pool("kept", "default", 0))

    # A person with the cluster's own roles may use the API.
    for role, verb, allowed in (("view", "list", True), ("view", "create", False), ("edit", "create", True)):
        user, binding = f"{role}er", f"{role}-binding"
        fresh.kubectl("create", "rolebinding", binding, f"--clusterrole={role}", f"--user={user}", check=False)
        wait_for(
            f"{role} to {'be able' if allowed else 'be unable'} to {verb}",
            lambda user=user, verb=verb, allowed=allowed: all(
                fresh.kubectl("auth", "can-i", verb, kind, "--as", user, check=False).stdout.strip()
                == ("yes" if allowed else "no")
                for kind in ("rerankers", "warmpools")
            ),
            timeout=30,
        )

    release.uninstall()
    assert crds(fresh) == ["rerankers.rerank.dev", "warmpools.rerank.dev"]
    assert {fresh.get(kind, "kept")["metadata"]["name"] for kind in ("reranker", "warmpool")} == {"kept"}

    release.install("crds.keep=false")
    assert {fresh.get(kind, "kept")["metadata"]["name"] for kind in ("reranker", "warmpool")} == {"kept"}
    release.uninstall()
    wait_for("no CRD", lambda: not crds(fresh), timeout=60)
    assert fresh.items("secrets,leases,deployments,services", "-n", SYSTEM_NAMESPACE) == []
