"""The recording rules: counts of what was as promised, use, cost, distribution and calibration of scores.

Ratios are quotients of sums of counts, so that traffic weighs; without traffic there is none. Nothing here decides.
"""

from helm.monitoring.rule import BY_RERANKER, BY_REVISION, Group, Recording

_FEWEST_SCORES = 1000
_FEWEST_LABELS = 1000
_FLOOR = 0.01
"""Share that an empty bin of scores counts as."""

_SLI_WINDOWS = ("2m", "5m", "10m", "30m", "1h", "2h", "6h")
LONG_SLI_WINDOWS = {"1d": "30m", "3d": "30m", "30d": "1h"}
"""Window, and the pieces that it is put together from."""


def _sli_group() -> Group:
    rules: list[Recording] = [
        Recording(
            "rerank:error_budget:ratio",
            "1 - max by (namespace, reranker, sli) (rerank_gateway_objective_ratio)",
            "Share of requests that may be bad: 0.001 where 99.9 % are promised. Where gateways do not agree for a "
            "moment, since the objective has just changed, the stricter one counts.",
        ),
        Recording(
            "rerank:maintenance",
            "max by (namespace, reranker) (rerank_gateway_maintenance)",
            "1 while the annotation rerank.dev/maintenance-until of the Reranker lies ahead.",
        ),
    ]
    for window in _SLI_WINDOWS:
        rules += [
            Recording(
                f"rerank:sli_requests:increase{window}",
                f"sum by (namespace, reranker, sli) (increase(rerank_gateway_sli_requests_total[{window}]))",
            ),
            Recording(
                f"rerank:sli_errors:increase{window}",
                f"""
                clamp_min(
                  rerank:sli_requests:increase{window}
                  - sum by (namespace, reranker, sli) (increase(rerank_gateway_sli_good_requests_total[{window}])),
                  0
                )
                """,
            ),
            _ratio(window),
        ]
    return Group(
        "rerank-sli",
        "30s",
        tuple(rules),
        "Counts of requests, and of those that were not as promised (sli: availability, latency), by Reranker. From "
        "the counters themselves, so that resets, new pods and new revisions are what increase() takes them for.",
    )


def _long_sli_group() -> Group:
    rules: list[Recording] = []
    for window, piece in LONG_SLI_WINDOWS.items():
        rules += [
            Recording(
                f"rerank:sli_{kind}:increase{window}",
                f"sum_over_time(rerank:sli_{kind}:increase{piece}[{window}:{piece}])",
            )
            for kind in ("requests", "errors")
        ]
        rules.append(_ratio(window))
    rules.append(
        Recording(
            "rerank:error_budget_left:ratio30d",
            "1 - rerank:sli_errors:ratio_rate30d / rerank:error_budget:ratio",
            "1: nothing of the budget of 30 days is spent; 0: all of it; below 0: more than there was. Of a younger "
            "Reranker: since it is there.",
        )
    )
    return Group(
        "rerank-sli-long",
        "2m",
        tuple(rules),
        "Windows of days, put together from pieces of the group above that do not overlap: 30 days are 720 hours. Of "
        "the counters themselves they would be 86,400 samples a series and evaluation; so they are 720. The ends of a "
        "window lie at full pieces, so the newest requests are missing: at most 30 minutes' in 1d and 3d, an hour's "
        "in 30d.",
    )


def _ratio(window: str) -> Recording:
    # Without traffic there is no ratio, rather than 0 or NaN.
    return Recording(
        f"rerank:sli_errors:ratio_rate{window}",
        f"rerank:sli_errors:increase{window} / (rerank:sli_requests:increase{window} > 0)",
    )


def _wakes(window: str, fewest: int) -> str:
    by = "by (namespace, way)"
    return f"""
sum {by} (increase(rerank_operator_wake_seconds_sum[{window}))
/ (sum {by} (increase(rerank_operator_wake_seconds_count[{window})) >= {fewest})
"""


def _use_group() -> Group:
    busy = f'sum {BY_RERANKER} (rate(rerank_worker_engine_time_seconds_sum{{reranker!=""}}[%s]))'
    return Group(
        "rerank-use",
        "1m",
        (
            Recording(
                "rerank:workers:count",
                f'count {BY_RERANKER} (rerank_worker_requests_in_flight{{reranker!=""}})',
                "Workers that are scraped, warm pods on loan included.",
            ),
            Recording(
                "rerank:utilization:ratio5m",
                f"{busy % '5m'} / rerank:workers:count",
                "Share of the time that the engines computed, on whatever device.",
            ),
            Recording("rerank:utilization:ratio30m", f"{busy % '30m'} / rerank:workers:count"),
            Recording(
                "rerank:pairs:increase1h",
                f'sum {BY_RERANKER} (increase(rerank_worker_pairs_total{{reranker!=""}}[1h]))',
                "Pairs scored: inferences.",
            ),
            Recording(
                "rerank:replica_seconds:increase1h",
                f"sum {BY_RERANKER} (increase(rerank_operator_replica_seconds_total[1h]))",
            ),
            Recording(
                "rerank:cost_per_1000_inferences:1h",
                f"""
                1000 * sum {BY_RERANKER} (increase(rerank_operator_cost_total[1h]))
                / (rerank:pairs:increase1h > 0)
                """,
                "In the currency of spec.cost; nothing where no price is given.",
            ),
            Recording(
                "rerank:scored_requests:increase1h",
                f"sum {BY_RERANKER} (increase(rerank_gateway_request_duration_seconds_count[1h]))",
            ),
            Recording(
                "rerank:truncated_requests:increase1h",
                f"sum {BY_RERANKER} (increase(rerank_gateway_truncated_requests_total[1h]))",
            ),
            Recording(
                "rerank:wake_seconds:avg6h",
                _wakes("6h]", 5),
                "Mean time that a first request waited for a first worker, by way (warm, cold), of at least 5 wakes.",
            ),
            Recording("rerank:wake_seconds:avg7d_before", _wakes("7d] offset 6h", 20), "The same of the week before."),
        ),
    )


def _score_group() -> Group:
    bins = "by (namespace, reranker, revision, bin)"

    def share(window: str) -> str:
        scores = f"sum_over_time(rerank:scores:increase1h[{window})"
        return f"""
{scores}
/ on (namespace, reranker, revision) group_left ()
(sum {BY_REVISION} ({scores}) >= {_FEWEST_SCORES})
"""

    def error(window: str) -> str:
        return f"""
sum {BY_REVISION} (abs(
  sum_over_time(rerank:feedback_relevant:increase1h[{window})
  - sum_over_time(rerank:feedback_scores:increase1h[{window})
))
/ (sum {BY_REVISION} (sum_over_time(rerank:feedback_labels:increase1h[{window})) >= {_FEWEST_LABELS})
"""

    now, before = (f"clamp_min(rerank:scores:share{which}, {_FLOOR})" for which in ("6h", "24h_before"))
    return Group(
        "rerank-scores",
        "2m",
        (
            Recording(
                "rerank:scores:increase1h",
                f'sum {bins} (increase(rerank_worker_scores_total{{reranker!=""}}[1h]))',
            ),
            Recording(
                "rerank:scores:share6h",
                share("6h:1h]"),
                f"Share of each bin of 0.05. Nothing with fewer than {_FEWEST_SCORES} scores.",
            ),
            Recording(
                "rerank:scores:share24h_before",
                share("24h:1h] offset 1d"),
                "The reference: a whole day, which ended a day ago, of the same revision.",
            ),
            Recording(
                "rerank:score_psi",
                f"""
                sum {BY_REVISION} (
                  ({now} - {before})
                  * ln({now} / {before})
                )
                """,
                """Population stability index: the sum over bins of (p - q) ln(p / q), which is the symmetrised
                divergence of Kullback and Leibler (On Information and Sufficiency, 1951). 0: the same. A bin with
                less than one score in a hundred counts as one in a hundred: else the logarithm of an empty one were
                infinite, and a few scores where there were none would weigh as much as a shift of half of all. By
                chance alone it is near 19 (1/n + 1/m) for 20 bins (Yurdakul, Statistical Properties of Population
                Stability Index, 2018): 0.04 for n = m = 1,000.""",
            ),
            *(
                Recording(
                    f"rerank:feedback_{what}:increase1h",
                    f"sum {bins} (increase(rerank_gateway_feedback_{what}_total[1h]))",
                )
                for what in ("labels", "relevant", "scores")
            ),
            Recording(
                "rerank:ece:1d",
                error("1d:1h]"),
                f"""Expected calibration error of answers that users have judged: over ten bins, how far the mean
                score is from the share that was relevant, weighted by labels, which is |relevant - scores| summed
                over bins, by all labels (Naeini et al., Obtaining Well Calibrated Probabilities Using Bayesian
                Binning, 2015). Nothing with fewer than {_FEWEST_LABELS} labels: with 100 in each bin it is up to
                0.04 by chance alone.""",
            ),
            Recording("rerank:ece:7d_before", error("7d:1h] offset 1d"), "The week before that day."),
            Recording(
                "rerank:golden_ece",
                f'max {BY_REVISION} (rerank_operator_golden_calibration{{measure="ece"}})',
            ),
        ),
    )


def recording_groups() -> tuple[Group, ...]:
    """In the order of evaluation."""
    return _sli_group(), _long_sli_group(), _use_group(), _score_group()
