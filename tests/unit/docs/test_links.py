"""Documents keep their word: links lead somewhere, and what a page tells to apply holds what it then asks for."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/**/*.md", "helm/**/*.md", "tests/**/*.md", "worker/*.md", "operator/*.md")
    for page in ROOT.glob(pattern)
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path):
    prose = re.sub(r"`[^`]*`", "", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL))
    targets = re.findall(r"\]\(([\w./-]+)(?:#[\w-]*)?\)", prose)
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_readme_waits_for_the_reranker_that_it_applies():
    """Regression: it applied gpu.yaml and waited for a name that gpu.yaml does not have."""
    readme = (ROOT / "README.md").read_text()
    applied = re.findall(r"kubectl apply -f (docs/examples/\S+)", readme)
    names = {yaml.safe_load((ROOT / path).read_text())["metadata"]["name"] for path in applied}
    assert applied
    assert set(re.findall(r"wait reranker/(\S+)", readme)) == names
    assert set(re.findall(r'"model":"search/([^"]+)"', readme)) == names
