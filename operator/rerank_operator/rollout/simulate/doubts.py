"""What in a scenario is likely no one's intent, or what the judge was not seen to stand: a rollback there may be chance
("Too alike to judge" in docs/canary-judge.md). Tells; changes no figure.
"""

from collections.abc import Sequence
from statistics import median

from rerank_operator.rollout.judge.dependence import ALONE, LAGS, Flags, design_effect
from rerank_operator.rollout.simulate.scenario import Arm, Samples, Scenario

MOST_CORRELATION = 0.99
"""The highest for which that page has figures that keep the error probability. The next one, 0.997, does not."""
LONGEST = LAGS[-1]
"""Requests: further apart the judge does not look for what is alike."""
ONE_SIDED = 0.9
"""Share of so many requests that are all slower than the recording's median, or all quicker. At a correlation of 0.9 it
is 0.5, give or take 0.06 (computed from a design effect of 13)."""


def doubts(scenario: Scenario) -> list[str]:
    """One sentence each."""
    return [*_of_weights(scenario.weights), *_of_likeness(scenario)]


def _of_weights(weights: Sequence[float]) -> list[str]:
    if weights[-1] > 1:
        return []
    return [
        f"weights: the last of {list(weights)} is {weights[-1]:g} %, so the canary never gets more: if these are "
        "shares, write them as percents"
    ]


def _of_likeness(scenario: Scenario) -> list[str]:
    correlation = scenario.correlation
    if correlation is None:
        return [*_of_levels("stable", scenario.stable), *_of_levels("canary", scenario.canary), *_of_canary(scenario)]
    if correlation <= MOST_CORRELATION:
        return []
    return [
        f"correlation: {correlation:g} is more than {MOST_CORRELATION:g}, up to which the judge was seen to keep its "
        "error probability; at 0.997 it did not, so rollbacks may be chance"
    ]


def _of_levels(name: str, arm: Arm) -> list[str]:
    if not isinstance(arm.latency, Samples):
        return []
    seconds = arm.latency.seconds
    middle = median(seconds)
    for begin in range(0, len(seconds) - LONGEST + 1, LONGEST):
        stretch = seconds[begin : begin + LONGEST]
        if max(sum(took > middle for took in stretch), sum(took < middle for took in stretch)) >= ONE_SIDED * LONGEST:
            return [
                f"{name}.latency.samples: numbers {begin + 1} to {begin + LONGEST} are nearly all on one side of the "
                "median. Levels last longer than the judge looks, so rollbacks may be chance: record under one load"
            ]
    return []


def _of_canary(scenario: Scenario) -> list[str]:
    stable, canary = _effect(scenario.stable), _effect(scenario.canary)
    if canary <= ALONE * stable:
        return []
    return [
        f"canary.latency.samples: its neighbours are alike (design effect {canary:.0f}) where stable's are not "
        f"({stable:.0f}): the judge allows for {ALONE:g} times stable's, so rollbacks may be chance: record both under "
        "one load"
    ]


def _effect(arm: Arm) -> float:
    if not isinstance(arm.latency, Samples):
        return 1.0
    middle, slow = median(arm.latency.seconds), Flags()
    slow.extend(took > middle for took in arm.latency.seconds)
    return design_effect(slow) or 1.0
