"""`kubectl rerank calibrate`, `tune` and `samples` with the real worker and model, by a person who may do what the docs
say and nothing else: ClusterRole edit where the Reranker is, and view where the gateways run.
"""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from harness.cluster import ROOT, VENV_BIN, Cluster, run, wait_for
from harness.release import SYSTEM_NAMESPACE, Release, reranker, wait_settled

NAME = "products"
pytestmark = pytest.mark.timeout(900)

Plugin = Callable[..., str]
WRONG = 6.0
"""A temperature under which every score is near one half."""
GOLDEN = ROOT / "docs" / "examples" / "golden.jsonl"


@pytest.fixture(scope="module")
def served(kube: Cluster, release: Release, test_namespace: str, model_uri: str) -> dict[str, Any]:
    """A Reranker with a temperature that is far off, a golden set, and everything captured."""
    kube.kubectl("create", "configmap", "golden", f"--from-file={GOLDEN}", "-n", test_namespace)
    manifest = reranker(
        NAME,
        test_namespace,
        model_uri,
        replicas=1,
        rollout={"strategy": "Canary", "goldenSet": {"configMap": "golden"}},
        observability={"capture": {"percent": 100}},
    )
    manifest["spec"]["model"]["temperature"] = WRONG
    kube.apply(manifest)
    return wait_settled(kube, NAME, test_namespace, timeout=300)


@pytest.fixture(scope="module")
def person(
    kube: Cluster, release: Release, test_namespace: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A kubeconfig."""
    kube.kubectl("create", "serviceaccount", "person", "-n", test_namespace)
    bound = f"--serviceaccount={test_namespace}:person"
    away = ("delete", "rolebinding", "person", "-n", SYSTEM_NAMESPACE, "--ignore-not-found")
    kube.kubectl(*away)  # what a run that was killed has left behind
    for role, where in (("edit", test_namespace), ("view", SYSTEM_NAMESPACE)):
        kube.kubectl("create", "rolebinding", "person", f"--clusterrole={role}", bound, "-n", where)
    token = kube.kubectl("create", "token", "person", "-n", test_namespace).stdout.strip()
    config = yaml.safe_load(kube.kubectl("config", "view", "--raw", "--minify").stdout)
    config["users"][0]["user"] = {"token": token}
    path = tmp_path_factory.mktemp("person") / "kubeconfig"
    path.touch(0o600)
    path.write_text(yaml.safe_dump(config))
    yield path
    kube.kubectl(*away)


@pytest.fixture(scope="module")
def plugin(kube: Cluster, person: Path, test_namespace: str) -> Plugin:
    """Runs `kubectl rerank WORDS` as kubectl does, found on PATH, and returns what it prints."""
    path = f"{VENV_BIN}{os.pathsep}{kube.environment['PATH']}"
    environment = {**kube.environment, "PATH": path, "KUBECONFIG": str(person)}

    def call(*words: str) -> str:
        verb, *more = words
        return run("kubectl", "rerank", verb, NAME, "-n", test_namespace, *more, env=environment, timeout=600).stdout

    return call


def pods(kube: Cluster, namespace: str) -> dict[str, int]:
    """Workers by uid, with how often they were started again."""
    found = kube.items("pods", "-n", namespace, "-l", f"rerank.dev/reranker={NAME}")
    return {pod["metadata"]["uid"]: pod["status"]["containerStatuses"][0]["restartCount"] for pod in found}


def test_tune_measures_beside_the_serving_worker_and_leaves_nothing(
    kube: Cluster, test_namespace: str, served: dict[str, Any], plugin: Plugin
):
    before = pods(kube, test_namespace)
    report = plugin("tune", "--seconds=60")
    print(report)
    assert "\nRecommended: " in report  # of how many sizes is up to how busy the machine is
    spec = yaml.safe_load(report[report.index("\nspec:\n") :])["spec"]
    assert spec["batching"]["maxBatchTokens"] >= 64
    kube.kubectl("patch", "reranker", NAME, "-n", test_namespace, "--type=merge", "--dry-run=server", "-p",
                 json.dumps({"spec": spec}))  # fmt: skip
    assert pods(kube, test_namespace) == before
    wait_for("the Job to be gone", lambda: not kube.items("jobs,pods", "-n", test_namespace, "-l",
             "app.kubernetes.io/component=tune"), timeout=60)  # fmt: skip


def test_tune_as_json(served: dict[str, Any], plugin: Plugin):
    told = json.loads(plugin("tune", "--seconds=60", "--json"))
    assert told["trials"]


def test_calibrate_finds_the_temperature_and_a_canary_brings_it(
    kube: Cluster, test_namespace: str, served: dict[str, Any], plugin: Plugin
):
    page = plugin("calibrate")
    print(page)
    assert f"In force, temperature {WRONG:g}" in page
    found = json.loads(plugin("calibrate", "--json", "--apply"))
    assert found["temperature"] == WRONG
    assert found["fitted"] < WRONG / 2
    assert found["validated"]["logLoss"] < found["before"]["logLoss"]
    assert found["validated"]["brier"] < found["before"]["brier"]
    assert found["validated"]["ece"] < found["before"]["ece"]

    def mirrored() -> bool:
        return kube.get("reranker", NAME, "-n", test_namespace)["status"].get("rollout", {}).get("phase") == "Mirror"

    # A new revision as any other: a canary, which ranks as stable does and waits for users.
    wait_for("a canary that has ranked the golden set", mirrored, timeout=300)
    plugin("promote", "--force")
    settled = wait_settled(kube, NAME, test_namespace, timeout=300)
    assert settled["spec"]["model"]["temperature"] == found["fitted"]
    assert settled["status"]["currentRevision"] != found["revision"]
    again = json.loads(plugin("calibrate", "--json"))
    assert again["temperature"] == found["fitted"] == pytest.approx(again["fitted"], rel=1e-3)
    assert again["before"]["brier"] == pytest.approx(found["after"]["brier"], abs=1e-4)


@pytest.fixture
def client(release: Release) -> Iterator[httpx.Client]:
    with release.reach_gateways() as urls, httpx.Client(base_url=urls[0], timeout=60) as client:
        yield client


def test_samples_show_what_was_captured(
    test_namespace: str, served: dict[str, Any], plugin: Plugin, client: httpx.Client
):
    body = {"query": "list files, ask me@example.com", "documents": ["cat shows a file", "ls lists files"]}
    client.post(f"/{test_namespace}/{NAME}/v2/rerank", json=body).raise_for_status()

    def shown() -> str:
        return plugin("samples", "--since=10m", f"--gateway-namespace={SYSTEM_NAMESPACE}")

    page = wait_for("the request to be in the log", shown, timeout=30)
    print(page)
    assert "list files, ask" in page
    assert "me@example.com" not in page
    assert page.index("ls lists files") < page.index("cat shows a file")
