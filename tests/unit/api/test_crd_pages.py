"""What is generated from the CRD is up to date, and every bad manifest says what it expects."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from rerank_api import names
from rerank_operator.rollout.golden.golden_set import read_golden_set
from rerank_operator.scaling.policy import policy_from_manifest

ROOT = Path(__file__).resolve().parents[3]
BAD = sorted((ROOT / "tests" / "e2e" / "manifests" / "bad").glob("*.yaml"))
GOOD = sorted((ROOT / "tests" / "e2e" / "manifests" / "good").glob("*.yaml"))
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.yaml"))
REFERENCE = ROOT / "docs" / "reference"
KINDS = {names.KIND, names.WARM_POOL_KIND}


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference_generator", REFERENCE / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_reference_is_up_to_date() -> None:
    generate = generator()
    assert {crd.name for crd in generate.PAGES} == {crd.name for crd in (ROOT / "crds").glob("*.yaml")}
    for crd, page in generate.PAGES.items():
        assert page.read_text() == generate.render(yaml.safe_load(crd.read_text())), "run `make generate`"


def test_table_of_refused_manifests_is_complete() -> None:
    shown = re.findall(r"manifests/bad/([^)]+)\)", (REFERENCE / "refused-manifests.md").read_text())
    assert shown == [path.name for path in BAD], 'run `RERANK_WRITE_DOCS=1 make test-e2e ARGS="-k test_crd"`'


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_bad_manifest_says_what_it_expects(path: Path) -> None:
    first = path.read_text().splitlines()[0]
    assert first.startswith("# expect: ")
    pattern = first.removeprefix("# expect: ")
    re.compile(pattern)
    assert re.search(r"spec|metadata|status|replicas", pattern), "the message must name the field"


@pytest.mark.parametrize("path", GOOD + EXAMPLES, ids=lambda path: path.stem)
def test_good_manifest_is_one_described_object(path: Path) -> None:
    assert path.read_text().startswith("# ")
    manifest, *others = yaml.safe_load_all(path.read_text())
    assert manifest["apiVersion"] == names.API_VERSION
    assert manifest["kind"] in KINDS
    assert {one["kind"] for one in others} <= {"ConfigMap"}, "what it needs beside it"


@pytest.mark.parametrize("path", GOOD + EXAMPLES, ids=lambda path: path.stem)
def test_the_operator_understands_the_policy_of_a_good_manifest(path: Path) -> None:
    """Schedules above all: the schema checks their form only, and with a library of another language."""
    manifest, *_ = yaml.safe_load_all(path.read_text())
    if manifest["kind"] == names.KIND:
        policy_from_manifest(manifest)


@pytest.mark.parametrize(("example", "fewest"), [("canary", 12), ("slo", 4)])
def test_the_golden_set_of_the_example_can_be_used(example: str, fewest: int, tmp_path: Path) -> None:
    reranker, config_map = yaml.safe_load_all((ROOT / "docs" / "examples" / f"{example}.yaml").read_text())
    assert reranker["spec"]["rollout"]["goldenSet"]["configMap"] == config_map["metadata"]["name"]
    assert reranker["metadata"]["namespace"] == config_map["metadata"]["namespace"]
    ((key, text),) = config_map["data"].items()
    (tmp_path / key).write_text(text)
    assert len(read_golden_set(tmp_path / key).queries) >= fewest


def test_there_are_enough_of_both() -> None:
    assert len(BAD) >= 150
    assert len(GOOD) + len(EXAMPLES) >= 20
