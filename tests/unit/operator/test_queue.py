"""The work queue, with a clock that is moved by hand."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rerank_operator.controller.queue import WorkQueue


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(clock: Clock) -> WorkQueue[str]:
    return WorkQueue(clock, lambda: 1.0, first_delay=1.0, longest_delay=8.0, retry_floor=0.5)


async def take(queue: WorkQueue[str]) -> str | None:
    """What is due now, or None."""
    getting = asyncio.ensure_future(queue.get())
    for _ in range(5):
        await asyncio.sleep(0)
    if not getting.done():
        getting.cancel()
        return None
    taken = getting.result()
    return taken[0] if taken else None


async def test_a_key_waits_at_most_once(queue: WorkQueue[str]):
    queue.add("a")
    queue.add("b")
    queue.add("a")
    assert [await take(queue), await take(queue), await take(queue)] == ["a", "b", None]


async def test_a_key_is_never_worked_on_twice_at_a_time(queue: WorkQueue[str]):
    queue.add("a")
    assert await take(queue) == "a"
    queue.add("a")
    assert await take(queue) is None
    queue.done("a")
    assert await take(queue) == "a"


async def test_failures_back_off_to_a_limit_and_success_forgets_them(queue: WorkQueue[str], clock: Clock):
    queue.add("a")
    assert await take(queue) == "a"
    for expected in (1.0, 2.0, 4.0, 8.0, 8.0):
        queue.done("a", failed=True)
        clock.now += expected - 0.01
        assert await take(queue) is None
        clock.now += 0.01
        assert await take(queue) == "a"
    queue.done("a")
    queue.add("a")
    assert await take(queue) == "a"
    queue.done("a", failed=True)
    clock.now += 1.0
    assert await take(queue) == "a"


async def test_news_about_a_failing_key_bring_it_forward_but_not_at_once(queue: WorkQueue[str], clock: Clock):
    queue.add("a")
    for _ in range(4):
        assert await take(queue) == "a"
        queue.done("a", failed=True)
        clock.now += 8
    assert await take(queue) == "a"
    queue.done("a", failed=True)
    queue.add("a")
    assert await take(queue) is None
    clock.now += 0.5
    assert await take(queue) == "a"


async def test_a_delayed_key_comes_when_due_or_when_asked_for_sooner(queue: WorkQueue[str], clock: Clock):
    queue.add("a", delay=5)
    queue.add("b", delay=3)
    queue.add("a", delay=9)
    assert (await take(queue), queue.depth()) == (None, 0)
    clock.now = 3
    assert (queue.depth(), await take(queue)) == (1, "b")
    queue.add("a")
    assert await take(queue) == "a"
    clock.now = 9
    assert await take(queue) is None


async def test_a_delay_asked_for_at_work_counts_after_it(queue: WorkQueue[str], clock: Clock):
    queue.add("a")
    assert await take(queue) == "a"
    queue.add("a", delay=5)
    queue.done("a")
    assert await take(queue) is None
    clock.now = 5
    assert await take(queue) == "a"


async def test_who_waits_is_woken_by_a_key_and_by_closing(queue: WorkQueue[str]):
    waiting = [asyncio.ensure_future(queue.get()) for _ in range(2)]
    await asyncio.sleep(0)
    queue.add("a")
    await asyncio.wait(waiting, timeout=5, return_when=asyncio.FIRST_COMPLETED)
    queue.close()
    await asyncio.wait(waiting, timeout=5)
    results = [w.result() for w in waiting]
    assert sorted(taken[0] if taken else "closed" for taken in results) == ["a", "closed"]
    queue.add("b")
    assert await queue.get() is None


async def test_lost_leadership_forgets_what_waits(queue: WorkQueue[str], clock: Clock):
    queue.add("a")
    assert await take(queue) == "a"
    queue.add("a")
    queue.add("b")
    queue.clear()
    queue.done("a")
    clock.now = 100
    assert await take(queue) is None


async def test_a_stuck_key_shows(queue: WorkQueue[str], clock: Clock):
    assert queue.oldest_work() == 0.0
    queue.add("a")
    await take(queue)
    clock.now = 42.0
    assert queue.oldest_work() == 42.0


step = st.one_of(
    st.tuples(st.just("add"), st.sampled_from("abc"), st.floats(0, 5)),
    st.tuples(st.just("take"), st.just(""), st.just(0.0)),
    st.tuples(st.just("done"), st.sampled_from("abc"), st.sampled_from([0.0, 1.0])),
    st.tuples(st.just("wait"), st.just(""), st.floats(0, 20)),
)


@given(st.lists(step, max_size=40))
def test_every_added_key_is_worked_on_and_none_twice_at_a_time(steps: list[tuple[str, str, float]]):
    clock = Clock()
    queue: WorkQueue[str] = WorkQueue(clock, lambda: 0.5)
    owed: set[str] = set()
    working: set[str] = set()

    def pop() -> None:
        if (taken := queue._pop()) is not None:
            assert taken[0] not in working
            assert taken[1] >= 0
            working.add(taken[0])
            owed.discard(taken[0])

    for what, key, value in steps:
        if what == "add":
            queue.add(key, value)
            owed.add(key)
        elif what == "take":
            pop()
        elif what == "done" and key in working:
            working.remove(key)
            queue.done(key, failed=bool(value))
        elif what == "wait":
            clock.now += value
    for key in list(working):
        working.remove(key)
        queue.done(key)
    clock.now += 1000
    for _ in range(8):
        pop()
    assert not owed
