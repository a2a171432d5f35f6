"""docs/metrics.md says what the code defines."""

import runpy
from pathlib import Path

DOCS = Path(__file__).resolve().parents[3] / "docs"


def test_the_page_is_current():
    render = runpy.run_path(str(DOCS / "reference" / "metrics.py"))["render"]
    assert (DOCS / "metrics.md").read_text() == render(), "run `make generate`"
