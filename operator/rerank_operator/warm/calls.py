"""The calls to the workers of warm pods: one a pod, bounded over all pools, and what their answers have told.

They run beside the queue of pools, and make their pool due when they end. What is kept here could be asked again: a
leader that has just begun knows nothing. Decides only what an error means: whose fault it is, and when to try again.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine
from typing import Any

import msgspec

from rerank_operator.controller import metrics
from rerank_operator.controller.kinds import Key
from rerank_operator.controller.leader import steady_clock
from rerank_operator.manifests.pod_template import STARTUP_SECONDS
from rerank_operator.warm.admin import Admin, AdminError, ModelFact
from rerank_operator.warm.models import Failure, Job, Load, Look, Unload, Worker, gives_way, known, place, refused
from rerank_operator.warm.observe import WarmPod

log = logging.getLogger(__name__)

LOADS = 64
"""Loads for loans at a time."""
LOOKS = 64
"""Looks at a time: short ones, and a loan's load may have to wait for one."""
OTHER_CALLS = 16
"""All other calls at a time, which may take minutes: no look and no load for a loan waits for them."""
LOAD_SECONDS = 60.0
"""How long one call waits for a load; then it asks again, while the load goes on."""
UNLOAD_SECONDS = 60.0
"""More than a worker gives the requests of a model that is unloaded."""
LOADING_SECONDS = 1.0
"""Between two calls while the model that should make room is still being loaded itself."""
FIRST_RETRY_SECONDS = 2.0
LONGEST_RETRY_SECONDS = 300.0
FAILURES_KEPT_SECONDS = 3600.0
PODS_FAULT = ("unreachable", "unauthorized", "not_found")
"""Answers, or none, that say nothing about the model: another pod is claimed, and nobody waits for a retry."""


class Calls:
    def __init__(
        self,
        allowed: Callable[[], bool],
        due: Callable[[Key], None],
        wanted: Callable[[Key, Job], bool],
        failed: Callable[[Key, Load, str], Awaitable[None]],
    ) -> None:
        """``allowed``: whether workers may be asked now; ``due`` is told the pool of a call that has ended; ``wanted``:
        whether what a call is for still is; ``failed`` is told of a load for a loan, and why it failed."""
        self._allowed = allowed
        self._due = due
        self._wanted = wanted
        self._failed = failed
        self._admin = Admin()
        self.workers: dict[str, Worker] = {}
        self.failures: dict[str, Failure] = {}
        self.running: dict[str, Job] = {}
        self._loaded_at: dict[str, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._callers: dict[str, asyncio.Task[None]] = {}
        """Of what is running."""
        self._load_slots = asyncio.Semaphore(LOADS)
        self._look_slots = asyncio.Semaphore(LOOKS)
        self._other_slots = asyncio.Semaphore(OTHER_CALLS)

    async def close(self) -> None:
        self.clear()
        await self._admin.close()

    def clear(self) -> None:
        """Forget all, and stop asking. Loads that have begun go on in the workers."""
        for task in self._tasks:
            task.cancel()
        # What was cancelled before its first step has no end of its own that would take it out of ``running``.
        for kept in (self.workers, self.failures, self.running, self._callers, self._loaded_at):
            kept.clear()

    def keep(self, pods: Collection[str]) -> None:
        """Forget what is about other pods than those with these uids, and failures of long ago."""
        for kept in (self.workers, self._loaded_at):
            for uid in kept.keys() - set(pods):
                del kept[uid]
        old = time.time() - FAILURES_KEPT_SECONDS
        for key in [key for key, failure in self.failures.items() if failure.until < old]:
            del self.failures[key]

    def patched(self, uid: str) -> None:
        """A patch of the pod was taken."""
        self.failures.pop(refused(uid), None)

    def refused(self, pod: WarmPod, message: str) -> None:
        """A patch of the pod was not taken: once more at once, then later each time."""
        self._remember(refused(pod.uid), pod, message, at_once=1)

    def loaded_at(self, uid: str) -> float | None:
        """Unix time at which the pod's last load for a loan was done."""
        return self._loaded_at.get(uid)

    def start(self, pool: Key, token: str, job: Job) -> None:
        """Nothing happens where the pod has another call in hand, unless that gives way to a loan's load."""
        uid = job.pod.uid
        if (in_hand := self.running.get(uid)) is not None:
            if not isinstance(job, Load) or not gives_way(in_hand, job.loan):
                return
            self._callers[uid].cancel()
            if (worker := self.workers.get(uid)) is not None:  # how far it has come is not known: look soon
                self.workers[uid] = msgspec.structs.replace(worker, asked=0.0)
        self.running[uid] = job
        self._callers[uid] = self.beside(self._run(pool, token, job))

    def beside(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs until it ends, or ``clear`` is called."""
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _run(self, pool: Key, token: str, job: Job) -> None:
        try:
            async with self._slots(job):
                # What a former leader asks for may be in the way of the present one, and the pod may be another's now.
                if self._allowed() and self._wanted(pool, job):
                    await self._ask(pool, token, job)
        except AdminError as error:
            await self._note(pool, job, error)
        except Exception:  # a defect in one call must not end without a trace
            log.exception("a call to pod %s failed", job.pod.name, extra={"namespace": pool[0], "pool": pool[1]})
            self._remember(place(job.pod.uid, ""), job.pod, "the operator failed on it: its log says why")
        finally:
            if self.running.get(job.pod.uid) is job:
                del self.running[job.pod.uid]
                self._callers.pop(job.pod.uid, None)
            self._due(pool)

    def _slots(self, job: Job) -> asyncio.Semaphore:
        if isinstance(job, Look):
            return self._look_slots
        return self._load_slots if isinstance(job, Load) and job.loan is not None else self._other_slots

    async def _ask(self, pool: Key, token: str, job: Job) -> None:
        pod = job.pod
        match job:
            case Look():
                models = await self._admin.models(pod.address)
                self.failures.pop(place(pod.uid, ""), None)
                self.workers[pod.uid] = msgspec.structs.replace(self._worker(pod), asked=time.time(), models=models)
            case Unload():
                await self._unload(token, pod, job.key)
            case Load():
                fact = await self._load(pool, token, job)
                if fact is not None:
                    self._loaded(job, fact)

    def _worker(self, pod: WarmPod) -> Worker:
        """What this process of its worker has told; nothing where it has not been asked."""
        return known(pod, self.workers) or Worker(pod.restarts, 0.0)

    def _loaded(self, job: Load, fact: ModelFact) -> None:
        uid, worker = job.pod.uid, self._worker(job.pod)
        others = (model for model in worker.models if model.key != job.key)
        worker = msgspec.structs.replace(worker, models=(*others, fact))
        if job.loan is None:
            self.failures.pop(place(uid, job.key), None)
        else:
            worker = msgspec.structs.replace(worker, loaded=(job.key, job.loan))
            self.failures.pop(job.key, None)
            self._loaded_at[uid] = time.time()
        self.workers[uid] = worker
        metrics.WARM_LOADS.labels(_purpose(job), "ok").inc()

    async def _load(self, pool: Key, token: str, job: Load) -> ModelFact | None:
        """None: it is not wanted any more."""
        pod, giving_way = job.pod, list(job.evictable)
        others = {model.key for model in self._worker(pod).models} - {job.key}
        loading: list[str] = []
        while len(others) >= job.most and giving_way:
            key = giving_way.pop(0)
            others.discard(key)
            if not await self._unload(token, pod, key):
                loading.append(key)
        giving_way += loading
        give_up = steady_clock() + STARTUP_SECONDS
        while True:
            try:
                return await self._admin.load(pod.address, token, job.key, job.config, LOAD_SECONDS)
            except AdminError as error:
                if (error.code != "no_room" or not giving_way) and error.code != "deadline":
                    raise
                if steady_clock() >= give_up:
                    raise
                if error.code == "no_room" and not await self._unload(token, pod, key := giving_way.pop(0)):
                    giving_way.append(key)
                    await asyncio.sleep(LOADING_SECONDS)
            if not self._wanted(pool, job):
                return None

    async def _unload(self, token: str, pod: WarmPod, key: str) -> bool:
        """False: it is being loaded, which cannot be stopped; ask again later."""
        loading = False
        try:
            await self._admin.unload(pod.address, token, key, UNLOAD_SECONDS)
        except AdminError as error:
            if error.code not in ("not_found", "loading"):
                raise
            loading = error.code == "loading"
        worker = known(pod, self.workers)
        if worker is not None:
            left = tuple(model for model in worker.models if model.key != key)
            # The next look tells how that load has ended.
            left = (*left, ModelFact(key, "loading")) if loading else left
            self.workers[pod.uid] = msgspec.structs.replace(worker, models=left)
        return not loading

    async def _note(self, pool: Key, job: Job, error: AdminError) -> None:
        pod = job.pod
        log.warning("pod %s: %s", pod.name, error, extra={"namespace": pool[0], "pool": pool[1]})
        if isinstance(job, Load):
            metrics.WARM_LOADS.labels(_purpose(job), error.code).inc()
        if not isinstance(job, Load) or error.code in PODS_FAULT:
            self._remember(place(pod.uid, ""), pod, str(error))
        elif job.loan is None:
            self._remember(place(pod.uid, job.key), pod, str(error))
        else:
            # Once another pod is tried at once: it may be this one's fault, and requests wait.
            self._remember(job.key, pod, str(error), at_once=1)
            await self._failed(pool, job, str(error))

    def _remember(self, where: str, pod: WarmPod, message: str, at_once: int = 0) -> None:
        """``at_once``: failures after which it is tried again without a delay."""
        before, now = self.failures.get(where), time.time()
        count, tried = (before.count + 1, before.pods) if before is not None else (1, {})
        delay = 0.0 if count <= at_once else FIRST_RETRY_SECONDS * 2.0 ** min(count - at_once - 1, 16)
        until = now + min(delay, LONGEST_RETRY_SECONDS)
        claimed = pod.loan.since if pod.loan is not None else None
        self.failures[where] = Failure(count, now, until, message, {**tried, pod.uid: claimed})


def _purpose(job: Load) -> str:
    return "loan" if job.loan is not None else "preload"
