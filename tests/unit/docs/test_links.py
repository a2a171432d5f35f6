"""Documents keep their word: links lead somewhere, and what a page tells to apply holds what it then asks for."""

import re
from collections import Counter
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/**/*.md", "helm/**/*.md", "tests/**/*.md", "worker/*.md", "operator/*.md")
    for page in ROOT.glob(pattern)
)


def without_blocks(page: Path) -> str:
    return re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings: lower case, no punctuation, hyphens for spaces, a number at repeated ones."""
    seen: Counter[str] = Counter()
    found = set()
    for heading in re.findall(r"^#+ +(.+?) *$", without_blocks(page), flags=re.MULTILINE):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        anchor = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        found.add(f"{anchor}-{seen[anchor]}" if seen[anchor] else anchor)
        seen[anchor] += 1
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path):
    prose = re.sub(r"`[^`]*`", "", without_blocks(page))
    lost = []
    for target, anchor in re.findall(r"\]\(([\w./-]*)(?:#([\w-]*))?\)", prose):
        place = page.parent / target if target else page
        if not place.exists() or (anchor and anchor not in anchors(place)):
            lost.append(f"{target}#{anchor}")
    assert lost == []


def test_the_readme_waits_for_the_reranker_that_it_applies():
    """Regression: it applied gpu.yaml and waited for a name that gpu.yaml does not have."""
    readme = (ROOT / "README.md").read_text()
    applied = re.findall(r"kubectl apply -f (docs/examples/\S+)", readme)
    names = {yaml.safe_load((ROOT / path).read_text())["metadata"]["name"] for path in applied}
    assert applied
    assert set(re.findall(r"wait reranker/(\S+)", readme)) == names
    assert set(re.findall(r'"model":"search/([^"]+)"', readme)) == names
