"""Names that users, objects and every part of the system rely on: API group, labels, annotations, ports, paths.

A name is written once, here. Changing one breaks running fleets: add, never rename.
"""

GROUP = "rerank.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "Reranker"
PLURAL = "rerankers"
WARM_POOL_KIND = "WarmPool"
WARM_POOL_PLURAL = "warmpools"

FIELD_MANAGER = "rerank-operator"
"""The one server-side-apply field manager of everything the operator writes."""

# Labels of child objects (Deployment, Pod, ControllerRevision, PodDisruptionBudget).
LABEL_RERANKER = f"{GROUP}/reranker"
LABEL_REVISION = f"{GROUP}/revision"
LABEL_NAME = "app.kubernetes.io/name"
LABEL_INSTANCE = "app.kubernetes.io/instance"
LABEL_COMPONENT = "app.kubernetes.io/component"
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"

# Labels of a WarmPool's Deployment and Pods. A warm pod, lent or not, has neither LABEL_RERANKER nor LABEL_REVISION, so
# that no selector and no disruption budget of a Reranker finds it.
LABEL_WARM_POOL = f"{GROUP}/warm-pool"
"""The pool's name. Part of the selector, so it never changes."""
LABEL_LOANED_TO = f"{GROUP}/loaned-to"
"""Name of the Reranker of the same namespace that has this warm pod. The claim sets it, the release removes it."""
LABEL_LOANED_REVISION = f"{GROUP}/loaned-revision"
"""The revision that it was claimed for."""

# Annotations of lent warm pods.
ANNOTATION_LOANED_AT = f"{GROUP}/loaned-at"
"""When it was claimed: RFC 3339 with microseconds."""
ANNOTATION_LOAN_SERVING = f"{GROUP}/loan-serving"
"""The model's key in that worker, set when the worker has it ready: its presence makes the pod an endpoint."""

# Annotations of Deployments that the operator writes for itself.
ANNOTATION_APPLIED = f"{GROUP}/applied"
"""Digest of the manifest that was applied last: tells a change by others from a change of ours."""
ANNOTATION_LENT_TO = f"{GROUP}/lent-to"
"""The newer revision for which one replica of this one has been freed."""
ANNOTATION_FITS = f"{GROUP}/fits"
"""Workers of all revisions together that there was room for at that time."""

# Annotations of the ControllerRevision of a canary.
ANNOTATION_EVIDENCE = f"{GROUP}/evidence"
"""What the judge of its rollout must remember over a restart of the operator."""
ANNOTATION_OUTCOME = f"{GROUP}/outcome"
"""How its last rollout ended, and the figures: JSON, an outcome.Outcome."""

# Annotations of Rerankers that people write.
ANNOTATION_PROMOTE = f"{GROUP}/promote"
"""status.rollout.started of the rollout that is promoted without the gates that are left; no other one is meant."""
ANNOTATION_ABORT = f"{GROUP}/abort"
"""The same of a rollout that is taken back."""
ANNOTATION_RETRY = f"{GROUP}/retry"
"""RFC 3339: a revision that was rejected before then is tried again."""
ANNOTATION_ROLLOUT_PAUSED = f"{GROUP}/rollout-paused"
"""The value true: a canary does not go on; it still goes back where it is worse."""
ANNOTATION_SCALING_PAUSED = f"{GROUP}/scaling-paused"
"""The value true: replicas and loaners stay as they are, whatever is demanded."""
ANNOTATION_MAINTENANCE = f"{GROUP}/maintenance-until"
"""RFC 3339: until then its alerts are silent."""

# Kubernetes' own.
ANNOTATION_DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
"""Of two pods of one Deployment, the one with the lower cost goes first when there are to be fewer."""

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
ENV_ADMIN_TOKEN_SHA256 = "RERANK_ADMIN_TOKEN_SHA256"  # noqa: S105 (a name)
"""SHA-256, in hex, of the bearer token that a warm pod's admin calls need: the pod never has the token itself."""

GATEWAY_ADMIN_PORT_NAME = "metrics"
"""The gateways' port of metrics, health and the demand stream, as their headless Service and its slices name it."""


def model_key(namespace: str, reranker: str, revision: str) -> str:
    """The key of a Reranker's model in a worker that holds several: the last part of wire.MODELS_PATH."""
    return f"{namespace}.{reranker}.{revision}"
