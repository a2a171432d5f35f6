"""The recording rules and alerts of the whole fleet, as values; writes them as Prometheus rule files for the chart.

Pure but for ``write``. One set of rules serves every Reranker: objectives are read from the gateways' metrics, never
written here. No rule takes missing data for zero or for a verdict, none averages ratios (sums of counts are divided,
so that traffic weighs), and none knows a revision's or a pod's name.

``--time-scale 0.02 --out FOLDER`` writes the same rules with every window, ``for`` and interval shortened, for tests
against a real Prometheus.
"""

import argparse
import re
import sys
import textwrap
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

FOLDER = Path(__file__).resolve().parents[1] / "rerank-operator" / "files" / "rules"
RUNBOOKS = "docs/runbooks"
"""The chart puts its ``monitoring.rules.runbookUrl`` before it."""

OTHERS: tuple[str, ...] = ()
"""Metrics of other exporters that rules name; without these exporters such a rule is silent."""

SHORTEST = 1.0
"""Seconds; no window, ``for`` or interval is scaled below, for a window must hold two scrapes."""


@dataclass(frozen=True)
class Recording:
    record: str
    expr: str
    why: str = ""
    """A comment above the rule."""


@dataclass(frozen=True)
class Alert:
    name: str
    severity: Literal["page", "ticket"]
    expr: str
    why: str
    """Why the thresholds are what they are, with figures; a comment above the rule."""
    summary: str
    """One line; Prometheus' templates may be used, as in ``description`` and ``look``."""
    description: str
    look: str
    """The command to run first."""
    means: str
    """For the table in docs/slos.md: when it fires."""
    hold: str = "0s"
    """``for``: how long the expression must be true."""
    keep: str = "0s"
    """``keep_firing_for``: how long it goes on after that, so that a gap in the data does not end and repeat it."""
    labels: dict[str, str] = field(default_factory=dict)
    runbook: str = ""
    """File in docs/runbooks; empty: the alert's name."""


@dataclass(frozen=True)
class Group:
    name: str
    interval: str
    rules: tuple[Recording | Alert, ...]
    why: str = ""


# --- service level indicators -----------------------------------------------------------------------------------------

_SLI_WINDOWS = ("2m", "5m", "10m", "30m", "1h", "2h", "6h")
_LONG_SLI_WINDOWS = {"1d": "30m", "3d": "30m", "30d": "1h"}
"""Window, and the pieces that it is put together from."""


def _sli_group() -> Group:
    rules: list[Recording | Alert] = [
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
    rules: list[Recording | Alert] = []
    for window, piece in _LONG_SLI_WINDOWS.items():
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


# --- alerts on objectives ---------------------------------------------------------------------------------------------

_OF_SLI = "on (namespace, reranker, sli)"
_OF_RERANKER = "on (namespace, reranker)"
_NAME = "{{ $labels.namespace }}/{{ $labels.reranker }}"
_STATUS = "kubectl rerank status {{ $labels.reranker }} -n {{ $labels.namespace }}"
_DESCRIBE = "kubectl -n {{ $labels.namespace }} describe reranker {{ $labels.reranker }}"

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


def _silent(window: str) -> str:
    """Nothing that happened in maintenance counts: not even just after it, while ``window`` still holds it."""
    return f"unless {_OF_RERANKER}\n  max_over_time(rerank:maintenance[{_and_a_little(window)}]) == 1"


def _told(window: str, pages: str) -> str:
    """What one of ``pages`` has told within ``window`` is no news."""
    fired = f'ALERTS{{alertname=~"{pages}", alertstate="firing"}}'
    return f"unless {_OF_SLI}\n  max_over_time({fired}[{_and_a_little(window)}]) == 1"


def _and_a_little(window: str) -> str:
    """5 minutes longer: what has been recorded is up to an evaluation older than what is asked now."""
    return f"{_seconds(window) / 60 + 5:.0f}m"


def _burn(factor: str, long: str, short: str, *, bad: int, silent: str) -> str:
    """The budget burns ``factor`` times as fast as it may over ``long``, and still does over ``short``.

    The value is how fast. No more than 0.9 of the requests need to be bad: of a budget of 10 % one cannot burn 14.4
    times as much. A window of days says nothing before five sixths of it are known: else an hour would pass for a day.
    """
    known = ()
    if long in _LONG_SLI_WINDOWS:
        piece = _LONG_SLI_WINDOWS[long]
        pieces = _seconds(long) / _seconds(piece) * 5 / 6
        known = (
            f"and {_OF_SLI}",
            f"  count_over_time(rerank:sli_requests:increase{piece}[{long}:{piece}]) >= {pieces:.0f}",
        )
    budget = "rerank:error_budget:ratio"
    limit = f"clamp_max(0.9 / {budget}, {factor})"
    return "\n".join(
        (
            f"rerank:sli_errors:ratio_rate{long} / {budget}",
            f"  > {limit}",
            f"and {_OF_SLI}",
            f"  rerank:sli_errors:ratio_rate{short} / {budget}",
            f"    > {limit}",
            f"and {_OF_SLI}",
            f"  rerank:sli_errors:increase{long} >= {bad}",
            *known,
            silent,
        )
    )


def _either(*sides: str) -> str:
    return "\nor\n".join("(\n" + textwrap.indent(side, "  ") + "\n)" for side in sides)


def _objective_alerts() -> Group:
    burns = (
        f"{_NAME}: {{{{ $labels.sli }}}}: the error budget of 30 days burns {{{{ $value | humanize }}}} times as fast"
        " as it may."
    )
    not_in_breach = (
        f'unless {_OF_SLI}\n  ALERTS{{alertname=~"RerankLatencyBreach|RerankNoWorkers", alertstate="firing"}} == 1'
    )
    return Group(
        "rerank-objectives",
        "30s",
        (
            Alert(
                name="RerankErrorBudgetBurn",
                severity="page",
                expr=_either(
                    _burn("14.4", "1h", "5m", bad=10, silent=f"{_silent('5m')}\n{not_in_breach}"),
                    _burn("6", "6h", "30m", bad=10, silent=f"{_silent('30m')}\n{not_in_breach}"),
                ),
                why="""14.4 times over an hour is 2 % of the budget of 30 days (720 hours / 14.4 = 50 hours would spend
                it all), 6 times over 6 hours is 5 %: the rows of the SRE Workbook, chapter 5. One alert for both, so
                that it pages once. A total outage at 99.9 % is seen after 52 s: 1.44 % of an hour. The short window
                ends it soon after the cause has gone: at most 35 minutes. At least 10 bad requests: where 100 come in
                an hour, two that fail are 20 times the budget and no reason to get up. By chance alone a service that
                keeps its promise has 10 bad ones where it should have 0.7 once in 300 million hours.""",
                summary="{{ $labels.sli }} of " + _NAME + " fails its users fast",
                description=burns + _WORST_REVISION,
                look=_STATUS,
                means="14.4 times the budget over 1 h and 5 m, or 6 times over 6 h and 30 m",
                keep="5m",
            ),
            Alert(
                name="RerankDayBudgetBurn",
                severity="page",
                expr=_burn("2", "1d", "2h", bad=20, silent=f"{_silent('2h')}\n{_told('1d', _ACUTE_PAGES)}"),
                why="Twice over a day is 7 % of the budget of 30 days, and nobody has been told: it is too slow for "
                "RerankErrorBudgetBurn, which is why a page within the last day silences it. 2 hours: it goes on. "
                "At least 20 bad requests: a service of 10,000 requests a day that just keeps 99.9 % has 10, and 20 by "
                "chance on one day of 290. At least 40 of 48 half hours are known: a leak that RerankErrorBudgetBurn "
                "sees, it sees first.",
                summary="{{ $labels.sli }} of " + _NAME + " has failed its users all day",
                description=burns + _WORST_REVISION,
                look=_STATUS,
                means="twice the budget over 1 d and 2 h, and no other page in that day",
                keep="2h",
            ),
            Alert(
                name="RerankErrorBudgetSlowBurn",
                severity="ticket",
                expr=_either(
                    _burn("3", "1d", "2h", bad=10, silent=f"{_silent('2h')}\n{_told('2h', _PAGES)}"),
                    _burn("1", "3d", "6h", bad=10, silent=f"{_silent('6h')}\n{_told('6h', _PAGES)}"),
                ),
                why="3 times over a day is 10 % of the budget, once over 3 days is 10 %, too: at that rate all of it "
                "is spent when the 30 days are over. Silent where a page of the same Reranker and sli has fired in the "
                "short window: that incident's requests are still in it.",
                summary="{{ $labels.sli }} of " + _NAME + " will not keep its objective",
                description=burns + _WORST_REVISION,
                look=_STATUS,
                means="3 times the budget over 1 d and 2 h, or all of it over 3 d and 6 h, and no page meanwhile",
                keep="1h",
            ),
        ),
    )


def groups() -> tuple[tuple[Group, ...], tuple[Group, ...]]:
    """Recording rules and alerts, in the order of evaluation."""
    return (_sli_group(), _long_sli_group()), (_objective_alerts(),)


def alerts() -> tuple[Alert, ...]:
    return tuple(rule for group in groups()[1] for rule in group.rules if isinstance(rule, Alert))


# --- time scale -------------------------------------------------------------------------------------------------------

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_LENGTH = r"\d+(?:ms|[smhd])"
_IN_EXPR = re.compile(rf"(?<=\[){_LENGTH}(?=[\]:])|(?<=:){_LENGTH}(?=\])|(?<=offset ){_LENGTH}")


def _seconds(length: str) -> float:
    number = length.rstrip("msdh")
    return int(number) * _UNITS[length.removeprefix(number)]


def _scaled_length(length: str, factor: float) -> str:
    seconds = _seconds(length)
    if factor == 1 or not seconds:
        return length
    return f"{max(SHORTEST, seconds * factor) * 1000:.0f}ms"


def scaled(group: Group, factor: float) -> Group:
    """The same group in a world where time runs ``1 / factor`` times as fast. Names of metrics stay."""

    def text(value: str) -> str:
        return _IN_EXPR.sub(lambda found: _scaled_length(found.group(), factor), value)

    def rule(one: Recording | Alert) -> Recording | Alert:
        if isinstance(one, Recording):
            return replace(one, expr=text(one.expr))
        return replace(
            one,
            expr=text(one.expr),
            description=text(one.description),
            hold=_scaled_length(one.hold, factor),
            keep=_scaled_length(one.keep, factor),
        )

    return replace(group, interval=_scaled_length(group.interval, factor), rules=tuple(map(rule, group.rules)))


# --- files ------------------------------------------------------------------------------------------------------------


def render(groups: tuple[Group, ...]) -> str:
    """A Prometheus rule file, with the reasons as comments."""
    lines = ["# Written by helm/monitoring/rules.py: change it, then `make generate`.", "groups:"]
    for group in groups:
        lines += [*_comment(group.why, 2), f"  - name: {group.name}", f"    interval: {group.interval}", "    rules:"]
        for rule in group.rules:
            lines += _comment(rule.why, 6)
            lines += _recording(rule) if isinstance(rule, Recording) else _alert(rule)
    return "\n".join(lines) + "\n"


def _recording(rule: Recording) -> list[str]:
    return [f"      - record: {rule.record}", *_expr(rule.expr)]


def _alert(rule: Alert) -> list[str]:
    lines = [f"      - alert: {rule.name}", *_expr(rule.expr)]
    lines += [f"        for: {rule.hold}"] * (rule.hold != "0s")
    lines += [f"        keep_firing_for: {rule.keep}"] * (rule.keep != "0s")
    annotations = {
        "summary": rule.summary,
        "description": rule.description,
        "look": rule.look,
        "runbook_url": f"{RUNBOOKS}/{rule.runbook or rule.name}.md",
    }
    lines += ["        labels:", *_map({"severity": rule.severity, **rule.labels})]
    return [*lines, "        annotations:", *_map(annotations)]


def _map(values: dict[str, str]) -> list[str]:
    # Single quotes: nothing but the quote itself is special between them.
    return [f"          {key}: '{value.replace(chr(39), chr(39) * 2)}'" for key, value in values.items()]


def _expr(expr: str) -> list[str]:
    return ["        expr: |-", *textwrap.indent(textwrap.dedent(expr).strip("\n"), " " * 10).rstrip().split("\n")]


def _comment(text: str, indent: int) -> list[str]:
    text = " ".join(text.split())
    return textwrap.wrap(text, 118 - indent, initial_indent=" " * indent + "# ", subsequent_indent=" " * indent + "# ")


def files(factor: float = 1) -> dict[str, str]:
    """File name to content."""
    recording, alerting = groups()
    return {
        "recording.yaml": render(tuple(scaled(group, factor) for group in recording)),
        "alerts.yaml": render(tuple(scaled(group, factor) for group in alerting)),
    }


def differences() -> list[str]:
    """What is not as it would be written, one sentence each."""
    return [
        f"helm/rerank-operator/files/rules/{name} is not what helm/monitoring/rules.py writes"
        for name, content in files().items()
        if not (FOLDER / name).is_file() or (FOLDER / name).read_text() != content
    ]


def write(folder: Path = FOLDER, factor: float = 1) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files(factor).items():
        (folder / name).write_text(content)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time-scale", type=float, default=1.0, help="factor of every duration, above 0 (default: 1)")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder to write to (default: the chart's)")
    options = parser.parse_args()
    if options.time_scale <= 0:
        parser.error("--time-scale: it must be above 0, such as 0.02")
    if options.time_scale != 1 and options.out == FOLDER:
        parser.error("--time-scale: the chart's own rules are not scaled; give another folder as --out")
    write(options.out, options.time_scale)
    return 0


if __name__ == "__main__":
    sys.exit(main())
