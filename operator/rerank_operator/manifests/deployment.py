"""The Deployment of one revision. ``replicas`` is set here and by the handover's scaling: both are the operator's."""

from typing import Any

from rerank_api import names
from rerank_api.reranker import Metadata
from rerank_api.revision import RevisionSpec, object_name

from rerank_operator.manifests.common import metadata, stamp
from rerank_operator.manifests.pod_template import STARTUP_SECONDS, WorkerImage, pod_template


def deployment(
    owner: Metadata, hash_: str, revision: RevisionSpec, replicas: int, timeout: str, worker: WorkerImage
) -> dict[str, Any]:
    """Raises BadSpec when the overlay asks for something that it may not change."""
    template = pod_template(owner.namespace, owner.name, hash_, revision, timeout, worker)
    selected = {
        names.LABEL_RERANKER: owner.name,
        names.LABEL_REVISION: hash_,
        names.LABEL_COMPONENT: names.COMPONENT_WORKER,
    }
    return workers(metadata(owner, object_name(owner.name, hash_), hash_), replicas, selected, template)


def workers(
    metadata: dict[str, Any], replicas: int, selected: dict[str, str], template: dict[str, Any]
) -> dict[str, Any]:
    """``selected``: the labels by which the Deployment knows its pods."""
    manifest: dict[str, Any] = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": selected},
            "strategy": strategy(template),
            "progressDeadlineSeconds": STARTUP_SECONDS + 60,
            "revisionHistoryLimit": 1,
            "template": template,
        },
    }
    return stamp(manifest)


def strategy(template: dict[str, Any]) -> dict[str, Any]:
    """How the pods of one revision are replaced in place (a new worker image, for example).

    Never a surge where an extended resource such as a GPU is asked for: the surge pod would wait for the one that the
    old pod holds, and the old pod for the surge pod.
    """
    limits = [
        name
        for container in template["spec"]["containers"]
        for name in (container.get("resources") or {}).get("limits") or {}
    ]
    if any("/" in name for name in limits):
        return {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}
    return {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 0}}
