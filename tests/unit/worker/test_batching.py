"""Batching: tables for what goes into a batch, and what holds for every sequence of requests."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rerank_worker.batching import LOOK_AHEAD, Backlog, Policy, Slot, choose, halves


def policy(max_tokens: int = 64, bucket: int = 8, max_length: int = 32, max_delay: float = 0.01) -> Policy:
    return Policy(max_tokens, bucket, max_length, max_delay)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [(1, 8), (8, 8), (9, 16), (31, 32), (32, 32)],
)
def test_lengths_are_padded_to_the_bucket(tokens: int, expected: int) -> None:
    assert policy().padded(tokens) == expected


def test_padding_stays_within_what_the_model_takes() -> None:
    assert policy(bucket=24, max_length=30).padded(25) == 30


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


def test_a_pair_above_the_budget_goes_alone() -> None:
    assert len(choose(slots([32, 32]), policy(max_tokens=8))) == 1


def test_a_batch_is_cut_at_once_when_no_company_comes() -> None:
    backlog: Backlog[str] = Backlog()
    backlog.add("a", [4], arrived=5.0, deadline=9.0)
    assert backlog.due(policy(), company_coming=False) < 5.0


def test_a_batch_waits_for_company_from_its_oldest_request_on() -> None:
    backlog: Backlog[str] = Backlog()
    backlog.add("a", [4], arrived=5.0, deadline=9.0)
    backlog.add("b", [4], arrived=5.005, deadline=9.0)
    assert backlog.due(policy(), company_coming=True) == pytest.approx(5.01)


def test_a_full_batch_does_not_wait() -> None:
    backlog: Backlog[str] = Backlog()
    backlog.add("a", [32, 32], arrived=5.0, deadline=9.0)
    assert backlog.due(policy(), company_coming=True) < 5.0


def test_late_requests_are_dropped_and_others_stay() -> None:
    backlog: Backlog[str] = Backlog()
    backlog.add("late", [4, 5], arrived=0.0, deadline=1.0)
    backlog.add("in time", [6], arrived=0.0, deadline=2.0)
    assert backlog.expire(now=1.0) == ["late"]
    assert [item for item, _ in backlog.take(policy())] == ["in time"]
    assert backlog.tokens == 0


def test_an_abandoned_request_is_not_scored() -> None:
    backlog: Backlog[str] = Backlog()
    ticket = backlog.add("gone", [4], arrived=0.0, deadline=9.0)
    assert backlog.remove(ticket) == "gone"
    assert backlog.remove(ticket) is None
    assert backlog.take(policy()) == []


lengths = st.lists(st.integers(1, 32), min_size=1, max_size=20)
budgets = st.integers(1, 300)


@given(st.lists(lengths, max_size=12), budgets, st.integers(1, 40))
def test_every_pair_is_scored_once_within_the_budget_and_the_oldest_advances(
    requests: list[list[int]], budget: int, bucket: int
) -> None:
    rules = policy(max_tokens=budget, bucket=bucket)
    backlog: Backlog[int] = Backlog()
    for number, request in enumerate(requests):
        backlog.add(number, request, arrived=0.0, deadline=1.0)
    left = {(number, index) for number, request in enumerate(requests) for index in range(len(request))}
    while backlog:
        oldest = min(number for number, _ in left)
        batch = backlog.take(rules)
        taken = [(item, slot.index) for item, slot in batch]
        assert len(set(taken)) == len(taken)
        assert set(taken) <= left
        assert oldest in {item for item, _ in batch}
        assert all(slot.tokens == requests[item][slot.index] for item, slot in batch)
        padded = len(batch) * rules.padded(max(slot.tokens for _, slot in batch))
        assert padded <= budget or len(batch) == 1
        left -= set(taken)
        assert backlog.tokens == sum(requests[number][index] for number, index in left)
    assert not left


@given(st.lists(lengths, min_size=1, max_size=12), st.data())
def test_removed_requests_leave_the_others_whole(requests: list[list[int]], data: st.DataObject) -> None:
    backlog: Backlog[int] = Backlog()
    tickets = [backlog.add(number, request, arrived=0.0, deadline=1.0) for number, request in enumerate(requests)]
    gone = data.draw(st.sets(st.sampled_from(range(len(requests)))))
    for number in gone:
        backlog.remove(tickets[number])
    scored: list[int] = []
    while backlog:
        scored += [item for item, _ in backlog.take(policy())]
    assert sorted(scored) == [number for number, request in enumerate(requests) if number not in gone for _ in request]
    assert backlog.tokens == 0


def test_the_window_is_bounded() -> None:
    backlog: Backlog[int] = Backlog()
    for number in range(1000):
        backlog.add(number, [32], arrived=0.0, deadline=1.0)
    assert sum(slot.tokens for slot in backlog._window(policy())) <= LOOK_AHEAD * 64 + 32


@given(st.lists(st.integers(), min_size=2))
def test_halves_keep_everything_in_order(items: list[int]) -> None:
    first, second = halves(items)
    assert [*first, *second] == items
    assert len(first) < len(items)
    assert len(second) < len(items)
