"""The golden set ranked on a schedule, by a real worker: what status, condition, Events and metrics tell of it, and
what a restart of the operator, a worse revision, a canary, no worker and no ConfigMap make of it.

One Reranker goes through all of it: each test goes on from where the one before has left it.
"""

import json
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any

import pytest
from harness.canaries import GOLDEN, ROLLOUT, golden_set
from harness.cluster import Cluster, wait_for
from harness.release import RELEASE, SYSTEM_NAMESPACE, Release, condition, reranker, wait_settled
from prometheus_client.parser import text_string_to_metric_families
from rerank_operator.rollout.golden.schedule import due

# Metrics are read at the pod's address, which is reached from this machine only.
pytestmark = [pytest.mark.local_only, pytest.mark.timeout(300)]

OPERATOR = f"deployment/{RELEASE}"
MINIMUM = 0.8
"""Of nDCG@10, between what the demo model and its worse revision reach."""
INTERVAL = 60.0
"""The shortest."""
REPLACE: dict[str, Any] = {"strategy": "Replace"}
CANARY: dict[str, Any] = {"strategy": "Canary", "steps": [50]}
"""It waits for users' requests, of which there are none."""
SECONDS = 120.0
"""Longest that something is waited for, on a machine that may be busy."""


class Ranked:
    """The Reranker, and what the operator tells of it."""

    def __init__(self, cluster: Cluster, release: Release, namespace: str, good: str, worse: str) -> None:
        self.cluster, self.release, self.namespace = cluster, release, namespace
        self.good, self.worse = good, worse
        # Of a name whose own time is soon after the first ranking, which the start of a worker takes some seconds to.
        names = [f"shop-{number}" for number in range(30)]
        self.name = min(names, key=lambda name: self.due(name, time.time() + 25))
        self.looks = 0

    def due(self, name: str, last: float) -> float:
        return due(f"{self.namespace}/{name}", INTERVAL, last)

    def apply(
        self,
        uri: str,
        *,
        replicas: int = 1,
        interval: str = "1h",
        metric: str = "ndcg@10",
        rollout: Mapping[str, Any] = REPLACE,
    ) -> None:
        slo = {"quality": {"minimum": MINIMUM, "interval": interval}}
        rollout = {**rollout, "goldenSet": {**ROLLOUT["goldenSet"], "metric": metric}}
        self.cluster.apply(
            reranker(self.name, self.namespace, uri, replicas=replicas, slo=slo, rollout=rollout),
        )

    def get(self) -> dict[str, Any]:
        return self.cluster.get("reranker", self.name, "-n", self.namespace)

    @property
    def status(self) -> dict[str, Any]:
        return self.get()["status"]

    @property
    def quality(self) -> dict[str, Any]:
        return self.status["quality"]

    def wait(self, what: str, found: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        """The Reranker's status once ``found`` of the object is true."""

        def seen() -> dict[str, Any] | None:
            body = self.get()
            return body["status"] if found(body) else None

        try:
            return wait_for(what, seen, SECONDS)
        except AssertionError:
            print(json.dumps(self.status, indent=1))
            raise

    def noted(self, status: str, reason: str, *words: str) -> dict[str, Any]:
        """The Reranker's status once the condition is so, with these words in its message."""

        def so(body: dict[str, Any]) -> bool:
            now = condition(body, "RankingQuality")
            told = now.get("message", "")
            return (now.get("status"), now.get("reason")) == (status, reason) and all(word in told for word in words)

        return self.wait(f"RankingQuality {status}: {reason} {words}", so)

    def ranked_after(self, before: dict[str, Any]) -> dict[str, Any]:
        """status.quality of the ranking that follows ``before``."""
        return self.wait("another ranking", lambda body: body["status"]["quality"]["time"] > before["time"])["quality"]

    def events(self, reason: str) -> list[str]:
        found = self.cluster.items("events", "-n", self.namespace)
        return [e["message"] for e in found if (e["involvedObject"]["name"], e["reason"]) == (self.name, reason)]

    # --- the operator ---

    def metrics(self, name: str, *by: str) -> dict[tuple[str, ...], float]:
        """What the leader tells of the Reranker, by the values of these labels; sums over the others."""
        holder = self.release.leader()
        found: dict[tuple[str, ...], float] = {}
        for pod in self.release.pods("operator"):
            if pod["metadata"]["name"] in holder and pod.get("status", {}).get("podIP"):
                url = f"http://{pod['status']['podIP']}:9090/metrics"
                with urllib.request.urlopen(url, timeout=10) as answer:
                    text = answer.read().decode()
                for family in text_string_to_metric_families(text):
                    for sample in family.samples:
                        if sample.name == name and sample.labels["reranker"] == self.name:
                            labels = tuple(sample.labels[label] for label in by)
                            found[labels] = found.get(labels, 0.0) + sample.value
        return found

    def runs(self) -> dict[str, float]:
        """Of the operator that leads, by result."""
        return {result: runs for (result,), runs in self.metrics("rerank_operator_golden_runs_total", "result").items()}

    def replica_seconds(self) -> float:
        return sum(self.metrics("rerank_operator_replica_seconds_total").values())

    def metered(self) -> tuple[float, float]:
        """Now, and replica seconds until now: the operator is made to look, for it counts when it looks."""
        self.looks += 1
        before = self.replica_seconds()
        self.cluster.kubectl(
            "annotate", "reranker", self.name, "-n", self.namespace, f"example.com/look={self.looks}", "--overwrite"
        )
        return time.monotonic(), wait_for("a look", lambda: (now := self.replica_seconds()) > before and now, SECONDS)

    def stop_operator(self) -> None:
        self.scale_operator(0)
        wait_for("no operator", lambda: not self.release.pods("operator"), SECONDS)

    def start_operator(self) -> None:
        """Until it leads and has looked at the Reranker."""
        self.scale_operator(1)
        wait_for("an operator's look", self.runs, SECONDS)

    def scale_operator(self, replicas: int) -> None:
        self.cluster.kubectl("scale", OPERATOR, "-n", SYSTEM_NAMESPACE, f"--replicas={replicas}")


@pytest.fixture(scope="module")
def subject(
    kube: Cluster, release: Release, test_namespace: str, model_uri: str, other_model_uri: str
) -> Iterator[Ranked]:
    kube.apply(golden_set(test_namespace))
    made = Ranked(kube, release, test_namespace, model_uri, other_model_uri)
    made.apply(model_uri, interval=f"{INTERVAL:.0f}s")
    wait_settled(kube, made.name, test_namespace)
    yield made
    made.scale_operator(2)
    kube.kubectl("rollout", "status", OPERATOR, "-n", SYSTEM_NAMESPACE, timeout=SECONDS)


def unix(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def test_what_was_found_stands_in_the_status_the_condition_and_the_metrics(subject: Ranked):
    status = subject.noted("True", "GoodEnough", f"and {MINIMUM:g} is asked for")
    found = status["quality"]
    print(json.dumps(found))
    assert (found["revision"], found["metric"]) == (status["currentRevision"], "ndcg@10")
    assert found["queries"] == len(GOLDEN.read_text().splitlines())
    assert MINIMUM <= found["ndcg"] <= 1
    revision = found["revision"]
    assert subject.metrics("rerank_operator_golden_quality", "revision", "measure") == {
        (revision, "ndcg@10"): found["ndcg"],
        (revision, "accuracy@10"): found["accuracy"],
        (revision, "mrr"): found["mrr"],
    }
    assert subject.metrics("rerank_operator_golden_calibration", "revision", "measure") == {
        (revision, "brier"): found["brier"],
        (revision, "ece"): found["ece"],
    }
    assert subject.metrics("rerank_operator_golden_minimum", "measure") == {("ndcg@10",): MINIMUM}
    assert subject.metrics("rerank_operator_golden_run_timestamp_seconds") == {(): unix(found["time"])}
    assert subject.runs() == {"ok": 1, "failed": 0}


def test_an_operator_that_starts_ranks_nothing_before_it_is_due(subject: Ranked):
    before = subject.quality
    subject.stop_operator()
    subject.start_operator()
    begin, at_first = subject.metered()
    after = subject.ranked_after(before)
    subject.apply(subject.good)  # from now on not again for half an hour
    end, at_last = subject.metered()
    asked = subject.due(subject.name, unix(before["time"]))
    print(json.dumps({"ranked": before["time"], "due": asked, "again": unix(after["time"])}))
    assert unix(after["time"]) >= int(asked), "one that ranks at once would have been earlier"
    assert subject.runs() == {"ok": 1, "failed": 0}
    same = ("revision", "digest", "queries")
    assert [after[field] for field in same] == [before[field] for field in same]
    assert after["ndcg"] == pytest.approx(before["ndcg"], abs=1e-3)
    print(json.dumps({"replica_seconds": at_last - at_first, "of": end - begin}))
    assert at_last - at_first == pytest.approx(end - begin, abs=3), "one worker was ready"


def test_a_worse_revision_that_nothing_has_held_up_is_told(subject: Ranked):
    before = subject.quality
    assert subject.events("RankingQualityLow") == []
    subject.apply(subject.worse)
    status = subject.noted("False", "BelowMinimum", "ndcg@10 is ", f"and {MINIMUM:g} is asked for")
    found = status["quality"]
    print(json.dumps(found))
    assert found["revision"] == status["currentRevision"] != before["revision"]
    assert found["ndcg"] < MINIMUM <= before["ndcg"]
    shown = subject.metrics("rerank_operator_golden_quality", "revision", "measure")
    assert shown[found["revision"], "ndcg@10"] == found["ndcg"]
    assert {revision for revision, _ in shown} == {found["revision"]}
    assert subject.runs() == {"ok": 2, "failed": 0}, "and nothing else was ranked"
    (told,) = wait_for("the Event", lambda: subject.events("RankingQualityLow"), SECONDS)
    assert f"revision {found['revision']}" in told


def test_while_a_canary_is_judged_nothing_is_ranked(subject: Ranked):
    before = subject.quality
    subject.apply(subject.good, rollout=CANARY)
    subject.wait("a canary to wait", lambda body: body["status"].get("rollout", {}).get("phase") == "Mirror")
    subject.apply(subject.good, metric="mrr", rollout=CANARY)  # another metric is ranked at once
    status = subject.noted("Unknown", "NotMeasured", "a canary is judged, and the workers are left to that")
    assert (status["rollout"]["phase"], status["quality"]) == ("Mirror", before)
    subject.apply(subject.good, metric="mrr")  # at once
    found = subject.ranked_after(before)
    assert found["metric"] == "mrr"
    assert found["revision"] == subject.status["currentRevision"] != before["revision"]
    subject.noted("True", "GoodEnough", "mrr is ")
    assert subject.runs() == {"ok": 3, "failed": 0}


def test_a_golden_set_that_changed_or_went_while_no_operator_ran_is_looked_at_soon(subject: Ranked):
    before = subject.quality
    subject.stop_operator()
    few = "".join(GOLDEN.read_text().splitlines(keepends=True)[:12])
    subject.cluster.apply({**golden_set(subject.namespace), "data": {GOLDEN.name: few}})
    subject.start_operator()
    found = subject.ranked_after(before)
    assert (found["queries"], found["revision"]) == (12, before["revision"])
    assert subject.runs() == {"ok": 1, "failed": 0}

    subject.stop_operator()
    name = ROLLOUT["goldenSet"]["configMap"]
    subject.cluster.kubectl("delete", "configmap", name, "-n", subject.namespace)
    subject.start_operator()
    gone = f"ConfigMap {subject.namespace}/{name} does not exist: create it. Before that, mrr is "
    status = subject.noted("Unknown", "CannotMeasure", gone)
    assert status["quality"] == found, "what was known is not forgotten"
    assert subject.runs() == {"ok": 0, "failed": 1}
    assert subject.metrics("rerank_operator_golden_quality", "measure")["mrr",] == found["mrr"]


def test_without_a_worker_nothing_is_ranked_and_none_is_started(subject: Ranked):
    before = subject.quality
    subject.apply(subject.good, replicas=0, metric="mrr")
    subject.wait("no worker", lambda body: body["status"]["replicas"] == 0)
    used, runs = subject.replica_seconds(), subject.runs()
    subject.apply(subject.good, replicas=0, metric="accuracy@10")  # another metric is ranked at once
    status = subject.noted("Unknown", "NotMeasured", "has no ready worker to rank the golden set")
    assert (status["quality"], status["replicas"]) == (before, 0)
    assert (subject.replica_seconds(), subject.runs()) == (used, runs)
