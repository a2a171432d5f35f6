"""Scenarios for `promtool test rules`: series are what happened, alerts what was seen. Never waits for a clock.

A series is a list of spans of minutes. Rules are evaluated once every ``tick`` minutes, whatever their group says.
"""

import functools
import json
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.cluster import BIN

RULES = Path(__file__).resolve().parents[2] / "helm" / "rerank-operator" / "files" / "rules"
PROMTOOL = shutil.which("promtool") or shutil.which("promtool", path=str(BIN))
needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="there is no promtool: tests/harness/get_prometheus takes it from Debian's packages"
)


@dataclass(frozen=True)
class Span:
    """``minutes`` in which a counter grows by ``rate`` a minute, or a gauge has the value ``rate``."""

    minutes: int
    rate: float
    seen: bool = True
    """False: nothing is scraped meanwhile, while the counter goes on."""
    restarted: bool = False
    """The process begins anew with this span: its counters at 0."""


def gap(minutes: int, rate: float) -> Span:
    return Span(minutes, rate, seen=False)


def restart(minutes: int, rate: float) -> Span:
    return Span(minutes, rate, restarted=True)


@dataclass(frozen=True)
class Series:
    name: str
    labels: tuple[tuple[str, str], ...]
    spans: tuple[Span, ...]
    gauge: bool = False

    def values(self, tick: int) -> str:
        """In promtool's notation: one value every ``tick`` minutes, the first at 0, and then it is gone."""
        count, parts = 0.0, [] if self.gauge else ["0"]
        for span in self.spans:
            steps, rest = divmod(span.minutes, tick)
            assert not rest, f"{self.name}: {span.minutes} minutes are no multiple of {tick}"
            if not steps:
                continue
            each = float(f"{span.rate * tick:.10g}")
            first = each if span.restarted else count + each
            if not span.seen:
                parts.append(f"_x{steps}")
            elif self.gauge:
                parts.append(f"{span.rate:g}x{steps - 1}")
            else:
                parts.append(f"{first!r}+{each!r}x{steps - 1}")
            # As promtool adds it up: a counter that is less by a rounding has been reset.
            count = functools.reduce(lambda sum_, _: sum_ + each, range(steps - 1), first)
        return " ".join([*parts, "stale"])


def counter(name: str, *spans: Span | tuple[int, float], **labels: str) -> Series:
    """Spans may be given as (minutes, rate)."""
    return Series(name, tuple(labels.items()), tuple(_span(span) for span in spans))


def gauge(name: str, *spans: Span | tuple[int, float], **labels: str) -> Series:
    return Series(name, tuple(labels.items()), tuple(_span(span) for span in spans), gauge=True)


def _span(span: Span | tuple[int, float]) -> Span:
    return span if isinstance(span, Span) else Span(*span)


HOME = {"namespace": "rerank-system"}


def up(job: str, *spans: Span | tuple[int, float], pod: str = "1") -> Series:
    return gauge("up", *spans, **HOME, job=f"rerank-{job}", pod=pod)


def healthy_fleet(minutes: int) -> list[Series]:
    """A gateway, and an operator that leads."""
    leader = gauge("rerank_operator_leader", (minutes, 1), **HOME, pod="1")
    return [up("gateway", (minutes, 1)), up("operator", (minutes, 1)), leader]


Firing = Mapping[str, str]
_LABELS = ("alertname", "namespace", "reranker", "revision", "sli", "measure", "pool", "missing", "way")


def alert(name: str, **labels: str) -> Firing:
    """An alert that fires, with all its labels but the severity."""
    return {"alertname": name, **labels}


def check(
    folder: Path,
    series: Iterable[Series],
    seen: Mapping[int, Sequence[Firing]],
    *,
    end: int,
    tick: int = 1,
    late: bool = False,
    fleet: bool = True,
    values: Sequence[tuple[int, str, Sequence[tuple[Mapping[str, str], float]]]] = (),
    annotations: Sequence[tuple[int, str, Sequence[tuple[Mapping[str, str], Mapping[str, str]]]]] = (),
) -> None:
    """Has promtool play the ``series`` and fails with its words unless everything was as said.

    ``seen``: minute to all alerts that fire then, of whatever name. None but these may fire at any time until ``end``,
    and each of them begins once. ``values``: (minute, expression, [(labels, value)]). ``annotations``: (minute, name
    of an alert, [(labels, annotations)]). ``late``: what is recorded is a tick old when alerts look at it.
    ``fleet``: False where ``series`` has the gateways and operators, which are well otherwise.
    """
    assert PROMTOOL is not None
    all_seen = {json.dumps(one, sort_keys=True): one for many in seen.values() for one in many}
    by = f"by ({', '.join(_LABELS)})"
    fires = 'ALERTS{alertstate="firing"}'
    expressions = [
        _expression(minute, f"count {by} ({fires})", [(one, 1.0) for one in many]) for minute, many in seen.items()
    ]
    begins = f"sum {by} (count_over_time(({fires} unless {fires} offset {tick}m)[{end + tick}m:{tick}m]))"
    expressions.append(_expression(end, begins, [(one, 1.0) for one in all_seen.values()]))
    expressions += [_expression(*one) for one in values]
    series = [*series, *(healthy_fleet(end + tick - end % tick) if fleet else ())]
    test = {
        "interval": f"{tick}m",
        "input_series": [
            {"series": f"{one.name}{{{_matchers(one.labels)}}}", "values": one.values(tick)} for one in series
        ],
        "promql_expr_test": expressions,
        "alert_rule_test": [
            {
                "eval_time": f"{minute}m",
                "alertname": name,
                "exp_alerts": [{"exp_labels": dict(of), "exp_annotations": dict(are)} for of, are in many],
            }
            for minute, name, many in annotations
        ],
    }
    order = [group["name"] for name in ("recording", "alerts") for group in _groups(name)]
    told = {
        "rule_files": [str(RULES / "recording.yaml"), str(RULES / "alerts.yaml")],
        "group_eval_order": order[::-1] if late else order,
        "evaluation_interval": f"{tick}m",
        "tests": [test],
    }
    path = folder / "scenario.yaml"
    path.write_text(json.dumps(told, indent=1))
    done = subprocess.run((PROMTOOL, "test", "rules", str(path)), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\n{path}"


def _groups(name: str) -> list[dict[str, Any]]:
    return yaml.safe_load((RULES / f"{name}.yaml").read_text())["groups"]


def _expression(minute: int, expr: str, samples: Sequence[tuple[Mapping[str, str], float]]) -> dict[str, Any]:
    return {
        "expr": expr,
        "eval_time": f"{minute}m",
        "exp_samples": [{"labels": "{" + _matchers(labels.items()) + "}", "value": value} for labels, value in samples],
    }


def _matchers(labels: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f'{key}="{value}"' for key, value in labels)
