"""The executive dashboard: is the fleet worth its money, and does it keep its promises? Read over weeks.

Windows of weeks are read from recording rules or asked for one moment, never along a line.
"""

from grafana_foundation_sdk.models import dashboard

from helm.monitoring.panels import About, Column, Panel, Query, Steps, board, lines, numbers, rows, to_board
from helm.monitoring.promql import EACH, NAME, RERANKER

LOW_IS_BAD: Steps = ((None, "red"), (0.0, "orange"), (0.25, "green"))


def executive() -> dashboard.Dashboard:
    return board(
        "Executive",
        "Traffic, cost, objectives and ranking quality of all Rerankers, over weeks.",
        since="now-30d",
        refresh="5m",
        variables=("namespace", "reranker"),
        links=(to_board("On-call"),),
        parts=(
            ("Each Reranker", [_summary()]),
            ("Traffic and cost", _cost()),
            ("Promises", _promises()),
            ("Ranking quality", _quality()),
        ),
    )


def _summary() -> Panel:
    return rows(
        About(
            "Rerankers",
            "One line each. Budget left: the share of the failures that the objective allows in 30 days and that "
            "have not happened; below zero the promise is broken. A number that is missing was not measured: cost "
            "needs spec.cost, accuracy needs spec.slo.quality.",
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
                "with the traffic: replicas that stay when requests go are set by minReplicas or a schedule.",
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
                "Share of the time in which a replica's engine computes. Low for days: fewer replicas, or scaling to "
                "zero, would do.",
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
                "wait should wait. Under zero: the objective is missed, or too strict for what is paid.",
                "percentunit",
            ),
            Query(f"rerank:error_budget_left:ratio30d{{{RERANKER}}}", f"{NAME} {{{{sli}}}}"),
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
            Query(f"1 - rerank:sli_errors:ratio_rate30d{{{RERANKER}}}", f"{NAME} {{{{sli}}}}"),
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
            Query(
                f"max by ({EACH}, measure) (rerank_operator_golden_minimum{{{RERANKER}}})",
                f"{NAME} {{{{measure}}}} objective",
            ),
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
            About("Labels that users gave, per day", "How much the panel beside it rests on.", "short"),
            Query(share.format(each=EACH, what="labels", of=RERANKER), NAME),
        ),
    ]
