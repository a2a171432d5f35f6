"""A golden set, ranked by two revisions of a real model through a real gateway: the worse one is found."""

import json
import subprocess
import sys

import pytest
from harness.cluster import ROOT, Cluster
from harness.release import reranker, wait_settled

GOLDEN = ROOT / "docs" / "examples" / "golden.jsonl"


@pytest.fixture(scope="module")
def endpoints(
    kube: Cluster, test_namespace: str, gateways: list[str], model_uri: str, other_model_uri: str
) -> dict[str, str]:
    """Rerank routes of the demo model, ``good``, and of its deliberately ``worse`` revision."""
    models = {"good": model_uri, "worse": other_model_uri}
    kube.apply(*(reranker(name, test_namespace, uri, replicas=1) for name, uri in models.items()))
    for name in models:
        wait_settled(kube, name, test_namespace)
    return {name: f"{gateways[0]}/{test_namespace}/{name}/v2/rerank" for name in models}


@pytest.mark.parametrize(("canary", "status", "action"), [("good", 0, "advance"), ("worse", 1, "rollback")])
def test_a_worse_ranking_is_found_before_any_user_meets_it(
    endpoints: dict[str, str], canary: str, status: int, action: str
):
    command = ["-m", "rerank_operator.rollout.golden", "--set", GOLDEN, "--json", "--stable", endpoints["good"]]
    done = subprocess.run(
        [sys.executable, *command, "--canary", endpoints[canary]], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == status, done.stderr
    found = json.loads(done.stdout)
    assert found["action"] == action
    print({row["measure"]: (round(row["stable"], 3), round(row["canary"], 3)) for row in found["measures"]})
