"""When what scaling comes to is worth a write of a Reranker's status. Pure.

Numbers at once, another reason and figures after a while; what is at rest is not written at all: hundreds of sleeping
Rerankers would keep the API server busy with nothing.
"""

from typing import Any

from rerank_operator.controller.verdict import Verdict
from rerank_operator.scaling.memory import Memory

STATUS_SECONDS = 15.0
"""Between two writes of a status in which only figures have moved on."""
ASLEEP_STATUS_SECONDS = 30.0
REASON_SECONDS = 5.0
"""Between two writes for another reason of the same numbers: it may change with every burst."""


def worth_writing(was: Verdict | None, age: float, verdict: Verdict) -> bool:
    """Whether the status should be made to say ``verdict``, where it says ``was`` (None: nothing of this process) since
    ``age`` seconds."""
    if was is None or _numbers(was) != _numbers(verdict):
        return True
    if was.decision is None or verdict.decision is None:
        return False
    if was.decision.reason != verdict.decision.reason and age >= REASON_SECONDS:
        return True
    if age < (STATUS_SECONDS if verdict.decision.again < STATUS_SECONDS else ASLEEP_STATUS_SECONDS):
        return False
    return _figures(was) != _figures(verdict) or not _much_alike(was.decision.memory, verdict.decision.memory)


def _numbers(verdict: Verdict) -> tuple[Any, ...]:
    return (
        verdict.mode, verdict.replicas, verdict.loaners, verdict.desired, verdict.desired_loaners, verdict.serving,
        verdict.invalid, verdict.decision is None, verdict.short is None,
    )  # fmt: skip


def _figures(verdict: Verdict) -> tuple[Any, ...]:
    """Why there are too few warm pods is told with figures that every loan in the pool changes: it is one of them."""
    return (
        verdict.queued, verdict.capacity, verdict.start_seconds, verdict.wake_seconds, verdict.last_request,
        verdict.short,
    )  # fmt: skip


def _much_alike(one: Memory, other: Memory) -> bool:
    """Whether a restart with the one would go on as with the other. Rates that fade away are no news."""
    rates = ((one.fast, other.fast, 1.0), (one.slow, other.slow, 1.0), (one.slow_requests, other.slow_requests, 1e-3))
    near = all(abs(a - b) <= max(0.05 * max(a, b), least) for a, b, least in rates)
    return near and _kept(one) == _kept(other)


def _kept(memory: Memory) -> tuple[Any, ...]:
    return memory.level, memory.peak, memory.bursts, memory.active, memory.stepped, memory.woken, _history(memory)


def _history(memory: Memory) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for bucket in memory.buckets:
        if not runs or runs[-1] != (bucket.least, bucket.most):
            runs.append((bucket.least, bucket.most))
    return runs
