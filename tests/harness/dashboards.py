"""The chart's Grafana dashboards as they are shipped, and what their queries become when Grafana sends them.

Only what the dashboards use of Grafana's variables is known here; another one is an error.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from harness.release import CHART

FOLDER = CHART / "files" / "dashboards"


class Asked(NamedTuple):
    """A query of a panel, as Grafana would send it."""

    dashboard: str
    panel: str
    ref: str
    expression: str

    def __str__(self) -> str:
        return f"{self.dashboard}: {self.panel} {self.ref}"


def boards() -> dict[str, dict[str, Any]]:
    """File name without its ending, to dashboard."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}


def panels(board: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Those that show something: without the rows' titles."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def asked(values: Mapping[str, str]) -> Iterator[Asked]:
    """Every query of every panel, with the variables replaced by ``values`` (names without the dollar)."""
    for name, board in boards().items():
        for panel in panels(board):
            for target in panel["targets"]:
                expression = re.sub(r"\$(\w+)", lambda found: values[found[1]], target["expr"])
                yield Asked(name, panel["title"], target["refId"], expression)


def metrics(expression: str) -> set[str]:
    """Names of the series that a PromQL expression reads, as far as they are this project's or Prometheus' own."""
    outside = re.sub(r'"(?:[^"\\]|\\.)*"', '""', expression)
    return set(re.findall(r"\b(?:rerank[_:][\w:]+|process_\w+|up(?=\{)|ALERTS)", outside))
