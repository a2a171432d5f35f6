"""The dashboards as they are shipped: whole, told apart, explained, and about metrics that exist.

That their queries return data is shown by tests/e2e/test_dashboards.py.
"""

import base64
import gzip
import json
import os
import re
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness.cluster import BIN, ROOT
from harness.dashboards import asked, boards, metrics, panels
from harness.release import CHART

BOARDS = boards()
VALUES = {"namespace": ".*", "reranker": ".*", "revision": ".*", "__rate_interval": "1m", "__range": "1h"}
EVERYTHING = {
    "podMonitor": {"enabled": True},
    "networkPolicy": {"enabled": True},
    "monitoring": {"rules": {"enabled": True}, "dashboards": {"enabled": True}},
}
OBJECT_LIMIT = 1024 * 1024
"""Bytes of a ConfigMap's or Secret's data, as the API server takes them."""


def test_there_is_one_for_each_reader():
    assert {board["uid"] for board in BOARDS.values()} == {"rerank-executive", "rerank-on-call", "rerank-debug"}
    assert {board["title"] for board in BOARDS.values()} == {"Rerank / Executive", "Rerank / On-call", "Rerank / Debug"}


@pytest.mark.parametrize("seed", ["1", "2"])
def test_they_are_written_the_same_each_time(seed: str):
    done = subprocess.run(
        [sys.executable, ROOT / "helm" / "generate.py", "--check"],
        env={**os.environ, "PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", BOARDS)
def test_panels_are_told_apart_and_lie_beside_each_other(name: str):
    board = BOARDS[name]
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    titles = [panel["title"] for panel in panels(board)]
    assert len(set(titles)) == len(titles)
    for panel in panels(board):
        references = [target["refId"] for target in panel["targets"]]
        assert references, panel["title"]
        assert len(set(references)) == len(references), panel["title"]
    for one, other in combinations(board["panels"], 2):
        a, b = one["gridPos"], other["gridPos"]
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        above = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert beside or above, (one["title"], other["title"])
        assert a["x"] + a["w"] <= 24


@pytest.mark.parametrize("name", BOARDS)
def test_every_panel_says_what_it_shows_in_which_unit(name: str):
    for panel in panels(BOARDS[name]):
        assert panel["description"].endswith((".", "?")), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]


@pytest.mark.parametrize("name", BOARDS)
def test_every_query_asks_the_chosen_prometheus_about_the_chosen_rerankers(name: str):
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    variables = {variable["name"] for variable in BOARDS[name]["templating"]["list"]}
    assert {"datasource", "namespace", "reranker"} <= variables
    for panel in panels(BOARDS[name]):
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"] == chosen, panel["title"]
            used = set(re.findall(r"\$(\w+)", target["expr"]))
            assert used <= variables | {"__rate_interval", "__range"}, panel["title"]
            assert target.get("range") is not target.get("instant"), panel["title"]


def test_latency_panels_show_traces():
    shown = 0
    for board in BOARDS.values():
        for panel in panels(board):
            about_latency = [t for t in panel["targets"] if "rerank_gateway_request_duration" in t["expr"]]
            if about_latency:
                assert any(target["exemplar"] for target in about_latency), panel["title"]
                shown += 1
    assert shown >= 3


def test_links_lead_somewhere(render: Any):
    uids = {board["uid"] for board in BOARDS.values()}
    text = json.dumps(list(BOARDS.values()))
    assert set(re.findall(r'"/d/([\w-]+)', text)) == uids
    assert len(re.findall(r'"url": "docs/runbooks', text)) == 3
    values = {"rules": {"runbookUrl": "https://git.example.com/x"}, "dashboards": {"enabled": True}}
    found = render({"monitoring": values}).one("ConfigMap", "rerank-operator-dashboard-on-call")
    board = json.loads(found["data"]["rerank-on-call.json"])
    assert board["links"][-1]["url"] == "https://git.example.com/x/docs/runbooks"
    assert '"https://git.example.com/x/docs/runbooks/${__value.text}.md"' in json.dumps(board)


def documented() -> set[str]:
    """Every series of docs/metrics.md."""
    page = (ROOT / "docs" / "metrics.md").read_text()
    found: set[str] = set()
    for name, kind in re.findall(r"^\| `(\w+)` \| (\w+) \|", page, re.MULTILINE):
        parts = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
        found |= {name + part for part in parts}
    return found


def recorded() -> set[str]:
    files = [yaml.safe_load(path.read_text()) for path in (CHART / "files" / "rules").glob("*.yaml")]
    rules = [rule for file in files for group in file["groups"] for rule in group["rules"]]
    return {rule["record"] for rule in rules if "record" in rule}


def test_queries_read_series_that_exist():
    known = documented() | recorded() | {"up", "ALERTS", "process_resident_memory_bytes", "process_cpu_seconds_total"}
    wrong = {str(one): unknown for one in asked(VALUES) if (unknown := metrics(one.expression) - known)}
    assert wrong == {}


def test_queries_are_understood_by_prometheus(tmp_path: Path):
    promtool = BIN / "promtool"
    if not promtool.exists():
        pytest.skip("there is no promtool: tests/harness/get_prometheus takes it from Debian's packages")
    rules = [{"record": f"x{number}", "expr": one.expression} for number, one in enumerate(asked(VALUES))]
    assert len(rules) > 100
    path = tmp_path / "queries.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    done = subprocess.run([promtool, "check", "rules", path], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_config_maps_hold_the_dashboards(render: Any):
    values = {
        "dashboards": {
            "enabled": True,
            "labels": {"grafana_dashboard": None, "dashboards": "yes"},
            "annotations": {"grafana_folder": "Rerankers"},
            "namespace": "grafana",
        }
    }
    found = render({"monitoring": values}).of("ConfigMap")
    assert {m["metadata"]["name"] for m in found} == {f"rerank-operator-dashboard-{name}" for name in BOARDS}
    held = {}
    for manifest in found:
        assert manifest["metadata"]["namespace"] == "grafana"
        assert manifest["metadata"]["labels"]["dashboards"] == "yes"
        assert "grafana_dashboard" not in manifest["metadata"]["labels"]
        assert manifest["metadata"]["annotations"] == {"grafana_folder": "Rerankers"}
        held |= {name: json.loads(text) for name, text in manifest["data"].items()}
    assert held == {f"rerank-{name}.json": board for name, board in BOARDS.items()}
    plain = render({"monitoring": {"dashboards": {"enabled": True}}}).of("ConfigMap")
    assert {m["metadata"]["namespace"] for m in plain} == {"rerank-system"}
    assert all(m["metadata"]["labels"]["grafana_dashboard"] == "1" for m in plain)
    assert render().of("ConfigMap") == []


def test_prometheus_rules_are_the_rule_files(render: Any):
    url = "https://git.example.com/x"
    values = {"rules": {"enabled": True, "labels": {"release": "prometheus"}, "runbookUrl": url}}
    found = {m["metadata"]["name"]: m for m in render({"monitoring": values}).of("PrometheusRule")}
    files = {path.stem: yaml.safe_load(path.read_text()) for path in (CHART / "files" / "rules").glob("*.yaml")}
    assert set(found) == {f"rerank-operator-{name}" for name in files}
    assert set(files) == {"recording", "alerts"}
    for name, file in files.items():
        manifest = found[f"rerank-operator-{name}"]
        assert manifest["metadata"]["labels"]["release"] == "prometheus"
        for group in file["groups"]:
            for rule in group["rules"]:
                if "alert" in rule:  # whose name the on-call dashboard makes the same link of
                    assert rule["annotations"]["runbook_url"] == f"docs/runbooks/{rule['alert']}.md"
                    rule["annotations"]["runbook_url"] = f"{url}/{rule['annotations']['runbook_url']}"
        assert manifest["spec"] == file
    plain = render({"monitoring": {"rules": {"enabled": True}}}).one("PrometheusRule", "rerank-operator-alerts")
    assert plain["spec"]["groups"][0]["rules"][0]["annotations"]["runbook_url"].startswith("docs/runbooks/")
    assert render().of("PrometheusRule") == []


def test_objects_and_release_fit_into_what_kubernetes_takes(render: Any):
    rendered = render(EVERYTHING)
    for manifest in rendered.of("ConfigMap"):
        assert sum(map(len, manifest["data"].values())) < OBJECT_LIMIT / 2, manifest["metadata"]["name"]
    assert helm_secret(rendered.manifests) < OBJECT_LIMIT / 2


def helm_secret(manifests: list[dict[str, Any]]) -> int:
    """Bytes of the Secret in which Helm keeps a release: chart and manifests as JSON, files of it in base64, all of it
    compressed, and that in base64 again."""
    files = [path for path in CHART.rglob("*") if path.is_file()]
    release = {
        "chart": [{"name": str(path), "data": base64.b64encode(path.read_bytes()).decode()} for path in files],
        "manifest": yaml.safe_dump_all(manifests),
    }
    return len(base64.b64encode(gzip.compress(json.dumps(release).encode())))
