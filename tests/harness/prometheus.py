"""A real Prometheus of a test's own: what it scrapes, its rules, what it answers. All listens on this machine only.

Debian's Prometheus has no discovery of Kubernetes pods: ``of_cluster`` tells it of the pods with the labels that such a
discovery gives, and how the chart's PodMonitors choose among them and relabel them is left to Prometheus itself.
"""

import contextlib
import json
import math
import re
import shutil
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from harness.cluster import BIN, ROOT, Cluster, CommandError, run, wait_for
from harness.release import CHART, RELEASE, SYSTEM_NAMESPACE
from harness.watching import Change, Watch

PROMETHEUS = shutil.which("prometheus") or shutil.which("prometheus", path=str(BIN))
needs_prometheus = pytest.mark.skipif(
    PROMETHEUS is None, reason="there is no prometheus: tests/harness/get_prometheus takes it from Debian's packages"
)
SCRAPE_SECONDS = 0.2
START_SECONDS = 60.0
"""Far longer than it takes: the machine may be busy."""
PODS = "/api/v1/pods"
TEXT = "text/plain; version=0.0.4"


@contextlib.contextmanager
def exporter(tell: Callable[[], str], kind: str = TEXT) -> Generator[int]:
    """The port at which ``tell``'s text is served, as any path; ``kind`` is its content type."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = tell().encode()
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # who asked may be gone
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


# --- what it answers ---


class Series(NamedTuple):
    """``points``: (Unix seconds, value), oldest first; one of them where a moment was asked for."""

    labels: Mapping[str, str]
    points: Sequence[tuple[float, float]]

    @property
    def value(self) -> float:
        """The last one."""
        return self.points[-1][1]

    @property
    def says_something(self) -> bool:
        """Whether any value is a number: 0 divided by 0 is none."""
        return any(math.isfinite(value) for _, value in self.points)


@dataclass(frozen=True)
class Prometheus:
    """One that runs, by its address."""

    url: str

    def ask(self, path: str, **parameters: object) -> Any:
        """``data`` of an answer of its HTTP API. Raises CommandError with what Prometheus says."""
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise CommandError(f"{path} {parameters}: {error.code} {error.read().decode()[:2000]}") from None
        except OSError as error:
            raise CommandError(f"{path} {parameters}: {error}") from None

    def query(self, expression: str, at: float | None = None) -> list[Series]:
        """The vector that PromQL gives now, or ``at`` a time (Unix seconds)."""
        moment = {} if at is None else {"time": at}
        return [
            Series(found["metric"], [(found["value"][0], float(found["value"][1]))])
            for found in self.ask("query", query=expression, **moment)["result"]
        ]

    def history(self, expression: str, start: float, end: float, step: float) -> list[Series]:
        """The same from ``start`` to ``end``, every ``step`` seconds, as a panel of Grafana asks."""
        found = self.ask("query_range", query=expression, start=start, end=end, step=step)["result"]
        return [Series(one["metric"], [(at, float(value)) for at, value in one["values"]]) for one in found]

    def wait(self, expression: str, timeout: float) -> list[Series]:
        """The first vector that is not empty; a comparison makes a condition. Raises CommandError at the deadline."""
        return wait_for(f"Prometheus to find {expression}", lambda: self.query(expression), timeout, poll=0.25)

    def alerts(self, name: str = "", state: str = "firing") -> list[dict[str, Any]]:
        """Alerts with their labels, annotations and activeAt."""
        found = self.ask("alerts")["alerts"]
        return [one for one in found if one["state"] == state and name in ("", one["labels"]["alertname"])]

    def exemplars(self, expression: str, start: float, end: float) -> list[dict[str, Any]]:
        """Of the series in ``expression``: labels (with trace_id), value, timestamp."""
        found = self.ask("query_exemplars", query=expression, start=start, end=end)
        return [exemplar for series in found for exemplar in series["exemplars"]]

    def rules(self) -> list[dict[str, Any]]:
        """Every rule, with health, lastError, and alerts where it is an alert."""
        return [rule for group in self.ask("rules")["groups"] for rule in group["rules"]]

    def targets(self) -> list[dict[str, Any]]:
        """Every target that is scraped, with labels, health and lastError."""
        return self.ask("targets", state="active")["activeTargets"]


# --- running it ---


@contextlib.contextmanager
def running(configuration: Mapping[str, Any], folder: Path) -> Generator[Prometheus]:
    """A Prometheus that answers; configuration, data and log are in ``folder``. Raises CommandError with its log where
    it does not come up."""
    assert PROMETHEUS is not None
    path, log_path = folder / "prometheus.yml", folder / "prometheus.log"
    path.write_text(yaml.safe_dump(dict(configuration), sort_keys=False))
    with socket.create_server(("127.0.0.1", 0)) as free:
        own = free.getsockname()[1]
    arguments = (
        f"--config.file={path}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{own}",
        "--enable-feature=exemplar-storage",
    )
    with log_path.open("wb") as log:
        process = subprocess.Popen((PROMETHEUS, *arguments), stdout=log, stderr=subprocess.STDOUT)
    prometheus = Prometheus(f"http://127.0.0.1:{own}")

    def answers() -> bool:
        if process.poll() is not None:
            raise AssertionError(f"Prometheus has ended\n{log_path.read_text()[-4000:]}")
        return bool(prometheus.query("vector(1)"))

    try:
        wait_for("Prometheus to answer", answers, START_SECONDS)
        yield prometheus
    finally:
        process.kill()
        process.wait(10)


@contextlib.contextmanager
def scraping(port: int, folder: Path) -> Generator[str]:
    """The address of a Prometheus that scrapes ``port`` every SCRAPE_SECONDS."""
    every = f"{1000 * SCRAPE_SECONDS:.0f}ms"
    shop = {
        "job_name": "shop",
        "scrape_interval": every,
        "scrape_timeout": every,
        "static_configs": [{"targets": [f"127.0.0.1:{port}"]}],
    }
    with running({"scrape_configs": [shop]}, folder) as prometheus:
        yield prometheus.url


@contextlib.contextmanager
def of_cluster(
    cluster: Cluster, folder: Path, interval: str = "1s", rules: Sequence[Path] = ()
) -> Generator[Prometheus]:
    """A Prometheus that scrapes the pods of a local cluster as the chart's PodMonitors would have it, every
    ``interval``, and evaluates the rule files ``rules``."""
    monitors = pod_monitors(cluster, interval)
    with Watch(cluster, PODS) as watch, of_pods(lambda: watch.changes, monitors, folder, interval, rules) as prometheus:
        yield prometheus


@contextlib.contextmanager
def of_pods(
    changes: Callable[[], Iterable[Change]],
    monitors: Iterable[Mapping[str, Any]],
    folder: Path,
    interval: str = "1s",
    rules: Sequence[Path] = (),
) -> Generator[Prometheus]:
    """A Prometheus that scrapes the pods that ``changes`` leave, as PodMonitors choose and relabel them."""
    with exporter(lambda: discovered(changes()), "application/json") as port:
        discovery = {"url": f"http://127.0.0.1:{port}/", "refresh_interval": "3s"}
        configuration = {
            "global": {"scrape_interval": interval, "evaluation_interval": interval},
            "rule_files": [str(path) for path in rules],
            "scrape_configs": [
                {**scrape_configuration(monitor), "http_sd_configs": [discovery]} for monitor in monitors
            ],
        }
        with running(configuration, folder) as prometheus:
            yield prometheus


def rule_files(folder: Path, time_scale: float = 1.0) -> list[Path]:
    """The chart's rules, written into ``folder``; ``time_scale`` shortens every window, ``for`` and interval."""
    run(sys.executable, ROOT / "helm" / "monitoring" / "rules.py", f"--time-scale={time_scale}", f"--out={folder}")
    return sorted(folder.glob("*.yaml"))


# --- what a Prometheus Operator and the discovery of pods would do ---


def pod_monitors(cluster: Cluster, interval: str) -> list[dict[str, Any]]:
    """Those of the chart, as Helm renders them."""
    text = cluster.helm(
        "template", RELEASE, CHART, "--namespace", SYSTEM_NAMESPACE, "--show-only", "templates/podmonitors.yaml",
        "--set", f"podMonitor.enabled=true,podMonitor.interval={interval}",
    ).stdout  # fmt: skip
    return [found for found in yaml.safe_load_all(text) if found]


def scrape_configuration(monitor: Mapping[str, Any]) -> dict[str, Any]:
    """What the Prometheus Operator makes of a PodMonitor with one endpoint, as far as this chart's need it.

    Namespaces are chosen by relabeling, since the discovery here tells of all.
    """
    spec, metadata = monitor["spec"], monitor["metadata"]
    (endpoint,) = spec["podMetricsEndpoints"]
    chosen = spec.get("namespaceSelector", {})
    namespaces = [".*"] if chosen.get("any") else chosen.get("matchNames", [metadata["namespace"]])
    relabelings: list[dict[str, Any]] = [
        {"action": "keep", "source_labels": ["__meta_kubernetes_namespace"], "regex": "|".join(namespaces)}
    ]
    for label, value in spec["selector"]["matchLabels"].items():
        name = _sanitized(label)
        sources = [f"__meta_kubernetes_pod_label_{name}", f"__meta_kubernetes_pod_labelpresent_{name}"]
        relabelings.append({"action": "keep", "source_labels": sources, "regex": f"({re.escape(value)});true"})
    relabelings += [
        {"action": "keep", "source_labels": ["__meta_kubernetes_pod_container_port_name"], "regex": endpoint["port"]},
        {"action": "drop", "source_labels": ["__meta_kubernetes_pod_phase"], "regex": "(Failed|Succeeded)"},
        {"source_labels": ["__meta_kubernetes_namespace"], "target_label": "namespace"},
        {"source_labels": ["__meta_kubernetes_pod_container_name"], "target_label": "container"},
        {"source_labels": ["__meta_kubernetes_pod_name"], "target_label": "pod"},
        {"target_label": "job", "replacement": f"{metadata['namespace']}/{metadata['name']}"},
        {"target_label": "endpoint", "replacement": endpoint["port"]},
    ]
    snake = {"sourceLabels": "source_labels", "targetLabel": "target_label"}
    relabelings += [{snake.get(key, key): value for key, value in rule.items()} for rule in endpoint["relabelings"]]
    return {
        "job_name": f"podMonitor/{metadata['namespace']}/{metadata['name']}/0",
        "honor_labels": endpoint.get("honorLabels", False),
        "scrape_interval": endpoint["interval"],
        "scrape_timeout": endpoint["interval"],
        "relabel_configs": relabelings,
    }


def discovered(changes: Iterable[Change]) -> str:
    """The pods' ports as http_sd_configs reads them, with the labels of kubernetes_sd_configs (role: pod)."""
    pods: dict[str, dict[str, Any]] = {}
    for change in list(changes):
        uid = change.object["metadata"]["uid"]
        if change.kind == "DELETED":
            pods.pop(uid, None)
        else:
            pods[uid] = change.object
    return json.dumps([target for pod in pods.values() for target in _ports(pod)])


def _ports(pod: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    metadata, status = pod["metadata"], pod["status"]
    if not status.get("podIP"):
        return
    labels = {
        "__meta_kubernetes_namespace": metadata["namespace"],
        "__meta_kubernetes_pod_name": metadata["name"],
        "__meta_kubernetes_pod_phase": status["phase"],
    }
    for label, value in metadata.get("labels", {}).items():
        labels[f"__meta_kubernetes_pod_label_{_sanitized(label)}"] = value
        labels[f"__meta_kubernetes_pod_labelpresent_{_sanitized(label)}"] = "true"
    for container in pod["spec"]["containers"]:
        for port in container.get("ports", []):
            own = {
                "__meta_kubernetes_pod_container_name": container["name"],
                "__meta_kubernetes_pod_container_port_name": port.get("name", ""),
            }
            yield {"targets": [f"{status['podIP']}:{port['containerPort']}"], "labels": {**labels, **own}}


def _sanitized(label: str) -> str:
    return re.sub(r"[^a-zA-Z0-9_]", "_", label)
