"""Asking gateways for their answers, over HTTP: frozen ones, restarted ones, nonsense; nothing twice, nothing lost."""

import asyncio
from collections.abc import AsyncIterator, Callable

import aiohttp
import msgspec
import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st
from rerank_api.answers import ANSWERS_PATH, Answers, Mirrored, MirroredAnswers, RevisionAnswers
from rerank_api.answers import KEPT as KEPT_BY_GATEWAYS
from rerank_gateway.answers import WARM_AFTER, AnswerLog, add_answers
from rerank_gateway.cluster.state import Endpoint
from rerank_operator.rollout import answers as module
from rerank_operator.rollout.answers import (
    FORGOTTEN_AFTER,
    MOST_BYTES,
    Cursors,
    GatewayCursor,
    Polled,
    _interleaved,
    _merged,
    _new,
    poll,
)
from rerank_operator.rollout.judge.windows import Window

KEY = ("search", "products")
OLD, NEW = "aaaa", "bbbb"
KEPT = 5
"""Of each revision, by the gateways below."""


class Gateway:
    """A gateway's admin port, which keeps answers as gateways do."""

    def __init__(self, process: str) -> None:
        self.process = process
        self.answers: dict[str, list[tuple[float, bool]]] = {}
        self.mirrored: dict[str, list[Mirrored]] = {}
        self.asked: list[web.Request] = []
        self.frozen = False
        self.instead: Callable[[], web.Response] | None = None
        self.address = ""

    def answered(self, revision: str, *seconds: float, failed: bool = False) -> None:
        self.answers.setdefault(revision, []).extend((each, failed) for each in seconds)

    def mirrors(self, *seconds: float) -> None:
        self.mirrored.setdefault(NEW, []).extend(Mirrored(each, each) for each in seconds)

    def restart(self, process: str) -> None:
        self.process, self.answers, self.mirrored = process, {}, {}

    async def handle(self, request: web.Request) -> web.Response:
        self.asked.append(request)
        if self.frozen:
            await asyncio.Event().wait()
        if self.instead is not None:
            return self.instead()
        assert (request.query["namespace"], request.query["name"]) == KEY
        after = _places(request.query.getall("after", []))
        told = Answers(self.process)
        for revision, all_of_them in self.answers.items():
            begin = min(max(after.get(revision, 0), len(all_of_them) - KEPT, 0), len(all_of_them))
            new = all_of_them[begin:]
            failed = [place for place, (_, failed) in enumerate(new) if failed]
            told.revisions.append(RevisionAnswers(revision, len(all_of_them), [seconds for seconds, _ in new], failed))
        after = _places(request.query.getall("mirrored-after", []))
        for revision, mirrored in self.mirrored.items():
            told.mirrored.append(MirroredAnswers(revision, len(mirrored), mirrored[after.get(revision, 0) :]))
        return web.Response(body=msgspec.json.encode(told), content_type="application/json")


def _places(given: list[str]) -> dict[str, int]:
    return {revision: int(place) for revision, _, place in (one.rpartition(":") for one in given)}


class World:
    def __init__(self, session: aiohttp.ClientSession, gateways: list[Gateway]) -> None:
        self.session, self.gateways = session, gateways
        self.cursors = Cursors()
        self.now = 1000.0

    async def poll(self, *, from_start: bool = False, only: Gateway | None = None) -> Polled:
        addresses = [one.address for one in self.gateways if only is None or one is only]
        before = msgspec.json.encode(self.cursors)
        found = await poll(
            self.session,
            addresses,
            KEY,
            OLD,
            NEW,
            self.cursors,
            from_start=from_start,
            clock=lambda: self.now,
        )
        assert msgspec.json.encode(self.cursors) == before  # what was given is not changed
        self.cursors = msgspec.json.decode(msgspec.json.encode(found.cursors), type=Cursors)
        return found


@pytest.fixture
async def world() -> AsyncIterator[World]:
    gateways, runners = [Gateway("p0"), Gateway("p1")], []
    for gateway in gateways:
        app = web.Application()
        app.router.add_get(ANSWERS_PATH, gateway.handle)
        runner = web.AppRunner(app, shutdown_timeout=0.01)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        gateway.address = f"127.0.0.1:{runner.addresses[0][1]}"
        runners.append(runner)
    gateways.sort(key=lambda one: one.address)
    async with aiohttp.ClientSession() as session:
        yield World(session, gateways)
    for runner in runners:
        await runner.cleanup()


async def test_what_was_before_the_first_poll_does_not_count_and_what_comes_after_does_once(world: World):
    one = world.gateways[0]
    one.answered(OLD, 1, 2)
    one.answered(NEW, 3)
    one.mirrors(1)
    found = await world.poll()
    assert (found.stable, found.canary, found.mirrored) == (Window([], []), Window([], []), [])
    assert (found.heard, found.missed) == (2, {})
    one.answered(OLD, 4)
    one.answered(OLD, 5, failed=True)
    one.answered(NEW, 6, failed=True)
    one.mirrors(7)
    found = await world.poll()
    assert (found.stable, found.canary) == (Window([4, 5], [1]), Window([6], [0]))
    assert found.mirrored == [Mirrored(7, 7)]
    found = await world.poll()
    assert (found.stable, found.canary, found.mirrored) == (Window([], []), Window([], []), [])


async def test_from_the_start_stables_kept_answers_count_and_the_canarys_do_not(world: World):
    one = world.gateways[0]
    one.answered(OLD, 1, 2, 3, 4, 5, 6, 7)
    one.answered(NEW, 8)
    found = await world.poll(from_start=True)
    assert (found.stable, found.canary) == (Window([3, 4, 5, 6, 7], []), Window([], []))
    one.answered(NEW, 9)
    found = await world.poll(from_start=True)
    assert (found.stable, found.canary) == (Window([], []), Window([9], []))


async def test_a_revision_without_answers_at_the_first_poll_counts_from_its_first(world: World):
    await world.poll()
    world.gateways[0].answered(NEW, 1)
    world.gateways[0].mirrors(2)
    found = await world.poll()
    assert found.canary == Window([1], [])
    assert found.mirrored == [Mirrored(2, 2)]


async def test_a_frozen_gateway_is_left_out_and_its_answers_come_later(world: World, monkeypatch: pytest.MonkeyPatch):
    await world.poll()
    monkeypatch.setattr(module, "SECONDS", 0.2)
    frozen, other = world.gateways
    frozen.answered(OLD, 1)
    other.answered(OLD, 2)
    frozen.frozen = True
    found = await world.poll()
    assert found.stable == Window([2], [])
    assert (found.heard, found.missed) == (1, {frozen.address: "no answer in 0.2 s"})
    frozen.frozen = False
    frozen.answered(OLD, 3)
    found = await world.poll()
    assert found.stable == Window([1, 3], [])
    assert found.heard == 2


async def test_a_restarted_gateway_is_another_one(world: World):
    one = world.gateways[0]
    one.answered(OLD, 1, 2, 3)
    await world.poll()
    one.answered(OLD, 4)
    one.restart("p9")
    one.answered(OLD, 5)  # it may have been another rollout's
    found = await world.poll()
    assert found.stable == Window([], [])
    assert "not" not in " ".join(found.missed.values())
    one.answered(OLD, 6)
    assert (await world.poll()).stable == Window([6], [])


async def test_a_restarted_gateway_tells_its_kept_answers_from_the_start(world: World):
    one = world.gateways[0]
    one.answered(OLD, 1, 2, 3)
    await world.poll()
    one.restart("p9")
    one.answered(OLD, 4, 5, 6, 7)  # asked for what is after 3, it would tell the last one only
    assert (await world.poll(from_start=True)).stable == Window([4, 5, 6, 7], [])


async def test_processes_that_change_their_addresses_lose_and_repeat_nothing(world: World):
    one, other = world.gateways
    one.answered(OLD, 1, 2, 3)
    await world.poll()
    one.process, other.process = other.process, one.process
    one.answers, other.answers = other.answers, one.answers
    one.answered(OLD, 4)
    other.answered(OLD, 5)
    found = await world.poll()
    assert sorted(found.stable.seconds) == [4, 5]
    assert (await world.poll()).stable == Window([], [])


async def test_one_process_at_two_addresses_is_counted_once(world: World):
    one, other = world.gateways
    await world.poll()
    other.process = one.process
    other.answers = one.answers
    one.answered(OLD, 1, 2)
    found = await world.poll()
    assert found.stable == Window([1, 2], [])
    assert found.heard == 2


async def test_a_gateway_that_has_forgotten_the_reranker_begins_at_its_newest(world: World):
    one = world.gateways[0]
    one.answered(OLD, 1, 2, 3)
    await world.poll()
    one.answers.clear()
    assert (await world.poll()).stable == Window([], [])
    one.answered(OLD, 4)
    assert (await world.poll()).stable == Window([], [])
    one.answered(OLD, 5)
    assert (await world.poll()).stable == Window([5], [])


async def test_more_answers_than_a_gateway_keeps_are_lost_and_nothing_else(world: World):
    one = world.gateways[0]
    await world.poll()
    one.answered(OLD, *range(1, 9))
    assert (await world.poll()).stable == Window([4, 5, 6, 7, 8], [])


def _answers(**more: object) -> bytes:
    revision = {"revision": OLD, "next": 3, "seconds": [1, 2], "failed": [0]} | more
    return msgspec.json.encode({"gateway": "p0", "revisions": [revision]})


def _mirrored(**more: object) -> bytes:
    one = {"stableSeconds": 1, "canarySeconds": 1} | more
    return msgspec.json.encode({"gateway": "p0", "mirrored": [{"revision": NEW, "next": 1, "answers": [one]}]})


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"hello", "malformed"),
        (b"\xff", "not understood: "),
        (b"[]", "Expected `object`"),
        (b'{"revisions": []}', "missing required field `gateway`"),
        (b" " * (MOST_BYTES + 1), f"longer than {MOST_BYTES} bytes"),
        (_answers(next=1), "2 answers, of 1 in all"),
        (_answers(seconds=[-1, 1]), "seconds must be from 0"),
        (_answers(seconds=[1e9, 1]), "seconds must be from 0"),
        (_answers(failed=[2]), "failed must be ascending places"),
        (_answers(failed=[1, 0]), "failed must be ascending places"),
        (_answers(failed=[-1]), "failed must be ascending places"),
        (_mirrored(canarySeconds=-1), "mirrored: seconds must be"),
        (_mirrored(agreement=2), "mirrored: agreement must be"),
        (
            b'{"gateway": "p0", "mirrored": [{"revision": "bbbb", "next": 0, "answers": '
            b'[{"stableSeconds": 1, "canarySeconds": 1}]}]}',
            "mirrored: 1 answers, of 0 in all",
        ),
    ],
)
async def test_nonsense_is_left_out_as_a_whole_and_loses_nothing(world: World, body: bytes, told: str):
    one, other = world.gateways
    await world.poll()
    one.instead = lambda: web.Response(body=body)
    one.answered(OLD, 1)
    other.answered(OLD, 2)
    found = await world.poll()
    assert found.stable == Window([2], [])
    assert told in found.missed[one.address]
    one.instead = None
    assert (await world.poll()).stable == Window([1], [])


async def test_an_error_a_redirect_and_nobody_there_are_told(world: World):
    one = world.gateways[0]
    for status in (404, 503, 307):
        one.instead = lambda status=status: web.Response(status=status, headers={"Location": "/elsewhere"})
        assert (await world.poll()).missed == {one.address: f"not understood: status {status}"}
    found = await poll(world.session, ["127.0.0.1:9"], KEY, OLD, NEW, Cursors())
    assert (found.heard, list(found.missed)) == (0, ["127.0.0.1:9"])
    found = await poll(world.session, [], KEY, OLD, NEW, Cursors())
    assert (found.heard, found.missed) == (0, {})


async def test_a_process_that_was_not_heard_for_an_hour_is_forgotten(world: World):
    one = world.gateways[0]
    await world.poll()
    world.now += FORGOTTEN_AFTER
    await world.poll(only=one)
    assert len(world.cursors.gateways) == 2
    world.now += 1
    await world.poll(only=one)
    assert world.cursors.gateways.keys() == {one.process}
    # An operator that was away for longer has forgotten nobody who answers now.
    world.now += 2 * FORGOTTEN_AFTER
    one.answered(OLD, 1)
    assert (await world.poll()).stable == Window([1], [])


async def test_cursors_hold_what_is_asked_for_and_nothing_of_earlier_revisions(world: World):
    process = world.gateways[0].process
    world.cursors = Cursors({process: GatewayCursor(world.gateways[0].address, world.now, {"cccc": 7}, {"cccc": 7})})
    await world.poll()
    assert world.cursors.gateways[process].places == {OLD: 0, NEW: 0}
    assert world.cursors.gateways[process].mirrored == {NEW: 0}


async def test_two_gateways_answers_are_interleaved(world: World):
    one, other = world.gateways
    await world.poll()
    one.answered(OLD, 1, 2, 3, 4)
    other.answered(OLD, 9, 9, failed=True)
    found = await world.poll()
    assert found.stable == Window([1, 9, 2, 3, 9, 4], [1, 4])


@given(st.lists(st.lists(st.booleans(), max_size=30), max_size=4))
def test_interleaving_keeps_every_answer_and_each_gateways_order(parts: list[list[bool]]):
    windows = [
        Window(
            [number + place / 100 for place in range(len(part))], [place for place, failed in enumerate(part) if failed]
        )
        for number, part in enumerate(parts)
    ]
    both = _merged(windows)
    for number, part in enumerate(parts):
        own = [place for place, seconds in enumerate(both.seconds) if int(seconds) == number]
        assert [both.seconds[place] for place in own] == windows[number].seconds
        assert [place in both.failed for place in own] == part
    assert list(both.failed) == sorted(both.failed)
    assert len(both.seconds) == sum(map(len, parts))


@given(st.integers(1, 200), st.integers(1, 200))
@settings(max_examples=50)
def test_interleaving_is_even(one: int, other: int):
    both = _interleaved([[0] * one, [1] * other])
    for end in range(len(both) + 1):
        assert abs(both[:end].count(0) - end * one / (one + other)) <= 1.5


@pytest.mark.parametrize(
    ("end", "begin", "length", "new"),
    [(10, 10, 5, 0), (10, 7, 5, 3), (10, 2, 5, 5), (10, 12, 5, 0), (0, 0, 0, 0)],
    ids=["none", "some", "some were not kept", "it counts anew", "empty"],
)
def test_how_many_are_new(end: int, begin: int, length: int, new: int):
    assert _new(end, begin, length) == new


async def test_it_understands_the_gateways_own_log():
    clock = [0.0]
    told = AnswerLog("p", lambda: clock[0])
    worker = Endpoint("pod", *KEY, NEW, "10.0.0.1")

    def answered(seconds: float, *, failed: bool = False) -> None:
        began = clock[0]
        clock[0] += seconds
        told.attempted(worker, began, failed=failed)

    for _ in range(WARM_AFTER):
        answered(9.0)
    app = web.Application()
    add_answers(app, told)
    runner = web.AppRunner(app, shutdown_timeout=0.01)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    address = f"127.0.0.1:{runner.addresses[0][1]}"
    try:
        async with aiohttp.ClientSession() as session:
            found = await poll(session, [address], KEY, OLD, NEW, Cursors())
            assert (found.heard, found.canary) == (1, Window([], []))
            answered(0.25)
            answered(0.5, failed=True)
            told.mirrored(worker, Mirrored(0.1, 0.2, agreement=0.5, drift=0.1))
            found = await poll(session, [address], KEY, OLD, NEW, found.cursors)
            assert (found.stable, found.canary) == (Window([], []), Window([0.25, 0.5], [1]))
            assert found.mirrored == [Mirrored(0.1, 0.2, agreement=0.5, drift=0.1)]
            for _ in range(KEPT_BY_GATEWAYS + 9):
                answered(0.125)
            found = await poll(session, [address], KEY, OLD, NEW, found.cursors)
            assert found.canary == Window([0.125] * KEPT_BY_GATEWAYS, [])
            assert (await poll(session, [address], KEY, OLD, NEW, found.cursors)).canary == Window([], [])
    finally:
        await runner.cleanup()
