"""What to do so that one warm pool becomes what its spec and the Rerankers' wishes say. A pure function.

Level-based, as a Reranker's plan: the same observation gives the same plan, whoever leads. The state of each loan is in
its Pod; what workers have answered is passed in, and asked again by a leader that does not know it.
"""

from collections.abc import Mapping
from typing import Any

import msgspec
from rerank_api.reranker import Metadata
from rerank_api.warm_pool import WarmPoolSpec, parse_warm_pool

from rerank_operator.controller.actions import Action, Mark, apply_if_different
from rerank_operator.controller.conditions import Problem
from rerank_operator.controller.diagnose import Diagnosis, diagnose
from rerank_operator.controller.kinds import DEPLOYMENTS, WARM_POOLS, Key
from rerank_operator.controller.observe import DeploymentState, deployment_state
from rerank_operator.controller.store import Store
from rerank_operator.manifests.pod_template import BadSpec, WorkerImage
from rerank_operator.manifests.warm_pool import deployment_name, warm_pool_deployment
from rerank_operator.warm import status as pool_status
from rerank_operator.warm.loans import Loans, decide_loans
from rerank_operator.warm.members import Member, Reader
from rerank_operator.warm.models import Failures, Job, Workers, jobs, kept, place, unused_preloads
from rerank_operator.warm.observe import PoolState, Wish, pool_state

LOOK_AGAIN_SECONDS = 60.0


class Observed(msgspec.Struct, frozen=True):
    """Everything known about one pool."""

    metadata: Metadata
    spec: WarmPoolSpec | None
    invalid: str | None
    """Why ``spec`` is None."""
    status: dict[str, Any]
    deployment: DeploymentState | None
    state: PoolState
    members: tuple[Member, ...]
    workers: Workers = {}
    failures: Failures = {}
    running: Mapping[str, Job] = {}
    """What workers have been asked and not answered yet, by the Pod's uid."""


class Plan(msgspec.Struct, frozen=True):
    actions: tuple[Action, ...] = ()
    loans: Loans = Loans()
    jobs: tuple[Job, ...] = ()
    status: dict[str, Any] | None = None
    """None: it is as it should be."""
    requeue_after: float | None = None


def observe(
    store: Store,
    key: Key,
    wishes: tuple[Wish, ...],
    workers: Workers,
    failures: Failures,
    running: Mapping[str, Job],
    reader: Reader,
) -> Observed | None:
    """None: there is no such pool (garbage collection takes care of its pods)."""
    body = store.get(WARM_POOLS, *key)
    if body is None:
        return None
    metadata = msgspec.convert(body["metadata"], Metadata)
    try:
        spec, invalid = parse_warm_pool(body).spec, None
    except msgspec.ValidationError as error:
        spec, invalid = None, f"the stored object does not fit this version of the operator: {error}"
    deployment = store.get(DEPLOYMENTS, key[0], deployment_name(key[1]))
    owners = deployment["metadata"].get("ownerReferences", ()) if deployment is not None else ()
    own = any(owner["uid"] == metadata.uid for owner in owners)
    models = {uid: worker.ready for uid, worker in workers.items()}
    return Observed(
        metadata=metadata,
        spec=spec,
        invalid=invalid,
        status=body.get("status") or {},
        deployment=deployment_state(deployment) if deployment is not None and own else None,
        state=pool_state(store, *key, models),
        members=reader.members(store, key, spec, wishes) if spec is not None else (),
        workers=workers,
        failures=failures,
        running=running,
    )


def make_plan(observed: Observed, token: str, worker: WorkerImage, now: float, problem: Problem | None = None) -> Plan:
    """``problem``: why carrying out this same plan failed just now; it then only tells so in the status."""
    metadata, spec = observed.metadata, observed.spec
    if metadata.deletion_timestamp:
        return Plan()
    if spec is None:
        # Nothing is touched: what is lent goes on serving.
        problem = Problem("InvalidSpec", observed.invalid or "unreadable")
        facts = pool_status.Facts(len(observed.state.pods), _ready(observed.state), problem=problem)
        return Plan(status=_status(observed, facts, now))
    actions: tuple[Action, ...] = ()
    borrowed = min(spec.size, sum(member.borrowed for member in observed.members))
    there = msgspec.structs.replace(spec, size=spec.size - borrowed)
    try:
        manifest = warm_pool_deployment(metadata, there, token, worker)
    except BadSpec as error:
        problem = problem or Problem("InvalidSpec", str(error))
    else:
        body = observed.deployment.body if observed.deployment is not None else None
        actions = (*_marks(observed, there.size), *apply_if_different(DEPLOYMENTS, manifest, body))
    state, running = observed.state, observed.running
    loans = decide_loans(state, observed.members, observed.workers, observed.failures, running, now)
    asked = jobs(state, observed.members, spec, observed.workers, observed.failures, running, now)
    facts = pool_status.Facts(
        size=there.size,
        borrowed=borrowed,
        ready=_ready(state),
        unheard=sum(pod.state.unheard for pod in state.pods),
        problem=problem,
        trouble=_trouble(observed),
        waiting=loans.waiting,
        unused=unused_preloads(observed.members, spec),
        not_kept=_not_kept(observed, spec),
    )
    later = [failure.until - now for failure in observed.failures.values() if failure.until > now]
    return Plan(actions, loans, asked, _status(observed, facts, now), min([LOOK_AGAIN_SECONDS, *later]))


def _marks(observed: Observed, size: int) -> list[Action]:
    """Before there are fewer pods, those that serve nobody are made the cheapest; the others are as any until then."""
    drops = observed.deployment is not None and size < observed.deployment.replicas
    going = drops or size < len(observed.state.pods)
    found: list[Action] = []
    for pod in observed.state.pods:
        marked = (pod.state.deletion_cost or "").startswith("-")
        if drops and pod.loan is None and not marked:
            found.append(Mark(observed.metadata.namespace, pod.name, pod.uid, -1))
        elif marked and (pod.loan is not None or not going):
            found.append(Mark(observed.metadata.namespace, pod.name, pod.uid, None))
    return found


def _status(observed: Observed, facts: pool_status.Facts, now: float) -> dict[str, Any] | None:
    wanted = pool_status.status(observed.metadata, observed.status, facts, observed.state, observed.members, now)
    return pool_status.manifest(observed.metadata, wanted, observed.status)


def _ready(state: PoolState) -> int:
    return sum(pod.usable for pod in state.pods)


def _trouble(observed: Observed) -> Diagnosis | None:
    found = diagnose([pod.state for pod in observed.state.pods], observed.deployment)
    # The fields that it names stand elsewhere in a WarmPool.
    return found and msgspec.structs.replace(found, message=found.message.replace("spec.runtime.", "spec."))


def _not_kept(observed: Observed, spec: WarmPoolSpec) -> dict[str, str]:
    """Models that were asked for by name, and that a pod could not load."""
    if spec.preload is None:
        return {}
    wanted = {served.key for served in kept(observed.members, spec)}
    found = {}
    for pod in observed.state.pods:
        for key in sorted(wanted - pod.models):
            if (failure := observed.failures.get(place(pod.uid, key))) is not None:
                found.setdefault(key, failure.message)
    return found
