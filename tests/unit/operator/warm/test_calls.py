"""What calls to a warm pod's worker do about its answers: make room, ask again, find another pod, or rest.

The worker is a stand-in on an address of its own that answers as the genuine one does (whose own tests, and the
end-to-end ones, hold the two together); everything else is real.
"""

import asyncio
from collections.abc import AsyncIterator, Callable

import msgspec
import pytest
from aiohttp import web
from rerank_api import names, wire
from rerank_operator.controller.kinds import Key
from rerank_operator.warm import calls
from rerank_operator.warm.admin import ModelFact
from rerank_operator.warm.calls import OTHER_CALLS, Calls
from rerank_operator.warm.models import Job, Load, Look, Unload, Worker, place
from rerank_operator.warm.observe import WarmPod
from unit.operator.warm.pool import KEY, NOW, holding, model, pod, served

ADDRESS, TOKEN = "127.254.254.1", "the-token"


class StandIn:
    """Holds at most ``room`` models."""

    def __init__(self) -> None:
        self.models: list[str] = []
        self.room = 8
        self.slow = 0
        """So many loads are answered before they are done."""
        self.refusal: tuple[int, str] | None = None
        self.held: dict[str, asyncio.Event] = {}
        """Models whose loads take until the event."""
        self.loading: dict[str, int] = {}
        """Models that still load, and for how many calls."""
        self.asked: list[str] = []

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_get(wire.MODELS_PATH, self._list)
        app.router.add_put(wire.MODELS_PATH + "/{key}", self._put)
        app.router.add_delete(wire.MODELS_PATH + "/{key}", self._delete)
        return app

    async def _list(self, _: web.Request) -> web.Response:
        self.asked.append("list")
        facts = [{"key": key, "state": "ready", "memoryBytes": 1} for key in self.models]
        return web.json_response({"models": facts})

    async def _put(self, request: web.Request) -> web.Response:
        key = request.match_info["key"]
        self.asked.append(f"load {key}")
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return _refused(401, "unauthorized")
        assert int(request.headers[wire.HEADER_TIMEOUT]) > 0
        assert msgspec.json.decode(await request.read())["reranker"] in "ab"
        if key in self.held:
            await self.held[key].wait()
        if self.refusal is not None:
            return _refused(*self.refusal)
        if self.slow > 0:
            self.slow -= 1
            return _refused(504, "deadline")
        if len(self.models) >= self.room and key not in self.models:
            return _refused(507, "no_room")
        self.models = [*(one for one in self.models if one != key), key]
        return web.json_response({"key": key, "state": "ready"})

    async def _delete(self, request: web.Request) -> web.Response:
        key = request.match_info["key"]
        self.asked.append(f"unload {key}")
        if self.loading.get(key, 0) > 0:
            self.loading[key] -= 1
            return _refused(409, "loading")
        if key not in self.models:
            return _refused(404, "not_found")
        self.models.remove(key)
        return web.json_response({"key": key, "state": "unloaded"})


def _refused(status: int, code: str) -> web.Response:
    return web.json_response({"code": code, "message": f"it says {code}"}, status=status)


@pytest.fixture
async def worker() -> AsyncIterator[StandIn]:
    found = StandIn()
    runner = web.AppRunner(found.application(), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, ADDRESS, names.WORKER_PORT).start()
    yield found
    for event in found.held.values():
        event.set()
    await runner.cleanup()


class Rim:
    """The calls, and what they told."""

    def __init__(self) -> None:
        self.due: asyncio.Queue[Key] = asyncio.Queue()
        self.told: list[str] = []
        self.allowed = True
        self.wanted: Callable[[Job], bool] = lambda _: True
        self.calls = Calls(lambda: self.allowed, self.due.put_nowait, lambda _, job: self.wanted(job), self._failed)

    async def _failed(self, _pool: Key, _job: Load, why: str) -> None:
        self.told.append(why)

    async def ask(self, job: Job, token: str = TOKEN) -> None:
        self.calls.start(KEY, token, job)
        async with asyncio.timeout(20):
            assert await self.due.get() == KEY


@pytest.fixture
async def rim() -> AsyncIterator[Rim]:
    made = Rim()
    yield made
    await made.calls.close()


def here(**changes: str) -> WarmPod:
    return msgspec.structs.replace(pod(1), address=changes.get("address", ADDRESS))


def load(*evictable: str, most: int = 8, loan: float | None = NOW, where: WarmPod | None = None) -> Load:
    return Load(where or here(), model("a"), served("a").config, evictable, most, loan)


async def test_a_look_tells_the_models(worker: StandIn, rim: Rim):
    worker.models = [model("a")]
    await rim.ask(Look(here()))
    assert rim.calls.workers["uid-1"].ready == {model("a")}


async def test_a_load_for_a_loan_is_remembered_as_that_loans(worker: StandIn, rim: Rim):
    rim.calls.workers["uid-1"] = holding(model("b"))
    await rim.ask(load())
    known = rim.calls.workers["uid-1"]
    assert known.loaded == (model("a"), NOW)
    assert known.ready == {model("a"), model("b")}
    assert rim.calls.loaded_at("uid-1") is not None
    await rim.ask(load(loan=None))
    assert rim.calls.workers["uid-1"].loaded == (model("a"), NOW)


async def test_what_gives_way_goes_before_the_bound_is_broken(worker: StandIn, rim: Rim):
    worker.models = [model("b"), model("c")]
    rim.calls.workers["uid-1"] = holding(model("b"), model("c"))
    await rim.ask(load(model("c"), model("b"), most=2))
    assert worker.asked == [f"unload {model('c')}", f"load {model('a')}"]
    assert rim.calls.workers["uid-1"].ready == {model("a"), model("b")}


async def test_and_one_by_one_while_the_worker_has_no_room(worker: StandIn, rim: Rim):
    worker.models, worker.room = [model("b"), model("c"), model("d")], 2
    rim.calls.workers["uid-1"] = holding(model("b"), model("c"), model("d"))
    await rim.ask(load(model("gone"), model("d"), model("b"), model("c")))
    assert worker.models == [model("c"), model("a")]
    assert rim.calls.workers["uid-1"].ready == {model("c"), model("a")}
    assert not rim.calls.failures


async def test_a_process_that_has_just_begun_has_nothing_of_what_the_one_before_it_held(worker: StandIn, rim: Rim):
    rim.calls.workers["uid-1"] = holding(model("b"), restarts=0)
    await rim.ask(load(model("b"), most=1, where=msgspec.structs.replace(here(), restarts=1)))
    assert worker.asked == [f"load {model('a')}"]
    assert rim.calls.workers["uid-1"].ready == {model("a")}


async def test_what_does_not_fit_at_all_fails_and_is_told(worker: StandIn, rim: Rim):
    worker.room = 0
    await rim.ask(load())
    assert rim.told == ["it says no_room"]
    assert rim.calls.failures[model("a")].pods == {"uid-1": None}


async def test_a_load_that_takes_longer_than_a_call_is_waited_for(worker: StandIn, rim: Rim):
    worker.slow = 3
    await rim.ask(load())
    assert worker.asked == [f"load {model('a')}"] * 4
    assert model("a") in rim.calls.workers["uid-1"].ready


async def test_unless_nobody_wants_it_any_more(worker: StandIn, rim: Rim):
    worker.slow, rim.wanted = 3, lambda _: not worker.asked
    await rim.ask(load())
    assert worker.asked == [f"load {model('a')}"]
    assert not rim.calls.workers
    assert not rim.calls.failures


async def test_a_first_failure_is_tried_elsewhere_at_once_and_later_ones_wait_longer_each_time(
    worker: StandIn, rim: Rim
):
    worker.refusal = (400, "invalid_request")
    waits = []
    for _ in range(12):
        await rim.ask(load())
        failure = rim.calls.failures[model("a")]
        waits.append(round(failure.until - failure.at))
    assert waits == [0, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]
    worker.refusal = None
    await rim.ask(load())
    assert not rim.calls.failures


async def test_a_preload_that_fails_is_about_this_pod_alone(worker: StandIn, rim: Rim):
    worker.refusal = (507, "no_room")
    await rim.ask(load(loan=None))
    assert rim.calls.failures.keys() == {place("uid-1", model("a"))}
    assert rim.told == []


@pytest.mark.parametrize(
    "ask",
    [
        lambda rim: rim.ask(load(where=here(address="127.254.254.9"))),
        lambda rim: rim.ask(load(), token="of-another-key"),
        lambda rim: rim.ask(Look(here(address="127.254.254.9"))),
        lambda rim: rim.ask(Unload(here(address="127.254.254.9"), model("a"))),
    ],
)
async def test_who_does_not_answer_or_does_not_know_us_rests_and_no_model_is_blamed(
    worker: StandIn, rim: Rim, ask: Callable[[Rim], asyncio.Future[None]]
):
    await ask(rim)
    assert rim.calls.failures.keys() == {place("uid-1", "")}
    assert rim.told == []
    await rim.ask(Look(here()))
    assert not rim.calls.failures


async def test_what_is_not_there_need_not_be_unloaded(worker: StandIn, rim: Rim):
    rim.calls.workers["uid-1"] = holding(model("b"))
    await rim.ask(Unload(here(), model("b")))
    assert rim.calls.workers["uid-1"].ready == frozenset()
    assert not rim.calls.failures


async def test_who_does_not_lead_asks_for_nothing(worker: StandIn, rim: Rim):
    rim.allowed = False
    await rim.ask(load())
    assert worker.asked == []


async def test_one_call_a_pod(worker: StandIn, rim: Rim):
    rim.calls.start(KEY, TOKEN, load())
    await rim.ask(Look(here()))
    assert worker.asked == [f"load {model('a')}"]


# --- what must not wait for what ---


def preload(name: str, where: WarmPod | None = None) -> Load:
    return Load(where or here(), model(name), served(name).config, (), 8)


async def wait_until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 (the stand-in and the calls have no event for each)
            await asyncio.sleep(0.005)


async def test_looks_and_loads_for_loans_do_not_wait_for_preloads(worker: StandIn, rim: Rim):
    worker.held[model("b")] = asyncio.Event()
    for i in range(OTHER_CALLS + 1):
        rim.calls.start(KEY, TOKEN, preload("b", msgspec.structs.replace(here(), uid=f"filling-{i}")))
    await wait_until(lambda: worker.asked.count(f"load {model('b')}") == OTHER_CALLS)
    await rim.ask(Look(here()))
    assert "uid-1" in rim.calls.workers
    await rim.ask(load())
    assert rim.calls.workers["uid-1"].ready == {model("a")}


async def test_what_has_waited_for_its_turn_is_not_asked_if_it_is_not_wanted_then(worker: StandIn, rim: Rim):
    worker.held[model("b")] = asyncio.Event()
    for i in range(OTHER_CALLS):
        rim.calls.start(KEY, TOKEN, preload("b", msgspec.structs.replace(here(), uid=f"filling-{i}")))
    rim.calls.start(KEY, TOKEN, preload("a"))
    await wait_until(lambda: len(worker.asked) == OTHER_CALLS)
    rim.wanted = lambda job: job.pod.uid != "uid-1"
    worker.held[model("b")].set()
    await wait_until(lambda: not rim.calls.running)
    assert f"load {model('a')}" not in worker.asked


async def test_a_loans_load_does_not_wait_for_what_its_pod_has_in_hand(worker: StandIn, rim: Rim):
    rim.calls.workers["uid-1"] = holding()
    worker.held[model("b")] = asyncio.Event()
    rim.calls.start(KEY, TOKEN, preload("b"))
    await wait_until(lambda: bool(worker.asked))
    rim.calls.start(KEY, TOKEN, preload("a"))  # nothing but a loan's load takes its place
    rim.calls.start(KEY, TOKEN, load())
    await wait_until(lambda: not rim.calls.running)
    assert worker.asked == [f"load {model('b')}", f"load {model('a')}"]
    known = rim.calls.workers["uid-1"]
    assert (known.loaded, known.asked) == ((model("a"), NOW), 0.0)  # a look is due: the other load goes on
    assert not rim.calls.failures


async def test_what_was_cancelled_before_it_began_does_not_stay_in_hand(worker: StandIn, rim: Rim):
    rim.calls.start(KEY, TOKEN, load())
    rim.calls.clear()
    assert not rim.calls.running
    await rim.ask(Look(here()))
    assert worker.asked == ["list"]


async def test_a_model_that_still_loads_is_asked_to_go_again_later(
    worker: StandIn, rim: Rim, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(calls, "LOADING_SECONDS", 0.01)
    worker.models, worker.room, worker.loading = [model("b")], 1, {model("b"): 2}
    rim.calls.workers["uid-1"] = holding(model("b"))
    await rim.ask(load(model("b")))
    assert worker.models == [model("a")]
    assert not rim.calls.failures


async def test_and_is_known_to_load_until_the_next_look(worker: StandIn, rim: Rim):
    worker.models, worker.loading = [model("b")], {model("b"): 1}
    rim.calls.workers["uid-1"] = holding(model("b"))
    await rim.ask(Unload(here(), model("b")))
    assert rim.calls.workers["uid-1"].models == (ModelFact(model("b"), "loading"),)
    assert not rim.calls.failures


async def test_pods_that_are_gone_are_forgotten(worker: StandIn, rim: Rim):
    await rim.ask(load())
    rim.calls.workers["uid-2"] = Worker(0, NOW)
    rim.calls.keep({"uid-2"})
    assert rim.calls.workers.keys() == {"uid-2"}
    assert rim.calls.loaded_at("uid-1") is None
