"""What asks workers and gateways about canaries: a real worker's protocol and a store, with an API of the test."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import aiohttp
import msgspec
from aiohttp import web
from prometheus_client import REGISTRY
from rerank_api import names, wire
from rerank_api.answers import ANSWERS_PATH, Answers, Mirrored, MirroredAnswers
from rerank_api.reranker import RolloutCheck
from rerank_operator.controller.kinds import PODS
from rerank_operator.controller.rollouts import KEEP_SECONDS, RETRY_SECONDS, Rollouts
from unit.operator.build import KEY, MODEL_B
from unit.operator.golden import QUERIES, Api, Worker, listening
from unit.operator.test_canary_plans import CANARY, Rollout, check


class Asked:
    """Rollouts of a world whose pods are one worker that scores as it is told to."""

    def __init__(
        self,
        world: Rollout,
        session: aiohttp.ClientSession,
        address: str,
        gateways: list[str],
        prometheus: str | None = None,
    ) -> None:
        self.world, self.session, self.api = world, session, Api()
        for pod in world.pods():
            world.put(PODS, pod | {"status": pod["status"] | {"podIP": address}})
        self.rollouts = Rollouts(
            self.api,  # ty: ignore[invalid-argument-type]
            world.store,
            lambda: gateways,
            lambda: True,
            lambda key: None,
            lambda: world.now,
            prometheus,
        )

    async def look(self) -> None:
        self.rollouts.findings(self.world.observe())
        await self.rollouts._look_safely(self.session, KEY)

    async def until(self, found: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not found():
                await self.look()
                await asyncio.sleep(0.005)

    @property
    def golden(self) -> RolloutCheck | None:
        findings = self.rollouts.findings(self.world.observe())
        return findings.golden if findings is not None else None

    @property
    def mirror(self) -> RolloutCheck | None:
        findings = self.rollouts.findings(self.world.observe())
        return findings.mirror if findings is not None else None


@asynccontextmanager
async def asking(
    world: Rollout, gateways: list[str] | None = None, prometheus: str | None = None
) -> AsyncGenerator[tuple[Asked, Worker]]:
    worker = Worker()
    async with (
        listening(web.post(wire.SCORE_PATH, worker.score)) as address,
        aiohttp.ClientSession() as session,
    ):
        asked = Asked(world, session, address, gateways or [], prometheus)
        try:
            yield asked, worker
        finally:
            asked.rollouts.reset()


async def test_the_same_golden_set_is_not_ranked_twice_and_another_one_is():
    async with asking(Rollout()) as (asked, worker):
        asked.api.change(json.dumps({"queries": QUERIES[:5]}))
        await asked.until(lambda: asked.golden is not None)
        assert asked.golden is not None
        assert (asked.golden.verdict, worker.asked) == ("hold", 10), "too few queries to tell"
        for _ in range(5):
            asked.world.now += RETRY_SECONDS
            for _ in range(20):
                await asked.look()
                await asyncio.sleep(0.001)
        assert worker.asked == 10
        asked.api.change(json.dumps({"queries": QUERIES}))
        asked.world.now += RETRY_SECONDS
        await asked.until(lambda: asked.golden is not None and asked.golden.verdict == "pass")
        assert worker.asked == 50


async def test_a_ranking_that_was_begun_for_another_spec_says_nothing():
    world = Rollout()
    async with asking(world) as (asked, worker):
        worker.go.clear()
        await asked.until(lambda: worker.asked > 0)
        world.want(MODEL_B, replicas=4, rollout=CANARY | {"goldenSet": {"configMap": "golden", "metric": "mrr"}})
        worker.go.set()
        await asked.until(lambda: asked.golden is not None)
        assert asked.golden is not None
        assert asked.golden.message.startswith("MRR")


async def test_what_nobody_thought_of_is_told_and_tried_again_after_a_while():
    async with asking(Rollout()) as (asked, worker):
        asked.api.data = {"golden.json": 7}  # ty: ignore[invalid-assignment]
        await asked.until(lambda: asked.golden is not None)
        assert asked.golden is not None
        assert (asked.golden.verdict, worker.asked) == ("hold", 0)
        asked.api.change(json.dumps({"queries": QUERIES}))
        for _ in range(20):
            await asked.look()
            await asyncio.sleep(0.001)
        assert worker.asked == 0
        asked.world.now += RETRY_SECONDS
        await asked.until(lambda: asked.golden is not None and asked.golden.verdict == "pass")


async def test_a_clock_that_is_set_back_does_not_keep_a_golden_set_from_being_tried_again():
    """Regression: a canary in Golden stood still for as long as the clock had gone back."""
    async with asking(Rollout()) as (asked, _):
        asked.api.change(json.dumps({"queries": QUERIES[:5]}))
        await asked.until(lambda: asked.golden is not None)
        asked.world.now -= 7200
        await asked.look()
        asked.api.change(json.dumps({"queries": QUERIES}))
        asked.world.now += RETRY_SECONDS
        await asked.until(lambda: asked.golden is not None and asked.golden.verdict == "pass")


async def test_a_canary_that_ends_while_its_metric_is_asked_for_ends_nothing_else():
    """Regression: the query was cancelled, and its result asked for after the gateways had answered; that ended the
    loop that looks at canaries, and with it the operator."""
    metric = {"name": "conversion", "query": 'orders{revision="{revision}"}', "maxDecrease": 0.1, "interval": "30s"}
    world = Rollout(prometheus=[metric])
    world.find(golden=check("golden"), mirror=check("mirror"))
    queried, polled, go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def hang(request: web.Request) -> web.Response:
        queried.set()
        await go_on.wait()
        return web.json_response({})

    async def tell(request: web.Request) -> web.Response:
        if queried.is_set():
            polled.set()
            await go_on.wait()
        return web.json_response({"gateway": "g1", "revisions": [], "mirrored": []})

    async with (
        listening(web.post("/api/v1/query", hang)) as prometheus,
        listening(web.get(ANSWERS_PATH, tell)) as gateway,
        asking(world, [gateway], f"http://{prometheus}") as (asked, _),
    ):
        await asked.look()
        world.now += 31
        await asked.look()
        await asyncio.wait_for(queried.wait(), 10)
        looking = asyncio.create_task(asked.look())
        await asyncio.wait_for(polled.wait(), 10)
        world.annotate(names.ANNOTATION_ABORT, world.rollout["started"])
        world.findings = None
        world.step()
        assert asked.rollouts.findings(world.observe()) is None
        go_on.set()
        await asyncio.wait_for(looking, 10)


async def test_a_golden_set_that_is_nested_too_deeply_is_refused():
    async with asking(Rollout()) as (asked, _):
        asked.api.change('{"a": ' + "[" * 200_000 + "\n{}")
        await asked.until(lambda: asked.golden is not None)
        assert asked.golden is not None
        assert (asked.golden.verdict, "golden.json" in asked.golden.message) == ("hold", True)


async def test_where_no_gateway_tells_it_says_so():
    world = Rollout()
    world.find(golden=check("golden"))
    async with asking(world) as (asked, _):
        await asked.look()
        assert asked.mirror is not None
        assert "no gateway" in asked.mirror.message
    async with asking(world, ["127.0.0.1:1"]) as (asked, _):
        await asked.look()
        assert asked.mirror is not None
        assert "127.0.0.1:1" in asked.mirror.message
    world.find(mirror=check("mirror"))
    async with asking(world, ["127.0.0.1:1"]) as (asked, _):
        await asked.look()
        findings = asked.rollouts.findings(world.observe())
        assert findings is not None
        assert all("127.0.0.1:1" in one.message for one in findings.metrics)


async def test_the_requests_that_differed_most_are_named():
    world = Rollout()
    world.find(golden=check("golden"))
    told: list[Mirrored] = []

    async def answers(_: web.Request) -> web.Response:
        mirrored = [MirroredAnswers(world.b, len(told), told)]
        return web.Response(body=msgspec.json.encode(Answers("gateway-1", mirrored=mirrored)))

    async with (
        listening(web.get(ANSWERS_PATH, answers)) as gateway,
        asking(world, [gateway]) as (asked, _),
    ):
        await asked.look()  # from here on it counts
        told += [Mirrored(0.1, 0.1, agreement=1 - n / 10, drift=0.1, request_id=f"r-{n}") for n in range(8)]
        world.now += KEEP_SECONDS
        await asked.look()
        findings = asked.rollouts.findings(world.observe())
        assert findings is not None
        assert [one.request_id for one in findings.differed] == ["r-7", "r-6", "r-5", "r-4", "r-3"]


async def test_verdicts_that_come_and_go_are_written_from_time_to_time_only():
    world = Rollout()
    world.find(golden=check("golden"), mirror=check("mirror"))
    async with asking(world) as (asked, _):
        rollouts, due = asked.rollouts, list[float]()
        rollouts._changed = lambda key: due.append(world.now)
        assert rollouts.findings(world.observe()) is not None
        watched = rollouts._watched[KEY]
        for second in range(100):
            world.now += 1
            metrics = (check("errors", "hold" if second % 2 else "pass"),)
            rollouts._tell(KEY, watched, msgspec.structs.replace(watched.findings, metrics=metrics))
        assert len(due) == 10
        rollouts._tell(KEY, watched, msgspec.structs.replace(watched.findings, step=1))
        rollouts._tell(KEY, watched, msgspec.structs.replace(watched.findings, action="rollback"))
        assert len(due) == 12


async def test_metrics_tell_one_phase_of_the_last_rollout():
    def phases() -> list[tuple[str, str, float]]:
        told = (metric for metric in REGISTRY.collect() if metric.name == "rerank_operator_rollout_phase")
        samples = (sample for metric in told for sample in metric.samples)
        return [(sample.labels["revision"], sample.labels["phase"], sample.value) for sample in samples]

    world = Rollout()
    async with asking(world) as (asked, _):
        state = world.observe().rollout
        assert state is not None
        asked.rollouts.show(KEY, state, world.b)
        assert phases() == [(world.b, "Golden", 1)]
        asked.rollouts.show(KEY, msgspec.structs.replace(state, paused="the deadline is over"), world.b)
        assert phases() == [(world.b, "Paused", 1)]
        back = msgspec.structs.replace(state, phase="RolledBack")
        asked.rollouts.show(KEY, back, world.b)
        assert phases() == [(world.b, "RolledBack", 1)]
        # The spec asks for what it asked for before: nobody has to do anything any more.
        asked.rollouts.show(KEY, back, world.a)
        assert phases() == [(world.b, "RolledBack", 0)]
        asked.rollouts.show(KEY, None)
        assert phases() == []
