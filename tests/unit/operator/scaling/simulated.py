"""Small pieces of simulations for tests: manifests, controllers that follow a script, runs."""

from collections.abc import Callable, Sequence

from rerank_operator.scaling.demand import Demand, Fleet
from rerank_operator.scaling.policy import Policy
from rerank_operator.scaling.simulate.controller import Order, Seen
from rerank_operator.scaling.simulate.fleet import Plant, Run, Simulation
from rerank_operator.scaling.simulate.inputs import Arrival, Limits, Manifest

Script = Callable[[Seen, float], tuple[int, int]]


class Scripted:
    """Orders what ``script`` says (replicas, loaners), once a second, and when it is woken."""

    def __init__(self, script: Script, eager: float | None = None) -> None:
        self.script = script
        self.eager = eager
        self.seen: list[tuple[float, Seen]] = []

    def order(self, seen: Seen, now: float) -> Order:
        self.seen.append((now, seen))
        return Order(*self.script(seen, now), again=1.0)


def manifest(policy: Policy | None = None, **limits: float) -> Manifest:
    return Manifest("test", "model", policy or Policy(), Limits(**limits))


def simulation(
    traces: Sequence[Sequence[Arrival]], scripts: Sequence[Script], plant: Plant, one: Manifest | None = None
) -> Simulation:
    manifests = [one or manifest()] * len(traces)
    floors = [lambda _, one=one: one.policy.min_replicas for one in manifests]
    return Simulation(traces, manifests, [Scripted(script) for script in scripts], plant, floors)


def replay(trace: Sequence[Arrival], script: Script, plant: Plant, one: Manifest | None = None) -> Run:
    return simulation([trace], [script], plant, one).run()


def seen(
    concurrency: int = 0,
    wanted: int = 1,
    ready: int | None = None,
    request_seconds: float = 0.0,
    last_ended: float | None = None,
) -> Seen:
    """What a baseline looks at; ``ready`` absent: all that are wanted."""
    ready = wanted if ready is None else ready
    demand = Demand(concurrency, 0, 0, 0, 0, 0, last_ended)
    fleet = Fleet(
        wanted=wanted,
        ready=ready,
        starting=wanted - ready,
        loaners=0,
        claiming=0,
        capacity=1000.0,
        start_seconds=60.0,
        wake_seconds=1.0,
        warm_free=0,
    )
    return Seen(demand, fleet, request_seconds)
