"""Every query of every panel, and every rule, returns data: a real Prometheus scrapes a real run.

The run has what the dashboards are about: traffic that is scored, cut, cached, refused, dropped and tried again, labels
of users, a golden set on schedule, a canary that is promoted, wakes from a warm pool. The rules are the chart's own in
a world where a day takes 130 seconds, so that windows of days are filled; panels ask what they always ask.
"""

import contextlib
import json
import os
import re
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from harness.canaries import ROLLOUT, golden_set, shop, under_load
from harness.cluster import Cluster, wait_for
from harness.dashboards import asked
from harness.prometheus import Prometheus, needs_prometheus, of_cluster, rule_files
from harness.release import Release, reranker, wait_settled, warm_pool
from rerank_api import names

pytestmark = [needs_prometheus, pytest.mark.local_only, pytest.mark.timeout(1500)]

START_SECONDS = 240
"""Workers import their libraries, on a machine that may be busy."""
FILLED_SECONDS = 420
"""For the longest windows, which need two of the short days."""
TIME_SCALE = 0.0015
INTERVAL = "500ms"
STEP_SECONDS = 1.0
RATE = 5.0
"""Requests a second: the machine may have little time for them, and what waits for long is another test's."""
MAX_LENGTH = 64
LONG = " ".join(["tent"] * 2 * MAX_LENGTH)
SHORT = ["tent", "boat", "shoe", "lamp"] * 50
"""Scores for little work: their distribution needs a thousand in a quarter of a short day."""
LABELS = 1000

NOT_HERE = {
    "on-call: GPU utilisation A": "no GPU, so no NVML",
    "debug: GPU memory A": "no GPU, so no NVML",
    "debug: GPU memory B": "no GPU, so no NVML",
    "on-call: API errors of the operator A": "the API server of a healthy run may refuse nothing",
    "rerank:wake_seconds:avg6h": "it takes five wakes within a quarter of a short day",
    "rerank:wake_seconds:avg7d_before": "it takes twenty wakes before that",
    "kube_pod_container_status_restarts_total": "kube-state-metrics is not part of this cluster",
    "kube_pod_container_status_last_terminated_reason": "kube-state-metrics is not part of this cluster",
    'rerank_gateway_requests_total{code="401"}': "this release has no API keys",
    "ALERTS": "an alert that is to silence another need not fire; that alerts fire is shown by test_alerts.py",
    'rerank_operator_rollout_phase{phase="RolledBack"}': "this canary is promoted",
    'rerank_operator_rollout_phase{phase="Paused"}': "this canary is promoted",
}
"""What may be empty here, and why."""


class Run(NamedTuple):
    """What has happened, as Prometheus saw it. Times are Unix seconds."""

    prometheus: Prometheus
    namespace: str
    began: float
    ended: float

    def has_data(self, expression: str) -> bool:
        """At any moment of the run."""
        found = self.prometheus.history(expression, self.began, self.ended, STEP_SECONDS)
        return any(series.says_something for series in found)


def post(url: str, body: object, headers: dict[str, str] | None = None) -> int:
    """The status of the answer."""
    content = json.dumps(body).encode()
    request = urllib.request.Request(url, content, {"Content-Type": "application/json", **(headers or {})})
    try:
        with urllib.request.urlopen(request, timeout=START_SECONDS) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.fixture(scope="module")
def collector() -> Iterator[str]:
    """The address of an OTLP receiver that takes traces and forgets them."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@contextlib.contextmanager
def repeated(what: Callable[[], None]) -> Generator[None]:
    """``what`` is done again and again, a second apart, until the block ends. Raises what it raised."""
    over = threading.Event()
    failures: list[Exception] = []

    def go_on() -> None:
        while not over.wait(1.0):
            try:
                what()
            except Exception as failure:
                failures.append(failure)
                return

    thread = threading.Thread(target=go_on, name="visitors")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    if failures:
        raise failures[0]


def manifests(namespace: str, uri: str) -> list[dict[str, Any]]:
    scaling = {"minReplicas": 0, "idleTimeout": "5s", "warmPool": "shared"}
    return [
        golden_set(namespace),
        warm_pool("shared", namespace, 1),
        promising(namespace, uri, longDocuments="truncate"),
        reranker("lent", namespace, uri, scaling=scaling, requests={"cache": {}}),
        reranker("nobody", namespace, uri, replicas=0, requests={"wakeTimeout": "1s"}),
    ]


def promising(namespace: str, uri: str, longDocuments: str) -> dict[str, Any]:
    """The Reranker with every promise. A change of ``longDocuments`` makes a new revision."""
    made = shop(
        namespace,
        uri,
        rollout={**ROLLOUT, "steps": [50]},
        requests={"timeout": "30s", "longDocuments": longDocuments},
        slo={"latency": {"threshold": "500ms"}, "quality": {"minimum": 0.1, "interval": "1m"}},
        cost={"replicaHour": 1.5},
        observability={"capture": {"percent": 100, "maxPerMinute": 600}},
    )
    made["spec"]["model"] |= {"activation": "sigmoid", "maxLength": MAX_LENGTH}
    return made


def rerank(url: str, reranker: str, documents: list[str], **headers: str) -> int:
    body = {"model": reranker, "query": "light tent", "documents": documents}
    return post(f"{url}/v2/rerank", body, headers)


def visit(url: str, namespace: str) -> None:
    """What comes in beside the steady load. ``nobody`` has no workers, which is bad for its users."""
    assert rerank(url, f"{namespace}/shop", ["a tent", LONG], **{"X-Rerank-Candidate-Fetch-Ms": "35"}) == 200
    assert rerank(url, f"{namespace}/shop", SHORT) == 200
    assert rerank(url, f"{namespace}/nothing", ["a tent"]) == 404
    labels = [{"score": (n % 100) / 100, "relevant": n % 3 == 0} for n in range(LABELS)]
    assert post(f"{url}/v1/feedback", {"model": f"{namespace}/shop", "labels": labels}) == 204
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: rerank(url, f"{namespace}/nobody", ["a tent"]), range(8))) <= {429, 503, 504}


def overload(url: str, namespace: str) -> None:
    """More than can be scored in the time that is given: workers drop some of it."""
    heavy = [f"{LONG} {number}" for number in range(300)]
    late = {"X-Rerank-Timeout-Ms": "300"}
    with ThreadPoolExecutor(4) as pool:
        answers = set(pool.map(lambda _: rerank(url, f"{namespace}/shop", heavy, **late), range(12)))
    assert answers <= {429, 503, 504}


def asleep(kube: Cluster, namespace: str, name: str) -> bool:
    """Whether it has served, and has no worker now."""
    status = kube.get("reranker", name, "-n", namespace).get("status", {})
    return bool(status.get("currentRevision")) and not status.get("replicas") and not status["scaling"].get("loaners")


def worker_of(kube: Cluster, namespace: str) -> dict[str, Any]:
    """The process of one of the shop's workers."""
    pods = kube.items("pods", "-n", namespace, "-l", f"{names.LABEL_RERANKER}=shop")
    ready = {pod["metadata"]["name"] for pod in pods if "deletionTimestamp" not in pod["metadata"]}
    return next(process for process in kube.processes(namespace=namespace) if process["pod"] in ready)


@pytest.fixture(scope="module")
def happened(
    kube: Cluster,
    release: Release,
    collector: str,
    test_namespace: str,
    model_uri: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Run]:
    """The run, with Prometheus still there."""
    folder: Path = tmp_path_factory.mktemp("prometheus")
    rules = folder / "rules"
    rules.mkdir()
    release.install(f"tracing.endpoint={collector}", "tracing.sampleRatio=1")
    began = time.time()
    with of_cluster(kube, folder, INTERVAL, rule_files(rules, TIME_SCALE)) as prometheus:
        prometheus.wait('count(up{job=~"rerank-(operator|gateway)"} == 1) == 4', START_SECONDS)
        kube.apply(*manifests(test_namespace, model_uri))
        wait_settled(kube, "shop", test_namespace, START_SECONDS)
        prometheus.wait(f'rerank_operator_warm_pods{{namespace="{test_namespace}",state="free"}} == 1', START_SECONDS)
        with (
            under_load(kube, release, test_namespace, RATE) as trial,
            release.reach_gateways() as urls,
            repeated(lambda: visit(urls[0], test_namespace)),
        ):
            for word in ("boat", "shoe"):
                wait_for("a Reranker that sleeps", lambda: asleep(kube, test_namespace, "lent"), START_SECONDS)
                assert rerank(urls[0], f"{test_namespace}/lent", ["a tent", word]) == 200
            trial.apply(promising(test_namespace, model_uri, longDocuments="chunk"))
            judged = trial.wait("users' requests at the canary", lambda moment: moment.rollout.get("requests", 0) >= 20)
            # By hand: what it takes to be shown no slower is more traffic than this machine may have room for.
            promote = f"{names.ANNOTATION_PROMOTE}={judged.rollout['started']}"
            kube.kubectl("annotate", "reranker", "shop", "-n", test_namespace, "--overwrite", promote)
            assert trial.decided().rollout["phase"] == "Promoted"
            overload(urls[0], test_namespace)
            worker = worker_of(kube, test_namespace)
            assert post(f"http://{worker['podIP']}:{names.WORKER_PORT}/v1/score", {"no": "query"}) >= 400
            os.kill(worker["pid"], signal.SIGKILL)
            for expression in ("rerank:score_psi", "rerank:ece:7d_before", "rerank:golden_ece"):
                # Not for a moment only: some take a least number of events in their window.
                prometheus.wait(f"count_over_time({expression}[15s]) >= 5", FILLED_SECONDS)
        yield Run(prometheus, test_namespace, began, time.time())
    release.install()


def test_every_query_of_every_panel_returns_data(happened: Run):
    values = {
        "namespace": happened.namespace,
        "reranker": ".*",
        "revision": ".*",
        "__rate_interval": "30s",
        "__range": "10m",
    }
    queries = list(asked(values))
    empty = {str(one): one.expression for one in queries if not happened.has_data(one.expression)}
    print(json.dumps({"queries": len(queries), "empty": sorted(empty)}))
    assert {name: expression for name, expression in empty.items() if name not in NOT_HERE} == {}


def test_every_rule_is_evaluated_and_every_recorded_series_has_data(happened: Run):
    rules = happened.prometheus.rules()
    assert {rule["name"]: rule["lastError"] for rule in rules if rule["health"] != "ok"} == {}
    recorded = sorted({rule["name"] for rule in rules if rule["type"] == "recording"})
    empty = [name for name in recorded if not happened.has_data(name)]
    print(json.dumps({"rules": len(rules), "recorded": len(recorded), "empty": empty}))
    assert [name for name in empty if name not in NOT_HERE] == []


def test_every_series_that_an_alert_looks_at_has_data(happened: Run):
    """An alert's own expression is empty where all is well; that it can fire is another test's."""
    alerts = [rule for rule in happened.prometheus.rules() if rule["type"] == "alerting"]
    looked_at = {selector: rule["name"] for rule in alerts for selector in selectors(rule["query"])}
    empty = {selector: name for selector, name in looked_at.items() if not happened.has_data(selector)}
    print(json.dumps({"alerts": len(alerts), "selectors": len(looked_at), "empty": sorted(empty)}))
    excused = tuple(NOT_HERE)
    assert {selector: name for selector, name in empty.items() if not selector.startswith(excused)} == {}


def selectors(expression: str) -> set[str]:
    """``name`` or ``name{...}`` of every series that a PromQL expression reads, whitespace left out."""
    found = re.findall(r"\b((?:rerank[_:][\w:]+|kube_\w+|up(?=\{)|ALERTS)(?:\{[^}]*\})?)", expression)
    return {re.sub(r"\s+", "", one) for one in found}


def test_slow_requests_have_traces(happened: Run):
    bucket = f'rerank_gateway_request_duration_seconds_bucket{{namespace="{happened.namespace}"}}'
    found = happened.prometheus.exemplars(bucket, happened.began, happened.ended)
    assert found
    assert all(re.fullmatch("[0-9a-f]{32}", exemplar["labels"]["trace_id"]) for exemplar in found)


def test_targets_bear_the_labels_that_rules_and_dashboards_rely_on(happened: Run):
    workers = happened.prometheus.history(
        f'up{{job="rerank-worker",namespace="{happened.namespace}"}}', happened.began, happened.ended, STEP_SECONDS
    )
    served = {(one.labels.get("reranker"), one.labels.get("warm_pool")) for one in workers}
    assert {("shop", None), (None, "shared"), ("lent", "shared")} <= served
    assert all(("revision" in one.labels) == ("reranker" in one.labels) for one in workers)
