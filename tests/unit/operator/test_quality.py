"""The golden set ranked on a schedule: a worker's own protocol and a store, with an API and a clock of the test."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from prometheus_client import REGISTRY
from rerank_api import wire
from rerank_api.reranker import QualityStatus
from rerank_operator.controller.api import ApiError, Unreachable
from rerank_operator.controller.kinds import PODS, RERANKERS
from rerank_operator.controller.notices import Measured
from rerank_operator.controller.observe import Observed, observe
from rerank_operator.controller.plan import Plan, make_plan
from rerank_operator.controller.quality import AT_ONCE, QualityRuns
from rerank_operator.rollout.golden import workers
from unit.operator.build import KEY, MODEL_A, MODEL_B, NAME, NAMESPACE, WORKER, World
from unit.operator.golden import QUERIES, Api, Worker, listening

HOUR = 3600.0
SPEC: dict[str, Any] = {
    "replicas": 1,
    "slo": {"quality": {"minimum": 0.9}},
    "rollout": {"goldenSet": {"configMap": "golden"}},
}


class Measuring(World):
    """A world whose golden set is ranked when it is due; ``restart`` is another operator."""

    def __init__(self, session: aiohttp.ClientSession, address: str, **changes: Any) -> None:
        super().__init__()
        self.session, self.address, self.api = session, address, Api()
        self.leading = True
        self.changed: list[tuple[str, str]] = []
        self.spec = SPEC | changes
        self.restart()
        self.revision = self.want(MODEL_A, **self.spec)
        self.settle()

    def restart(self) -> None:
        self.runs = QualityRuns(
            self.api,  # ty: ignore[invalid-argument-type]
            self.store,
            lambda: self.leading,
            self.changed.append,
            lambda: self.now,
        )

    def put(self, kind: Any, body: dict[str, Any]) -> dict[str, Any]:
        if kind is PODS:
            body = body | {"status": body["status"] | {"podIP": self.address}}
        return super().put(kind, body)

    def plan(self) -> Plan:
        observed = self.observe()
        return make_plan(observed, WORKER, self.now, self.problem, measured=self.runs.look(observed))

    def step(self) -> Plan:
        self.now -= 60  # time passes where a test says so
        return super().step()

    async def after(self, seconds: float = 0.0) -> Measured:
        """What is known once all that is due has been ranked, or could not be."""
        self.now += seconds
        self.runs.look(self.observe())
        await self.runs.compare()
        self.runs.start_due(self.session)
        await self.done()
        self.settle()
        found = self.runs.look(self.observe())
        assert found is not None
        return found

    async def done(self) -> None:
        tasks = [one.task for one in self.runs._watched.values() if one.task is not None]
        if tasks:
            _, left = await asyncio.wait(tasks, timeout=10)
            assert not left

    @property
    def quality(self) -> dict[str, Any]:
        return self.status.get("quality", {})

    @property
    def noted(self) -> tuple[str, str, str]:
        """Status, reason and message of the condition."""
        found = next(c for c in self.status["conditions"] if c["type"] == "RankingQuality")
        return found["status"], found["reason"], found["message"]


class Asked(Worker):
    def __init__(self) -> None:
        super().__init__()
        self.begun = asyncio.Event()
        self.status = 200

    async def score(self, request: web.Request) -> web.Response:
        self.begun.set()
        answer = await super().score(request)
        return answer if self.status == 200 else web.Response(status=self.status)


@asynccontextmanager
async def measuring(**spec: Any) -> AsyncGenerator[tuple[Measuring, Asked]]:
    worker = Asked()
    async with (
        listening(web.post(wire.SCORE_PATH, worker.score)) as address,
        aiohttp.ClientSession() as session,
    ):
        world = Measuring(session, address, **spec)
        try:
            yield world, worker
        finally:
            world.runs.reset()


def sample(name: str, **labels: str) -> float | None:
    found = {"namespace": NAMESPACE, "reranker": NAME} | labels
    return REGISTRY.get_sample_value(f"rerank_operator_golden_{name}", found)


async def test_it_is_ranked_at_first_sight_and_then_once_an_interval():
    async with measuring() as (world, worker):
        found = await world.after()
        assert (worker.asked, found.latest is not None) == (20, True)
        assert world.changed == [KEY]
        assert (world.quality["ndcg"], world.quality["queries"]) == (1.0, 20)
        assert world.condition("RankingQuality") == ("True", "GoodEnough")
        for _ in range(29):
            await world.after(60)
        assert worker.asked == 20, "not within half an interval"
        for _ in range(61):
            await world.after(60)
        assert worker.asked == 40
        for _ in range(120):
            await world.after(60)
        assert worker.asked == 80


async def test_a_restart_ranks_nothing_that_was_ranked_lately():
    async with measuring() as (world, worker):
        await world.after()
        before = world.quality
        world.runs.reset()
        world.restart()
        found = await world.after(10)
        assert (worker.asked, world.quality) == (20, before)
        assert (found.latest, sample("quality", revision=world.revision, measure="mrr")) == (
            world.observe().quality,
            1.0,
        ), "known from the status"
        world.runs.reset()
        world.restart()
        await world.after(2 * HOUR)
        assert worker.asked == 40


def text_of(queries: int) -> str:
    """A golden set."""
    return json.dumps({"queries": QUERIES[:queries]})


async def test_a_golden_set_that_was_changed_while_no_operator_ran_is_ranked_soon_after_one_starts():
    async with measuring() as (world, worker):
        await world.after()
        world.runs.reset()
        world.api.change(text_of(12))
        world.restart()
        await world.after(10)
        assert (worker.asked, world.quality["queries"]) == (32, 12)
        world.runs.reset()
        world.api.change(text_of(12))
        world.restart()
        await world.after(10)
        assert worker.asked == 32, "its ConfigMap was written again, with the same in it"


async def test_another_golden_set_that_was_named_while_no_operator_ran_is_ranked_soon_after_one_starts():
    async with measuring() as (world, worker):
        await world.after()
        world.runs.reset()
        world.want(MODEL_A, **(world.spec | {"rollout": {"goldenSet": {"configMap": "other"}}}))
        world.restart()
        await world.after(10)
        assert worker.asked == 40


async def test_another_golden_set_is_ranked_at_once_by_an_operator_that_has_ranked_nothing_yet():
    async with measuring() as (world, worker):
        await world.after()
        world.runs.reset()
        world.restart()
        await world.after(10)
        world.want(MODEL_A, **(world.spec | {"rollout": {"goldenSet": {"configMap": "other"}}}))
        await world.after(10)
        assert worker.asked == 40


async def test_a_result_that_does_not_say_of_which_golden_set_it_is_is_made_anew_once():
    async with measuring() as (world, worker):
        await world.after()
        world.runs.reset()
        del world.quality["digest"]
        for _ in range(2):
            world.restart()
            await world.after(10)
            assert worker.asked == 40
            world.runs.reset()


async def test_a_golden_set_that_nobody_can_read_as_an_operator_starts_is_compared_as_soon_as_it_can():
    async with measuring() as (world, worker):
        await world.after()
        world.runs.reset()
        world.restart()
        for error in (Unreachable("no answer"), ApiError(503, "", "not now")):
            world.api.error = error
            found = await world.after(10)
            assert (worker.asked, found.failed) == (20, "")
        world.api.error = None
        world.api.change(text_of(12))
        await world.after(10)
        assert worker.asked == 32


async def test_what_could_not_be_ranked_is_not_good_again_for_an_operator_that_starts():
    async with measuring() as (world, worker):
        await world.after()
        data, world.api.data = world.api.data, None
        await world.after(2 * HOUR)
        before = world.noted
        assert before[:2] == ("Unknown", "CannotMeasure")
        assert "ConfigMap search/golden does not exist: create it. Before that, ndcg@10 is 1.000" in before[2]
        world.runs.reset()
        world.restart()
        world.settle()
        assert world.noted == before
        world.want(MODEL_A, **(world.spec | {"replicas": 0}))
        world.settle()
        world.api.data = data
        await world.after(2 * HOUR)
        assert world.noted == before, "nobody has ranked it since"
        world.want(MODEL_A, **world.spec)
        world.settle()
        await world.after()
        assert (worker.asked, world.noted[:2]) == (40, ("True", "GoodEnough")), "at once, as it failed before"


async def test_a_golden_set_that_is_gone_as_an_operator_starts_is_no_good_ranking():
    async with measuring() as (world, worker):
        await world.after()
        world.runs.reset()
        world.api.data = None
        world.restart()
        found = await world.after(10)
        assert (worker.asked, world.noted[:2]) == (20, ("Unknown", "CannotMeasure"))
        assert "ConfigMap search/golden does not exist: create it" in found.failed


@pytest.mark.parametrize(("ahead", "asked"), [(59.0, 20), (61.0, 40), (30 * 24 * HOUR, 40)])
async def test_a_result_of_a_leader_whose_clock_was_ahead_keeps_nothing_from_being_ranked(ahead: float, asked: int):
    async with measuring() as (world, worker):
        world.now += ahead
        await world.after()
        world.runs.reset()
        world.restart()
        await world.after(-ahead)
        assert worker.asked == asked
        await world.after()
        assert worker.asked == asked, "once"


async def test_a_clock_that_was_set_back_keeps_no_failure_from_being_tried_again():
    async with measuring() as (world, worker):
        data, world.api.data = world.api.data, None
        await world.after()
        world.api.data = data
        await world.after(-24 * HOUR)
        await world.after(31)
        assert worker.asked == 20


async def test_metrics_tell_of_the_latest_result_and_go_with_the_reranker():
    async with measuring() as (world, worker):
        runs = {"result": "ok"}, {"result": "failed"}
        assert [sample("runs_total", **one) for one in runs] == [0.0, 0.0]
        await world.after()
        a = world.revision
        assert [sample("runs_total", **one) for one in runs] == [1.0, 0.0]
        assert sample("minimum", measure="ndcg@10") == 0.9
        assert sample("run_timestamp_seconds", revision=a) == world.now
        assert [sample("quality", revision=a, measure=m) for m in ("ndcg@10", "accuracy@10", "mrr")] == [1.0, 1.0, 1.0]
        assert [sample("calibration", revision=a, measure=m) for m in ("brier", "ece")] == [0.0, 0.0]
        b = world.want(MODEL_B, **world.spec)
        world.settle()
        await world.after()
        assert worker.asked == 40, "another revision is ranked at once"
        assert (sample("quality", revision=a, measure="mrr"), sample("quality", revision=b, measure="mrr")) == (
            None,
            1.0,
        )
        world.runs.forget(KEY)
        assert sample("minimum", measure="ndcg@10") is None
        assert sample("runs_total", result="ok") is None
        assert sample("run_timestamp_seconds", revision=b) is None
        assert sample("calibration", revision=b, measure="ece") is None


async def test_no_worker_is_started_or_waited_for():
    async with measuring(replicas=0) as (world, worker):
        found = await world.after()
        assert (worker.asked, found.failed) == (0, "")
        assert "no revision serves yet" in found.waits
        world.want(MODEL_A, **(world.spec | {"replicas": 1}))
        world.settle()
        await world.after()
        assert worker.asked == 20
        world.want(MODEL_A, **(world.spec | {"replicas": 0}))
        world.settle()
        found = await world.after(5 * HOUR)
        assert (worker.asked, found.waits) == (
            20,
            f"revision {world.revision} has no ready worker to rank the golden set",
        )
        assert (world.replicas(), sample("runs_total", result="failed")) == ({world.revision: 0}, 0.0)
        assert world.condition("RankingQuality") == ("True", "GoodEnough"), "its age tells"


async def test_not_while_a_canary_is_judged():
    canary = {"strategy": "Canary", "steps": [5], "goldenSet": {"configMap": "golden"}}
    async with measuring(rollout=canary) as (world, worker):
        await world.after()
        world.want(MODEL_B, **world.spec)
        world.settle()
        assert world.status["rollout"]["phase"] == "Golden"
        found = await world.after(5 * HOUR)
        assert (worker.asked, found.waits) == (20, "a canary is judged, and the workers are left to that")
        world.want(MODEL_A, **world.spec)
        world.settle()
        await world.after()
        assert (world.status["rollout"]["phase"], worker.asked) == ("Cancelled", 40)


async def test_what_cannot_be_ranked_is_told_and_tried_again_after_a_while(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(workers, "FIRST_PAUSE", 0.001)
    async with measuring() as (world, worker):
        data, world.api.data = world.api.data, None
        found = await world.after()
        assert "ConfigMap search/golden does not exist: create it" in found.failed
        assert world.condition("RankingQuality") == ("Unknown", "NotMeasured")
        world.api.data = data
        await world.after(20)
        assert (worker.asked, sample("runs_total", result="failed")) == (0, 1.0)
        found = await world.after(20)
        assert (worker.asked, found.failed) == (20, "")
        world.api.change('{"queries": [{"query": "q", "documents": ["a"], "labels": [1]}]}')
        found = await world.after(2 * HOUR)
        assert found.failed
        assert world.condition("RankingQuality") == ("Unknown", "CannotMeasure")
        assert world.quality["ndcg"] == 1.0, "what was known is not forgotten"


async def test_a_canary_that_comes_meanwhile_has_the_workers_to_itself():
    canary = {"strategy": "Canary", "steps": [5], "goldenSet": {"configMap": "golden"}}
    async with measuring(rollout=canary) as (world, worker):
        worker.go.clear()
        world.runs.look(world.observe())
        world.runs.start_due(world.session)
        await worker.begun.wait()
        world.want(MODEL_B, **world.spec)
        world.settle()
        await world.done()
        assert (world.quality, sample("runs_total", result="failed")) == ({}, 0.0)
        assert not world.runs._watched[KEY].busy


async def test_a_ranking_that_is_called_off_before_it_has_begun_holds_up_no_other():
    async with measuring() as (world, worker):
        world.runs.look(world.observe())
        world.runs.start_due(world.session)
        world.want(MODEL_A, **(world.spec | {"rollout": {"goldenSet": {"configMap": "other"}}}))
        world.runs.look(world.observe())
        await world.done()
        assert worker.asked == 0
        found = await world.after()
        assert (worker.asked, found.latest is not None) == (20, True)


async def test_a_worker_that_is_stopped_meanwhile_is_no_failure(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(workers, "TRIES", 1)
    async with measuring(replicas=2) as (world, worker):
        first, second = world.pods()
        World.put(world, PODS, second | {"status": second["status"] | {"podIP": "127.0.0.1:1"}})
        worker.status = 503
        worker.go.clear()
        world.runs.look(world.observe())
        world.runs.start_due(world.session)
        await worker.begun.wait()
        world.remove(PODS, first["metadata"]["name"])
        worker.go.set()
        await world.done()
        found = world.runs.look(world.observe())
        assert (found, sample("runs_total", result="failed")) == (Measured(), 0.0)
        worker.status = 200
        world.put(PODS, second)
        await world.after(5)
        assert world.quality == {}, "after a pause"
        await world.after(30)
        assert world.quality["ndcg"] == 1.0


async def test_another_golden_set_is_ranked_at_once_whatever_is_still_ranked():
    async with measuring() as (world, worker):
        worker.go.clear()  # a ranking may take ten minutes
        world.runs.look(world.observe())
        world.runs.start_due(world.session)
        await worker.begun.wait()
        world.want(MODEL_A, **(world.spec | {"rollout": {"goldenSet": {"configMap": "other", "metric": "mrr"}}}))
        world.runs.look(world.observe())
        await world.done()
        begun, found = worker.asked, world.runs.look(world.observe())
        assert (found, begun < 20) == (Measured(), True)
        worker.go.set()
        found = await world.after()
        assert found.latest is not None
        assert (worker.asked, found.latest.metric) == (begun + 20, "mrr")
        assert [sample("runs_total", result=result) for result in ("ok", "failed")] == [1.0, 0.0]
        assert (sample("minimum", measure="mrr"), sample("minimum", measure="ndcg@10")) == (0.9, None)
        world.want(MODEL_A, **(world.spec | {"rollout": {"goldenSet": {"configMap": "third", "metric": "mrr"}}}))
        await world.after()
        assert worker.asked == begun + 40


@pytest.mark.parametrize(
    ("data", "key", "told"),
    [
        ({}, None, "ConfigMap search/golden has no data: put the golden set under a key of it"),
        ({"a": "", "b": ""}, None, "ConfigMap search/golden has 2 keys: name one of them in key"),
        ({"a": ""}, "b", "ConfigMap search/golden has no key b: it has a"),
        ({f"k{n:05}": "" for n in range(50_000)}, "b", "has no key b: it has k00000, k00001, "),
    ],
    ids=["none", "which", "another", "many others"],
)
async def test_a_config_map_without_a_golden_set_is_told_with_what_to_do(
    data: dict[str, str], key: str | None, told: str
):
    source = {"configMap": "golden"} | ({"key": key} if key else {})
    async with measuring(rollout={"goldenSet": source}) as (world, _):
        world.api.data = data
        found = await world.after()
        assert told in found.failed
        assert len(found.failed) < 1000, "statuses have bounds"


async def test_other_content_of_the_same_golden_set_counts_when_it_is_due_and_another_key_at_once():
    async with measuring() as (world, worker):
        await world.after()
        assert world.api.data is not None
        (text,) = world.api.data.values()
        world.api.change(text)
        await world.after(60)
        assert worker.asked == 20
        await world.after(2 * HOUR)
        assert worker.asked == 40
        source = {"configMap": "golden", "key": "golden.json"}
        world.want(MODEL_A, **(world.spec | {"rollout": {"goldenSet": source}}))
        await world.after(60)
        assert worker.asked == 60


async def test_who_does_not_lead_ranks_nothing_and_who_has_led_stops():
    async with measuring() as (world, worker):
        world.leading = False
        await world.after()
        assert worker.asked == 0
        world.leading = True
        worker.go.clear()
        world.runs.start_due(world.session)
        await worker.begun.wait()
        (task,) = [one.task for one in world.runs._watched.values()]
        world.runs.reset()
        assert task is not None
        await asyncio.wait([task])
        assert (task.cancelled(), world.changed) == (True, [])


async def test_few_are_at_it_at_a_time_and_who_waits_longest_comes_first():
    async with measuring() as (world, worker):
        worker.go.clear()
        others = [f"other-{number}" for number in range(4)]
        for number, name in enumerate(others):
            body = world.store.get(RERANKERS, *KEY)
            assert body is not None
            last = QualityStatus(world.revision, f"2027-01-0{9 - number}T08:00:00Z", "ndcg@10", 1, 1.0, 1.0, 1.0)
            quality = {
                f: getattr(last, f) for f in ("revision", "time", "metric", "queries", "ndcg", "accuracy", "mrr")
            }
            metadata = body["metadata"] | {"name": name, "uid": f"uid-{name}"}
            world.put(RERANKERS, body | {"metadata": metadata, "status": body["status"] | {"quality": quality}})
            (pod,) = world.pods()
            label = pod["metadata"]["labels"] | {"rerank.dev/reranker": name}
            world.put(PODS, pod | {"metadata": pod["metadata"] | {"name": name, "labels": label}})
        for name in others:
            world.runs.look(_observed(world, name))
        world.now += 24 * HOUR
        world.runs.start_due(world.session)
        started = {key[1] for key, one in world.runs._watched.items() if one.task is not None}
        assert len(started) == AT_ONCE
        assert started == {NAME, "other-3"}, "one that was never ranked, and the one that was so longest ago"
        worker.go.set()
        for _ in range(3):
            await world.done()
            world.runs.start_due(world.session)
        await world.done()
        assert worker.asked == 20 * 5


def _observed(world: World, name: str) -> Observed:
    found = observe(world.store, (NAMESPACE, name))
    assert found is not None
    return found
