"""The Reranker resource as typed values, read from what the API server returns.

The CRD under ``crds/`` is the source of truth for what is allowed; defaults here are the CRD's own, so that an object
stored by an older schema reads the same. A test holds the two together. Nothing here decides anything.
"""

from typing import Any, Literal

import msgspec

Device = Literal["auto", "cuda", "cpu"]
Precision = Literal["auto", "float32", "float16", "bfloat16", "int8", "float8"]
Backend = Literal["auto", "torch", "onnx", "openvino"]
Compile = Literal["auto", "never", "always"]
Activation = Literal["auto", "sigmoid", "identity"]
LongDocuments = Literal["truncate", "chunk", "reject"]
ChunkPooling = Literal["max", "mean"]
ConditionStatus = Literal["True", "False", "Unknown"]
ScalingMode = Literal["auto", "recommend"]
ScalingState = Literal["Auto", "Recommend", "Paused", "ByHand", "Suspended"]
RolloutStrategy = Literal["Replace", "Canary", "ABTest"]
WhenFull = Literal["wait", "replaceOne", "borrow"]
RolloutPhase = Literal["Starting", "Golden", "Mirror", "Traffic", "Promoting", "Promoted", "RolledBack", "Cancelled"]
CheckVerdict = Literal["pass", "fail", "hold"]


class _Resource(msgspec.Struct, rename="camel", frozen=True, omit_defaults=True):
    """Camel-case on the wire, snake-case in code; what a newer schema adds is ignored by older code."""


class Model(_Resource, frozen=True):
    """Which weights: ``uri`` (hf://, file:// or pvc://), the pinned ``revision`` and how scores come out."""

    uri: str
    revision: str | None = None
    allow_floating_revision: bool = False
    sha256: dict[str, str] = {}
    max_length: int | None = None
    activation: Activation = "auto"
    temperature: float = 1.0
    trust_remote_code: bool = False


class Runtime(_Resource, frozen=True):
    """What a worker runs on."""

    device: Device = "auto"
    precision: Precision = "auto"
    backend: Backend = "auto"
    compile: Compile = "auto"
    quality_floor: float = 0.99
    resources: dict[str, dict[str, str | int]] = {}
    pod_template: dict[str, Any] = {}


class Batching(_Resource, frozen=True):
    """How a worker groups pairs; ``max_delay`` is a duration, the others count tokens."""

    max_delay: str = "5ms"
    length_bucket: int = 16
    max_batch_tokens: int | None = None


class Cache(_Resource, frozen=True):
    """Scores that each gateway keeps: at most ``max_bytes`` of them (a quantity), each for ``ttl`` (a duration)."""

    max_bytes: str | int = "64Mi"
    ttl: str = "10m"


class Requests(_Resource, frozen=True):
    """What one client request may ask for."""

    max_documents: int = 1000
    max_body_bytes: str | int = "8Mi"
    timeout: str = "10s"
    """A duration; counts from arrival, or from when there is a worker again where there was none."""
    wake_timeout: str = "5m"
    """A duration: how long a request is held while no worker is ready at all."""
    queue_limit: int = 1000
    long_documents: LongDocuments = "truncate"
    chunk_pooling: ChunkPooling = "max"
    cache: Cache | None = None
    """None: nothing is kept."""


class ScalingSchedule(_Resource, frozen=True):
    """From each ``start`` to the next ``end`` (cron, five fields, in ``timezone``) at least ``min_replicas``.

    The schema checks the shape only: whether a time zone exists and an expression ever comes, the operator tells.
    """

    name: str
    start: str
    end: str
    min_replicas: int
    timezone: str = "UTC"


class Scaling(_Resource, frozen=True):
    """How many workers there are on demand; ``target_queue_time`` and ``idle_timeout`` are durations."""

    min_replicas: int = 0
    max_replicas: int = 8
    target_queue_depth: float = 4.0
    """Waiting requests per worker that are no backlog yet."""
    target_queue_time: str = "20ms"
    idle_timeout: str = "5m"
    """Since the last request ended, until the last worker goes."""
    schedules: list[ScalingSchedule] = []
    warm_pool: str | None = None
    """Name of a WarmPool of the same namespace."""
    mode: ScalingMode = "auto"


class LatencyObjective(_Resource, frozen=True):
    """A share ``quantile`` of the requests is answered within ``threshold``, a duration, from their arrival on."""

    quantile: float = 0.95
    threshold: str = "150ms"


class QualityObjective(_Resource, frozen=True):
    """``rollout.golden_set.metric`` of the revision that serves is at least ``minimum``, measured every ``interval``, a
    duration."""

    minimum: float
    interval: str = "1h"


class Slo(_Resource, frozen=True):
    """What the service promises; workers are counted for its latency."""

    availability: float = 0.999
    """The share of the requests that must not fail."""
    latency: LatencyObjective = LatencyObjective()
    quality: QualityObjective | None = None
    """None: nobody measures it."""


class Cost(_Resource, frozen=True):
    replica_hour: float
    """The price of one worker for an hour, in the user's currency."""


class Capture(_Resource, frozen=True):
    """Which requests' texts gateways write to their log, redacted."""

    percent: float = 1.0
    """Of the requests; 0: none."""
    max_per_minute: int = 10
    """Requests, of each gateway."""
    max_characters: int = 500
    """Of each query and each document."""


class Observability(_Resource, frozen=True):
    """What is told about requests beside metrics."""

    capture: Capture | None = None
    """None: no text of a request is written."""


class RolloutLimits(_Resource, frozen=True):
    """What is worse than can be promoted. Each must be excluded by evidence."""

    latency_increase: float = 0.2
    """Share by which the 95th percentile may be longer."""
    error_increase: float = 0.01
    """Difference of the shares of requests that fail."""
    quality_drop: float = 0.02
    """Of the golden set's measure, in the mean over its queries."""
    rank_agreement: float | None = None
    """Least mean Kendall's tau between both revisions' rankings of mirrored requests; None: only told."""


class GoldenSetSource(_Resource, frozen=True):
    """Where the golden set is: a ConfigMap of the same namespace."""

    config_map: str
    key: str | None = None
    """None: the only one that it has."""
    metric: str = "ndcg@10"
    """ndcg@K, accuracy@K or mrr."""


class PrometheusQuery(_Resource, frozen=True):
    """A metric of the user's own: ``query`` (PromQL, in which {revision} stands for the revision) gives one value for
    each revision every ``interval``, a duration. Exactly one of the limits is given, as a share of stable's value."""

    name: str
    query: str
    max_decrease: float | None = None
    max_increase: float | None = None
    interval: str = "1m"


class Rollout(_Resource, frozen=True):
    """How a new revision takes over; durations are strings."""

    strategy: RolloutStrategy = "Replace"
    steps: tuple[int, ...] = (1, 5, 25, 50)
    """Percent of the users' requests, ascending."""
    step_requests: int = 20
    """Of users that the canary answers before its next step."""
    step_duration: str = "1m"
    """That a step takes at least."""
    mirror_percent: int = 10
    error_probability: float = 0.01
    """That a canary which is no worse is taken back, in a whole rollout."""
    limits: RolloutLimits = RolloutLimits()
    golden_set: GoldenSetSource | None = None
    prometheus: list[PrometheusQuery] = []
    when_full: WhenFull = "wait"
    deadline: str = "24h"
    """After which a canary that is not promoted waits for a person."""
    paused: bool = False


class RerankerSpec(_Resource, frozen=True):
    model: Model
    runtime: Runtime = Runtime()
    batching: Batching = Batching()
    requests: Requests = Requests()
    scaling: Scaling = Scaling()
    slo: Slo = Slo()
    cost: Cost | None = None
    """None: only the time that workers ran is told."""
    observability: Observability = Observability()
    rollout: Rollout = Rollout()
    replicas: int | None = None
    """That many, by hand; None: on demand."""
    suspend: bool = False


class Condition(_Resource, frozen=True):
    """A Kubernetes condition; ``last_transition_time`` is RFC 3339 in UTC."""

    type: str
    status: ConditionStatus
    reason: str
    message: str
    observed_generation: int
    last_transition_time: str


class TrafficShare(_Resource, frozen=True):
    """``percent`` of requests that go to the workers of ``revision`` (the value of the revision label).

    0 where it must get none of a user's, whatever happens to the others: a canary before its first step.
    """

    revision: str
    percent: int


class RejectedRevision(_Resource, frozen=True):
    """A revision that could not be served and was taken back; it is not tried again until the spec changes."""

    revision: str
    reason: str
    message: str
    time: str = ""
    """RFC 3339, UTC; empty where an older operator has written it."""


class RolloutCheck(_Resource, frozen=True):
    """What one gate or metric of a canary says: load, golden, mirror, errors, latency, or a query's name."""

    name: str
    verdict: CheckVerdict
    message: str
    """With the figures."""


class DifferedRequest(_Resource, frozen=True):
    """A mirrored request, and how the answers of canary and stable differ."""

    request_id: str
    agreement: float | None = None
    """Kendall's tau-b; None: a ranking had no order."""
    drift: float | None = None
    """Largest difference of a document's two scores."""


class RolloutStatus(_Resource, frozen=True):
    """The rollout that goes on, or the last one."""

    revision: str
    """The canary."""
    stable: str
    phase: RolloutPhase
    message: str = ""
    percent: int = 0
    """Of the users' requests that the canary is to get now."""
    step: int = 0
    """Steps that are passed."""
    requests: int = 0
    """Of users that the canary has answered, as far as gateways have told."""
    borrowed: int = 0
    """Pods that its WarmPool does without meanwhile, to make room for the canary."""
    paused: str = ""
    """Why it does not go on; empty where it does."""
    checks: list[RolloutCheck] = []
    differed: list[DifferedRequest] = []
    """The mirrored requests that differed most, worst first; few."""
    started: str = ""
    """RFC 3339, UTC; as the two below."""
    phase_started: str = ""
    ended: str = ""


class QualityStatus(_Resource, frozen=True):
    """How the golden set was ranked last, for slo.quality; measures are means over its queries, 0 to 1."""

    revision: str
    time: str
    """RFC 3339, UTC."""
    metric: str
    """As rollout.golden_set.metric said then."""
    queries: int
    ndcg: float
    accuracy: float
    mrr: float
    brier: float | None = None
    """None, as ``ece``: scores are no probabilities."""
    ece: float | None = None
    digest: str = ""
    """Of the golden set; empty: an earlier version ranked it."""


class ScalingStatus(_Resource, frozen=True):
    """Why there are as many workers as there are, and what must survive a restart of the operator."""

    mode: ScalingState
    desired_replicas: int
    """Workers of its own that are wanted; with mode Recommend and Paused it is what would be, not what is."""
    desired_loaners: int = 0
    """Warm pods that are wanted."""
    loaners: int = 0
    """Warm pods that serve it now."""
    reason: str = ""
    message: str = ""
    queued_requests: int | None = None
    """None: no gateway has told."""
    capacity_tokens_per_second: float | None = None
    """Of one worker, as measured; None: not known yet."""
    start_seconds: float | None = None
    """How long one of its own workers took to become ready, as last seen."""
    wake_seconds: float | None = None
    """The same of a warm pod, from the claim on."""
    last_request_time: str | None = None
    """RFC 3339, UTC."""
    memory: str | None = None
    """The scaler's own: opaque."""


class RerankerStatus(_Resource, frozen=True):
    observed_generation: int = 0
    replicas: int = 0
    ready_replicas: int = 0
    selector: str = ""
    current_revision: str | None = None
    """The revision that serves."""
    updated_revision: str | None = None
    """The revision that the spec asks for."""
    rejected_revision: RejectedRevision | None = None
    rollout: RolloutStatus | None = None
    quality: QualityStatus | None = None
    """None: it has not been ranked yet, or is not to be."""
    traffic: list[TrafficShare] = []
    scaling: ScalingStatus | None = None
    conditions: list[Condition] = []


class Metadata(_Resource, frozen=True):
    name: str
    namespace: str
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    deletion_timestamp: str | None = None


class Reranker(_Resource, frozen=True):
    metadata: Metadata
    spec: RerankerSpec
    status: RerankerStatus = RerankerStatus()


def parse_reranker(body: Any) -> Reranker:
    """The typed Reranker in ``body``, the mapping that the API server returned.

    Raises msgspec.ValidationError naming the field when the object does not fit (it was stored under another schema).
    """
    return msgspec.convert(body, Reranker)
