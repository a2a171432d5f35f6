"""The kinds of objects that the operator reads and writes: where they live and which of them concern it."""

from typing import Any

import msgspec
from rerank_api import names


class Kind(msgspec.Struct, frozen=True):
    name: str
    group: str
    version: str
    plural: str
    label_selector: str = ""
    """Only these are listed and watched."""

    def path(self, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        parts = [root, *(["namespaces", namespace] if namespace else []), self.plural]
        return "/".join(parts + [part for part in (name, subresource) if part])


_MANAGED = f"{names.LABEL_MANAGED_BY}={names.MANAGED_BY}"

RERANKERS = Kind("Reranker", names.GROUP, names.VERSION, names.PLURAL)
DEPLOYMENTS = Kind("Deployment", "apps", "v1", "deployments", _MANAGED)
CONTROLLER_REVISIONS = Kind("ControllerRevision", "apps", "v1", "controllerrevisions", _MANAGED)
BUDGETS = Kind("PodDisruptionBudget", "policy", "v1", "poddisruptionbudgets", _MANAGED)
PODS = Kind("Pod", "", "v1", "pods", f"{_MANAGED},{names.LABEL_COMPONENT}={names.COMPONENT_WORKER}")
EVENTS = Kind("Event", "events.k8s.io", "v1", "events")
LEASES = Kind("Lease", "coordination.k8s.io", "v1", "leases")

WATCHED = (RERANKERS, DEPLOYMENTS, CONTROLLER_REVISIONS, BUDGETS, PODS)

Key = tuple[str, str]
"""Namespace and name of a Reranker."""


def key_of(kind: Kind, body: dict[str, Any]) -> Key | None:
    """The Reranker that an object concerns; None where a label is missing."""
    metadata = body["metadata"]
    if kind is RERANKERS:
        return metadata["namespace"], metadata["name"]
    reranker = metadata.get("labels", {}).get(names.LABEL_RERANKER)
    return (metadata["namespace"], reranker) if reranker else None
