"""What a run is told as: one JSON object, or a table to read."""

import math
from array import array
from collections.abc import Sequence
from typing import Any

from rerank_operator.scaling.simulate.fleet import Outcome, Run

QUANTILES = (50, 95, 99)


def report(controller: str, names: Sequence[str], run: Run) -> dict[str, Any]:
    """The object that ``--json`` prints, without the settings: seconds, ratios from 0 to 1, counts."""
    rerankers = [{"name": name, **_figures([outcome])} for name, outcome in zip(names, run.outcomes, strict=True)]
    total = _figures(run.outcomes)
    total["peak_replicas"] = run.peak_replicas
    total["cost_replica_seconds"] = round(total["replica_seconds"] + run.warm_idle_seconds, 3)
    return {
        "controller": controller,
        "simulated_seconds": round(run.end - run.begin, 3),
        "warm_idle_seconds": round(run.warm_idle_seconds, 3),
        "total": total,
        "rerankers": rerankers,
    }


def _figures(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    requests = sum(outcome.requests for outcome in outcomes)
    missed = sum(outcome.late + outcome.lost + outcome.unfinished for outcome in outcomes)
    waits = array("d")
    for outcome in outcomes:
        waits.extend(outcome.waits)
    ordered = sorted(waits)
    return {
        "requests": requests,
        "lost": sum(outcome.lost for outcome in outcomes),
        "lost_queue_limit": sum(outcome.rejected for outcome in outcomes),
        "lost_timeout": sum(outcome.timed_out for outcome in outcomes),
        "unfinished": sum(outcome.unfinished for outcome in outcomes),
        "replica_seconds": round(sum(outcome.replica_seconds for outcome in outcomes), 3),
        "loaner_seconds": round(sum(outcome.loaner_seconds for outcome in outcomes), 3),
        "slo_miss_ratio": round(missed / requests, 6) if requests else 0.0,
        **{f"wait_p{percent}_seconds": round(quantile(ordered, percent / 100), 6) for percent in QUANTILES},
        "peak_replicas": max((outcome.peak_replicas for outcome in outcomes), default=0),
        "scale_events": sum(outcome.scale_events for outcome in outcomes),
    }


def quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` of ``ordered`` do not exceed; 0 of none."""
    return ordered[max(0, math.ceil(share * len(ordered) - 1e-9) - 1)] if ordered else 0.0


COLUMNS = (
    ("requests", "requests", "{:d}"),
    ("lost", "lost", "{:d}"),
    ("replica s", "replica_seconds", "{:.0f}"),
    ("loaner s", "loaner_seconds", "{:.0f}"),
    ("over SLO", "slo_miss_ratio", "{:.2%}"),
    ("wait p50", "wait_p50_seconds", "{:.3f}"),
    ("p95", "wait_p95_seconds", "{:.3f}"),
    ("p99", "wait_p99_seconds", "{:.3f}"),
    ("peak", "peak_replicas", "{:d}"),
    ("events", "scale_events", "{:d}"),
)


def table(found: dict[str, Any]) -> str:
    """``found`` as lines that fit a terminal."""
    names = [*(reranker["name"] for reranker in found["rerankers"]), "total"]
    rows = [["", *(title for title, _, _ in COLUMNS)]]
    for name, figures in zip(names, [*found["rerankers"], found["total"]], strict=True):
        rows.append([name, *(form.format(figures[key]) for _, key, form in COLUMNS)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    target = f", target {found['target']:g} requests at once per replica" if found.get("target") is not None else ""
    lines += [
        "",
        f"controller {found['controller']}{target}; {found['simulated_seconds']:.0f} s simulated",
        f"pool: {found['settings']['warm_pods']} warm pods, idle for {found['warm_idle_seconds']:.0f} s; "
        f"replicas and the pool's idle time together: {found['total']['cost_replica_seconds']:.0f} s",
    ]
    objectives = dict.fromkeys(f"{slo['quantile']:.4g} within {slo['seconds']:g} s" for slo in found["settings"]["slo"])
    lines.append(f"over SLO: share of requests that took longer than the objective ({'; '.join(objectives)})")
    if found["total"]["unfinished"]:
        lines.append(f"{found['total']['unfinished']} requests were still held two hours after the last arrival")
    return "\n".join(lines)
