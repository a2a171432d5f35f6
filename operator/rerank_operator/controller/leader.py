"""Leadership by a Lease: only its holder writes, and who cannot renew stops before another may start.

Time is what fences: the holder counts from when it *sent* its last successful renewal, the others from when they *saw*
it, which is later; and the holder stops at the renew deadline, which is shorter than the lease. The clock goes on while
the process is frozen or the machine suspended, so a process that wakes up late knows that it has lost. The client
library's election measures by the wall clock from when the answer came, and does not give up its lease, so it is not
used.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

import msgspec

from rerank_operator.controller import metrics
from rerank_operator.controller.api import ApiError, KubeApi, Unreachable
from rerank_operator.controller.kinds import LEASES
from rerank_operator.controller.times import format_micro_time

log = logging.getLogger(__name__)

REQUEST_SECONDS = 4.0
"""Two tries fit into the renew deadline."""
WRITE_MARGIN_SECONDS = 1.0
"""A write must be answered this long before the lease ends."""


def steady_clock() -> float:
    """Seconds that never jump, and that go on while the machine is suspended (where the system has such a clock)."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Terms(msgspec.Struct, frozen=True):
    """``duration``: others wait this long; ``renew``: the holder stops when it has not renewed for this long."""

    duration: float = 15.0
    renew: float = 10.0
    retry: float = 2.0

    def __post_init__(self) -> None:
        if not self.duration > self.renew + WRITE_MARGIN_SECONDS or not self.renew > self.retry > 0:
            raise ValueError(
                f"lease times do not fit: duration ({self.duration:g} s) must exceed the renew deadline "
                f"({self.renew:g} s) by more than {WRITE_MARGIN_SECONDS:g} s, and that must exceed the retry period "
                f"({self.retry:g} s)"
            )


class Election:
    """What one candidate knows. Pure: told what was seen and when; asked what it may do now."""

    def __init__(self, identity: str, terms: Terms) -> None:
        self.identity = identity
        self.terms = terms
        self._seen: tuple[Any, ...] | None = None
        self._seen_at = 0.0
        self._renewed_at: float | None = None

    def saw(self, lease: dict[str, Any] | None, now: float) -> None:
        """The lease as read; None: there is none."""
        spec = (lease or {}).get("spec") or {}
        seen = (spec.get("holderIdentity") or "", spec.get("renewTime"), spec.get("leaseTransitions"))
        if seen != self._seen:
            self._seen, self._seen_at = seen, now
            self._duration = float(spec.get("leaseDurationSeconds") or self.terms.duration)
        if self._seen[0] != self.identity:
            self._renewed_at = None

    def may_take(self, now: float) -> bool:
        """Nobody holds it, or its holder has not renewed it for all the time that it was given."""
        if self._seen is None:
            return False
        return self._seen[0] in ("", self.identity) or now - self._seen_at > self._duration

    def holder(self, now: float) -> str:
        """Who was seen to hold it, unless the time that it was given is over; empty: nobody, as far as is known."""
        return "" if self._seen is None or now - self._seen_at > self._duration else self._seen[0]

    def renewed(self, sent_at: float) -> None:
        self._renewed_at = sent_at

    def lost(self) -> None:
        self._renewed_at = None

    def write_seconds(self, now: float) -> float:
        """For how long a write that starts now may take; 0: it may not start."""
        if self._renewed_at is None or now - self._renewed_at >= self.terms.renew:
            return 0.0
        return self._renewed_at + self.terms.duration - WRITE_MARGIN_SECONDS - now

    def manifest(self, lease: dict[str, Any] | None, namespace: str, name: str, wall: float) -> dict[str, Any]:
        """The lease as we want it, held by us."""
        spec = (lease or {}).get("spec") or {}
        now = format_micro_time(wall)
        ours = spec.get("holderIdentity") == self.identity
        metadata = {"namespace": namespace, "name": name}
        if lease:
            metadata["resourceVersion"] = lease["metadata"]["resourceVersion"]
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": metadata,
            "spec": {
                "holderIdentity": self.identity,
                "leaseDurationSeconds": max(1, round(self.terms.duration)),
                "acquireTime": spec["acquireTime"] if ours else now,
                "renewTime": now,
                "leaseTransitions": (spec.get("leaseTransitions") or 0) + (0 if ours or not lease else 1),
            },
        }


class Leader:
    """Keeps trying to hold the lease; ``gained`` and ``lost`` are called when that changes."""

    def __init__(
        self,
        api: KubeApi,
        election: Election,
        namespace: str,
        name: str,
        random: Callable[[], float],
        gained: Callable[[], None],
        lost: Callable[[], None],
    ) -> None:
        self._api = api
        self._election = election
        self._namespace = namespace
        self._name = name
        self._random = random
        self._gained = gained
        self._lost = lost
        self._leading = False
        self._lease: dict[str, Any] | None = None
        self._trouble = ""

    def write_seconds(self) -> float:
        """The fence of every write."""
        return self._election.write_seconds(steady_clock())

    @property
    def leading(self) -> bool:
        return self._leading and self.write_seconds() > 0

    @property
    def holder(self) -> str:
        """Who leads, as far as it is known; empty: nobody does."""
        return self._election.holder(steady_clock())

    async def run(self) -> None:
        while True:
            self._tell()
            try:
                await self._try()
                self._trouble = ""
            except (ApiError, Unreachable) as error:
                if str(error) != self._trouble:
                    log.warning("lease %s/%s: %s", self._namespace, self._name, error)
                    self._trouble = str(error)
                self._lease = None
            self._tell()
            await asyncio.sleep(self._election.terms.retry * (1 + 0.2 * self._random()))

    async def _try(self) -> None:
        # A holder knows the lease from its own last renewal: a change by anyone else makes the write a conflict.
        if self._lease is None or not self._leading:
            self._lease = await self._read()
            self._election.saw(self._lease, steady_clock())
            if not self._election.may_take(steady_clock()):
                return
        wanted = self._election.manifest(self._lease, self._namespace, self._name, time.time())
        sent_at = steady_clock()
        self._lease = await self._api.put_lease(LEASES, wanted, REQUEST_SECONDS)
        self._election.saw(self._lease, steady_clock())
        self._election.renewed(sent_at)

    async def _read(self) -> dict[str, Any] | None:
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                return await self._api.get(LEASES, self._namespace, self._name)
        except TimeoutError:
            raise Unreachable("no answer in time") from None
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def _tell(self) -> None:
        leading = self.write_seconds() > 0
        metrics.LEADER.set(leading)
        if leading == self._leading:
            return
        self._leading = leading
        metrics.LEADER_CHANGES.labels("leader" if leading else "standby").inc()
        log.info("this operator %s leads", "now" if leading else "no longer")
        (self._gained if leading else self._lost)()

    async def release(self) -> None:
        """Let another take over at once. Only after the last write: nothing may be written afterwards."""
        if not self.leading or self._lease is None:
            return
        wanted = self._election.manifest(self._lease, self._namespace, self._name, time.time())
        wanted["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1}
        self._election.lost()
        try:
            await self._api.put_lease(LEASES, wanted, REQUEST_SECONDS)
            log.info("lease %s/%s released", self._namespace, self._name)
        except (ApiError, Unreachable) as error:
            log.warning("lease %s/%s could not be released: %s", self._namespace, self._name, error)
