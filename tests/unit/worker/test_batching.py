"""Batching: tables for what goes into a batch and when, and what holds for every sequence of requests."""

import math
import random
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rerank_api.wire import Priority
from rerank_worker.batching import MAX_DELAY, PATIENCE, STRETCH, WHOLE, Backlog, Policy, Slot, choose, halves


def policy(
    max_tokens: int = 64, bucket: int = 8, max_length: int = 32, max_delay: float = 0.01, padded: bool = True
) -> Policy:
    return Policy(max_tokens, bucket, max_length, max_delay, padded)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [(1, 8), (8, 8), (9, 16), (31, 32), (32, 32)],
)
def test_lengths_are_padded_to_the_bucket(tokens: int, expected: int) -> None:
    assert policy().width(tokens) == expected


def test_padding_stays_within_what_the_model_takes() -> None:
    assert policy(bucket=24, max_length=30).width(25) == 30


@pytest.mark.parametrize(("padded", "cost"), [(True, 3 * 16), (False, 9 + 5 + 1)])
def test_a_batch_costs_what_the_engine_computes(padded: bool, cost: int) -> None:
    assert policy(padded=padded).cost([9, 5, 1]) == cost


def slots(*requests: list[int]) -> list[Slot]:
    return [
        Slot(ticket, index, tokens) for ticket, lengths in enumerate(requests) for index, tokens in enumerate(lengths)
    ]


@pytest.mark.parametrize(
    ("why", "requests", "expected"),
    [
        ("nothing waits", [], []),
        ("one pair", [[5]], [(0, 0)]),
        ("longest first", [[5, 8, 6]], [(0, 1), (0, 2), (0, 0)]),
        ("up to the budget of 64 padded tokens", [[8] * 10], [(0, index) for index in range(8)]),
        ("requests share a batch", [[5], [6], [7]], [(2, 0), (1, 0), (0, 0)]),
        ("the oldest request sets the length, longer pairs wait", [[8], [32], [7]], [(0, 0), (2, 0)]),
        ("shorter pairs fill up behind the oldest's longest", [[32], [8], [31]], [(0, 0), (2, 0)]),
        ("older requests first among equals", [[16], [15], [15], [15], [15]], [(0, 0), (1, 0), (2, 0), (3, 0)]),
    ],
)
def test_choice(why: str, requests: list[list[int]], expected: list[tuple[int, int]]) -> None:
    assert [(slot.ticket, slot.index) for slot in choose(slots(*requests), policy())] == expected, why


@pytest.mark.parametrize(
    ("why", "requests", "expected"),
    [
        ("one pair", [[5]], [(0, 0)]),
        ("up to the budget of 64 real tokens", [[20] * 4], [(0, 0), (0, 1), (0, 2)]),
        ("a short pair behind a long one", [[1], [32], [3]], [(1, 0), (2, 0), (0, 0)]),
        ("what does not fit is left for the next", [[32, 30], [4], [2]], [(0, 0), (0, 1), (2, 0)]),
    ],
)
def test_choice_of_a_flat_engine(why: str, requests: list[list[int]], expected: list[tuple[int, int]]) -> None:
    assert [(slot.ticket, slot.index) for slot in choose(slots(*requests), policy(padded=False))] == expected, why


@pytest.mark.parametrize("padded", [True, False])
def test_a_pair_above_the_budget_goes_alone(padded: bool) -> None:
    assert len(choose(slots([32, 32]), policy(max_tokens=8, padded=padded))) == 1


AT_ONCE = -math.inf


@pytest.mark.parametrize(
    ("why", "priority", "lengths", "company", "saved", "max_delay", "expected"),
    [
        ("nobody comes", "normal", [4], math.inf, 1.0, 0.01, AT_ONCE),
        ("company comes in time and pays", "normal", [4], 0.004, 0.005, 0.01, 5.004),
        ("it comes too late", "normal", [4], 0.011, 1.0, 0.01, AT_ONCE),
        ("a shared batch saves less than the wait", "normal", [4], 0.004, 0.003, 0.01, AT_ONCE),
        ("the engine's times are not known", "normal", [4], 0.004, 0.0, 0.01, AT_ONCE),
        ("the batch is full", "normal", [32, 32], 0.004, 1.0, 0.01, AT_ONCE),
        ("high priority waits for nobody", "high", [4], 0.004, 1.0, 0.01, AT_ONCE),
        ("low priority waits as others do", "low", [4], 0.004, 1.0, 0.01, 5.004),
        ("no delay is allowed", "normal", [4], 0.004, 1.0, 0.0, AT_ONCE),
        ("a policy beyond the cap", "normal", [4], MAX_DELAY + 0.001, 9.0, 3.0, AT_ONCE),
    ],
)
def test_when_a_batch_is_cut(
    why: str, priority: Priority, lengths: list[int], company: float, saved: float, max_delay: float, expected: float
) -> None:
    backlog: Backlog[str] = Backlog()
    backlog.add("a", lengths, arrived=5.0, deadline=9.0, priority=priority)
    due = backlog.due(policy(max_delay=max_delay), 5.0, company, saved)
    assert due == (expected if math.isinf(expected) else pytest.approx(expected)), why


def test_the_delay_counts_from_the_oldest_request_and_for_everyone_who_waits() -> None:
    backlog: Backlog[str] = Backlog()
    backlog.add("a", [4], arrived=5.0, deadline=9.0)
    backlog.add("b", [4], arrived=5.008, deadline=9.0)
    assert backlog.due(policy(), 5.008, company=0.001, saved=0.003) == pytest.approx(5.009)
    assert backlog.due(policy(), 5.008, company=0.001, saved=0.0015) == AT_ONCE
    assert backlog.due(policy(), 5.008, company=0.003, saved=1.0) == AT_ONCE


@given(st.floats(0, 1), st.floats(0, 10), st.floats(0, 10), st.floats(0, 10), st.integers(1, 5))
def test_no_batch_waits_beyond_the_delay(
    max_delay: float, since: float, company: float, saved: float, requests: int
) -> None:
    backlog: Backlog[int] = Backlog()
    for number in range(requests):
        backlog.add(number, [1], arrived=100.0, deadline=999.0)
    due = backlog.due(policy(max_delay=max_delay), 100.0 + since, company, saved)
    assert due <= 100.0 + min(max_delay, MAX_DELAY)


def test_nothing_is_due_when_nothing_waits() -> None:
    assert Backlog[str]().due(policy(), 5.0, math.inf, 0.0) == math.inf


def test_late_requests_are_dropped_and_others_stay() -> None:
    backlog: Backlog[str] = Backlog()
    backlog.add("late", [4, 5], arrived=0.0, deadline=1.0)
    backlog.add("in time", [6], arrived=0.0, deadline=2.0)
    assert backlog.expire(now=1.0) == ["late"]
    assert [item for item, _ in backlog.take(policy())] == ["in time"]
    assert backlog.tokens == 0


def test_a_request_that_cannot_be_scored_in_time_is_dropped_when_that_is_certain() -> None:
    backlog: Backlog[str] = Backlog()
    backlog.add("before it", [32] * 100, arrived=0.0, deadline=9.0)
    backlog.add("too large", [32] * 10, arrived=0.0, deadline=2.0)
    backlog.add("just possible", [31] * 10, arrived=0.0, deadline=2.0)
    assert backlog.expire(now=1.0) == []
    assert backlog.expire(now=1.0, fastest=320.0) == ["before it", "too large"]
    assert [backlog.tokens, len(backlog)] == [310, 1]


def test_an_abandoned_request_is_not_scored() -> None:
    backlog: Backlog[str] = Backlog()
    ticket = backlog.add("gone", [4], arrived=0.0, deadline=9.0)
    assert backlog.remove(ticket) == "gone"
    assert backlog.remove(ticket) is None
    assert backlog.take(policy()) == []
    assert backlog.batches == 0


@pytest.mark.parametrize("padded", [True, False])
def test_who_comes_first(padded: bool) -> None:
    """High before normal before low; then the earliest deadline; then who came first."""
    rules = policy(max_tokens=8, padded=padded)
    backlog: Backlog[str] = Backlog()
    for item, priority, deadline in [
        ("low", "low", 1.0),
        ("normal", "normal", 5.0),
        ("normal too", "normal", 5.0),
        ("normal in a hurry", "normal", 2.0),
        ("high", "high", 9.0),
    ]:
        backlog.add(item, [8], arrived=0.0, deadline=deadline, priority=priority)  # ty: ignore[invalid-argument-type]
    order = [item for _ in range(5) for item, _ in backlog.take(rules)]
    assert order == ["high", "normal in a hurry", "normal", "normal too", "low"]


@pytest.mark.parametrize(("priority", "over"), [("low", "normal"), ("low", "high"), ("normal", "high")])
def test_a_head_start_ends(priority: Priority, over: Priority) -> None:
    """While a request of a higher priority comes with each batch, one of a lower waits for just so many batches."""
    rules = policy(max_tokens=8)
    backlog: Backlog[str] = Backlog()
    backlog.add("waits", [8], arrived=0.0, deadline=99.0, priority=priority)
    scored: list[str] = []
    while "waits" not in scored:
        backlog.add("passes", [8], arrived=0.0, deadline=98.0, priority=over)
        scored += [item for item, _ in backlog.take(rules)]
    # The tie at the end goes to the earlier deadline.
    assert scored.count("passes") == PATIENCE[priority] - PATIENCE[over] + 1


lengths = st.lists(st.integers(1, 32), min_size=1, max_size=20)
budgets = st.integers(1, 300)
priorities = st.sampled_from(list(PATIENCE))


@given(
    st.lists(st.tuples(lengths, priorities), max_size=6),
    st.integers(0, 9),
    st.booleans(),
    st.sampled_from([8, 64, 300]),
)
@settings(max_examples=50)
def test_nothing_starves(before: list[tuple[list[int], Priority]], seed: int, padded: bool, size: int) -> None:
    """After its patience a low request's first pair waits at most one batch for each pair that waits by then."""
    rules = policy(max_tokens=size, padded=padded)
    chance = random.Random(seed)
    backlog: Backlog[str] = Backlog()
    for request, priority in before:
        backlog.add("other", request, arrived=0.0, deadline=math.inf, priority=priority)
    backlog.add("low", [chance.randint(1, 32)], arrived=0.0, deadline=math.inf, priority="low")
    waiting = sum(len(request) for request, _ in before)
    cut, last = 0, math.inf
    while True:
        if cut == PATIENCE["low"] + 1:
            last = cut + waiting
        assert cut <= last
        # Admission bounds what waits: more than the device takes in the long run is refused before.
        while waiting < 60:
            request = [chance.randint(1, 32) for _ in range(chance.randint(1, 9))]
            backlog.add("other", request, arrived=0.0, deadline=0.0, priority="high")
            waiting += len(request)
        batch = backlog.take(rules)
        if any(item == "low" for item, _ in batch):
            return
        waiting -= len(batch)
        cut += 1


def test_a_huge_request_leaves_the_next_batches_to_small_ones() -> None:
    rules = policy(padded=False)
    backlog: Backlog[str] = Backlog()
    backlog.add("huge", [16] * 4000, arrived=0.0, deadline=9.0)
    cut: list[set[str]] = []
    for number in range(200):
        if number % 2:
            backlog.add("small", [16] * 4, arrived=0.0, deadline=9.0)
        cut.append({item for item, _ in backlog.take(rules)})
        # At most one batch of the huge request is before a small one.
        assert backlog.tokens - 16 * 4 <= 4000 * 16
    assert sum("small" in batch for batch in cut) == 100
    assert sum("huge" in batch for batch in cut) >= 100


def test_huge_requests_share_what_is_left_of_a_busy_engine() -> None:
    """Small requests that would fill every batch leave one in STRETCH + 1 to the huge ones, who take turns."""
    rules = policy(padded=False)
    backlog: Backlog[str] = Backlog()
    for name in ("one", "two"):
        backlog.add(name, [16] * 4000, arrived=0.0, deadline=9.0)
    order = []
    for _ in range(500):
        backlog.add("small", [16] * 4, arrived=0.0, deadline=9.0)
        order += [item for item in {item for item, _ in backlog.take(rules)} if item != "small"]
    assert len(order) == pytest.approx(500 / (STRETCH + 1), abs=3)
    assert all(first != second for first, second in pairwise(order))


def test_a_request_of_a_usual_size_is_served_in_one_go() -> None:
    rules = policy(padded=False)
    backlog: Backlog[str] = Backlog()
    backlog.add("usual", [16] * 4 * WHOLE, arrived=0.0, deadline=9.0)
    order = []
    for _ in range(WHOLE):
        order += [item for item, _ in backlog.take(rules)]
        backlog.add("later", [16] * 4, arrived=0.0, deadline=9.0)
    assert set(order) == {"usual"}


@given(st.lists(st.tuples(lengths, priorities), max_size=12), budgets, st.integers(1, 40), st.booleans())
def test_every_pair_is_scored_once_within_the_budget_and_the_first_in_rank_advances(
    requests: list[tuple[list[int], Priority]], budget: int, bucket: int, padded: bool
) -> None:
    rules = policy(max_tokens=budget, bucket=bucket, padded=padded)
    backlog: Backlog[int] = Backlog()
    for number, (request, priority) in enumerate(requests):
        backlog.add(number, request, arrived=0.0, deadline=1.0, priority=priority)
    left = {(number, index) for number, (request, _) in enumerate(requests) for index in range(len(request))}
    while backlog:
        first = min(waiting.rank for waiting in backlog._waiting.values())
        ranked_first = {waiting.item for waiting in backlog._waiting.values() if waiting.rank == first}
        batch = backlog.take(rules)
        taken = [(item, slot.index) for item, slot in batch]
        assert len(set(taken)) == len(taken)
        assert set(taken) <= left
        assert ranked_first & {item for item, _ in batch}
        assert all(slot.tokens == requests[item][0][slot.index] for item, slot in batch)
        sizes = [slot.tokens for _, slot in batch]
        assert sizes == sorted(sizes, reverse=True)
        assert rules.cost(sizes) <= budget or len(batch) == 1
        left -= set(taken)
        assert backlog.tokens == sum(requests[number][0][index] for number, index in left)
        for waiting in backlog._waiting.values():
            order = [waiting.lengths[index] for index in waiting.order]
            assert order == sorted(order, reverse=True), "a request's longest pair leads"
        assert backlog._in_turns == sum(waiting.in_turns for waiting in backlog._waiting.values())
    assert not left
    assert backlog._high == 0


@given(st.lists(lengths, min_size=1, max_size=12), st.data(), st.booleans())
def test_removed_requests_leave_the_others_whole(requests: list[list[int]], data: st.DataObject, padded: bool) -> None:
    backlog: Backlog[int] = Backlog()
    tickets = [backlog.add(number, request, arrived=0.0, deadline=1.0) for number, request in enumerate(requests)]
    gone = data.draw(st.sets(st.sampled_from(range(len(requests)))))
    for number in gone:
        backlog.remove(tickets[number])
    scored: list[int] = []
    while backlog:
        scored += [item for item, _ in backlog.take(replace(policy(), padded=padded))]
    assert sorted(scored) == [number for number, request in enumerate(requests) if number not in gone for _ in request]
    assert backlog.tokens == 0


def test_what_was_removed_is_forgotten() -> None:
    """A server whose clients leave must not keep a trace of each."""
    backlog: Backlog[int] = Backlog()
    backlog.add(-1, [1], arrived=0.0, deadline=1.0)
    for number in range(1000):
        backlog.remove(backlog.add(number, [1], arrived=0.0, deadline=1.0))
    assert len(backlog._heap) < 100


@pytest.mark.parametrize("padded", [True, False])
def test_a_batch_looks_at_no_more_pairs_however_many_wait(padded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def counting(window: list[Slot], rules: Policy) -> list[Slot]:
        seen.append(len(window))
        return choose(window, rules)

    monkeypatch.setattr("rerank_worker.batching.choose", counting)
    backlog: Backlog[int] = Backlog()
    backlog.add(0, [8] * 10_000, arrived=0.0, deadline=1.0)
    for number in range(100):
        backlog.add(number, [8], arrived=0.0, deadline=1.0)
    for _ in range(20):
        backlog.take(policy(padded=padded))
    assert max(seen) == (32 if padded else 8)


@given(st.lists(st.integers(), min_size=2))
def test_halves_keep_everything_in_order(items: list[int]) -> None:
    first, second = halves(items)
    assert [*first, *second] == items
    assert len(first) < len(items)
    assert len(second) < len(items)
