"""docs/reference/metrics.md says what the code defines."""

import runpy
from pathlib import Path

REFERENCE = Path(__file__).resolve().parents[3] / "docs" / "reference"


def test_the_page_is_current():
    render = runpy.run_path(str(REFERENCE / "metrics.py"))["render"]
    assert (REFERENCE / "metrics.md").read_text() == render(), "run `make generate`"
