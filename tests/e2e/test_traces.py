"""One request's trace through the real gateway and a real worker, switched on by the chart; its line in the log and its
captured texts, found by the very commands of docs/tracing-and-logs.md.
"""

import http.server
import re
import shutil
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from harness.cluster import ROOT, VENV_BIN, Cluster, run, wait_for
from harness.release import Release, condition, reranker, wait_settled
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from rerank_api import otlp

pytestmark = [
    pytest.mark.local_only,  # the collector is a thread of the test, which no other cluster reaches
    pytest.mark.timeout(900),  # the chart is upgraded twice
]

NAME = "products"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PAGE = ROOT / "docs" / "tracing-and-logs.md"


class Collector:
    """Takes spans over OTLP/HTTP on a thread of its own; ``url``: where."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Span]] = []
        """With the service's name."""
        taken = self.spans

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    named = {one.key: one.value.string_value for one in resource.resource.attributes}
                    for scope in resource.scope_spans:
                        taken.extend((named["service.name"], span) for span in scope.spans)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def wait_for(self, service: str, name: str) -> Span:
        """The one span of that name."""
        return wait_for(f"the span {name!r}", lambda: next(iter(self.find(service, name)), None), timeout=30)

    def find(self, service: str, name: str) -> list[Span]:
        return [span for of, span in self.spans if (of, span.name) == (service, name)]


@pytest.fixture(scope="module")
def before(kube: Cluster, release: Release, test_namespace: str, model_uri: str) -> dict[str, Any]:
    """The pods' template of a Reranker that captures everything, while no traces are made."""
    observability = {"capture": {"percent": 100, "maxPerMinute": 600}}
    kube.apply(reranker(NAME, test_namespace, model_uri, replicas=1, observability=observability))
    wait_settled(kube, NAME, test_namespace)
    return template(kube, test_namespace)


@pytest.fixture(scope="module")
def collector(kube: Cluster, release: Release, test_namespace: str, before: dict[str, Any]) -> Iterator[Collector]:
    """That gateway and worker send their spans to: those that a client has decided to keep."""
    collector = Collector()
    release.install(f"tracing.endpoint={collector.url}", "tracing.sampleRatio=0")
    wait_for("workers that make traces", lambda: env(template(kube, test_namespace)).get(otlp.ENDPOINT), timeout=60)
    wait_settled(kube, NAME, test_namespace)
    yield collector
    release.install()
    collector.close()


@pytest.fixture(scope="module")
def asked(collector: Collector, release: Release, test_namespace: str) -> None:
    """One request that its client traces, and one that no one does."""
    with release.reach_gateways() as urls, httpx.Client(base_url=urls[0], timeout=60) as client:
        body = {"query": "who is me@example.com?", "documents": ["ls lists files", "cat shows a file"]}
        path = f"/{test_namespace}/{NAME}/v2/rerank"
        client.post(path, json=body).raise_for_status()
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Rerank-Candidate-Fetch-Ms": "20"}
        client.post(path, json=body, headers=headers).raise_for_status()


def template(kube: Cluster, namespace: str) -> dict[str, Any]:
    (deployment,) = kube.items("deployments", "-n", namespace, "-l", f"rerank.dev/reranker={NAME}")
    return deployment["spec"]["template"]


def env(template: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each.get("value", "") for each in template["spec"]["containers"][0]["env"]}


def command(start: str, **words: str) -> str:
    """A command of the page, by its comment or first word; ``words``: what stands in it for the reader's own."""
    for block in re.findall(r"^ *```sh\n(.*?)^ *```", PAGE.read_text(), re.DOTALL | re.MULTILINE):
        if start in block:
            text = block[block.index(start) :].split("\n#")[0]
            for name, value in words.items():
                assert name in text
                text = text.replace(name, value)
            return text
    raise AssertionError(f"{PAGE.name} has no command with {start!r}")


def output(kube: Cluster, text: str) -> str:
    if shutil.which("jq") is None:
        pytest.skip("needs jq")
    environment = {**kube.environment, "PATH": f"{VENV_BIN}:{kube.environment['PATH']}"}
    return run("bash", "-euo", "pipefail", "-c", text, env=environment).stdout


def test_a_trace_goes_from_the_client_to_the_batch(collector: Collector, asked: None) -> None:
    server = collector.wait_for("rerank-gateway", "POST /{namespace}/{name}/v2/rerank")
    assert (server.trace_id.hex(), server.parent_span_id.hex()) == (TRACE, PARENT)
    score = collector.wait_for("rerank-gateway", "score")
    assert score.parent_span_id == server.span_id
    scored = collector.wait_for("rerank-worker", "POST /v1/score")
    assert (scored.trace_id, scored.parent_span_id) == (score.trace_id, score.span_id)
    batch = collector.wait_for("rerank-worker", "batch")
    assert [link.span_id for link in batch.links] == [scored.span_id]
    assert [link.span_id for link in scored.links] == [batch.span_id]
    fetch = collector.wait_for("rerank-gateway", "candidate fetch")
    assert (fetch.parent_span_id.hex(), fetch.end_time_unix_nano) == (PARENT, server.start_time_unix_nano)
    ours = {span.trace_id.hex() for _, span in collector.spans} - {batch.trace_id.hex()}
    assert ours == {TRACE}, "what nobody traces is exported by neither"
    moments = [server.start_time_unix_nano, score.start_time_unix_nano, batch.start_time_unix_nano,
               batch.end_time_unix_nano, score.end_time_unix_nano, server.end_time_unix_nano]  # fmt: skip
    assert moments == sorted(moments)


def test_the_log_is_found_by_the_trace(kube: Cluster, asked: None, test_namespace: str) -> None:
    found = wait_for(
        "the lines about the trace",
        lambda: output(kube, command("kubectl -n rerank-system logs", TRACE_ID=TRACE)).splitlines(),
        timeout=30,
    )
    lines = [line for line in found if f'"namespace":"{test_namespace}"' in line]
    assert {line.split('"logger":"')[1].split('"')[0] for line in lines} == {
        "rerank_gateway.access",
        "rerank_gateway.capture",
    }


def test_capture_is_audited(kube: Cluster, asked: None, test_namespace: str) -> None:
    described = condition(kube.get("reranker", NAME, "-n", test_namespace), "Capturing")
    assert described["status"] == "True"
    who = output(kube, command("# who captures now"))
    assert f"{test_namespace}/{NAME} since {described['lastTransitionTime']}" in who
    assert "CaptureStarted" in output(kube, command("# when it was switched"))
    assert f"{test_namespace}/{NAME} sampled" in output(kube, command("# what was written"))
    assert float(
        output(kube, command("kubectl -n rerank-system logs -l app.kubernetes.io/component=gateway --since=10m"))
    )


def test_the_texts_are_redacted(kube: Cluster, asked: None, test_namespace: str) -> None:
    logs = kube.kubectl("logs", "-n", "rerank-system", "-l", "app.kubernetes.io/component=gateway", "--tail=-1").stdout
    captured = [line for line in logs.splitlines() if "rerank_gateway.capture" in line and test_namespace in line]
    assert captured
    assert not [line for line in captured if "example.com" in line]
    assert all("who is [email]" in line for line in captured)


def test_switched_off_the_pods_are_as_before(
    kube: Cluster, release: Release, test_namespace: str, before: dict[str, Any], collector: Collector
) -> None:
    traced = env(template(kube, test_namespace))
    assert traced[otlp.SAMPLER] == otlp.BY_RATIO
    assert traced.keys() - env(before).keys() == {otlp.ENDPOINT, otlp.SAMPLER, otlp.SAMPLER_ARGUMENT}
    release.install()
    wait_for("the template of before", lambda: template(kube, test_namespace) == before or None, timeout=60)
