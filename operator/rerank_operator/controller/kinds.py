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

RERANKERS = Kind(names.KIND, names.GROUP, names.VERSION, names.PLURAL)
WARM_POOLS = Kind(names.WARM_POOL_KIND, names.GROUP, names.VERSION, names.WARM_POOL_PLURAL)
DEPLOYMENTS = Kind("Deployment", "apps", "v1", "deployments", _MANAGED)
CONTROLLER_REVISIONS = Kind("ControllerRevision", "apps", "v1", "controllerrevisions", _MANAGED)
BUDGETS = Kind("PodDisruptionBudget", "policy", "v1", "poddisruptionbudgets", _MANAGED)
PODS = Kind("Pod", "", "v1", "pods", f"{_MANAGED},{names.LABEL_COMPONENT}={names.COMPONENT_WORKER}")
EVENTS = Kind("Event", "events.k8s.io", "v1", "events")
CONFIG_MAPS = Kind("ConfigMap", "", "v1", "configmaps")
SERVICES = Kind("Service", "", "v1", "services")
LEASES = Kind("Lease", "coordination.k8s.io", "v1", "leases")

WATCHED = (RERANKERS, WARM_POOLS, DEPLOYMENTS, CONTROLLER_REVISIONS, BUDGETS, PODS)

Key = tuple[str, str]
"""Namespace and name of a Reranker, or of a WarmPool."""


def key_of(kind: Kind, body: dict[str, Any]) -> Key | None:
    """The Reranker that an object concerns, for a warm pod the one that it is lent to; None: there is none."""
    metadata = body["metadata"]
    if kind is RERANKERS:
        return metadata["namespace"], metadata["name"]
    labels = metadata.get("labels", {})
    reranker = labels.get(names.LABEL_RERANKER) or labels.get(names.LABEL_LOANED_TO)
    return (metadata["namespace"], reranker) if reranker else None


def pool_of(kind: Kind, body: dict[str, Any]) -> Key | None:
    """The WarmPool that an object concerns: its own children, and Rerankers that name it; None: there is none."""
    metadata = body["metadata"]
    if kind is WARM_POOLS:
        return metadata["namespace"], metadata["name"]
    if kind is RERANKERS:
        # As stored, whatever it is: who reads it as a Reranker says what is wrong with it.
        scaling = body.get("spec", {}).get("scaling") if isinstance(body.get("spec"), dict) else None
        pool = scaling.get("warmPool") if isinstance(scaling, dict) else None
    else:
        pool = metadata.get("labels", {}).get(names.LABEL_WARM_POOL)
    return (metadata["namespace"], pool) if isinstance(pool, str) and pool else None
