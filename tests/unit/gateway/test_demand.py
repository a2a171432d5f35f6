"""The stream of demand: what it tells, when, to whom, and what it does about readers that do not read."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rerank_api import wire
from rerank_api.demand import DEMAND_PATH, DemandLine, RerankerDemand, decode_line, encode_line
from rerank_gateway import demand as demand_module
from rerank_gateway.cluster.state import Endpoint, Policy, RoutingTable, build_table
from rerank_gateway.demand import Demand
from rerank_gateway.routing import Limits
from rerank_gateway.waiting import Queue, Queues, Ticket

from .conftest import House, Worker, until

FAR = 1e9


class Told:
    """What a reader has learnt from its lines."""

    def __init__(self) -> None:
        self.lines: list[DemandLine] = []
        self.states: dict[str, RerankerDemand] = {}
        self.ended = False

    def take(self, line: DemandLine) -> None:
        self.lines.append(line)
        if line.full:
            self.states = {}
        self.states |= {state.name: state for state in line.rerankers}

    @property
    def products(self) -> RerankerDemand:
        return self.states["products"]


@asynccontextmanager
async def reading(house: House, address: str = "127.0.0.1") -> AsyncGenerator[Told]:
    """Reads the stream from that address until the block ends."""
    told = Told()

    async def read() -> None:
        limits = aiohttp.ClientTimeout(total=None)
        connector = aiohttp.TCPConnector(local_addr=(address, 0))
        async with (
            aiohttp.ClientSession(connector=connector, timeout=limits) as client,
            client.get(house.admin_url + DEMAND_PATH) as response,
        ):
            assert response.status == 200
            with contextlib.suppress(aiohttp.ClientError):
                async for line in response.content:
                    told.take(decode_line(line))
        told.ended = True

    task = asyncio.create_task(read())
    try:
        await until(lambda: bool(told.lines) or task.done(), "the first line")
        yield told
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_the_first_line_tells_everything_the_next_ones_what_changed(house: House) -> None:
    worker = await house.worker()
    house.source.set([house.policy, Policy("search", "other")], [worker.endpoint()])
    async with reading(house) as told:
        first = told.lines[0]
        assert first.full
        assert {state.name for state in first.rerankers} == {"products", "other"}
        assert told.products == RerankerDemand(
            "search", "products", 0, 0, 0, 0, 0, 0, outstanding={worker.endpoint().uid: 0}
        )
        assert (await house.rerank(path="/search/products/rerank"))[0] == 200
        await until(lambda: told.products.last_ended is not None, "the line after the request")
        assert told.products.arrived_requests == 1
        assert told.products.arrived_tokens > 0
        assert abs((told.products.last_ended or 0) - time.time()) < 60
        later = told.lines[1:]
        assert not any(line.full for line in later)
        assert {state.name for line in later for state in line.rerankers} == {"products"}
        assert {line.gateway for line in told.lines} == {first.gateway}


async def test_a_waiting_request_is_told_at_once_and_what_it_waits_for(house: House) -> None:
    before = time.time()
    async with reading(house) as told:
        request = house.rerank()
        await until(lambda: told.products.queued == 1, "the waiting request")
        state = told.products
        assert state.queued_tokens > 0
        assert state.waking_since is not None
        assert state.waking_since >= before - 1
        assert state.outstanding == {}

        go_on = asyncio.Event()

        async def wait(worker: Worker, query: wire.ScoreRequest) -> None:
            await go_on.wait()

        worker = await house.worker(behave=wait)
        worker.capacity = 5000
        house.serve(worker)
        await until(lambda: told.products.in_flight == 1, "the request at its worker")
        state = told.products
        assert (state.queued, state.queued_tokens, state.waking_since, state.capacity) == (0, 0, None, None)
        assert state.in_flight_tokens > 0
        assert state.outstanding == {worker.endpoint().uid: state.in_flight_tokens}
        go_on.set()
        assert (await request)[0] == 200
        await until(lambda: told.products.in_flight == 0, "the end of the request")
        assert told.products.outstanding == {worker.endpoint().uid: 0}
        assert told.products.capacity == 5000


async def test_it_lives_when_nothing_happens(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demand_module, "HEARTBEAT", 0.01)
    async with reading(house) as told:
        await until(lambda: len(told.lines) > 3, "heartbeats")
        assert all(line.rerankers == [] and not line.full for line in told.lines[1:])
        assert told.lines[1].sent <= told.lines[2].sent


async def test_lines_keep_their_distance(open_house, monkeypatch: pytest.MonkeyPatch) -> None:
    interval = 0.05
    monkeypatch.setattr(demand_module, "INTERVAL", interval)
    house = await open_house(wall=time.monotonic)
    house.serve(await house.worker())
    start = time.monotonic()
    async with reading(house) as told:
        while len(told.lines) < 6:
            assert (await house.rerank())[0] == 200
        for number, line in enumerate(told.lines):
            assert line.sent >= start + number * interval


async def test_many_readers_are_told_the_same(house: House) -> None:
    async with reading(house) as first, reading(house) as second:
        request = house.rerank()
        await until(lambda: first.products.queued == second.products.queued == 1, "both are told")
        assert await house.metric("rerank_gateway_demand_readers") == 2
        request.cancel()
        await until(lambda: first.products.queued == second.products.queued == 0, "both are told of the end")
    async with reading(house) as third:
        assert third.products.arrived_requests == 1
    await house.until_metric("rerank_gateway_demand_readers", 0)


async def test_too_many_readers_are_refused(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demand_module, "MAX_READERS", 1)
    async with reading(house, "127.0.0.2") as told, house.client.get(house.admin_url + DEMAND_PATH) as response:
        assert response.status == 503
        assert (await response.json())["error"]["code"] == "too_many_readers"
        assert not told.ended


async def test_an_address_that_opens_more_and_more_streams_loses_its_oldest_and_nobody_elses(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anyone may read; 32 streams of any pod would else keep the operator out for ever, and nothing would wake."""
    monkeypatch.setattr(demand_module, "MAX_READERS_OF_ADDRESS", 2)
    async with AsyncExitStack() as stack:
        operator = await stack.enter_async_context(reading(house))
        greedy = [await stack.enter_async_context(reading(house, "127.0.0.2")) for _ in range(5)]
        await until(lambda: all(told.ended for told in greedy[:3]), "the end of the oldest")
        assert house.gateway._demand.readers == 3
        house.source.set([house.policy, Policy("search", "other")])
        for told in (operator, *greedy[3:]):
            await until(lambda told=told: "other" in told.states, "those that are left are told")
            assert not told.ended


async def test_when_all_places_are_taken_the_address_that_has_most_gives_one(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demand_module, "MAX_READERS", 4)
    async with AsyncExitStack() as stack:
        greedy = [await stack.enter_async_context(reading(house, "127.0.0.2")) for _ in range(4)]
        operator = await stack.enter_async_context(reading(house))
        await until(lambda: greedy[0].ended, "the end of the oldest")
        assert not any(told.ended for told in (operator, *greedy[1:]))
        assert house.gateway._demand.readers == 4


async def test_streams_that_nobody_reads_give_their_places_at_once(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demand_module, "MAX_READERS_OF_ADDRESS", 1)
    house.source.set([Policy("search", f"reranker-{number:04}") for number in range(3000)])
    demand, port = house.gateway._demand, house.gateway.admin_port
    with _unread(port):
        await until(lambda: demand.readers == 1, "the one that does not read")
        (first,) = demand._readers
        with _unread(port):
            await until(lambda: first not in demand._readers, "it is let go")
            assert demand.readers == 1
            assert first.transport is None or first.transport.is_closing()


async def test_only_get(house: House) -> None:
    async with house.client.head(house.admin_url + DEMAND_PATH) as response:
        assert response.status == 405


def _unread(port: int) -> socket.socket:
    """Asks for the stream and reads nothing, with the least of a buffer."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", port))
    connection.sendall(f"GET {DEMAND_PATH} HTTP/1.1\r\nHost: gateway\r\n\r\n".encode())
    return connection


async def test_a_slow_reader_gets_the_latest_and_nothing_is_kept_for_it(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demand_module, "INTERVAL", 0.0)
    rounds = 60
    policies = [Policy("search", f"reranker-{number:04}") for number in range(300)]

    def publish(number: int) -> None:
        house.source.set(policies, [Endpoint(f"round-{number}", "search", p.name, "one", "10.0.0.1") for p in policies])

    publish(0)
    gateway = house.gateway
    with _unread(gateway.admin_port) as connection:
        await until(lambda: gateway._demand.readers == 1, "the reader")
        for number in range(1, rounds + 1):
            publish(number)
            await asyncio.sleep(0)
        reader, writer = await asyncio.open_connection(sock=connection.dup(), limit=2**24)
        lines: list[DemandLine] = []
        async with asyncio.timeout(30):
            assert b"200" in await reader.readline()
            while not (lines and any(f"round-{rounds}" in state.outstanding for state in lines[-1].rerankers)):
                line = await reader.readuntil(b"\n")
                if line.startswith(b"{"):
                    lines.append(decode_line(line))
        writer.close()
    assert lines[0].full
    # A line is about 60 kB: one on its way, one that the kernel has in part, one that was made just before the end.
    assert len(lines) < 10


async def test_a_frozen_reader_is_let_go(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demand_module, "WRITE_TIMEOUT", 0.05)
    house.source.set([Policy("search", f"reranker-{number:04}") for number in range(3000)])
    gateway = house.gateway
    with _unread(gateway.admin_port):
        await until(lambda: gateway._demand.readers == 1, "the reader")
        await until(lambda: gateway._demand.readers == 0, "it is let go")


async def test_draining_goes_on_telling_until_requests_ended_and_then_ends_the_stream(
    open_house, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demand_module, "HEARTBEAT", 0.05)
    house = await open_house(shutdown_delay=30.0, drain_timeout=60.0)
    go_on, hurry = asyncio.Event(), asyncio.Event()

    async def wait(worker: Worker, query: wire.ScoreRequest) -> None:
        await go_on.wait()

    worker = await house.worker(behave=wait)
    house.serve(worker, timeout=60.0)
    request = house.rerank()
    await until(lambda: len(worker.seen) == 1, "the request is at the worker")
    async with reading(house) as told:
        stopping = asyncio.create_task(house.gateway.stop(hurry))
        await until(lambda: house.gateway.draining, "the gateway is draining")
        late = house.rerank()
        await until(lambda: told.products.in_flight == 2, "what comes while it drains counts")
        hurry.set()
        count = len(told.lines)
        await until(lambda: len(told.lines) > count + 1, "lines while the API is closed")
        assert told.products.in_flight == 2
        assert not told.ended
        go_on.set()
        assert [(await request)[0], (await late)[0]] == [200, 200]
        await until(lambda: told.ended, "the end of the stream")
        await stopping
        assert told.products.in_flight == 0
        assert told.products.arrived_requests == 2


async def test_open_streams_do_not_hold_up_the_end(open_house, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the admin port waits for its handlers as long as it may, and cuts them off."""
    cut_off = []
    tell = Demand._tell

    async def watched(self: Demand, *arguments: object) -> None:
        try:
            await tell(self, *arguments)  # ty: ignore[invalid-argument-type]
        except asyncio.CancelledError:
            cut_off.append(1)
            raise

    monkeypatch.setattr(Demand, "_tell", watched)
    house = await open_house()
    async with reading(house) as told:
        await house.gateway.stop(asyncio.Event())
        await until(lambda: told.ended, "the end of the stream")
    assert cut_off == []


# Without HTTP: what lines say.


def _demand() -> tuple[Queues, Demand]:
    queues = Queues(Limits(), time.monotonic, lambda: 7.0)
    demand = Demand(queues, lambda: 7.0)
    queues.on_change = demand.touched
    return queues, demand


def _publish(queues: Queues, demand: Demand, table: RoutingTable) -> None:
    queues.update(table)
    demand.update(table)


ONE = Endpoint("one", "ns", "a", "r", "10.0.0.1")


async def test_counters_outlive_the_reranker() -> None:
    queues, demand = _demand()
    there, gone = build_table([Policy("ns", "a")], [ONE]), build_table([], [])
    _publish(queues, demand, there)
    for expected in (1, 2, 3):
        queue = queues.of(there.routes["ns", "a"])
        ticket = Ticket(10, FAR)
        endpoint = await queue.acquire(ticket)
        line, version = demand.line(None)
        state = line.rerankers[0]
        assert (state.arrived_requests, state.arrived_tokens, state.in_flight) == (expected, 10 * expected, 1)

        _publish(queues, demand, gone)
        line, version = demand.line(version)
        assert [(state.queued, state.in_flight, state.arrived_requests) for state in line.rerankers] == [
            (0, 0, expected)
        ]
        assert demand.line(None)[0].rerankers == []
        queue.release(ticket, endpoint)  # ends after its Reranker did: nobody's demand
        assert demand.line(version)[0].rerankers == []
        _publish(queues, demand, there)
        assert demand.line(version)[0].rerankers[0].arrived_requests == expected


async def test_what_is_kept_of_deleted_rerankers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demand_module, "MAX_REMEMBERED", 2)
    queues, demand = _demand()
    for name in "abcde":
        _publish(queues, demand, build_table([Policy("ns", name)], []))
        demand.line(None)
    _publish(queues, demand, build_table([Policy("ns", "z")], []))
    assert [state.name for state in demand.line(0)[0].rerankers] == ["d", "e", "z"]


async def test_a_look_without_a_change_makes_no_line() -> None:
    queues, demand = _demand()
    table = build_table([Policy("ns", "a")], [ONE])
    _publish(queues, demand, table)
    queues.of(table.routes["ns", "a"])
    version = demand.line(None)[1]
    _publish(queues, demand, table)
    assert demand.line(version)[0].rerankers == []


EVENTS = st.lists(
    st.tuples(st.sampled_from(["come", "end", "create", "delete", "worker", "read"]), st.integers(0, 2)), max_size=40
)


@given(EVENTS)
def test_whenever_a_reader_reads_it_has_what_a_full_line_tells(events: list[tuple[str, int]]) -> None:
    async def play() -> None:
        queues, demand = _demand()
        present: set[str] = set()
        endpoints: list[Endpoint] = []
        held: list[tuple[Ticket, Endpoint, Queue]] = []
        told, version = Told(), None
        counted: dict[str, int] = {}
        for event, which in [*events, ("read", 0)]:
            name = "abc"[which]
            match event:
                case "create":
                    present.add(name)
                case "delete":
                    present.discard(name)
                case "worker":
                    endpoints.append(Endpoint(f"pod-{len(endpoints)}", "ns", name, "r", "10.0.0.1"))
            table = build_table([Policy("ns", name) for name in present], endpoints)
            _publish(queues, demand, table)
            route = table.routes.get(("ns", name))
            if event == "come" and route is not None and route.endpoints:
                queue, ticket = queues.of(route), Ticket(3, FAR)
                held.append((ticket, await queue.acquire(ticket), queue))
            elif event == "end" and held:
                ticket, endpoint, queue = held.pop(0)
                queue.release(ticket, endpoint)
            elif event == "read":
                line, version = demand.line(version)
                told.take(decode_line(encode_line(line)))
                for state in line.rerankers:
                    assert state.arrived_requests >= counted.get(state.name, 0), "a counter fell"
                    counted[state.name] = state.arrived_requests
                truth = {state.name: state for state in demand.line(None)[0].rerankers}
                assert {name: told.states[name] for name in truth} == truth
                assert all(told.states[name].queued == 0 for name in told.states.keys() - truth.keys())

    asyncio.run(play())
