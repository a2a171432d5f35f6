"""What the three Grafana dashboards show: executive, on-call, debug. Written into the chart by helm/generate.py.

Metrics are those of docs/reference/metrics.md; windows of hours and days are read from the recording rules of rules.py.
Pure, like panels.py: what comes out depends on this file alone.
"""

import json

from grafana_foundation_sdk.builders import timeseries
from grafana_foundation_sdk.builders.dashboard import DashboardLink
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard
from grafana_foundation_sdk.models.dashboard import DashboardLinkType

from helm.monitoring.panels import (
    RUNBOOKS,
    About,
    Column,
    Panel,
    Query,
    Steps,
    bars,
    board,
    lines,
    numbers,
    rows,
    spread,
    states,
)

RERANKER = 'namespace=~"$namespace", reranker=~"$reranker"'
REVISION = f'{RERANKER}, revision=~"$revision"'
EACH = "namespace, reranker"
NAME = "{{namespace}}/{{reranker}}"

LOW_IS_BAD: Steps = ((None, "red"), (0.0, "orange"), (0.25, "green"))
BURN: Steps = ((None, "green"), (1.0, "yellow"), (6.0, "orange"), (14.4, "red"))
BUSY: Steps = ((None, "green"), (0.8, "orange"), (0.95, "red"))
MANY: Steps = ((None, "green"), (1.0, "red"))


def rendered() -> dict[str, str]:
    """File name to JSON, with a line end, of every dashboard."""
    made = {"executive": executive(), "on-call": on_call(), "debug": debug()}
    return {f"{name}.json": json.dumps(one, cls=JSONEncoder, indent=1) + "\n" for name, one in made.items()}


def executive() -> dashboard.Dashboard:
    """Is the fleet worth its money, and does it keep its promises?"""
    return board(
        uid="rerank-executive",
        title="Rerank / Executive",
        description="Traffic, cost, objectives and ranking quality of all Rerankers, over weeks.",
        since="now-30d",
        refresh="5m",
        variables=("namespace", "reranker"),
        links=(_to("rerank-on-call", "On-call"),),
        parts=(
            ("Each Reranker", [_summary()]),
            ("Traffic and cost", _cost()),
            ("Promises", _promises()),
            ("Ranking quality", _quality()),
        ),
    )


def on_call() -> dashboard.Dashboard:
    """What is wrong, since when, and where to look next?"""
    return board(
        uid="rerank-on-call",
        title="Rerank / On-call",
        description="What is wrong now and where to look: alerts, latency, errors, capacity, canary.",
        since="now-3h",
        refresh="30s",
        variables=("namespace", "reranker", "revision"),
        links=(_to("rerank-debug", "Debug"), _to("rerank-executive", "Executive"), _runbooks()),
        parts=(
            ("What is wrong", _wrong()),
            ("Latency", _latency()),
            ("Errors", _errors()),
            ("Capacity", _capacity()),
            ("Canary", _canary()),
            ("Operator and gateways", _control_plane()),
        ),
    )


def debug() -> dashboard.Dashboard:
    """Why does this model behave as it does?"""
    return board(
        uid="rerank-debug",
        title="Rerank / Debug",
        description="Models, memory, batches, tokens, scores and the operator's own work, for engineers.",
        since="now-1h",
        refresh="30s",
        variables=("namespace", "reranker", "revision"),
        links=(_to("rerank-on-call", "On-call"), _runbooks()),
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


# --- executive ---


def _summary() -> Panel:
    return rows(
        About(
            "Rerankers",
            "One line each. Budget left: the share of the failures that the objective allows in 30 days and that have "
            "not happened; below zero the promise is broken. A number that is missing was not measured: cost needs "
            "spec.cost, accuracy needs spec.slo.quality.",
            "none",
            24,
            9,
        ),
        Column(
            "Requests per minute, last hour",
            f"60 * sum by ({EACH}) (rate(rerank_gateway_requests_total{{{RERANKER}}}[1h]))",
            "short",
        ),
        Column("Budget left, availability", _budget("availability"), "percentunit", LOW_IS_BAD),
        Column("Budget left, latency", _budget("latency"), "percentunit", LOW_IS_BAD),
        Column(
            "Cost per 1,000 inferences", f"max by ({EACH}) (rerank:cost_per_1000_inferences:1h{{{RERANKER}}})", "short"
        ),
        Column("Accuracy@k, 7 days", _golden("accuracy@.+", "7d"), "percentunit"),
        Column("Accuracy@k, 30 days", _golden("accuracy@.+", "30d"), "percentunit"),
    )


def _budget(sli: str) -> str:
    return f'min by ({EACH}) (rerank:error_budget_left:ratio30d{{{RERANKER}, sli="{sli}"}})'


def _golden(measure: str, window: str) -> str:
    """The mean over the window, weighted by time: of several revisions, each for as long as it was measured."""
    return (
        f'avg by ({EACH}) (avg_over_time(rerank_operator_golden_quality{{{RERANKER}, measure=~"{measure}"}}[{window}]))'
    )


def _cost() -> list[Panel]:
    return [
        lines(
            About(
                "Requests per minute",
                "Requests of clients, whatever came of them. A step that nobody planned is worth a question to the "
                "teams that call.",
                "reqpm",
            ),
            Query(f"60 * sum by ({EACH}) (rate(rerank_gateway_requests_total{{{RERANKER}}}[$__rate_interval]))", NAME),
            stacked=True,
        ),
        lines(
            About(
                "Cost per 1,000 inferences",
                "Price of the replicas by 1,000 scored pairs of query and document, in the currency of spec.cost. It "
                "rises where replicas idle: see RerankIdleReplicas and RerankCostAnomaly in the runbooks.",
                "short",
            ),
            Query(f"max by ({EACH}) (rerank:cost_per_1000_inferences:1h{{{RERANKER}}})", NAME),
        ),
        lines(
            About(
                "Cost per day",
                "What the replicas of each Reranker cost at the present pace, in the currency of spec.cost.",
                "short",
                8,
            ),
            Query(f"86400 * sum by ({EACH}) (rate(rerank_operator_cost_total{{{RERANKER}}}[$__rate_interval]))", NAME),
            stacked=True,
        ),
        lines(
            About(
                "Replicas",
                "Replicas that are paid for, by whether they are a Reranker's own or lent from a warm pool. Compare "
                "with the "
                "traffic: replicas that stay when requests go are set by minReplicas or a schedule.",
                "none",
                8,
            ),
            Query(
                f"sum by ({EACH}, source) "
                f"(rate(rerank_operator_replica_seconds_total{{{RERANKER}}}[$__rate_interval]))",
                f"{NAME} {{{{source}}}}",
            ),
            stacked=True,
        ),
        lines(
            About(
                "Utilisation",
                "Share of the time in which a replica's engine computes. Low for days: fewer replicas, or scaling "
                "to zero, would do.",
                "percentunit",
                8,
            ),
            Query(f"max by ({EACH}) (rerank:utilization:ratio5m{{{RERANKER}}})", NAME),
            most=1,
        ),
    ]


def _promises() -> list[Panel]:
    return [
        lines(
            About(
                "Error budget left",
                "Of the failures that 30 days may have, the share that is left. Under a quarter: changes that can "
                "wait should "
                "wait. Under zero: the objective is missed, or too strict for what is paid.",
                "percentunit",
            ),
            Query(f"min by ({EACH}, sli) (rerank:error_budget_left:ratio30d{{{RERANKER}}})", f"{NAME} {{{{sli}}}}"),
            steps=LOW_IS_BAD,
            least=None,
        ),
        lines(
            About(
                "Good requests, 30 days",
                "Share of the requests that were answered (availability), and answered in time (latency), against "
                "the objective.",
                "percentunit",
            ),
            Query(f"1 - max by ({EACH}, sli) (rerank:sli_errors:ratio_rate30d{{{RERANKER}}})", f"{NAME} {{{{sli}}}}"),
            Query(
                f"max by ({EACH}, sli) (rerank_gateway_objective_ratio{{{RERANKER}}})", f"{NAME} {{{{sli}}}} objective"
            ),
            most=1,
        ),
    ]


def _quality() -> list[Panel]:
    share = "sum by ({each}) (increase(rerank_gateway_feedback_{what}_total{{{of}}}[1d]))"
    return [
        numbers(
            About(
                "Accuracy@k, mean of 7 days",
                "Share of the golden set's queries with a relevant document among the first k, as the serving "
                "revision ranks it.",
                "percentunit",
                6,
            ),
            Query(_golden("accuracy@.+", "7d"), NAME),
        ),
        numbers(
            About(
                "Accuracy@k, mean of 30 days",
                "The same over 30 days: lower than the 7 days beside it, ranking has become better.",
                "percentunit",
                6,
            ),
            Query(_golden("accuracy@.+", "30d"), NAME),
        ),
        lines(
            About(
                "Ranking quality of the golden set",
                "Each run on schedule, by measure. Below the objective (spec.slo.quality.minimum) there is a ticket: "
                "RerankRankingQualityLow. A step belongs to a new revision, or to a new golden set.",
                "percentunit",
            ),
            Query(
                f"max by ({EACH}, revision, measure) (rerank_operator_golden_quality{{{RERANKER}}})",
                f"{NAME} {{{{measure}}}} {{{{revision}}}}",
            ),
            Query(f"max by ({EACH}) (rerank_operator_golden_minimum{{{RERANKER}}})", f"{NAME} objective"),
            most=1,
        ),
        lines(
            About(
                "Documents that users found relevant, last day",
                "Of the labels that clients posted to /v1/feedback, the share that says relevant.",
                "percentunit",
            ),
            Query(
                share.format(each=EACH, what="relevant", of=RERANKER)
                + " / "
                + share.format(each=EACH, what="labels", of=RERANKER),
                NAME,
            ),
            most=1,
        ),
        lines(
            About(
                "Labels that users gave, per day",
                "How much the panel beside it rests on.",
                "short",
            ),
            Query(share.format(each=EACH, what="labels", of=RERANKER), NAME),
        ),
    ]


# --- on-call ---


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
                "shows whether it goes "
                "on; look at errors where it is availability, at latency and queue where it is latency.",
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
    errors = f"max by ({EACH}, sli) (rerank:sli_errors:ratio_rate{window}{{{RERANKER}}})"
    return f"{errors} / (1 - max by ({EACH}, sli) (rerank_gateway_objective_ratio{{{RERANKER}}}))"


def _latency() -> list[Panel]:
    duration = "rerank_gateway_request_duration_seconds"
    return [
        _drilled(
            lines(
                About(
                    "Latency as clients see it",
                    "From a request's headers to its answer, with the threshold of spec.slo.latency. Dots are "
                    "traced requests: a click "
                    "leads to the trace where the datasource knows the traces. Above the threshold: is it the queue "
                    "(more replicas), "
                    "the worker (Debug: batches, tokens), or one revision (canary)?",
                    "s",
                ),
                *(
                    Query(_quantile(q, duration, REVISION), f"{NAME} p{100 * q:g}", exemplars=q == 0.99)
                    for q in (0.5, 0.95, 0.99)
                ),
                Query(f"max by ({EACH}) (rerank_gateway_latency_threshold_seconds{{{RERANKER}}})", f"{NAME} objective"),
            )
        ),
        spread(
            About(
                "Slow requests, with their traces",
                "All requests by how long they took; darker is more. Dots far up are the traces of slow requests: "
                "open one to see "
                "whether it waited in the gateway, for a batch, or for the engine.",
                "s",
            ),
            duration,
            REVISION,
            exemplars=True,
        ),
        _drilled(
            lines(
                About(
                    "95 % latency, by revision",
                    "A new revision that is slower than the one before shows here. kubectl rerank rollback takes it "
                    "back.",
                    "s",
                    8,
                ),
                Query(
                    _quantile(0.95, duration, REVISION, f"{EACH}, revision"), f"{NAME} {{{{revision}}}}", exemplars=True
                ),
            )
        ),
        _drilled(
            lines(
                About(
                    "Where the time goes, 95 %",
                    "Queue: waiting in the gateway for a worker. Worker: in the worker, its own queue included. "
                    "Candidates: what clients told "
                    "that fetching the documents took before they asked.",
                    "s",
                    8,
                ),
                Query(_quantile(0.95, "rerank_gateway_queue_duration_seconds", REVISION), f"{NAME} queue"),
                Query(_quantile(0.95, "rerank_worker_request_duration_seconds", REVISION), f"{NAME} worker"),
                Query(_quantile(0.95, "rerank_gateway_candidate_fetch_seconds", RERANKER), f"{NAME} candidates"),
            )
        ),
        lines(
            About(
                "Requests in time, 5 minutes",
                "Share of the answers within the threshold, with the objective.",
                "percentunit",
                8,
            ),
            Query(f'1 - max by ({EACH}) (rerank:sli_errors:ratio_rate5m{{{RERANKER}, sli="latency"}})', NAME),
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
                "429: no room, more replicas or a longer queue. 503 and 504: no worker, or none in time; look at "
                "the pods. 400 and 422: the "
                "client's. 499: the client went away, often because it waited too long.",
                "reqps",
            ),
            Query(f"sum by (code) (rate(rerank_gateway_requests_total{{{REVISION}}}[$__rate_interval]))", "{{code}}"),
            stacked=True,
        ),
        _drilled(
            lines(
                About(
                    "Failed requests, by Reranker and revision",
                    "429 and 5xx only: what counts against availability. One revision alone: take it back. All of "
                    "one Reranker: its workers or its model. "
                    "All Rerankers: the gateways or the nodes.",
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
        _drilled(
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
        _drilled(
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
                "Wanted: own replicas that the operator asks for. Ready: workers that gateways can use, lent ones "
                "included. Wanted above ready for "
                "long: kubectl describe reranker says why pods do not come.",
                "none",
                8,
            ),
            Query(f"max by ({EACH}) (rerank_operator_desired_replicas{{{RERANKER}}})", f"{NAME} wanted"),
            Query(
                f"sum by ({EACH}) (max by ({EACH}, revision) (rerank_gateway_endpoints{{{REVISION}}}))", f"{NAME} ready"
            ),
            Query(f"max by ({EACH}) (rerank_operator_loaners{{{RERANKER}}})", f"{NAME} lent"),
        ),
        _drilled(
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
            About(
                "Requests by revision",
                "How the traffic is in fact split.",
                "reqps",
                8,
            ),
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
                "Rerankers, by readiness",
                "Not ready: kubectl get rerankers -A, then describe the one.",
                "none",
                6,
                6,
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
    ]


# --- debug ---


def _models() -> Panel:
    return rows(
        About(
            "What each worker serves",
            "Model and tokenizer by their checksums: pods of one revision must have the same. Others beside them: "
            "the model was changed under "
            "its name; pin model.revision (runbook on tokenizer mismatch).",
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
                "The peak decides what a pod needs. A step at the time of a long request: batches of that length "
                "are what costs.",
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
            About(
                "Tokens that a batch may have",
                "Lower than configured since a batch was out of memory.",
                "short",
                8,
            ),
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
            *(
                Query(_quantile(q, "rerank_worker_engine_time_seconds", REVISION), f"{NAME} p{100 * q:g}")
                for q in (0.5, 0.95)
            ),
        ),
        lines(
            About(
                "Batch wait, 95 %",
                "How long a free engine held a batch back for company. Adds to latency one for one: lower "
                "batching.maxWait where it is too much.",
                "s",
                8,
            ),
            Query(_quantile(0.95, "rerank_worker_batch_wait_seconds", REVISION), NAME),
        ),
        lines(
            About(
                "Requests that share a batch",
                "Mean. 1: no concurrency to use, or every request fills a batch by itself.",
                "none",
                8,
            ),
            Query(_mean("rerank_worker_batch_requests"), NAME),
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
                f"{_rate('rerank_worker_padding_tokens_total')} / ({_rate('rerank_worker_padding_tokens_total')} + "
                f"{_rate('rerank_worker_tokens_total')})",
                NAME,
            ),
            most=1,
        ),
        lines(
            About(
                "Pairs scored",
                "Inferences a second.",
                "ops",
                8,
            ),
            Query(_rate("rerank_worker_pairs_total"), NAME),
        ),
        lines(
            About(
                "Tokens scored, and what the workers can",
                "Capacity is measured at load and corrected by what was served since.",
                "short",
                8,
            ),
            Query(_rate("rerank_worker_tokens_total"), f"{NAME} scored"),
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
            About(
                "Requests with any document cut",
                "A second, as gateways count.",
                "reqps",
                8,
            ),
            Query(_rate("rerank_gateway_truncated_requests_total"), NAME),
        ),
        lines(
            About(
                "Documents in a request",
                "Median and 95 %. More documents, more tokens: a caller that doubled its candidates doubles the load.",
                "short",
                8,
            ),
            *(
                Query(_quantile(q, "rerank_gateway_request_documents", RERANKER), f"{NAME} p{100 * q:g}")
                for q in (0.5, 0.95)
            ),
        ),
        lines(
            About(
                "Tokenizing a request, 95 %",
                "Waiting for a thread included. High while the engine idles: the pod has too few cores.",
                "s",
                8,
            ),
            Query(_quantile(0.95, "rerank_worker_tokenize_time_seconds", REVISION), NAME),
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
                "Equal heights are good; scores above: the model is "
                "too sure, kubectl rerank calibrate fits the temperature.",
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
            About(
                "Ranking quality on the golden set",
                "By measure and revision, with the objective.",
                "percentunit",
            ),
            Query(
                f"max by ({EACH}, revision, measure) (rerank_operator_golden_quality{{{REVISION}}})",
                f"{NAME} {{{{revision}}}} {{{{measure}}}}",
            ),
            Query(f"max by ({EACH}) (rerank_operator_golden_minimum{{{RERANKER}}})", f"{NAME} objective"),
            most=1,
        ),
        lines(
            About(
                "Runs of the golden set",
                "By result, in an hour. failed: Events of the Reranker say why.",
                "short",
                8,
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
                "Texts written to the gateway's log, as spec.observability.capture asks. limited: not written, "
                "there were too many that minute.",
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
                "From tokenized to the first batch, by priority. High for all: too few replicas. High for low "
                "alone: as it should be.",
                "s",
                8,
            ),
            Query(
                _quantile(0.95, "rerank_worker_queue_time_seconds", REVISION, f"{EACH}, priority"),
                f"{NAME} {{{{priority}}}}",
            ),
        ),
        lines(
            About(
                "Requests by priority",
                "As clients asked. Everything high is nothing high.",
                "reqps",
                8,
            ),
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
            About(
                "Memory of the caches",
                "Of all gateways together.",
                "bytes",
                8,
            ),
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
                "How long one takes, and how long a Reranker waits for it. Waiting alone: too many Rerankers for "
                "one operator, or the API server is slow.",
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
                "The operator compares what it knows with all objects now and then. failed: the API server could "
                "not answer.",
                "short",
                8,
            ),
            Query("sum by (result) (increase(rerank_operator_resyncs_total[$__rate_interval]))", "{{result}}"),
        ),
    ]


# --- PromQL and links ---


def _rate(counter: str) -> str:
    return f"sum by ({EACH}) (rate({counter}{{{REVISION}}}[$__rate_interval]))"


def _mean(histogram: str) -> str:
    return f"{_rate(f'{histogram}_sum')} / {_rate(f'{histogram}_count')}"


def _quantile(q: float, histogram: str, selector: str, by: str = EACH) -> str:
    return f"histogram_quantile({q:g}, sum by ({by}, le) (rate({histogram}_bucket{{{selector}}}[$__rate_interval])))"


def _drilled(panel: timeseries.Panel) -> timeseries.Panel:
    """A click on a series leads to the debug dashboard of its Reranker."""
    url = (
        "/d/rerank-debug?${datasource:queryparam}&var-namespace=${__field.labels.namespace}"
        "&var-reranker=${__field.labels.reranker}&${__url_time_range}"
    )
    return panel.data_links([DashboardLink("Debug this Reranker").type(DashboardLinkType.LINK).url(url)])


def _to(uid: str, title: str) -> DashboardLink:
    """With the variables and the time of the dashboard that it leaves."""
    link = DashboardLink(title).type(DashboardLinkType.LINK).url(f"/d/{uid}").include_vars(True).keep_time(True)
    return link.icon("dashboard")


def _runbooks() -> DashboardLink:
    link = DashboardLink("Runbooks").type(DashboardLinkType.LINK).url(RUNBOOKS).target_blank(True)
    return link.icon("doc").tooltip(
        "docs/runbooks of this project; the chart's monitoring.rules.runbookUrl says where that is"
    )
