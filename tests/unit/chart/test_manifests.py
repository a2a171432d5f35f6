"""What the chart creates: labels, selectors, Pod Security, permissions, and each setting's effect."""

import argparse
import base64
import re
from typing import Any

import pytest
import yaml
from harness.cluster import ROOT
from rerank_api import names
from rerank_api.reranker import Requests
from rerank_api.units import parse_duration, parse_quantity
from rerank_gateway import __main__ as gateway_command
from rerank_operator import __main__ as operator_command

FULL = {
    "commonLabels": {"team": "search"},
    "image": {"registry": "registry.example.com/team", "tag": "1.2.3", "digest": "sha256:" + "a" * 64},
    "worker": {"image": {"registry": "registry.example.com:5000", "repository": "w", "pullPolicy": "Always"}},
    "imagePullSecrets": [{"name": "pull"}],
    "watchNamespaces": ["search", "shop"],
    "security": {"runAsUser": 1234},
    "bindToPodIP": True,
    "operator": {
        "replicas": 3,
        "logFormat": "text",
        "prometheusUrl": "http://prometheus.monitoring:9090/path",
        "extraArgs": ["--resync-seconds=30"],
        "nodeSelector": {"pool": "system"},
        "tolerations": [{"key": "system", "operator": "Exists"}],
        "priorityClassName": "system-cluster-critical",
        "podAnnotations": {"a": "b"},
        "podLabels": {"c": "d"},
        "extraEnv": [{"name": "E", "value": "1"}],
        "serviceAccount": {"annotations": {"e": "f"}},
        "page": {"port": 8888},
    },
    "gateway": {
        "replicas": 1,
        "affinity": {"podAntiAffinity": {}},
        "topologySpreadConstraints": [{"topologyKey": "rack", "maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule"}],
        "serviceAccount": {"create": False, "name": "mine"},
        "shutdownDelaySeconds": 20,
        "maxHeldBytes": "1Gi",
        "logLevel": "debug",
        "accessLogSample": 0.1,
        "extraArgs": ["--max-outstanding-requests=32"],
        "apiKeys": {"existingSecret": "rerank-keys", "key": "list"},
        "service": {"type": "LoadBalancer", "port": 8000, "annotations": {"g": "h"}},
        "ingress": {
            "enabled": True,
            "className": "nginx",
            "hosts": ["rerank.example.com"],
            "tls": [{"secretName": "t"}],
        },
    },
    "warmPools": {"existingSecret": "pool-key"},
    "networkPolicy": {"enabled": True, "gatewayFrom": [{"podSelector": {}}], "pageFrom": [{"namespaceSelector": {}}]},
    "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "monitoring": {
        "rules": {"enabled": True, "labels": {"release": "prometheus"}, "runbookUrl": "https://git.example.com/x"},
        "dashboards": {"enabled": True, "annotations": {"grafana_folder": "Rerankers"}},
    },
    "tracing": {"endpoint": "http://tempo.monitoring:4318", "sampleRatio": 1},
}
SETS = {
    "defaults": {},
    "everything": FULL,
    "bare": {
        "crds": {"enabled": False},
        "rbac": {"aggregateToUserRoles": False},
        "security": {"runAsUser": None},
        "operator": {"replicas": 1, "resources": None, "page": {"enabled": False}},
        "networkPolicy": {"enabled": True},
    },
    "own rbac": {"rbac": {"create": False}, "podMonitor": {"enabled": True}},
}
CLUSTER_WIDE = {"CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding"}
NAME = "rerank-operator"
GATEWAY = "rerank-operator-gateway"
DEMAND = "rerank-operator-demand"
PAGE = "rerank-operator-page"


@pytest.fixture(params=list(SETS.values()), ids=list(SETS))
def rendered(request: pytest.FixtureRequest, render: Any) -> Any:
    return render(request.param)


def pod_of(deployment: dict[str, Any]) -> dict[str, Any]:
    return deployment["spec"]["template"]["spec"]


def container_of(deployment: dict[str, Any]) -> dict[str, Any]:
    (container,) = pod_of(deployment)["containers"]
    return container


def test_every_object_is_labelled_named_once_and_in_a_namespace(rendered: Any):
    seen = set()
    for manifest in rendered.manifests:
        metadata = manifest["metadata"]
        identity = (manifest["kind"], metadata.get("namespace"), metadata["name"])
        assert identity not in seen
        seen.add(identity)
        assert ("namespace" in metadata) is (manifest["kind"] not in CLUSTER_WIDE), identity
        labels = metadata["labels"]
        assert labels["app.kubernetes.io/name"] == "rerank-operator", identity
        assert labels["app.kubernetes.io/instance"] == "rerank-operator", identity
        assert labels["app.kubernetes.io/managed-by"] == "Helm", identity
        assert {"helm.sh/chart", "app.kubernetes.io/version", "app.kubernetes.io/part-of"} <= set(labels), identity
        assert all(isinstance(value, str) and len(value) <= 63 for value in labels.values()), identity


def test_selectors_find_their_pods_and_no_other(rendered: Any):
    pods = {d["metadata"]["name"]: d["spec"]["template"]["metadata"]["labels"] for d in rendered.of("Deployment")}
    worker = {
        names.LABEL_NAME: names.APP_NAME,
        names.LABEL_INSTANCE: "rerank-operator",
        names.LABEL_COMPONENT: names.COMPONENT_WORKER,
        names.LABEL_MANAGED_BY: names.MANAGED_BY,
    }
    selectors = {
        (m["kind"], m["metadata"]["name"]): m["spec"]["selector"].get("matchLabels", m["spec"]["selector"])
        for kind in ("Deployment", "Service", "PodDisruptionBudget", "PodMonitor")
        for m in rendered.of(kind)
    }
    selectors |= {
        ("NetworkPolicy", m["metadata"]["name"]): m["spec"]["podSelector"]["matchLabels"]
        for m in rendered.of("NetworkPolicy")
    }
    for (kind, name), selector in selectors.items():
        found = {pod for pod, labels in {**pods, "worker": worker}.items() if selector.items() <= labels.items()}
        expected = "worker" if name.endswith("-workers") else name.replace(DEMAND, GATEWAY).replace(PAGE, NAME)
        assert found == {expected}, (kind, name)


def test_every_pod_meets_the_restricted_pod_security_standard(rendered: Any):
    assert len(rendered.of("Deployment")) == 2
    for deployment in rendered.of("Deployment"):
        pod, container = pod_of(deployment), container_of(deployment)
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"].get("runAsUser") != 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert all("hostPort" not in port for port in container["ports"])
        assert all(set(volume) - {"name"} <= {"secret", "emptyDir"} for volume in pod.get("volumes", []))
        assert all(mount["mountPath"].startswith("/run/") for mount in container.get("volumeMounts", []))


def test_permissions_are_no_more_than_needed(rendered: Any):
    writable = {"deployments", "controllerrevisions", "poddisruptionbudgets", "events", "leases"}
    for role in rendered.of("ClusterRole") + rendered.of("Role"):
        name = role["metadata"]["name"]
        for rule in role["rules"]:
            assert "*" not in rule["apiGroups"] + rule["resources"] + rule["verbs"], name
            assert not {"secrets", "nodes", "pods/exec", "serviceaccounts"} & set(rule["resources"]), name
            if "configmaps" in rule["resources"]:  # golden sets: by name, so that no other one is read
                assert rule == {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"]}, name
                assert name.endswith("-operator"), name
            assert not {"escalate", "bind", "impersonate"} & set(rule["verbs"]), name
            if name.endswith(("-view", "-edit")):
                assert rule["apiGroups"] == [names.GROUP]
            elif name.endswith("-gateway"):
                assert set(rule["verbs"]) <= {"list", "watch"}
            elif set(rule["verbs"]) - {"get", "list", "watch"}:
                own = {f"{kind}/{part}" for kind in ("rerankers", "warmpools") for part in ("status", "finalizers")}
                lent = rule["resources"] == ["pods"] and set(rule["verbs"]) == {"list", "watch", "patch"}
                assert lent or set(rule["resources"]) <= writable | own, (name, rule)


def test_every_role_is_bound_to_an_account_that_pods_use(rendered: Any):
    accounts = {pod_of(d)["serviceAccountName"] for d in rendered.of("Deployment")}
    for kind in ("Role", "ClusterRole"):
        roles = {(r["metadata"].get("namespace"), r["metadata"]["name"]) for r in rendered.of(kind)}
        bindings = rendered.of(f"{kind}Binding")
        bound = {(b["metadata"].get("namespace"), b["roleRef"]["name"]) for b in bindings}
        assert bound == {r for r in roles if not r[1].endswith(("-view", "-edit"))}
        for binding in bindings:
            (subject,) = binding["subjects"]
            assert subject["name"] in accounts
            assert subject["namespace"] == "rerank-system"


def test_the_crds_are_the_source_and_are_kept(render: Any):
    paths = sorted((ROOT / "crds").glob("*.yaml"))
    source = {crd["metadata"]["name"]: crd for crd in (yaml.safe_load(path.read_text()) for path in paths)}
    assert set(source) == {"rerankers.rerank.dev", "warmpools.rerank.dev"}
    for keep in (True, False):
        found = render({"crds": {"keep": keep}}).of("CustomResourceDefinition")
        assert {crd["metadata"]["name"]: crd["spec"] for crd in found} == {n: c["spec"] for n, c in source.items()}
        for crd in found:
            kept = crd["metadata"].get("annotations", {}).get("helm.sh/resource-policy") == "keep"
            assert kept is keep
    assert render({"crds": {"enabled": False}}).of("CustomResourceDefinition") == []


@pytest.mark.parametrize(
    ("release", "values", "operator", "gateway"),
    [
        ("rerank-operator", {}, "rerank-operator", "rerank-operator-gateway"),
        ("rerank", {}, "rerank-operator", "rerank-gateway"),
        ("prod", {}, "prod-rerank-operator", "prod-rerank-gateway"),
        ("prod", {"nameOverride": "rr"}, "prod-rr-operator", "prod-rr-gateway"),
        ("prod", {"fullnameOverride": "rr"}, "rr-operator", "rr-gateway"),
        ("r" * 53, {}, "r" * 52 + "-operator", "r" * 52 + "-gateway"),
    ],
)
def test_names(render: Any, release: str, values: dict[str, Any], operator: str, gateway: str):
    found = render(values, release=release)
    assert {d["metadata"]["name"] for d in found.of("Deployment")} == {operator, gateway}
    services = {s["metadata"]["name"] for s in found.of("Service")}
    prefix = gateway.removesuffix("-gateway")
    assert services == {gateway, f"{prefix}-demand", f"{prefix}-page"}
    assert all(len(name) <= 63 for name in services)


def test_two_namespaces_share_no_cluster_wide_name(render: Any):
    values = {"crds": {"enabled": False}}
    one = {m["metadata"]["name"] for m in render(values, namespace="a").manifests if m["kind"] in CLUSTER_WIDE}
    two = {m["metadata"]["name"] for m in render(values, namespace="b").manifests if m["kind"] in CLUSTER_WIDE}
    assert one
    assert not one & two


def test_images(render: Any):
    found = render(FULL)
    image = "registry.example.com/team/rerank-operator:1.2.3@sha256:" + "a" * 64
    assert {container_of(d)["image"] for d in found.of("Deployment")} == {image}
    command = container_of(found.one("Deployment", NAME))["command"]
    assert "--worker-image=registry.example.com:5000/w:0.1.0" in command
    assert "--worker-image-pull-policy=Always" in command
    assert container_of(render().one("Deployment", GATEWAY))["image"] == "rerank-operator:0.1.0"


def test_watch_namespaces_gives_roles_instead_of_cluster_roles(render: Any):
    found = render(FULL)
    assert {r["metadata"]["name"] for r in found.of("ClusterRole")} == {
        "rerank-system:rerank-operator-view",
        "rerank-system:rerank-operator-edit",
    }
    assert found.of("ClusterRoleBinding") == []
    assert {r["metadata"]["namespace"] for r in found.of("Role")} == {"rerank-system", "search", "shop"}
    for deployment in found.of("Deployment"):
        assert {"--namespace=search", "--namespace=shop"} <= set(container_of(deployment)["command"])
    for deployment in render().of("Deployment"):
        assert not [a for a in container_of(deployment)["command"] if a.startswith("--namespace")]


def test_own_rbac(render: Any):
    found = render({"rbac": {"create": False, "aggregateToUserRoles": False}})
    assert not [m for m in found.manifests if m["apiVersion"].startswith("rbac.")]


def test_user_roles_join_the_clusters_own(render: Any):
    found = render()
    view = found.one("ClusterRole", "rerank-system:rerank-operator-view")
    edit = found.one("ClusterRole", "rerank-system:rerank-operator-edit")
    prefix = "rbac.authorization.k8s.io/aggregate-to-"
    assert {f"{prefix}{role}" for role in ("view", "edit", "admin")} <= set(view["metadata"]["labels"])
    assert f"{prefix}view" not in edit["metadata"]["labels"]


def test_lease_of_the_role_is_that_of_the_command(render: Any):
    for release in ("rerank-operator", "prod"):
        found = render(release=release)
        (role,) = [role for role in found.of("Role") if role["metadata"]["name"].endswith("-leader")]
        (lease,) = [rule["resourceNames"] for rule in role["rules"] if "resourceNames" in rule]
        (operator,) = [d for d in found.of("Deployment") if d["metadata"]["name"].endswith("-operator")]
        assert f"--lease-name={lease[0]}" in container_of(operator)["command"]
        assert f"--lease-namespace={role['metadata']['namespace']}" in container_of(operator)["command"]


def test_uninstalling_removes_the_lease_that_the_operator_made(render: Any):
    found = render(release="prod")
    (lease,) = found.of("Lease")
    assert (
        f"--lease-name={lease['metadata']['name']}"
        in container_of(found.one("Deployment", "prod-rerank-operator"))["command"]
    )
    assert lease["metadata"]["annotations"]["helm.sh/hook"] == "post-delete"
    assert set(lease["metadata"]["annotations"]["helm.sh/hook-delete-policy"].split(",")) == {
        "before-hook-creation",
        "hook-succeeded",
    }


def test_probes_and_service_name_ports_that_exist(rendered: Any):
    for deployment in rendered.of("Deployment"):
        container = container_of(deployment)
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert container[probe]["httpGet"]["port"] in ports
        command = container["command"]
        port_flag = "--metrics-port" if "--metrics-port=9090" in command else "--admin-port"
        assert f"{port_flag}={ports['metrics']}" in command
        if "http" in ports:
            assert f"--port={ports['http']}" in command
    assert rendered.one("Service", GATEWAY)["spec"]["ports"][0]["targetPort"] == "http"
    assert rendered.one("Service", DEMAND)["spec"]["ports"][0]["targetPort"] == "metrics"


def parse_command(command: list[str]) -> argparse.Namespace:
    """What the program itself makes of ``command``. Raises SystemExit when it would refuse to start."""
    program, *arguments = [word.replace("$(POD_IP)", "192.0.2.1") for word in command]
    assert not [word for word in command if "$(" in word and "$(POD_IP)" not in word]
    parse = {
        "rerank-operator": operator_command.parse_arguments,
        "rerank-gateway": gateway_command._parser().parse_args,
    }
    return parse[program](arguments)


def test_programs_understand_their_commands(rendered: Any):
    for deployment in rendered.of("Deployment"):
        parse_command(container_of(deployment)["command"])


@pytest.mark.parametrize(
    "values",
    [{part: {"logLevel": level}} for part in ("operator", "gateway") for level in ("debug", "info", "warning", "error")]
    + [{"operator": {"logFormat": form}} for form in ("json", "text")]
    + [{"gateway": {"maxHeldBytes": held}} for held in ("1000000", "64Mi", "2G")]
    + [{"gateway": {"accessLogSample": share}} for share in (0, 0.001, "0.5", 1)]
    + [{"worker": {"image": {"pullPolicy": policy}}} for policy in ("Always", "IfNotPresent", "Never")],
    ids=str,
)
def test_programs_understand_each_choice(render: Any, values: dict[str, Any]):
    for deployment in render(values).of("Deployment"):
        parse_command(container_of(deployment)["command"])


@pytest.mark.parametrize("own", [False, True])
def test_a_port_forward_reaches_the_pods_unless_they_must_listen_on_their_own_address(render: Any, own: bool):
    """The kubelet forwards to localhost in the pod: what listens on the pod's address alone refuses it."""
    found = render({"bindToPodIP": own})
    gateway = parse_command(container_of(found.one("Deployment", GATEWAY))["command"])
    operator = parse_command(container_of(found.one("Deployment", NAME))["command"])
    assert (gateway.host, operator.metrics_host) == (("192.0.2.1",) * 2 if own else ("", ""))


def test_the_operator_finds_every_gateway_where_it_looks(rendered: Any):
    """A gateway that is not ready, as while it drains, still holds requests that count."""
    operator = parse_command(container_of(rendered.one("Deployment", NAME))["command"])
    service = rendered.one("Service", DEMAND)
    assert operator.gateway_service == (service["metadata"]["namespace"], service["metadata"]["name"])
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    (port,) = service["spec"]["ports"]
    assert port["name"] == port["targetPort"] == names.GATEWAY_ADMIN_PORT_NAME
    gateway = rendered.one("Deployment", GATEWAY)
    assert service["spec"]["selector"] == gateway["spec"]["selector"]["matchLabels"]
    assert parse_command(container_of(gateway)["command"]).admin_port == port["port"]


def test_gateways_may_be_looked_for_in_their_own_namespace_only(render: Any):
    for values in ({}, FULL):
        found = render(values)
        (role,) = [role for role in found.of("Role") if role["metadata"]["name"] == DEMAND]
        assert role["metadata"]["namespace"] == "rerank-system"
        assert role["rules"] == [
            {"apiGroups": [""], "resources": ["services"], "resourceNames": [DEMAND], "verbs": ["get"]},
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
        ]
        services = [r for r in found.of("ClusterRole") + found.of("Role") if "services" in str(r["rules"])]
        assert services == [role]


def test_the_key_of_warm_pools_is_mounted_where_the_operator_reads_it(rendered: Any):
    deployment = rendered.one("Deployment", NAME)
    (volume,) = pod_of(deployment)["volumes"]
    (mount,) = container_of(deployment)["volumeMounts"]
    (item,) = volume["secret"]["items"]
    flag = f"--warm-pool-key-file={mount['mountPath']}/{item['path']}"
    assert flag in container_of(deployment)["command"]
    assert mount["readOnly"] is True
    made = {secret["metadata"]["name"]: secret for secret in rendered.of("Secret")}
    if volume["secret"]["secretName"] == "pool-key":
        assert made == {}
    else:
        (secret,) = made.values()
        assert volume["secret"]["secretName"] == secret["metadata"]["name"] == f"{NAME}-warm-pools"
        assert len(base64.b64decode(secret["data"][item["key"]])) == 64


def test_disruption_budgets_only_for_two_or_more(render: Any):
    assert {b["metadata"]["name"] for b in render().of("PodDisruptionBudget")} == {NAME, GATEWAY}
    assert {b["metadata"]["name"] for b in render(FULL).of("PodDisruptionBudget")} == {NAME}


def test_a_gateway_outlives_the_longest_request(render: Any):
    crd = yaml.safe_load((ROOT / "crds" / "rerankers.yaml").read_text())
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["requests"]
    assert "10m" in str(schema["properties"]["timeout"]), "the longest timeout changed: look at the grace period again"
    deployment = render().one("Deployment", GATEWAY)
    assert deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    command = container_of(deployment)["command"]
    assert f"--drain-timeout={parse_duration('10m'):.0f}" in command
    held = Requests()
    assert parse_duration(held.wake_timeout) + parse_duration(held.timeout) <= parse_duration("10m")
    for values in ({}, FULL):
        deployment = render(values).one("Deployment", GATEWAY)
        flags = dict(argument.split("=", maxsplit=1) for argument in container_of(deployment)["command"][1:])
        needed = float(flags["--shutdown-delay"]) + float(flags["--drain-timeout"])
        assert pod_of(deployment)["terminationGracePeriodSeconds"] >= needed + 10


def test_a_gateways_memory_suffices_for_what_it_may_hold(render: Any):
    container = container_of(render().one("Deployment", GATEWAY))
    (held,) = [a.split("=")[1] for a in container["command"] if a.startswith("--max-held-bytes=")]
    assert parse_quantity(container["resources"]["limits"]["memory"]) >= 3 * parse_quantity(held) + parse_quantity(
        "200Mi"
    )


def test_api_keys_are_mounted_where_the_gateway_reads_them(render: Any):
    deployment = render(FULL).one("Deployment", GATEWAY)
    (volume,) = pod_of(deployment)["volumes"]
    assert volume["secret"] == {"secretName": "rerank-keys", "items": [{"key": "list", "path": "keys"}]}
    (mount,) = container_of(deployment)["volumeMounts"]
    assert f"--api-keys-file={mount['mountPath']}/keys" in container_of(deployment)["command"]
    assert mount["readOnly"] is True
    plain = render().one("Deployment", GATEWAY)
    assert "volumes" not in pod_of(plain)
    assert not [a for a in container_of(plain)["command"] if a.startswith("--api-keys-file")]


def test_settings_reach_the_pods(render: Any):
    found = render(FULL)
    operator, gateway = found.one("Deployment", NAME), found.one("Deployment", GATEWAY)
    pod = pod_of(operator)
    assert operator["spec"]["replicas"] == 3
    assert pod["imagePullSecrets"] == [{"name": "pull"}]
    assert pod["nodeSelector"] == {"pool": "system"}
    assert pod["tolerations"] == [{"key": "system", "operator": "Exists"}]
    assert pod["priorityClassName"] == "system-cluster-critical"
    assert pod["securityContext"]["runAsUser"] == 1234
    assert {c["whenUnsatisfiable"] for c in pod["topologySpreadConstraints"]} == {"ScheduleAnyway"}
    assert operator["spec"]["template"]["metadata"]["annotations"] == {"a": "b"}
    assert {"c": "d", "team": "search"}.items() <= operator["spec"]["template"]["metadata"]["labels"].items()
    assert {"name": "E", "value": "1"} in container_of(operator)["env"]
    assert parse_command(container_of(gateway)["command"]).access_log_sample == 0.1
    assert container_of(gateway)["command"][-1] == "--max-outstanding-requests=32"
    assert found.one("ServiceAccount", NAME)["metadata"]["annotations"] == {"e": "f"}
    assert pod_of(gateway)["serviceAccountName"] == "mine"
    assert [a["metadata"]["name"] for a in found.of("ServiceAccount")] == [NAME]
    assert pod_of(gateway)["affinity"] == {"podAntiAffinity": {}}
    assert [c["topologyKey"] for c in pod_of(gateway)["topologySpreadConstraints"]] == ["rack"]
    bare = render(SETS["bare"]).one("Deployment", NAME)
    assert "runAsUser" not in pod_of(bare)["securityContext"]
    assert "resources" not in container_of(bare)


def test_service_and_ingress(render: Any):
    service = render(FULL).one("Service", GATEWAY)
    assert service["spec"]["type"] == "LoadBalancer"
    assert service["spec"]["ports"][0]["port"] == 8000
    assert service["metadata"]["annotations"] == {"g": "h"}
    (ingress,) = render(FULL).of("Ingress")
    assert ingress["spec"]["ingressClassName"] == "nginx"
    assert ingress["spec"]["tls"] == [{"secretName": "t"}]
    (rule,) = ingress["spec"]["rules"]
    assert rule["host"] == "rerank.example.com"
    backend = rule["http"]["paths"][0]["backend"]["service"]
    assert backend == {"name": service["metadata"]["name"], "port": {"name": "http"}}
    assert render().of("Ingress") == []


def test_network_policies(render: Any):
    found = render(FULL)
    gateway = found.one("NetworkPolicy", GATEWAY)["spec"]["ingress"]
    assert gateway[0] == {"ports": [{"port": "http"}], "from": [{"podSelector": {}}]}
    assert gateway[1]["ports"] == gateway[2]["ports"] == [{"port": "metrics"}]
    operator = found.one("Deployment", NAME)["spec"]["selector"]
    assert gateway[1]["from"] == [{"podSelector": operator}], "the demand stream, whoever may read metrics"
    assert "from" not in gateway[2]
    assert found.one("NetworkPolicy", NAME)["spec"]["ingress"] == [
        {"ports": [{"port": "page"}], "from": [{"namespaceSelector": {}}]},
        {"ports": [{"port": "metrics"}]},
    ]
    bare = render(SETS["bare"]).one("NetworkPolicy", NAME)
    assert bare["spec"]["ingress"] == [{"ports": [{"port": "metrics"}]}], "there is no page"
    assert render().of("NetworkPolicy") == []


def test_pod_monitors_read_the_ports_that_serve_metrics(render: Any):
    found = render(FULL)
    monitors = {m["metadata"]["name"]: m for m in found.of("PodMonitor")}
    assert set(monitors) == {NAME, GATEWAY, "rerank-operator-workers"}
    for name, monitor in monitors.items():
        assert monitor["metadata"]["labels"]["release"] == "prometheus"
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        assert endpoint["port"] == (names.WORKER_PORT_NAME if name.endswith("-workers") else "metrics")
    workers = monitors["rerank-operator-workers"]["spec"]
    assert workers["namespaceSelector"] == {"matchNames": ["search", "shop"]}
    everywhere = render({"podMonitor": {"enabled": True}}).one("PodMonitor", "rerank-operator-workers")
    assert everywhere["spec"]["namespaceSelector"] == {"any": True}


def meta_label(label: str) -> str:
    """How Prometheus calls a label of a pod."""
    return "__meta_kubernetes_pod_label_" + re.sub(r"[^a-zA-Z0-9_]", "_", label)


def relabeled(relabelings: list[dict[str, Any]], found: dict[str, str]) -> dict[str, str]:
    """The labels of a target after relabelings whose action is the default, as Prometheus' documentation says."""
    labels = dict(found)
    for rule in relabelings:
        value = ";".join(labels.get(source, "") for source in rule.get("sourceLabels", []))
        if match := re.fullmatch(rule.get("regex", "(.*)"), value, re.DOTALL):
            labels[rule["targetLabel"]] = rule.get("replacement", "$1").replace("$1", "".join(match.groups()[:1]))
    return {name: value for name, value in labels.items() if value and not name.startswith("__")}


OWN = {names.LABEL_RERANKER: "shop", names.LABEL_REVISION: "abc"}
WARM = {names.LABEL_WARM_POOL: "shared"}
LENT = {**WARM, names.LABEL_LOANED_TO: "shop", names.LABEL_LOANED_REVISION: "abc"}


@pytest.mark.parametrize(
    ("pod", "target"),
    [
        (OWN, {"reranker": "shop", "revision": "abc"}),
        (WARM, {"warm_pool": "shared"}),
        (LENT, {"warm_pool": "shared", "reranker": "shop", "revision": "abc"}),
    ],
    ids=["own", "warm", "lent"],
)
def test_targets_of_workers_tell_whom_they_serve(render: Any, pod: dict[str, str], target: dict[str, str]):
    (endpoint,) = render(FULL).one("PodMonitor", "rerank-operator-workers")["spec"]["podMetricsEndpoints"]
    found = relabeled(endpoint["relabelings"], {meta_label(label): value for label, value in pod.items()})
    assert found == {"job": "rerank-worker", **target}
    assert "honorLabels" not in endpoint, "a worker does not know whom it serves"


def test_operator_and_gateway_say_themselves_which_reranker_they_mean(render: Any):
    for name, job in ((NAME, "rerank-operator"), (GATEWAY, "rerank-gateway")):
        (endpoint,) = render(FULL).one("PodMonitor", name)["spec"]["podMetricsEndpoints"]
        assert endpoint["honorLabels"] is True
        assert relabeled(endpoint["relabelings"], {}) == {"job": job}


@pytest.mark.parametrize(("values", "port", "host"), [({}, 8081, ""), (FULL, 8888, "192.0.2.1")], ids=["plain", "own"])
def test_the_page_is_reached_by_its_service(render: Any, values: dict[str, Any], port: int, host: str):
    found = render(values)
    container = container_of(found.one("Deployment", NAME))
    command = parse_command(container["command"])
    assert (command.page_port, command.page_host) == (port, host)
    assert {"name": "page", "containerPort": port} in container["ports"]
    service = found.one("Service", PAGE)["spec"]
    assert service["type"] == "ClusterIP"
    assert service["ports"] == [{"name": "http", "port": 80, "targetPort": "page", "appProtocol": "http"}]


def test_without_a_page_nothing_of_it_is_left(render: Any):
    found = render(SETS["bare"])
    container = container_of(found.one("Deployment", NAME))
    assert parse_command(container["command"]).page_port == 0
    assert [port["name"] for port in container["ports"]] == ["metrics"]
    assert not [s for s in found.of("Service") if s["metadata"]["name"] == PAGE]


@pytest.mark.parametrize("ratio", [0, 1, 0.00001, "0.25"], ids=str)
def test_a_ratio_may_be_a_text_as_helms_set_makes_it(render: Any, ratio: float | str):
    found = render({"tracing": {"endpoint": "http://t:4318", "sampleRatio": ratio}})
    operator = parse_command(container_of(found.one("Deployment", NAME))["command"])
    gateway = {e["name"]: e.get("value") for e in container_of(found.one("Deployment", GATEWAY))["env"]}
    assert operator.worker_otlp_sample_ratio == float(gateway["OTEL_TRACES_SAMPLER_ARG"]) == float(ratio)


def test_gateways_and_workers_are_told_where_traces_go(render: Any):
    values = {"tracing": {"endpoint": "http://tempo.monitoring:4318", "sampleRatio": 0.25}}
    environment = {e["name"]: e.get("value") for e in container_of(render(values).one("Deployment", GATEWAY))["env"]}
    assert environment == {
        "POD_IP": None,
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://tempo.monitoring:4318",
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": "0.25",
    }
    operator = parse_command(container_of(render(values).one("Deployment", NAME))["command"])
    assert (operator.worker_otlp_endpoint, operator.worker_otlp_sample_ratio) == ("http://tempo.monitoring:4318", 0.25)
    assert parse_command(container_of(render().one("Deployment", NAME))["command"]).worker_otlp_endpoint is None
    for deployment in (*render().of("Deployment"), render(values).one("Deployment", NAME)):
        assert [e["name"] for e in container_of(deployment)["env"]] == ["POD_IP"]
