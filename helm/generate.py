"""Keeps what the chart repeats from elsewhere true: the CRDs, rules and dashboards, its README's values table.

Run it after a change of crds/, values.yaml, values.schema.json or helm/monitoring/; ``--check`` only tells what differs
(exit status 1). Writes nothing outside the chart.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also where it is run as a program

from helm.monitoring import dashboards, rules

CHART = Path(__file__).resolve().parent / "rerank-operator"
CRD_SOURCE = CHART.parents[1] / "crds"
CRD_COPY = CHART / "files" / "crds"
DASHBOARDS = CHART / "files" / "dashboards"
BEGIN = "<!-- values: written by helm/generate.py -->\n"
END = "<!-- end of values -->\n"


def values_table(schema: dict[str, Any], values: dict[str, Any]) -> str:
    """A Markdown table of every value: key, default, description."""
    lines = ["| Key | Default | Description |", "|---|---|---|"]
    lines += [f"| `{key}` | `{default}` | {description} |" for key, default, description in _rows(schema, values, "")]
    return "\n".join(lines) + "\n"


def _rows(schema: dict[str, Any], values: dict[str, Any], prefix: str) -> list[tuple[str, str, str]]:
    rows = []
    for key, default in values.items():
        described = schema["properties"][key]
        if "properties" in described:
            rows += _rows(described, default, f"{prefix}{key}.")
        else:
            rows.append((prefix + key, json.dumps(default), described["description"].replace("|", "\\|")))
    return rows


def with_table(readme: str, table: str) -> str:
    """``readme`` with the text between the two marks replaced."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def differences() -> list[str]:
    """What is not as it would be written, one sentence each."""
    found = []
    source = {path.name: path.read_bytes() for path in CRD_SOURCE.glob("*.yaml")}
    copy = {path.name: path.read_bytes() for path in CRD_COPY.glob("*.yaml")}
    if source != copy:
        found.append(f"{CRD_COPY.relative_to(CHART.parents[1])} is not a copy of crds/")
    if {path.name: path.read_text() for path in DASHBOARDS.glob("*")} != dashboards.rendered():
        found.append(f"{DASHBOARDS.relative_to(CHART.parents[1])} is not what helm/monitoring/dashboards.py writes")
    found += rules.differences()
    readme = (CHART / "README.md").read_text()
    if readme != with_table(readme, _table()):
        found.append("the values table of the chart's README.md is not that of values.yaml and values.schema.json")
    return found


def write() -> None:
    shutil.rmtree(CRD_COPY, ignore_errors=True)
    CRD_COPY.mkdir(parents=True)
    for path in sorted(CRD_SOURCE.glob("*.yaml")):
        shutil.copyfile(path, CRD_COPY / path.name)
    rules.write()
    shutil.rmtree(DASHBOARDS, ignore_errors=True)
    DASHBOARDS.mkdir(parents=True)
    for name, content in dashboards.rendered().items():
        (DASHBOARDS / name).write_text(content)
    readme = CHART / "README.md"
    readme.write_text(with_table(readme.read_text(), _table()))


def _table() -> str:
    schema = json.loads((CHART / "values.schema.json").read_text())
    return values_table(schema, yaml.safe_load((CHART / "values.yaml").read_text()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, tell what differs")
    if not parser.parse_args().check:
        write()
        return 0
    found = differences()
    for sentence in found:
        print(f"{sentence}: run python helm/generate.py", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
