"""How many replicas, and how many warm pods, a Reranker should have now, and why. Pure: the clock is passed in."""

from dataclasses import dataclass

from rerank_operator.scaling.demand import Demand, Fleet
from rerank_operator.scaling.policy import Policy


@dataclass(frozen=True, slots=True)
class Memory:
    """What must survive a restart, as plain values that msgspec writes and reads."""


@dataclass(frozen=True, slots=True)
class Decision:
    replicas: int
    """Of the own Deployment."""
    loaners: int
    """Warm pods that should serve it now: claims when more than it has or has on their way, releases when fewer."""
    reason: str
    message: str
    """One sentence with the figures."""
    memory: Memory
    again: float
    """Seconds until it should be asked again even if nothing changes."""


def decide(policy: Policy, demand: Demand, fleet: Fleet, memory: Memory, now: float) -> Decision:
    """The decision at ``now`` (Unix seconds)."""
    raise NotImplementedError
