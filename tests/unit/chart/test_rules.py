"""The alerts as a release has them: called as its Alertmanager routes them, and without those that it does not want."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness import promtool
from harness.promtool import Series, alert, counter, gauge, needs_promtool
from harness.release import CHART

DISABLED = ["RerankLatencyBreach", "RerankColdStartsSlow"]
OWN = {
    "enabled": True,
    "severities": {"page": "critical", "ticket": "warning"},
    "additionalLabels": {"team": "search", "tier": "1"},
    "disabled": DISABLED,
}


def groups(render: Any, name: str, settings: dict[str, Any]) -> list[dict[str, Any]]:
    rendered = render({"monitoring": {"rules": {"enabled": True, **settings}}})
    return rendered.one("PrometheusRule", f"rerank-operator-{name}")["spec"]["groups"]


def alerts(of: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for group in of for rule in group["rules"]}


def written() -> dict[str, dict[str, Any]]:
    return alerts(yaml.safe_load((CHART / "files" / "rules" / "alerts.yaml").read_text())["groups"])


def test_labels_are_those_of_the_release_and_what_is_disabled_is_left_out(render: Any):
    found, known = alerts(groups(render, "alerts", OWN)), written()
    assert known.keys() - found.keys() == set(DISABLED)
    for name, rule in found.items():
        severity = {"page": "critical", "ticket": "warning"}[known[name]["labels"]["severity"]]
        assert rule["labels"] == {"severity": severity, "team": "search", "tier": "1"}
        assert {**rule, "labels": known[name]["labels"]} == known[name]


def test_recording_rules_are_as_they_were(render: Any):
    assert groups(render, "recording", OWN) == groups(render, "recording", {})


def test_a_group_without_alerts_is_left_out(render: Any):
    known = written()
    assert groups(render, "alerts", {"disabled": list(known)}) == []
    fleet = [name for name in known if name.startswith(("RerankGateway", "RerankKeys", "RerankOperator", "RerankTel"))]
    assert "rerank-fleet" not in [group["name"] for group in groups(render, "alerts", {"disabled": fleet})]


def test_no_label_of_an_alert_can_be_replaced(render: Any):
    """Alerts silence each other by theirs."""
    own = {"alertname", "alertstate", "severity", "namespace"}
    for rule in written().values():
        own |= set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
        own |= {
            label for labels in re.findall(r"\b(?:by|on) \(([\w, ]+)\)", rule["expr"]) for label in labels.split(", ")
        }
    own -= {"pod", "model_sha256", "tokenizer_sha256", "le"}  # inside of sums
    assert {"reranker", "revision", "sli", "pool", "measure", "missing", "way"} <= own
    for label in own:
        with pytest.raises(Exception, match=f"additionalLabels: {label} is a label that alerts have by themselves"):
            groups(render, "alerts", {"additionalLabels": {label: "x"}})


@pytest.fixture
def rules_of_the_release(render: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What promtool plays: not the files, but what a release makes of them."""
    folder = tmp_path / "rules"
    folder.mkdir()
    for name in ("recording", "alerts"):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"groups": groups(render, name, OWN)}))
    monkeypatch.setattr(promtool, "RULES", folder)
    return folder


@needs_promtool
def test_promtool_finds_nothing_wrong(rules_of_the_release: Path):
    assert promtool.PROMTOOL is not None
    command = (promtool.PROMTOOL, "check", "rules", *map(str, rules_of_the_release.iterdir()))
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


WHO = {"namespace": "shop", "reranker": "products"}


def indicator(sli: str, *spans: tuple[int, float, float]) -> list[Series]:
    """Spans of (minutes, requests a minute, bad ones a minute), at a promise of 95 %."""
    of = {**WHO, "revision": "r1", "sli": sli, "pod": "g1"}
    requests = [(minutes, rate) for minutes, rate, _ in spans]
    good = [(minutes, rate - bad) for minutes, rate, bad in spans]
    return [
        counter("rerank_gateway_sli_requests_total", *requests, **of),
        counter("rerank_gateway_sli_good_requests_total", *good, **of),
        gauge(
            "rerank_gateway_objective_ratio", (sum(minutes for minutes, _ in requests), 0.95), **WHO, sli=sli, pod="g1"
        ),
    ]


@needs_promtool
def test_what_a_disabled_alert_would_have_told_is_told_by_the_one_that_it_silences(
    rules_of_the_release: Path, tmp_path: Path
):
    """All answers are late for 100 minutes: RerankLatencyBreach would be first, and it is disabled."""
    burn = alert("RerankErrorBudgetBurn", **WHO, sli="latency")
    said = {"severity": "critical", "team": "search", "tier": "1"}
    series = indicator("latency", (120, 600, 0), (100, 600, 600), (60, 600, 0))
    seen = {160: [], 170: [burn], 215: [burn], 255: []}
    fires = {**said, **burn, "__name__": "ALERTS", "alertstate": "firing"}
    values = [(200, 'ALERTS{alertname="RerankErrorBudgetBurn"}', [(fires, 1.0)])]
    promtool.check(tmp_path, series, seen, end=275, values=values)


@needs_promtool
def test_a_page_silences_its_tickets_whatever_they_are_called(rules_of_the_release: Path, tmp_path: Path):
    """An outage of 5 hours burns 4 times a day's budget, which would be a ticket, and twice, which would be a page."""
    burn = alert("RerankErrorBudgetBurn", **WHO, sli="availability")
    series = indicator("availability", (1440, 600, 0), (300, 600, 600), (300, 600, 0))
    seen = {1430: [], 1500: [burn], 1700: [burn], 2030: []}
    promtool.check(tmp_path, series, seen, end=2030, tick=5)
