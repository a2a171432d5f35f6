"""The operator killed in every phase and step of a canary: the rollout goes on from where it stood, and ends the same.

Workers are paced (``harness.paced``), so that each phase takes a known time; all else is real.
"""

import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from harness import faults, paced
from harness.canaries import (
    ROLLOUT,
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
from harness.cluster import VENV_BIN, Cluster, wait_for
from harness.operators import TAKE_OVER_SECONDS
from harness.paced import Profile
from harness.release import SYSTEM_NAMESPACE, Release
from rerank_api import names

pytestmark = [pytest.mark.local_only, pytest.mark.timeout(400)]

SHORT_LEASE = ("--lease-duration=5", "--renew-deadline=3", "--retry-period=0.5")
"""Six takeovers in a test, which shows nothing about how long they take."""
RATE = 40.0
STARTING = Profile(start_seconds=6)
"""Long enough to be killed in, as are the two below: a new leader has to be found and looked up before the next."""
SLOW_STEPS: dict[str, Any] = {
    **ROLLOUT,
    "stepDuration": "6s",
    "mirrorPercent": 5,
    # So that promotion takes some 300 requests; at the defaults it takes more, and shows nothing more of restarts.
    "limits": {"errorIncrease": 0.05, "latencyIncrease": 1.0},
}
USERS_ONLY: dict[str, Any] = {"strategy": "Canary", "steps": [5], "mirrorPercent": 0}
"""Two requests a second, so that one in ten that fails is not found before there is an operator to be killed."""


@pytest.fixture(scope="module", autouse=True)
def needs(kube: Cluster, release: Release, test_namespace: str) -> Iterator[None]:
    """Operators that take over soon, and what canaries refer to."""
    release.install(*(f"operator.extraArgs[{number}]={flag}" for number, flag in enumerate(SHORT_LEASE)))
    kube.apply(golden_set(test_namespace), faults.code(test_namespace))
    yield
    release.install()


def manifest(namespace: str, uri: str, pod_template: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return shop(namespace, uri, runtime={"podTemplate": pod_template}, replicas=2, **spec)


@pytest.fixture
def stable(kube: Cluster, test_namespace: str, model_uri: str) -> str:
    return begin_anew(kube, manifest(test_namespace, model_uri, paced.overlay(Profile(), VENV_BIN)))


class Leader:
    """The operator that leads; looked up beforehand, so that it can be killed in the moment that something is seen."""

    def __init__(self, cluster: Cluster, release: Release) -> None:
        self._cluster, self._release = cluster, release
        self._before = ""
        self._process: dict[str, Any] = {}

    def look_up(self) -> None:
        """Waits until there is one that was not killed."""

        def found() -> dict[str, Any] | None:
            holder = self._release.leader()
            if not holder or holder == self._before:
                return None
            running = self._cluster.processes(namespace=SYSTEM_NAMESPACE)
            return next(({**process, "holder": holder} for process in running if process["pod"] in holder), None)

        self._process = wait_for("a leader", found, timeout=TAKE_OVER_SECONDS)
        self._before = self._process["holder"]

    def kill(self) -> None:
        os.kill(self._process["pid"], signal.SIGKILL)
        # Its kubelet would start it again, after a pause that gets longer each time: a new pod comes without one.
        self._cluster.kubectl("delete", "pod", self._process["pod"], "-n", SYSTEM_NAMESPACE, "--wait=false")


def evidence(kube: Cluster, namespace: str, canary: str) -> str:
    """What is kept with the canary's ControllerRevision; empty where nothing is."""
    kept = kube.items("controllerrevisions", "-n", namespace, "-l", f"{names.LABEL_REVISION}={canary}")
    return next((found["metadata"].get("annotations", {}).get(names.ANNOTATION_EVIDENCE, "") for found in kept), "")


def went_on(trial: Trial, started: str) -> None:
    """One rollout, never a step back, and no request that was counted forgotten."""
    story = [moment for moment in trial.story if moment.rollout.get("started") == started]
    assert went_back(places(story, started)) == []
    counted = [moment.rollout.get("requests", 0) for moment in story]
    assert counted == sorted(counted)
    assert {moment.rollout["started"] for moment in trial.story[-1:]} == {started}


def test_a_good_canary_is_promoted_though_the_operator_is_killed_in_every_phase_and_step(
    kube: Cluster, release: Release, test_namespace: str, model_uri: str, stable: str
):
    leader = Leader(kube, release)
    killed: list[Place] = []
    kept: dict[Place, bool] = {}
    spots = [Place(phase, 0) for phase in ("Starting", "Golden", "Mirror")]
    spots += [Place("Traffic", step) for step in range(len(ROLLOUT["steps"]))]
    spots += [Place("Promoting", len(ROLLOUT["steps"]))]
    with under_load(kube, release, test_namespace, rate=RATE) as trial:
        leader.look_up()
        slow_start = paced.overlay(STARTING, VENV_BIN)
        trial.apply(manifest(test_namespace, model_uri, slow_start, rollout=SLOW_STEPS))
        for spot in spots:
            begun = trial.at(*spot)
            leader.kill()
            killed.append(trial.now.place)
            canary = begun.rollout["revision"]
            before = evidence(kube, test_namespace, canary)
            leader.look_up()
            kept[spot] = not before or bool(evidence(kube, test_namespace, canary))
        end = trial.decided()
        trial.more_requests()
    print(json.dumps({**trial.figures("as good, operator killed", end), "killed_at": killed}))
    assert killed == spots
    assert end.rollout["phase"] == "Promoted"
    went_on(trial, end.rollout["started"])
    assert all(kept.values())
    assert failed_for_users(trial.load.report) == []
    assert trial.load.report.outcomes[-1].revision == canary


def test_a_bad_canary_is_taken_back_though_the_operator_is_killed(
    kube: Cluster, release: Release, test_namespace: str, model_uri: str, stable: str
):
    leader = Leader(kube, release)
    variables = paced.environment(Profile(), VENV_BIN)
    bad = faults.pod_template("errors=0.1", variables)
    with under_load(kube, release, test_namespace, rate=RATE) as trial:
        leader.look_up()
        trial.apply(manifest(test_namespace, model_uri, bad, rollout=USERS_ONLY))
        begun = trial.wait("users on it", lambda m: m.place.phase == "Traffic" and m.rollout.get("requests", 0) > 0)
        leader.kill()
        canary = begun.rollout["revision"]
        assert evidence(kube, test_namespace, canary)
        leader.look_up()
        end = trial.decided()
        trial.more_requests()
    print(json.dumps(trial.figures("10 % errors, operator killed", end)))
    assert (end.rollout["phase"], end.failed_checks) == ("RolledBack", ["errors"])
    assert (end.percent(stable), end.percent(canary)) == (100, 0)
    went_on(trial, end.rollout["started"])
    assert failed_for_users(trial.load.report) == []
    assert met(trial.load.report.outcomes[-30:], canary) == 0
