"""The debug dashboard: why does this model behave as it does? For engineers with time."""

from grafana_foundation_sdk.models import dashboard

from helm.monitoring.panels import (
    About,
    Column,
    Panel,
    Query,
    Steps,
    bars,
    board,
    lines,
    rows,
    spread,
    to_board,
    to_runbooks,
)
from helm.monitoring.promql import EACH, NAME, RERANKER, REVISION, mean, quantile, rate

MANY: Steps = ((None, "green"), (1.0, "red"))


def debug() -> dashboard.Dashboard:
    return board(
        "Debug",
        "Models, memory, batches, tokens, scores and the operator's own work, for engineers.",
        since="now-1h",
        links=(to_board("On-call"), to_runbooks()),
        parts=(
            ("Models", [_models()]),
            ("Memory", _memory()),
            ("Batches", _batches()),
            ("Tokens and truncation", _tokens()),
            ("Scores and calibration", _scores()),
            ("A request's way", _way()),
            ("The operator's work", _work()),
        ),
    )


def _median_and_p95(histogram: str, selector: str) -> tuple[Query, ...]:
    return tuple(Query(quantile(q, histogram, selector), f"{NAME} p{100 * q:g}") for q in (0.5, 0.95))


def _models() -> Panel:
    return rows(
        About(
            "What each worker serves",
            "Model and tokenizer by their checksums: pods of one revision must have the same. Others beside them: "
            "the model was changed under its name; pin model.revision (runbook on tokenizer mismatch).",
            "none",
            24,
            9,
        ),
        Column(
            "",
            f"sum by ({EACH}, revision, pod, warm_pool, model, model_sha256, tokenizer_sha256, version, device, "
            f"precision, architecture) (rerank_worker_info{{{REVISION}}})",
        ),
    )


def _memory() -> list[Panel]:
    return [
        lines(
            About(
                "Memory of the workers",
                "Now, by pod: host is the resident set, device what torch has allocated. Host near the container's "
                "limit: it will be killed; raise the limit or lower batching.maxBatchTokens.",
                "bytes",
            ),
            Query(f"max by ({EACH}, pod, memory) (rerank_worker_memory_bytes{{{REVISION}}})", "{{pod}} {{memory}}"),
        ),
        lines(
            About(
                "Most memory since the start",
                "The peak decides what a pod needs. A step at the time of a long request: batches of that length are "
                "what costs.",
                "bytes",
            ),
            Query(
                f"max by ({EACH}, pod, memory) (rerank_worker_peak_memory_bytes{{{REVISION}}})", "{{pod}} {{memory}}"
            ),
        ),
        lines(
            About(
                "GPU memory",
                "Used, of all processes on the GPU, and what it has. Without data where there is no NVML.",
                "bytes",
                8,
            ),
            Query(
                f"max by ({EACH}, pod, gpu) (rerank_worker_gpu_memory_used_bytes{{{REVISION}}})", "{{pod}} gpu {{gpu}}"
            ),
            Query(
                f"max by ({EACH}, pod, gpu) (rerank_worker_gpu_memory_total_bytes{{{REVISION}}})",
                "{{pod}} gpu {{gpu}} has",
            ),
        ),
        lines(
            About(
                "Batches that did not fit",
                "Each was split and scored in parts. More than now and then: lower batching.maxBatchTokens (runbook "
                "RerankOutOfMemory).",
                "short",
                8,
            ),
            Query(
                f"sum by ({EACH}, pod) "
                f"(increase(rerank_worker_out_of_memory_recoveries_total{{{REVISION}}}[$__rate_interval]))",
                "{{pod}}",
            ),
            steps=MANY,
        ),
        lines(
            About("Tokens that a batch may have", "Lower than configured since a batch was out of memory.", "short", 8),
            Query(
                f"max by ({EACH}, pod, model) (rerank_worker_batch_budget_tokens{{{REVISION}}})", "{{pod}} {{model}}"
            ),
        ),
        lines(
            About(
                "Memory of operator and gateways",
                "Resident set of each process. A gateway needs about three times gateway.maxHeldBytes and 200 MiB.",
                "bytes",
            ),
            Query('max by (job, pod) (process_resident_memory_bytes{job=~"rerank-(operator|gateway)"})', "{{pod}}"),
        ),
        lines(
            About(
                "Processor time of operator and gateways",
                "Cores in use. One Python process can use little more than one: then more replicas are what helps.",
                "none",
            ),
            Query(
                "sum by (job, pod) "
                '(rate(process_cpu_seconds_total{job=~"rerank-(operator|gateway)"}[$__rate_interval]))',
                "{{pod}}",
            ),
        ),
    ]


def _batches() -> list[Panel]:
    return [
        spread(
            About(
                "Pairs a batch",
                "Small under load: length buckets or the token budget cut them short. Large while latency is high: "
                "the budget is too large.",
                "short",
            ),
            "rerank_worker_batch_pairs",
            REVISION,
        ),
        spread(
            About(
                "Tokens a batch",
                "Padding included. kubectl rerank tune measures which budget this hardware likes.",
                "short",
            ),
            "rerank_worker_batch_tokens",
            REVISION,
        ),
        lines(
            About(
                "Engine time of a batch",
                "Computing alone. Rises with tokens a batch; rises without them: the device is shared or throttled.",
                "s",
                8,
            ),
            *_median_and_p95("rerank_worker_engine_time_seconds", REVISION),
        ),
        lines(
            About(
                "Batch wait, 95 %",
                "How long a free engine held a batch back for company. Adds to latency one for one: lower "
                "batching.maxWait where it is too much.",
                "s",
                8,
            ),
            Query(quantile(0.95, "rerank_worker_batch_wait_seconds", REVISION), NAME),
        ),
        lines(
            About(
                "Requests that share a batch",
                "Mean. 1: no concurrency to use, or every request fills a batch by itself.",
                "none",
                8,
            ),
            Query(mean("rerank_worker_batch_requests"), NAME),
        ),
        lines(
            About(
                "Padding waste",
                "Share of the computed tokens that only fill batches up. Zero where batches are flat; where not, a "
                "smaller lengthBucket lowers it.",
                "percentunit",
                8,
            ),
            Query(
                f"{rate('rerank_worker_padding_tokens_total')} / ({rate('rerank_worker_padding_tokens_total')} + "
                f"{rate('rerank_worker_tokens_total')})",
                NAME,
            ),
            most=1,
        ),
        lines(About("Pairs scored", "Inferences a second.", "ops", 8), Query(rate("rerank_worker_pairs_total"), NAME)),
        lines(
            About(
                "Tokens scored, and what the workers can",
                "Capacity is measured at load and corrected by what was served since.",
                "short",
                8,
            ),
            Query(rate("rerank_worker_tokens_total"), f"{NAME} scored"),
            Query(f"sum by ({EACH}) (rerank_worker_capacity_tokens_per_second{{{REVISION}}})", f"{NAME} capacity"),
        ),
    ]


def _tokens() -> list[Panel]:
    documents = "sum by ({each}) (rate(rerank_gateway_{what}_documents_total{{{of}}}[$__rate_interval]))"
    asked = f"sum by ({EACH}) (rate(rerank_gateway_request_documents_sum{{{RERANKER}}}[$__rate_interval]))"
    return [
        spread(
            About(
                "Tokens of a pair",
                "Query, document and special tokens. A heap at the model's limit is cut off: see the truncation "
                "beside it.",
                "short",
            ),
            "rerank_worker_pair_tokens",
            REVISION,
        ),
        lines(
            About(
                "Documents that were cut or chunked",
                "Share of all documents. What is cut is not seen by the model: requests.longDocuments: chunk scores "
                "all of it, for more tokens (runbook RerankTruncation).",
                "percentunit",
            ),
            Query(f"{documents.format(each=EACH, what='truncated', of=REVISION)} / {asked}", f"{NAME} cut"),
            Query(f"{documents.format(each=EACH, what='chunked', of=REVISION)} / {asked}", f"{NAME} chunked"),
            most=1,
        ),
        lines(
            About("Requests with any document cut", "A second, as gateways count.", "reqps", 8),
            Query(rate("rerank_gateway_truncated_requests_total"), NAME),
        ),
        lines(
            About(
                "Documents in a request",
                "Median and 95 %. More documents, more tokens: a caller that doubled its candidates doubles the load.",
                "short",
                8,
            ),
            *_median_and_p95("rerank_gateway_request_documents", RERANKER),
        ),
        lines(
            About(
                "Tokenizing a request, 95 %",
                "Waiting for a thread included. High while the engine idles: the pod has too few cores.",
                "s",
                8,
            ),
            Query(quantile(0.95, "rerank_worker_tokenize_time_seconds", REVISION), NAME),
        ),
    ]


def _scores() -> list[Panel]:
    def binned(what: str) -> str:
        return f"sum by (bin) (increase(rerank_gateway_feedback_{what}_total{{{REVISION}}}[$__range]))"

    return [
        bars(
            About(
                "Scores, in the range of time above",
                "How many scored documents had which probability. All in one bin: the model does not tell documents "
                "apart, or its activation is not the one it was trained with.",
                "short",
            ),
            "bin",
            Column("documents", f"sum by (bin) (increase(rerank_worker_scores_total{{{REVISION}}}[$__range]))"),
        ),
        lines(
            About(
                "Drift of the scores (PSI)",
                "Against the reference window. Above 0.25 queries, documents or the model have changed "
                "(RerankScoreDrift): compare with a golden run.",
                "none",
            ),
            Query(f"max by ({EACH}, revision) (rerank:score_psi{{{RERANKER}}})", f"{NAME} {{{{revision}}}}"),
            steps=((None, "green"), (0.1, "yellow"), (0.25, "red")),
        ),
        bars(
            About(
                "Calibration: what was promised and what users said",
                "By score: the mean score of labelled documents, and the share of them that users found relevant. "
                "Equal heights are good; scores above: the model is too sure, kubectl rerank calibrate fits the "
                "temperature.",
                "percentunit",
            ),
            "bin",
            Column("mean score", f"{binned('scores')} / {binned('labels')}"),
            Column("found relevant", f"{binned('relevant')} / {binned('labels')}"),
        ),
        lines(
            About(
                "Calibration error from users' labels",
                "ECE: mean distance between score and share of relevant documents. Brier: mean squared error. Both "
                "over a day; lower is better.",
                "none",
            ),
            Query(f"max by ({EACH}, revision) (rerank:ece:1d{{{RERANKER}}})", f"{NAME} {{{{revision}}}} ECE"),
            Query(
                f"sum by ({EACH}, revision) (increase(rerank_gateway_feedback_squared_error_total{{{REVISION}}}[1d]))"
                f" / sum by ({EACH}, revision) (increase(rerank_gateway_feedback_labels_total{{{REVISION}}}[1d]))",
                f"{NAME} {{{{revision}}}} Brier",
            ),
        ),
        lines(
            About(
                "Calibration on the golden set",
                "Brier and ECE of each run on schedule, where the activation gives probabilities. A rise without a "
                "new revision: the golden set has changed.",
                "none",
            ),
            Query(
                f"max by ({EACH}, revision, measure) (rerank_operator_golden_calibration{{{REVISION}}})",
                f"{NAME} {{{{revision}}}} {{{{measure}}}}",
            ),
        ),
        lines(
            About("Ranking quality on the golden set", "By measure and revision, with the objective.", "percentunit"),
            Query(
                f"max by ({EACH}, revision, measure) (rerank_operator_golden_quality{{{REVISION}}})",
                f"{NAME} {{{{revision}}}} {{{{measure}}}}",
            ),
            Query(
                f"max by ({EACH}, measure) (rerank_operator_golden_minimum{{{RERANKER}}})",
                f"{NAME} {{{{measure}}}} objective",
            ),
            most=1,
        ),
        lines(
            About(
                "Runs of the golden set", "By result, in an hour. failed: Events of the Reranker say why.", "short", 8
            ),
            Query(
                f"sum by ({EACH}, result) (increase(rerank_operator_golden_runs_total{{{RERANKER}}}[1h]))",
                f"{NAME} {{{{result}}}}",
            ),
        ),
        lines(
            About(
                "Age of the last run",
                "Since the golden set was last ranked. Older than spec.slo.quality.interval: runs fail, or the "
                "operator has no leader.",
                "s",
                8,
            ),
            Query(f"time() - max by ({EACH}) (rerank_operator_golden_run_timestamp_seconds{{{RERANKER}}})", NAME),
        ),
        lines(
            About(
                "Captured requests",
                "Texts written to the gateway's log, as spec.observability.capture asks. limited: not written, there "
                "were too many that minute.",
                "short",
                8,
            ),
            Query(
                f"sum by ({EACH}, result) "
                f"(increase(rerank_gateway_captured_requests_total{{{RERANKER}}}[$__rate_interval]))",
                f"{NAME} {{{{result}}}}",
            ),
        ),
    ]


def _way() -> list[Panel]:
    return [
        lines(
            About(
                "Queue time in the workers, 95 %",
                "From tokenized to the first batch, by priority. High for all: too few replicas. High for low alone: "
                "as it should be.",
                "s",
                8,
            ),
            Query(
                quantile(0.95, "rerank_worker_queue_time_seconds", REVISION, f"{EACH}, priority"),
                f"{NAME} {{{{priority}}}}",
            ),
        ),
        lines(
            About("Requests by priority", "As clients asked. Everything high is nothing high.", "reqps", 8),
            Query(
                f"sum by ({EACH}, priority) "
                f"(rate(rerank_gateway_priority_requests_total{{{RERANKER}}}[$__rate_interval]))",
                f"{NAME} {{{{priority}}}}",
            ),
            stacked=True,
        ),
        lines(
            About(
                "Requests in the workers",
                "Score requests being answered, by pod: one far above the others has more to do, or is slower.",
                "none",
                8,
            ),
            Query(f"sum by ({EACH}, pod) (rerank_worker_requests_in_flight{{{REVISION}}})", "{{pod}}"),
        ),
        lines(
            About(
                "Cache hits",
                "Share of the documents whose score was known. Low with a cache: queries do not repeat, and the "
                "memory is better used elsewhere.",
                "percentunit",
                8,
            ),
            Query(
                f"sum by ({EACH}) (rate(rerank_gateway_cache_documents_total{{{RERANKER}, "
                f'result="hit"}}[$__rate_interval]))'
                f" / sum by ({EACH}) (rate(rerank_gateway_cache_documents_total{{{RERANKER}}}[$__rate_interval]))",
                NAME,
            ),
            most=1,
        ),
        lines(
            About("Memory of the caches", "Of all gateways together.", "bytes", 8),
            Query(f"sum by ({EACH}) (rerank_gateway_cache_bytes{{{RERANKER}}})", NAME),
        ),
        lines(
            About(
                "Loading a model",
                "From the start of a worker to its first score. Slow: a larger cache volume or a warm pool.",
                "s",
                8,
            ),
            Query(f"max by ({EACH}, pod) (rerank_worker_model_load_seconds{{{REVISION}}})", "{{pod}}"),
        ),
    ]


def _work() -> list[Panel]:
    return [
        lines(
            About(
                "Reconciles, 95 %",
                "How long one takes, and how long a Reranker waits for it. Waiting alone: too many Rerankers for one "
                "operator, or the API server is slow.",
                "s",
                8,
            ),
            Query(
                "histogram_quantile(0.95, sum by (le) "
                "(rate(rerank_operator_reconcile_duration_seconds_bucket[$__rate_interval])))",
                "takes",
            ),
            Query(
                "histogram_quantile(0.95, sum by (le) "
                "(rate(rerank_operator_queue_latency_seconds_bucket[$__rate_interval])))",
                "waits",
            ),
        ),
        lines(
            About(
                "Reconciles, by how they ended",
                "error: the operator's log has the reason, with the name of the Reranker.",
                "ops",
                8,
            ),
            Query("sum by (result) (rate(rerank_operator_reconciles_total[$__rate_interval]))", "{{result}}"),
        ),
        lines(
            About(
                "Objects written",
                "By kind and reason. In a quiet fleet: almost none. A steady rate: someone else changes what the "
                "operator writes (drift).",
                "ops",
                8,
            ),
            Query("sum by (kind, why) (rate(rerank_operator_writes_total[$__rate_interval]))", "{{kind}} {{why}}"),
        ),
        lines(
            About(
                "Scaling decisions",
                "By reason. Up and down within minutes: demand swings faster than workers start; see "
                "scaling.downDelay and warm pools.",
                "short",
                8,
            ),
            Query(
                "sum by (reason) (increase(rerank_operator_scaling_decisions_total[$__rate_interval]))", "{{reason}}"
            ),
        ),
        lines(
            About(
                "From demand to decision, 95 %",
                "Time from when a gateway tells of demand to when the replicas are written.",
                "s",
                8,
            ),
            Query(
                "histogram_quantile(0.95, sum by (le) "
                "(rate(rerank_operator_scaling_decision_seconds_bucket[$__rate_interval])))",
                "decision",
            ),
        ),
        lines(
            About(
                "Phases of a wake, 95 %",
                "decide, claim of a warm pod, load of its model, mark as serving. The longest is what a faster wake "
                "has to shorten.",
                "s",
                8,
            ),
            Query(
                "histogram_quantile(0.95, sum by (phase, le) "
                "(rate(rerank_operator_wake_phase_seconds_bucket[$__rate_interval])))",
                "{{phase}}",
            ),
        ),
        lines(
            About(
                "Models loaded in warm pods",
                "By purpose and result. Other than ok is the worker's error code: its log says more.",
                "short",
                8,
            ),
            Query(
                "sum by (purpose, result) (increase(rerank_operator_warm_loads_total[$__rate_interval]))",
                "{{purpose}} {{result}}",
            ),
        ),
        lines(
            About(
                "Rollouts, by how they stand",
                "In the range between two points. RolledBack: kubectl rerank history has the evidence.",
                "short",
                8,
            ),
            Query("sum by (result) (increase(rerank_operator_rollouts_total[$__rate_interval]))", "{{result}}"),
        ),
        lines(
            About(
                "Full lists, by how they ended",
                "The operator compares what it knows with all objects now and then. failed: the API server could not "
                "answer.",
                "short",
                8,
            ),
            Query("sum by (result) (increase(rerank_operator_resyncs_total[$__rate_interval]))", "{{result}}"),
        ),
    ]
