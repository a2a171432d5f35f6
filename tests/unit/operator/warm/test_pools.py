"""The rim of a pool: what keeps a Reranker from its warm pods is told, and a refused patch holds up that pod alone.

The API server is a stand-in that refuses what it is told to; the end-to-end tests have the genuine one.
"""

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from aiohttp import web
from kubernetes.aio.client import Configuration
from rerank_api import names
from rerank_operator.controller.api import KubeApi, Unreachable
from rerank_operator.controller.conditions import scaling_message
from rerank_operator.controller.kinds import PODS, RERANKERS, WARM_POOLS
from rerank_operator.controller.pools import Pools
from rerank_operator.controller.store import Store
from rerank_operator.controller.verdict import Verdict
from rerank_operator.scaling.decide import Decision, Memory
from rerank_operator.warm.calls import Calls
from rerank_operator.warm.observe import Loan, Wish
from unit.operator.build import WORKER
from unit.operator.warm.pool import KEY, NAMESPACE, NOW, pod_body, reranker, warm_pool

ADDRESS = "127.254.254.2"


class StandIn:
    """Merges patches of pods into its store, and takes everything else."""

    def __init__(self) -> None:
        self.store = Store()
        self.refused: dict[str, int] = {}
        """Statuses by the names of pods."""
        self.patched: list[str] = []

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_patch("/api/v1/namespaces/{namespace}/pods/{name}", self._patch)
        app.router.add_route("*", "/{rest:.*}", self._take)
        return app

    async def _patch(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        self.patched.append(name)
        if status := self.refused.get(name):
            return web.json_response({"reason": "Refused", "message": "a policy says no"}, status=status)
        body = msgspec.json.decode(msgspec.json.encode(self.store.get(PODS, NAMESPACE, name)))
        for part in ("labels", "annotations"):
            merged = body["metadata"].get(part, {}) | (await request.json())["metadata"][part]
            body["metadata"][part] = {key: value for key, value in merged.items() if value is not None}
        body["metadata"]["resourceVersion"] = str(int(body["metadata"]["resourceVersion"]) + 1)
        return web.json_response(body)

    async def _take(self, request: web.Request) -> web.Response:
        if request.method == "GET":
            return web.json_response({"reason": "NotFound", "message": "it is not there"}, status=404)
        body = await request.json()
        if "metadata" in body:
            body["metadata"] |= {"resourceVersion": "9", "uid": body["metadata"].get("uid", "made")}
        return web.json_response(body)


@pytest.fixture
async def server() -> AsyncIterator[tuple[StandIn, KubeApi]]:
    found = StandIn()
    runner = web.AppRunner(found.application(), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, ADDRESS, 0)
    await site.start()
    (_, port) = runner.addresses[0][:2]
    api = KubeApi(Configuration(host=f"http://{ADDRESS}:{port}"))
    api.fence = lambda: 10.0
    yield found, api
    await api.close()
    await runner.cleanup()


class Wanted:
    def __init__(self, *wishes: Wish) -> None:
        self._wishes = list(wishes)

    def wishes(self, namespace: str, pool: str) -> list[Wish]:
        return self._wishes


async def unheard(*_: object) -> None:
    pass


def lent_to(store: Store) -> dict[str, str]:
    bodies = [body["metadata"] for body in store.members(PODS, KEY)]
    lent = {body["name"]: body["labels"].get(names.LABEL_LOANED_TO) for body in bodies}
    return {name: reranker for name, reranker in lent.items() if reranker}


@pytest.mark.parametrize("status", [403, 422, 500])
async def test_a_pod_whose_patch_is_refused_rests_and_another_is_claimed(server: tuple[StandIn, KubeApi], status: int):
    found, api = server
    found.refused["shared-warm-1"] = status
    store = found.store
    store.seen(WARM_POOLS, False, warm_pool())
    store.seen(RERANKERS, False, reranker("a"))
    for index in (1, 2):
        store.seen(PODS, False, pod_body(index))
    pools = Pools(api, store, Wanted(Wish((NAMESPACE, "a"), 2, NOW)), WORKER, b"key", "me", lambda _: None, unheard)
    try:
        assert await pools.reconcile(KEY) == "ok"
        assert lent_to(store) == {"shared-warm-2": "a"}
        assert found.patched.count("shared-warm-1") == 2  # once more at once, then it rests
        await pools.reconcile(KEY)
        assert found.patched.count("shared-warm-1") == 2
        assert "none is free" in (pools.waiting((NAMESPACE, "a")) or "")
    finally:
        pools.queue.close()
        await pools.run()


async def test_loads_begin_although_a_patch_did_not_get_through(
    server: tuple[StandIn, KubeApi], monkeypatch: pytest.MonkeyPatch
):
    found, api = server
    store, started = found.store, []
    store.seen(WARM_POOLS, False, warm_pool())
    store.seen(RERANKERS, False, reranker("a"))
    store.seen(PODS, False, pod_body(1, loan=Loan("a", "r1", NOW)))
    store.seen(PODS, False, pod_body(2))
    pools = Pools(api, store, Wanted(Wish((NAMESPACE, "a"), 2, NOW)), WORKER, b"key", "me", lambda _: None, unheard)

    async def unreachable(*_: Any) -> dict[str, Any]:
        raise Unreachable("no answer")

    monkeypatch.setattr(api, "merge", unreachable)
    monkeypatch.setattr(Calls, "start", lambda _, pool, token, job: started.append(job.pod.name))
    try:
        with pytest.raises(Unreachable):
            await pools.reconcile(KEY)
        assert started == ["shared-warm-1", "shared-warm-2"]
    finally:
        pools.queue.close()
        await pools.run()


class Nobody:
    def wishes(self, namespace: str, pool: str) -> list[Wish]:
        return []


async def test_a_pool_that_is_not_there_is_told():
    store = Store()
    api = KubeApi(Configuration())
    pools = Pools(api, store, Nobody(), WORKER, b"key", "me", lambda _: None, unheard)
    try:
        key = (NAMESPACE, "a")
        assert pools.waiting(key) is None
        store.seen(RERANKERS, False, reranker("a"))
        assert pools.waiting(key) == (
            "there is no WarmPool shared in namespace search: create it, or correct spec.scaling.warmPool"
        )
        store.seen(WARM_POOLS, False, warm_pool())
        assert pools.waiting(key) is None
    finally:
        pools.queue.close()
        await pools.run()
        await api.close()


def test_and_stands_in_the_message_of_its_condition():
    decision = Decision(1, 2, "Steady", "it is what is needed", Memory(), 1.0)
    verdict = Verdict("Auto", 1, 2, decision, short="WarmPool shared: none is free")
    assert scaling_message(verdict).endswith("it is what is needed. Too few warm pods: WarmPool shared: none is free")
