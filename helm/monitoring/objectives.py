"""The alerts on what a Reranker promises: its error budget, late answers, nobody there.

No two of them page for the same thing: each is silent while, and shortly after, another one tells of the same Reranker
and sli. None needs a configuration of Alertmanager for that.
"""

from helm.monitoring.recording import LONG_SLI_WINDOWS
from helm.monitoring.rule import (
    DESCRIBE,
    NAME,
    OF_RERANKER,
    OF_SLI,
    STATUS,
    Alert,
    Group,
    and_a_little,
    either,
    seconds,
    silent,
)

_ACUTE_PAGES = "RerankErrorBudgetBurn|RerankLatencyBreach|RerankNoWorkers"
_PAGES = f"{_ACUTE_PAGES}|RerankDayBudgetBurn"
"""Pages about one sli of one Reranker."""

_WORST_REVISION = (
    '{{ with printf `topk(1, (1 - sum by (revision) (increase(rerank_gateway_sli_good_requests_total{namespace="%[1]s",'
    'reranker="%[2]s",sli="%[3]s"}[1h])) / (sum by (revision) (increase(rerank_gateway_sli_requests_total{'
    'namespace="%[1]s",reranker="%[2]s",sli="%[3]s"}[1h])) > 0)) and on () count(sum by (revision) (increase('
    'rerank_gateway_sli_requests_total{namespace="%[1]s",reranker="%[2]s",sli="%[3]s",revision!=""}[1h])) > 0) > 1)`'
    " $labels.namespace $labels.reranker $labels.sli | query }}"
    " Of its revisions the worst is {{ . | first | label `revision` }}: {{ . | first | value | humanizePercentage }} "
    "of its requests in the last hour.{{ end }}"
)
"""Only asked while an alert fires, and only said where several revisions have traffic."""

_SLI = "{{ $labels.sli }} of " + NAME
_BURNS = (
    f"{NAME}: {{{{ $labels.sli }}}}: the error budget of 30 days burns {{{{ $value | humanize }}}} times as fast as it "
    "may." + _WORST_REVISION
)

_THRESHOLD = (
    "{{ with printf `max(rerank_gateway_latency_threshold_seconds{namespace=%q,reranker=%q})` $labels.namespace "
    "$labels.reranker | query }} ({{ . | first | value | humanizeDuration }}){{ end }}"
)
_P95 = (
    "{{ with printf `histogram_quantile(0.95, sum by (le) (rate(rerank_gateway_request_duration_seconds_bucket"
    "{namespace=%q,reranker=%q}[10m]))) > 0` $labels.namespace $labels.reranker | query }}; p95 is "
    "{{ . | first | value | humanizeDuration }}{{ end }}"
)


def _told(window: str, pages: str) -> str:
    """What one of ``pages`` has told within ``window`` is no news."""
    fired = f'ALERTS{{alertname=~"{pages}", alertstate="firing"}}'
    return f"unless {OF_SLI}\n  max_over_time({fired}[{and_a_little(window)}]) == 1"


def _now_told(pages: str) -> str:
    """While one of ``pages`` fires, whichever was first, no other one says the same."""
    return f'unless {OF_SLI}\n  ALERTS{{alertname=~"{pages}", alertstate="firing"}} == 1'


def _burn(factor: str, long: str, short: str, *, bad: int, unless: str) -> str:
    """The budget burns ``factor`` times as fast as it may over ``long``, and still does over ``short``.

    The value is how fast. No more than 0.9 of the requests need to be bad: of a budget of 10 % one cannot burn 14.4
    times as much. A window of days says nothing before five sixths of it are known: else an hour would pass for a day.
    """
    known = ()
    if long in LONG_SLI_WINDOWS:
        piece = LONG_SLI_WINDOWS[long]
        pieces = seconds(long) / seconds(piece) * 5 / 6
        known = (
            f"and {OF_SLI}",
            f"  count_over_time(rerank:sli_requests:increase{piece}[{long}:{piece}]) >= {pieces:.0f}",
        )
    budget = "rerank:error_budget:ratio"
    limit = f"clamp_max(0.9 / {budget}, {factor})"
    return "\n".join(
        (
            f"rerank:sli_errors:ratio_rate{long} / {budget}",
            f"  > {limit}",
            f"and {OF_SLI}",
            f"  rerank:sli_errors:ratio_rate{short} / {budget}",
            f"    > {limit}",
            f"and {OF_SLI}",
            f"  rerank:sli_errors:increase{long} >= {bad}",
            *known,
            unless,
        )
    )


def objective_alerts() -> Group:
    others = "RerankLatencyBreach|RerankNoWorkers"
    late = "rerank:sli_errors:increase10m"
    return Group(
        "rerank-objectives",
        "30s",
        (
            Alert(
                name="RerankErrorBudgetBurn",
                severity="page",
                expr=either(
                    _burn("14.4", "1h", "5m", bad=10, unless=f"{silent('5m')}\n{_told('5m', others)}"),
                    _burn("6", "6h", "30m", bad=10, unless=f"{silent('30m')}\n{_told('30m', others)}"),
                ),
                why="""14.4 times over an hour is 2 % of the budget of 30 days (720 hours / 14.4 = 50 hours would
                spend it all), 6 times over 6 hours is 5 %: the rows of the SRE Workbook, chapter 5. One alert for
                both, so that it pages once. A total outage at 99.9 % is seen after 52 s: 1.44 % of an hour. The
                short window ends it soon after the cause has gone: at most 35 minutes. At least 10 bad requests:
                where 100 come in an hour, two that fail are 20 times the budget and no reason to get up. By chance
                alone a service that keeps its promise has 10 bad ones where it should have 0.7 once in 300 million
                hours.""",
                summary=_SLI + " fails its users fast",
                description=_BURNS,
                look=STATUS,
                means="14.4 times the budget over 1 h and 5 m, or 6 times over 6 h and 30 m",
                keep="5m",
            ),
            Alert(
                name="RerankLatencyBreach",
                severity="page",
                expr=f"""
rerank:sli_errors:ratio_rate10m{{sli="latency"}} > rerank:error_budget:ratio
and {OF_SLI}
  rerank:sli_errors:ratio_rate2m > rerank:error_budget:ratio
and {OF_SLI}
  ({late} - 3 * sqrt({late})) / rerank:sli_requests:increase10m > rerank:error_budget:ratio
and {OF_SLI}
  {late} >= 10
unless {OF_SLI}
  (
    rerank:sli_requests:increase10m
      < 0.9 * avg_over_time(rerank:sli_requests:increase30m[1d:30m] offset 30m) / 3
    unless {OF_SLI}
      ALERTS{{alertname="RerankLatencyBreach", alertstate="firing"}} == 1
  )
{silent("10m")}
{_now_told("RerankErrorBudgetBurn")}
""",
                why="""More answers are late than the quantile allows (p95: 5 %), for 10 minutes and still in the
                last 2, while there is at least the traffic of a mean day: at night a late answer is for the budget
                to judge. Counted, not read off a histogram. Surely more: less 3 standard deviations, so that a
                service whose p95 lies at its threshold is not paged for by chance (of 200 answers 26 must be late,
                of 20,000 1,100). 5 minutes: what 3 minutes of cold workers or of a compile after a deploy cost is
                over by then. 0.9: traffic that never changes is at its mean, not above it. A
                Reranker of the last half hour has no mean, and is not silent for that. Once it fires, less traffic
                does not end it: the fault goes on, and the budget would page for it again. Silent while
                RerankErrorBudgetBurn tells of the same, and the other way round.""",
                summary="answers of " + NAME + " are late",
                description=NAME
                + ": {{ $value | humanizePercentage }} of the answers of the last 10 minutes came after"
                " the threshold of its objective" + _THRESHOLD + _P95 + ".",
                look=STATUS,
                means="more answers late than the quantile allows, over 10 m and 2 m; it begins at no less than the "
                "mean traffic",
                hold="5m",
                keep="5m",
            ),
            Alert(
                name="RerankNoWorkers",
                severity="page",
                expr=f"""
label_replace(
  sum by (namespace, reranker) (max_over_time(rerank_gateway_waiting_requests[2m])) > 0
  unless {OF_RERANKER}
    sum by (namespace, reranker) (rerank_gateway_serving_endpoints) > 0,
  "sli", "availability", "", ""
)
{silent("0m")}
{_now_told("RerankErrorBudgetBurn")}
""",
                why="""Requests wait, and no worker has been ready for 10 minutes. Where few ask, as after idle
                time, nothing has failed 10 times yet, so the budget says nothing; and a request that is held has
                not failed at all. 10 minutes: twice the default of requests.wakeTimeout, and longer than a GPU node
                takes to come. A canary without a share of the requests serves nobody. 2 minutes: between one client
                that gave up and the next.""",
                summary="nothing serves " + NAME + ", and requests wait",
                description=NAME + ": {{ $value | humanize }} requests are held, and no worker has been ready for 10 "
                "minutes. Condition Degraded tells why, in the scheduler's or the worker's words.",
                look=DESCRIBE,
                means="requests wait and no worker is ready for 10 m",
                hold="10m",
                keep="5m",
            ),
            Alert(
                name="RerankDayBudgetBurn",
                severity="page",
                expr=_burn("2", "1d", "2h", bad=20, unless=f"{silent('2h')}\n{_told('1d', _ACUTE_PAGES)}"),
                why="Twice over a day is 7 % of the budget of 30 days, and nobody has been told: it is too slow for "
                "RerankErrorBudgetBurn, which is why a page within the last day silences it. 2 hours: it goes on. "
                "At least 20 bad requests: a service of 10,000 requests a day that just keeps 99.9 % has 10, and 20 by "
                "chance on one day of 290. At least 40 of 48 half hours are known: a leak that RerankErrorBudgetBurn "
                "sees, it sees first.",
                summary=_SLI + " has failed its users all day",
                description=_BURNS,
                look=STATUS,
                means="twice the budget over 1 d and 2 h, and no other page in that day",
                keep="2h",
            ),
            Alert(
                name="RerankErrorBudgetSlowBurn",
                severity="ticket",
                expr=either(
                    _burn("3", "1d", "2h", bad=10, unless=f"{silent('2h')}\n{_told('2h', _PAGES)}"),
                    _burn("1", "3d", "6h", bad=10, unless=f"{silent('6h')}\n{_told('6h', _PAGES)}"),
                ),
                why="3 times over a day is 10 % of the budget, once over 3 days is 10 %, too: at that rate all of it "
                "is spent when the 30 days are over. Silent where a page of the same Reranker and sli has fired in the "
                "short window: that incident's requests are still in it.",
                summary=_SLI + " will not keep its objective",
                description=_BURNS,
                look=STATUS,
                means="3 times the budget over 1 d and 2 h, or all of it over 3 d and 6 h, and no page meanwhile",
                keep="1h",
            ),
        ),
    )
