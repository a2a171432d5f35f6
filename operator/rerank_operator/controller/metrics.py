"""Every Prometheus metric of the operator. Labels are bounded: kinds, results and reasons, never names of objects."""

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
