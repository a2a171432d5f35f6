"""The model: what is counted, hand-computed runs, and queueing theory."""

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rerank_operator.scaling.policy import Policy
from rerank_operator.scaling.simulate.fleet import TAIL, Plant
from rerank_operator.scaling.simulate.inputs import Arrival
from unit.operator.scaling.simulated import Scripted, manifest, replay, simulation

NORMAL = 1
PLANT = Plant(capacity=1000.0, cold_start=5.0, warm_start=1.0)


def waiting_needs_one(seen, now):
    return (int(seen.demand.queued + seen.demand.in_flight > 0), 0)


def test_a_cold_start_by_hand():
    """Woken at 10, ready at 15, served until 16; told to go at 20."""
    run = replay([(10.0, 1000, NORMAL)], lambda seen, now: (int(10 <= now < 20), 0), PLANT)
    outcome = run.outcomes[0]
    assert outcome.replica_seconds == 10.0
    assert list(outcome.waits) == [5.0]
    assert (outcome.requests, outcome.late, outcome.lost, outcome.unfinished) == (1, 1, 0, 0)
    assert (outcome.peak_replicas, outcome.scale_events, run.peak_replicas) == (1, 2, 1)
    assert (run.begin, run.end) == (0.0, 10.0 + TAIL)


@pytest.mark.parametrize(("threshold", "late"), [(6.0, 0), (5.99, 1)])
def test_the_objective_counts_wait_and_service(threshold: float, late: int):
    one = manifest(Policy(latency_threshold=threshold))
    run = replay([(10.0, 1000, NORMAL)], waiting_needs_one, PLANT, one)
    assert run.outcomes[0].late == late


def test_a_warm_pod_by_hand():
    """Claimed at 10, serves from 11, given back at 20: ten seconds of loaner, the pool idles for the rest."""
    run = replay([(10.0, 1000, NORMAL)], lambda seen, now: (0, int(10 <= now < 20)), replace(PLANT, warm_pods=2))
    outcome = run.outcomes[0]
    assert list(outcome.waits) == [1.0]
    assert (outcome.replica_seconds, outcome.loaner_seconds) == (10.0, 10.0)
    assert run.warm_idle_seconds == 2 * (10.0 + TAIL) - 10.0


def test_a_replica_that_is_told_to_go_finishes_what_it_has_and_costs_until_then():
    one = manifest(Policy(min_replicas=1))
    run = replay([(0.0, 10_000, NORMAL), (7.0, 1000, NORMAL)], lambda seen, now: (int(now < 5), 0), PLANT, one)
    outcome = run.outcomes[0]
    assert outcome.replica_seconds == 10.0
    assert (len(outcome.waits), outcome.unfinished) == (1, 1), "the draining replica takes nothing new"


def test_a_start_that_is_called_off_costs_until_then():
    run = replay([(10.0, 1000, NORMAL)], lambda seen, now: (3 if 10 <= now < 12 else int(now >= 10), 0), PLANT)
    assert run.outcomes[0].replica_seconds == 2 * 2.0 + TAIL
    assert run.outcomes[0].peak_replicas == 3


def test_the_idlest_replica_goes_first():
    """Two replicas, one busy until 10: the other one goes at once."""
    one = manifest(Policy(min_replicas=2))
    run = replay([(0.0, 10_000, NORMAL)], lambda seen, now: (2 if now < 5 else 1, 0), PLANT, one)
    assert run.outcomes[0].replica_seconds == 5.0 + TAIL
    assert list(run.outcomes[0].waits) == [0.0]


def test_a_run_goes_on_while_requests_are_held():
    one = manifest(Policy(min_replicas=1))
    run = replay([(1.0, 700_000, NORMAL)], lambda seen, now: (int(now < 2), 0), PLANT, one)
    assert (run.end, run.outcomes[0].replica_seconds, run.outcomes[0].unfinished) == (701.0, 701.0, 0)


def test_what_still_drains_when_a_run_is_given_up_is_paid():
    one = manifest(Policy(min_replicas=1))
    run = replay([(0.0, 10**9, NORMAL)], lambda seen, now: (int(now < 2), 0), PLANT, one)
    assert (run.end, run.outcomes[0].replica_seconds, run.outcomes[0].unfinished) == (7_200.0, 7_200.0, 1)


def test_an_exhausted_pool_gives_in_the_order_of_the_wishes():
    plant = replace(PLANT, warm_pods=1)
    claims = [(0, 20), (3, 40), (2, 60)]
    scripts = [lambda seen, now, one=one: (0, int(one[0] <= now < one[1])) for one in claims]
    traces: list[list[Arrival]] = [[(1.0, 1, NORMAL)], [(4.0, 1, NORMAL)], [(3.0, 1, NORMAL)]]
    run = simulation(traces, scripts, plant).run()
    assert [outcome.loaner_seconds for outcome in run.outcomes] == [20.0, 0.0, 40.0]
    assert run.warm_idle_seconds == run.end - 60.0
    assert run.outcomes[1].unfinished == 1, "it gave up its wish before a pod was free"


def test_a_wish_that_is_taken_back_claims_nothing():
    plant = replace(PLANT, warm_pods=1)
    scripts = [lambda seen, now: (0, int(now < 20)), lambda seen, now: (0, int(now < 10))]
    run = simulation([[(1.0, 1, NORMAL)], []], scripts, plant).run()
    assert [outcome.loaner_seconds for outcome in run.outcomes] == [20.0, 0.0]


def test_the_queue_limit_refuses_and_the_timeout_ends():
    one = manifest(queue=2, timeout=3.0)
    trace: list[Arrival] = [(0.0, 1, NORMAL), (0.0, 1, NORMAL), (1.0, 1, NORMAL), (4.0, 1, NORMAL)]
    run = replay(trace, lambda seen, now: (int(now >= 1), 0), PLANT, one)
    outcome = run.outcomes[0]
    assert (outcome.rejected, outcome.timed_out, list(outcome.waits)) == (1, 2, [2.0])


def test_time_in_the_system_counts_what_was_lost_until_it_was_lost():
    one = manifest(timeout=3.0)
    built = simulation([[(0.5, 1, NORMAL)]], [lambda seen, now: (0, 0)], PLANT, one)
    built.run()
    assert built.services[0].request_seconds == pytest.approx(3.0)


def test_without_requests_nothing_is_waited_for():
    run = replay([], lambda seen, now: (0, 0), replace(PLANT, warm_pods=1))
    assert (run.outcomes[0].requests, run.outcomes[0].replica_seconds) == (0, 0.0)
    assert run.warm_idle_seconds == run.end - run.begin == TAIL


def test_what_no_replica_ever_takes_is_unfinished_and_the_run_ends():
    run = replay([(0.0, 1, NORMAL)] * 3, lambda seen, now: (0, 0), PLANT)
    assert (run.outcomes[0].unfinished, run.outcomes[0].lost) == (3, 0)
    assert run.end == 7_200.0


def test_a_trace_in_unix_time_begins_with_its_first_request():
    run = replay([(1_700_000_000.5, 1, NORMAL)], lambda seen, now: (1, 0), PLANT)
    assert (run.begin, run.end) == (1_700_000_000.0, 1_700_000_000.5 + TAIL)


def test_a_controller_is_told_what_is_true():
    """One replica, batch of one: at 2 s one request is served, one waits; at 5 s both have ended."""
    plant = replace(PLANT, batch=1)
    built = simulation([[(1.5, 1000, NORMAL), (1.5, 2000, NORMAL)]], [lambda seen, now: (1, 0)], plant)
    built.services[0].begin(1, 0.0)
    built.run()
    controller = built.services[0].controller
    assert isinstance(controller, Scripted)
    told = dict(controller.seen)
    then, after = told[2.0], told[5.0]
    assert (then.demand.queued, then.demand.queued_tokens) == (1, 2000)
    assert (then.demand.in_flight, then.demand.in_flight_tokens, then.demand.last_ended) == (1, 1000, 2.0)
    assert (after.demand.queued, after.demand.in_flight, after.demand.last_ended) == (0, 0, 4.5)
    assert (after.demand.arrived_requests, after.demand.arrived_tokens) == (2, 3000)
    assert after.request_seconds == pytest.approx(1.0 + 3.0)
    assert (after.fleet.wanted, after.fleet.ready, after.fleet.capacity) == (1, 1, 1000.0)


def test_who_is_eager_is_asked_when_requests_wait_but_not_more_often_than_it_said():
    built = simulation([[(1 + place / 100, 1, NORMAL) for place in range(50)]], [lambda seen, now: (0, 0)], PLANT)
    controller = built.services[0].controller
    assert isinstance(controller, Scripted)
    controller.eager = 0.1
    built.run()
    asked = [now for now, _ in controller.seen if 1 <= now < 1.5]
    assert asked == pytest.approx([1.0, 1.1, 1.2, 1.3, 1.4])


ARRIVALS = st.lists(
    st.tuples(st.floats(0, 200, allow_nan=False), st.integers(1, 20_000), st.integers(0, 2)), max_size=60
).map(sorted)


@settings(max_examples=30)
@given(
    traces=st.lists(ARRIVALS, min_size=1, max_size=3),
    orders=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=20),
    pods=st.integers(0, 3),
    limit=st.sampled_from([1, 5, math.inf]),
    timeout=st.sampled_from([2.0, math.inf]),
)
def test_nothing_is_created_and_nothing_vanishes(traces, orders, pods, limit, timeout):
    """Whatever a controller orders: each request is served, lost or still held; each pod is idle or lent."""
    scripts = [lambda seen, now: orders[int(now) % len(orders)]] * len(traces)
    plant = replace(PLANT, warm_pods=pods)
    built = simulation(traces, scripts, plant, manifest(queue=limit, timeout=timeout))
    run = built.run()
    for trace, service in zip(traces, built.services, strict=True):
        outcome = service.outcome
        assert outcome.requests == len(trace)
        assert outcome.requests == len(outcome.waits) + outcome.lost + outcome.unfinished
        assert outcome.unfinished == service.waiting.count + service.in_flight
        assert all(wait >= 0 for wait in outcome.waits)
        assert all(wait <= timeout for wait in outcome.waits)
        assert 0 <= outcome.loaner_seconds <= outcome.replica_seconds + 1e-6
        work = sum(tokens for _, tokens, _ in trace) / PLANT.capacity
        if not outcome.lost + outcome.unfinished:
            assert outcome.replica_seconds >= work - 1e-6, "no replica is faster than it is"
    lent = sum(outcome.loaner_seconds for outcome in run.outcomes)
    assert lent + run.warm_idle_seconds == pytest.approx(pods * (run.end - run.begin))


def poisson(rate: float, requests: int, tokens, seed: int = 7) -> list[Arrival]:
    chance = random.Random(seed)
    now, found = 0.0, []
    for _ in range(requests):
        now += chance.expovariate(rate)
        found.append((now, tokens(chance), NORMAL))
    return found


def fixed(replicas: int, batch: int, trace: list[Arrival]):
    plant = Plant(10_000.0, 0.0, 0.0, batch=batch)
    built = simulation([trace], [lambda seen, now: (replicas, 0)], plant, manifest(Policy(min_replicas=replicas)))
    return built, built.run().outcomes[0]


def test_one_replica_that_serves_one_at_a_time_is_m_d_1():
    """Mean wait rho / (2 (1 - rho)) services: 0.8 / 0.4 = 2 of them, 0.2 s."""
    _, outcome = fixed(1, 1, poisson(8.0, 40_000, lambda _: 1000))
    assert sum(outcome.waits) / len(outcome.waits) == pytest.approx(0.2, rel=0.05)


def test_three_replicas_are_m_m_3():
    """Erlang C for an offered load of 2.1: 0.4923 wait; mean wait C / (c mu - lambda) = 0.4923 / 9."""
    trace = poisson(21.0, 60_000, lambda chance: max(1, round(chance.expovariate(1 / 1000))))
    _, outcome = fixed(3, 1, trace)
    terms = [2.1**k / math.factorial(k) for k in range(3)]
    last = 2.1**3 / math.factorial(3) / (1 - 0.7)
    erlang_c = last / (sum(terms) + last)
    assert sum(outcome.waits) / len(outcome.waits) == pytest.approx(erlang_c / 9, rel=0.06)
    assert sum(wait > 0 for wait in outcome.waits) / len(outcome.waits) == pytest.approx(erlang_c, rel=0.04)


@pytest.mark.parametrize("spread", [0.01, 1.2])
def test_a_shared_replica_is_m_g_1_processor_sharing(spread: float):
    """Mean time in the system S / (1 - rho), whatever the sizes' spread: 0.1 / 0.4."""
    mean = math.log(1000) - spread**2 / 2
    trace = poisson(6.0, 60_000, lambda chance: max(1, round(chance.lognormvariate(mean, spread))))
    built, outcome = fixed(1, 10**9, trace)
    assert built.services[0].request_seconds / len(trace) == pytest.approx(0.25, rel=0.06)
    assert max(outcome.waits) == 0.0
