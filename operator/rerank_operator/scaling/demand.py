"""What decisions are made of: the demand at the gateways and the fleet that serves it. Values only."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Demand:
    """One Reranker's demand at one moment, summed over the gateways."""

    queued: int
    """Requests that wait at the gateways."""
    queued_tokens: int
    in_flight: int
    """Requests that workers have."""
    in_flight_tokens: int
    arrived_requests: int
    """A counter since ever, as arrived_tokens is: they never fall, unless a gateway was restarted."""
    arrived_tokens: int
    last_ended: float | None
    """Unix time at which the last request ended, or was last seen in the system; None: there was none ever."""
    complete: bool = True
    """False: the figures of a gateway are its last known ones."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """The replicas that one Reranker has, at one moment."""

    wanted: int
    """Replicas that its own Deployment has been told to have."""
    ready: int
    starting: int
    loaners: int
    """Warm pods that serve it, ready."""
    claiming: int
    """Warm pods on their way to it."""
    capacity: float | None
    """Tokens a second of one replica, as measured; None: not known yet."""
    start_seconds: float
    """How long an own replica takes from being told to being ready: as last seen, or a default."""
    wake_seconds: float
    """The same of a warm pod, from being claimed."""
    warm_free: int
    """Free pods of its pool; 0 without a pool."""
    unproven: bool = False
    """The revision that the spec asks for has not served yet; another one serves."""
