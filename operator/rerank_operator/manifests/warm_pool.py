"""The Deployment of a warm pool: workers that stand by without a model of their own.

Lent pods stay in it: a claim changes no label of the selector, so no pod is made in place of one that is lent, and a
new one where a lent one dies. Nothing here depends on Rerankers: that they come and go must not renew the pods.
"""

import hashlib
from typing import Any

from rerank_api import names
from rerank_api.reranker import Metadata
from rerank_api.warm_pool import WarmPoolSpec

from rerank_operator.manifests.common import owner_reference
from rerank_operator.manifests.deployment import workers
from rerank_operator.manifests.pod_template import (
    COMMAND,
    DRAIN_SECONDS,
    BadSpec,
    WorkerImage,
    check_overlay,
    merge,
    worker_container,
    worker_pod,
)

ANNOTATION_DEFAULTS = f"{names.GROUP}/defaults"
"""Of the pods: what the pool gives Rerankers that leave it open."""
LONGEST_REQUEST_SECONDS = 600
"""The most that ``spec.requests.timeout`` of any Reranker can be. A pod that has nothing left to do ends sooner."""


def warm_pool_deployment(owner: Metadata, spec: WarmPoolSpec, token: str, worker: WorkerImage) -> dict[str, Any]:
    """``token``: of the pool's admin calls; only its checksum is in the manifest. Raises BadSpec."""
    variable = {"name": names.ENV_ADMIN_TOKEN_SHA256, "value": hashlib.sha256(token.encode()).hexdigest()}
    command = [*COMMAND, "--standby", "--max-models", str(spec.max_models_per_pod)]
    container = worker_container(worker, command, variable, spec.resources)
    own = worker_pod(labels(owner.name), container, [], LONGEST_REQUEST_SECONDS + DRAIN_SECONDS)
    if (spec.device, spec.precision) != ("auto", "auto"):
        # Loads bring them; models that were loaded with others go with the pods.
        own["metadata"]["annotations"] = {ANNOTATION_DEFAULTS: f"device={spec.device},precision={spec.precision}"}
    check_overlay(spec.pod_template, own, "spec")
    _check_metadata(spec.pod_template.get("metadata", {}))
    template = merge(own, spec.pod_template)
    metadata = {
        "name": deployment_name(owner.name),
        "namespace": owner.namespace,
        "labels": labels(owner.name),
        "ownerReferences": [owner_reference(owner, names.WARM_POOL_KIND)],
    }
    selected = {names.LABEL_WARM_POOL: owner.name, names.LABEL_COMPONENT: names.COMPONENT_WORKER}
    return workers(metadata, spec.size, selected, template)


def deployment_name(pool: str) -> str:
    """No Deployment of a Reranker is called so: their names end in a hash of ten letters."""
    return f"{pool}-warm"


def labels(pool: str) -> dict[str, str]:
    """Of the Deployment and its pods. Neither a Reranker nor a revision: no selector of a Reranker finds them."""
    return {
        names.LABEL_NAME: names.APP_NAME,
        names.LABEL_COMPONENT: names.COMPONENT_WORKER,
        names.LABEL_MANAGED_BY: names.MANAGED_BY,
        names.LABEL_WARM_POOL: pool,
    }


def pod_selector(pool: str) -> str:
    """The label selector of all pods of a pool, as text."""
    return f"{names.LABEL_WARM_POOL}={pool},{names.LABEL_COMPONENT}={names.COMPONENT_WORKER}"


def _check_metadata(metadata: dict[str, Any]) -> None:
    """A pod that says of itself to whom it is lent would serve requests without a claim."""
    for part in ("labels", "annotations"):
        for key in metadata.get(part) or {}:
            if key.startswith(f"{names.GROUP}/") or key == names.ANNOTATION_DELETION_COST:
                raise BadSpec(f"spec.podTemplate.metadata.{part}.{key} may not be set: the operator sets it")
