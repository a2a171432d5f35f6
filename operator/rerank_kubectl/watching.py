"""Looking at one rollout until it ends. The clock, the wait and the looks are passed in; every wait has an end."""

from collections.abc import Callable

import msgspec
from rerank_api.reranker import Reranker

from rerank_kubectl.kubectl import Failed
from rerank_kubectl.rendering import progress_line
from rerank_kubectl.state import GOING_ON, canary, ended, observed

EVERY = 2.0
"""Seconds between looks."""
SILENCE = 60.0
"""Seconds without an answer that a restart of the API server may take."""
FIGURES_EVERY = 30.0
"""Seconds between lines that tell of more requests and of nothing else."""


class Watched(msgspec.Struct, frozen=True):
    code: int
    """state.SERVES, NOT_PROMOTED or GOING_ON."""
    last: Reranker


def watch(
    look: Callable[[], Reranker],
    show: Callable[[Reranker], None],
    clock: Callable[[], float],
    wait: Callable[[float], None],
    timeout: float,
) -> Watched:
    """``timeout``: seconds, after which it goes on without us. Raises Failed: at the first look, where it may not pass,
    or after SILENCE seconds."""
    until = clock() + timeout
    last, heard, followed = look(), clock(), None
    show(last)
    while True:
        # What goes on while the operator has not read the latest spec is not what was asked about.
        going = canary(last) if observed(last) else None
        followed = followed or (going.revision if going is not None else None)
        code = ended(last, followed)
        if code is not None or clock() >= until:
            return Watched(GOING_ON if code is None else code, last)
        wait(min(EVERY, max(0.0, until - clock())))
        try:
            last = look()
        except Failed as failed:
            if not failed.passing or clock() - heard > SILENCE:
                raise
        else:
            heard = clock()
            show(last)


class Lines:
    """What a log is told: a line when a phase, a step or a verdict changes, now and then one of the figures."""

    def __init__(self) -> None:
        self._key: object = None
        self._line = ""
        self._told = float("-inf")

    def of(self, reranker: Reranker, now: float) -> str | None:
        """None: nothing new. ``now``: monotonic seconds."""
        line = progress_line(reranker)
        rollout = reranker.status.rollout
        key = rollout and (
            rollout.revision,
            rollout.phase,
            rollout.step,
            rollout.percent,
            rollout.paused,
            [(check.name, check.verdict) for check in rollout.checks],
        )
        if line == self._line or (key == self._key and now - self._told < FIGURES_EVERY):
            return None
        self._key, self._line, self._told = key, line, now
        return line
