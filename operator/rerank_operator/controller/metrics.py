"""Every Prometheus metric of the operator. Labels are bounded: kinds, results, reasons, and Rerankers that exist.

What bears a Reranker's name is removed with it, and when another operator leads.
"""

from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics

disable_created_metrics()  # a second series for each counter that nobody reads

RECONCILES = Counter("rerank_operator_reconciles", "Reconciles of one Reranker, by how they ended.", ["result"])
RECONCILE_SECONDS = Histogram(
    "rerank_operator_reconcile_duration_seconds",
    "Time that one reconcile takes.",
    buckets=(0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
QUEUE_DEPTH = Gauge("rerank_operator_queue_depth", "Rerankers that wait for a reconcile now.")
QUEUE_SECONDS = Histogram(
    "rerank_operator_queue_latency_seconds",
    "Time that a Reranker waits for its reconcile, from when it is due.",
    buckets=(0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300),
)
LEADER = Gauge("rerank_operator_leader", "1 while this process may write.")
LEADER_CHANGES = Counter("rerank_operator_leader_changes", "Times that this process won or lost leadership.", ["to"])
API_ERRORS = Counter("rerank_operator_api_errors", "Requests that the API server refused or left.", ["method", "code"])
WRITES = Counter("rerank_operator_writes", "Objects written, by what for.", ["kind", "why"])
ROLLOUTS = Counter("rerank_operator_rollouts", "Rollouts, by how they stand.", ["result"])
DRIFT = Counter("rerank_operator_drift_repairs", "Objects put back after someone else changed them.", ["kind"])
RESYNCS = Counter("rerank_operator_resyncs", "Full lists of all objects, by how they ended.", ["result"])
MISSED = Counter("rerank_operator_missed_changes", "Rerankers whose objects a list corrected: events not seen.")
RERANKERS = Gauge("rerank_operator_rerankers", "Rerankers, by the status of their condition Ready.", ["ready"])
EVENTS_DROPPED = Counter("rerank_operator_events_dropped", "Events not written: too many, or refused.", ["reason"])
WATCH_RESTARTS = Counter("rerank_operator_watch_restarts", "Times that all watches were started anew after a failure.")

GATEWAYS = Gauge("rerank_operator_gateways", "Gateways, by whether their stream of demand is heard now.", ["stream"])
DECISIONS = Counter("rerank_operator_scaling_decisions", "Scaling decisions that differ from the last one.", ["reason"])
DECISION_SECONDS = Histogram(
    "rerank_operator_scaling_decision_seconds",
    "Time from when a gateway tells of demand (its clock) to when the changed replicas are written.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
_RERANKER = ["namespace", "reranker"]

DESIRED_REPLICAS = Gauge(
    "rerank_operator_desired_replicas", "Workers of its own that a Reranker should have.", _RERANKER
)
MINIMUM_REPLICAS = Gauge(
    "rerank_operator_minimum_replicas", "The fewest workers that minReplicas and schedules ask for now.", _RERANKER
)
LOANERS = Gauge("rerank_operator_loaners", "Warm pods that serve a Reranker.", _RERANKER)
QUEUED = Gauge("rerank_operator_queued_requests", "Requests that wait at the gateways, as last told.", _RERANKER)
CANARY_PERCENT = Gauge(
    "rerank_operator_canary_percent", "Share of users' requests that a canary is to get, in percent.", _RERANKER
)
CANARY_REQUESTS = Gauge(
    "rerank_operator_canary_requests", "Requests of users that the canary has answered, as gateways tell.", _RERANKER
)
CANARY_CHECKS = Gauge(
    "rerank_operator_canary_checks",
    "What a gate or metric of the last canary says: 1 pass, 0 hold, -1 fail.",
    [*_RERANKER, "check"],
)
ROLLOUT_PHASE = Gauge(
    "rerank_operator_rollout_phase",
    "How far the last rollout is, with its canary; Paused: it waits for a person. 1 while the spec asks for that "
    "revision, 0 once it asks for another.",
    [*_RERANKER, "revision", "phase"],
)
REPLICA_SECONDS = Counter(
    "rerank_operator_replica_seconds",
    "Time that workers were ready, by whose they are: own ones, or warm pods on loan.",
    [*_RERANKER, "revision", "source"],
)
COST = Counter(
    "rerank_operator_cost",
    "What that time cost, in the currency of spec.cost; absent where no price is given.",
    [*_RERANKER, "revision"],
)
GOLDEN_QUALITY = Gauge(
    "rerank_operator_golden_quality",
    "How well the revision that serves ranked the golden set last, in the mean over its queries, from 0 to 1.",
    [*_RERANKER, "revision", "measure"],
)
GOLDEN_CALIBRATION = Gauge(
    "rerank_operator_golden_calibration",
    "How far scores of the golden set were from its labels, from 0 to 1; absent where they are no probabilities.",
    [*_RERANKER, "revision", "measure"],
)
GOLDEN_MINIMUM = Gauge(
    "rerank_operator_golden_minimum",
    "What spec.slo.quality asks of the measure that spec.rollout.goldenSet names.",
    [*_RERANKER, "measure"],
)
GOLDEN_TIME = Gauge(
    "rerank_operator_golden_run_timestamp_seconds",
    "When the golden set was ranked last, for spec.slo.quality, in Unix time.",
    [*_RERANKER, "revision"],
)
GOLDEN_RUNS = Counter(
    "rerank_operator_golden_runs",
    "Rankings of the golden set for spec.slo.quality, by how they ended.",
    [*_RERANKER, "result"],
)
WAKES = Counter(
    "rerank_operator_wakes",
    "Times that a request waited for a first worker, by what came first: a pod of the warm pool, or an own cold start.",
    [*_RERANKER, "way"],
)
WAKE_SECONDS = Histogram(
    "rerank_operator_wake_seconds",
    "Time that the first request waited for a first worker, by what came first: a warm pod or an own cold start.",
    ["way"],
    buckets=(0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 20, 30, 60, 120, 300, 600, 1800),
)
for _way in ("cold", "warm"):
    WAKE_SECONDS.labels(_way)  # at 0, so that the first wake is an increase
WAKE_PHASE_SECONDS = Histogram(
    "rerank_operator_wake_phase_seconds",
    "Phases of a wake: decide (from the request's arrival), claim of a warm pod, load of its model, mark as serving.",
    ["phase"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30, 60, 300),
)

POOL_RECONCILES = Counter("rerank_operator_pool_reconciles", "Reconciles of a WarmPool, by how they ended.", ["result"])
LOAN_CONFLICTS = Counter(
    "rerank_operator_loan_conflicts",
    "Warm pods that had changed, or gone, before they could be claimed, marked or released.",
    ["step"],
)
WARM_LOADS = Counter(
    "rerank_operator_warm_loads",
    "Models loaded in warm pods, for a loan or to be kept ready (preload): ok, or the worker's error code.",
    ["purpose", "result"],
)
WARM_PODS = Gauge(
    "rerank_operator_warm_pods", "Pods of a WarmPool: free, loaned or not_ready.", ["namespace", "pool", "state"]
)
