"""What values the chart takes and refuses, and that values, schema and README tell the same."""

import importlib.util
import json
import subprocess
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from harness.cluster import ROOT
from harness.release import CHART

VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())


def test_lint_is_silent(helm: str):
    done = subprocess.run(
        [helm, "lint", "--strict", str(CHART)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout


def test_one_version_everywhere():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    versions = {
        tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]["version"]
        for folder in ("operator", "operator/rerank_api", "worker")
    }
    assert versions == {chart["appVersion"]} == {chart["version"]}


def sections(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """The schema and every schema of a property under it."""
    yield path, schema
    for key, inner in schema.get("properties", {}).items():
        yield from sections(inner, f"{path}.{key}" if path else key)


def test_every_value_is_described_and_nothing_else_is_taken():
    for path, section in sections(SCHEMA):
        assert path == "" or section.get("description", "").endswith("."), f"{path} has no description"
        if "properties" in section:
            assert section.get("additionalProperties") is False, f"{path} takes unknown keys"


def test_schema_and_values_have_the_same_keys():
    def keys(value: Any, schema: dict[str, Any], path: str) -> set[str]:
        if "properties" not in schema:
            return {path}
        return {k for key, inner in value.items() for k in keys(inner, schema["properties"][key], f"{path}.{key}")}

    in_schema = {f".{path}" for path, section in sections(SCHEMA) if path and "properties" not in section}
    assert keys(VALUES, SCHEMA, "") == in_schema - {".global"}


def test_generated_parts_are_up_to_date():
    spec = importlib.util.spec_from_file_location("helm_generate", CHART.parent / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert generate.differences() == [], "run python helm/generate.py"


DIGEST = "sha256:" + "a" * 64

REFUSED = [
    ({"unknown": 1}, "unknown"),
    ({"image": {"tagg": "1"}}, "/image"),
    ({"image": {"repository": ""}}, "/image/repository"),
    ({"image": {"registry": "registry.example.com/"}}, "/image/registry"),
    ({"image": {"tag": "a b"}}, "/image/tag"),
    ({"image": {"digest": "sha256:12"}}, "/image/digest"),
    ({"image": {"pullPolicy": "Sometimes"}}, "/image/pullPolicy"),
    ({"worker": {"image": {"digest": "latest"}}}, "/worker/image/digest"),
    ({"worker": {"replicas": 2}}, "/worker"),
    ({"imagePullSecrets": ["name"]}, "/imagePullSecrets/0"),
    ({"watchNamespaces": ["Search"]}, "/watchNamespaces/0"),
    ({"watchNamespaces": ["a", "a"]}, "/watchNamespaces"),
    ({"watchNamespaces": "search"}, "/watchNamespaces"),
    ({"crds": {"install": False}}, "/crds"),
    ({"crds": {"keep": "yes"}}, "/crds/keep"),
    ({"security": {"runAsUser": 0}}, "/security/runAsUser"),
    ({"security": {"privileged": True}}, "/security"),
    ({"operator": {"logFormat": "xml"}}, "/operator/logFormat"),
    ({"operator": {"prometheusUrl": "prometheus:9090"}}, "/operator/prometheusUrl"),
    ({"gateway": {"logLevel": "loud"}}, "/gateway/logLevel"),
    ({"gateway": {"maxHeldBytes": "much"}}, "/gateway/maxHeldBytes"),
    ({"operator": {"replicas": 0}}, "/operator/replicas"),
    ({"operator": {"podAnnotations": {"a": 1}}}, "/operator/podAnnotations/a"),
    ({"gateway": {"replicas": "2"}}, "/gateway/replicas"),
    ({"gateway": {"service": {"type": "ExternalName"}}}, "/gateway/service/type"),
    ({"gateway": {"service": {"port": 70000}}}, "/gateway/service/port"),
    ({"gateway": {"shutdownDelaySeconds": -1}}, "/gateway/shutdownDelaySeconds"),
    ({"gateway": {"apiKeys": {"keys": ["secret"]}}}, "/gateway/apiKeys"),
    ({"podMonitor": {"interval": "often"}}, "/podMonitor/interval"),
    ({"commonLabels": {"app.kubernetes.io/name": "x"}}, "commonLabels: app.kubernetes.io/name is set by the chart"),
    (
        {"gateway": {"podLabels": {"app.kubernetes.io/component": "x"}}},
        "gateway.podLabels: app.kubernetes.io/component",
    ),
    ({"commonLabels": {"team": "a"}, "operator": {"podLabels": {"team": "b"}}}, "operator.podLabels: team"),
    ({"operator": {"serviceAccount": {"create": False}}}, "operator.serviceAccount: create is false, so name"),
    (
        {"gateway": {"serviceAccount": {"create": False, "name": "x", "annotations": {"a": "b"}}}},
        "gateway.serviceAccount: annotations are for an account that the chart creates",
    ),
    ({"operator": {"extraArgs": ["--lease-name=x"]}}, "operator.extraArgs: --lease-name is set by the chart"),
    (
        {"operator": {"extraArgs": ["--gateway-service=a/b"]}},
        "operator.extraArgs: --gateway-service is set by the chart",
    ),
    ({"operator": {"extraArgs": ["--warm-pool-key-file", "/k"]}}, "--warm-pool-key-file is set by the chart"),
    ({"warmPools": {"existingSecret": "Key"}}, "/warmPools/existingSecret"),
    ({"warmPools": {"key": "secret"}}, "/warmPools"),
    ({"gateway": {"extraArgs": ["--host", "::"]}}, "gateway.extraArgs: --host is set by the chart"),
    ({"gateway": {"extraEnv": [{"name": "POD_IP", "value": "x"}]}}, "gateway.extraEnv: POD_IP is set by the chart"),
    ({"gateway": {"ingress": {"enabled": True}}}, "gateway.ingress.hosts: name at least one host"),
    ({"gateway": {"ingress": {"hosts": ["a.example"]}}}, "gateway.ingress.enabled is false"),
    ({"networkPolicy": {"gatewayFrom": [{"podSelector": {}}]}}, "networkPolicy.enabled is false"),
    ({"podMonitor": {"labels": {"release": "x"}}}, "podMonitor.enabled is false"),
    (
        {"podMonitor": {"enabled": True, "labels": {"app.kubernetes.io/name": "x"}}},
        "podMonitor.labels: app.kubernetes.io/name is set by the chart",
    ),
    ({"gateway": {"accessLogSample": 1.5}}, "/gateway/accessLogSample"),
    ({"operator": {"page": {"port": 80}}}, "/operator/page/port"),
    ({"operator": {"extraArgs": ["--page-port=1"]}}, "operator.extraArgs: --page-port is set by the chart"),
    ({"operator": {"page": {"port": 9090}}}, "operator.page.port: 9090 is the operator's port for metrics"),
    (
        {"operator": {"page": {"enabled": False}}, "networkPolicy": {"enabled": True, "pageFrom": [{}]}},
        "networkPolicy: pageFrom is given, but operator.page.enabled is false",
    ),
    ({"tracing": {"endpoint": "tempo:4318"}}, "/tracing/endpoint"),
    ({"tracing": {"sampleRatio": 2}}, "/tracing/sampleRatio"),
    ({"tracing": {"sampleRatio": "1.5"}}, "/tracing/sampleRatio"),
    (
        {
            "tracing": {"endpoint": "http://t:4318"},
            "gateway": {"extraEnv": [{"name": "OTEL_TRACES_SAMPLER", "value": "always_on"}]},
        },
        "gateway.extraEnv: OTEL_TRACES_SAMPLER is set by the chart from tracing",
    ),
    ({"monitoring": {"rules": {"labels": {"release": "x"}}}}, "monitoring.rules.enabled is false"),
    ({"monitoring": {"rules": {"additionalLabels": {"team": "x"}}}}, "additionalLabels or disabled is given, but"),
    ({"monitoring": {"rules": {"disabled": ["RerankTruncation"]}}}, "is given, but monitoring.rules.enabled is false"),
    (
        {"monitoring": {"rules": {"enabled": True, "disabled": ["RerankIdleReplica"]}}},
        "monitoring.rules.disabled: RerankIdleReplica is no alert of this chart",
    ),
    ({"monitoring": {"rules": {"enabled": True, "disabled": "RerankTruncation"}}}, "/monitoring/rules/disabled"),
    ({"monitoring": {"rules": {"severities": {"page": ""}}}}, "/monitoring/rules/severities/page"),
    ({"monitoring": {"rules": {"severities": {"ticket": None}}}}, "missing property 'ticket'"),
    ({"monitoring": {"rules": {"severities": {"info": "info"}}}}, "/monitoring/rules/severities"),
    ({"monitoring": {"rules": {"enabled": True, "additionalLabels": {"a.b": "x"}}}}, "a.b"),
    (
        {"podMonitor": {"enabled": True, "interval": "61s"}, "monitoring": {"rules": {"enabled": True}}},
        "podMonitor.interval: 61s is too long for monitoring.rules",
    ),
    (
        {"podMonitor": {"enabled": True, "interval": "2m"}, "monitoring": {"rules": {"enabled": True}}},
        "podMonitor.interval: 2m is too long for monitoring.rules",
    ),
    (
        {"podMonitor": {"enabled": True, "interval": "60001ms"}, "monitoring": {"rules": {"enabled": True}}},
        "podMonitor.interval: 60001ms is too long for monitoring.rules",
    ),
    ({"monitoring": {"dashboards": {"namespace": "grafana"}}}, "monitoring.dashboards.enabled is false"),
    ({"monitoring": {"dashboards": {"annotations": {"a": "b"}}}}, "monitoring.dashboards.enabled is false"),
    ({"monitoring": {"dashboards": {"labels": {"grafana_dashboard": None}}}}, "/monitoring/dashboards/labels"),
    ({"monitoring": {"rules": {"runbookUrl": "https://git.example.com/"}}}, "/monitoring/rules/runbookUrl"),
    (
        {"monitoring": {"rules": {"runbookUrl": "https://git.example.com"}}},
        "monitoring.rules: runbookUrl is given, but neither",
    ),
    (
        {"commonLabels": {"team": "a"}, "monitoring": {"rules": {"enabled": True, "labels": {"team": "b"}}}},
        "monitoring.rules.labels: team is set by the chart or by commonLabels",
    ),
]


@pytest.mark.parametrize(
    ("interval", "rules"), [("1m", True), ("60s", True), ("60000ms", True), ("5m", False)], ids=str
)
def test_a_minute_between_scrapes_is_enough_for_rules(render: Any, interval: str, rules: bool):
    values = {"podMonitor": {"enabled": True, "interval": interval}, "monitoring": {"rules": {"enabled": rules}}}
    monitors = [monitor["spec"]["podMetricsEndpoints"][0] for monitor in render(values).of("PodMonitor")]
    assert [monitor["interval"] for monitor in monitors] == [interval] * 3


@pytest.mark.parametrize(("values", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_bad_values_are_refused_by_name(render: Any, values: dict[str, Any], words: str):
    with pytest.raises(Exception, match="rerank-operator") as refused:
        render(values)
    assert words in str(refused.value)
