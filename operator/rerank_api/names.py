"""Names that users, objects and every part of the system rely on: API group, labels, annotations, ports, paths.

A name is written once, here. Changing one breaks running fleets: add, never rename.
"""

GROUP = "rerank.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "Reranker"
PLURAL = "rerankers"

FIELD_MANAGER = "rerank-operator"
"""The one server-side-apply field manager of everything the operator writes."""

# Labels of child objects (Deployment, Pod, ControllerRevision, PodDisruptionBudget).
LABEL_RERANKER = f"{GROUP}/reranker"
LABEL_REVISION = f"{GROUP}/revision"
LABEL_NAME = "app.kubernetes.io/name"
LABEL_INSTANCE = "app.kubernetes.io/instance"
LABEL_COMPONENT = "app.kubernetes.io/component"
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"

# Annotations of Deployments that the operator writes for itself.
ANNOTATION_APPLIED = f"{GROUP}/applied"
"""Digest of the manifest that was applied last: tells a change by others from a change of ours."""
ANNOTATION_LENT_TO = f"{GROUP}/lent-to"
"""The newer revision for which one replica of this one has been freed."""
ANNOTATION_FITS = f"{GROUP}/fits"
"""Workers of all revisions together that there was room for at that time."""

APP_NAME = "rerank"
COMPONENT_WORKER = "worker"
MANAGED_BY = "rerank-operator"

WORKER_CONTAINER = "worker"
WORKER_PORT = 8080
WORKER_PORT_NAME = "http"

# Everything a worker pod mounts lies under /run, so that its root file system can be read-only.
MODEL_MOUNT = "/run/rerank/model"
CACHE_MOUNT = "/run/rerank/cache"
TERMINATION_LOG = "/run/rerank/termination-log"

# Environment of a worker pod.
ENV_WORKER_CONFIG = "RERANK_WORKER_CONFIG"
ENV_POD_IP = "POD_IP"
ENV_TERMINATION_LOG = "RERANK_TERMINATION_LOG"
