"""How long the workers of one Reranker take until they serve, as seen from outside: own ones, warm pods, and wakes.

Only what was seen to begin is measured: a worker that was ready before may have been away, and would look slow. Decides
nothing; the figures are what decisions and metrics are fed with.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from rerank_operator.controller import metrics
from rerank_operator.controller.observe import PodState
from rerank_operator.warm.observe import WarmPod

START_SECONDS = 60.0
"""How long an own replica is taken to need until one has been seen to start."""
WAKE_SECONDS = 2.0
"""The same of a warm pod."""
LONGEST_SECONDS = 1800.0
SHORTEST_OWN, SHORTEST_WARM = 1.0, 0.1


@dataclass(slots=True)
class Starts:
    own_seconds: float | None = None
    """Of the last own worker, from its Pod's creation to Ready; None: none was seen."""
    warm_seconds: float | None = None
    """Of the last warm pod, from its claim until it served."""
    _starting: set[str] = field(default_factory=set)
    """Own workers, and claimed warm pods, that were seen before they were ready, by the Pod's uid."""
    _waking: float | None = None
    """Since when a request waits for a first worker."""

    def look(self, pods: Iterable[PodState], loans: Iterable[WarmPod], now: float) -> None:
        pods, loans = tuple(pods), tuple(loans)
        self._starting &= {pod.uid for pod in pods} | {pod.uid for pod in loans}
        for pod in pods:
            if not pod.ready and pod.counts and not pod.restarts:
                self._starting.add(pod.uid)
            elif pod.ready and pod.uid in self._starting:
                self._starting.discard(pod.uid)
                if pod.created and pod.ready_since:
                    self.own_seconds = min(LONGEST_SECONDS, max(SHORTEST_OWN, pod.ready_since - pod.created))
        for loaner in loans:
            if loaner.loan is None:
                continue
            if loaner.loan.serving is None:  # else it has served before: a node that was silent is no slow wake
                self._starting.add(loaner.uid)
            elif loaner.serves and loaner.uid in self._starting:
                self._starting.discard(loaner.uid)
                self.warm_seconds = min(LONGEST_SECONDS, max(SHORTEST_WARM, now - loaner.loan.since))

    def follow_wake(
        self,
        waiting_since: float | None,
        *,
        asked_for: bool,
        came: Literal["cold", "warm"] | None,
        given_up: bool,
        now: float,
    ) -> Literal["cold", "warm"] | None:
        """What has come first, where a wake has ended now; None: none has.

        ``waiting_since``: of the oldest request for which there is no worker; ``asked_for``: whether any worker has
        been; ``came``: the kind of the first one; ``given_up``: nobody waits any more.
        """
        if waiting_since is not None:
            if self._waking is None and asked_for:
                metrics.WAKE_PHASE_SECONDS.labels("decide").observe(max(0.0, now - waiting_since))
                self._waking = waiting_since
        elif self._waking is not None and came is not None:
            metrics.WAKE_SECONDS.labels(came).observe(max(0.0, now - self._waking))
            self._waking = None
            return came
        elif given_up:
            self._waking = None  # else the gateway has only seen the worker before us
        return None
