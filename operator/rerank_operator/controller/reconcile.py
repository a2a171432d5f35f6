"""The controller: everything wired together, and the loops that keep it going (workers, periodic lists, leadership).

Both replicas watch and keep the store; only the leader's workers take keys. All state is in the store (which any
replica fills anew) and in Kubernetes objects, so it may stop at any line.
"""

import asyncio
import logging
import random
import time
from collections.abc import Collection, Mapping, Sequence

import msgspec

from rerank_operator.controller import metrics
from rerank_operator.controller.api import ApiError, KubeApi, Unreachable
from rerank_operator.controller.apply import Applier
from rerank_operator.controller.conditions import READY
from rerank_operator.controller.kinds import RERANKERS, WARM_POOLS, WATCHED, Key, Kind
from rerank_operator.controller.leader import Election, Leader, Terms, steady_clock
from rerank_operator.controller.observe import observe
from rerank_operator.controller.outcome import NOT_LEADER, OK, REFUSED, is_failure, outcome
from rerank_operator.controller.plan import make_plan
from rerank_operator.controller.pools import Pools
from rerank_operator.controller.quality import QualityRuns
from rerank_operator.controller.queue import WorkQueue
from rerank_operator.controller.rollouts import Rollouts
from rerank_operator.controller.scaler import Scaler
from rerank_operator.controller.store import Store
from rerank_operator.controller.usage import Usage
from rerank_operator.controller.watches import Watches
from rerank_operator.demand.gateways import Gateways
from rerank_operator.demand.totals import Totals
from rerank_operator.manifests.pod_template import WorkerImage
from rerank_operator.warm.tokens import new_key

log = logging.getLogger(__name__)

WORKERS = 8
"""A reconcile mostly waits for the API server."""
LAST_WORK_SECONDS = 10.0
"""What is at work when the process is told to stop may go on for so long."""
FIRST_RETRY_SECONDS = 0.5
LONGEST_RETRY_SECONDS = 10.0
STUCK_SECONDS = 300.0
MISSED_LISTS = 4
"""So many lists may show an object before its watch does."""
SILENT_SECONDS = 60.0


class Settings(msgspec.Struct, frozen=True):
    worker: WorkerImage
    namespaces: tuple[str, ...]
    """None named: all."""
    lease_namespace: str
    lease_name: str
    identity: str
    terms: Terms = Terms()
    resync_seconds: float = 60.0
    gateway_service: tuple[str, str] | None = None
    """Namespace and name of the Service of the gateways; None: no demand is known, and nothing shrinks."""
    prometheus_url: str | None = None
    """Of the Prometheus that knows users' own metrics; None: a canary that is to be judged by such is held."""
    warm_pool_key: bytes | None = None
    """From which the tokens of warm pools are made; None: a random one, and their pods are renewed at each start."""


class Controller:
    def __init__(self, api: KubeApi, settings: Settings) -> None:
        self._api = api
        self._settings = settings
        self._scopes: Sequence[str | None] = settings.namespaces or (None,)
        self.store = Store(self._enqueue_pool)
        self.queue: WorkQueue[Key] = WorkQueue(steady_clock, random.random)
        self.leader = Leader(
            api,
            Election(settings.identity, settings.terms),
            settings.lease_namespace,
            settings.lease_name,
            random.random,
            self._start_leading,
            self._stop_leading,
        )
        api.fence = self.leader.write_seconds
        totals = Totals()
        self.scaler = Scaler(self.store, totals, time.time, self._may_decide, self._enqueue, self._pool_due)
        service = settings.gateway_service
        self._gateways = Gateways(api, service, totals, self.scaler.heard) if service else None
        self.watches = Watches(self._watched, self._served, settings.namespaces)
        self._applier = Applier(api, self.store, settings.identity)
        self.pools = Pools(
            api,
            self.store,
            self.scaler,
            settings.worker,
            settings.warm_pool_key or new_key(),
            settings.identity,
            self._enqueue,
            self._applier.tell,
        )
        self.scaler.short = self.pools.waiting
        self.rollouts = Rollouts(
            api,
            self.store,
            self._gateway_addresses,
            self._may_decide,
            self._enqueue,
            time.time,
            settings.prometheus_url,
        )
        self.quality = QualityRuns(api, self.store, self._may_decide, self._enqueue, time.time)
        # Each resync makes each Reranker due: what was not looked at for two of them was not looked at.
        self.usage = Usage(self.store, steady_clock, 2 * settings.resync_seconds)
        self._resync_now = asyncio.Event()
        self._lead_after_list = False
        self.synced = False
        self.listed: float | None = None
        """When all objects were last listed."""
        self._last_resync = steady_clock()
        self._tasks: list[asyncio.Task[None]] = []

    async def run(self, stop: asyncio.Event) -> None:
        """Until ``stop`` is set: then the work in hand is finished and, where that has ended, the lease released."""
        self.watches.start()
        workers = [asyncio.create_task(self._work(), name=f"worker-{n}") for n in range(WORKERS)]
        workers.append(asyncio.create_task(self.pools.run(), name="pools"))
        leading = asyncio.create_task(self.leader.run(), name="leader")
        watching = [
            asyncio.create_task(self._resync_forever(), name="resync"),
            asyncio.create_task(self.scaler.run(), name="scaler"),
            asyncio.create_task(self.rollouts.run(), name="rollouts"),
            asyncio.create_task(self.quality.run(), name="quality"),
        ]
        if self._gateways is not None:
            watching.append(asyncio.create_task(self._gateways.run(), name="gateways"))
        else:
            log.warning("no --gateway-service: the demand is not known, so no Reranker gets fewer replicas by itself")
        self._tasks = [*workers, leading, *watching]
        stopping = asyncio.create_task(stop.wait())
        try:
            done, _ = await asyncio.wait([*self._tasks, stopping], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.queue.close()
            self.pools.queue.close()
            for task in watching:
                task.cancel()
        _, working = await asyncio.wait(workers, timeout=LAST_WORK_SECONDS)
        leading.cancel()
        await asyncio.wait([leading, *watching], timeout=1)
        if not working:  # else a write may still be on its way: the lease runs out by itself
            await self.leader.release()
        await self.watches.stop()
        for task in done - {stopping}:
            task.result()  # a loop that ended by itself is a defect: let the process end with its error

    # --- what comes in ---

    def _watched(self, kind: Kind, deleted: bool, body: dict[str, object]) -> None:
        self._enqueue(self.store.seen(kind, deleted, body))

    def _enqueue(self, key: Key | None) -> None:
        # Before the first list is in, a Reranker may look childless.
        if key is not None and self._may_decide():
            self.queue.add(key)

    def _may_decide(self) -> bool:
        return self.leader.leading and not self._lead_after_list

    def _enqueue_pool(self, key: Key) -> None:
        if self._may_decide():
            self.pools.queue.add(key)

    def _pool_due(self, namespace: str, pool: str) -> None:
        """The wishes of a WarmPool's Rerankers have changed."""
        self._enqueue_pool((namespace, pool))

    @property
    def gateways(self) -> Mapping[str, str] | None:
        """The Pod's name by address of its admin port; None: nobody has said who the gateways are."""
        return self._gateways.addresses if self._gateways is not None else None

    def _gateway_addresses(self) -> Collection[str]:
        return self.gateways or ()

    def _start_leading(self) -> None:
        """Nothing is written before a fresh list: the last leader's latest writes may not have come through yet."""
        self._forget_all()
        self.scaler.reset()  # what counts is what the last leader left in the statuses
        self._lead_after_list = True
        self._resync_now.set()

    def _stop_leading(self) -> None:
        self.queue.clear()
        self.pools.clear()
        self._forget_all()
        self.scaler.reset()

    def _forget_all(self) -> None:
        self.rollouts.reset()
        self.quality.reset()
        self.usage.reset()

    async def _served(self) -> bool:
        try:
            found = await self._api.discover(f"{RERANKERS.group}/{RERANKERS.version}")
        except (ApiError, Unreachable) as error:
            log.warning("waiting for the CRDs: %s", error)
            return False
        missing = {RERANKERS.plural, WARM_POOLS.plural} - {one["name"] for one in found.get("resources", ())}
        if missing:
            log.warning("waiting for the CRDs: %s are not served", ", ".join(sorted(missing)))
        return not missing

    async def _resync_forever(self) -> None:
        retry = FIRST_RETRY_SECONDS
        while True:
            if self._resync_now.is_set():
                self._resync_now.clear()
                retry = FIRST_RETRY_SECONDS
            self._last_resync = steady_clock()
            try:
                await self._resync()
                metrics.RESYNCS.labels("ok").inc()
                delay, retry = self._settings.resync_seconds * (0.9 + 0.2 * random.random()), FIRST_RETRY_SECONDS  # noqa: S311
            except (ApiError, Unreachable) as error:
                metrics.RESYNCS.labels("failed").inc()
                log.warning("the cluster could not be listed: %s", error)
                delay, retry = retry, min(retry * 2, LONGEST_RETRY_SECONDS)
            try:
                async with asyncio.timeout(delay):
                    await self._resync_now.wait()
            except TimeoutError:
                continue

    async def _resync(self) -> None:
        leading = self.leader.leading
        for kind in WATCHED:
            for scope in self._scopes:
                known = self.store.before_list(kind)
                listed = await self._api.list(kind, scope)
                version = listed["metadata"]["resourceVersion"]
                changed = self.store.listed(kind, scope, listed["items"], version, known)
                if self.synced:
                    metrics.MISSED.inc(len(changed))
        self.synced, self.listed = True, steady_clock()
        if leading and not self._resync_now.is_set():  # already when the list began, and without a break
            self._lead_after_list = False
        keys = self.store.keys()
        for key in keys:
            self._enqueue(key)
        self.pools.forget_gone()
        for key in self.store.pools():
            self._enqueue_pool(key)
        self._count(keys)

    def _count(self, keys: set[Key]) -> None:
        states = {"True": 0, "False": 0, "Unknown": 0}
        uids = set()
        for key in keys:
            body = self.store.get(RERANKERS, *key) or {}
            uids.add(body.get("metadata", {}).get("uid", ""))
            ready = [c["status"] for c in body.get("status", {}).get("conditions", ()) if c["type"] == READY]
            states[ready[0] if ready else "Unknown"] += 1
        for state, count in states.items():
            metrics.RERANKERS.labels(state).set(count)
        self._applier.allowance.keep(uids)
        self.scaler.keep(keys)
        self.quality.keep(keys)
        self.usage.keep(keys)

    # --- what goes out ---

    async def _work(self) -> None:
        while (taken := await self.queue.get()) is not None:
            key, waited = taken
            metrics.QUEUE_SECONDS.observe(max(0.0, waited))
            started = steady_clock()
            ended = await outcome(self._reconcile(key), {"namespace": key[0], "reranker": key[1]})
            metrics.RECONCILES.labels(ended).inc()
            metrics.RECONCILE_SECONDS.observe(steady_clock() - started)
            self.queue.done(key, failed=is_failure(ended))

    async def _reconcile(self, key: Key) -> str:
        if not self._may_decide():  # it was queued again when it failed, and the lease was lost meanwhile
            return NOT_LEADER
        observed = observe(self.store, key)
        if observed is None:
            self.scaler.forget(key)
            self.rollouts.forget(key)
            self.rollouts.show(key, None)
            self.quality.forget(key)
            self.usage.forget(key)
            return OK
        self.usage.look(observed)
        self.rollouts.show(key, observed.rollout, observed.status.get("updatedRevision"))
        verdict, findings = self.scaler.look(observed), self.rollouts.findings(observed)
        measured = self.quality.look(observed)
        worker = self._settings.worker
        plan = make_plan(observed, worker, time.time(), verdict=verdict, findings=findings, measured=measured)
        problem = await self._applier.carry_out(plan.actions, observed.metadata)
        if problem is None:
            self.scaler.carried_out(key)
        else:
            plan = make_plan(observed, worker, time.time(), problem, verdict, findings, measured)
        if plan.status is not None:
            await self._applier.write_status(plan.status)
        if verdict is not None:
            self.scaler.told(key, verdict)
        for event in plan.events:
            await self._applier.tell(event, observed.metadata)
            if event.action == "Rollout" or event.reason == "RevisionRejected":
                metrics.ROLLOUTS.labels(event.reason).inc()
        if problem is not None:
            return REFUSED
        if plan.requeue_after is not None:
            self.queue.add(key, plan.requeue_after)
        return OK

    # --- how it is ---

    def trouble(self) -> str | None:
        """Why this process should be restarted; None: it makes progress, or waits for an API server that is away."""
        metrics.QUEUE_DEPTH.set(self.queue.depth())
        for task in self._tasks:
            if task.done():
                return f"loop {task.get_name()} has ended"
        if (oldest := max(self.queue.oldest_work(), self.pools.queue.oldest_work())) > STUCK_SECONDS:
            return f"a reconcile has been at work for {oldest:.0f} s"
        if (silence := self.watches.silence()) > SILENT_SECONDS:
            return f"the watching loop has not turned for {silence:.0f} s"
        if (since := steady_clock() - self._last_resync) > 2 * self._settings.resync_seconds + STUCK_SECONDS:
            return f"no list has been tried for {since:.0f} s"
        lists, kind = self.store.lag()
        if lists >= MISSED_LISTS:
            return f"the watch of {kind} has not shown what the last {lists} lists did"
        return None
