"""The order of waiting requests: retries, classes, clients; nobody starves, nothing is lost, memory is bounded."""

from collections import Counter, defaultdict, deque
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rerank_api.wire import Priority
from rerank_gateway.ordering import LARGEST_STEP, PRIORITIES, REMEMBERED, YIELD, Order

Item = tuple[str, Priority, int]
"""Client, priority, number."""


def _add(order: Order[Item], item: Item, tokens: int = 1) -> None:
    order.add(item, item[0], item[1], tokens)


def _next(order: Order[Item]) -> Item | None:
    item = order.first()
    if item is not None:
        order.take(item)
    return item


def _drained(order: Order[Item]) -> list[Item]:
    items = []
    while (item := _next(order)) is not None:
        items.append(item)
    return items


def _filled(*parts: tuple[str, Priority, int]) -> Order[Item]:
    """So many requests of one token of each client and priority, in this order."""
    order: Order[Item] = Order()
    for client, priority, size in parts:
        for number in range(size):
            _add(order, (client, priority, number))
    return order


def test_classes_and_within_them_who_came_first() -> None:
    order = _filled(("a", "low", 1), ("a", "normal", 2), ("a", "high", 2))
    assert _drained(order) == [
        ("a", "high", 0),
        ("a", "high", 1),
        ("a", "normal", 0),
        ("a", "normal", 1),
        ("a", "low", 0),
    ]
    assert len(order) == 0


def test_a_retry_goes_before_all_and_costs_its_client_nothing() -> None:
    order = _filled(("a", "high", 1), ("b", "normal", 1))
    order.add_retry(("c", "low", 0), "low")
    order.add_retry(("d", "high", 0), "high")
    assert _drained(order) == [("c", "low", 0), ("d", "high", 0), ("a", "high", 0), ("b", "normal", 0)]


def test_a_light_client_need_not_wait_for_a_heavy_ones_backlog() -> None:
    order = _filled(("heavy", "normal", 100))
    for _ in range(50):
        _next(order)
    _add(order, ("light", "normal", 0))
    assert ("light", "normal", 0) in [_next(order) for _ in range(2)]


def test_turns_are_counted_in_tokens() -> None:
    order: Order[Item] = Order()
    for number in range(40):
        _add(order, ("large", "normal", number), 1000)
        _add(order, ("small", "normal", number), 100)
    first = Counter(item[0] for item in [_next(order) for _ in range(22)] if item is not None)
    assert first == {"small": 20, "large": 2}


def test_who_has_just_been_served_does_not_come_in_as_new() -> None:
    """A client that sends one request at a time would else pass one that has several waiting, again and again."""
    order = _filled(("many", "normal", 20))
    _add(order, ("one", "normal", 0), 5)
    served = []
    for number in range(1, 20):
        item = _next(order)
        assert item is not None
        served.append(item[0])
        if item[0] == "one":
            _add(order, ("one", "normal", number), 5)
    assert Counter(served)["one"] <= 4


@given(st.lists(st.lists(st.integers(1, 1000), min_size=5, max_size=30), min_size=2, max_size=5))
def test_clients_that_wait_all_the_time_get_the_same(sizes: list[list[int]]) -> None:
    """Goyal, Vin and Cheng, theorem 1: no two differ by more than one largest request of each."""
    order: Order[Item] = Order()
    tokens: dict[Item, int] = {}
    for client, of_client in enumerate(sizes):
        for number, size in enumerate(of_client):
            item: Item = (str(client), "normal", number)
            tokens[item] = size
            _add(order, item, size)
    left = Counter({str(client): len(of_client) for client, of_client in enumerate(sizes)})
    served: Counter[str] = Counter()
    while all(left[str(client)] for client in range(len(sizes))):
        item_ = _next(order)
        assert item_ is not None
        left[item_[0]] -= 1
        served[item_[0]] += tokens[item_]
        for one in range(len(sizes)):
            for other in range(one):
                assert abs(served[str(one)] - served[str(other)]) <= max(sizes[one]) + max(sizes[other])


@pytest.mark.parametrize("priority", ["normal", "low"])
@given(tokens=st.integers(1, 300), sizes=st.lists(st.integers(1, 500), min_size=1, max_size=20))
def test_higher_classes_let_a_lower_one_have_its_turn(priority: Priority, tokens: int, sizes: list[int]) -> None:
    """However much of higher priority comes: a request waits for YIELD times its tokens, and one request more."""
    order: Order[Item] = Order()
    waits: Item = ("waits", priority, 0)
    _add(order, waits, tokens)
    passed, numbers = 0, count()
    while True:
        for size in sizes:  # there are always some that could go first
            _add(order, ("others", "high", next(numbers)), size)
        item = order.first()
        assert item is not None
        if item == waits:
            break
        passed += order._places[item][1].items[item]
        order.take(item)
    assert passed <= YIELD * tokens + max(sizes)


def test_each_class_gets_its_part_when_all_are_full() -> None:
    order = _filled(("a", "high", 2000), ("a", "normal", 2000), ("a", "low", 2000))
    got = Counter(item[1] for item in [_next(order) for _ in range(1000)] if item is not None)
    assert min(got.values()) >= 90
    assert got["high"] >= 700


def test_a_flood_of_a_low_class_costs_a_high_one_little() -> None:
    order = _filled(("a", "low", 1000))
    waited = []
    for number in range(100):
        _add(order, ("a", "high", number))
        for turn in count():
            item = _next(order)
            if item == ("a", "high", number):
                waited.append(turn)
                break
    assert max(waited) <= 1
    assert sum(waited) <= 100 / YIELD + 1


def test_one_huge_request_does_not_turn_the_classes_upside_down() -> None:
    order: Order[Item] = Order()
    _add(order, ("waits", "low", 0), 100)
    order.add(("huge", "normal", 0), "huge", "normal", 10**9)
    order.take(("huge", "normal", 0))
    for number in range(1000):
        _add(order, ("a", "high", number), 100)
        _add(order, ("b", "low", number), 100)
    got = Counter(item[1] for item in [_next(order) for _ in range(500)] if item is not None)
    assert got["low"] <= (LARGEST_STEP + 500 * 100) / YIELD / 100 + 1


def test_one_huge_request_does_not_keep_a_newcomer_from_its_turn() -> None:
    """Virtual time would else be far beyond those who waited before, and the newcomer behind all that they send."""
    order: Order[Item] = Order()
    numbers = count()
    for _ in range(50):
        _add(order, ("before", "normal", next(numbers)), 1000)
    order.add(("huge", "normal", 0), "huge", "normal", 10**9)
    while _next(order) != ("huge", "normal", 0):
        pass
    _add(order, ("new", "normal", 0), 1000)
    passed = 0
    while _next(order) != ("new", "normal", 0):
        _add(order, ("before", "normal", next(numbers)), 1000)
        passed += 1
        assert passed <= LARGEST_STEP / 1000 + 2


def test_whoever_sends_a_huge_request_pays_for_all_of_it() -> None:
    order: Order[Item] = Order()
    for number in range(2):
        _add(order, ("huge", "normal", number), 10 * LARGEST_STEP)
    for number in range(200):
        _add(order, ("small", "normal", number), LARGEST_STEP // 10)
    served = [_next(order) for _ in range(100)]
    assert served.count(("huge", "normal", 0)) == 1
    assert ("huge", "normal", 1) not in served


def test_clients_without_end_cannot_hold_up_one_that_came_before() -> None:
    """Each newcomer would else be stamped with a virtual time that stands still, before the second one of "old"."""
    order: Order[Item] = Order()
    _add(order, ("old", "normal", 0), 100)
    _add(order, ("old", "normal", 1), 100)
    new = count()
    for _ in range(50):
        _add(order, (f"new{next(new)}", "normal", 0), 100)
    served = []
    while ("old", "normal", 1) not in served:
        _add(order, (f"new{next(new)}", "normal", 0), 100)
        item = _next(order)
        assert item is not None
        served.append(item)
        assert len(served) <= 110
    assert served[0] == ("old", "normal", 0)


def test_a_cancelled_request_costs_its_client_nothing() -> None:
    order = _filled(("b", "normal", 3))
    for number in range(50):
        _add(order, ("a", "normal", number), 1000)
    for number in range(49):
        assert not order.remove(("a", "normal", number))
    assert ("a", "normal", 49) in [_next(order) for _ in range(2)]


def test_memory_is_bounded_whatever_clients_call_themselves() -> None:
    order = _filled(("stays", "normal", 1))
    for number in range(3 * REMEMBERED):
        passer: Item = (f"passer{number}", "normal", 0)
        _add(order, passer)
        if number % 2:
            order.remove(passer)
        else:
            order.take(passer)
    of_class = order._classes["normal"]
    assert len(of_class._flows) == 1
    assert len(of_class._left) <= REMEMBERED
    assert len(of_class._heap) <= 2 * 2 + 64
    order.remove(("stays", "normal", 0))
    assert not of_class._left
    assert not of_class._heap


@pytest.mark.parametrize(
    ("waiting", "client", "priority", "who"),
    [
        pytest.param([], "a", "normal", None, id="nobody waits"),
        pytest.param([("a", "normal", 8)], "a", "normal", None, id="one's own do not make room"),
        pytest.param([("a", "normal", 8)], "b", "normal", ("a", "normal", 7), id="whoever has most does, its last"),
        pytest.param([("a", "normal", 5), ("b", "normal", 3)], "b", "normal", ("a", "normal", 4), id="fewer"),
        pytest.param([("a", "normal", 4), ("b", "normal", 3)], "b", "normal", None, id="not for one more or less"),
        pytest.param([("a", "normal", 8)], "a", "high", ("a", "normal", 7), id="a lower class does"),
        pytest.param([("a", "normal", 4), ("b", "low", 4)], "a", "high", ("b", "low", 3), id="the lowest first"),
        pytest.param([("a", "high", 7), ("b", "low", 1)], "c", "high", ("a", "high", 6), id="but is sure of its part"),
        pytest.param([("a", "high", 8)], "a", "low", ("a", "high", 7), id="which it gets from higher ones"),
        pytest.param([("a", "high", 7), ("b", "low", 1)], "a", "low", None, id="and no more"),
    ],
)
def test_who_leaves_a_full_queue(waiting: list[Item], client: str, priority: Priority, who: Item | None) -> None:
    assert _filled(*waiting).displaced(client, priority) == who


_OPERATIONS = st.one_of(
    st.tuples(st.just("add"), st.sampled_from("abc"), st.sampled_from(PRIORITIES), st.integers(1, 50)),
    st.tuples(st.just("retry"), st.sampled_from("abc"), st.sampled_from(PRIORITIES), st.just(1)),
    st.tuples(st.sampled_from(["take", "remove", "displace"]), *map(st.just, ("a", "normal", 1))),
)


@given(st.lists(_OPERATIONS, max_size=200))
def test_nothing_is_lost_or_served_twice(operations: list[tuple[str, str, Priority, int]]) -> None:
    order: Order[Item] = Order()
    inside: set[Item] = set()
    expected: defaultdict[tuple[str, Priority], deque[Item]] = defaultdict(deque)  # first come, first served
    retries: set[Item] = set()
    numbers = count()
    for what, client, priority, tokens in operations:
        if what in ("add", "retry"):
            item: Item = (client, priority, next(numbers))
            inside.add(item)
            if what == "add":
                expected[client, priority].append(item)
                _add(order, item, tokens)
            else:
                retries.add(item)
                order.add_retry(item, priority)
        else:
            find = {
                "take": order.first,
                "remove": lambda: min(inside, default=None),
                "displace": lambda: order.displaced("c", "normal"),
            }
            found = find[what]()
            assert (found is None) == (not inside) or what == "displace"
            if found is None:
                continue
            assert found in inside
            if what == "take":
                assert found in retries or expected[found[:2]][0] == found
                order.take(found)
            else:
                assert order.remove(found) == (found in retries)
            inside.remove(found)
            if found not in retries:
                expected[found[:2]].remove(found)
        assert len(order) == len(inside)
        assert order.high_waits == any(item[1] == "high" for item in inside - retries)
    assert set(_drained(order)) == inside
    assert len(order) == 0
