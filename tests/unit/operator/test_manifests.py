"""Manifests of children: what a worker pod is made of, what an overlay may change, and what counts as a difference."""

import json
from typing import Any

import msgspec
import pytest
from rerank_api import names
from rerank_api.reranker import Metadata, Model, Runtime
from rerank_api.revision import RevisionSpec
from rerank_api.worker_config import ModelSource, WorkerConfig
from rerank_operator.manifests.common import differences, stamp
from rerank_operator.manifests.controller_revision import controller_revision
from rerank_operator.manifests.deployment import deployment, strategy
from rerank_operator.manifests.pod_disruption_budget import pod_disruption_budget
from rerank_operator.manifests.pod_template import (
    BadSpec,
    WorkerImage,
    WorkerTraces,
    merge,
    model_source,
    pod_template,
)
from rerank_operator.manifests.status import status_manifest

WORKER = WorkerImage("registry.example/worker:1", "Always")
OWNER = Metadata("products", "search", "uid-1")
SPEC = RevisionSpec(Model("file:///models/a"))


def template(spec: RevisionSpec = SPEC, timeout: str = "10s", image: WorkerImage = WORKER) -> dict[str, Any]:
    return pod_template("search", "products", "abc", spec, timeout, image)


def with_overlay(overlay: dict[str, Any], **runtime: Any) -> RevisionSpec:
    return RevisionSpec(SPEC.model, Runtime(pod_template=overlay, **runtime))


def worker(pod: dict[str, Any]) -> dict[str, Any]:
    return next(c for c in pod["spec"]["containers"] if c["name"] == "worker")


def env(pod: dict[str, Any]) -> dict[str, Any]:
    return {variable["name"]: variable.get("value") for variable in worker(pod)["env"]}


@pytest.mark.parametrize(
    ("uri", "path", "repo"),
    [
        ("file:///models/a", "/models/a", None),
        ("file:///models/a#1 b", "/models/a#1 b", None),
        ("pvc://claim", "/run/rerank/model", None),
        ("pvc://claim/some/folder", "/run/rerank/model/some/folder", None),
        ("hf://org/model.v2", None, "org/model.v2"),
    ],
)
def test_where_the_model_is(uri: str, path: str | None, repo: str | None):
    source = model_source(Model(uri, revision="a" * 40 if repo else None))
    assert source == ModelSource(path=path, repo=repo, revision="a" * 40 if repo else None)


def test_an_unknown_scheme_is_refused():
    with pytest.raises(BadSpec, match=r"spec\.model\.uri: s3:// is not supported"):
        model_source(Model("s3://bucket/model"))


def test_a_claim_is_mounted_read_only_and_nothing_else_is():
    pod = template(RevisionSpec(Model("pvc://claim/folder")))
    claim = {"claimName": "claim", "readOnly": True}
    assert {"name": "model", "persistentVolumeClaim": claim} in pod["spec"]["volumes"]
    assert {"name": "model", "mountPath": names.MODEL_MOUNT, "readOnly": True} in worker(pod)["volumeMounts"]
    assert [volume["name"] for volume in template()["spec"]["volumes"]] == ["cache"]


def test_the_worker_gets_its_whole_configuration():
    variables = env(template())
    config = msgspec.json.decode(variables[names.ENV_WORKER_CONFIG], type=WorkerConfig)
    assert config.model.path == "/models/a"
    assert (config.namespace, config.reranker, config.revision) == ("search", "products", "abc")
    assert config.max_delay_seconds == 0.005
    assert variables[names.ENV_TERMINATION_LOG] == worker(template())["terminationMessagePath"] == names.TERMINATION_LOG
    written = {variables[name] for name in ("HOME", "TMPDIR", "HF_HOME", "TORCHINDUCTOR_CACHE_DIR")}
    assert all(path.startswith(names.CACHE_MOUNT) for path in written)


def test_a_stopping_worker_has_time_for_the_longest_request():
    assert template(timeout="2m")["spec"]["terminationGracePeriodSeconds"] == 150


def test_the_pod_is_as_restricted_as_can_be():
    pod = template()
    assert pod["spec"]["automountServiceAccountToken"] is False
    assert pod["spec"]["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert worker(pod)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
    }


@pytest.mark.parametrize(
    ("resources", "surge"),
    [
        ({}, "25%"),
        ({"limits": {"cpu": "2", "memory": "4Gi"}}, "25%"),
        ({"limits": {"nvidia.com/gpu": 1}}, 0),
        ({"limits": {"nvidia.com/mig-1g.10gb": "1"}}, 0),
        ({"requests": {"cpu": 1}, "limits": {"amd.com/gpu": 1}}, 0),
    ],
)
def test_no_surge_where_a_gpu_is_held(resources: dict[str, Any], surge: Any):
    pod = template(RevisionSpec(SPEC.model, Runtime(resources=resources)))
    rolling = strategy(pod)["rollingUpdate"]
    assert rolling["maxSurge"] == surge
    assert rolling["maxUnavailable"] == (1 if surge == 0 else 0)


def test_the_overlay_is_merged_item_by_item():
    overlay = {
        "metadata": {"labels": {"team": "search"}, "annotations": {"a": "b"}},
        "spec": {
            "nodeSelector": {"gpu": "h100"},
            "terminationGracePeriodSeconds": 600,
            "tolerations": [{"key": "gpu", "operator": "Exists"}],
            "volumes": [{"name": "models", "hostPath": {"path": "/srv/models"}}],
            "containers": [
                {
                    "name": "worker",
                    "image": "registry.example/own:2",
                    "env": [{"name": "HF_ENDPOINT", "value": "https://hub.example"}, {"name": "HOME", "value": "/x"}],
                    "volumeMounts": [{"name": "models", "mountPath": "/models"}],
                    "securityContext": {"runAsUser": 1000},
                },
                {"name": "sidecar", "image": "registry.example/sidecar:1"},
            ],
        },
    }
    pod = template(with_overlay(overlay))
    assert pod["metadata"]["labels"] == template()["metadata"]["labels"] | {"team": "search"}
    assert [c["name"] for c in pod["spec"]["containers"]] == ["worker", "sidecar"]
    assert [v["name"] for v in pod["spec"]["volumes"]] == ["cache", "models"]
    assert pod["spec"]["terminationGracePeriodSeconds"] == 600
    assert worker(pod)["image"] == "registry.example/own:2"
    assert worker(pod)["command"] == ["rerank-worker", "serve"]
    assert [m["mountPath"] for m in worker(pod)["volumeMounts"]] == [names.CACHE_MOUNT, "/models"]
    assert worker(pod)["securityContext"]["runAsUser"] == 1000
    assert worker(pod)["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert env(pod) | {"HF_ENDPOINT": "https://hub.example", "HOME": "/x"} == env(pod)


@pytest.mark.parametrize(
    ("overlay", "words"),
    [
        ({"spec": {"containers": [{"name": "worker", "command": ["sh"]}]}}, r"containers\[0\]\.command"),
        ({"spec": {"containers": [{"name": "x"}, {"name": "worker", "args": []}]}}, r"containers\[1\]\.args"),
        ({"spec": {"containers": [{"name": "worker", "resources": {}}]}}, r"use spec\.runtime\.resources"),
        ({"spec": {"containers": [{"name": "worker", "env": [{"name": "POD_IP"}]}]}}, "POD_IP may not be set"),
        ({"spec": {"containers": [{"image": "x"}]}}, "must be a list of objects with a name"),
        ({"spec": {"containers": None}}, "may not be null"),
        ({"spec": []}, r"podTemplate\.spec must be an object"),
        ({"metadata": {"name": "x"}}, r"metadata\.name may not be set"),
        ({"metadata": {"labels": {names.LABEL_REVISION: "x"}}}, "the operator selects pods by it"),
        ({"containers": []}, "is not a field of a pod template"),
    ],
)
def test_an_overlay_that_goes_too_far_is_refused(overlay: dict[str, Any], words: str):
    with pytest.raises(BadSpec, match=words):
        template(with_overlay(overlay))


@pytest.mark.parametrize(
    ("base", "overlay", "merged"),
    [
        ({"a": 1, "b": {"c": 2}}, {"b": {"d": 3}}, {"a": 1, "b": {"c": 2, "d": 3}}),
        ({"a": 1, "b": 2}, {"a": None}, {"b": 2}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({"env": [{"name": "x", "a": 1}]}, {"env": [{"name": "x", "a": 2}]}, {"env": [{"name": "x", "a": 2}]}),
    ],
)  # fmt: skip
def test_merge(base: Any, overlay: Any, merged: Any):
    before = json.dumps(base)
    assert merge(base, overlay) == merged
    assert json.dumps(base) == before


@pytest.mark.parametrize(
    ("wanted", "found", "places"),
    [
        ({"a": 1}, {"a": 1, "b": 2}, []),
        ({"a": 1}, {"a": "1"}, []),
        ({"a": True}, {"a": "True"}, ["a"]),
        ({"a": {"b": 1}}, {"a": {"b": 2}}, ["a.b"]),
        ({"a": {}}, {}, []),
        ({"a": {"b": 1}}, {}, ["a"]),
        ({"a": {"b": 1}}, {"a": None}, ["a"]),
        ({"a": [1, 2]}, {"a": [1, 2, 3]}, ["a"]),
        ({"env": [{"name": "x", "value": "1"}]}, {"env": [{"name": "w"}, {"name": "x", "value": "1"}]}, []),
        ({"env": [{"name": "x", "value": "1"}]}, {"env": [{"name": "x", "value": "2"}]}, ["env[x].value"]),
        ({"env": [{"name": "x", "value": "1"}]}, {"env": []}, ["env[x]"]),
        ({"resources": {"limits": {"cpu": "0.5"}}}, {"resources": {"limits": {"cpu": "500m"}}}, []),
        ({"resources": {"limits": {"memory": "1024Mi"}}}, {"resources": {"limits": {"memory": "1Gi"}}}, []),
        ({"resources": {"limits": {"memory": "1e9"}}}, {"resources": {"limits": {"memory": "1G"}}}, []),
        ({"resources": {"limits": {"cpu": "2"}}}, {"resources": {"limits": {"cpu": "2m"}}}, ["resources.limits.cpu"]),
        ({"emptyDir": {"sizeLimit": "2048Mi"}}, {"emptyDir": {"sizeLimit": "2Gi"}}, []),
        ({"env": [{"name": "x", "value": "0.5"}]}, {"env": [{"name": "x", "value": "500m"}]}, ["env[x].value"]),
    ],
)
def test_differences(wanted: Any, found: Any, places: list[str]):
    assert differences(wanted, found) == places


def test_where_spans_go_is_in_the_environment_and_nothing_else_changes():
    traces = WorkerTraces("http://collector:4318", 0.05)
    plain, traced = template(), template(image=WorkerImage(WORKER.image, WORKER.pull_policy, traces))
    assert {name: value for name, value in env(traced).items() if name not in env(plain)} == {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318",
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": "0.05",
    }
    assert not [name for name in env(plain) if name.startswith("OTEL_")]
    del worker(traced)["env"][-3:]
    assert traced == plain


def test_a_reranker_may_send_its_spans_elsewhere():
    own = {"name": "OTEL_EXPORTER_OTLP_ENDPOINT", "value": "http://own:4318"}
    spec = with_overlay({"spec": {"containers": [{"name": "worker", "env": [own]}]}})
    traced = template(spec, image=WorkerImage(WORKER.image, traces=WorkerTraces("http://collector:4318", 1)))
    assert [each for each in worker(traced)["env"] if each["name"] == own["name"]] == [own]


def test_a_manifest_is_the_same_each_time_and_its_stamp_tells_changes():
    first = deployment(OWNER, "abc", SPEC, 2, "10s", WORKER)
    assert first == deployment(OWNER, "abc", SPEC, 2, "10s", WORKER)
    stamped = first["metadata"]["annotations"][names.ANNOTATION_APPLIED]
    other = deployment(OWNER, "abc", SPEC, 3, "10s", WORKER)
    assert other["metadata"]["annotations"][names.ANNOTATION_APPLIED] != stamped
    assert stamp(pod_disruption_budget(OWNER)) != pod_disruption_budget(OWNER)


def test_names_and_owners():
    made = [
        deployment(OWNER, "abc", SPEC, 2, "10s", WORKER),
        controller_revision(OWNER, "abc", SPEC, 7),
        pod_disruption_budget(OWNER),
    ]
    assert [m["metadata"]["name"] for m in made] == ["products-abc", "products-abc", "products"]
    for manifest in made:
        owner = manifest["metadata"]["ownerReferences"]
        assert owner == [
            {
                "apiVersion": "rerank.dev/v1alpha1",
                "kind": "Reranker",
                "name": "products",
                "uid": "uid-1",
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ]
    selector = made[0]["spec"]["selector"]["matchLabels"].items()
    assert selector <= made[0]["spec"]["template"]["metadata"]["labels"].items()


def test_a_status_is_applied_where_it_says_anything_new():
    ready, degraded = {"type": "Ready", "status": "True"}, {"type": "Degraded", "status": "False"}
    a, b = {"reranker": "a", "revision": "2"}, {"reranker": "b", "revision": "1"}
    new = {"replicas": 2, "conditions": [ready, degraded], "models": [a, b]}

    def made(old: dict[str, Any]) -> dict[str, Any] | None:
        return status_manifest("WarmPool", OWNER, new, old, models=("reranker", "revision"))

    assert made(new | {"conditions": [degraded, ready], "models": [b, a]}) is None
    for old in ({}, new | {"replicas": 1}, new | {"models": [a]}, new | {"conditions": [ready]}):
        assert made(old) == {
            "apiVersion": "rerank.dev/v1alpha1",
            "kind": "WarmPool",
            "metadata": {"name": "products", "namespace": "search", "uid": "uid-1"},
            "status": new,
        }
