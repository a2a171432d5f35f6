"""The recording rules and alerts of the whole fleet, as values; writes them as Prometheus rule files for the chart.

Pure but for ``write``, which also keeps the table of alerts in docs/slos.md. One set of rules serves every Reranker:
objectives are read from the gateways' metrics, never written here. No rule takes missing data for zero or for a
verdict, none averages ratios (sums of counts are divided, so that traffic weighs), and none knows a revision's or a
pod's name.

``--time-scale 0.02 --out FOLDER`` writes the same rules with every window, ``for`` and interval shortened, for tests
against a real Prometheus.
"""

import argparse
import sys
import textwrap
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # also where it is run as a program

from helm.monitoring.alerts import capacity_alerts, fleet_alerts, model_alerts
from helm.monitoring.objectives import objective_alerts
from helm.monitoring.recording import recording_groups
from helm.monitoring.rule import Alert, Group, Recording, scaled

FOLDER = Path(__file__).resolve().parents[1] / "rerank-operator" / "files" / "rules"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "slos.md"
_BEGIN, _END = "<!-- alerts: written by helm/monitoring/rules.py -->\n", "<!-- end of alerts -->\n"
RUNBOOKS = "docs/runbooks"
"""The chart puts its ``monitoring.rules.runbookUrl`` before it."""

OTHERS = ("kube_pod_container_status_restarts_total", "kube_pod_container_status_last_terminated_reason")
"""Metrics of kube-state-metrics that rules name; where it is not scraped these parts of rules are silent."""


def groups() -> tuple[tuple[Group, ...], tuple[Group, ...]]:
    """Recording rules and alerts, in the order of evaluation."""
    return recording_groups(), (objective_alerts(), model_alerts(), capacity_alerts(), fleet_alerts())


def alerts() -> tuple[Alert, ...]:
    return tuple(rule for group in groups()[1] for rule in group.rules if isinstance(rule, Alert))


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
        "runbook_url": f"{RUNBOOKS}/{rule.name}.md",
    }
    lines += ["        labels:", *_map({"severity": rule.severity})]
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


def page(text: str) -> str:
    """docs/slos.md with the table of alerts between its two marks."""
    lines = ["| alert | | fires when | by |", "| --- | --- | --- | --- |"]
    for alert in alerts():
        by = ", ".join(_grouped(alert)) or "-"
        lines.append(f"| [{alert.name}](runbooks/{alert.name}.md) | {alert.severity} | {alert.means} | {by} |")
    before, rest = text.split(_BEGIN)
    return f"{before}{_BEGIN}\n" + "\n".join(lines) + f"\n\n{_END}{rest.split(_END)[1]}"


def _grouped(alert: Alert) -> list[str]:
    told = alert.summary + alert.description
    return [label for label in ("reranker", "revision", "sli", "pool", "way", "missing") if f"$labels.{label}" in told]


def differences() -> list[str]:
    """What is not as it would be written, one sentence each."""
    old = ["docs/slos.md has another table of alerts than helm/monitoring/rules.py writes"]
    return old * (PAGE.read_text() != page(PAGE.read_text())) + [
        f"helm/rerank-operator/files/rules/{name} is not what helm/monitoring/rules.py writes"
        for name, content in files().items()
        if not (FOLDER / name).is_file() or (FOLDER / name).read_text() != content
    ]


def write(folder: Path = FOLDER, factor: float = 1) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files(factor).items():
        (folder / name).write_text(content)
    if folder == FOLDER:
        PAGE.write_text(page(PAGE.read_text()))


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
