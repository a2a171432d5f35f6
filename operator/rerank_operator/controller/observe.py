"""From stored objects to the values that a plan is made of. Reads the store only: no requests, no clock."""

from typing import Any

import msgspec
from rerank_api import names
from rerank_api.reranker import Metadata, QualityStatus, Reranker, RolloutStatus, parse_reranker
from rerank_api.revision import RevisionSpec, revision_from_data

from rerank_operator.controller.kinds import BUDGETS, CONTROLLER_REVISIONS, DEPLOYMENTS, PODS, RERANKERS, Key
from rerank_operator.controller.store import Store
from rerank_operator.controller.times import parse_time


class Termination(msgspec.Struct, frozen=True):
    """How a container ended, and the last words it left."""

    container: str
    exit_code: int
    reason: str = ""
    message: str = ""


class Waiting(msgspec.Struct, frozen=True):
    """Why the kubelet does not run a container."""

    container: str
    reason: str
    message: str = ""


class PodState(msgspec.Struct, frozen=True):
    name: str
    revision: str
    uid: str = ""
    address: str = ""
    """Empty while it has none."""
    ready: bool = False
    ready_since: float = 0.0
    """0: it is not ready, or nobody says since when."""
    created: float = 0.0
    deletion_cost: str | None = None
    """As marked: who costs less goes first."""
    unheard: bool = False
    """Its node does not report, so Ready was taken from it; the kubelet's last word was that it is ready."""
    terminating: bool = False
    ends_by: float = 0.0
    """When the time that it was given to end is over."""
    finished: bool = False
    """Succeeded, failed or evicted: it never runs again, and its ReplicaSet makes another."""
    scheduled: bool = True
    unschedulable: str | None = None
    """The scheduler's words."""
    unschedulable_since: float = 0.0
    waiting: Waiting | None = None
    termination: Termination | None = None
    restarts: int = 0

    @property
    def counts(self) -> bool:
        """A worker that is, or is going to be."""
        return not self.terminating and not self.finished


class DeploymentState(msgspec.Struct, frozen=True):
    name: str
    revision: str
    uid: str
    resource_version: str
    body: dict[str, Any]
    replicas: int
    """Asked for."""
    existing: int = 0
    settled: bool = True
    """The Deployment controller has looked at the latest spec."""
    updated: bool = True
    """All its pods are made of the latest template."""
    lent_to: str | None = None
    fits: int | None = None
    creation_failure: str | None = None
    """The API server's words about pods that it refused (quota, Pod Security)."""
    stalled: str | None = None
    resources: frozenset[str] = frozenset()
    """Names of the resources that its pods hold."""


class RevisionState(msgspec.Struct, frozen=True):
    name: str
    revision: str
    number: int
    uid: str
    resource_version: str
    spec: RevisionSpec | None
    """None: stored by a version whose form is no longer understood."""
    notes: dict[str, str] = {}
    """Annotations of ours: what its rollouts left."""


class Observed(msgspec.Struct, frozen=True):
    """Everything known about one Reranker."""

    metadata: Metadata
    reranker: Reranker | None
    invalid: str | None = None
    """Why ``reranker`` is None."""
    status: dict[str, Any] = {}
    rollout: RolloutStatus | None = None
    """As the status says."""
    quality: QualityStatus | None = None
    """As the status says."""
    deployments: tuple[DeploymentState, ...] = ()
    revisions: tuple[RevisionState, ...] = ()
    """Newest first."""
    pods: tuple[PodState, ...] = ()
    budget: dict[str, Any] | None = None


def observe(store: Store, key: Key) -> Observed | None:
    """None: there is no such Reranker (garbage collection takes care of its children)."""
    body = store.get(RERANKERS, *key)
    if body is None:
        return None
    metadata = msgspec.convert(body["metadata"], Metadata)
    try:
        reranker, invalid = parse_reranker(body), None
    except msgspec.ValidationError as error:
        reranker, invalid = None, f"the stored object does not fit this version of the operator: {error}"
    revisions = [_revision(b) for b in store.children(CONTROLLER_REVISIONS, key) if _owned(b, metadata.uid)]
    budget = store.get(BUDGETS, *key)
    return Observed(
        metadata=metadata,
        reranker=reranker,
        invalid=invalid,
        status=body.get("status") or {},
        rollout=_rollout(body.get("status") or {}),
        quality=_quality(body.get("status") or {}),
        deployments=tuple(deployment_state(b) for b in store.children(DEPLOYMENTS, key) if _owned(b, metadata.uid)),
        revisions=tuple(sorted(revisions, key=lambda r: -r.number)),
        pods=tuple(pod_state(b) for b in store.children(PODS, key) if _is_own(b)),
        budget=budget if budget and _owned(budget, metadata.uid) else None,
    )


def _owned(body: dict[str, Any], uid: str) -> bool:
    """Children of a deleted namesake wait for garbage collection: they are not ours."""
    return any(o["uid"] == uid and o.get("controller") for o in body["metadata"].get("ownerReferences", ()))


def _is_own(pod: dict[str, Any]) -> bool:
    """Warm pods that are lent to it are the pool's."""
    return names.LABEL_RERANKER in pod["metadata"].get("labels", {})


def _revision_label(body: dict[str, Any]) -> str:
    return body["metadata"].get("labels", {}).get(names.LABEL_REVISION, "")


def _revision(body: dict[str, Any]) -> RevisionState:
    try:
        spec = revision_from_data(body.get("data"))
    except msgspec.ValidationError:
        spec = None
    metadata = body["metadata"]
    annotations = metadata.get("annotations", {})
    return RevisionState(
        name=metadata["name"],
        revision=_revision_label(body),
        number=body["revision"],
        uid=metadata["uid"],
        resource_version=metadata["resourceVersion"],
        spec=spec,
        notes={name: annotations[name] for name in _NOTES if name in annotations},
    )


_NOTES = (names.ANNOTATION_EVIDENCE, names.ANNOTATION_OUTCOME)


def _rollout(status: dict[str, Any]) -> RolloutStatus | None:
    """None also where it was written in another form: the rollout begins anew then."""
    try:
        found = msgspec.convert(status["rollout"], RolloutStatus) if status.get("rollout") else None
    except msgspec.ValidationError:
        return None
    return found if found is not None and found.started else None  # what is said by hand names it by that


def _quality(status: dict[str, Any]) -> QualityStatus | None:
    """None also where it was written in another form: it is measured anew then."""
    try:
        return msgspec.convert(status["quality"], QualityStatus) if status.get("quality") else None
    except msgspec.ValidationError:
        return None


def deployment_state(body: dict[str, Any]) -> DeploymentState:
    metadata, spec, status = body["metadata"], body["spec"], body.get("status", {})
    conditions = {c["type"]: c for c in status.get("conditions", ())}
    annotations = metadata.get("annotations", {})
    fits = annotations.get(names.ANNOTATION_FITS, "")
    failure, progress = conditions.get("ReplicaFailure"), conditions.get("Progressing")
    stalled = progress and progress["status"] == "False" and progress.get("reason") == "ProgressDeadlineExceeded"
    settled = status.get("observedGeneration", 0) >= metadata.get("generation", 0)
    return DeploymentState(
        name=metadata["name"],
        revision=_revision_label(body),
        uid=metadata["uid"],
        resource_version=metadata["resourceVersion"],
        body=body,
        replicas=spec.get("replicas", 1),
        existing=status.get("replicas", 0),
        settled=settled,
        updated=settled and status.get("updatedReplicas", 0) == status.get("replicas", 0),
        lent_to=annotations.get(names.ANNOTATION_LENT_TO),
        fits=int(fits) if fits.isdecimal() else None,
        creation_failure=failure.get("message", "") if failure and failure["status"] == "True" else None,
        stalled=progress.get("message", "") if progress and stalled else None,
        resources=frozenset(
            name
            for container in spec["template"]["spec"]["containers"]
            for values in (container.get("resources") or {}).values()
            if isinstance(values, dict)
            for name in values
        ),
    )


def pod_state(body: dict[str, Any]) -> PodState:
    metadata, status = body["metadata"], body.get("status", {})
    conditions = {c["type"]: c for c in status.get("conditions", ())}
    scheduled = conditions.get("PodScheduled", {})
    refused = scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable"
    containers = [*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())]
    unready = [c for c in containers if not c.get("ready")]
    ready = conditions.get("Ready", {}).get("status") == "True"
    return PodState(
        name=metadata["name"],
        revision=_revision_label(body),
        uid=metadata.get("uid", ""),
        address=status.get("podIP", ""),
        ready=ready,
        ready_since=_time_of(conditions["Ready"], "lastTransitionTime") if ready else 0.0,
        created=_time_of(metadata, "creationTimestamp"),
        deletion_cost=metadata.get("annotations", {}).get(names.ANNOTATION_DELETION_COST),
        unheard=not ready and conditions.get("ContainersReady", {}).get("status") == "True",
        terminating="deletionTimestamp" in metadata,
        ends_by=parse_time(metadata["deletionTimestamp"]) if "deletionTimestamp" in metadata else 0.0,
        finished=status.get("phase") in ("Succeeded", "Failed"),
        scheduled=scheduled.get("status") == "True",
        unschedulable=scheduled.get("message", "") if refused else None,
        unschedulable_since=parse_time(scheduled["lastTransitionTime"]) if refused else 0.0,
        waiting=_first(_waiting(c) for c in unready),
        termination=_first(_termination(c) for c in unready),
        restarts=max((c.get("restartCount", 0) for c in unready), default=0),
    )


def _waiting(container: dict[str, Any]) -> Waiting | None:
    waiting = container.get("state", {}).get("waiting")
    return waiting and Waiting(container["name"], waiting.get("reason", ""), waiting.get("message", ""))


def _termination(container: dict[str, Any]) -> Termination | None:
    for state in (container.get("state", {}), container.get("lastState", {})):
        ended = state.get("terminated")
        if ended and ended["exitCode"] != 0:
            words = (ended.get("message") or "").strip()
            return Termination(container["name"], ended["exitCode"], ended.get("reason", ""), words)
    return None


def _first(found: Any) -> Any:
    return next((one for one in found if one is not None), None)


def _time_of(fields: dict[str, Any], name: str) -> float:
    return parse_time(fields[name]) if fields.get(name) else 0.0
