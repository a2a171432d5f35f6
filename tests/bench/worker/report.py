"""From raw measurements to medians, spreads, ratios and floors: pure functions of the JSON that run.py writes.

A ratio is taken within a round (the two were measured minutes apart) and then over the rounds; the spread is the
distance from the smallest to the largest, over the median.
"""

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

OURS, INT8, LIMIT = "ours", "ours-int8", "limit"

TEI_TO_ORT = {1: 29.8 / 66.9, 4: 26.7 / 61.2, 16: 28.7 / 50.0}
"""TEI-ORT's pairs/s over those of ONNX Runtime sorted at batch 4, measured side by side on 2 quiet cores on
2026-11-21; stands in where there is no text-embeddings-router to run."""


def figure(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest, largest and spread of one value a round."""
    middle = median(values)
    return {
        "median": middle,
        "min": min(values),
        "max": max(values),
        "spread": (max(values) - min(values)) / middle if middle else 0.0,
    }


def summary(measurements: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row a peer and mode, with the figures over its rounds."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for one in measurements:
        groups.setdefault((one["peer"], one["mode"]), []).append(one)
    rows = []
    for (peer, mode), group in groups.items():
        row: dict[str, Any] = {"peer": peer, "mode": mode, "rounds": len(group)}
        for key in ("pairs_per_second", "tokens_per_second", "p50_ms", "p95_ms", "p99_ms", "cpu_seconds_per_pair"):
            values = [one[key] for one in group if one.get(key) is not None]
            if values:
                row[key] = figure(values)
        row["requests"] = sum(one["requests"] for one in group)
        row["failed"] = sum(one["failed"] for one in group)
        rows.append(row)
    return rows


def ratios(
    measurements: Sequence[Mapping[str, Any]], top: str, bottom: str, mode: str, key: str = "pairs_per_second"
) -> dict[str, float] | None:
    """``top`` over ``bottom``, round by round; None where they did not run in the same round."""

    def by_round(peer: str) -> dict[int, float]:
        return {one["round"]: one[key] for one in measurements if one["peer"] == peer and one["mode"] == mode}

    above, below = by_round(top), by_round(bottom)
    values = [above[number] / below[number] for number in sorted(above.keys() & below.keys()) if below[number]]
    return figure(values) if values else None


def over_limit(
    measurements: Sequence[Mapping[str, Any]], limits: Sequence[Mapping[str, Any]], mode: str
) -> dict[str, float] | None:
    """Ours over the best packed rate of the same round."""
    best = {
        one["round"]: max(one["torch"]["pairs_per_second"], one["onnxruntime"]["pairs_per_second"]) for one in limits
    }
    rates = {m["round"]: m["pairs_per_second"] for m in measurements if m["peer"] == OURS and m["mode"] == mode}
    values = [rates[number] / best[number] for number in sorted(rates.keys() & best.keys())]
    return figure(values) if values else None


def floors(shape: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What must hold, what was measured, and whether it did (by the median); rows without a measurement say so."""
    measurements, limits = shape["measurements"], shape["limits"]
    rows: list[dict[str, Any]] = []

    def row(what: str, target: float, found: Mapping[str, float] | None, most: bool = False) -> None:
        holds = None if found is None else (found["median"] <= target if most else found["median"] >= target)
        rows.append({"what": what, "target": target, "at_most": most, "measured": found, "holds": holds})

    peers = {one["peer"] for one in measurements}
    modes = [f"closed-{clients}" for clients in (1, 4, 16)]
    for clients, mode in zip((1, 4, 16), modes, strict=True):
        if "tei" in peers:
            row(f"fp32 / TEI-ORT, {clients} clients", 2.4, ratios(measurements, OURS, "tei", mode))
        else:
            found = ratios(measurements, OURS, "ort-4", mode)
            scaled = found and {
                key: value if key == "spread" else value / TEI_TO_ORT[clients] for key, value in found.items()
            }
            row(f"fp32 / TEI-ORT (by way of ort-4), {clients} clients", 2.4, scaled)
    for clients, mode in zip((1, 4, 16), modes, strict=True):
        row(f"fp32 / st-onnx-8, {clients} clients", 1.6, ratios(measurements, OURS, "st-onnx-8", mode))
    for clients, mode in zip((1, 4, 16), modes, strict=True):
        row(f"fp32 / packed limit, {clients} clients", 0.9, over_limit(measurements, limits, mode))
    failed = [one["failed"] for one in measurements if one["peer"] == OURS and one["mode"] == modes[2]]
    row("fp32, failures at 16 clients", 0, figure(failed) if failed else None, most=True)
    row("fp32 p95 / infinity's p95, 16 clients", 0.5, ratios(measurements, OURS, "infinity", modes[2], "p95_ms"), True)
    for clients, mode in zip((1, 4, 16), modes, strict=True):
        row(f"int8 / fp32, {clients} clients", 1.8, ratios(measurements, INT8, OURS, mode))
    return rows


def tables(result: Mapping[str, Any], with_floors: bool) -> str:
    """What people read: a table a shape, the agreement of scores, and the floors where asked for."""
    parts = []
    for name, shape in result["shapes"].items():
        tokens = shape["workload"]["tokens_a_pair"]
        parts.append(f"{name}: {shape['rounds']} rounds, {tokens['mean']} tokens a pair, {result['cores']} cores")
        parts.append(_limits(shape["limits"]))
        parts.append(_agreement(shape["agreement"]))
        parts.append(_peers(shape))
        if with_floors:
            parts.append(_floors(floors(shape)))
    return "\n\n".join(part for part in parts if part)


def _limits(limits: Sequence[Mapping[str, Any]]) -> str:
    if not limits:
        return ""
    found = {name: [one[name] for one in limits] for name in ("torch", "onnxruntime")}
    rates = ", ".join(
        f"{name} {_figure(figure([one['pairs_per_second'] for one in each]))} at batch {each[0]['batch']}"
        for name, each in found.items()
    )
    return f"packed limit, pairs/s: {rates}; matmul {median([one['matmul_gflops'] for one in limits]):.0f} GFLOP/s"


def _agreement(found: Mapping[str, Mapping[str, Any]]) -> str:
    body = ", ".join(f"{peer} {one['max_difference']:.1e}" for peer, one in found.items())
    return f"largest difference of scores from the plain model: {body}"


def _peers(shape: Mapping[str, Any]) -> str:
    lines = [
        f"{'peer':<12} {'mode':<10} {'pairs/s':>14} {'p50 ms':>9} {'p95 ms':>9} {'p99 ms':>9} {'CPU s/pair':>10} "
        f"{'failed':>7}"
    ]
    for row in sorted(shape["summary"], key=lambda row: (row["mode"].split("-")[0], _last(row["mode"]), row["peer"])):
        cpu = row.get("cpu_seconds_per_pair", {}).get("median")
        lines.append(
            f"{row['peer']:<12} {row['mode']:<10} {_figure(row['pairs_per_second']):>14} "
            f"{row['p50_ms']['median']:>9.0f} {row['p95_ms']['median']:>9.0f} {row['p99_ms']['median']:>9.0f} "
            f"{cpu if cpu is None else format(cpu, '.4f'):>10} {row['failed']:>3}/{row['requests']}"
        )
    return "\n".join(lines)


def _floors(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [f"{'floor':<46} {'target':>8} {'measured':>20}  holds"]
    for row in rows:
        found = row["measured"]
        measured = "not measured" if found is None else f"{found['median']:.2f} ({found['min']:.2f}-{found['max']:.2f})"
        sign = "<=" if row["at_most"] else ">="
        verdict = "-" if row["holds"] is None else "yes" if row["holds"] else "NO"
        lines.append(f"{row['what']:<46} {sign + format(row['target'], '.2f'):>8} {measured:>20}  {verdict}")
    return "\n".join(lines)


def _figure(found: Mapping[str, float]) -> str:
    return f"{found['median']:.1f} ±{found['spread'] * 50:.0f}%"


def _last(mode: str) -> float:
    return float(mode.rpartition("-")[2])
