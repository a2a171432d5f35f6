"""Canaries of the genuine model under steady load: which gate decides on each, how soon, and what users met of it.

Every bad canary is the served model with a fault from outside (harness.faults), another model, or another tokenizer.
Each test prints its figures as one JSON line.
"""

import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from harness import faults, paced, wrong_tokenizer
from harness.canaries import (
    NAME,
    PHASES,
    RATE,
    ROLLOUT,
    Moment,
    Place,
    Trial,
    begin_anew,
    failed_for_users,
    golden_set,
    met,
    places,
    shop,
    under_load,
    went_back,
)
from harness.cluster import STATE, VENV_BIN, Cluster, run, wait_for
from harness.paced import Profile
from harness.release import Release, condition, is_ready
from rerank_api import names

pytestmark = pytest.mark.timeout(400)

FASTER: dict[str, Any] = {key: value for key, value in ROLLOUT.items() if key != "goldenSet"}
"""For canaries that rank as stable does; that they pass the golden set, the good one shows."""
UNHURRIED: dict[str, Any] = {"strategy": "Canary", "steps": [20], "stepDuration": "24h", "mirrorPercent": 0}
"""Stays in its first step until a person says otherwise; without the gates that others show."""


@pytest.fixture(scope="module", autouse=True)
def needs(kube: Cluster, release: Release, test_namespace: str) -> None:
    """What canaries refer to."""
    kube.apply(golden_set(test_namespace), faults.code(test_namespace))


@pytest.fixture
def untold(kube: Cluster, test_namespace: str) -> None:
    """Of no Reranker Events have been told yet: they are bounded in number, and other tests may have used them up."""
    kube.kubectl("delete", "reranker", NAME, "-n", test_namespace, "--ignore-not-found", "--timeout=60s")


@pytest.fixture
def stable(kube: Cluster, test_namespace: str, model_uri: str) -> str:
    """The revision of the genuine model, which serves everything."""
    return begin_anew(kube, shop(test_namespace, model_uri))


@pytest.fixture
def trial(kube: Cluster, release: Release, test_namespace: str, stable: str) -> Generator[Trial]:
    """Users' requests on ``stable``, and changes of it."""
    with under_load(kube, release, test_namespace) as trial:
        yield trial


@pytest.fixture(scope="module")
def other_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the genuine model with a tokenizer that is not its own."""
    return wrong_tokenizer.build(STATE / "models" / "demo-reranker", tmp_path_factory.mktemp("models") / "other")


def rolled_back(trial: Trial, stable: str, what: str, gate: str) -> Moment:
    """The canary that was applied is taken back by ``gate``, and nobody's request failed for it; prints the figures."""
    end = trial.decided()
    trial.more_requests()
    print(json.dumps(trial.figures(what, end)))
    assert end.rollout["phase"] == "RolledBack"
    assert end.failed_checks == [gate]
    assert end.check(gate)["message"]
    # In the very status that tells of it: there is no moment between the verdict and the end of its traffic.
    assert (end.percent(stable), end.percent(end.rollout["revision"])) == (100, 0)
    assert end.status["rejectedRevision"]["revision"] == end.rollout["revision"]
    assert end.status["currentRevision"] == stable
    assert went_back(places(trial.story, end.rollout["started"])) == []
    assert failed_for_users(trial.load.report) == []
    assert trial.load.report.outcomes[-1].revision == stable
    return end


def touched_nobody(trial: Trial, end: Moment) -> None:
    """No user's request reached the canary, nor was any to be sent to it."""
    canary = end.rollout["revision"]
    assert [moment.percent(canary) for moment in trial.story if moment.percent(canary)] == []
    assert met(trial.load.report.outcomes, canary) == 0
    assert end.rollout.get("requests", 0) == 0


def workers(kube: Cluster, namespace: str) -> int:
    """Of both revisions, that are ready."""
    return sum(map(is_ready, kube.items("pods", "-n", namespace, "-l", f"{names.LABEL_RERANKER}={NAME}")))


def replicas_of(kube: Cluster, namespace: str, revision: str) -> int:
    """That its Deployment is told to have; 0 where there is none any more."""
    found = kube.items("deployments", "-n", namespace, "-l", f"{names.LABEL_REVISION}={revision}")
    return sum(deployment["spec"]["replicas"] for deployment in found)


def notes(kube: Cluster, namespace: str, canary: str) -> dict[str, str]:
    """Reason to note of the Events that tell of ``canary``."""
    found = kube.items("events.events.k8s.io", "-n", namespace)
    return {event["reason"]: event["note"] for event in found if canary in event.get("note", "")}


def ready_since(pod: dict[str, Any]) -> str:
    """RFC 3339; empty where it is not ready."""
    conditions = pod.get("status", {}).get("conditions", [])
    return next((c["lastTransitionTime"] for c in conditions if c["type"] == "Ready" and c["status"] == "True"), "")


def kubectl_rerank(kube: Cluster, verb: str, namespace: str, *more: str) -> str:
    """What a person types, through the plugin."""
    command = (VENV_BIN / "kubectl-rerank", verb, NAME, "-n", namespace, *more)
    return run(*command, env=kube.environment).stdout


def test_a_good_canary_passes_every_gate_and_is_promoted(
    kube: Cluster, untold: None, trial: Trial, stable: str, test_namespace: str, model_uri: str
):
    trial.apply(shop(test_namespace, model_uri, batching={"lengthBucket": 32}))
    end = trial.decided()
    trial.more_requests()
    print(json.dumps(trial.figures("as good", end)))
    assert end.rollout["phase"] == "Promoted"
    assert {check["name"]: check["verdict"] for check in end.rollout["checks"]} == dict.fromkeys(
        ["load", "golden", "mirror", "errors", "latency"], "pass"
    )
    stays = places(trial.story, end.rollout["started"])
    assert went_back(stays) == []
    # With one replica it needs no other to serve everything, and no status need tell that it is being promoted.
    assert {place.phase for place in stays} | {"Promoting"} == set(PHASES)
    assert {place.step for place in stays if place.phase == "Traffic"} == set(range(len(ROLLOUT["steps"])))
    canary = end.rollout["revision"]
    for moment in trial.story:
        if moment.rollout.get("revision") == canary and moment.rollout["phase"] in ("Starting", "Golden", "Mirror"):
            assert moment.percent(canary) == 0
    assert failed_for_users(trial.load.report) == []
    assert trial.load.report.outcomes[-1].revision == canary
    alone = [{"revision": canary, "percent": 100}]
    trial.wait("the old workers to go", lambda moment: moment.status["traffic"] == alone, timeout=60)
    reasons = {"GatePassed", "CanaryStep", "CanaryPromoted", "RolloutComplete"}
    wait_for("Events", lambda: reasons <= notes(kube, test_namespace, canary).keys(), timeout=30)


def test_a_slower_canary_is_taken_back_for_its_latency(
    kube: Cluster, release: Release, test_namespace: str, model_uri: str
):
    # Its worker is up before users come: where both share a machine's cores its start makes stable slow for seconds,
    # and what is known to have slow spells by itself takes thousands of requests to compare with.
    stable = begin_anew(kube, shop(test_namespace, model_uri, batching={"lengthBucket": 8}))
    slower = {"batching": {"lengthBucket": 8}, "runtime": {"podTemplate": faults.pod_template("slow=0.05")}}
    kube.apply(shop(test_namespace, model_uri, rollout={**FASTER, "paused": True}, **slower))
    wait_for("its worker", lambda: workers(kube, test_namespace) == 2, timeout=90)
    with under_load(kube, release, test_namespace) as trial:
        trial.more_requests(500)
        trial.apply(shop(test_namespace, model_uri, rollout=FASTER, **slower), begins=False)
        end = rolled_back(trial, stable, "50 ms slower", "latency")
    assert end.status["rejectedRevision"]["reason"] == "Slower"


def test_a_canary_that_fails_two_percent_is_taken_back_for_its_errors(
    trial: Trial, stable: str, test_namespace: str, model_uri: str
):
    runtime = {"podTemplate": faults.pod_template("errors=0.02")}
    trial.apply(shop(test_namespace, model_uri, rollout=FASTER, runtime=runtime))
    # What it fails is tried again at a worker of stable, so no user sees it; it counts against the canary all the same.
    end = rolled_back(trial, stable, "2 % errors", "errors")
    assert end.status["rejectedRevision"]["reason"] == "MoreErrors"


def test_a_canary_that_ranks_worse_meets_no_user(
    kube: Cluster, untold: None, trial: Trial, stable: str, test_namespace: str, other_model_uri: str
):
    trial.apply(shop(test_namespace, other_model_uri))
    end = rolled_back(trial, stable, "ranks worse", "golden")
    touched_nobody(trial, end)
    rejected = end.status["rejectedRevision"]
    assert rejected["reason"] == "RanksWorse"
    wait_for("its workers to go", lambda: replicas_of(kube, test_namespace, rejected["revision"]) == 0, timeout=60)
    assert replicas_of(kube, test_namespace, stable) == 1
    told = wait_for(
        "an Event", lambda: notes(kube, test_namespace, rejected["revision"]).get("RevisionRejected"), timeout=30
    )
    assert "nDCG" in told
    assert condition(kube.get("reranker", NAME, "-n", test_namespace), "Degraded")["reason"] == "RevisionRejected"


@pytest.mark.local_only  # the folder is on this machine
def test_a_canary_with_another_tokenizer_meets_no_user(
    trial: Trial, stable: str, test_namespace: str, other_tokenizer: Path
):
    trial.apply(shop(test_namespace, f"file://{other_tokenizer}"))
    touched_nobody(trial, rolled_back(trial, stable, "wrong tokenizer", "golden"))


@pytest.mark.local_only  # as above
def test_a_canary_whose_tokenizer_is_locked_and_differs_meets_no_user(
    trial: Trial, stable: str, test_namespace: str, other_tokenizer: Path
):
    manifest = shop(test_namespace, f"file://{other_tokenizer}")
    manifest["spec"]["model"]["sha256"] = {"tokenizer.json": wrong_tokenizer.sha256(STATE / "models" / "demo-reranker")}
    trial.apply(manifest)
    end = rolled_back(trial, stable, "wrong tokenizer, checksum known", "load")
    touched_nobody(trial, end)
    assert "tokenizer.json" in end.check("load")["message"]


def test_a_canary_that_crashes_meets_no_user(trial: Trial, stable: str, test_namespace: str, model_uri: str):
    trial.apply(shop(test_namespace, model_uri, runtime={"podTemplate": faults.pod_template("crash=0")}))
    end = rolled_back(trial, stable, "crash loop", "load")
    touched_nobody(trial, end)
    assert end.status["rejectedRevision"]["reason"] == "CrashLooping"


def test_what_was_rejected_is_tried_again_when_a_person_says_so_and_not_before(
    kube: Cluster, trial: Trial, stable: str, test_namespace: str, model_uri: str
):
    manifest = shop(test_namespace, model_uri)
    manifest["spec"]["model"]["sha256"] = {"tokenizer.json": "0" * 64}
    trial.apply(manifest)
    end = rolled_back(trial, stable, "a checksum that cannot be", "load")
    # Something else of the spec changes, so that the operator has surely looked at it anew.
    manifest["spec"]["requests"] = {"timeout": "31s"}
    kube.apply(manifest)
    generation = kube.get("reranker", NAME, "-n", test_namespace)["metadata"]["generation"]
    after = wait_for(
        "the operator to have read it",
        lambda: now if (now := trial.now).status["observedGeneration"] == generation else None,
        timeout=30,
    )
    assert after.rollout == end.rollout
    trial.change(lambda: kubectl_rerank(kube, "retry", test_namespace))
    again = rolled_back(trial, stable, "the same once more", "load")
    assert again.rollout["revision"] == end.rollout["revision"]
    assert again.status["rejectedRevision"]["time"] != end.status["rejectedRevision"]["time"]


def test_a_canary_is_paused_and_resumed_and_promoted_by_hand(
    kube: Cluster, trial: Trial, stable: str, test_namespace: str, model_uri: str
):
    kubectl_rerank(kube, "pause", test_namespace)
    trial.apply(shop(test_namespace, model_uri, rollout=UNHURRIED, batching={"lengthBucket": 32}))
    # Its workers come up, and there it stays.
    canary = trial.wait("the canary", lambda moment: moment.paused).rollout["revision"]
    ready = ("-n", test_namespace, "-l", f"{names.LABEL_REVISION}={canary}")
    wait_for(
        "its worker", lambda: [d for d in kube.items("deployments", *ready) if d["status"].get("readyReplicas")], 90
    )
    trial.more_requests()
    assert trial.now.place == Place("Starting", 0)
    assert met(trial.load.report.outcomes, canary) == 0
    kubectl_rerank(kube, "resume", test_namespace)
    trial.at("Traffic")
    wait_for("users on it", lambda: met(trial.load.report.outcomes, canary) >= 5, timeout=60)
    kubectl_rerank(kube, "pause", test_namespace)
    trial.wait("the pause", lambda moment: moment.place.phase == "Traffic" and moment.paused)
    # A pause takes nobody's share away.
    assert trial.now.percent(canary) == UNHURRIED["steps"][0]
    kubectl_rerank(kube, "promote", test_namespace, "--force")
    end = trial.decided()
    kubectl_rerank(kube, "resume", test_namespace)
    trial.more_requests()
    print(json.dumps(trial.figures("promoted by hand", end)))
    assert end.rollout["phase"] == "Promoted"
    assert "promoted by hand" in end.rollout["message"]
    assert failed_for_users(trial.load.report) == []
    assert trial.load.report.outcomes[-1].revision == canary


def test_a_canary_is_taken_back_by_hand(kube: Cluster, trial: Trial, stable: str, test_namespace: str, model_uri: str):
    trial.apply(shop(test_namespace, model_uri, rollout=UNHURRIED, batching={"lengthBucket": 32}))
    canary = trial.at("Traffic").rollout["revision"]
    wait_for("users on it", lambda: met(trial.load.report.outcomes, canary) >= 5, timeout=60)
    kubectl_rerank(kube, "abort", test_namespace)
    end = trial.decided()
    gone = len(trial.load.report.outcomes)
    trial.more_requests(60)
    print(json.dumps(trial.figures("aborted", end)))
    assert (end.rollout["phase"], end.failed_checks) == ("RolledBack", [])
    assert end.status["rejectedRevision"]["reason"] == "Aborted"
    assert (end.percent(stable), end.percent(canary)) == (100, 0)
    assert failed_for_users(trial.load.report) == []
    # Requests that were on their way, and those of the moment until gateways have heard of it.
    assert met(trial.load.report.outcomes[gone + int(RATE) :], canary) == 0


def test_a_third_revision_takes_the_place_of_a_canary(
    kube: Cluster, trial: Trial, stable: str, test_namespace: str, model_uri: str
):
    trial.apply(shop(test_namespace, model_uri, rollout=UNHURRIED, batching={"lengthBucket": 32}))
    second = trial.at("Traffic").rollout["revision"]
    wait_for("users on it", lambda: met(trial.load.report.outcomes, second) >= 5, timeout=60)
    trial.apply(shop(test_namespace, model_uri, rollout=UNHURRIED, batching={"lengthBucket": 64}))
    begun = trial.wait("the third", lambda moment: moment.rollout["revision"] != second)
    third = begun.rollout["revision"]
    assert begun.rollout["stable"] == stable
    assert (begun.percent(stable), begun.percent(second), begun.percent(third)) == (100, 0, 0)
    trial.at("Traffic")
    seen = len(trial.load.report.outcomes)
    wait_for("users on it", lambda: met(trial.load.report.outcomes, third) >= 5, timeout=60)
    wait_for("the second's workers to go", lambda: replicas_of(kube, test_namespace, second) == 0, timeout=60)
    assert met(trial.load.report.outcomes[seen + int(RATE) :], second) == 0
    kept = kube.items("controllerrevisions", "-n", test_namespace, "-l", f"{names.LABEL_REVISION}={second}")
    outcome = json.loads(kept[0]["metadata"]["annotations"][names.ANNOTATION_OUTCOME])
    assert (outcome["revision"], outcome["phase"]) == (second, "Cancelled")
    # The spec turns back: that is the end of the third, too.
    trial.change(lambda: kube.apply(shop(test_namespace, model_uri, rollout=UNHURRIED)))
    wait_for("stable alone", lambda: trial.now.status["traffic"] == [{"revision": stable, "percent": 100}], timeout=60)
    wait_for("the third's workers to go", lambda: replicas_of(kube, test_namespace, third) == 0, timeout=60)
    trial.more_requests()
    print(json.dumps({"canary": "two after another", **trial.load.report.summary()}))
    assert failed_for_users(trial.load.report) == []


@pytest.mark.local_only  # paced workers are programs of this checkout
def test_a_canary_that_is_ready_first_does_not_answer_who_waits_for_stable(
    kube: Cluster, release: Release, test_namespace: str, model_uri: str
):
    """Asleep with a canary waiting: requests wake both, the canary is up at once, and they wait for stable."""

    def manifest(start_seconds: float) -> dict[str, Any]:
        runtime = {"podTemplate": paced.overlay(Profile(start_seconds=start_seconds), VENV_BIN)}
        scaling = {"minReplicas": 0, "maxReplicas": 1, "idleTimeout": "3s"}
        return shop(test_namespace, model_uri, rollout={**UNHURRIED, "paused": True}, runtime=runtime, scaling=scaling)

    stable = begin_anew(kube, manifest(start_seconds=8))

    def pods() -> list[dict[str, Any]]:
        return kube.items("pods", "-n", test_namespace, "-l", f"{names.LABEL_RERANKER}={NAME}")

    wait_for("no worker", lambda: not pods(), timeout=60)
    kube.apply(manifest(start_seconds=0))

    def begun() -> dict[str, Any] | None:
        """The status still tells of the rollout before it for a moment."""
        rollout = kube.get("reranker", NAME, "-n", test_namespace)["status"].get("rollout", {})
        return rollout if rollout.get("stable") == stable else None

    waiting = wait_for("a canary that waits", begun, timeout=30)
    canary = waiting["revision"]
    assert waiting["phase"] == "Starting"
    assert pods() == []
    with under_load(kube, release, test_namespace, rate=5) as trial:
        wait_for("both to be up", lambda: len(up := pods()) == 2 and all(map(ready_since, up)), timeout=60)
        since = {pod["metadata"]["labels"][names.LABEL_REVISION]: ready_since(pod) for pod in pods()}
        trial.more_requests()
    print(json.dumps({"canary": "waits while asleep", **trial.load.report.summary()}))
    assert failed_for_users(trial.load.report) == []
    assert met(trial.load.report.outcomes, canary) == 0
    assert since[canary] < since[stable]
