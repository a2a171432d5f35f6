"""The pod template of a worker: its configuration, probes and security, with the user's overlay merged in.

The overlay may change anything but what the operator relies on: the worker container's name and command, the
environment that configures it, and the labels that select it. Such an attempt is refused, never ignored.
"""

from typing import Any

import msgspec
from rerank_api import names, otlp, wire
from rerank_api.reranker import Model
from rerank_api.revision import RevisionSpec
from rerank_api.units import parse_duration
from rerank_api.worker_config import ModelSource, WorkerConfig

from rerank_operator.manifests.common import labels, merge_key

MODEL_VOLUME = "model"
CACHE_VOLUME = "cache"
COMMAND = ["rerank-worker", "serve"]

DRAIN_SECONDS = 30
"""Beyond the longest request: the lame-duck time of the worker and the gateway's time to notice."""
STARTUP_SECONDS = 1800
"""A model of tens of gigabytes over a slow network; the worker itself says sooner when it cannot succeed."""


class WorkerTraces(msgspec.Struct, frozen=True):
    """Where workers send their spans."""

    endpoint: str
    """Address of a collector that takes OTLP over HTTP."""
    sample_ratio: float
    """Share of the traces that begin in a worker. Those of gateways are kept or not as the gateway has decided."""


class WorkerImage(msgspec.Struct, frozen=True):
    """What the operator was told to run."""

    image: str
    pull_policy: str = "IfNotPresent"
    traces: WorkerTraces | None = None
    """None: pods are told nothing about traces."""


class BadSpec(ValueError):
    """The spec asks for something that no worker can be made of; the message names the field."""


def pod_template(
    namespace: str, reranker: str, hash_: str, revision: RevisionSpec, timeout: str, worker: WorkerImage
) -> dict[str, Any]:
    """``timeout``: the longest request, which a stopping worker still finishes. Raises BadSpec."""
    config = worker_config(namespace, reranker, hash_, revision)
    variable = {"name": names.ENV_WORKER_CONFIG, "value": msgspec.json.encode(config, order="deterministic").decode()}
    container = worker_container(worker, COMMAND, variable, revision.runtime.resources)
    volumes = _model_volume(revision.model)
    if volumes:
        container["volumeMounts"].append({"name": MODEL_VOLUME, "mountPath": names.MODEL_MOUNT, "readOnly": True})
    own = worker_pod(labels(reranker, hash_), container, volumes, int(parse_duration(timeout)) + DRAIN_SECONDS)
    check_overlay(revision.runtime.pod_template, own, "spec.runtime")
    return merge(own, revision.runtime.pod_template)


def worker_pod(
    labels: dict[str, str], container: dict[str, Any], volumes: list[dict[str, Any]], grace_seconds: int
) -> dict[str, Any]:
    """The template of a pod with this one container, before anything is laid over it."""
    return {
        "metadata": {"labels": labels},
        "spec": {
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": grace_seconds,
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [container],
            "volumes": [{"name": CACHE_VOLUME, "emptyDir": {}}, *volumes],
        },
    }


def worker_config(namespace: str, reranker: str, hash_: str, revision: RevisionSpec) -> WorkerConfig:
    return WorkerConfig(
        model=model_source(revision.model),
        namespace=namespace,
        reranker=reranker,
        revision=hash_,
        device=revision.runtime.device,
        precision=revision.runtime.precision,
        backend=revision.runtime.backend,
        compile=revision.runtime.compile,
        quality_floor=revision.runtime.quality_floor,
        max_length=revision.model.max_length,
        activation=revision.model.activation,
        temperature=revision.model.temperature,
        max_delay_seconds=parse_duration(revision.batching.max_delay),
        length_bucket=revision.batching.length_bucket,
        max_batch_tokens=revision.batching.max_batch_tokens,
        long_documents=revision.long_documents,
        chunk_pooling=revision.chunk_pooling,
    )


def model_source(model: Model) -> ModelSource:
    """Where a worker finds the weights that ``uri`` names."""
    scheme, _, place = model.uri.partition("://")
    if scheme == "hf":
        return ModelSource(repo=place, revision=model.revision, sha256=model.sha256)
    if scheme == "file":
        return ModelSource(path=place, sha256=model.sha256)
    if scheme == "pvc":
        _, _, folder = place.partition("/")
        return ModelSource(path=f"{names.MODEL_MOUNT}/{folder}".rstrip("/"), sha256=model.sha256)
    raise BadSpec(f"spec.model.uri: {scheme}:// is not supported: use hf://, file:// or pvc://")


def _model_volume(model: Model) -> list[dict[str, Any]]:
    scheme, _, place = model.uri.partition("://")
    if scheme != "pvc":
        return []
    return [{"name": MODEL_VOLUME, "persistentVolumeClaim": {"claimName": place.split("/")[0], "readOnly": True}}]


def worker_container(
    worker: WorkerImage, command: list[str], variable: dict[str, Any], resources: dict[str, Any]
) -> dict[str, Any]:
    """``variable``: what the command works by, beside the environment that every worker has."""
    amounts = {key: value for key, value in resources.items() if value}
    return {
        "name": names.WORKER_CONTAINER,
        "image": worker.image,
        "imagePullPolicy": worker.pull_policy,
        "command": command,
        "env": [
            variable,
            {"name": names.ENV_POD_IP, "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": names.ENV_TERMINATION_LOG, "value": names.TERMINATION_LOG},
            # The root file system is read-only: everything that libraries write goes to the cache volume.
            {"name": "HOME", "value": names.CACHE_MOUNT},
            {"name": "TMPDIR", "value": names.CACHE_MOUNT},
            {"name": "HF_HOME", "value": f"{names.CACHE_MOUNT}/huggingface"},
            {"name": "TORCHINDUCTOR_CACHE_DIR", "value": f"{names.CACHE_MOUNT}/torchinductor"},
            *(_traces(worker.traces) if worker.traces is not None else ()),
        ],
        "ports": [{"name": names.WORKER_PORT_NAME, "containerPort": names.WORKER_PORT, "protocol": "TCP"}],
        **({"resources": amounts} if amounts else {}),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
        },
        # One-second periods: a worker that is ready should serve at once.
        "startupProbe": _probe(wire.LIVE_PATH, period=1, failures=STARTUP_SECONDS),
        "readinessProbe": _probe(wire.READY_PATH, period=1, failures=2),
        "livenessProbe": _probe(wire.LIVE_PATH, period=10, failures=3),
        "terminationMessagePath": names.TERMINATION_LOG,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [{"name": CACHE_VOLUME, "mountPath": names.CACHE_MOUNT}],
    }


def _traces(traces: WorkerTraces) -> list[dict[str, Any]]:
    return [
        {"name": otlp.ENDPOINT, "value": traces.endpoint},
        {"name": otlp.SAMPLER, "value": otlp.BY_RATIO},
        {"name": otlp.SAMPLER_ARGUMENT, "value": f"{traces.sample_ratio:g}"},
    ]


def _probe(path: str, period: int, failures: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": path, "port": names.WORKER_PORT_NAME},
        "periodSeconds": period,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }


def merge(base: Any, overlay: Any, path: str = "") -> Any:
    """``overlay`` laid over ``base``: maps by field (null removes), keyed lists by item, anything else replaced."""
    if isinstance(base, dict) and isinstance(overlay, dict):
        merged = dict(base)
        for key, value in overlay.items():
            if value is None:
                merged.pop(key, None)
            elif key in merged:
                merged[key] = merge(merged[key], value, f"{path}.{key}")
            else:
                merged[key] = value
        return merged
    if isinstance(base, list) and isinstance(overlay, list):
        key = merge_key(path, overlay)
        if key is None:
            return overlay
        items = {item[key]: item for item in base}
        for item in overlay:
            items[item[key]] = merge(items[item[key]], item, f"{path}[]") if item[key] in items else item
        return list(items.values())
    return overlay


def check_overlay(overlay: dict[str, Any], own: dict[str, Any], place: str) -> None:
    """``place``: the field that holds podTemplate and resources. Raises BadSpec."""
    field = f"{place}.podTemplate"
    for key in overlay.keys() - {"metadata", "spec"}:
        raise BadSpec(f"{field}.{key} is not a field of a pod template: use metadata and spec")
    metadata, spec = _mapping(overlay, "metadata", field), _mapping(overlay, "spec", field)
    for key in metadata.keys() - {"labels", "annotations"}:
        raise BadSpec(f"{field}.metadata.{key} may not be set: only labels and annotations may")
    for key in _mapping(metadata, "labels", f"{field}.metadata").keys() & own["metadata"]["labels"].keys():
        raise BadSpec(f"{field}.metadata.labels.{key} may not be set: the operator selects pods by it")
    for key, value in spec.items():
        if value is None and key in ("containers", "volumes"):
            raise BadSpec(f"{field}.spec.{key} may not be null: the worker needs its own")
    for index, container in enumerate(_items(spec, "containers", f"{field}.spec")):
        if container.get("name") == names.WORKER_CONTAINER:
            _check_worker(container, f"{field}.spec.containers[{index}]", place)


def _check_worker(container: dict[str, Any], field: str, place: str) -> None:
    for key in ("command", "args", "ports", "terminationMessagePath", "terminationMessagePolicy", "resources"):
        if key in container:
            instead = f": use {place}.resources" if key == "resources" else ""
            raise BadSpec(f"{field}.{key} may not be set: the operator sets it{instead}")
    ours = {names.ENV_WORKER_CONFIG, names.ENV_ADMIN_TOKEN_SHA256, names.ENV_POD_IP, names.ENV_TERMINATION_LOG}
    for index, variable in enumerate(_items(container, "env", field)):
        if variable.get("name") in ours:
            raise BadSpec(f"{field}.env[{index}]: {variable['name']} may not be set: the operator sets it")


def _mapping(value: dict[str, Any], key: str, field: str) -> dict[str, Any]:
    found = value.get(key, {})
    if not isinstance(found, dict):
        raise BadSpec(f"{field}.{key} must be an object")
    return found


def _items(value: dict[str, Any], key: str, field: str) -> list[dict[str, Any]]:
    found = value.get(key, [])
    if not isinstance(found, list) or not all(isinstance(item, dict) and item.get("name") for item in found):
        raise BadSpec(f"{field}.{key} must be a list of objects with a name")
    return found
