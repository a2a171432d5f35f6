"""The on-call dashboard: what is wrong, since when, and where to look next? Read in a hurry."""

from grafana_foundation_sdk.models import dashboard

from helm.monitoring.panels import (
    About,
    Column,
    Panel,
    Query,
    Steps,
    board,
    drilled,
    lines,
    numbers,
    rows,
    spread,
    states,
    to_board,
    to_runbooks,
)
from helm.monitoring.promql import EACH, NAME, RERANKER, REVISION, quantile
from helm.monitoring.rules import RUNBOOKS

BURN: Steps = ((None, "green"), (1.0, "yellow"), (6.0, "orange"), (14.4, "red"))
BUSY: Steps = ((None, "green"), (0.8, "orange"), (0.95, "red"))


def on_call() -> dashboard.Dashboard:
    return board(
        "On-call",
        "What is wrong now and where to look: alerts, latency, errors, capacity, canary.",
        since="now-3h",
        links=(to_board("Debug"), to_board("Executive"), to_runbooks()),
        parts=(
            ("What is wrong", _wrong()),
            ("Latency", _latency()),
            ("Errors", _errors()),
            ("Capacity", _capacity()),
            ("Canary", _canary()),
            ("Operator and gateways", _control_plane()),
        ),
    )


def _wrong() -> list[Panel]:
    return [
        rows(
            About(
                "Alerts that fire",
                "Page first. The alert's name leads to its runbook; the annotation named look holds the kubectl "
                "command to run first.",
                "none",
                12,
                9,
            ),
            Column(
                "",
                f'sum by (alertname, severity, {EACH}, revision) (ALERTS{{alertname=~"Rerank.+", '
                f'alertstate="firing", namespace=~"$namespace"}})',
            ),
            links=(("alertname", "Runbook", f"{RUNBOOKS}/${{__value.text}}.md"),),
        ),
        lines(
            About(
                "How fast the error budget burns",
                "1: the budget lasts exactly 30 days. 14.4 over an hour or 6 over six hours pages. The short window "
                "shows whether it goes on; look at errors where it is availability, at latency and queue where it is "
                "latency.",
                "none",
                12,
                9,
            ),
            Query(_burn("5m"), f"{NAME} {{{{sli}}}} 5m"),
            Query(_burn("1h"), f"{NAME} {{{{sli}}}} 1h"),
            Query(_burn("6h"), f"{NAME} {{{{sli}}}} 6h"),
            steps=BURN,
        ),
    ]


def _burn(window: str) -> str:
    return f"rerank:sli_errors:ratio_rate{window}{{{RERANKER}}} / rerank:error_budget:ratio{{{RERANKER}}}"


def _latency() -> list[Panel]:
    duration = "rerank_gateway_request_duration_seconds"
    return [
        drilled(
            lines(
                About(
                    "Latency as clients see it",
                    "From a request's headers to its answer, with the threshold of spec.slo.latency. Dots are traced "
                    "requests: a click leads to the trace where the datasource knows the traces. Above the "
                    "threshold: is it the queue (more replicas), the worker (Debug: batches, tokens), or one "
                    "revision (canary)?",
                    "s",
                ),
                *(
                    Query(quantile(q, duration, REVISION), f"{NAME} p{100 * q:g}", exemplars=q == 0.99)
                    for q in (0.5, 0.95, 0.99)
                ),
                Query(f"max by ({EACH}) (rerank_gateway_latency_threshold_seconds{{{RERANKER}}})", f"{NAME} objective"),
            )
        ),
        spread(
            About(
                "Slow requests, with their traces",
                "All requests by how long they took; darker is more. Dots far up are the traces of slow requests: "
                "open one to see whether it waited in the gateway, for a batch, or for the engine.",
                "s",
            ),
            duration,
            REVISION,
            exemplars=True,
        ),
        drilled(
            lines(
                About(
                    "95 % latency, by revision",
                    "A new revision that is slower than the one before shows here. kubectl rerank rollback takes it "
                    "back.",
                    "s",
                    8,
                ),
                Query(
                    quantile(0.95, duration, REVISION, f"{EACH}, revision"), f"{NAME} {{{{revision}}}}", exemplars=True
                ),
            )
        ),
        drilled(
            lines(
                About(
                    "Where the time goes, 95 %",
                    "Queue: waiting in the gateway for a worker. Worker: in the worker, its own queue included. "
                    "Candidates: what clients told that fetching the documents took before they asked.",
                    "s",
                    8,
                ),
                Query(quantile(0.95, "rerank_gateway_queue_duration_seconds", REVISION), f"{NAME} queue"),
                Query(quantile(0.95, "rerank_worker_request_duration_seconds", REVISION), f"{NAME} worker"),
                Query(quantile(0.95, "rerank_gateway_candidate_fetch_seconds", RERANKER), f"{NAME} candidates"),
            )
        ),
        lines(
            About(
                "Requests in time, 5 minutes",
                "Share of the answers within the threshold, with the objective.",
                "percentunit",
                8,
            ),
            Query(f'1 - rerank:sli_errors:ratio_rate5m{{{RERANKER}, sli="latency"}}', NAME),
            Query(
                f'max by ({EACH}) (rerank_gateway_objective_ratio{{{RERANKER}, sli="latency"}})', f"{NAME} objective"
            ),
            most=1,
        ),
    ]


def _errors() -> list[Panel]:
    return [
        lines(
            About(
                "Answers by code",
                "429: no room, more replicas or a longer queue. 503 and 504: no worker, or none in time; look at the "
                "pods. 400 and 422: the client's. 401 alone: no key is valid any more (RerankKeysRefused). 499: the "
                "client went away, often because it waited too long.",
                "reqps",
            ),
            Query(f"sum by (code) (rate(rerank_gateway_requests_total{{{REVISION}}}[$__rate_interval]))", "{{code}}"),
            stacked=True,
        ),
        drilled(
            lines(
                About(
                    "Failed requests, by Reranker and revision",
                    "429 and 5xx only: what counts against availability. One revision alone: take it back. All of "
                    "one Reranker: its workers or its model. All Rerankers: the gateways or the nodes.",
                    "reqps",
                ),
                Query(
                    f"sum by ({EACH}, revision, code) (rate(rerank_gateway_requests_total{{{REVISION}, "
                    f'code=~"429|5.."}}[$__rate_interval]))',
                    f"{NAME} {{{{revision}}}} {{{{code}}}}",
                ),
            )
        ),
        lines(
            About(
                "Attempts that were tried again elsewhere",
                "Clients saw none of these, but they cost time. unreachable: a pod went or its node did. busy: "
                "workers are full.",
                "reqps",
                8,
            ),
            Query(
                f"sum by ({EACH}, reason) (rate(rerank_gateway_retries_total{{{REVISION}}}[$__rate_interval]))",
                f"{NAME} {{{{reason}}}}",
            ),
        ),
        lines(
            About(
                "Requests that workers dropped",
                "deadline and unreachable: too much work for the time that requests may take. abandoned: nobody "
                "waits for the answer any more.",
                "reqps",
                8,
            ),
            Query(
                f"sum by ({EACH}, reason) (rate(rerank_worker_dropped_requests_total{{{REVISION}}}[$__rate_interval]))",
                f"{NAME} {{{{reason}}}}",
            ),
        ),
        lines(
            About(
                "Worker answers other than 200",
                "By code. 500 is a fault of the worker: read its log. 503: it is stopping or its model is not ready.",
                "reqps",
                8,
            ),
            Query(
                f"sum by ({EACH}, code) (rate(rerank_worker_requests_total{{{REVISION}, "
                f'code!="200"}}[$__rate_interval]))',
                f"{NAME} {{{{code}}}}",
            ),
        ),
    ]


def _capacity() -> list[Panel]:
    return [
        drilled(
            lines(
                About(
                    "Requests that wait and that are at work",
                    "Waiting that stays above zero: demand is above capacity. Either replicas are on their way "
                    "(Replicas), or they may not be (maxReplicas, room on the nodes).",
                    "none",
                ),
                Query(f"sum by ({EACH}) (rerank_gateway_waiting_requests{{{RERANKER}}})", f"{NAME} waiting"),
                Query(f"sum by ({EACH}) (rerank_gateway_in_flight_requests{{{RERANKER}}})", f"{NAME} at work"),
            )
        ),
        drilled(
            lines(
                About(
                    "Backlog of the workers",
                    "Seconds that the admitted tokens take at the measured capacity. Above the latency threshold, "
                    "new requests come too late.",
                    "s",
                ),
                Query(
                    f"sum by ({EACH}) (rerank_worker_waiting_tokens{{{REVISION}}}) / "
                    f"sum by ({EACH}) (rerank_worker_capacity_tokens_per_second{{{REVISION}}} > 0)",
                    NAME,
                ),
            )
        ),
        lines(
            About(
                "Replicas",
                "Wanted: own replicas that the operator asks for; fewest: what minReplicas and schedules ask for. "
                "Ready: workers that gateways can use, lent ones included. Wanted above ready for long: kubectl "
                "describe reranker says why pods do not come.",
                "none",
                8,
            ),
            Query(f"max by ({EACH}) (rerank_operator_desired_replicas{{{RERANKER}}})", f"{NAME} wanted"),
            Query(
                f"sum by ({EACH}) (max by ({EACH}, revision) (rerank_gateway_endpoints{{{REVISION}}}))", f"{NAME} ready"
            ),
            Query(f"max by ({EACH}) (rerank_operator_loaners{{{RERANKER}}})", f"{NAME} lent"),
            Query(f"max by ({EACH}) (rerank_operator_minimum_replicas{{{RERANKER}}})", f"{NAME} fewest"),
        ),
        drilled(
            lines(
                About(
                    "How busy the engines are",
                    "Share of the time in which an engine computes, whatever the device. Near 1: the queue grows; "
                    "more replicas help. Low while requests wait: look at the batches (Debug).",
                    "percentunit",
                    8,
                ),
                Query(
                    f"avg by ({EACH}, revision) "
                    f"(rate(rerank_worker_engine_time_seconds_sum{{{REVISION}}}[$__rate_interval]))",
                    f"{NAME} {{{{revision}}}}",
                ),
                steps=BUSY,
                most=1,
            )
        ),
        lines(
            About(
                "GPU utilisation",
                "As NVML tells, by GPU; without data where there is none. Far below the engine's share: batches are "
                "too small for this GPU (kubectl rerank tune).",
                "percentunit",
                8,
            ),
            Query(
                f"max by ({EACH}, pod, gpu) (rerank_worker_gpu_utilization_ratio{{{REVISION}}})", "{{pod}} gpu {{gpu}}"
            ),
            most=1,
        ),
        lines(
            About(
                "Cold starts, 95 %",
                "How long the first request waited for a first worker, by way: a warm pod or an own start. Slow by "
                "pool: the pool is empty or the model is not preloaded.",
                "s",
                8,
            ),
            Query(
                "histogram_quantile(0.95, sum by (way, le) "
                "(rate(rerank_operator_wake_seconds_bucket[$__rate_interval])))",
                "{{way}}",
            ),
        ),
        lines(
            About(
                "Wakes from zero",
                "How often a Reranker without workers was asked. Often: minReplicas 1, or a schedule, would be "
                "kinder to its clients.",
                "short",
                8,
            ),
            Query(
                f"sum by ({EACH}, way) (increase(rerank_operator_wakes_total{{{RERANKER}}}[$__rate_interval]))",
                f"{NAME} {{{{way}}}}",
            ),
        ),
        lines(
            About(
                "Warm pools",
                "Pods by state. No free one: the next wake is a cold start (RerankWarmPoolEmpty). not_ready for "
                "long: describe the pods.",
                "none",
                8,
            ),
            Query(
                'sum by (namespace, pool, state) (rerank_operator_warm_pods{namespace=~"$namespace"})',
                "{{namespace}}/{{pool}} {{state}}",
            ),
        ),
    ]


def _canary() -> list[Panel]:
    verdicts = {"1": ("pass", "green"), "0": ("hold", "yellow"), "-1": ("fail", "red")}
    return [
        lines(
            About(
                "Share of users' requests that a canary is to get",
                "Steps up, or back to zero where it was worse. Stuck: kubectl rerank history NAME says which check "
                "holds it.",
                "percent",
                8,
            ),
            Query(f"max by ({EACH}) (rerank_operator_canary_percent{{{RERANKER}}})", NAME),
            most=100,
        ),
        states(
            About(
                "What the checks of the last canary say",
                "fail takes it back, hold waits for more evidence. kubectl rerank history NAME has the figures.",
                "none",
                16,
            ),
            Query(f"max by ({EACH}, check) (rerank_operator_canary_checks{{{RERANKER}}})", f"{NAME} {{{{check}}}}"),
            verdicts,
        ),
        rows(
            About(
                "Last rollouts",
                "How the last rollout of each Reranker stands. RolledBack and Paused wait for a person: kubectl rerank "
                "status NAME says why.",
                "none",
                24,
                6,
            ),
            Column("", f"max by ({EACH}, revision, phase) (rerank_operator_rollout_phase{{{RERANKER}}}) == 1"),
        ),
        lines(
            About(
                "Requests that the canary has answered",
                "What errors and latency are judged by. Too few: the steps take long, or mirrorPercent is to be "
                "raised.",
                "short",
                8,
            ),
            Query(f"max by ({EACH}) (rerank_operator_canary_requests{{{RERANKER}}})", NAME),
        ),
        lines(
            About("Requests by revision", "How the traffic is in fact split.", "reqps", 8),
            Query(
                f"sum by ({EACH}, revision) (rate(rerank_gateway_requests_total{{{REVISION}}}[$__rate_interval]))",
                f"{NAME} {{{{revision}}}}",
            ),
            stacked=True,
        ),
        lines(
            About(
                "Mirrored requests, by result",
                "Users' requests that a canary was asked too. failed counts against it; skipped does not.",
                "reqps",
                8,
            ),
            Query(
                f"sum by ({EACH}, result) "
                f"(rate(rerank_gateway_mirrored_requests_total{{{RERANKER}}}[$__rate_interval]))",
                f"{NAME} {{{{result}}}}",
            ),
        ),
    ]


def _control_plane() -> list[Panel]:
    return [
        numbers(
            About(
                "Processes that answer",
                "Targets of each kind that Prometheus could read at its last try. Fewer than there are pods: see "
                "RerankTelemetryMissing; no gateway: RerankGatewayDown.",
                "none",
                8,
                6,
            ),
            Query('sum by (job) (up{job=~"rerank-(operator|gateway|worker)"})', "{{job}}"),
        ),
        numbers(
            About(
                "Operators that lead",
                "Exactly one. None: nothing is scaled or rolled out, but requests are still answered "
                "(RerankOperatorWithoutLeader).",
                "none",
                4,
                6,
            ),
            Query("sum(rerank_operator_leader)", "leaders"),
            steps=((None, "red"), (1.0, "green"), (2.0, "red")),
        ),
        numbers(
            About(
                "Rerankers, by readiness", "Not ready: kubectl get rerankers -A, then describe the one.", "none", 6, 6
            ),
            Query("sum by (ready) (rerank_operator_rerankers)", "Ready {{ready}}"),
        ),
        numbers(
            About(
                "Gateways that the operator hears",
                "Those it does not hear are missing in the demand by which it scales.",
                "none",
                6,
                6,
            ),
            Query("sum by (stream) (rerank_operator_gateways)", "{{stream}}"),
        ),
        lines(
            About(
                "API errors of the operator",
                "Requests that the API server refused or left. 409 is a conflict and harmless; 403: a role is "
                "missing; 429 and 5xx: the API server has trouble of its own.",
                "ops",
            ),
            Query(
                "sum by (method, code) (rate(rerank_operator_api_errors_total[$__rate_interval]))",
                "{{method}} {{code}}",
            ),
        ),
        lines(
            About(
                "Memory for bodies in the gateways",
                "Bytes of bodies held. At gateway.maxHeldBytes clients get 429: more gateways, or more memory for "
                "each.",
                "bytes",
            ),
            Query("sum by (pod) (rerank_gateway_held_bytes)", "{{pod}}"),
        ),
        states(
            About(
                "Maintenance",
                "Rerankers whose alerts are silent, by the annotation rerank.dev/maintenance-until.",
                "none",
                24,
                5,
            ),
            Query(f"max by ({EACH}) (rerank_gateway_maintenance{{{RERANKER}}})", NAME),
            {"1": ("silent", "blue"), "0": ("watched", "transparent")},
        ),
    ]
