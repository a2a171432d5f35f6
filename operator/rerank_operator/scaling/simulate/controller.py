"""What every controller is: it sees the demand and the fleet now and then, and orders how many replicas there are.

A controller sees nothing of the trace that has not happened yet.
"""

from dataclasses import dataclass
from typing import Protocol

from rerank_operator.scaling.demand import Demand, Fleet


@dataclass(frozen=True, slots=True)
class Seen:
    demand: Demand
    fleet: Fleet
    request_seconds: float
    """The time that all requests together have spent in the system: its growth over a time is the mean concurrency."""


@dataclass(frozen=True, slots=True)
class Order:
    replicas: int
    """Of the own Deployment."""
    loaners: int
    """Warm pods."""
    again: float
    """Seconds until it is asked again, if nothing wakes it before; infinite: only when a request comes."""


class Controller(Protocol):
    """One a Reranker. It is asked when ``again`` is over and when a request arrives while no replica is wanted."""

    eager: float | None
    """Not None: it is also asked when a request has to wait and when a replica becomes ready, this many seconds after
    the last time at the earliest."""

    def order(self, seen: Seen, now: float) -> Order: ...
