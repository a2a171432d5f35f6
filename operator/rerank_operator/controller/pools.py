"""The rim of warm pools: a queue of WarmPools of its own, the patches that lend pods, and the calls to their workers.

What to do is decided in ``warm.plan``; here it is done, in this order: loans first, because requests wait for them, the
status last. A patch of a Pod names the uid and resourceVersion that were looked at, so that a pod is never lent twice,
however many operators there are. Calls to workers run beside the queue, one a pod and bounded, and make their pool due
again when they end. Nothing is kept here that a new leader could not ask for again.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, Protocol

import msgspec
from rerank_api import names
from rerank_api.reranker import Metadata

from rerank_operator.controller import metrics
from rerank_operator.controller.api import ApiError, KubeApi, NotLeader
from rerank_operator.controller.apply import Applier
from rerank_operator.controller.events import Event
from rerank_operator.controller.kinds import PODS, RERANKERS, WARM_POOLS, Key, pool_of
from rerank_operator.controller.leader import steady_clock
from rerank_operator.controller.outcome import OK, REFUSED, is_failure, outcome
from rerank_operator.controller.queue import WorkQueue
from rerank_operator.controller.store import Store
from rerank_operator.controller.times import format_micro_time
from rerank_operator.manifests.pod_template import WorkerImage
from rerank_operator.warm import status as pool_status
from rerank_operator.warm.calls import Calls
from rerank_operator.warm.loans import Claim, Loans, Release, Serve, Waiting
from rerank_operator.warm.members import Reader
from rerank_operator.warm.models import Job, Load, Look
from rerank_operator.warm.observe import WarmPod, Wish, warm_pod
from rerank_operator.warm.plan import Observed, make_plan, observe
from rerank_operator.warm.tokens import pool_token

log = logging.getLogger(__name__)

WORKERS = 4
"""Pools that are looked at at a time: a look mostly waits for the API server."""
PATCHES = 16
"""Patches of pods on their way at a time, of one pool."""
ROUNDS = 4
"""Looks in a row while what was done, or lost to another, changes what is to be done."""
STATUS_SECONDS = 1.0
"""How long the status may wait while loans are on their way: its write would come before theirs."""
LENT_COST = "100"
"""Deletion cost of a lent pod: where the pool shrinks, a free one goes."""


class Wishes(Protocol):
    def wishes(self, namespace: str, pool: str) -> Sequence[Wish]:
        """Of every Reranker of the pool for which something has been decided; see ``Wish``."""
        ...


class Pools:
    def __init__(
        self,
        api: KubeApi,
        store: Store,
        wishes: Wishes,
        worker: WorkerImage,
        key: bytes,
        instance: str,
        reranker_changed: Callable[[Key], None],
        tell: Callable[[Event, Metadata], Awaitable[None]],
    ) -> None:
        """``key``: from which the pools' tokens are made; ``reranker_changed`` is told whose loans have changed;
        ``tell`` writes an Event of a Reranker."""
        self._api = api
        self._store = store
        self._wishes = wishes
        self._worker = worker
        self._key = key
        self._reranker_changed = reranker_changed
        self._tell = tell
        self._applier = Applier(api, store, instance, WARM_POOLS)
        self.queue: WorkQueue[Key] = WorkQueue(steady_clock, random.random)
        self._calls = Calls(lambda: api.fence() > 0, self._due, self._still_wanted, self._tell_failed_load)
        self._reader = Reader()
        self._waiting: dict[Key, dict[str, Waiting]] = {}
        self._counted: set[Key] = set()
        """Pools that have gauges."""
        self._claimed: dict[str, tuple[float, float]] = {}
        """Since when the pod's Reranker had wished for it, and when it was claimed, by the Pod's uid."""
        self._status_since: dict[Key, float] = {}
        """Since when a status has been held back."""

    async def run(self) -> None:
        """Until the queue is closed."""
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(WORKERS):
                    group.create_task(self._work())
        finally:
            self.clear()
            await self._calls.close()

    def clear(self) -> None:
        """Leadership is lost: forget all, and stop asking workers. Loads that have begun go on in the workers."""
        self.queue.clear()
        self._calls.clear()
        for key in list(self._counted):
            self._forget(key)
        for kept in (self._waiting, self._claimed, self._status_since):
            kept.clear()

    def forget_gone(self) -> None:
        """Pods and pools that are no more."""
        pods = {body["metadata"]["uid"] for key in self._store.pools() for body in self._store.members(PODS, key)}
        self._calls.keep(pods)
        for uid in self._claimed.keys() - pods:
            del self._claimed[uid]
        bodies = [self._store.get(WARM_POOLS, *key) or {} for key in self._store.pools()]
        self._applier.allowance.keep({body.get("metadata", {}).get("uid", "") for body in bodies})

    def waiting(self, key: Key) -> str | None:
        """Why a Reranker gets fewer warm pods than it wishes for; None: it gets them, or nobody has looked yet."""
        pool = pool_of(RERANKERS, self._store.get(RERANKERS, *key) or {"metadata": {"namespace": key[0]}})
        if pool is None:
            return None
        if self._store.get(WARM_POOLS, *pool) is None:
            return f"there is no WarmPool {pool[1]} in namespace {pool[0]}: create it, or correct spec.scaling.warmPool"
        found = self._waiting.get(pool, {}).get(key[1])
        return f"WarmPool {pool[1]}: {found.message}" if found is not None else None

    # --- the queue ---

    async def _work(self) -> None:
        while (taken := await self.queue.get()) is not None:
            key, _ = taken
            ended = await outcome(self.reconcile(key), {"namespace": key[0], "pool": key[1]})
            metrics.POOL_RECONCILES.labels(ended).inc()
            self.queue.done(key, failed=is_failure(ended))

    async def reconcile(self, key: Key) -> str:
        """One look at the pool, and all that follows from it. Returns how it ended."""
        failed: BaseException | None = None
        for _ in range(ROUNDS):
            wishes = tuple(self._wishes.wishes(*key))
            known = (self._calls.workers, self._calls.failures, self._calls.running)
            observed = observe(self._store, key, wishes, *known, self._reader)
            if observed is None:
                self._forget(key)
                return OK
            token = pool_token(self._key, *key, observed.metadata.uid)
            plan = make_plan(observed, token, self._worker, time.time())
            changed, failed = await self._carry_out(observed, plan.loans)
            if failed is not None or not changed:
                break
        else:
            self.queue.add(key, 0.05)  # others write as fast as we do: they get their turn first
            self._start(key, token, plan.jobs)
            return OK
        self._start(key, token, plan.jobs)
        self._tell_waiting(key, observed, plan.loans)
        if failed is not None:
            raise failed  # after the loads were started: requests wait for them, and they do not need the API server
        self._count(key, observed)
        problem = await self._applier.carry_out(plan.actions, observed.metadata)
        if problem is not None:
            plan = make_plan(observed, token, self._worker, time.time(), problem)
        if plan.status is not None and not self._hold_back_status(key, observed):
            await self._applier.write_status(plan.status)
            for event in pool_status.told(observed.status, plan.status):
                await self._applier.tell(event, observed.metadata)
        if plan.requeue_after is not None:
            self.queue.add(key, plan.requeue_after)
        return OK if problem is None else REFUSED

    def _start(self, key: Key, token: str, jobs: Sequence[Job]) -> None:
        for job in jobs:
            self._calls.start(key, token, job)

    def _count(self, key: Key, observed: Observed) -> None:
        state = observed.state
        loaned = sum(pod.loan is not None for pod in state.pods)
        counts = {"free": len(state.free), "loaned": loaned}
        counts["not_ready"] = len(state.pods) - sum(counts.values())
        for name, count in counts.items():
            metrics.WARM_PODS.labels(*key, name).set(count)
        self._counted.add(key)

    def _forget(self, key: Key) -> None:
        self._waiting.pop(key, None)
        self._status_since.pop(key, None)
        self._reader.forget(key)
        if key in self._counted:
            self._counted.discard(key)
            for name in ("free", "loaned", "not_ready"):
                metrics.WARM_PODS.remove(*key, name)

    def _hold_back_status(self, key: Key, observed: Observed) -> bool:
        """While somebody waits for a loan, every write between its steps would be in their way."""
        on_its_way = any(pod.loan is not None and pod.loan.serving is None for pod in observed.state.pods)
        since = self._status_since.setdefault(key, steady_clock())
        if on_its_way and steady_clock() - since < STATUS_SECONDS:
            self.queue.add(key, STATUS_SECONDS)
            return True
        self._status_since.pop(key, None)
        return False

    def _tell_waiting(self, key: Key, observed: Observed, loans: Loans) -> None:
        before = self._waiting.get(key, {})
        self._waiting[key] = dict(loans.waiting)
        by_name = {member.name: member for member in observed.members}
        for name in before.keys() ^ loans.waiting.keys():
            self._reranker_changed((key[0], name))
        for name, waiting in loans.waiting.items():
            if name not in before and waiting.reason != "LoadFailed":  # that was told when it failed
                event = Event("Warning", f"WarmPool{waiting.reason}", "Claim", f"WarmPool {key[1]}: {waiting.message}")
                self._calls.beside(self._say(event, by_name[name].metadata))

    async def _say(self, event: Event, regarding: Metadata) -> None:
        try:
            await self._tell(event, regarding)
        except NotLeader:
            return  # the next leader tells what is so then

    # --- loans: patches of Pods ---

    async def _carry_out(self, observed: Observed, loans: Loans) -> tuple[bool, BaseException | None]:
        """Whether something has changed, so that it is worth another look; and what failed beyond one pod."""
        steps: list[tuple[WarmPod, Coroutine[Any, Any, bool]]] = [
            *((step.pod, self._serve(observed, step)) for step in loans.serves),
            *((step.pod, self._release(observed, step)) for step in loans.releases),
            *((step.pod, self._claim(observed, step)) for step in loans.claims),
        ]
        slots = asyncio.Semaphore(PATCHES)

        async def one(pod: WarmPod, step: Coroutine[Any, Any, bool]) -> bool:
            async with slots:
                try:
                    return await step
                except ApiError as error:  # about this pod: another may be taken, and the loans of the others go on
                    subject = {"namespace": observed.metadata.namespace, "pool": observed.metadata.name}
                    log.warning("patch of pod %s: %s", pod.name, error, extra=subject)
                    self._calls.refused(pod, str(error))
                    return True

        results = await asyncio.gather(*(one(*step) for step in steps), return_exceptions=True)
        failed = [result for result in results if isinstance(result, BaseException)]
        for error in failed:
            if isinstance(error, NotLeader):
                raise error
        return any(result is True for result in results), failed[0] if failed else None

    async def _claim(self, observed: Observed, claim: Claim) -> bool:
        labels = {names.LABEL_LOANED_TO: claim.reranker, names.LABEL_LOANED_REVISION: claim.revision}
        annotations = {
            names.ANNOTATION_LOANED_AT: format_micro_time(time.time()),
            names.ANNOTATION_DELETION_COST: LENT_COST,
        }
        pod = await self._patch(observed, claim.pod, labels, annotations, "claim")
        if pod is None or pod.loan is None:
            return True
        wishes = {member.name: member.wish for member in observed.members}
        wish = wishes.get(claim.reranker)
        now = time.time()
        since = wish.since if wish is not None else pod.loan.since
        self._claimed[pod.uid] = (since, now)
        metrics.WAKE_PHASE_SECONDS.labels("claim").observe(max(0.0, now - since))
        self._reranker_changed((observed.metadata.namespace, claim.reranker))
        return True

    async def _serve(self, observed: Observed, serve: Serve) -> bool:
        labels = {names.LABEL_LOANED_TO: serve.reranker, names.LABEL_LOANED_REVISION: serve.revision}
        annotations = {names.ANNOTATION_LOAN_SERVING: serve.key}
        pod = await self._patch(observed, serve.pod, labels, annotations, "serve")
        if pod is None or pod.loan is None:
            return True
        now = time.time()
        loaded = self._calls.loaded_at(pod.uid) or now
        wished, claimed = self._claimed.get(pod.uid, (pod.loan.since, pod.loan.since))
        load, mark = max(0.0, loaded - claimed), max(0.0, now - loaded)
        if serve.pod.loan is not None and serve.pod.loan.serving is None:  # else it has only changed its revision
            metrics.WAKE_PHASE_SECONDS.labels("load").observe(load)
            metrics.WAKE_PHASE_SECONDS.labels("mark").observe(mark)
        note = (
            f"pod {pod.name} of WarmPool {observed.metadata.name} serves revision {serve.revision}: "
            f"claimed after {max(0.0, claimed - wished):.3f} s, loaded in {load:.3f} s, marked in {mark:.3f} s"
        )
        key = (observed.metadata.namespace, serve.reranker)
        self._reranker_changed(key)
        member = next((member for member in observed.members if member.name == serve.reranker), None)
        if member is not None:
            self._calls.beside(self._say(Event("Normal", "WarmPodServing", "Claim", note), member.metadata))
        return True

    async def _release(self, observed: Observed, release: Release) -> bool:
        gone = (names.LABEL_LOANED_TO, names.LABEL_LOANED_REVISION)
        marks = (names.ANNOTATION_LOANED_AT, names.ANNOTATION_LOAN_SERVING, names.ANNOTATION_DELETION_COST)
        await self._patch(observed, release.pod, dict.fromkeys(gone), dict.fromkeys(marks), "release")
        loan, namespace = release.pod.loan, observed.metadata.namespace
        self._claimed.pop(release.pod.uid, None)
        if loan is not None:
            subject = {"namespace": namespace, "reranker": loan.reranker}
            log.info("pod %s is given back: %s", release.pod.name, release.why, extra=subject)
            self._reranker_changed((namespace, loan.reranker))
        return True

    async def _patch(
        self,
        observed: Observed,
        pod: WarmPod,
        labels: Mapping[str, str | None],
        annotations: Mapping[str, str | None],
        why: str,
    ) -> WarmPod | None:
        """The pod as it is then; None where somebody else was quicker, or it is gone: look again."""
        namespace = observed.metadata.namespace
        metadata = {
            "uid": pod.uid,
            "resourceVersion": pod.resource_version,
            "labels": labels,
            "annotations": annotations,
        }
        try:
            answer = await self._api.merge(PODS, namespace, pod.name, {"metadata": metadata})
        except ApiError as error:
            if error.status not in (404, 409):
                raise
            metrics.LOAN_CONFLICTS.labels(why).inc()
            await self._learn(namespace, pod)
            return None
        self._calls.patched(pod.uid)
        metrics.WRITES.labels(PODS.name, why).inc()
        self._store.learned(PODS, answer)
        return warm_pod(answer, {})

    async def _learn(self, namespace: str, pod: WarmPod) -> None:
        """What the pod is now: the watch may take a while to tell."""
        try:
            self._store.learned(PODS, await self._api.get(PODS, namespace, pod.name))
        except ApiError as error:
            if error.status != 404:
                raise
            metadata = {"namespace": namespace, "name": pod.name, "resourceVersion": pod.resource_version}
            self._store.seen(PODS, True, {"metadata": metadata})

    # --- what calls to workers ask and tell ---

    def _due(self, key: Key) -> None:
        if self._api.fence() > 0:
            self.queue.add(key)

    def _still_wanted(self, key: Key, job: Job) -> bool:
        body = self._store.get(PODS, key[0], job.pod.name)
        if body is None or body["metadata"]["uid"] != job.pod.uid:
            return False
        loan = warm_pod(body, {}).loan
        if isinstance(job, Load) and job.loan is not None:
            return loan is not None and loan.since == job.loan
        return loan is None or isinstance(job, Look)

    async def _tell_failed_load(self, key: Key, job: Load, why: str) -> None:
        body = self._store.get(RERANKERS, key[0], job.config.reranker)
        if body is not None:
            note = f"pod {job.pod.name} of WarmPool {key[1]} could not load the model: {why}"
            regarding = msgspec.convert(body["metadata"], Metadata)
            await self._say(Event("Warning", "WarmPodLoadFailed", "Claim", note), regarding)
