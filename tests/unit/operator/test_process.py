"""The process around the core: flags, log lines, and what /healthz calls trouble."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from kubernetes.aio.client import Configuration
from rerank_operator import __main__ as program
from rerank_operator.controller import health, reconcile
from rerank_operator.controller.api import ApiError, KubeApi
from rerank_operator.controller.handlers import Backoffs, settings
from rerank_operator.controller.kinds import PODS, RERANKERS, Kind
from rerank_operator.controller.outcome import NOT_LEADER
from rerank_operator.controller.reconcile import MISSED_LISTS, Controller, Settings
from rerank_operator.logs import JsonFormatter, Sparing
from rerank_operator.manifests.pod_template import WorkerImage, WorkerTraces
from unit.operator.build import pod, reranker


@pytest.fixture
async def controller() -> AsyncIterator[Controller]:
    made = Settings(WorkerImage("w"), (), "default", "lease", "host_1")
    api = KubeApi(Configuration(host="https://127.0.0.1:1"))
    yield Controller(api, made)
    await api.close()


def test_help_names_every_flag(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        program.parse_arguments(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for flag in (
        "--worker-image",
        "--worker-otlp-endpoint",
        "--worker-otlp-sample-ratio",
        "--namespace",
        "--lease-name",
        "--lease-namespace",
        "--gateway-service",
        "--prometheus-url",
        "--metrics-port",
        "--page-host",
        "--page-port",
        "--log-format",
    ):
        assert flag in text


def test_namespaces_repeat_and_lease_times_are_checked(monkeypatch: pytest.MonkeyPatch):
    assert program.parse_arguments(["--worker-image=w", "--namespace=a", "--namespace=b"]).namespace == ["a", "b"]
    monkeypatch.setattr("sys.argv", ["rerank-operator", "--worker-image=w", "--lease-duration=5"])
    with pytest.raises(SystemExit, match=r"duration \(5 s\) must exceed the renew deadline \(10 s\)"):
        program.main()


@pytest.mark.parametrize("wrong", ["gateway", "a/b/c", "/gateway", "a/"])
def test_the_service_of_the_gateways_is_a_namespace_and_a_name(wrong: str, capsys: pytest.CaptureFixture[str]):
    found = program.parse_arguments(["--worker-image=w", "--gateway-service=rerank-system/demand"])
    assert found.gateway_service == ("rerank-system", "demand")
    with pytest.raises(SystemExit):
        program.parse_arguments(["--worker-image=w", f"--gateway-service={wrong}"])
    assert "must be a namespace and a name, such as" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "wrong", "says"),
    [
        ("--worker-otlp-endpoint", "collector:4317", "must be the address of a collector, such as"),
        ("--worker-otlp-endpoint", "http://", "must be the address of a collector, such as"),
        ("--worker-otlp-sample-ratio", "2", "must be a number from 0 to 1"),
        ("--worker-otlp-sample-ratio", "1%", "must be a number from 0 to 1"),
        ("--prometheus-url", "prometheus", "must be the address of a Prometheus, such as"),
    ],
)
def test_a_flag_that_says_nothing_useful_is_refused(
    flag: str, wrong: str, says: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit):
        program.parse_arguments(["--worker-image=w", f"{flag}={wrong}"])
    assert says in capsys.readouterr().err


def test_workers_make_traces_where_a_collector_is_named():
    def traces(*flags: str) -> WorkerTraces | None:
        return program._worker(program.parse_arguments(["--worker-image=w", *flags])).traces

    assert traces() is None
    assert traces("--worker-otlp-sample-ratio=0.5") is None
    endpoint = "--worker-otlp-endpoint=http://collector:4318"
    assert traces(endpoint) == WorkerTraces("http://collector:4318", 0.01)
    assert traces(endpoint, "--worker-otlp-sample-ratio=0.5") == WorkerTraces("http://collector:4318", 0.5)


async def test_by_default_it_listens_on_all_addresses():
    runner = await health.serve(web.Application(), program.parse_arguments(["--worker-image=w"]).metrics_host, 0)
    try:
        assert "0.0.0.0" in {address[0] for address in runner.addresses}
    finally:
        await runner.cleanup()


async def test_a_watch_that_is_behind_is_trouble(controller: Controller):
    assert controller.trouble() is None
    for version in range(10, 10 + MISSED_LISTS):
        assert controller.trouble() is None
        controller.store.listed(PODS, None, [pod("abc")], str(version), controller.store.before_list(PODS))
    assert controller.trouble() == f"the watch of Pod has not shown what the last {MISSED_LISTS} lists did"
    controller.store.seen(PODS, False, pod("abc"))
    assert controller.trouble() is None


async def test_a_standby_takes_no_keys(controller: Controller):
    controller._watched(PODS, False, pod("abc"))
    assert controller.queue.depth() == 0


async def test_what_failed_as_the_lease_was_lost_is_not_looked_at_again(controller: Controller):
    body = reranker()
    key = (body["metadata"]["namespace"], body["metadata"]["name"])
    controller.store.listed(RERANKERS, None, [body], "1", controller.store.before_list(RERANKERS))
    controller._stop_leading()
    assert await controller._reconcile(key) == NOT_LEADER
    assert not controller.usage._revisions


async def test_a_standby_cannot_write(controller: Controller):
    with pytest.raises(Exception, match="does not hold the lease"):
        await controller._api.apply(PODS, pod("abc"))


@pytest.mark.parametrize("hangs", [True, False])
async def test_the_lease_is_not_released_while_a_write_may_be_on_its_way(
    controller: Controller, monkeypatch: pytest.MonkeyPatch, hangs: bool
):
    released = []

    async def nothing() -> None: ...

    async def work() -> None:
        await (asyncio.Event() if hangs else stop).wait()

    async def release() -> None:
        released.append(True)

    stop = asyncio.Event()
    monkeypatch.setattr(reconcile, "LAST_WORK_SECONDS", 0.05 if hangs else 10.0)
    monkeypatch.setattr(controller, "_work", work)
    monkeypatch.setattr(controller.leader, "release", release)
    monkeypatch.setattr(controller.watches, "start", lambda: None)
    monkeypatch.setattr(controller.watches, "stop", nothing)
    stop.set()
    await controller.run(stop)
    assert bool(released) is not hangs


async def test_leadership_lost_and_won_again_during_a_list_waits_for_the_next_list(
    controller: Controller, monkeypatch: pytest.MonkeyPatch
):
    async def listed(kind: Kind, _: str | None) -> dict[str, object]:
        if kind is PODS and again:
            again.pop()
            controller._start_leading()
        return {"metadata": {"resourceVersion": "1"}, "items": []}

    again = [True]
    monkeypatch.setattr(type(controller.leader), "leading", property(lambda _: True))
    monkeypatch.setattr(controller._api, "list", listed)
    await controller._resync()
    assert controller._lead_after_list
    controller._resync_now.clear()
    await controller._resync()
    assert not controller._lead_after_list


def test_log_lines_are_json_with_the_subject():
    record = logging.LogRecord("x", logging.INFO, "f", 1, "said %s", ("ü",), None)
    record.__dict__ |= {"namespace": "search", "reranker": "products"}
    line = json.loads(JsonFormatter().format(record))
    assert line["message"] == "said ü"
    assert (line["namespace"], line["reranker"], line["level"]) == ("search", "products", "info")


def test_sparing_passes_one_line_in_a_while():
    spare = Sparing(30)
    record = logging.LogRecord("x", logging.INFO, "f", 1, "again", (), None)
    passed = []
    for now in (0.0, 1.0, 29.0, 31.0, 32.0):
        record.created = now
        passed.append(spare.filter(record))
    assert passed == [True, False, False, True, False]


def test_kopf_neither_gives_up_nor_writes():
    delays = iter(Backoffs())
    assert all(0.2 < next(delays) <= 5 for _ in range(100))
    made = settings()
    assert made.posting.enabled is False
    assert made.scanning.disabled is True


@pytest.mark.parametrize(
    ("status", "message", "passing"),
    [
        (409, "the object has been modified", True),
        (429, "storage is (re)initializing", True),
        (503, "please try again", True),
        (500, "etcdserver: leader changed", True),
        (500, "failed to create typed patch object (x): .spec.nonsense: field not declared in schema", False),
        (403, "exceeded quota", False),
        (422, "spec.template.spec.tolerations[0].operator", False),
        (400, "strict decoding error", False),
    ],
)
def test_which_errors_may_pass(status: int, message: str, passing: bool):
    assert ApiError(status, "", message).passing is passing
