"""Faults on a cluster, and the chart's own alerts as a real Prometheus gives them: fired, once, and ended.

The rules are the chart's with every window and wait shortened by TIME_SCALE, so that an hour passes in 72 seconds. Each
test prints how long firing and ending took, in real seconds and in those of the rules as they are shipped.
"""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from harness import faults
from harness.canaries import NAME, Trial, begin_anew, shop, under_load
from harness.cluster import Cluster, wait_for
from harness.load import Outcome
from harness.prometheus import Prometheus, needs_prometheus, of_cluster, rule_files
from harness.release import Release, reranker, wait_settled

# The Prometheus scrapes pods' addresses, which it reaches on this machine only.
pytestmark = [needs_prometheus, pytest.mark.local_only, pytest.mark.timeout(500)]

TIME_SCALE = 0.02
SECONDS = 240.0
"""Longest that an alert is waited for, on a machine that may be busy."""
IDLE = "idle"
SLO: dict[str, Any] = {"availability": 0.999, "latency": {"quantile": 0.95, "threshold": "1s"}}
CANARY: dict[str, Any] = {"strategy": "Canary", "steps": [50], "stepDuration": "1s", "mirrorPercent": 0}


@pytest.fixture(scope="module", autouse=True)
def idle(kube: Cluster, release: Release, test_namespace: str, model_uri: str) -> float:
    """Two workers that nobody asks for anything, since this time; and what faulty pods mount."""
    kube.apply(faults.code(test_namespace), reranker(IDLE, test_namespace, model_uri, replicas=2))
    wait_settled(kube, IDLE, test_namespace)
    return time.time()


@pytest.fixture(scope="module")
def prometheus(
    kube: Cluster, release: Release, idle: float, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    rules = rule_files(tmp_path_factory.mktemp("rules"), TIME_SCALE)
    with of_cluster(kube, tmp_path_factory.mktemp("prometheus"), "500ms", rules) as found:
        yield found


@pytest.fixture
def good(test_namespace: str, model_uri: str) -> dict[str, Any]:
    return shop(test_namespace, model_uri, rollout={"strategy": "Replace"}, slo=SLO)


@pytest.fixture
def trial(
    kube: Cluster, release: Release, prometheus: Prometheus, test_namespace: str, good: dict[str, Any]
) -> Iterator[Trial]:
    """Users' requests of which none is bad and nothing is told."""
    begin_anew(kube, good)
    with under_load(kube, release, test_namespace, rate=10) as trial:
        wait_for("a while in which nothing fires", lambda: quiet(prometheus), SECONDS)
        yield trial


def quiet(prometheus: Prometheus) -> bool:
    """The Reranker is measured, and nothing fires for it."""
    measured = prometheus.query(f'rerank:sli_requests:increase5m{{reranker="{NAME}"}} > 10')
    return len(measured) == 2 and not firing(prometheus)


def firing(prometheus: Prometheus, name: str = NAME) -> list[dict[str, str]]:
    """Labels of the alerts that fire for the Reranker ``name``."""
    return [alert["labels"] for alert in prometheus.alerts() if alert["labels"].get("reranker") == name]


def paged(prometheus: Prometheus, sli: str) -> dict[str, Any] | None:
    """The page that fires about this objective."""
    of_it = {"reranker": NAME, "sli": sli, "severity": "page"}
    return next((one for one in prometheus.alerts() if of_it.items() <= one["labels"].items()), None)


def with_fault(good: dict[str, Any], fault: str) -> dict[str, Any]:
    runtime = {**good["spec"]["runtime"], "podTemplate": faults.pod_template(fault)}
    return {**good, "spec": {**good["spec"], "runtime": runtime}}


def told(what: str, seconds: dict[str, float]) -> None:
    """For people to read."""
    shipped = {name: round(value / TIME_SCALE / 60, 1) for name, value in seconds.items()}
    real = {name: round(value, 1) for name, value in seconds.items()}
    print(json.dumps({"fault": what, "seconds": real, "minutes_as_shipped": shipped}))


@pytest.mark.parametrize(
    ("fault", "sli", "is_bad"),
    [
        ("errors=0.9", "availability", lambda outcome: not outcome.ok),
        ("slow=1.5", "latency", lambda outcome: outcome.seconds > 1.5),
    ],
    ids=["errors", "latency"],
)
def test_a_fault_pages_once_and_its_end_ends_it(
    trial: Trial,
    prometheus: Prometheus,
    good: dict[str, Any],
    fault: str,
    sli: str,
    is_bad: Callable[[Outcome], bool],
):
    begin = time.time()
    trial.cluster.apply(with_fault(good, fault))
    alert = wait_for("a page", lambda: paged(prometheus, sli), SECONDS, poll=0.1)
    fired = time.monotonic()
    bad = [outcome for outcome in trial.load.report.outcomes if is_bad(outcome)]
    assert alert["annotations"]["look"].startswith(f"kubectl rerank status {NAME} -n {trial.namespace}")
    assert alert["annotations"]["runbook_url"].endswith(f"{alert['labels']['alertname']}.md")

    trial.cluster.apply(good)
    wait_settled(trial.cluster, NAME, trial.namespace)
    wait_for("the page to end", lambda: not firing(prometheus), SECONDS, poll=0.1)
    ended = time.monotonic()
    last = max(outcome.ended for outcome in trial.load.report.outcomes if is_bad(outcome))
    told(fault, {"until_it_fired": fired - bad[0].ended, "until_it_ended": ended - last})
    whole = f"{time.time() - begin:.0f}s"
    of_it = f'alertstate="firing", namespace="{trial.namespace}", reranker="{NAME}"'
    # What is retried and then answered is late, too: another objective, the same group of an Alertmanager.
    pages = prometheus.query(f'max_over_time(count by (sli) (ALERTS{{{of_it}, severity="page"}})[{whole}:500ms])')
    assert {found.labels["sli"]: found.value for found in pages}.items() >= {(sli, 1)}
    assert max(found.value for found in pages) == 1
    assert prometheus.query(f'max_over_time(ALERTS{{{of_it}, severity="ticket"}}[{whole}])') == []


def test_a_canary_that_is_taken_back_opens_a_ticket_until_the_spec_is_changed(
    trial: Trial, prometheus: Prometheus, good: dict[str, Any]
):
    canary = {**good, "spec": {**good["spec"], "rollout": CANARY}}
    begin_anew(trial.cluster, canary)
    trial.apply(with_fault(canary, "errors=0.5"))
    end = trial.decided()
    assert end.rollout["phase"] == "RolledBack"

    def opened() -> list[dict[str, str]]:
        return [one for one in firing(prometheus) if one["alertname"] == "RerankCanaryRolledBack"]

    (ticket,) = wait_for("a ticket", opened, SECONDS, poll=0.1)
    fired = time.time()
    assert (ticket["severity"], ticket["revision"]) == ("ticket", end.rollout["revision"])
    trial.cluster.apply(good)
    back = time.time()
    wait_for("the ticket to end", lambda: not opened(), SECONDS, poll=0.1)
    told("a bad canary", {"until_it_fired": fired - end.seen, "until_it_ended": time.time() - back})


def test_workers_that_nobody_needs_open_a_ticket_until_they_go(
    kube: Cluster, prometheus: Prometheus, test_namespace: str, model_uri: str, idle: float
):
    (ticket,) = wait_for("a ticket", lambda: firing(prometheus, IDLE), SECONDS, poll=0.1)
    assert (ticket["alertname"], ticket["severity"]) == ("RerankIdleReplicas", "ticket")
    began = f'min_over_time(timestamp(ALERTS{{alertstate="firing", reranker="{IDLE}"}})[15m:500ms])'
    (fired,) = prometheus.query(began)
    kube.apply(reranker(IDLE, test_namespace, model_uri, scaling={"minReplicas": 1, "maxReplicas": 1}))
    # What is applied names no number of its own any more; the one that was there was another's to give.
    kube.kubectl(
        "patch", "reranker", IDLE, "-n", test_namespace, "--type=merge", "--patch", '{"spec": {"replicas": null}}'
    )
    gone = time.time()
    wait_for("the ticket to end", lambda: not firing(prometheus, IDLE), SECONDS, poll=0.1)
    told("idle workers", {"until_it_fired": fired.value - idle, "until_it_ended": time.time() - gone})


def test_no_rule_is_in_trouble(prometheus: Prometheus):
    """Last: by now each has met what the others have made."""
    assert [(rule["name"], rule.get("lastError")) for rule in prometheus.rules() if rule["health"] != "ok"] == []
