"""Runbooks say what their alerts are, and are made for someone who was just woken: symptom, look, act, verify.

That their commands work is shown on a cluster: tests/e2e/test_runbooks.py.
"""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness.promtool import PROMTOOL, RULES, needs_promtool

ROOT = Path(__file__).resolve().parents[3]
PAGES = {path.stem: path.read_text() for path in sorted((ROOT / "docs" / "runbooks").glob("*.md"))}
ALERTS: dict[str, dict[str, Any]] = {
    rule["alert"]: rule
    for group in yaml.safe_load((RULES / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
}
UNITS = {"m": "minutes", "h": "hours"}


def recorded() -> set[str]:
    groups = yaml.safe_load((RULES / "recording.yaml").read_text())["groups"]
    return {rule["record"] for group in groups for rule in group["rules"]}


def queries(text: str) -> list[str]:
    """PromQL in backquotes: what names a metric, or ``up``."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    spans = re.findall(r"`([^`]+)`", prose)
    return [span for span in spans if re.search(r"\brerank(:|_(gateway|worker|operator)_)|\bup\b", span)]


@pytest.mark.parametrize("name", ALERTS)
def test_begins_with_how_it_is_told_and_after_how_long(name: str):
    alert = ALERTS[name]
    after = re.sub(r"(\d+)([mh])", lambda found: f" after {found[1]} {UNITS[found[2]]}", alert.get("for", ""))
    severity = alert["labels"]["severity"].capitalize()
    assert PAGES[name].startswith(f"# {name}\n\n{severity}{after}. ")


@pytest.mark.parametrize("name", PAGES)
def test_has_look_act_and_verify_or_leads_to_a_page_that_has(name: str):
    headings = re.findall(r"^## (.*)$", PAGES[name], re.MULTILINE)
    if headings or name in ALERTS:
        assert headings == ["Look", "Act", "Verify"]
    else:
        assert set(re.findall(r"\]\((\w+)\.md", PAGES[name])) & set(ALERTS)


@pytest.mark.parametrize("page", [*sorted(ROOT.glob("docs/**/*.md")), ROOT / "README.md"], ids=lambda path: path.stem)
def test_no_command_shows_a_part_for_the_whole(page: Path):
    """Regression: `port-forward deployment/...` asked one gateway of several, and `logs -l ... --since=10m` without
    --tail showed the last ten lines of each pod."""
    text = page.read_text()
    assert re.findall(r"^.*(?:port-forward|logs) (?:deployment|deploy)/.*$", text, re.MULTILINE) == []
    logs = re.findall(r"kubectl [^\n`|]*\blogs [^\n`|]*(?:-l|--selector)[^\n`|]*", text)
    assert [command for command in logs if "--tail=" not in command] == []


def test_every_metric_that_is_named_exists():
    known = {"up"} | recorded()
    reference = (ROOT / "docs" / "metrics.md").read_text()
    known |= set(re.findall(r"^\| `(\w+)` \|", reference, re.MULTILINE))
    named = {name for text in PAGES.values() for one in queries(text) for name in re.findall(r"rerank[_:][\w:]+", one)}
    assert named - known == set()


@needs_promtool
def test_every_query_can_be_asked(tmp_path: Path):
    assert PROMTOOL is not None
    asked = [(name, query) for name, text in PAGES.items() for query in queries(text)]
    assert asked
    rules = [{"record": f"{name.replace('-', '_')}:{at}", "expr": query} for at, (name, query) in enumerate(asked)]
    path = tmp_path / "rules.yaml"
    path.write_text(json.dumps({"groups": [{"name": "runbooks", "rules": rules}]}))
    done = subprocess.run((PROMTOOL, "check", "rules", str(path)), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
