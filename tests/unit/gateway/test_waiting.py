"""The queue of one Reranker: order, bounds, cancellation, pauses. The clock is the test's own where it matters."""

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rerank_gateway.cluster.state import Endpoint, Policy, Route
from rerank_gateway.errors import ApiError
from rerank_gateway.routing import Limits
from rerank_gateway.waiting import Queue, Ticket

FAR = 1e9
ONE = Endpoint("one", "ns", "rr", "a", "10.0.0.1")
OTHER = Endpoint("other", "ns", "rr", "b", "10.0.0.2")


def _queue(*endpoints: Endpoint, requests: int = 1, policy: Policy | None = None) -> Queue:
    clock = asyncio.get_running_loop().time
    return Queue(Route(policy or Policy("ns", "rr"), endpoints), Limits(requests, 10**9), clock)


async def _queued(queue: Queue, ticket: Ticket, *, retry: bool = False) -> "asyncio.Task[Endpoint]":
    before = queue.waiting
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
        await queue.acquire(Ticket(1, deadline=0))
    assert caught.value.status == 504
    assert queue.waiting == 0


@given(st.lists(st.sampled_from(["come", "finish", "cancel", "lose", "gain"]), max_size=60))
def test_nothing_is_lost_or_counted_twice(events: list[str]) -> None:
    """Whatever happens in whatever order, no more is outstanding than allowed and nobody waits for a free endpoint."""

    async def play() -> None:
        queue = _queue(ONE, requests=2)
        present = True
        tickets: dict[asyncio.Task[Endpoint], Ticket] = {}
        holders: list[Ticket] = []
        for event in events:
            if event == "come":
                ticket = Ticket(3, FAR)
                tickets[asyncio.create_task(queue.acquire(ticket))] = ticket
            elif event == "finish" and holders:
                queue.release(holders.pop(0), ONE)
            elif event == "cancel" and tickets:
                next(iter(tickets)).cancel()
            elif event in ("lose", "gain"):
                present = event == "gain"
                queue.update(Route(Policy("ns", "rr"), (ONE,) if present else ()))
            for _ in range(3):
                await asyncio.sleep(0)
            for task in [task for task in tickets if task.done()]:
                ticket = tickets.pop(task)
                if not task.cancelled():
                    holders.append(ticket)
            assert queue.in_flight == len(holders) <= 2
            assert queue.waiting == len(tickets)
            assert not (present and tickets and len(holders) < 2)
        for task in tickets:
            task.cancel()
        await asyncio.gather(*tickets, return_exceptions=True)
        for ticket in holders:
            queue.release(ticket, ONE)
        assert (queue.waiting, queue.in_flight) == (0, 0)
        assert sum(load.tokens for load in queue.loads.values()) == 0

    asyncio.run(play())
