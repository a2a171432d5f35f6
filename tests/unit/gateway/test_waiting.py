"""The queue of one Reranker: order, bounds, deadlines, cancellation, pauses, and the figures that tell demand. The
clock is the test's own where it matters."""

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rerank_api.wire import Priority
from rerank_gateway.bounds import deadline, retry_after
from rerank_gateway.cluster.state import Endpoint, Policy, Route
from rerank_gateway.errors import ApiError
from rerank_gateway.ordering import PRIORITIES
from rerank_gateway.routing import RELEASE_TOKENS, Limits, split
from rerank_gateway.waiting import Queue, Queues, Ticket

FAR = 1e9
ONE = Endpoint("one", "ns", "rr", "a", "10.0.0.1")
OTHER = Endpoint("other", "ns", "rr", "b", "10.0.0.2")


def _queue(*endpoints: Endpoint, requests: int = 1, policy: Policy | None = None) -> Queue:
    clock = asyncio.get_running_loop().time
    return Queue(Route(policy or Policy("ns", "rr"), endpoints), Limits(requests, 10**9), clock)


async def _queued(queue: Queue, ticket: Ticket, *, retry: bool = False) -> "asyncio.Task[Endpoint]":
    before = queue.waiting
    if retry:  # as if a worker had just failed on it
        ticket.arrived = asyncio.get_running_loop().time()
    task = asyncio.create_task(queue.acquire(ticket, retry=retry))
    await asyncio.sleep(0)
    assert queue.waiting == before + 1
    return task


async def test_first_come_first_served_and_retries_first() -> None:
    queue = _queue(ONE)
    running = Ticket(1, FAR)
    assert await queue.acquire(running) == ONE
    tickets = [Ticket(1, FAR) for _ in range(3)]
    tasks = [await _queued(queue, ticket, retry=ticket is tickets[2]) for ticket in tickets]
    for index in (2, 0, 1):
        queue.release(running, ONE)
        assert await tasks[index] == ONE
        running = tickets[index]
        assert sum(task.done() for task in tasks) == queue.in_flight + [2, 0, 1].index(index)


async def test_a_full_revision_does_not_hold_up_another() -> None:
    queue = _queue(ONE, OTHER, policy=Policy("ns", "rr", traffic=(("a", 50), ("b", 50))))
    first = Ticket(1, FAR, draw=0.1)
    assert await queue.acquire(first) == ONE
    held_up = await _queued(queue, Ticket(1, FAR, draw=0.2))
    assert await queue.acquire(Ticket(1, FAR, draw=0.7)) == OTHER
    assert not held_up.done()
    queue.release(first, ONE)
    assert await held_up == ONE


async def test_a_busy_revision_keeps_its_share_and_its_requests_their_places() -> None:
    queue = _queue(ONE, OTHER, policy=Policy("ns", "rr", traffic=(("a", 50), ("b", 50))))
    running = [Ticket(1, FAR, draw=0.1), Ticket(1, FAR, draw=0.9)]
    for ticket in running:
        await queue.acquire(ticket)
    canary, stable = Ticket(1, FAR, draw=0.6), Ticket(1, FAR, draw=0.2)
    tasks = [await _queued(queue, ticket) for ticket in (canary, stable)]
    lanes = [ticket.lane for ticket in (canary, stable)]
    queue.failed(OTHER, 60, 60, broken=False)
    queue.release(running[1], OTHER)
    assert [ticket.lane for ticket in (canary, stable)] == lanes, "a pause sorts nobody anew"
    queue.release(running[0], ONE)
    assert await tasks[1] == ONE
    queue.release(stable, ONE)
    await asyncio.sleep(0)
    assert not tasks[0].done(), "its revision is busy, not broken"
    queue.succeeded(OTHER)
    queue.update(queue.route)
    assert await asyncio.wait_for(tasks[0], 10) == OTHER
    assert canary.lane is lanes[0]


async def test_a_broken_revision_leaves_its_requests_to_the_others() -> None:
    queue = _queue(ONE, OTHER, policy=Policy("ns", "rr", traffic=(("a", 50), ("b", 50))))
    running = Ticket(1, FAR, draw=0.9)
    await queue.acquire(running)
    canary = await _queued(queue, Ticket(1, FAR, draw=0.6))
    queue.failed(OTHER, 60, 60, broken=True)
    queue.release(running, OTHER)
    assert await asyncio.wait_for(canary, 10) == ONE


async def test_a_failed_endpoint_pauses_twice_as_long_each_time_and_success_clears_it() -> None:
    now = 100.0
    queue = Queue(Route(Policy("ns", "rr"), (ONE,)), Limits(), lambda: now)
    ticket = Ticket(1, FAR)
    await queue.acquire(ticket)
    pauses = []
    for _ in range(6):
        queue.failed(ONE, 0.1, 1.0, broken=True)
        queue.failed(ONE, 0.1, 1.0, broken=True)  # the other requests of the same outage
        pauses.append(round(queue.loads["one"].retry_at - now, 3))
        now = queue.loads["one"].retry_at
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    queue.succeeded(ONE)
    queue.failed(ONE, 0.1, 1.0, broken=True)
    assert round(queue.loads["one"].retry_at - now, 3) == 0.1


async def test_waiting_requests_wake_when_a_pause_is_over() -> None:
    queue = _queue(ONE)
    ticket = Ticket(1, FAR)
    await queue.acquire(ticket)
    queue.failed(ONE, 0.01, 0.01, broken=True)
    queue.release(ticket, ONE)
    task = await _queued(queue, ticket)
    assert await asyncio.wait_for(task, 10) == ONE


async def test_an_endpoint_that_left_and_came_back_starts_afresh() -> None:
    queue = _queue(ONE)
    ticket = Ticket(1, FAR)
    await queue.acquire(ticket)
    queue.failed(ONE, 60, 60, broken=True)
    queue.release(ticket, ONE)
    assert queue.route is not None
    queue.update(replace(queue.route, endpoints=()))
    queue.update(Route(Policy("ns", "rr"), (ONE,)))
    assert await queue.acquire(ticket) == ONE


async def test_a_request_cancelled_as_it_is_served_gives_its_place_on() -> None:
    queue = _queue(ONE)
    running = Ticket(1, FAR)
    await queue.acquire(running)
    cancelled = await _queued(queue, Ticket(1, FAR))
    next_one = await _queued(queue, Ticket(1, FAR))
    queue.release(running, ONE)  # hands the endpoint to the first,
    cancelled.cancel()  # which goes away before it can run
    assert await asyncio.wait_for(next_one, 10) == ONE
    assert queue.in_flight == 1


async def test_a_cancelled_request_that_has_not_left_yet_is_passed_over() -> None:
    queue = _queue(ONE)
    running = Ticket(1, FAR)
    await queue.acquire(running)
    cancelled = await _queued(queue, Ticket(1, FAR))
    next_one = await _queued(queue, Ticket(1, FAR))
    cancelled.cancel()
    queue.release(running, ONE)
    assert await asyncio.wait_for(next_one, 10) == ONE
    assert queue.in_flight == 1


async def test_a_deadline_in_the_past_ends_at_once() -> None:
    queue = _queue()
    with pytest.raises(ApiError) as caught:
        await queue.acquire(Ticket(1, latest=0))
    assert caught.value.status == 504
    assert queue.waiting == 0


@pytest.mark.parametrize(
    ("present", "since", "latest", "expected"),
    [
        pytest.param(True, 50, FAR, 110, id="there was a worker when it came: timeout from then"),
        pytest.param(True, 105, FAR, 115, id="the first worker came later: timeout from then"),
        pytest.param(False, 50, FAR, 160, id="there was none: wakeTimeout"),
        pytest.param(False, 103, FAR, 163, id="the last one went while it waited: wakeTimeout from then"),
        pytest.param(True, 169, FAR, 170, id="workers that come and go: both together and no more"),
        pytest.param(False, 169, FAR, 170, id="the same while there is none"),
        pytest.param(True, 50, 102, 102, id="the client does not wait longer"),
        pytest.param(False, 50, 102, 102, id="nor for a worker"),
    ],
)
def test_how_long_a_request_is_held(present: bool, since: float, latest: float, expected: float) -> None:
    policy = Policy("ns", "rr", timeout=10, wake_timeout=60)
    assert deadline(policy, present=present, since=since, arrived=100, latest=latest) == expected


async def test_the_deadline_moves_when_the_last_worker_goes_and_when_one_comes() -> None:
    loop, passed = asyncio.get_running_loop(), 0.0
    policy = Policy("ns", "rr", timeout=1000, wake_timeout=5000)
    queue = Queue(Route(policy, (ONE,)), Limits(1), lambda: loop.time() + passed)
    await queue.acquire(Ticket(1, FAR))
    ticket, bounded = Ticket(1, FAR), Ticket(1, loop.time() + 500)
    tasks = [await _queued(queue, ticket), await _queued(queue, bounded)]
    assert ticket.deadline - ticket.arrived == pytest.approx(1000)
    passed = 300
    queue.update(Route(policy))
    assert ticket.deadline - ticket.arrived == pytest.approx(5300, abs=20)
    passed = 400
    queue.update(Route(policy, (OTHER,)))
    assert await tasks[0] == OTHER
    assert ticket.deadline - ticket.arrived == pytest.approx(1400, abs=20)
    assert bounded.deadline == bounded.latest
    tasks[1].cancel()


async def test_a_request_that_nobody_will_serve_ends_with_wake_timeout() -> None:
    queue = _queue(policy=Policy("ns", "rr", timeout=1000, wake_timeout=0.01, not_ready_reason="NoGpu"))
    with pytest.raises(ApiError, match=r"requests\.wakeTimeout.*ns/rr was ready \(NoGpu\)") as caught:
        await queue.acquire(Ticket(1, FAR))
    assert caught.value.status == 504
    assert queue.waiting == queue.queued_tokens == 0


@pytest.mark.parametrize(("latest", "bound"), [(FAR, "requests.timeout"), (1.0, "X-Rerank-Timeout-Ms")])
async def test_a_request_that_finds_no_room_in_time_says_which_bound_it_was(latest: float, bound: str) -> None:
    queue = _queue(ONE, policy=Policy("ns", "rr", timeout=0.01))
    await queue.acquire(Ticket(1, FAR))
    with pytest.raises(ApiError, match=bound) as caught:
        await queue.acquire(Ticket(1, latest if latest == FAR else asyncio.get_running_loop().time() + 0.005))
    assert (caught.value.status, queue.waiting) == (504, 0)


@pytest.mark.parametrize(
    ("tokens", "speed", "expected"),
    [(0, None, 1), (10**9, None, 1), (0, 100.0, 1), (100, 100.0, 1), (101, 100.0, 2), (10**9, 100.0, 60)],
)
def test_retry_after_is_when_what_waits_is_scored(tokens: int, speed: float | None, expected: int) -> None:
    assert retry_after(tokens, speed) == expected


async def test_a_full_queue_tells_when_to_come_back() -> None:
    queue = _queue(ONE, OTHER, policy=Policy("ns", "rr", queue_limit=1))
    running = [Ticket(40_000, FAR), Ticket(40_000, FAR)]
    for ticket in running:
        await queue.acquire(ticket)
        queue.loads["one"].capacity = 1000.0
    waiting = await _queued(queue, Ticket(20_000, FAR))
    with pytest.raises(ApiError, match=r"ns/rr has 1 requests waiting \(requests\.queueLimit\)") as caught:
        await queue.acquire(Ticket(1, FAR))
    assert (caught.value.status, caught.value.retry_after) == (429, 50)  # 100,000 tokens, two workers
    assert queue.arrived_requests == 4
    waiting.cancel()


async def test_a_full_queue_makes_room_for_another_client_and_for_high_priority() -> None:
    queue = _queue(ONE, policy=Policy("ns", "rr", queue_limit=3))
    await queue.acquire(Ticket(1, FAR))
    greedy = [await _queued(queue, Ticket(1, FAR, client="greedy")) for _ in range(3)]
    modest = asyncio.create_task(queue.acquire(Ticket(1, FAR, client="modest")))
    with pytest.raises(ApiError) as caught:
        await greedy[2]
    assert caught.value.status == 429
    urgent = asyncio.create_task(queue.acquire(Ticket(1, FAR, client="greedy", priority="high")))
    with pytest.raises(ApiError):
        await greedy[1]
    assert queue.waiting == queue.queued_tokens == 3
    for task in (greedy[0], modest, urgent):
        assert not task.done()
        task.cancel()


async def test_a_full_queue_makes_room_where_most_wait() -> None:
    """The limit is for all revisions: else one client that fills it with another's requests shuts this one out."""
    queue = _queue(ONE, OTHER, policy=Policy("ns", "rr", queue_limit=3, traffic=(("a", 90), ("b", 10))))
    for draw in (0.1, 0.99):
        await queue.acquire(Ticket(1, FAR, draw=draw))
    greedy = [await _queued(queue, Ticket(1, FAR, draw=0.1, client="greedy")) for _ in range(3)]
    modest = asyncio.create_task(queue.acquire(Ticket(1, FAR, draw=0.99, client="modest")))
    with pytest.raises(ApiError) as caught:
        await greedy[2]
    assert caught.value.status == 429
    assert queue.waiting == 3
    for task in (*greedy[:2], modest):
        assert not task.done()
        task.cancel()


async def _taken(queue: Queue, *tokens: int) -> list[Ticket]:
    """Requests of so many tokens, each at the endpoint."""
    tickets = [Ticket(size, FAR) for size in tokens]
    for ticket in tickets:
        await queue.acquire(ticket)
    return tickets


async def test_high_goes_first_and_finds_room_where_others_do_not() -> None:
    queue = _queue(ONE, requests=100, policy=Policy("ns", "rr", capacity=1.0))
    running = await _taken(queue, RELEASE_TOKENS, RELEASE_TOKENS)
    normal = await _queued(queue, Ticket(RELEASE_TOKENS, FAR))
    for _ in range(2):
        assert await queue.acquire(Ticket(RELEASE_TOKENS, FAR, priority="high")) == ONE
    high = await _queued(queue, Ticket(1, FAR, priority="high"))
    queue.release(running[0], ONE)
    assert await high == ONE
    assert not normal.done()
    normal.cancel()


@pytest.mark.parametrize("priority", ["normal", "low"])
async def test_high_ones_do_not_use_up_all_room_for_ever(priority: Priority) -> None:
    """They find room where others do not; were there always more of them, the others' turn would never come."""
    queue = _queue(ONE, requests=100, policy=Policy("ns", "rr", capacity=1.0))
    running = await _taken(queue, *[RELEASE_TOKENS // 2] * 2)
    waits = await _queued(queue, Ticket(RELEASE_TOKENS // 2, FAR, priority=priority))
    high: dict[asyncio.Task[Endpoint], Ticket] = {}
    served = 0
    while not waits.done():
        while queue.waiting < 4:
            ticket = Ticket(RELEASE_TOKENS // 2, FAR, priority="high")
            high[asyncio.create_task(queue.acquire(ticket))] = ticket
            await asyncio.sleep(0)
            running += [high.pop(task) for task in list(high) if task.done()]
        queue.release(running.pop(0), ONE)
        await asyncio.sleep(0)
        running += [high.pop(task) for task in list(high) if task.done()]
        served += 1
        assert served < 20
    for task in high:
        task.cancel()


async def test_a_request_of_many_seconds_leaves_room_for_small_ones() -> None:
    """The worker scores them between its batches; waiting here they would be late for nothing."""
    queue = _queue(ONE, requests=100, policy=Policy("ns", "rr", capacity=1.0))
    small = RELEASE_TOKENS // 8
    await _taken(queue, 10**6, small, small, small, small)
    waiting = await _queued(queue, Ticket(small, FAR))
    waiting.cancel()


async def test_an_endpoint_without_a_figure_is_taken_for_as_fast_as_the_last_one() -> None:
    queue = _queue(ONE, requests=100)
    (ticket,) = await _taken(queue, 1)
    queue.loads["one"].capacity = 1.0
    queue.release(ticket, ONE)
    queue.update(Route(Policy("ns", "rr"), (OTHER,)))
    assert queue.capacity == 1.0
    await _taken(queue, RELEASE_TOKENS, RELEASE_TOKENS)
    task = await _queued(queue, Ticket(1, FAR))
    task.cancel()


async def test_a_change_of_the_split_moves_those_that_wait() -> None:
    def route(*traffic: tuple[str, int], endpoints: tuple[Endpoint, ...] = (ONE, OTHER)) -> Route:
        return Route(Policy("ns", "rr", traffic=traffic), endpoints)

    queue = _queue(ONE, OTHER)
    queue.update(route(("a", 50), ("b", 50)))
    running = [Ticket(1, FAR, draw=0.1), Ticket(1, FAR, draw=0.9)]
    for ticket in running:
        await queue.acquire(ticket)
    tasks = [await _queued(queue, Ticket(1, FAR, draw=draw)) for draw in (0.3, 0.4)]
    retry = await _queued(queue, Ticket(1, FAR, draw=0.35), retry=True)
    queue.update(route(("a", 20), ("b", 80)))
    queue.release(running[1], OTHER)
    assert await retry == OTHER
    queue.update(route(("a", 100), endpoints=(ONE,)))
    queue.release(running[0], ONE)
    assert await tasks[0] == ONE
    assert not tasks[1].done()
    tasks[1].cancel()


async def test_figures_of_demand() -> None:
    now, changes = 1000.0, 0

    def note(_: Queue) -> None:
        nonlocal changes
        changes += 1

    queues = Queues(Limits(1), asyncio.get_running_loop().time, lambda: now)
    queues.on_change = note
    queue = queues.of(Route(Policy("ns", "rr", queue_limit=2)))
    assert (queue.last_ended, queue.waking_since, queue.capacity, queue.outstanding) == (None, None, None, {})
    now = 1001.0
    tasks = []
    for tokens in (10, 20):
        tasks.append(await _queued(queue, Ticket(tokens, FAR)))
        now += 1
    assert changes >= 2
    assert (queue.waiting, queue.queued_tokens, queue.waking_since) == (2, 30, 1001.0)
    with pytest.raises(ApiError):
        await queue.acquire(Ticket(40, FAR))
    assert (queue.arrived_requests, queue.arrived_tokens) == (3, 70)
    tasks[0].cancel()
    await asyncio.wait(tasks[:1])
    assert (queue.queued_tokens, queue.waking_since, queue.last_ended) == (20, 1002.0, 1003.0)

    queue.update(Route(Policy("ns", "rr"), (ONE,)))
    assert await tasks[1] == ONE
    assert (queue.waiting, queue.queued_tokens, queue.in_flight, queue.in_flight_tokens) == (0, 0, 1, 20)
    assert (queue.outstanding, queue.waking_since) == ({"one": 20}, None)
    waiting = await _queued(queue, Ticket(1, FAR))
    now = 1010.0
    queue.update(Route(Policy("ns", "rr")))  # the last worker goes
    assert queue.waking_since == 1010.0
    waiting.cancel()


async def test_tokens_are_corrected_by_what_workers_counted() -> None:
    queue = _queue(ONE, requests=100)
    tickets = [Ticket(100, FAR) for _ in range(3)]
    await queue.acquire(tickets[0])
    assert queue.in_flight_tokens == 100
    for _ in range(2):
        queue.counted(tickets[0], 250)
    await queue.acquire(tickets[1])
    assert queue.in_flight_tokens == 350
    for _ in range(500):
        queue.counted(tickets[0], 50)
    await queue.acquire(tickets[2])
    assert queue.in_flight_tokens == 400
    for ticket in tickets:  # each gives back what it took
        queue.release(ticket, ONE)
    assert queue.in_flight_tokens == 0


_EVENTS = st.one_of(
    st.tuples(st.just("come"), st.sampled_from(PRIORITIES), st.floats(0, 0.999), st.sampled_from("xyz")),
    st.tuples(
        st.sampled_from(["finish", "retry", "cancel", "lose", "gain", "split", "join"]),
        *map(st.just, ("normal", 0.0, "")),
    ),
)


@given(st.lists(_EVENTS, max_size=60))
def test_nothing_is_lost_or_counted_twice(events: list[tuple[str, Priority, float, str]]) -> None:
    """Whatever happens in whatever order: no more is outstanding than allowed, and nobody waits for a free endpoint."""
    limit, places = 6, 2
    shared = Policy("ns", "rr", queue_limit=limit, traffic=(("a", 50), ("b", 50)))
    single = replace(shared, traffic=(("b", 100),))

    async def play() -> None:
        queue = _queue(ONE, OTHER, requests=places, policy=shared)
        policy, endpoints = shared, (ONE, OTHER)
        tickets: dict[asyncio.Task[Endpoint], Ticket] = {}
        holders: list[tuple[Ticket, Endpoint]] = []
        came = left = 0
        for event, priority, draw, client in events:
            if event == "come":
                came += 1
                ticket = Ticket(3, FAR, draw, priority, client)
                tickets[asyncio.create_task(queue.acquire(ticket))] = ticket
            elif event in ("finish", "retry") and holders:
                ticket, endpoint = holders.pop(0)
                queue.release(ticket, endpoint)
                if event == "retry":
                    ticket.avoid.add(endpoint.uid)
                    tickets[asyncio.create_task(queue.acquire(ticket, retry=True))] = ticket
                else:
                    left += 1
            elif event == "cancel" and tickets:
                next(iter(tickets)).cancel()
            elif event in ("lose", "gain"):
                endpoints = (ONE, OTHER) if event == "gain" else endpoints[1:]
            elif event in ("split", "join"):
                policy = shared if event == "split" else single
            queue.update(Route(policy, endpoints))
            for _ in range(3):
                await asyncio.sleep(0)
            for task in [task for task in tickets if task.done()]:
                ticket = tickets.pop(task)
                if task.cancelled() or task.exception() is not None:
                    left += 1
                else:
                    holders.append((ticket, task.result()))
            assert came == left + len(tickets) + len(holders)
            assert queue.in_flight == len(holders)
            assert queue.in_flight_tokens == 3 * len(holders)
            assert all(load.requests <= places for load in queue.loads.values())
            assert queue.waiting == len(tickets) == sum(map(len, queue._lanes.values()))
            assert queue.queued_tokens == 3 * len(tickets)
            pools = split(Route(policy, endpoints), queue.loads, 0)
            for ticket in tickets.values():
                pool = pools.pick(ticket.draw)
                for endpoint in pool.endpoints if pool is not None else ():
                    assert endpoint.uid in queue.loads
                    assert queue.loads[endpoint.uid].requests == places
        for task in tickets:
            task.cancel()
        await asyncio.gather(*tickets, return_exceptions=True)
        for ticket, endpoint in holders:
            queue.release(ticket, endpoint)
        assert (queue.waiting, queue.queued_tokens, queue.in_flight) == (0, 0, 0)
        assert all(load.tokens == load.held == 0 for load in queue.loads.values())
        assert not any(queue._lanes.values())

    asyncio.run(play())
