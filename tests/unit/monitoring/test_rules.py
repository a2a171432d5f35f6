"""The rules as a whole: files are current and valid, every metric exists, every alert can be acted on."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from harness.promtool import PROMTOOL, RULES, needs_promtool

from helm.monitoring import rules

ROOT = Path(__file__).resolve().parents[3]
ALERTS = rules.alerts()
WRITTEN = {
    rule["alert"]: rule
    for group in yaml.safe_load((RULES / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
}
RECORDED = [
    rule for group in yaml.safe_load((RULES / "recording.yaml").read_text())["groups"] for rule in group["rules"]
]


def test_the_files_are_current():
    assert rules.differences() == [], "run `make generate`"


@needs_promtool
@pytest.mark.parametrize("factor", [1, 0.02, 0.0001])
def test_promtool_finds_nothing_wrong(tmp_path: Path, factor: float):
    assert PROMTOOL is not None
    rules.write(tmp_path, factor)
    for path in sorted(tmp_path.glob("*.yaml")):
        done = subprocess.run((PROMTOOL, "check", "rules", str(path)), capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr


def test_the_readers_of_the_rules_see_what_was_written():
    """Comments and quotes do no harm to what they stand beside."""
    assert list(WRITTEN) == [alert.name for alert in ALERTS]
    for alert in ALERTS:
        assert WRITTEN[alert.name]["annotations"]["look"] == alert.look
        assert WRITTEN[alert.name]["annotations"]["description"] == alert.description


@pytest.mark.parametrize(
    ("expr", "expected"),
    [
        ("increase(x:rate5m[5m])", "increase(x:rate5m[6000ms])"),
        ("sum_over_time(x:increase1h[30d:1h])", "sum_over_time(x:increase1h[51840000ms:72000ms])"),
        ("x[24h:1h] offset 1d", "x[1728000ms:72000ms] offset 1728000ms"),
        ("rate(x[10s])", "rate(x[1000ms])"),
        ("bin > 5 and x * 3600", "bin > 5 and x * 3600"),
    ],
)
def test_a_time_scale_shortens_windows_and_leaves_names(expr: str, expected: str):
    short = rules.scaled(rules.Group("g", "30s", (rules.Recording("x", expr),)), 0.02)
    assert short == rules.Group("g", "1000ms", (rules.Recording("x", expected),))


def test_a_time_scale_of_one_changes_nothing():
    for groups in rules.groups():
        assert all(rules.scaled(group, 1) == group for group in groups)


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
class TestEveryAlert:
    def test_has_a_runbook(self, alert: rules.Alert):
        url = WRITTEN[alert.name]["annotations"]["runbook_url"]
        assert (ROOT / url).is_file(), f"{alert.name}: there is no {url}"

    def test_tells_what_to_look_at_and_why_it_is_so(self, alert: rules.Alert):
        assert alert.severity in ("page", "ticket")
        assert alert.look.startswith("kubectl ")
        assert alert.why
        assert alert.means
        assert alert.summary
        assert alert.description

    def test_names_the_reranker_that_it_is_about(self, alert: rules.Alert):
        if "reranker" in alert.expr:
            assert "$labels.namespace" in alert.summary + alert.description


@pytest.mark.parametrize("path", sorted((ROOT / "docs/runbooks").glob("*.md")), ids=lambda path: path.stem)
def test_what_is_pasted_from_a_runbook_makes_nothing_smaller_by_chance(path: Path):
    """A number that is right for one Reranker takes workers or room from another: its reader looks, and then says N."""
    text = path.read_text()
    sizes = re.findall(r'"(minReplicas|maxReplicas|maxBatchTokens)":(\w+)', text)
    assert [(what, size) for what, size in sizes if size not in ("N", "1")] == []
    if any(size == "N" for _, size in sizes):
        before = text[: text.index(":N}")]
        assert "-o jsonpath='{.spec.scaling}" in before or "-o jsonpath='{.spec.batching}" in before


def test_every_metric_exists():
    """In the reference, or recorded by a rule before."""
    known = {"up", "ALERTS"} | set(rules.OTHERS)
    for name, kind in re.findall(r"^\| `(\w+)` \| (\w+)", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE):
        known |= {f"{name}_bucket", f"{name}_sum", f"{name}_count"} if kind == "histogram" else {name}
    recorded: set[str] = set()
    unknown = set()
    for rule in [*RECORDED, *WRITTEN.values()]:
        named = set(re.findall(r"\b(?:rerank|kube)[_:][\w:]+|\bup\b(?=\{)", rule["expr"]))
        named |= set(re.findall(r"\b(?:rerank|kube)[_:][\w:]+(?=[{\[])", str(rule.get("annotations", ""))))
        unknown |= named - known - recorded
        recorded.add(rule.get("record", ""))
    assert unknown == set()


def test_nothing_is_recorded_twice_or_for_nobody():
    names = [rule["record"] for rule in RECORDED]
    assert len(names) == len(set(names))
