"""Runs a scenario many times over the machine's cores. What comes out never depends on how many there are."""

import os
import signal
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Literal, NamedTuple

from rerank_operator.rollout.simulate.flagger import Flagger
from rerank_operator.rollout.simulate.kayenta import Kayenta
from rerank_operator.rollout.simulate.ours import Ours
from rerank_operator.rollout.simulate.policy import MakePolicy
from rerank_operator.rollout.simulate.scenario import Scenario
from rerank_operator.rollout.simulate.traffic import Traffic

INSTANT = 1e-6
"""Seconds; less than this before the horizon is left by sums of intervals, and is no interval of its own."""

MOST_TOGETHER = 4
"""Runs that a process is given at once."""

JUDGES: Mapping[str, MakePolicy] = {"ours": Ours, "flagger": Flagger, "kayenta": Kayenta}


class Run(NamedTuple):
    """How one rollout ended."""

    outcome: Literal["rollback", "promote", "hold"]
    """hold: nothing was decided until the horizon."""
    reason: str
    """What decided, as the judge says."""
    seconds: float
    """Until the decision, or the horizon."""
    canary_requests: int
    """Users' requests that the canary had got by then."""


def simulate(
    scenario: Scenario, make: MakePolicy, processes: int | None = None, told: Callable[[int], None] = lambda done: None
) -> list[Run]:
    """Every run, in order. ``make`` must be importable (each process makes its own). ``processes``: None takes every
    core. ``told``: the number of runs that have ended, as they do."""
    processes = min(processes or os.cpu_count() or 1, scenario.runs)
    runs = range(scenario.runs)
    if processes == 1:
        return _collect(map(partial(simulate_one, scenario, make), runs), told)
    # An interrupt is for this process to tell of; the others end what they have begun. It waits until they all have
    # been started: one that has not come to ignoring it yet would tell of it too.
    with ProcessPoolExecutor(processes, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)) as pool:
        # Few at a time: runs differ in length, the last ones should not wait for one core, nor who watches for news.
        share = min(MOST_TOGETHER, max(1, scenario.runs // (16 * processes)))
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            ended = pool.map(partial(simulate_one, scenario, make), runs, chunksize=share)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            return _collect(ended, told)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            pool.shutdown(cancel_futures=True)  # else who stops it waits for all runs


def _collect(ended: Iterable[Run], told: Callable[[int], None]) -> list[Run]:
    found: list[Run] = []
    for run in ended:
        found.append(run)
        told(len(found))
    return found


def simulate_one(scenario: Scenario, make: MakePolicy, number: int) -> Run:
    """Run ``number``: until the judge decides, or the horizon; the last look is at the horizon."""
    traffic = Traffic(scenario, number)
    policy = make(scenario.weights, traffic.baseline, scenario.horizon)
    now, canary_requests = 0.0, 0
    outcome = policy.golden(*traffic.golden()) if scenario.golden_queries else None
    while outcome is None and now < scenario.horizon:
        begin, now = now, now + policy.interval
        if now > scenario.horizon - INSTANT:
            now = scenario.horizon
        stable, canary = traffic.between(begin, now, policy.weight)
        canary_requests += len(canary.seconds)
        outcome = policy.look(now, stable, canary)
    return Run(outcome or "hold", policy.reason, now, canary_requests)
