"""Faults of workers, given through spec.runtime.podTemplate alone: the product has no way to be made bad.

The code is in a ConfigMap that the pod mounts, so that it works on any cluster and under any Pod Security Standard.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rerank_api import names

from harness.faults import sitecustomize

CONFIG_MAP = "faults"
FOLDER = "/run/faults"
NOTHING_ELSE: Mapping[str, str] = {}


def code(namespace: str) -> dict[str, Any]:
    """The ConfigMap that pods with a fault need."""
    source = Path(sitecustomize.__file__)
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": CONFIG_MAP, "namespace": namespace},
        "data": {source.name: source.read_text()},
    }


def pod_template(fault: str, variables: Mapping[str, str] = NOTHING_ELSE) -> dict[str, Any]:
    """For spec.runtime.podTemplate: a small worker (release.SMALL) with ``fault``, as sitecustomize.py reads it."""
    sitecustomize.parse(fault)
    env = {"OMP_NUM_THREADS": "1", **variables, "PYTHONPATH": FOLDER, sitecustomize.VARIABLE: fault}
    worker = {
        "name": names.WORKER_CONTAINER,
        "env": [{"name": name, "value": value} for name, value in env.items()],
        "volumeMounts": [{"name": CONFIG_MAP, "mountPath": FOLDER, "readOnly": True}],
    }
    return {"spec": {"containers": [worker], "volumes": [{"name": CONFIG_MAP, "configMap": {"name": CONFIG_MAP}}]}}
