"""The alerts on models, capacity and the fleet: what goes wrong without an error or a late answer.

Tickets, but for a fleet without a gateway. None has an absolute limit where users' models differ: they are compared
with themselves, as they were before.
"""

from helm.monitoring.rule import (
    BY_RERANKER,
    BY_REVISION,
    DESCRIBE,
    NAME,
    OF_RERANKER,
    STATUS,
    Alert,
    Group,
    either,
    quiet,
)

_NO_ROLLOUT = f"""unless {OF_RERANKER}
  max {BY_RERANKER} (max_over_time(rerank_operator_rollout_phase{{phase!~"Promoted|RolledBack|Cancelled"}}[1h])) == 1"""
"""A canary's workers come on top, on purpose; one that is forgotten is told of by RerankCanaryHeld."""

_REVISION = NAME + ", revision {{ $labels.revision }}"
_SAMPLES = "kubectl rerank samples {{ $labels.reranker }} -n {{ $labels.namespace }}"
_ITS_PODS = "-l rerank.dev/reranker={{ $labels.reranker }},rerank.dev/revision={{ $labels.revision }}"


def _in_phase(phase: str) -> str:
    return quiet(f'max {BY_REVISION} (rerank_operator_rollout_phase{{phase="{phase}"}}) == 1')


def model_alerts() -> Group:
    return Group(
        "rerank-models",
        "1m",
        (
            Alert(
                name="RerankRankingQualityLow",
                severity="ticket",
                expr=quiet("""
max by (namespace, reranker, revision, measure) (rerank_operator_golden_quality)
  < on (namespace, reranker, measure) group_left ()
    max by (namespace, reranker, measure) (rerank_operator_golden_minimum)
"""),
                why="""The golden set's own measure against spec.slo.quality.minimum. The same model ranks the same
                set in the same way, so one run is enough; 5 minutes are for a minimum that is being changed.""",
                summary="the ranking of " + _REVISION + " is below its minimum",
                description=_REVISION + ": {{ $labels.measure }} of the golden set is {{ $value | humanize }}.",
                look=STATUS,
                means="the golden set is ranked worse than spec.slo.quality.minimum",
                hold="5m",
                keep="10m",
            ),
            Alert(
                name="RerankCalibrationWorse",
                severity="ticket",
                expr=quiet(
                    either(
                        "rerank:ece:1d > rerank:ece:7d_before + 0.05",
                        "rerank:golden_ece\n"
                        f"  > {OF_RERANKER} group_left ()\n"
                        f"    (min {BY_RERANKER} (min_over_time(rerank:golden_ece[7d:1h])) + 0.05)",
                    )
                ),
                why="""Scores are 5 points further from the truth than they were: a threshold on scores that was
                chosen for 70 % now means 65 %. By users' labels: the last day against the week before, the same
                revision. By the golden set: against the best of the last week, of any revision, so that a new model
                without its own temperature is told of. 0.05: labels of 1,000 answers alone err by 0.04 at most, the
                week's by a third of that. Never an absolute limit: many good rankers have never been calibrated.""",
                summary="scores of " + _REVISION + " mean less than they did",
                description=_REVISION
                + ": the expected calibration error is {{ $value | humanize }}, over 0.05 more than "
                "before. The order of documents is not touched; thresholds on scores are.",
                look=_SAMPLES,
                means="the calibration error has risen by 0.05: of users' labels or of the golden set",
                hold="15m",
                keep="1h",
            ),
            Alert(
                name="RerankScoreDrift",
                severity="ticket",
                expr=quiet("rerank:score_psi > 0.25", "6h"),
                why="""By the usual reading 0.1 is a shift to watch and 0.25 a large one: of a bin that held 40 % of
                the scores, 20 % have moved to another of 20 %. The same revision, so what changed is what is asked
                or what is found, not the model. With 1,000 scores in each window chance comes to 0.04. 2 hours: one
                odd batch job is no drift.""",
                summary="scores of " + _REVISION + " are distributed otherwise than yesterday",
                description=_REVISION
                + ": the population stability index of the last 6 hours against the reference day is "
                "{{ $value | humanize }}.",
                look=_SAMPLES,
                means="scores of the last 6 h against a day that ended a day ago: PSI over 0.25, 1,000 scores in each",
                hold="2h",
                keep="1h",
            ),
            Alert(
                name="RerankTruncation",
                severity="ticket",
                expr=quiet(
                    f"""
rerank:truncated_requests:increase1h / (rerank:scored_requests:increase1h >= 100)
  > 2 * sum_over_time(rerank:truncated_requests:increase1h[7d:1h] offset 1h)
    / (sum_over_time(rerank:scored_requests:increase1h[7d:1h] offset 1h) >= 1000)
and {OF_RERANKER}
  rerank:truncated_requests:increase1h / rerank:scored_requests:increase1h > 0.1
""",
                    "1h",
                ),
                why="""What does not fit is cut in silence, and the ranking gets worse without an error. A share by
                itself is no news: who ranks books has chosen it. Twice the share of the week before is, where it is
                at least one request in ten: documents have become longer, or maxLength smaller. By Reranker, so
                that a new revision is compared with the one before.""",
                summary="more requests of " + NAME + " are truncated",
                description=NAME + ": of {{ $value | humanizePercentage }} of the requests of the last hour a document "
                "was cut, more than twice as many as in the week before.",
                look="kubectl -n {{ $labels.namespace }} get reranker {{ $labels.reranker }} "
                "-o jsonpath='{.spec.model}'",
                means="twice as large a share of requests is cut as in the week before, and over 10 %",
                hold="30m",
                keep="30m",
            ),
            Alert(
                name="RerankWorkersDiffer",
                severity="ticket",
                expr=quiet(f"""
count {BY_REVISION} (
  count by (namespace, reranker, revision, model_sha256, tokenizer_sha256) (
    rerank_worker_info{{reranker!="", warm_pool="", model_sha256!=""}}
  )
) > 1
"""),
                why="""Workers of one revision serve other bytes, of the model or of the tokenizer: a floating
                revision, a folder that was changed below them. The same request then gets other scores from one
                moment to the next, which no error and no latency tells. Warm pods hold models of several Rerankers
                and are left out. 15 minutes: a rolling restart on purpose.""",
                summary="workers of " + _REVISION + " serve different models",
                description=_REVISION + ": its workers have {{ $value }} different pairs of checksums of model and "
                "tokenizer.",
                look="kubectl -n {{ $labels.namespace }} get pods -o wide " + _ITS_PODS,
                means="workers of one revision have different checksums of model or tokenizer for 15 m",
                hold="15m",
                keep="5m",
            ),
            Alert(
                name="RerankCanaryRolledBack",
                severity="ticket",
                expr=_in_phase("RolledBack"),
                why="""Stable serves everything, so nobody is to be woken; but what the spec asks for does not
                serve, and will not by itself. It ends when the spec changes, or with kubectl rerank retry.""",
                summary="canary {{ $labels.revision }} of " + NAME + " was taken back",
                description=_REVISION + ": it was found to be worse, or crashed, and stable serves everything.",
                look=STATUS,
                means="the last canary was rolled back and nothing has been done about it",
                keep="5m",
            ),
            Alert(
                name="RerankCanaryHeld",
                severity="ticket",
                expr=_in_phase("Paused"),
                why="""Paused: its deadline is over without a verdict, or somebody paused it and has not come back.
                Two sets of workers are paid for meanwhile. 30 minutes for who paused it to look at something.""",
                summary="canary {{ $labels.revision }} of " + NAME + " waits for a decision",
                description=_REVISION + ": the canary is paused and keeps its share of the requests.",
                look=STATUS,
                means="a canary is paused, by its deadline or by hand, for 30 m",
                hold="30m",
                keep="5m",
            ),
        ),
    )


def capacity_alerts() -> Group:
    return Group(
        "rerank-capacity",
        "1m",
        (
            Alert(
                name="RerankOutOfMemory",
                severity="ticket",
                expr=quiet(
                    either(
                        f"sum {BY_REVISION} (\n"
                        '  increase(rerank_worker_out_of_memory_recoveries_total{reranker!=""}[1h])\n'
                        ") >= 2.5",
                        f"count {BY_REVISION} (\n"
                        "  max by (namespace, pod, reranker, revision) (\n"
                        '    present_over_time(rerank_worker_requests_in_flight{reranker!=""}[1h])\n'
                        "  )\n"
                        "  and on (namespace, pod)\n"
                        '    increase(kube_pod_container_status_restarts_total{container="worker"}[1h]) > 0\n'
                        "  and on (namespace, pod)\n"
                        "    kube_pod_container_status_last_terminated_reason"
                        '{container="worker", reason="OOMKilled"} == 1\n'
                        ")",
                    ),
                    "1h",
                ),
                why="""Batches that did not fit are split and scored, and the worker's budget of tokens shrinks, so
                once or twice is how it learns; three times in an hour (2.5, for increase() estimates) it goes on,
                and each costs the time of two batches. And workers that the kernel has killed for their memory,
                where kube-state-metrics is scraped: one is enough.""",
                summary="workers of " + _REVISION + " run out of memory",
                description=_REVISION + ": {{ $value | humanize }} batches did not fit, or workers were killed, in the "
                "last hour.",
                look="kubectl -n {{ $labels.namespace }} describe pods " + _ITS_PODS,
                means="3 batches did not fit into memory, or a worker was killed for its memory, in 1 h",
                keep="10m",
            ),
            Alert(
                name="RerankIdleReplicas",
                severity="ticket",
                expr=quiet(f"""
rerank:utilization:ratio30m < 0.05
and {OF_RERANKER}
  rerank:workers:count
    > on (namespace, reranker) clamp_min(max {BY_RERANKER} (rerank_operator_minimum_replicas), 1)
{_NO_ROLLOUT}
"""),
                why="""More workers than minReplicas and schedules ask for, and less than 3 of 60 minutes of each
                are used. Scaling would have taken them away, so something keeps them: spec.replicas, the annotation
                scaling-paused, a loan that is not given back. What minReplicas asks for was asked for. And one
                worker is never too many: idleTimeout counts from the last request, so one short request a minute
                keeps one for ever, and a long idleTimeout keeps it for long; both are as asked.""",
                summary="workers of " + NAME + " are idle",
                description=NAME
                + ": its workers computed {{ $value | humanizePercentage }} of the last 30 minutes, and "
                "are more than one and than minReplicas and schedules ask for.",
                look=DESCRIBE,
                means="workers compute for under 5 % of the time, and are more than one and than minReplicas "
                "and schedules ask for",
                hold="30m",
                keep="5m",
            ),
            Alert(
                name="RerankCostAnomaly",
                severity="ticket",
                expr=quiet(
                    f"""
rerank:replica_seconds:increase1h / (rerank:pairs:increase1h >= 1000)
  > 2 * sum_over_time(rerank:replica_seconds:increase1h[7d:1h] offset 1h)
    / (sum_over_time(rerank:pairs:increase1h[7d:1h] offset 1h) > 0)
and {OF_RERANKER}
  rerank:replica_seconds:increase1h > 1.5 * avg_over_time(rerank:replica_seconds:increase1h[7d:1h] offset 1h)
and {OF_RERANKER}
  count_over_time(rerank:replica_seconds:increase1h[7d:1h]) >= 24
{_NO_ROLLOUT}
""",
                    "1h",
                ),
                why="""An inference costs more than twice what it did in the week before (all its time by all its
                inferences), and more is spent in all: 1.5 times the mean hour. The second, since at night and on
                Sundays few share the workers that stay, and nothing is wrong. In seconds of workers, which is the
                price but for its unit: so it needs no spec.cost, and a new price is no anomaly. At least 1,000
                inferences in the hour, and a day of history.""",
                summary="an inference of " + NAME + " costs twice as much as it did",
                description=NAME
                + ": an inference took {{ $value | humanizeDuration }} of workers' time in the last hour, more than "
                "twice what it took in the week before.{{ with printf `max(rerank:cost_per_1000_inferences:1h"
                "{namespace=%q,reranker=%q})` $labels.namespace $labels.reranker | query }} 1,000 cost "
                "{{ . | first | value | humanize }}.{{ end }}",
                look=DESCRIBE,
                means="an inference takes over twice the workers' time of the last 7 d, and more is spent in all",
                hold="15m",
                keep="30m",
            ),
            Alert(
                name="RerankColdStartsSlow",
                severity="ticket",
                expr="""
rerank:wake_seconds:avg6h > 2 * rerank:wake_seconds:avg7d_before
and
  rerank:wake_seconds:avg6h > 5
""",
                why="""The first request after idle time waits twice as long as in the week before, in the mean of
                at least 5 wakes, and more than 5 s: of warm pods 0.2 s may become 0.5 s without a word. way: warm
                (a pod of a pool was lent) or cold. Against the week, for what is slow is the user's model and node:
                from 9 s to many minutes.""",
                summary="{{ $labels.way }} starts take twice as long as they did",
                description="A {{ $labels.way }} start took {{ $value | humanizeDuration }} in the mean of the last 6 "
                "hours, from the request that waited to the first worker.",
                look="kubectl get rerankers -A -o wide",
                means="wakes take twice as long as in the week before, over 5 s, in the mean of 6 h",
                keep="1h",
            ),
            Alert(
                name="RerankWarmPoolEmpty",
                severity="ticket",
                expr="""
max by (namespace, pool) (rerank_operator_warm_pods{state="free"}) == 0
and on (namespace, pool)
  max by (namespace, pool) (rerank_operator_warm_pods{state="not_ready"}) > 0
""",
                why="""No warm pod is free, and some that there should be do not get ready: the next wake is a cold
                start. All of them lent is no fault but what the pool is for. 15 minutes: longer than pods that come
                back from a loan, and longer than a new node.""",
                summary="warm pool {{ $labels.namespace }}/{{ $labels.pool }} has no pod that is ready",
                description="WarmPool {{ $labels.namespace }}/{{ $labels.pool }}: none is free, and some have not been "
                "ready for 15 minutes.",
                look="kubectl -n {{ $labels.namespace }} describe warmpool {{ $labels.pool }}",
                means="no pod of a WarmPool is free while some do not get ready, for 15 m",
                hold="15m",
                keep="5m",
            ),
        ),
    )


def _answers(which: str) -> str:
    """Of the last 10 minutes, by the namespace of the gateways: the counter's own is that of the Reranker, if any."""
    return f"""sum by (namespace) (
  max by (namespace, pod) (present_over_time(up{{job="rerank-gateway"}}[10m]))
  * on (pod) group_left ()
    sum by (pod) (increase(rerank_gateway_requests_total{{{which}}}[10m]))
)"""


def fleet_alerts() -> Group:
    gone = 'max by (namespace) (max_over_time(up{job="rerank-%s"}[1d])) == 1\nunless on (namespace)\n  %s'
    return Group(
        "rerank-fleet",
        "30s",
        (
            Alert(
                name="RerankGatewayDown",
                severity="page",
                expr=either(
                    gone % ("gateway", 'max by (namespace) (up{job="rerank-gateway"}) == 1'),
                    "max by (namespace) (rerank_gateway_ready) == 0",
                ),
                why="""There was a gateway within the last day and none can be scraped now; or gateways run, and none
                would answer its readiness probe (rights lost, a CRD missing, never synced), so their Service has no
                endpoint. Either way no request gets through, and what gateways do not count, no other alert sees. A
                day: targets that are gone are gone from up, too, and an outage must not end its own page; what never
                was up is RerankTelemetryMissing's. 3 minutes: restarts and gaps of scrapes are shorter.""",
                summary="no gateway in {{ $labels.namespace }} is ready",
                description="{{ if eq $value 0.0 }}Gateways run in {{ $labels.namespace }}, and none has been ready"
                "{{ else }}Prometheus has not reached any gateway in {{ $labels.namespace }}{{ end }} for 3 minutes. "
                "Requests of all Rerankers go through them.",
                look="kubectl -n {{ $labels.namespace }} get pods -l app.kubernetes.io/component=gateway -o wide",
                means="no gateway is ready, or none can be scraped and there was one in the last day, for 3 m",
                hold="3m",
                keep="5m",
            ),
            Alert(
                name="RerankKeysRefused",
                severity="ticket",
                expr=f"""
{_answers('code="401"')} >= 20
unless on (namespace)
{_answers('reranker!=""')} > 0
""",
                why="""Not one request has got past the check of its key, and 20 and more in 10 minutes have not: the
                Secret with the keys was emptied or replaced by another one. It is no failure by any
                objective, for a wrong key is the client's own fault, and before the key is known no Reranker is.
                That a Reranker was asked, with whatever result, proves that some key is good; answers without a
                Reranker prove nothing, for /healthz needs no key. 20: a client or scanner that has no key, and tries
                again once a minute at night, is no outage. 5 minutes: a Secret and its clients that are changed one
                after the other.""",
                summary="gateways in {{ $labels.namespace }} refuse every API key",
                description="Gateways in {{ $labels.namespace }} have answered {{ $value | humanize }} requests of the "
                "last 10 minutes with 401 and not let any other one through.",
                look="kubectl -n {{ $labels.namespace }} logs -l app.kubernetes.io/component=gateway --tail=-1 --prefix"
                " | grep 'API keys'",
                means="at least 20 requests in 10 m have no valid key and none has one, for 5 m",
                hold="5m",
                keep="5m",
            ),
            Alert(
                name="RerankOperatorWithoutLeader",
                severity="ticket",
                expr=gone % ("operator", "sum by (namespace) (rerank_operator_leader) >= 1"),
                why="""Requests are served without an operator, but nothing is scaled, woken or rolled back. A
                standby leads 15 s after the leader was lost, so 5 minutes are no fail-over. A day: as with
                gateways.""",
                summary="no operator leads in {{ $labels.namespace }}",
                description="No operator in {{ $labels.namespace }} has led for 5 minutes: the number of workers stays "
                "as it is, nothing is woken, and canaries are not judged.",
                look="kubectl -n {{ $labels.namespace }} get pods,lease -l app.kubernetes.io/component=operator",
                means="no operator leads for 5 m, and there was one in the last day",
                hold="5m",
                keep="5m",
            ),
            Alert(
                name="RerankTelemetryMissing",
                severity="ticket",
                expr=either(
                    quiet(f"""label_replace(
  sum {BY_RERANKER} (rerank_gateway_endpoints) > 0
  unless {OF_RERANKER} rerank:workers:count,
  "missing", "workers", "", ""
)"""),
                    quiet(
                        f"""label_replace(
  sum {BY_RERANKER} (increase(rerank_operator_golden_runs_total{{result="failed"}}[1h])) >= 2.5
  unless {OF_RERANKER}
    sum {BY_RERANKER} (increase(rerank_operator_golden_runs_total{{result="ok"}}[1h])) > 0,
  "missing", "golden set", "", ""
)""",
                        "1h",
                    ),
                    *(
                        f"""sum by (missing) (label_replace(
  absent(max_over_time(up{{job="rerank-{what}"}}[1d]) == 1),
  "missing", "{what}s", "", ""
))"""
                        for what in ("gateway", "operator")
                    ),
                ),
                why="""What is not measured raises no alarm, so that it is not measured must. workers: gateways use
                workers that are not scraped. golden set: three tries in an hour failed and none succeeded (they
                come every 10 minutes at least). gateways, operators: none was scraped for a day, or ever; what
                was there before is told of by RerankGatewayDown and RerankOperatorWithoutLeader in that day. 15
                minutes: a Prometheus that starts.""",
                summary="no data about {{ $labels.missing }}{{ with $labels.reranker }} of " + NAME + "{{ end }}",
                description="Alerts that need data about {{ $labels.missing }} cannot fire{{ with $labels.reranker }} "
                "for " + NAME + "{{ end }}.",
                look="kubectl get pods -A -o wide -l 'app.kubernetes.io/component in (gateway, operator, worker)'",
                means="gateways, operators or workers are not scraped, or a golden set cannot be ranked",
                hold="15m",
                keep="5m",
            ),
        ),
    )
