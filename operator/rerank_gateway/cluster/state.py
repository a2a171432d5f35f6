"""Watched objects reduced to the immutable routing table that every request is routed by.

Pure: bytes of Kubernetes objects in, values out. Never keeps anything between calls.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

import msgspec
from rerank_api import names, units, wire
from rerank_api.reranker import Cache, Capture, Reranker, Slo, parse_reranker

from rerank_gateway.slo import Objectives

# What workers take where the Reranker does not say.
_MAX_LENGTH = 512

Key = tuple[str, str]
"""Namespace and name."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A worker that can be asked. ``uid`` is the Pod's: a new Pod on an old address is another endpoint."""

    uid: str
    namespace: str
    reranker: str
    revision: str
    host: str
    port: int = names.WORKER_PORT
    path: str = wire.SCORE_PATH
    """Where it scores: a warm pod that is on loan has several models, each at a path of its own."""
    ready: bool = True
    """False: its container is ready, but its node has not been heard of. Used only where no other is left, for after
    an outage of the API server every node is in that state, and its workers still serve."""


@dataclass(frozen=True, slots=True)
class CachePolicy:
    max_bytes: int
    ttl: float
    """Seconds."""


@dataclass(frozen=True, slots=True)
class MirrorPolicy:
    """What ``stable`` has answered is asked of ``revision`` too, ``percent`` of it."""

    revision: str
    stable: str
    percent: int


@dataclass(frozen=True, slots=True)
class CapturePolicy:
    """Which requests' texts go to the log."""

    percent: float
    """Of the requests, above 0."""
    max_per_minute: int
    max_characters: int
    """Of each text."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What a Reranker says about its requests."""

    namespace: str
    name: str
    max_documents: int = 1000
    max_body_bytes: int = 8 * 2**20
    max_pair_tokens: int = _MAX_LENGTH
    """The most that query and document may have together."""
    chunked: bool = False
    """Long documents are scored in chunks of so many tokens, and not cut."""
    timeout: float = 10.0
    """Seconds, once there is a worker."""
    wake_timeout: float = 300.0
    """Seconds that a request is held while there is no worker at all."""
    queue_limit: int = 1000
    suspended: bool = False
    traffic: tuple[tuple[str, int], ...] = ()
    """Revision and percent of the requests; 0: it gets none, whatever happens to the others."""
    settled_revision: str | None = None
    """The revision that serves and is wanted; None while the two differ. While it sleeps, the next worker is of it."""
    cache: CachePolicy | None = None
    mirror: MirrorPolicy | None = None
    capture: CapturePolicy | None = None
    capacity: float | None = None
    """Tokens/s of one worker, as last measured before now; None: not known."""
    objectives: Objectives = field(default_factory=Objectives)
    maintenance: str = ""
    """Text of the annotation that says until when nobody is to be alarmed; empty: none. Read by slo.maintenance_end."""
    not_ready_reason: str = ""
    """Reason of the condition Ready while it is not True: one CamelCase word, safe to show to clients."""
    created: int = 0
    """Unix time of creation."""


@dataclass(frozen=True, slots=True)
class Route:
    policy: Policy
    endpoints: tuple[Endpoint, ...] = ()
    """Those that users' requests may go to."""
    set_aside: tuple[Endpoint, ...] = ()
    """Of revisions that no user's request may go to: for all but mirrored ones they are not there."""

    @property
    def ready(self) -> bool:
        return any(endpoint.ready for endpoint in self.endpoints)

    @property
    def key(self) -> Key:
        return (self.policy.namespace, self.policy.name)

    @property
    def label(self) -> str:
        return f"{self.policy.namespace}/{self.policy.name}"

    @property
    def revisions(self) -> set[str]:
        """All that have a share, be it 0, or a worker."""
        return {revision for revision, _ in self.policy.traffic} | {endpoint.revision for endpoint in self.endpoints}


@dataclass(frozen=True, slots=True)
class RoutingTable:
    routes: Mapping[Key, Route] = field(default_factory=dict)
    keys_by_name: Mapping[str, tuple[Key, ...]] = field(default_factory=dict)


def build_table(policies: Iterable[Policy], endpoints: Iterable[Endpoint]) -> RoutingTable:
    """Endpoints without a Reranker are left out: nobody can ask for them."""
    by_reranker: defaultdict[Key, list[Endpoint]] = defaultdict(list)
    for endpoint in endpoints:
        by_reranker[endpoint.namespace, endpoint.reranker].append(endpoint)
    routes: dict[Key, Route] = {}
    keys_by_name: defaultdict[str, list[Key]] = defaultdict(list)
    for policy in sorted(policies, key=lambda policy: (policy.namespace, policy.name)):
        key = (policy.namespace, policy.name)
        routes[key] = _route(policy, sorted(by_reranker[key], key=lambda endpoint: endpoint.uid))
        keys_by_name[policy.name].append(key)
    return RoutingTable(routes, {name: tuple(keys) for name, keys in keys_by_name.items()})


def _route(policy: Policy, endpoints: Iterable[Endpoint]) -> Route:
    """Sets the workers aside whose revision has a share of 0. One that has no share at all, as during a rollout that
    the operator has not seen yet, serves where no other is left."""
    shares: defaultdict[str, int] = defaultdict(int)
    for revision, percent in policy.traffic:
        shares[revision] += percent
    closed = {revision for revision, percent in shares.items() if not percent}
    serving: list[Endpoint] = []
    set_aside: list[Endpoint] = []
    for endpoint in endpoints:
        (set_aside if endpoint.revision in closed else serving).append(endpoint)
    return Route(policy, tuple(serving), tuple(set_aside))


class _Condition(msgspec.Struct):
    type: str
    status: str


class _PodMetadata(msgspec.Struct, rename="camel"):
    namespace: str
    name: str
    uid: str = ""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    deletion_timestamp: str | None = None


class _PodStatus(msgspec.Struct):
    podIP: str = ""
    conditions: list[_Condition] = []


class _Pod(msgspec.Struct):
    metadata: _PodMetadata
    status: _PodStatus = msgspec.field(default_factory=_PodStatus)


_pod_decoder = msgspec.json.Decoder(_Pod)


def parse_pod(raw: bytes) -> Endpoint | None:
    """The endpoint that a Pod is; None while it does not serve, is going, or is nobody's worker.

    Raises msgspec.ValidationError when it is no Pod.
    """
    pod = _pod_decoder.decode(raw)
    true = {condition.type for condition in pod.status.conditions if condition.status == "True"}
    # The node controller takes Ready from the Pods of a silent node, and leaves what the kubelet said last.
    serving = "Ready" in true or "ContainersReady" in true
    reranker, revision, path = _serves(pod.metadata)
    if not (serving and reranker and revision and pod.status.podIP) or pod.metadata.deletion_timestamp:
        return None
    return Endpoint(
        uid=pod.metadata.uid or pod.metadata.name,
        namespace=pod.metadata.namespace,
        reranker=reranker,
        revision=revision,
        host=pod.status.podIP,
        path=path,
        ready="Ready" in true,
    )


_NOBODY = ("", "", "")


def _serves(pod: _PodMetadata) -> tuple[str, str, str]:
    """The Reranker, the revision and the path at which it scores for them; empty strings where it serves nobody."""
    labels = pod.labels
    if names.LABEL_WARM_POOL not in labels:
        return labels.get(names.LABEL_RERANKER, ""), labels.get(names.LABEL_REVISION, ""), wire.SCORE_PATH
    reranker, revision = labels.get(names.LABEL_LOANED_TO, ""), labels.get(names.LABEL_LOANED_REVISION, "")
    key = names.model_key(pod.namespace, reranker, revision)
    # A mark of an earlier loan would be answered with another model's scores.
    if pod.annotations.get(names.ANNOTATION_LOAN_SERVING) != key:
        return _NOBODY
    return reranker, revision, f"{wire.MODELS_PATH}/{key}/score"


def parse_policy(raw: bytes) -> Policy:
    """The request policy in a Reranker.

    Raises msgspec.ValidationError or ValueError naming the field when the object does not fit.
    """
    body = msgspec.json.decode(raw)
    reranker = parse_reranker(body)
    requests = reranker.spec.requests
    ready = next((condition for condition in reranker.status.conditions if condition.type == "Ready"), None)
    current = reranker.status.current_revision
    return Policy(
        namespace=reranker.metadata.namespace,
        name=reranker.metadata.name,
        max_documents=requests.max_documents,
        max_body_bytes=units.parse_quantity(requests.max_body_bytes),
        max_pair_tokens=reranker.spec.model.max_length or _MAX_LENGTH,
        chunked=requests.long_documents == "chunk",
        timeout=units.parse_duration(requests.timeout),
        wake_timeout=units.parse_duration(requests.wake_timeout),
        queue_limit=requests.queue_limit,
        suspended=reranker.spec.suspend,
        traffic=tuple((share.revision, share.percent) for share in reranker.status.traffic),
        settled_revision=current if current == reranker.status.updated_revision else None,
        cache=_cache_policy(requests.cache),
        mirror=_mirror_policy(reranker),
        capture=_capture_policy(reranker.spec.observability.capture),
        capacity=reranker.status.scaling.capacity_tokens_per_second if reranker.status.scaling is not None else None,
        objectives=_objectives(reranker.spec.slo),
        maintenance=reranker.metadata.annotations.get(names.ANNOTATION_MAINTENANCE, ""),
        not_ready_reason=ready.reason if ready is not None and ready.status != "True" else "",
        created=_unix_time(body["metadata"].get("creationTimestamp")),
    )


def _cache_policy(cache: Cache | None) -> CachePolicy | None:
    if cache is None:
        return None
    return CachePolicy(units.parse_quantity(cache.max_bytes), units.parse_duration(cache.ttl))


def _objectives(slo: Slo) -> Objectives:
    return Objectives(slo.availability, slo.latency.quantile, units.parse_duration(slo.latency.threshold))


def _mirror_policy(reranker: Reranker) -> MirrorPolicy | None:
    rollout, percent = reranker.status.rollout, reranker.spec.rollout.mirror_percent
    if rollout is None or rollout.phase != "Mirror" or not percent:
        return None
    return MirrorPolicy(rollout.revision, rollout.stable, percent)


def _capture_policy(capture: Capture | None) -> CapturePolicy | None:
    if capture is None or capture.percent <= 0:
        return None
    return CapturePolicy(capture.percent, capture.max_per_minute, capture.max_characters)


def _unix_time(timestamp: str | None) -> int:
    return int(datetime.fromisoformat(timestamp).timestamp()) if timestamp else 0
