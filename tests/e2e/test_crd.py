"""The CRDs as the chart installs them, against the genuine API server: what they refuse, how, and what they keep.

Each file of ``manifests/bad`` is refused with a message that names the field (its first line says which); each file of
``manifests/good`` and ``docs/examples`` is stored as written. With RERANK_WRITE_DOCS=1 in the environment the answers
are written to docs/reference/refused-manifests.md.
"""

import json
import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness.cluster import ROOT, Cluster
from harness.release import Release
from rerank_api import names
from rerank_api.reranker import parse_reranker
from rerank_api.warm_pool import parse_warm_pool

BAD = sorted((ROOT / "tests" / "e2e" / "manifests" / "bad").glob("*.yaml"))
GOOD = sorted((ROOT / "tests" / "e2e" / "manifests" / "good").glob("*.yaml"))
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.yaml"))
REFUSED = ROOT / "docs" / "reference" / "refused-manifests.md"

DEFAULTS = {
    "runtime": {"device": "auto", "precision": "auto", "backend": "auto", "compile": "auto", "qualityFloor": 0.99},
    "batching": {"maxDelay": "5ms", "lengthBucket": 16},
    "requests": {
        "maxDocuments": 1000,
        "maxBodyBytes": "8Mi",
        "timeout": "10s",
        "wakeTimeout": "5m",
        "queueLimit": 1000,
        "longDocuments": "truncate",
        "chunkPooling": "max",
    },
    "scaling": {
        "minReplicas": 0,
        "maxReplicas": 8,
        "targetQueueDepth": 4,
        "targetQueueTime": "20ms",
        "idleTimeout": "5m",
        "mode": "auto",
    },
    "slo": {"availability": 0.999, "latency": {"quantile": 0.95, "threshold": "150ms"}},
    "observability": {},
    "rollout": {
        "strategy": "Replace",
        "steps": [1, 5, 25, 50],
        "stepRequests": 20,
        "stepDuration": "1m",
        "mirrorPercent": 10,
        "errorProbability": 0.01,
        "limits": {"latencyIncrease": 0.2, "errorIncrease": 0.01, "qualityDrop": 0.02},
        "whenFull": "wait",
        "deadline": "24h",
        "paused": False,
    },
    "suspend": False,
}
MODEL_DEFAULTS = {"allowFloatingRevision": False, "activation": "auto", "temperature": 1, "trustRemoteCode": False}
POOL_DEFAULTS = {"device": "auto", "precision": "auto", "maxModelsPerPod": 8}

READ = {names.KIND: parse_reranker, names.WARM_POOL_KIND: parse_warm_pool}


def stem(path: Path) -> str:
    return path.stem


def refusal(kube: Cluster, *args: str | Path, input: str | None = None) -> str:
    """What kubectl says on stderr, on one line; fails when the API server accepts."""
    done = kube.kubectl(*args, "--dry-run=server", input=input, check=False)
    assert done.returncode != 0, f"accepted: {done.stdout}"
    return " ".join(done.stderr.split())


def is_kept(written: Any, stored: Any, path: str = "spec") -> None:
    """Everything in ``written`` is in ``stored``, which may hold more (defaults)."""
    if isinstance(written, dict):
        for key, value in written.items():
            assert key in stored, f"{path}.{key} was dropped"
            is_kept(value, stored[key], f"{path}.{key}")
    elif isinstance(written, list):
        assert len(stored) == len(written), path
        for index, (ours, theirs) in enumerate(zip(written, stored, strict=True)):
            is_kept(ours, theirs, f"{path}[{index}]")
    else:
        assert stored == written, path


@pytest.fixture(scope="module")
def crds(kube: Cluster, release: Release) -> dict[str, Any]:
    """The installed definitions by the plural of their kind."""
    plurals = (names.PLURAL, names.WARM_POOL_PLURAL)
    return {plural: kube.get("crd", f"{plural}.{names.GROUP}") for plural in plurals}


@pytest.fixture(scope="module")
def answers(crds: dict[str, Any], kube: Cluster) -> Iterator[dict[str, str]]:
    """The API server's answer to each bad manifest, by file name; written down afterwards when asked to."""
    found: dict[str, str] = {}
    yield found
    if os.environ.get("RERANK_WRITE_DOCS") and len(found) == len(BAD):
        version = json.loads(kube.kubectl("version", "-o", "json").stdout)["serverVersion"]["gitVersion"]
        REFUSED.write_text(refused_page(found, version))


@pytest.fixture(scope="module")
def stored(crds: dict[str, Any], kube: Cluster, test_namespace: str) -> dict[str, tuple[Any, Any]]:
    """Each good manifest as written and as read back. They are suspended, or of no size, so that no worker starts."""
    written, beside = {}, []
    for path in GOOD + EXAMPLES:
        manifest, *others = yaml.safe_load_all(path.read_text())
        for one in (manifest, *others):
            one["metadata"] |= {"namespace": test_namespace}
        beside += others
        if path in EXAMPLES:
            manifest["metadata"]["name"] = f"example-{path.stem}"
        manifest["spec"] |= {"suspend": True} if manifest["kind"] == names.KIND else {"size": 0}
        written[path.stem] = manifest
    kube.kubectl("create", "-f", "-", input=yaml.safe_dump_all([*written.values(), *beside]))
    items = kube.items("rerankers,warmpools", "-n", test_namespace)
    found = {(item["kind"], item["metadata"]["name"]): item for item in items}
    return {key: (one, found[one["kind"], one["metadata"]["name"]]) for key, one in written.items()}


@pytest.mark.parametrize("plural", [names.PLURAL, names.WARM_POOL_PLURAL])
def test_installed_crd_is_that_of_the_repository(plural: str, crds: dict[str, Any]) -> None:
    ours = yaml.safe_load((ROOT / "crds" / f"{plural}.yaml").read_text())
    is_kept(ours["spec"], crds[plural]["spec"])


@pytest.mark.parametrize("path", BAD, ids=stem)
def test_bad_manifest_is_refused(path: Path, kube: Cluster, answers: dict[str, str], test_namespace: str) -> None:
    first = path.read_text().splitlines()[0]
    expected = first.removeprefix("# expect: ")
    assert expected != first, "the first line says what is expected"
    answer = refusal(kube, "create", "-n", test_namespace, "-f", path)
    answers[path.name] = answer
    assert re.search(expected, answer), answer


@pytest.mark.parametrize("path", GOOD + EXAMPLES, ids=stem)
def test_good_manifest_survives(path: Path, stored: dict[str, tuple[Any, Any]]) -> None:
    written, found = stored[path.stem]
    is_kept(written["spec"], found["spec"])
    # The API server's defaults are those of the code that reads the object.
    read = READ[written["kind"]]
    assert read(found).spec == read(written).spec


def test_defaults_are_filled_in(stored: dict[str, tuple[Any, Any]]) -> None:
    written, found = stored["minimal"]
    model = {**MODEL_DEFAULTS, **written["spec"]["model"]}
    assert found["spec"] == {**DEFAULTS, "model": model, "suspend": True}
    _, pool = stored["warm-pool-smallest"]
    assert pool["spec"] == {**POOL_DEFAULTS, "size": 0}


@pytest.mark.parametrize("command", [("create",), ("apply",), ("apply", "--server-side")], ids=" ".join)
def test_every_way_to_apply_refuses_an_unknown_field(
    command: tuple[str, ...], kube: Cluster, crds: dict[str, Any], test_namespace: str
) -> None:
    manifest = (ROOT / "tests" / "e2e" / "manifests" / "bad" / "unknown-slo-errors.yaml").read_text()
    assert "spec.slo.errors" in refusal(kube, *command, "-n", test_namespace, "-f", "-", input=manifest)


def test_patch_warns_of_an_unknown_field_and_drops_it(
    kube: Cluster, stored: dict[str, tuple[Any, Any]], test_namespace: str
) -> None:
    """kubectl asks for no strict validation of a patch, and the API server then warns instead of refusing."""
    patch = json.dumps({"spec": {"slo": {"errors": 0.001}, "replicas": 0}})
    done = kube.kubectl(
        "patch", "reranker", "pvc-root", "-n", test_namespace, "--type=merge", "-p", patch,
        "--dry-run=server", "-o", "json",
    )  # fmt: skip
    assert 'unknown field "spec.slo.errors"' in done.stderr
    assert "errors" not in json.loads(done.stdout)["spec"]["slo"]


def test_a_bad_change_of_a_good_object_is_refused(
    kube: Cluster, stored: dict[str, tuple[Any, Any]], test_namespace: str
) -> None:
    patch = json.dumps({"spec": {"requests": {"timeout": "1h"}}})
    answer = refusal(kube, "patch", "reranker", "pvc-root", "-n", test_namespace, "--type=merge", "-p", patch)
    assert "spec.requests.timeout" in answer


TIME = "2026-11-21T10:00:00Z"
CONDITION = {
    "type": "Ready", "status": "True", "reason": "Serving", "message": "", "observedGeneration": 1,
    "lastTransitionTime": TIME,
}  # fmt: skip
SCALING = {"mode": "Auto", "desiredReplicas": 2, "lastRequestTime": TIME}
REJECTED = {"revision": "b2c4", "reason": "ModelLoadFailed", "message": "spec.model.uri: no such folder"}
CHECK = {"name": "errors", "verdict": "hold", "message": "0 of 12 requests failed, of stable's 3 of 3,020"}
ROLLOUT = {"revision": "d5f6", "stable": "b2c4", "phase": "Traffic"}
DIFFERED = {"requestId": "9f1c", "agreement": -0.25, "drift": 0.4}
QUALITY = {
    "revision": "b2c4", "time": TIME, "metric": "ndcg@10", "queries": 200, "ndcg": 0.94, "accuracy": 1, "mrr": 0,
    "digest": "9f1c",
}  # fmt: skip


def patch_status(kube: Cluster, namespace: str, status: dict[str, Any]) -> list[str]:
    return [
        "patch", "reranker", "pvc-root", "-n", namespace, "--subresource=status", "--type=merge", "-o", "json",
        "-p", json.dumps({"status": status}),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("status", "field"),
    [
        ({"replicas": -1}, "status.replicas"),
        ({"readyReplicas": "two"}, "status.readyReplicas"),
        ({"traffic": [{"revision": "a", "percent": 101}]}, "status.traffic[0].percent"),
        ({"traffic": [{"percent": 100}]}, "status.traffic[0].revision"),
        ({"traffic": [{"revision": "a", "percent": 50}, {"revision": "a", "percent": 50}]}, "status.traffic[1]"),
        ({"conditions": [{**CONDITION, "status": "Maybe"}]}, "status.conditions[0].status"),
        ({"conditions": [{**CONDITION, "reason": "two words"}]}, "status.conditions[0].reason"),
        ({"conditions": [{**CONDITION, "lastTransitionTime": "now"}]}, "status.conditions[0].lastTransitionTime"),
        ({"conditions": [{"type": "Ready"}]}, "status.conditions[0].message"),
        ({"conditions": [CONDITION, CONDITION]}, "status.conditions[1]"),
        ({"rejectedRevision": {"revision": "b2c4"}}, "status.rejectedRevision.reason"),
        ({"rejectedRevision": {**REJECTED, "time": "now"}}, "status.rejectedRevision.time"),
        ({"traffic": [{"revision": "a", "percent": -1}]}, "status.traffic[0].percent"),
        ({"rollout": {"revision": "d5f6", "phase": "Traffic"}}, "status.rollout.stable"),
        ({"rollout": {**ROLLOUT, "phase": "Failed"}}, "status.rollout.phase"),
        ({"rollout": {**ROLLOUT, "percent": 101}}, "status.rollout.percent"),
        ({"rollout": {**ROLLOUT, "requests": -1}}, "status.rollout.requests"),
        ({"rollout": {**ROLLOUT, "borrowed": -1}}, "status.rollout.borrowed"),
        ({"rollout": {**ROLLOUT, "started": "now"}}, "status.rollout.started"),
        ({"rollout": {**ROLLOUT, "checks": [{**CHECK, "verdict": "maybe"}]}}, "status.rollout.checks[0].verdict"),
        ({"rollout": {**ROLLOUT, "differed": [DIFFERED] * 6}}, "status.rollout.differed"),
        ({"rollout": {**ROLLOUT, "differed": [{"drift": 0.4}]}}, "status.rollout.differed[0].requestId"),
        ({"rollout": {**ROLLOUT, "differed": [{**DIFFERED, "agreement": -2}]}}, "status.rollout.differed[0].agreement"),
        ({"quality": {**QUALITY, "ndcg": None}}, "status.quality.ndcg"),
        ({"quality": {**QUALITY, "ece": -0.1}}, "status.quality.ece"),
        ({"quality": {**QUALITY, "time": "now"}}, "status.quality.time"),
        ({"scaling": {**SCALING, "desiredReplicas": None}}, "status.scaling.desiredReplicas"),
        ({"scaling": {**SCALING, "mode": "Asleep"}}, "status.scaling.mode"),
        ({"scaling": {**SCALING, "loaners": -1}}, "status.scaling.loaners"),
        ({"scaling": {**SCALING, "lastRequestTime": "now"}}, "status.scaling.lastRequestTime"),
        ({"scaling": {**SCALING, "memory": "x" * 16385}}, "status.scaling.memory"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_status_is_refused(
    status: dict[str, Any], field: str, kube: Cluster, stored: dict[str, tuple[Any, Any]], test_namespace: str
) -> None:
    assert field in refusal(kube, *patch_status(kube, test_namespace, status))


POOL_STATUS = {
    "observedGeneration": 1,
    "replicas": 3,
    "readyReplicas": 2,
    "free": 1,
    "loaned": 1,
    "selector": "rerank.dev/warm-pool=smallest",
    "models": [{"reranker": "a", "revision": "b2c4", "pods": 2}, {"reranker": "b", "revision": "b2c4", "pods": 1}],
    "conditions": [{**CONDITION, "reason": "AllReady"}],
}


def test_status_of_a_pool_is_kept_or_refused(
    kube: Cluster, stored: dict[str, tuple[Any, Any]], test_namespace: str
) -> None:
    def patch(status: dict[str, Any]) -> list[str]:
        command = patch_status(kube, test_namespace, status)
        return ["patch", "warmpool", "smallest", *command[3:]]

    done = kube.kubectl(*patch(POOL_STATUS), "--dry-run=server")
    is_kept(POOL_STATUS, json.loads(done.stdout)["status"], "status")
    one = {"reranker": "a", "revision": "b2c4", "pods": 2}
    for status, field in (
        ({"free": -1}, "status.free"),
        ({"models": [one, one]}, "status.models[1]"),
        ({"models": [{"reranker": "a"}]}, "status.models[0].pods"),
        ({"conditions": [{**CONDITION, "status": "Maybe"}]}, "status.conditions[0].status"),
    ):
        assert field in refusal(kube, *patch(status))


def test_status_is_kept(kube: Cluster, stored: dict[str, tuple[Any, Any]], test_namespace: str) -> None:
    status = {
        "observedGeneration": 1,
        "replicas": 3,
        "readyReplicas": 2,
        "selector": "rerank.dev/reranker=pvc-root",
        "currentRevision": "b2c4",
        "updatedRevision": "d5f6",
        "rejectedRevision": {**REJECTED, "time": TIME},
        "rollout": {
            **ROLLOUT,
            "message": "step 2 of 4: 12 of 20 requests",
            "percent": 5,
            "step": 1,
            "requests": 32,
            "borrowed": 1,
            "paused": "by the annotation rerank.dev/rollout-paused",
            "checks": [{**CHECK, "name": "load", "verdict": "pass"}, CHECK],
            "differed": [DIFFERED, {"requestId": "9f1d", "drift": 1.5}],
            "started": TIME,
            "phaseStarted": TIME,
            "ended": TIME,
        },
        "quality": {**QUALITY, "brier": 0.08, "ece": 0.03},
        "traffic": [{"revision": "b2c4", "percent": 100}, {"revision": "d5f6", "percent": 0}],
        "scaling": {
            **SCALING,
            "desiredLoaners": 1,
            "loaners": 1,
            "reason": "DemandRose",
            "message": "a load of 1.40 replicas",
            "queuedRequests": 3,
            "capacityTokensPerSecond": 51234.5,
            "startSeconds": 12.5,
            "wakeSeconds": 0.8,
            "memory": "{}",
        },
        "conditions": [CONDITION],
    }
    done = kube.kubectl(*patch_status(kube, test_namespace, status), "--dry-run=server")
    is_kept(status, json.loads(done.stdout)["status"], "status")


COLUMNS = [
    "NAME", "READY", "REPLICAS", "READY REPLICAS", "QUEUE", "REVISION", "CANARY", "AGE",
    "MODEL ASKED FOR", "REASON", "LOANERS",
]  # fmt: skip
POOL_COLUMNS = ["NAME", "SIZE", "READY", "FREE", "LOANED", "AGE", "REASON"]


def test_columns(kube: Cluster, stored: dict[str, tuple[Any, Any]], test_namespace: str) -> None:
    for name in ("rerankers", "reranker", "rr"):
        table = kube.kubectl("get", name, "-n", test_namespace, "-o", "wide").stdout
        head, *rows = table.splitlines()
        assert re.split(r"\s{2,}", head.strip()) == COLUMNS
        assert any(row.startswith("pvc-root ") and "pvc://reranker-v3" in row for row in rows)
    for name in ("warmpools", "warmpool", "wp"):
        head, *rows = kube.kubectl("get", name, "-n", test_namespace, "-o", "wide").stdout.splitlines()
        assert head.split() == POOL_COLUMNS
        assert any(row.split()[:2] == ["smallest", "0"] for row in rows)
    both = kube.kubectl("get", "rerank", "-n", test_namespace).stdout
    assert "reranker.rerank.dev/pvc-root " in both
    assert "warmpool.rerank.dev/smallest " in both


def test_explain_is_the_manual(kube: Cluster, crds: dict[str, Any]) -> None:
    text = kube.kubectl("explain", "reranker.spec.model.uri").stdout
    assert "FIELD: uri <string>" in text
    assert "pvc://claim/path" in text
    assert "Europe/Berlin" in kube.kubectl("explain", "rr.spec.scaling.schedules.timezone").stdout
    assert "products-golden" in kube.kubectl("explain", "rr.spec.rollout.goldenSet").stdout
    assert "FIELD: size <integer>" in kube.kubectl("explain", "warmpool.spec.size").stdout


def test_scale(kube: Cluster, stored: dict[str, tuple[Any, Any]], test_namespace: str) -> None:
    scale = ("scale", "reranker", "pvc-root", "-n", test_namespace)
    kube.kubectl(*scale, "--replicas=3")
    assert kube.get("reranker", "pvc-root", "-n", test_namespace)["spec"]["replicas"] == 3
    seen = kube.get("reranker", "pvc-root", "-n", test_namespace, "--subresource=scale")
    assert (seen["kind"], seen["spec"]["replicas"]) == ("Scale", 3)
    assert "spec.replicas" in refusal(kube, *scale, "--replicas=1001")


def test_a_pool_is_scaled_by_its_size(kube: Cluster, stored: dict[str, tuple[Any, Any]], test_namespace: str) -> None:
    scale = ("scale", "warmpool", "smallest", "-n", test_namespace)
    kube.kubectl(*scale, "--replicas=1000", "--dry-run=server")
    assert kube.get("warmpool", "smallest", "-n", test_namespace, "--subresource=scale")["kind"] == "Scale"
    assert "spec.size" in refusal(kube, *scale, "--replicas=1001")


def refused_page(found: dict[str, str], version: str) -> str:
    """docs/reference/refused-manifests.md: each bad manifest and the answer to it."""
    rows = []
    for name, answer in sorted(found.items()):
        words = re.sub(r"^The (Reranker|WarmPool) \S+ is invalid: ", "", answer)
        words = re.sub(r"^Error from server \(BadRequest\): .*strict decoding error: ", "", words)
        words = re.sub(r" ?\* <nil>: Invalid value: [^*]*", "", words).removeprefix("* ")
        words = re.sub(r" \* (?=\.?(spec|metadata)\b)", "; ", words)
        words = re.sub(r"(x{40})x+", r"\1...", words).replace("|", "\\|")
        rows.append(f"| [{name.removesuffix('.yaml')}](../../tests/e2e/manifests/bad/{name}) | {words} |")
    return (
        "# Manifests that are refused, and in which words\n\n"
        '<!-- Written by `RERANK_WRITE_DOCS=1 make test-e2e ARGS="-k test_crd"` from tests/e2e/manifests/bad. -->\n\n'
        f"{len(rows)} bad manifests and the answers of a genuine API server (Kubernetes {version}, "
        f"{datetime.now(UTC):%Y-%m-%d}), as `kubectl create` shows them. Left out: the name of the object,\n"
        "the remark that other rules were not checked because of the error shown, and `strict decoding error`.\n\n"
        "| manifest | answer |\n| --- | --- |\n" + "\n".join(rows) + "\n"
    )
