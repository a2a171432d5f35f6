"""Keeps each Reranker's scaling going: what it remembers, what is decided, and when to look again.

Looks at each change of demand, at each reconcile, and when a decision says so. It writes nothing: numbers that change
make the Reranker, and its warm pool, due; what must survive a restart stands in the status and is read from there at
the first look. Only who leads looks, and forgets all when it does not any more.
"""

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from rerank_api.reranker import ScalingState
from rerank_api.revision import revision_hash, revision_of

from rerank_operator.controller import metrics
from rerank_operator.controller.kinds import RERANKERS, Key, pool_of
from rerank_operator.controller.leader import steady_clock
from rerank_operator.controller.observe import Observed, observe
from rerank_operator.controller.queue import WorkQueue
from rerank_operator.controller.starts import START_SECONDS, WAKE_SECONDS, Starts
from rerank_operator.controller.status_writes import STATUS_SECONDS, worth_writing
from rerank_operator.controller.store import Store
from rerank_operator.controller.verdict import Verdict, held_replicas, replicas_in_force, scaling_mode
from rerank_operator.demand.totals import Told, Totals
from rerank_operator.rollout.canary import JUDGED
from rerank_operator.scaling.decide import Decision, Memory, asked_for, decide
from rerank_operator.scaling.demand import Fleet
from rerank_operator.scaling.policy import Policy, policy_from_manifest
from rerank_operator.warm.observe import PoolState, Wish, pool_state

log = logging.getLogger(__name__)

EAGER_SECONDS = 0.1
"""Between two looks at one Reranker, however much its gateways tell."""
_WAYS = {"warm": "pool", "cold": "own"}
"""Whose worker it was that ended a wake, by how it came."""


@dataclass(slots=True)
class _Known:
    """What is known about one Reranker beside its objects."""

    uid: str
    memory: Memory
    starts: Starts
    policy: Policy | None = None
    invalid: str | None = None
    generation: int = -1
    """Of the spec that the policy was read from."""
    mode: ScalingState | None = None
    """Under which the decision was made."""
    decision: Decision | None = None
    change: Decision | None = None
    """The decision that changed the numbers, until they are told: those after it only find them as they should be."""
    verdict: Verdict | None = None
    looked: float = 0.0
    capacity: float | None = None
    wish_since: float = 0.0
    sent: float | None = None
    """When the newest line was told that the last look knew."""
    cause: float | None = None
    """The same of the line that changed the numbers, until they are written."""
    written: Verdict | None = None
    written_at: float = 0.0


class Scaler:
    def __init__(
        self,
        store: Store,
        totals: Totals,
        wall: Callable[[], float],
        active: Callable[[], bool],
        changed: Callable[[Key], None],
        pool_changed: Callable[[str, str], None],
        steady: Callable[[], float] = steady_clock,
    ) -> None:
        """``active``: whether decisions may be made now; ``changed`` is told a Reranker that is due for a reconcile,
        ``pool_changed`` the namespace and name of a WarmPool whose wishes have changed."""
        self._store = store
        self._totals = totals
        self._wall = wall
        self._active = active
        self._changed = changed
        self._pool_changed = pool_changed
        self.short: Callable[[Key], str | None] = lambda _: None
        """Why a Reranker gets fewer warm pods than it should have; who lends them sets it."""
        self._steady = steady
        self._known: dict[Key, _Known] = {}
        self._due: WorkQueue[Key] = WorkQueue(steady, random.random)

    # --- when to look ---

    async def run(self) -> None:
        while (taken := await self._due.get()) is not None:
            key, _ = taken
            try:
                self._look_by_itself(key)
            except Exception:  # one Reranker that we cannot cope with must not stop the others
                log.exception("scaling failed", extra={"namespace": key[0], "reranker": key[1]})
            finally:
                self._due.done(key)
            await asyncio.sleep(0)  # with many due at once, others get their turn

    def heard(self, keys: Iterable[Key]) -> None:
        """Gateways have told something new about these."""
        if not self._active():
            return
        for key in keys:
            known = self._known.get(key)
            wait = known.looked + EAGER_SECONDS - self._steady() if known else 0.0
            self._due.add(key, wait)

    def _look_by_itself(self, key: Key) -> None:
        if not self._active():
            return
        observed = observe(self._store, key)
        if observed is None:
            self.forget(key)
            return
        verdict = self.look(observed)
        if verdict is not None and verdict.refresh:
            self._changed(key)

    def reset(self) -> None:
        """Another leads, or has led until now: what counts stands in the status."""
        for key in list(self._known):
            self.forget(key)
        self._due.clear()

    def keep(self, keys: set[Key]) -> None:
        """Forget Rerankers that are gone."""
        for key in self._known.keys() - keys:
            self.forget(key)
        self._totals.keep(keys)

    def forget(self, key: Key) -> None:
        if self._known.pop(key, None) is not None:
            for gauge in (metrics.DESIRED_REPLICAS, metrics.MINIMUM_REPLICAS, metrics.LOANERS, metrics.QUEUED):
                gauge.remove(*key)
            for way in _WAYS.values():
                metrics.WAKES.remove(*key, way)

    # --- what others ask ---

    def wishes(self, namespace: str, pool: str) -> list[Wish]:
        """How many warm pods each Reranker should have that names the pool; who asked first for more comes first.

        Who has not been looked at yet, or whose scaling is held, has no wish, and keeps what it has.
        """
        wishes = [
            Wish(key, known.verdict.loaners, known.wish_since)
            for key, known in self._known.items()
            if known.verdict is not None and self._pool_of(key) == (namespace, pool)
            if known.verdict.mode not in ("Recommend", "Paused")
        ]
        return sorted(wishes, key=lambda wish: (wish.since, wish.key))

    def _pool_of(self, key: Key) -> Key | None:
        body = self._store.get(RERANKERS, *key)
        return pool_of(RERANKERS, body) if body is not None else None

    def carried_out(self, key: Key) -> None:
        """The numbers of the last look are written."""
        known = self._known.get(key)
        if known is not None and known.cause is not None:
            metrics.DECISION_SECONDS.observe(max(0.0, self._wall() - known.cause))
            known.cause = None

    def told(self, key: Key, verdict: Verdict) -> None:
        """The status says what ``verdict`` is."""
        known = self._known.get(key)
        if known is not None and verdict.refresh:
            known.written, known.written_at = verdict, self._steady()
            if known.change is not None and _numbers_of(known.change) == _numbers_of(verdict.decision):
                known.change = None

    # --- a look ---

    def look(self, observed: Observed) -> Verdict | None:
        """The verdict now; None where the object is not understood."""
        reranker = observed.reranker
        if reranker is None:
            return None
        key = (observed.metadata.namespace, observed.metadata.name)
        known = self._of(key, observed)
        now, steady = self._wall(), self._steady()
        told = self._totals.told(key, steady)
        self._read_policy(known, key, observed)
        pool = reranker.spec.scaling.warm_pool
        warm = pool_state(self._store, key[0], pool) if pool else PoolState()
        serving, claiming = warm.serving(key[1]), warm.claiming(key[1])
        known.capacity = told.capacity or known.capacity
        known.starts.look(observed.pods, warm.loans(key[1]), now)

        before, mode, short = known.verdict, scaling_mode(reranker), self.short(key)
        held = held_replicas(observed, reranker, mode)
        if mode == "Suspended":
            known.decision, known.change, known.memory = None, None, Memory()
        elif known.policy is not None:
            wanted = self._wanted(known, observed, mode, held)
            # Free pods that are not lent to this one, for whatever reason, stand in for nothing.
            free = len(warm.free) if short is None else 0
            fleet = self._fleet(known, observed, wanted, serving, claiming, free)
            if mode != "Auto":  # what is not carried out does not start either
                fleet = replace(fleet, starting=min(fleet.starting, _coming(observed)))
            made = decide(known.policy, told.demand, fleet, known.memory, now)
            if _numbers_of(made) != (_numbers_of(known.decision) or (wanted, serving + claiming)):
                known.change = made
            known.decision, known.memory = made, made.memory
        decision = known.decision
        if decision is not None and known.change is not None:
            decision = replace(decision, reason=known.change.reason, message=known.change.message)
        known.mode, known.looked = mode, steady
        verdict = Verdict(
            mode=mode,
            replicas=replicas_in_force(reranker, mode, held, decision),
            loaners=_loaners_in_force(mode, decision, serving + claiming),
            decision=decision,
            invalid=known.invalid,
            serving=serving,
            warm=Counter(pod.loan.revision for pod in warm.loans(key[1]) if pod.serves and pod.loan is not None),
            short=short,
            queued=told.demand.queued if told.sent is not None or told.demand.complete else None,
            capacity=known.capacity,
            start_seconds=known.starts.own_seconds,
            wake_seconds=known.starts.warm_seconds,
            last_request=told.demand.last_ended,
            outstanding=told.outstanding,
            refresh=False,
        )
        verdict = msgspec.structs.replace(
            verdict, refresh=worth_writing(known.written, steady - known.written_at, verdict)
        )
        self._follow(known, key, before, verdict, told, observed, now, serving + claiming)
        known.verdict = verdict
        self._due.add(key, decision.again if decision is not None else STATUS_SECONDS)
        return verdict

    def _of(self, key: Key, observed: Observed) -> _Known:
        """What is known; at first sight, what the status says."""
        known = self._known.get(key)
        if known is not None and known.uid == observed.metadata.uid:
            return known
        last = observed.status.get("scaling") or {}
        known = _Known(
            uid=observed.metadata.uid,
            memory=stored_memory(last.get("memory")),
            capacity=last.get("capacityTokensPerSecond"),
            starts=Starts(last.get("startSeconds"), last.get("wakeSeconds")),
        )
        self._known[key] = known
        for way in _WAYS.values():
            metrics.WAKES.labels(*key, way)  # at 0, so that the first wake is an increase
        return known

    def _read_policy(self, known: _Known, key: Key, observed: Observed) -> None:
        if known.generation == observed.metadata.generation:
            return
        known.generation = observed.metadata.generation
        try:
            known.policy, known.invalid = policy_from_manifest(self._store.get(RERANKERS, *key) or {}), None
        except ValueError as error:
            known.policy, known.invalid, known.decision = None, str(error), None

    @staticmethod
    def _wanted(known: _Known, observed: Observed, mode: ScalingState, held: int) -> int:
        """What this decision starts from: the one before it, if it was made under the same mode."""
        if known.decision is not None and known.mode == mode:
            return known.decision.replicas
        last = observed.status.get("scaling") or {}
        if known.mode is None and mode in ("Recommend", "Paused") and last.get("mode") == mode:
            return last.get("desiredReplicas", held)
        return held

    @staticmethod
    def _fleet(known: _Known, observed: Observed, wanted: int, serving: int, claiming: int, free: int) -> Fleet:
        spare = _canary(observed)
        counting = [pod for pod in observed.pods if pod.counts and pod.revision != spare]
        ready = sum(pod.ready for pod in counting)
        return Fleet(
            wanted=wanted,
            ready=ready,
            starting=max(len(counting), wanted) - ready if wanted else len(counting) - ready,
            loaners=serving,
            claiming=claiming,
            capacity=known.capacity,
            start_seconds=known.starts.own_seconds or START_SECONDS,
            wake_seconds=known.starts.warm_seconds or WAKE_SECONDS,
            warm_free=free,
            unproven=_unproven(observed),
        )

    def _follow(
        self,
        known: _Known,
        key: Key,
        before: Verdict | None,
        verdict: Verdict,
        told: Told,
        observed: Observed,
        now: float,
        have: int,
    ) -> None:
        """Everything that follows from what has changed since the last look. ``have``: warm pods lent to it."""
        was, decision = before.decision if before is not None else None, verdict.decision
        if decision is not None and _brief(was) != _brief(decision):
            metrics.DECISIONS.labels(decision.reason).inc()
        if before is not None and (before.replicas, before.loaners) != (verdict.replicas, verdict.loaners):
            if told.sent != known.sent:
                known.cause = told.sent
            if verdict.loaners > before.loaners and have >= before.loaners:
                known.wish_since = now  # who waits already keeps its place, whatever it wishes for beside
        elif before is None:
            known.wish_since = now
        pool = self._pool_of(key)
        if pool and (before is None or before.loaners != verdict.loaners):
            self._pool_changed(*pool)
        known.sent = told.sent
        metrics.DESIRED_REPLICAS.labels(*key).set(verdict.desired)
        if known.policy is not None:
            least = asked_for(known.policy, now, known.starts.own_seconds or START_SECONDS)
            metrics.MINIMUM_REPLICAS.labels(*key).set(least)
        metrics.LOANERS.labels(*key).set(verdict.serving)
        metrics.QUEUED.labels(*key).set(told.demand.queued)
        own = any(pod.ready and pod.counts for pod in observed.pods)
        woken_by = known.starts.follow_wake(
            told.waking_since,
            asked_for=verdict.replicas + verdict.loaners > 0,
            came="cold" if own else "warm" if verdict.serving else None,
            given_up=not told.demand.queued + told.demand.in_flight,
            now=now,
        )
        if woken_by is not None:
            metrics.WAKES.labels(*key, _WAYS[woken_by]).inc()


def stored_memory(text: Any) -> Memory:
    """The memory that a status keeps; a new one where there is none or it is not understood.

    Its counters are those of another process's sums: the rates go on from the next look.
    """
    try:
        return replace(msgspec.json.decode(text, type=Memory), seen=None) if isinstance(text, str) else Memory()
    except msgspec.MsgspecError:
        return Memory()


def _brief(decision: Decision | None) -> tuple[Any, ...]:
    return () if decision is None else (decision.replicas, decision.loaners, decision.reason)


def _unproven(observed: Observed) -> bool:
    """Whether the revision that the spec asks for, where it may be tried, has not served yet, and another one has.

    A canary that is judged by users' requests waits for some, and needs no worker until they come.
    """
    if observed.reranker is None or (observed.rollout is not None and observed.rollout.phase in ("Mirror", "Traffic")):
        return False
    target, status = revision_hash(revision_of(observed.reranker.spec)), observed.status
    rejected = (status.get("rejectedRevision") or {}).get("revision")
    return status.get("currentRevision") not in (None, target) and rejected != target


def _canary(observed: Observed) -> str | None:
    """The revision whose workers are there beside all that are needed."""
    rollout = observed.rollout
    return rollout.revision if rollout is not None and rollout.phase in JUDGED else None


def _coming(observed: Observed) -> int:
    return sum(pod.counts and not pod.ready for pod in observed.pods)


def _numbers_of(decision: Decision | None) -> tuple[int, int] | None:
    return None if decision is None else (decision.replicas, decision.loaners)


def _loaners_in_force(mode: ScalingState, decision: Decision | None, have: int) -> int:
    if mode in ("Suspended", "ByHand"):
        return 0
    return decision.loaners if mode == "Auto" and decision is not None else have
