"""How long a request may be held, and what its client is told when it is held no longer.

Pure: decided from the Reranker's policy and times that are passed in. Never tells a client the text of a request.
"""

import math

from rerank_api import wire

from rerank_gateway.cluster.state import Policy, Route
from rerank_gateway.errors import ApiError

SHORTEST_RETRY, LONGEST_RETRY = 1, 60
"""Seconds of Retry-After. A client that is sent away for longer would not come back at the right time either."""


def deadline(policy: Policy, *, present: bool, since: float, arrived: float, latest: float) -> float:
    """When a waiting request is given up. ``since``: when the last worker went or the first came (``present``).

    While there is no worker it is held for wakeTimeout, from then on for timeout, each counted from the later of that
    change and its own arrival; for both together at most, however often workers come and go.
    """
    held = policy.timeout if present else policy.wake_timeout
    return min(latest, max(arrived, since) + held, arrived + policy.wake_timeout + policy.timeout)


def retry_after(tokens: int, speed: float | None) -> int:
    """Whole seconds until ``tokens`` are scored at ``speed`` tokens/s, within bounds; unknown: the shortest."""
    seconds = tokens / speed if speed else 0.0
    return min(max(math.ceil(seconds), SHORTEST_RETRY), LONGEST_RETRY)


def queue_full(route: Route, waiting: int, tokens: int, capacity: float | None) -> ApiError:
    """``tokens``: of those that wait and of those at workers; ``capacity``: tokens/s of one worker, where known."""
    speed = capacity * max(1, len(route.endpoints)) if capacity is not None else None
    message = f"{route.label} has {waiting} requests waiting (requests.queueLimit): retry later"
    return ApiError(429, "queue_full", message, retry_after=retry_after(tokens, speed))


def too_late(route: Route | None, when: float, latest: float) -> ApiError:
    """``when``: the deadline that is over; ``latest``: the client's own. ``route``: None: the Reranker was deleted."""
    present = route is None or bool(route.endpoints)
    over = _over(when, latest, "requests.timeout" if present else "requests.wakeTimeout")
    if route is None or present:
        why = f"{over} a worker was free: retry later, or ask for more replicas"
    else:
        reason = f" ({route.policy.not_ready_reason})" if route.policy.not_ready_reason else ""
        why = f"{over} a worker of {route.label} was ready{reason}"
    return ApiError(504, "deadline_exceeded", why)


def not_scored(when: float, latest: float) -> ApiError:
    """The same of a request that a worker has."""
    why = f"{_over(when, latest, 'requests.timeout')} the scores were ready"
    return ApiError(504, "deadline_exceeded", why)


def _over(when: float, latest: float, bound: str) -> str:
    return f"the deadline ({wire.HEADER_TIMEOUT if when >= latest else bound}) was over before"


def deleted() -> ApiError:
    return ApiError(404, "model_not_found", "the Reranker was deleted", field="model")


def suspended(route: Route) -> ApiError:
    return ApiError(503, "suspended", f"{route.label} is suspended (spec.suspend)", retry_after=30)
