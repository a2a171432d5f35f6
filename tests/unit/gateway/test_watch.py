"""The watches against a small HTTP server that speaks list and watch, for faults a real API server shows seldom.

Agreement with a genuine API server is the end-to-end tests' business.
"""

import asyncio
import json
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from aiohttp import web
from rerank_api import names
from rerank_api.demand import DEMAND_PATH, decode_line
from rerank_gateway.cluster import watch
from rerank_gateway.cluster.api import connect, getter
from rerank_gateway.cluster.watch import ClusterSource

from .conftest import until

RERANKERS = f"/apis/{names.API_VERSION}/{names.PLURAL}"
PODS = "/api/v1/pods"
KEY = ("search", "products")


def _reranker(name: str = "products", **requests: Any) -> dict[str, Any]:
    return {
        "metadata": {"namespace": "search", "name": name},
        "spec": {"model": {"uri": "file:///model"}, "requests": requests},
    }


def _pod(name: str, ready: bool = True) -> dict[str, Any]:
    labels = {names.LABEL_RERANKER: "products", names.LABEL_REVISION: "one"}
    condition = {"type": "Ready", "status": "True" if ready else "False"}
    return {
        "metadata": {"namespace": "search", "name": name, "uid": name, "labels": labels},
        "status": {"podIP": "127.0.0.1", "conditions": [condition]},
    }


class ApiServer:
    """Lists what it is given, in pages; watches send what the test sends. ``fail`` answers instead of serving."""

    def __init__(self) -> None:
        self.items: dict[str, list[dict[str, Any]]] = {RERANKERS: [_reranker()], PODS: [_pod("a")]}
        self.version = 100
        self.page_size = 1000
        self.fail: int | None = None
        self.lists: list[dict[str, str]] = []
        self.watches: list[dict[str, str]] = []
        self.streams: dict[str, asyncio.Queue[dict[str, Any] | None]] = {}
        self.frozen = False
        self._runner: web.AppRunner | None = None
        self.port = 0

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/{path:.*}", self._get)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.01)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _get(self, request: web.Request) -> web.StreamResponse:
        query = dict(request.query)
        if self.fail is not None:
            status = {"kind": "Status", "code": self.fail, "message": "not today"}
            return web.json_response(status, status=self.fail)
        return await (self._watch(request, query) if "watch" in query else self._list(request, query))

    async def _list(self, request: web.Request, query: dict[str, str]) -> web.StreamResponse:
        self.lists.append({"path": request.path, **query})
        start = int(query.get("continue") or 0)
        items = self.items[request.path]
        end = start + self.page_size
        metadata = {"resourceVersion": str(self.version), "continue": str(end) if end < len(items) else ""}
        return web.json_response({"metadata": metadata, "items": items[start:end]})

    async def _watch(self, request: web.Request, query: dict[str, str]) -> web.StreamResponse:
        self.watches.append({"path": request.path, **query})
        stream = self.streams[request.path] = asyncio.Queue()
        response = web.StreamResponse()
        await response.prepare(request)
        while (event := await stream.get()) is not None:
            await response.write(json.dumps(event).encode() + b"\n")
        return response

    async def send(self, path: str, kind: str, body: dict[str, Any]) -> None:
        await until(lambda: path in self.streams, f"a watch of {path}")
        self.version += 1
        body = {**body, "metadata": {**body.get("metadata", {}), "resourceVersion": str(self.version)}}
        await self.streams[path].put({"type": kind, "object": body})

    async def end_watch(self, path: str) -> None:
        await until(lambda: path in self.streams, f"a watch of {path}")
        await self.streams.pop(path).put(None)


def _kubeconfig(folder: Path, port: int) -> Path:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    file = folder / "kubeconfig"
    file.write_text(yaml.safe_dump(config))
    return file


@pytest.fixture
async def server() -> AsyncIterator[ApiServer]:
    server = ApiServer()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def source(server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ClusterSource]:
    monkeypatch.setattr(watch, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(watch, "LONGEST_PAUSE", 0.05)
    async with await connect(str(_kubeconfig(tmp_path, server.port))) as api:
        source = ClusterSource(getter(api), [], time.monotonic)
        source.start()
        yield source
        await source.stop()


def _endpoints(source: ClusterSource) -> set[str]:
    route = source.table.routes.get(KEY)
    return {endpoint.uid for endpoint in route.endpoints} if route else set()


async def test_lists_then_follows_changes(server: ApiServer, source: ClusterSource) -> None:
    assert not source.synced
    await until(lambda: source.synced, "the first sync")
    assert _endpoints(source) == {"a"}
    assert (
        "app.kubernetes.io/component=worker"
        in next(entry for entry in server.lists if entry["path"] == PODS)["labelSelector"]
    )

    await server.send(PODS, "ADDED", _pod("b"))
    await until(lambda: _endpoints(source) == {"a", "b"}, "the added pod")
    await server.send(PODS, "MODIFIED", _pod("a", ready=False))
    await until(lambda: _endpoints(source) == {"b"}, "the pod that is no longer ready")
    await server.send(PODS, "DELETED", _pod("b"))
    await until(lambda: _endpoints(source) == set(), "the deleted pod")
    await server.send(RERANKERS, "MODIFIED", _reranker(maxDocuments=7))
    await until(lambda: source.table.routes[KEY].policy.max_documents == 7, "the changed Reranker")
    await server.send(RERANKERS, "DELETED", _reranker())
    await until(lambda: not source.table.routes, "the deleted Reranker")


async def test_a_warm_pod_serves_from_the_mark_to_the_release(server: ApiServer, source: ClusterSource) -> None:
    await until(lambda: source.synced, "the first sync")
    key = names.model_key("search", "products", "two")
    pool = {names.LABEL_WARM_POOL: "shared"}
    claimed = {**pool, names.LABEL_LOANED_TO: "products", names.LABEL_LOANED_REVISION: "two"}

    def warm(labels: dict[str, str], **annotations: str) -> dict[str, Any]:
        pod = _pod("warm")
        return {**pod, "metadata": {**pod["metadata"], "labels": labels, "annotations": annotations}}

    for kind, pod in (("ADDED", warm(pool)), ("MODIFIED", warm(claimed))):
        await server.send(PODS, kind, pod)
    await server.send(PODS, "ADDED", _pod("b"))
    await until(lambda: _endpoints(source) == {"a", "b"}, "all that came before, of which none serves")
    await server.send(PODS, "MODIFIED", warm(claimed, **{names.ANNOTATION_LOAN_SERVING: key}))
    await until(lambda: _endpoints(source) == {"a", "b", "warm"}, "the mark")
    (endpoint,) = (endpoint for endpoint in source.table.routes[KEY].endpoints if endpoint.uid == "warm")
    assert (endpoint.revision, endpoint.path) == ("two", f"/v1/models/{key}/score")
    await server.send(PODS, "MODIFIED", warm(pool))
    await until(lambda: _endpoints(source) == {"a", "b"}, "the release")


async def test_lists_in_pages(server: ApiServer, source: ClusterSource) -> None:
    server.items[PODS] = [_pod(f"p{i}") for i in range(5)]
    server.page_size = 2
    await until(lambda: source.synced, "the first sync")
    assert _endpoints(source) == {f"p{i}" for i in range(5)}


async def test_a_watch_that_ends_goes_on_from_where_it_was(server: ApiServer, source: ClusterSource) -> None:
    await server.send(PODS, "BOOKMARK", {"metadata": {}})
    bookmark = server.version
    await server.end_watch(PODS)
    await until(lambda: len([w for w in server.watches if w["path"] == PODS]) == 2, "the second watch")
    assert server.watches[-1]["resourceVersion"] == str(bookmark)
    assert len([entry for entry in server.lists if entry["path"] == PODS]) == 1


async def test_an_expired_version_lists_again(server: ApiServer, source: ClusterSource) -> None:
    await until(lambda: source.synced, "the first sync")
    server.items[PODS] = [_pod("b")]
    await server.send(PODS, "ERROR", {"code": 410, "message": "too old"})
    await until(lambda: _endpoints(source) == {"b"}, "the new list")


async def test_what_was_known_stays_while_the_api_server_is_away(server: ApiServer, source: ClusterSource) -> None:
    await until(lambda: source.synced, "the first sync")
    await until(lambda: len(server.streams) == 2, "both watches")
    await server.stop()
    server.streams.clear()
    await until(lambda: all(watch.failures > 2 for watch in source.watches), "some failed tries")
    assert _endpoints(source) == {"a"}
    assert source.synced
    assert source.stalled(time.monotonic()) is None

    server.items[PODS] = [_pod("a"), _pod("b")]
    await server.start()
    await server.send(PODS, "ADDED", _pod("b"))
    await until(lambda: _endpoints(source) == {"a", "b"}, "the change after the return")


@pytest.mark.parametrize("code", [403, 429, 500, 503])
async def test_errors_are_tried_again(server: ApiServer, source: ClusterSource, code: int) -> None:
    server.fail = code
    await until(lambda: all(watch.failures > 2 for watch in source.watches), "some failed tries")
    assert not source.synced
    server.fail = None
    await until(lambda: source.synced, "the first sync")


async def test_a_frozen_connection_is_noticed(
    server: ApiServer, source: ClusterSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "WATCH_READ_TIMEOUT", 0.05)
    await until(lambda: len([w for w in server.watches if w["path"] == PODS]) > 2, "new watches")
    assert _endpoints(source) == {"a"}


async def test_an_object_that_cannot_be_read_keeps_what_was_known(server: ApiServer, source: ClusterSource) -> None:
    await until(lambda: source.synced, "the first sync")
    await server.send(RERANKERS, "MODIFIED", {**_reranker(), "spec": {"model": 7}})
    await server.send(RERANKERS, "ADDED", _reranker("other"))
    await until(lambda: ("search", "other") in source.table.routes, "the object after it")
    assert KEY in source.table.routes


async def test_garbage_in_the_watch_is_no_end(server: ApiServer, source: ClusterSource) -> None:
    await until(lambda: PODS in server.streams, "a watch")
    await server.streams[PODS].put({"nonsense": True})
    await until(lambda: len([w for w in server.watches if w["path"] == PODS]) == 2, "the next watch")
    await server.send(PODS, "ADDED", _pod("b"))
    await until(lambda: _endpoints(source) == {"a", "b"}, "the change after it")


async def test_a_watch_that_stops_moving_is_a_stall(server: ApiServer, source: ClusterSource) -> None:
    await until(lambda: source.synced, "the first sync")
    assert source.stalled(time.monotonic()) is None
    assert "made no progress" in (source.stalled(time.monotonic() + 200) or "")
    await source.stop()
    assert "has ended" in (source.stalled(time.monotonic()) or "")


async def test_given_namespaces_only(server: ApiServer, tmp_path: Path) -> None:
    server.items = {
        f"/apis/{names.API_VERSION}/namespaces/search/{names.PLURAL}": [_reranker()],
        "/api/v1/namespaces/search/pods": [_pod("a")],
    }
    async with await connect(str(_kubeconfig(tmp_path, server.port))) as api:
        source = ClusterSource(getter(api), ["search"], time.monotonic)
        source.start()
        await until(lambda: source.synced, "the first sync")
        assert _endpoints(source) == {"a"}
        await source.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def test_the_command_serves_and_ends_on_sigterm(server: ApiServer, tmp_path: Path) -> None:
    port, admin_port = _free_port(), _free_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "rerank_gateway", "--host", "127.0.0.1", "--port", str(port)),
        *("--admin-port", str(admin_port), "--shutdown-delay", "0"),
        env={**os.environ, "KUBECONFIG": str(_kubeconfig(tmp_path, server.port))},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        async with aiohttp.ClientSession() as client, asyncio.timeout(30):
            while True:
                try:
                    async with client.get(f"http://127.0.0.1:{admin_port}/readyz") as response:
                        if response.status == 200:
                            break
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(0.05)
            async with client.get(f"http://127.0.0.1:{port}/v1/models") as response:
                assert (await response.json())["data"][0]["id"] == "search/products"
            async with client.get(f"http://127.0.0.1:{admin_port}{DEMAND_PATH}") as stream:
                first = decode_line(await stream.content.readline())
                assert [(told.name, told.outstanding) for told in first.rerankers] == [("products", {"a": 0})]
                process.send_signal(signal.SIGTERM)
                rest = [decode_line(line) async for line in stream.content]
                assert {line.gateway for line in rest} == {first.gateway}
        output, _ = await asyncio.wait_for(process.communicate(), 30)
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0
    messages = [json.loads(line)["message"] for line in output.splitlines()]
    assert messages[-1] == "stopped"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--max-held-bytes", "lots"], "is not a quantity"),
        (["--shutdown-delay", "2h"], "between 0 and 1 hour"),
        (["--max-outstanding-requests", "0"], "above 0"),
        (["--nonsense"], "unrecognized"),
    ],
)
def test_wrong_options_are_refused(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rerank_gateway.__main__ import main

    monkeypatch.setattr(sys, "argv", ["rerank-gateway", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert words in capsys.readouterr().err
