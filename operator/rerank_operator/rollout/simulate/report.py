"""What many simulated rollouts are told as: one JSON object, or a table to read."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rerank_operator.rollout.simulate.runs import Run
from rerank_operator.rollout.simulate.scenario import Arm, LogNormal, Scenario


def report(judge: str, runs: Sequence[Run], scenario: Scenario) -> dict[str, Any]:
    """The object that ``--json`` prints: shares from 0 to 1, seconds, counts; None where no run has a value."""
    count = len(runs)
    rolled_back = [run for run in runs if run.outcome == "rollback"]
    outcomes = Counter(run.outcome for run in runs)
    reasons = Counter(run.reason for run in rolled_back)
    touched = [run.canary_requests for run in rolled_back]
    return {
        "judge": judge,
        "runs": count,
        "rollback_rate": round(outcomes["rollback"] / count, 6),
        "promote_rate": round(outcomes["promote"] / count, 6),
        "hold_rate": round(outcomes["hold"] / count, 6),
        "canary_requests_to_rollback_p50": quantile(touched, 0.5),
        "canary_requests_to_rollback_p90": quantile(touched, 0.9),
        "seconds_to_decision_p50": quantile([run.seconds for run in runs if run.outcome != "hold"], 0.5),
        "user_requests_on_canary_p50": quantile([run.canary_requests for run in runs], 0.5),
        "reasons": {reason: round(reasons[reason] / count, 6) for reason in sorted(reasons)},
        "settings": settings(scenario),
    }


def quantile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that at least ``share`` of ``values`` do not exceed; None of none."""
    return sorted(values)[max(0, math.ceil(share * len(values) - 1e-9) - 1)] if values else None


def settings(scenario: Scenario) -> dict[str, Any]:
    """The scenario as it was understood, with its defaults, in the words of its file."""
    bursts = scenario.bursts
    return {
        "requests_per_second": scenario.requests_per_second,
        "horizon_seconds": scenario.horizon,
        "runs": scenario.runs,
        "seed": scenario.seed,
        "weights": list(scenario.weights),
        "correlation": scenario.correlation,
        "bursts": bursts and {"factor": bursts.factor, "on_seconds": bursts.on, "off_seconds": bursts.off},
        "golden_queries": scenario.golden_queries,
        "golden_correlation": scenario.golden_correlation,
        "stable": _arm(scenario.stable),
        "canary": _arm(scenario.canary),
    }


def _arm(arm: Arm) -> dict[str, Any]:
    latency = arm.latency
    return {
        "error_rate": arm.error_rate,
        "latency": {"p50_seconds": latency.p50, "p95_seconds": latency.p95}
        if isinstance(latency, LogNormal)
        else {"samples": latency.file, "recorded": len(latency.seconds)},
        "ndcg": arm.quality and arm.quality.ndcg,
        "ndcg_sd": arm.quality and arm.quality.sd,
    }


def table(found: dict[str, Any]) -> str:
    """``found`` as lines that fit a terminal."""
    reasons = ", ".join(f"{reason or 'unnamed'} {share:.1%}" for reason, share in found["reasons"].items())
    rows = [
        ("rolled back", f"{found['rollback_rate']:.1%}" + (f" ({reasons})" if reasons else "")),
        ("promoted", f"{found['promote_rate']:.1%}"),
        ("held to the horizon", f"{found['hold_rate']:.1%}"),
        (
            "canary's requests until rollback",
            f"p50 {_figure(found['canary_requests_to_rollback_p50'])}, "
            f"p90 {_figure(found['canary_requests_to_rollback_p90'])}",
        ),
        ("seconds until decision", f"p50 {_figure(found['seconds_to_decision_p50'])}"),
        ("users' requests on the canary", f"p50 {_figure(found['user_requests_on_canary_p50'])}"),
    ]
    width = max(len(title) for title, _ in rows)
    lines = [f"{title.ljust(width)}  {value}" for title, value in rows]
    return "\n".join([f"judge {found['judge']}, {found['runs']} runs, seed {found['settings']['seed']}", "", *lines])


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"
