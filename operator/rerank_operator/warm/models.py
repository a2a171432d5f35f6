"""Which model each warm pod should hold, and in what order models give way. Pure.

The worker itself holds the bounds (models and bytes); here is decided who goes first: what nobody uses any more, then
the least recently used, and models that the pool keeps in every pod only for one that is lent out. A model that serves
never goes. Loads for loans come before everything else.
"""

from collections.abc import Mapping, Sequence

import msgspec
from rerank_api.warm_pool import WarmPoolSpec
from rerank_api.worker_config import WorkerConfig

from rerank_operator.warm.admin import ModelFact
from rerank_operator.warm.members import Member, Served
from rerank_operator.warm.observe import PoolState, WarmPod

LOOK_SECONDS = 60.0
"""Between two looks at the models of a worker: only what somebody else has done to them is new then."""


CLEARLY_SECONDS = 600.0
"""So much more recently must a model have been used than one that a pod has, to be loaded in its place. Who is busy is
used every few seconds: without it, more busy models than places would take turns in every pod without end."""


class Worker(msgspec.Struct, frozen=True):
    """What the worker of a warm pod has answered."""

    restarts: int
    """Of its container when it was asked: a new process knows nothing of what the old one held."""
    asked: float
    """Unix time."""
    models: tuple[ModelFact, ...] = ()
    loaded: tuple[str, float] | None = None
    """Key of the model that was loaded last for a loan, and the time of that loan's claim."""

    @property
    def ready(self) -> frozenset[str]:
        return frozenset(model.key for model in self.models if model.state == "ready")


Workers = Mapping[str, Worker]
"""By the Pod's uid."""


class Failure(msgspec.Struct, frozen=True):
    """That a model could not be loaded: how often in a row, and when it may be tried again."""

    count: int
    at: float
    until: float
    message: str
    pods: Mapping[str, float | None]
    """Uids of the pods that have failed with it, and the time of the claim for which each did; None: it was free."""


Failures = Mapping[str, Failure]
"""For loans by the model's key; for models that are only kept ready by ``place(uid, key)``; for everything else that
was asked of a pod by ``place(uid, "")``; for patches of a Pod by ``refused(uid)``."""


def place(uid: str, key: str) -> str:
    return f"{uid}/{key}"


def refused(uid: str) -> str:
    return f"{uid}!"


def resting(pod: WarmPod, failures: Failures, now: float) -> bool:
    """Its worker has just not answered, or not taken our word: that is no model's fault."""
    rest = failures.get(place(pod.uid, ""))
    return rest is not None and now < rest.until


def failed_with(pod: WarmPod, failure: Failure | None) -> bool:
    """Whether it has failed in its present loan. By that loan's own name: clocks of two leaders may differ."""
    return failure is not None and pod.loan is not None and failure.pods.get(pod.uid) == pod.loan.since


class Look(msgspec.Struct, frozen=True):
    """Ask a worker which models it has."""

    pod: WarmPod


class Load(msgspec.Struct, frozen=True):
    """Load a model; while there is no room, unload those of ``evictable``, in their order."""

    pod: WarmPod
    key: str
    config: WorkerConfig
    evictable: tuple[str, ...]
    most: int
    """Models that the worker may hold."""
    loan: float | None = None
    """The time of the claim that it is for; None: it is to be kept ready."""


class Unload(msgspec.Struct, frozen=True):
    pod: WarmPod
    key: str


Job = Look | Load | Unload


def gives_way(running: Job, claimed: float | None) -> bool:
    """Whether a call in hand must not hold up the load for the loan that was claimed at that time."""
    if claimed is None or isinstance(running, Look):
        return False
    return isinstance(running, Unload) or running.loan != claimed


def known(pod: WarmPod, workers: Workers) -> Worker | None:
    """What is known of this process of the pod's worker."""
    worker = workers.get(pod.uid)
    return worker if worker is not None and worker.restarts == pod.restarts else None


def kept(members: Sequence[Member], spec: WarmPoolSpec) -> tuple[Served, ...]:
    """The models that every pod of the pool should hold, most recently used first."""
    able = [member for member in members if member.served is not None]
    if spec.preload is not None:
        named = {(entry.uri, entry.revision) for entry in spec.preload}
        able = [m for m in able if m.served and (m.served.model.uri, m.served.model.revision) in named]
    recent = sorted(able, key=lambda member: (-member.last_request, member.name))
    return tuple(member.served for member in recent if member.served)[: spec.max_models_per_pod]


def unused_preloads(members: Sequence[Member], spec: WarmPoolSpec) -> tuple[str, ...]:
    """Entries of ``spec.preload`` that are the model of no Reranker of the pool: nobody knows how to load them."""
    used = {(m.served.model.uri, m.served.model.revision) for m in members if m.served is not None}
    return tuple(entry.uri for entry in spec.preload or () if (entry.uri, entry.revision) not in used)


def jobs(
    state: PoolState,
    members: Sequence[Member],
    spec: WarmPoolSpec,
    workers: Workers,
    failures: Failures,
    running: Mapping[str, Job],
    now: float,
) -> tuple[Job, ...]:
    """What to ask of workers now: one thing at most of each that has nothing in hand (``running``, by uid), or has only
    what gives way to its loan."""
    by_name = {member.name: member for member in members}
    wanted = kept(members, spec)
    in_hand = [running[pod.uid] for pod in state.free if pod.uid in running]  # other pools have theirs
    filling = sum(isinstance(job, Load) and job.loan is None for job in in_hand)
    # Who claims a pod that is loading something else must wait for that: never all of them at a time.
    most_filling = max(1, len(state.free) // 2)
    asked: list[Job] = []
    for pod in state.pods:
        in_the_way = running.get(pod.uid)
        claimed = pod.loan.since if pod.loan is not None else None
        if not pod.usable or (in_the_way is not None and not gives_way(in_the_way, claimed)):
            continue
        worker, rests = known(pod, workers), resting(pod, failures, now)
        if worker is None and not rests and in_the_way is None:
            asked.append(Look(pod))
            continue
        if rests and (pod.loan is None or pod.loan.serving is not None):
            continue
        worker = worker or Worker(pod.restarts, now)
        if pod.loan is not None:
            member = by_name.get(pod.loan.reranker)
            job = _load_for_loan(pod, worker, member, members, spec, wanted, failures, in_the_way)
        else:
            job = _unload_unused(pod, worker, members)
            if job is None and filling < most_filling:
                job = _keep_ready(pod, worker, members, spec, wanted, failures, now)
                filling += job is not None
        if job is None and in_the_way is None and now - worker.asked >= LOOK_SECONDS:
            job = Look(pod)
        if job is not None:
            asked.append(job)
    # The order in which they get their turn.
    return tuple(sorted(asked, key=lambda job: (not (isinstance(job, Load) and job.loan is not None), job.pod.name)))


def _load_for_loan(
    pod: WarmPod,
    worker: Worker,
    member: Member | None,
    members: Sequence[Member],
    spec: WarmPoolSpec,
    wanted: Sequence[Served],
    failures: Failures,
    in_the_way: Job | None,
) -> Job | None:
    if member is None or member.served is None or pod.loan is None:
        return None
    served, since = member.served, pod.loan.since
    silent = pod.loan.serving is None and failed_with(pod, failures.get(place(pod.uid, "")))
    if silent or failed_with(pod, failures.get(served.key)):
        return None  # the loan is to end
    if worker.loaded == (served.key, since):
        return None
    if pod.loan.serving == served.key and served.key in worker.ready:
        return None  # a leader before us has seen to it
    giving_way = _giving_way(pod, worker, served.key, members, wanted)
    if isinstance(in_the_way, Load) and in_the_way.key not in (served.key, pod.loan.serving, *giving_way):
        giving_way = (*giving_way, in_the_way.key)  # its load goes on in the worker, and may take the room
    return Load(pod, served.key, served.config, giving_way, spec.max_models_per_pod, since)


def _unload_unused(pod: WarmPod, worker: Worker, members: Sequence[Member]) -> Job | None:
    used = {member.served.key for member in members if member.served is not None}
    for model in worker.models:
        if model.key not in used and model.state in ("ready", "failed"):
            return Unload(pod, model.key)
    return None


def _keep_ready(
    pod: WarmPod,
    worker: Worker,
    members: Sequence[Member],
    spec: WarmPoolSpec,
    wanted: Sequence[Served],
    failures: Failures,
    now: float,
) -> Job | None:
    present = {model.key for model in worker.models if model.state in ("ready", "loading")}
    broken = {model.key for model in worker.models if model.state == "failed"}
    last_used = _last_used(members)
    keep = {served.key for served in wanted} - broken
    for served in wanted:
        failure = failures.get(place(pod.uid, served.key))
        if served.key in present or (failure is not None and now < failure.until):
            continue
        since = last_used[served.key] - CLEARLY_SECONDS
        giving_way = tuple(
            key
            for key in _giving_way(pod, worker, served.key, members, wanted)
            if key not in keep
            and (spec.preload is not None or key in broken or key not in last_used or last_used[key] <= since)
        )
        others = {model.key for model in worker.models} - {served.key}
        if giving_way or len(others) < spec.max_models_per_pod:
            return Load(pod, served.key, served.config, giving_way, spec.max_models_per_pod)
    return None


def _last_used(members: Sequence[Member]) -> dict[str, float]:
    return {member.served.key: member.last_request for member in members if member.served is not None}


def _giving_way(
    pod: WarmPod, worker: Worker, key: str, members: Sequence[Member], wanted: Sequence[Served]
) -> tuple[str, ...]:
    """Models of the pod that may go for ``key``, the first to go first."""
    serving = pod.loan.serving if pod.loan is not None else None
    last_used = _last_used(members)
    keep = {served.key for served in wanted}
    others = {model.key for model in worker.models if model.state in ("ready", "failed")} - {key, serving}
    return tuple(
        sorted(others, key=lambda other: (other in last_used, other in keep, last_used.get(other, 0.0), other))
    )
