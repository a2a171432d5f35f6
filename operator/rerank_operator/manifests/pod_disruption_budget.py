"""The PodDisruptionBudget over all workers of a Reranker: a node drain takes one at a time."""

from typing import Any

from rerank_api import names
from rerank_api.reranker import Metadata

from rerank_operator.manifests.common import metadata, stamp


def pod_disruption_budget(owner: Metadata) -> dict[str, Any]:
    manifest = {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata(owner, owner.name),
        "spec": {
            "maxUnavailable": 1,
            "selector": {
                "matchLabels": {
                    names.LABEL_RERANKER: owner.name,
                    names.LABEL_COMPONENT: names.COMPONENT_WORKER,
                }
            },
            # A worker that is not ready serves nobody: it must not keep a node from being drained.
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }
    return stamp(manifest)
