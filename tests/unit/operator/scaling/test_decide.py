import itertools
import math
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rerank_operator.scaling.decide import LONGEST_START_SECONDS, STEP_SECONDS, Decision, decide
from rerank_operator.scaling.demand import Demand, Fleet
from rerank_operator.scaling.memory import Bucket, Memory
from rerank_operator.scaling.policy import Policy
from rerank_operator.scaling.schedules import Schedule

CAPACITY = 10_000.0
NOON = 1_779_969_600.0
"""2026-05-28T12:00:00Z."""


# --- a little world that follows the decisions: work flows in, waits and is served, second by second ---


@dataclass
class World:
    policy: Policy = field(default_factory=Policy)
    pool: int = 0
    start_seconds: float = 60.0
    wake_seconds: float = 2.0
    size: int = 500
    """Tokens of each request."""
    capacity: float | None = CAPACITY
    now: float = NOON
    memory: Memory = field(default_factory=Memory)
    own: list[float] = field(default_factory=list)
    """When each own replica is ready."""
    warm: list[float] = field(default_factory=list)
    queued: float = 0.0
    arrived: int = 0
    last_ended: float | None = None
    complete: bool = True
    unproven: bool = False
    decisions: list[Decision] = field(default_factory=list)

    def ready(self) -> int:
        return sum(time <= self.now for time in self.own)

    def demand(self) -> Demand:
        waiting = math.ceil(self.queued / self.size)
        return Demand(
            queued=waiting,
            queued_tokens=round(self.queued),
            in_flight=0,
            in_flight_tokens=0,
            arrived_requests=self.arrived // self.size,
            arrived_tokens=self.arrived,
            last_ended=self.last_ended,
            complete=self.complete,
        )

    def fleet(self) -> Fleet:
        loaners = sum(time <= self.now for time in self.warm)
        return Fleet(
            wanted=len(self.own),
            ready=self.ready(),
            starting=len(self.own) - self.ready(),
            loaners=loaners,
            claiming=len(self.warm) - loaners,
            capacity=self.capacity,
            start_seconds=self.start_seconds,
            wake_seconds=2.0,
            warm_free=self.pool - len(self.warm),
            unproven=self.unproven,
        )

    def second(self, load: float) -> Decision:
        """One second in which as much work arrives as ``load`` replicas can do."""
        self.now += 1
        fleet = self.fleet()
        tokens = round(load * CAPACITY / self.size) * self.size
        self.arrived += tokens
        work = self.queued + tokens
        served = min(work, (fleet.ready + fleet.loaners) * CAPACITY)
        if served:
            self.last_ended = self.now
        self.queued = work - served
        decision = decide(self.policy, self.demand(), fleet, self.memory, self.now)
        self.memory = decision.memory
        self.own = sorted(self.own)[: decision.replicas]
        self.own += [self.now + self.start_seconds] * (decision.replicas - len(self.own))
        self.warm = sorted(self.warm)[: decision.loaners]
        self.warm += [self.now + self.wake_seconds] * min(decision.loaners - len(self.warm), self.pool - len(self.warm))
        self.decisions.append(decision)
        return decision

    def run(self, load: float, seconds: int) -> list[Decision]:
        return [self.second(load) for _ in range(seconds)]


def changes(decisions: list[Decision]) -> int:
    return sum(a.replicas != b.replicas for a, b in itertools.pairwise(decisions))


# --- properties, of one decision on anything ---

COUNTS = st.integers(0, 12)
POLICIES = st.builds(
    lambda low, more, depth, idle, pool: Policy(
        min_replicas=low,
        max_replicas=max(1, low + more),
        target_queue_depth=depth,
        idle_timeout=idle,
        warm_pool=pool,
    ),
    st.integers(0, 4),
    st.integers(0, 10),
    st.floats(0.5, 10),
    st.sampled_from([5.0, 300.0]),
    st.sampled_from([None, "shared"]),
)
FLEETS = st.builds(
    Fleet,
    wanted=COUNTS,
    ready=st.integers(0, 4),
    starting=st.integers(0, 4),
    loaners=st.integers(0, 3),
    claiming=st.integers(0, 3),
    capacity=st.sampled_from([None, 1000.0, CAPACITY]),
    start_seconds=st.floats(1, 300),
    wake_seconds=st.floats(0.5, 5),
    warm_free=st.integers(0, 4),
    unproven=st.booleans(),
)


@st.composite
def demands(draw: st.DrawFn) -> Demand:
    queued, in_flight, size = draw(COUNTS), draw(COUNTS), draw(st.integers(1, 5000))
    requests = draw(st.integers(0, 100_000))
    return Demand(
        queued=queued,
        queued_tokens=queued * size,
        in_flight=in_flight,
        in_flight_tokens=in_flight * size,
        arrived_requests=requests,
        arrived_tokens=requests * size,
        last_ended=draw(st.none() | st.floats(NOON - 1000, NOON)),
        complete=draw(st.booleans()),
    )


@st.composite
def memories(draw: st.DrawFn) -> Memory:
    """Of a Reranker that has been looked at before NOON."""
    if draw(st.booleans()):
        return Memory()
    ages = sorted(draw(st.lists(st.floats(1, 1000), min_size=1, max_size=6, unique=True)), reverse=True)
    needs = [sorted(draw(st.tuples(COUNTS, COUNTS))) for _ in ages]
    return Memory(
        seen=NOON - draw(st.floats(0.1, 30)),
        arrived_requests=draw(st.integers(0, 1000)),
        arrived_tokens=draw(st.integers(0, 1_000_000)),
        fast=draw(st.floats(0, 200_000)),
        slow=draw(st.floats(0, 200_000)),
        slow_requests=draw(st.floats(0, 1000)),
        buckets=tuple(Bucket(NOON - age, *need) for age, need in zip(ages, needs, strict=True)),
        level=draw(COUNTS),
        level_seen=NOON - draw(st.floats(0, 100)),
        peak=draw(COUNTS),
        bursts=tuple(draw(st.lists(COUNTS, max_size=3))),
        active=NOON - draw(st.floats(0, 1000)),
        stepped=NOON - draw(st.floats(0, 1000)),
        woken=draw(st.none() | st.floats(NOON - 2 * LONGEST_START_SECONDS, NOON)),
    )


FEWER_WOULD_DO: dict[str, Any] = {"buckets": (Bucket(NOON - 1000, 0, 1),), "level": 0, "stepped": NOON - 1000}
"""The part of a memory that lets replicas go."""


@st.composite
def near_zero(draw: st.DrawFn) -> tuple[Policy, Demand, Fleet, Memory]:
    """Where the last replica may go or not: among all states these are rare."""
    one_of_four, few, ages = st.sampled_from([0, 0, 0, 1]), st.integers(0, 2), st.sampled_from([0.0, 299.5, 300.0, 1e3])
    queued, in_flight = draw(one_of_four), draw(one_of_four)
    ended, active = (draw(st.none() | ages.map(lambda age: NOON - age)) for _ in range(2))
    policy = replace(draw(POLICIES), min_replicas=0, idle_timeout=300.0)
    demand = replace(
        draw(demands()),
        queued=queued,
        queued_tokens=100 * queued,
        in_flight=in_flight,
        in_flight_tokens=100 * in_flight,
        last_ended=ended,
    )
    fleet = replace(
        draw(FLEETS),
        wanted=draw(few),
        ready=draw(few),
        starting=draw(one_of_four),
        loaners=draw(few),
        claiming=draw(one_of_four),
        unproven=bool(draw(one_of_four)),
    )
    silent: dict[str, Any] = {"seen": None, "fast": 0.0, "slow": 0.0} if draw(st.booleans()) else {}
    memory = replace(
        draw(memories()),
        **silent,
        **FEWER_WOULD_DO | {"level": draw(one_of_four), "stepped": NOON - draw(ages)},
        active=active,
    )
    return policy, demand, fleet, memory


@given(POLICIES, demands(), FLEETS, memories())
def test_bounds(policy: Policy, demand: Demand, fleet: Fleet, memory: Memory):
    decision = decide(policy, demand, fleet, memory, NOON)
    assert policy.min_replicas <= decision.replicas <= policy.max_replicas
    assert 0 <= decision.loaners <= (policy.max_replicas if policy.warm_pool else 0)
    assert 0 < decision.again <= 60
    assert len(decision.memory.buckets) <= max(20, len(memory.buckets) + 1)


@settings(max_examples=500)
@given(near_zero())
def test_zero_only_from_one_and_only_when_idle(state: tuple[Policy, Demand, Fleet, Memory]):
    policy, demand, fleet, memory = state
    decision = decide(policy, demand, fleet, memory, NOON)
    last_own = fleet.wanted > 0 and not decision.replicas
    # Not the last one: a warm pod beside an own one that is to go, and still serves. Those of a pool that is no longer
    # named go at once.
    lent = fleet.loaners + fleet.claiming > 0 and not fleet.ready and policy.warm_pool is not None
    if last_own:
        assert fleet.wanted == 1
        assert fleet.ready <= 1
    if last_own or (lent and not decision.replicas + decision.loaners):
        assert not demand.queued + demand.in_flight
        assert demand.complete
        assert demand.last_ended is None or NOON - demand.last_ended >= policy.idle_timeout
        assert memory.active is None or NOON - memory.active >= policy.idle_timeout


@settings(max_examples=500)
@given(near_zero())
def test_who_asks_has_somebody_to_come(state: tuple[Policy, Demand, Fleet, Memory]):
    policy, demand, fleet, memory = state
    if not demand.queued + demand.in_flight:
        demand = replace(demand, queued=1, queued_tokens=100)
    decision = decide(policy, demand, replace(fleet, ready=0), memory, NOON)
    assert decision.replicas + decision.loaners > 0


@given(POLICIES, demands(), FLEETS, memories(), COUNTS, st.integers(0, 50_000), st.integers(0, 500_000))
def test_more_demand_never_gives_fewer(
    policy: Policy, demand: Demand, fleet: Fleet, memory: Memory, queued: int, queued_tokens: int, arrived_tokens: int
):
    assume(demand.arrived_tokens >= memory.arrived_tokens)  # fewer means that the counters were lost
    more = replace(
        demand,
        queued=demand.queued + queued,
        queued_tokens=demand.queued_tokens + (queued_tokens if demand.queued + queued else 0),
        arrived_tokens=demand.arrived_tokens + arrived_tokens,
    )
    less, greater = (decide(policy, each, fleet, memory, NOON) for each in (demand, more))
    assert greater.replicas >= less.replicas
    assert greater.loaners >= less.loaners


@given(POLICIES, demands(), FLEETS, memories())
def test_nothing_shrinks_on_stale_figures(policy: Policy, demand: Demand, fleet: Fleet, memory: Memory):
    memory = replace(memory, **FEWER_WOULD_DO)
    decision = decide(policy, replace(demand, complete=False), fleet, memory, NOON)
    assert decision.replicas >= min(fleet.wanted, policy.max_replicas)
    if policy.warm_pool:
        assert decision.loaners >= min(fleet.loaners + fleet.claiming, max(0, policy.max_replicas - fleet.ready))


@pytest.mark.parametrize("coming", [{"starting": 1}, {"starting": 0, "claiming": 1}], ids=["own", "warm"])
@given(policy=POLICIES, demand=demands(), fleet=FLEETS, memory=memories())
def test_nothing_shrinks_while_replicas_start_for_waiting_requests(
    coming: dict[str, int], policy: Policy, demand: Demand, fleet: Fleet, memory: Memory
):
    demand, fleet = replace(demand, queued=1, queued_tokens=100), replace(fleet, **coming)
    memory = replace(memory, **FEWER_WOULD_DO)
    decision = decide(policy, demand, fleet, memory, NOON)
    assert decision.replicas >= min(fleet.wanted, policy.max_replicas)
    if policy.warm_pool:
        assert decision.loaners >= min(fleet.loaners + fleet.claiming, max(0, policy.max_replicas - fleet.ready))


@given(POLICIES, demands(), FLEETS, memories())
def test_a_restart_changes_nothing(policy: Policy, demand: Demand, fleet: Fleet, memory: Memory):
    stored = msgspec.json.decode(msgspec.json.encode(memory), type=Memory)
    assert decide(policy, demand, fleet, stored, NOON) == decide(policy, demand, fleet, memory, NOON)


@pytest.mark.parametrize("pool", [0, 2])
@settings(deadline=None, max_examples=20)
@given(load=st.floats(0.05, 7.5))
def test_constant_demand_settles(pool: int, load: float):
    world = World(Policy(max_replicas=12, warm_pool="shared" if pool else None), pool)
    world.run(load, 700)  # twelve time constants of the slow rate: no threshold lies in what it still has to go
    assert changes(world.run(load, 200)) == 0
    assert world.queued == 0


# --- how it goes, told with the little world ---


def pooled(pods: int) -> World:
    return World(Policy(warm_pool="shared"), pods)


def test_the_first_request_starts_one_replica_and_waits_for_it():
    world = World()
    world.run(0, 10)
    decision = world.second(0.5)
    assert (decision.replicas, decision.loaners, decision.reason) == (1, 0, "DemandRose")
    assert {each.replicas for each in world.run(0, 50)} == {1}


def test_the_first_request_wakes_a_warm_pod_and_starts_nothing():
    world = pooled(1)
    world.run(0, 10)
    decision = world.second(0.1)
    assert (decision.replicas, decision.loaners) == (0, 1)
    world.run(0, 3)
    assert world.queued == 0
    assert {(each.replicas, each.loaners) for each in world.run(0, 200)} == {(0, 1)}


def test_a_new_revision_starts_an_own_replica_although_a_warm_pod_serves_the_old_one():
    """Seen on a cluster: warm pods went on serving the old revision, and the new one was never tried."""
    world = pooled(1)
    world.run(0, 10)
    world.unproven = True
    assert world.run(0, 50)[-1].replicas == 0  # nobody asks: it can wait
    decision = world.second(0.1)
    assert (decision.replicas, decision.loaners, decision.reason) == (1, 1, "NewRevision")
    waiting = world.run(0.1, 50)
    assert {(each.replicas, each.loaners) for each in waiting} == {(1, 1)}
    world.run(0.1, 20)
    world.unproven = False  # it has become ready, and serves
    assert {each.replicas for each in world.run(0.1, 50)} == {1}
    assert world.run(0, 600)[-1].replicas == 0


def test_a_new_revision_that_does_not_start_does_not_keep_a_warm_pod_for_ever():
    world = pooled(1)
    world.run(0, 10)
    world.unproven, world.start_seconds = True, 1e9
    world.run(0.1, 30)
    assert len(world.own) == 1
    last = world.run(0, 3000)[-1]
    assert (last.replicas, last.loaners) == (0, 0)


def test_the_last_own_replica_goes_without_a_warm_pod_in_its_place():
    """Seen on a cluster: what had just been needed asked for a loaner at the moment in which idle time was over."""
    world = World(Policy(warm_pool="shared", idle_timeout=15.0), 2)
    world.run(0.1, 200)
    assert world.ready() == 1
    quiet = world.run(0, 60)
    assert quiet[-1].replicas == 0
    assert {each.loaners for each in quiet} == {0}


def test_straight_up_to_the_computed_demand():
    """Not 0, 1, 2, ... over minutes: the crowd is told of within seconds."""
    world = World()
    world.run(0, 10)
    assert max(each.replicas for each in world.run(6.0, 10)) >= 6


def test_a_surge_shorter_than_a_start_is_left_to_warm_pods():
    world = pooled(4)
    world.run(0.1, 300)
    before = world.decisions[-1].replicas
    surge = world.run(3.0, 40)
    assert {each.replicas for each in surge} == {before}
    assert max(each.loaners for each in surge) >= 3 - before
    assert world.queued == 0
    after = world.run(0.1, 300)
    assert {each.replicas for each in after} == {before}
    assert (before, after[-1].loaners) == (1, 0)


def test_own_replicas_take_over_from_warm_pods_when_a_surge_lasts():
    world = pooled(4)
    world.run(3.0, 300)
    assert world.ready() >= 3
    assert world.decisions[-1].loaners <= 1
    assert world.queued == 0


def test_a_burst_is_met_with_as_many_warm_pods_as_the_last_ones_needed():
    world = pooled(6)
    first_orders = []
    for _ in range(5):
        world.run(0, 30)
        first_orders.append(world.second(2.5).loaners)
        world.run(2.5, 20)
    assert world.decisions[-1].memory.bursts == (4, 4, 4)
    assert first_orders == [3, 3, 3, 4, 4]


@pytest.mark.parametrize("load", [0.05, 2.0])
def test_warm_pods_that_never_come_keep_nobody_waiting_for_ever(load: float):
    world = World(Policy(warm_pool="shared"), pool=4, wake_seconds=1e9)
    world.run(0, 10)
    world.second(load)
    world.run(load if load > 1 else 0, 80)
    assert world.decisions[-1].replicas >= 1
    world.run(load if load > 1 else 0, 600)
    assert world.queued == 0


def test_what_the_pool_cannot_cover_starts_at_once():
    world = pooled(1)
    world.run(0, 10)
    decisions = world.run(4.0, 5)
    assert decisions[-1].replicas >= 2
    assert decisions[-1].loaners >= 1


def test_the_last_replica_goes_when_the_last_request_has_ended_for_the_idle_timeout():
    world = World(Policy(idle_timeout=100.0))
    world.run(0.2, 300)
    ended = world.now
    for decision in world.run(0, 99):
        assert (decision.replicas, world.last_ended) == (1, ended)
    decision = world.second(0)
    assert (decision.replicas, decision.reason, world.now - ended) == (0, "Idle", 100.0)


def test_what_starts_is_not_stopped_before_it_could_serve():
    """Regression: with an idle timeout shorter than a start, a new Reranker never came up without a request."""
    world = World(Policy(idle_timeout=20.0), own=[NOON + 60.0])
    assert {decision.replicas for decision in world.run(0, 78)} == {1}
    assert world.run(0, 2)[-1].replicas == 0


def test_down_in_steps_of_half_and_never_from_two_to_none():
    world = World(Policy(idle_timeout=60.0, max_replicas=12))
    world.run(9.0, 400)
    counts = [each.replicas for each in world.run(0, 400)]
    steps = [a for a, b in zip(counts, [*counts[1:], -1], strict=True) if a != b]
    assert steps[0] >= 9
    assert steps[-2:] == [1, 0]
    assert all(b >= a / 2 for a, b in itertools.pairwise(steps[:-1]))


def test_a_dip_shorter_than_the_stabilisation_changes_nothing():
    world = World()
    world.run(3.0, 400)
    before = world.decisions[-1].replicas
    assert {each.replicas for each in world.run(0.5, 60) + world.run(3.0, 100)} == {before}


def test_a_gateway_that_stops_answering_counts_as_its_last_demand():
    world = World()
    world.run(3.0, 400)
    before = world.decisions[-1].replicas
    told = world.arrived
    world.complete = False
    decisions = []
    for _ in range(600):
        decision = world.second(0)
        decisions.append((decision.replicas, decision.reason))
    assert set(decisions) == {(before, "DemandUnknown")}
    world.complete, world.arrived = True, told + 600 * 3 * int(CAPACITY)  # it had gone on all the time
    assert {each.replicas for each in world.run(3.0, 100)} == {before}


def test_lost_counters_are_no_fall_of_demand():
    world = World()
    world.run(3.0, 400)
    before = world.decisions[-1].replicas
    world.arrived = 0
    assert {each.replicas for each in world.run(3.0, 100)} == {before}


def test_no_history_is_no_reason_to_shrink():
    """The operator is new, or its status was lost: what runs goes on until there is something to judge it by."""
    world = World(own=[0.0] * 5)
    assert {each.replicas for each in world.run(0.1, 100)} == {5}


def test_unknown_capacity_goes_by_the_queue():
    fleet = Fleet(0, 0, 0, 0, 0, None, 60.0, 2.0, 0)
    demand = Demand(9, 4500, 0, 0, 9, 4500, None)
    decision = decide(Policy(target_queue_depth=4), demand, fleet, Memory(), NOON)
    assert (decision.replicas, decision.reason) == (3, "QueueWaits")


def test_floor_of_the_policy_and_of_a_schedule():
    noon = Schedule("noon", "0 12 * * *", "5 12 * * *", 3)
    world = World(Policy(min_replicas=1, schedules=(noon,)), now=NOON - 120)
    counts = [each.replicas for each in world.run(0, 1200)]
    assert counts[0] == 1
    assert counts[119 - 60 :][:360] == [3] * 360  # led by the time that a replica takes to start, to the end
    assert counts[-1] == 1
    assert "BelowFloor" in {each.reason for each in world.decisions}


def test_a_lowered_maximum_is_obeyed_at_once():
    world = World(Policy(max_replicas=2), own=[0.0] * 5)
    decision = world.second(1.0)
    assert (decision.replicas, decision.reason) == (2, "AboveMaximum")


def test_a_restart_at_any_moment_changes_nothing():
    loads = [0.0] * 20 + [3.0] * 100 + [0.3] * 150 + [0.0] * 400
    steady, restarted = pooled(2), pooled(2)
    for load in loads:
        steady.second(load)
        restarted.memory = msgspec.json.decode(msgspec.json.encode(restarted.memory), type=Memory)
        restarted.second(load)
    assert steady.decisions == restarted.decisions
    assert len(msgspec.json.encode(steady.memory)) < 2000


def test_the_message_has_the_figures():
    world = World()
    world.run(0, 5)
    assert world.second(0.5).message == (
        "a load of 0.09 replicas, 10 requests wait and 0 are served by 0 replicas and 0 warm pods; 1 are needed: there "
        "is no warm pool"
    )


def test_the_message_tells_why_a_small_load_has_many_replicas():
    """Regression: "a load of 0.12 replicas ... 2 are needed: more were needed a while ago", of 5."""
    world = World(own=[0.0] * 5)
    world.run(4, 200)
    decision = world.run(1.2, 20)[-1]
    assert (decision.replicas, decision.reason) == (6, "Stabilizing"), decision.message
    assert "3 are needed with room for spec.slo.latency and what waits: " in decision.message
    assert decision.message.endswith(": 6 were needed within the last 120 s")


def test_one_giant_request_is_the_work_of_one_replica():
    """Regression: one request of a billion tokens held all replicas for as long as the rates remembered it."""
    world = World(Policy(max_replicas=8), own=[0.0])
    world.run(0, 5)
    world.arrived += 10**9
    fleet = world.fleet()
    for second in range(1, 600):
        demand = Demand(0, 0, 1, 10**9, 1, world.arrived, None)
        decision = decide(world.policy, demand, fleet, world.memory, world.now + second)
        world.memory = decision.memory
        assert decision.replicas <= 2


@given(POLICIES, demands(), FLEETS, memories())
def test_own_replicas_that_serve_and_warm_pods_are_not_more_than_the_maximum(
    policy: Policy, demand: Demand, fleet: Fleet, memory: Memory
):
    decision = decide(policy, demand, fleet, memory, NOON)
    assert fleet.ready + decision.loaners <= max(policy.max_replicas, fleet.ready)


def test_a_replica_that_never_comes_goes_when_nobody_asks():
    """Regression: what starts counted as busy for ever, so a worker in a crash loop held its place for weeks."""
    world = World(Policy(idle_timeout=300.0))
    world.run(0, 10)
    assert world.second(0.5).replicas == 1
    world.own, world.queued = [math.inf], 0.0  # it crashes, and who asked has given up
    gone = [decision.replicas for decision in world.run(0, 3600)].index(0)
    assert LONGEST_START_SECONDS <= gone <= LONGEST_START_SECONDS + 310


def test_a_slow_start_is_waited_for_and_for_longer_while_requests_wait():
    world = World(Policy(idle_timeout=60.0), own=[NOON + LONGEST_START_SECONDS - 10])
    assert {decision.replicas for decision in world.run(0, int(LONGEST_START_SECONDS))} == {1}
    waiting = World(Policy(idle_timeout=60.0), own=[math.inf], queued=500.0)
    assert {decision.replicas for decision in waiting.run(0, 4000)} == {1}


@pytest.mark.parametrize("ahead", [0.5, 86_400.0])
def test_a_clock_that_was_ahead_does_not_stop_what_shrinks(ahead: float):
    """Regression: times in the future stood in the stored memory, and nothing shrank until they had come."""
    world = World(Policy(idle_timeout=300.0))
    world.run(3.0, 400)
    assert world.ready() >= 3
    world.now -= ahead  # the clock was ahead, and is put right
    world.own = [ready - ahead for ready in world.own]
    world.memory = msgspec.json.decode(msgspec.json.encode(world.memory), type=Memory)
    assert world.run(0, 1200)[-1].replicas == 0


def test_a_last_request_of_a_clock_that_was_ahead_is_no_request():
    world = World(Policy(idle_timeout=100.0), own=[0.0], last_ended=NOON + 86_400)
    assert world.run(0, 200)[-1].replicas == 0
    asked = World(Policy(idle_timeout=100.0), own=[0.0])
    for _ in range(300):  # they come and go between two looks, and the time of their end does not move on
        asked.last_ended = NOON + 86_400
        asked.arrived += 500
        assert asked.second(0).replicas == 1


def test_from_two_to_one_and_on_to_none_takes_time_and_the_second_one_is_gone():
    """Regression: 2 to 1 and 1 to 0 were decided within a second, and the Deployment was told 0 while two served."""
    policy, demand = Policy(), Demand(0, 0, 0, 0, 5, 5, NOON - 9000)
    memory = Memory(active=NOON - 9000, buckets=(Bucket(NOON - 9000, 0, 0),))
    wanted, went = 2, {}
    for second in range(60):
        ready = 2 if second < 30 else 1
        fleet = Fleet(wanted, ready, 0, 0, 0, CAPACITY, 60.0, 2.0, 0)
        decision = decide(policy, demand, fleet, memory, NOON + second)
        memory, wanted = decision.memory, decision.replicas
        went.setdefault(wanted, second)
    assert went == {1: 0, 0: 30}
    quick = Memory(active=NOON - 9000, buckets=(Bucket(NOON - 9000, 0, 0),), stepped=NOON)
    fleet = Fleet(1, 1, 0, 0, 0, CAPACITY, 60.0, 2.0, 0)
    assert decide(policy, demand, fleet, quick, NOON + 1).replicas == 1
    assert decide(policy, demand, fleet, quick, NOON + STEP_SECONDS).replicas == 0
