"""The sums of what gateways tell: what comes and goes must neither lose demand nor make any up."""

from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rerank_api.demand import DemandLine, RerankerDemand
from rerank_operator.demand.totals import MAX_REMEMBERED, SIGHT_SECONDS, SILENT_SECONDS, Totals

KEY = ("search", "products")
A, B = "10.0.0.1:9090", "10.0.0.2:9090"


def told(requests: int, **figures: Any) -> RerankerDemand:
    """100 tokens a request."""
    fields: Any = {"queued": 0, "queued_tokens": 0, "in_flight": 0, "in_flight_tokens": 0, **figures}
    return RerankerDemand(*KEY, arrived_requests=requests, arrived_tokens=requests * 100, **fields)


def line(*rerankers: RerankerDemand, process: str = "p", sent: float = 0.0, full: bool = False) -> DemandLine:
    return DemandLine(process, sent, full, list(rerankers))


def totals_of(*addresses: str, now: float = 0.0) -> Totals:
    totals = Totals()
    totals.found(set(addresses), now)
    return totals


def arrived(totals: Totals, now: float = 0.0) -> tuple[int, int]:
    demand = totals.told(KEY, now).demand
    return demand.arrived_requests, demand.arrived_tokens


def test_a_gateway_counts_from_what_it_says_when_it_is_met():
    totals = totals_of(A)
    totals.line(A, line(told(1000), full=True), 0.0)
    assert arrived(totals) == (0, 0)
    totals.line(A, line(told(1003)), 0.1)
    assert arrived(totals) == (3, 300)


def test_a_reranker_that_a_known_gateway_names_for_the_first_time_has_all_come_since():
    totals = totals_of(A)
    totals.line(A, line(full=True), 0.0)
    totals.line(A, line(told(2)), 0.1)
    assert arrived(totals) == (2, 200)


@pytest.mark.parametrize(
    ("process", "requests", "expected"),
    [("p", 17, 7), ("q", 17, 0), ("q", 3, 0), ("p", 3, 0)],
    ids=["reconnect", "another process", "restarted", "counters that fell"],
)
def test_the_first_line_of_another_stream(process: str, requests: int, expected: int):
    totals = totals_of(A)
    totals.line(A, line(told(10), full=True), 0.0)
    totals.connected(A)
    totals.line(A, line(told(requests), process=process, full=True), 5.0)
    assert arrived(totals, 5.0) == (expected, expected * 100)
    totals.line(A, line(told(requests + 2), process=process), 5.1)
    assert arrived(totals, 5.1) == (expected + 2, expected * 100 + 200)


def test_several_gateways_add_up_and_one_that_is_gone_takes_its_requests_along():
    totals = totals_of(A, B)
    totals.line(
        A,
        line(told(5, queued=2, queued_tokens=20, capacity=10.0, waking_since=7.0, outstanding={"x": 1, "y": 0}),
             full=True),
        0.0,
    )  # fmt: skip
    totals.line(
        B,
        line(told(9, in_flight=3, in_flight_tokens=30, capacity=30.0, waking_since=6.0, outstanding={"x": 2},
                  last_ended=4.0), process="q", full=True),
        0.0,
    )  # fmt: skip
    both = totals.told(KEY, 0.0)
    demand = both.demand
    assert (demand.queued, demand.queued_tokens, demand.in_flight, demand.in_flight_tokens) == (2, 20, 3, 30)
    assert (demand.complete, demand.last_ended) == (True, 4.0)
    assert (both.waking_since, both.outstanding) == (6.0, {"x": 3, "y": 0})
    assert both.capacity in (10.0, 30.0)
    totals.line(B, line(told(10), process="q"), 0.1)
    assert totals.gone(B) == {KEY}
    left = totals.told(KEY, 0.1).demand
    assert (left.queued, left.in_flight, left.arrived_requests, left.last_ended) == (2, 0, 1, 4.0)


def test_a_process_that_takes_an_address_over_has_nothing_of_the_one_before():
    totals = totals_of(A)
    totals.line(A, line(told(5, queued=4), full=True), 0.0)
    assert totals.line(A, line(process="q", full=True), 1.0) == {KEY}
    assert totals.told(KEY, 1.0).demand.queued == 0


def test_a_full_line_takes_away_what_it_does_not_name_and_no_false_burst_follows():
    totals = totals_of(A)
    totals.line(A, line(told(5, queued=4), full=True), 0.0)
    assert totals.line(A, line(full=True), 1.0) == {KEY}
    assert totals.told(KEY, 1.0).demand.queued == 0
    totals.line(A, line(told(6)), 2.0)
    assert arrived(totals) == (1, 100)


def test_silence_is_no_demand_of_zero():
    totals = totals_of(A, B)
    totals.line(A, line(told(5, queued=4), full=True), 0.0)
    assert not totals.told(KEY, 0.0).demand.complete  # B has not told anything yet
    totals.line(B, line(process="q", full=True), 0.0)
    assert totals.told(KEY, SILENT_SECONDS).demand.complete
    totals.line(B, line(process="q", sent=3.0), SILENT_SECONDS)
    later = totals.told(KEY, SILENT_SECONDS + 0.1).demand
    assert (later.queued, later.complete) == (4, False)
    assert totals.heard(SILENT_SECONDS + 0.1) == (1, 1)
    totals.gone(A)
    assert totals.told(KEY, SILENT_SECONDS + 0.1).demand.complete


def test_without_gateways_or_without_knowing_who_they_are_nothing_is_known():
    assert not Totals().told(KEY, 0.0).demand.complete
    assert not totals_of().told(KEY, 0.0).demand.complete
    totals = totals_of(A)
    for second in range(12):
        totals.line(A, line(sent=float(second), full=True), float(second))
    assert totals.complete(SIGHT_SECONDS)
    assert not totals.complete(SIGHT_SECONDS + 1)
    totals.found({A}, SIGHT_SECONDS + 1)
    assert totals.complete(SIGHT_SECONDS + 1)


def test_lines_that_lay_about_while_this_process_was_frozen_are_not_how_it_is_now():
    """Both clocks differ by 1000 s, which is no delay."""
    totals = totals_of(A)
    totals.line(A, line(told(5), sent=1000.0, full=True), 0.0)
    totals.line(A, line(told(6), sent=1001.0), 1.0)
    assert not totals.silent(A, 1.0)
    totals.line(A, line(told(7), sent=1002.0), 21.0)
    assert totals.silent(A, 21.0)
    assert arrived(totals, 21.0) == (2, 200)
    totals.connected(A)
    totals.line(A, line(told(9), sent=1021.0, full=True), 21.1)
    assert not totals.silent(A, 21.1)
    assert arrived(totals, 21.1) == (4, 400)


def test_what_is_gone_is_forgotten_and_a_namesake_does_not_begin_with_its_requests():
    """Regression: nothing was ever forgotten, and fresh names without end filled the memory."""
    totals = totals_of(A)
    totals.line(A, line(told(5, last_ended=3.0), full=True), 0.0)
    totals.line(A, line(told(9, last_ended=4.0)), 0.1)
    totals.keep({KEY})
    assert arrived(totals) == (4, 400)
    totals.keep({("search", "other")})
    assert arrived(totals) == (0, 0)
    assert totals.told(KEY, 0.1).demand.last_ended is None
    assert not {**totals._arrived, **totals._ended, **totals._gateways[A].figures}
    totals.line(A, line(told(10)), 0.2)
    assert arrived(totals) == (1, 100)


def test_what_is_not_known_here_yet_keeps_its_queue():
    totals = totals_of(A)
    totals.line(A, line(told(5, queued=2), full=True), 0.0)
    totals.keep(set())
    assert totals.told(KEY, 0.0).demand.queued == 2


def test_counters_of_what_is_gone_are_bounded_and_the_longest_gone_goes_first():
    totals = totals_of(A)
    many = [msgspec.structs.replace(told(1), name=str(number)) for number in range(MAX_REMEMBERED + 3)]
    totals.line(A, line(*many, full=True), 0.0)
    totals.line(A, line(many[0]), 0.1)
    totals.keep({("search", "1")})
    counted = totals._gateways[A].counted
    assert len(counted) == MAX_REMEMBERED + 1
    assert {"0", "1", "4"} <= {name for _, name in counted}
    assert not {"2", "3"} & {name for _, name in counted}


# --- any history ---


@dataclass
class Gateway:
    """One gateway as it really is, and what the operator has heard of it."""

    process: int = 0
    requests: int = 0
    queued: int = 0
    up: bool = False
    """A stream is open."""
    heard: bool = False
    """This process has been heard at all: what came before is not counted."""
    unheard: int = 0
    """Requests that came to this process since it was heard last, or before it ever was."""


STEPS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(["request", "request", "line", "line", "break", "connect", "restart", "vanish", "stale"]),
    ),
    max_size=80,
)


@settings(max_examples=200)
@given(STEPS)
def test_any_history_neither_makes_up_nor_loses_requests(steps: list[tuple[int, str]]):
    totals = Totals()
    addresses = ["a", "b", "c"]
    gateways = [Gateway() for _ in addresses]
    totals.found(addresses, 0.0)
    now, last, expected = 0.0, 0, 0

    def send(place: int, full: bool) -> None:
        nonlocal expected
        gateway = gateways[place]
        named = told(gateway.requests, queued=gateway.queued)
        totals.line(addresses[place], line(named, process=f"{place}-{gateway.process}", sent=now, full=full), now)
        expected += gateway.unheard if gateway.heard else 0
        gateway.heard, gateway.unheard = True, 0

    for place, step in steps:
        gateway = gateways[place]
        now += 0.01
        match step:
            case "request":
                gateway.requests += 1
                gateway.queued += 1
                gateway.unheard += 1
            case "line" if gateway.up:
                send(place, full=False)
            case "connect" if not gateway.up:
                gateway.up = True
                totals.connected(addresses[place])
                send(place, full=True)
            case "break":
                gateway.up = False
            case "restart":
                gateways[place] = Gateway(process=gateway.process + 1)
            case "vanish":
                totals.gone(addresses[place])
                gateways[place] = Gateway(process=gateway.process + 1)
            case "stale":
                now += SILENT_SECONDS + 1
        demand = totals.told(KEY, now).demand
        assert demand.arrived_requests >= last
        last = demand.arrived_requests
        assert demand.arrived_requests == expected
        assert demand.arrived_tokens == expected * 100
        assert demand.queued >= 0
