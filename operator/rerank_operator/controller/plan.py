"""What to write so that one Reranker becomes what its spec says: a pure function of what is there and of the time.

Level-based: it never asks what happened, only what is. The same observation gives the same plan, and a plan that has
been carried out gives an empty one. Nothing here does I/O or remembers anything; the state that a rollout needs stands
in the Reranker's status, in ControllerRevisions and in annotations of Deployments.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
from rerank_api import names
from rerank_api.reranker import Metadata, RejectedRevision, Reranker, ScalingStatus, TrafficShare
from rerank_api.revision import RevisionSpec, revision_hash, revision_of

from rerank_operator.controller import conditions, events
from rerank_operator.controller.conditions import Facts, Problem
from rerank_operator.controller.diagnose import Diagnosis, blocked, diagnose
from rerank_operator.controller.events import Event
from rerank_operator.controller.kinds import BUDGETS, CONTROLLER_REVISIONS, DEPLOYMENTS, Kind
from rerank_operator.controller.notices import Measured, notices, stored_notices
from rerank_operator.controller.observe import DeploymentState, Observed, PodState
from rerank_operator.controller.scene import notes_to_leave, rejection_of, scene_of, set_aside
from rerank_operator.controller.times import format_time
from rerank_operator.controller.verdict import Verdict, undecided
from rerank_operator.manifests.common import differences, pod_selector
from rerank_operator.manifests.controller_revision import controller_revision
from rerank_operator.manifests.deployment import deployment
from rerank_operator.manifests.pod_disruption_budget import pod_disruption_budget
from rerank_operator.manifests.pod_template import BadSpec, WorkerImage
from rerank_operator.manifests.status import status_manifest
from rerank_operator.rollout.canary import ENDED, Findings, course, promoted
from rerank_operator.rollout.carry import all_to, carry, promote, shares
from rerank_operator.rollout.replace import Handover, RevisionView, hand_over, share_traffic

KEPT_REVISIONS = 10
"""ControllerRevisions kept for going back, beside those in use."""
OVERDUE_SECONDS = 30.0
"""A worker that should have ended so long ago is on a node that is lost, and makes no room."""
OWN_TROUBLES = frozenset({"ModelLoadFailed", "CrashLooping", "ImagePullFailed", "OutOfMemory"})
"""Reasons that lie in the revision: the next worker of it would find the same."""
PATIENCE_SECONDS = 10.0
"""How long a new worker waits for room before an old one makes it: a pod that is ending may do so first."""


class Apply(msgspec.Struct, frozen=True):
    kind: Kind
    manifest: dict[str, Any]
    why: Literal["create", "update", "drift"]
    found_version: str | None = None
    """Of the object as it was looked at; None: it was not there."""
    event: Event | None = None
    """To be told once it is done, and if it changed anything."""


class Scale(msgspec.Struct, frozen=True):
    """Replicas of a Deployment whose template stays as it is, whatever newer settings would make of it."""

    namespace: str
    name: str
    uid: str
    resource_version: str
    replicas: int
    lent_to: str | None
    fits: int | None = None
    event: Event | None = None


class Mark(msgspec.Struct, frozen=True):
    """How dear a Pod is when its Deployment is to have fewer: who costs least goes first."""

    namespace: str
    name: str
    uid: str
    cost: int | None
    """None: as any other."""


class Delete(msgspec.Struct, frozen=True):
    kind: Kind
    namespace: str
    name: str
    uid: str
    resource_version: str


Action = Apply | Scale | Mark | Delete


class Plan(msgspec.Struct, frozen=True):
    actions: tuple[Action, ...] = ()
    status: dict[str, Any] | None = None
    """None: it is as it should be."""
    events: tuple[Event, ...] = ()
    requeue_after: float | None = None


def make_plan(
    observed: Observed,
    worker: WorkerImage,
    now: float,
    problem: Problem | None = None,
    verdict: Verdict | None = None,
    findings: Findings | None = None,
    measured: Measured | None = None,
) -> Plan:
    """``verdict``: what scaling comes to; None: nobody has looked at the demand, so the numbers stay as they are.
    ``findings``: about the canary; None: nobody has looked at it. ``measured``: how the golden set is ranked; None:
    nobody has looked, so that what is known stands.
    ``problem``: why carrying out this same plan failed just now; it then only tells so in the status.
    """
    if observed.metadata.deletion_timestamp:
        return Plan()
    if observed.reranker is None:
        return _plan_for_invalid(observed, Problem("InvalidSpec", observed.invalid or "unreadable"), now)
    scaling = verdict or undecided(observed, observed.reranker)
    known = measured or Measured(observed.quality)
    return _Planner(observed, observed.reranker, worker, now, problem, scaling, findings, known).plan()


def _plan_for_invalid(observed: Observed, problem: Problem, now: float) -> Plan:
    """Nothing is touched: what serves goes on serving."""
    views = _views(observed, set(), now)
    current = observed.status.get("currentRevision")
    ready = sum(view.ready for view in views)
    facts = Facts(
        desired=ready or 1,
        ready=ready,
        target=observed.status.get("updatedRevision"),
        current=current,
        problem=problem,
        rejected=rejection_of(observed.status),
        rollout=observed.rollout,
        quality=observed.quality,
        notices=stored_notices(observed.status.get("conditions", ())),
    )
    # As stored: by the ready workers alone a canary would get more than it may.
    stored = tuple(TrafficShare(share["revision"], share["percent"]) for share in observed.status.get("traffic", ()))
    status, told = _tell(observed, facts, stored or share_traffic(views), complete=False, now=now)
    return Plan(status=status, events=told)


class _Planner:
    """One plan in the making. Each field is set once; the methods are the steps, in order."""

    def __init__(
        self,
        observed: Observed,
        reranker: Reranker,
        worker: WorkerImage,
        now: float,
        problem: Problem | None,
        verdict: Verdict,
        findings: Findings | None,
        measured: Measured,
    ) -> None:
        self.observed = observed
        self.reranker = reranker
        self.owner: Metadata = observed.metadata
        self.spec = reranker.spec
        self.worker = worker
        self.now = now
        self.problem = problem
        self.revision: RevisionSpec = revision_of(reranker.spec)
        self.target = revision_hash(self.revision)
        self.verdict = verdict
        self.desired = verdict.replicas
        self.current: str | None = observed.status.get("currentRevision")
        self.deployments = {state.revision: state for state in observed.deployments}
        self.stored = {state.revision: state for state in observed.revisions}
        self.trouble = self._diagnose(self.target)
        self.stuck, self.look_again = self._stuck()
        scene = scene_of(observed, reranker, self.target, self.desired, self.trouble, self.stuck, findings, now)
        self.course = course(scene)
        self.findings = findings
        self.measured = measured

    def plan(self) -> Plan:
        handover, rejected = self._hand_over()
        if handover.complete and self.course.promoting:
            self.course = promoted(self.course, format_time(self.now))
        actions = [
            *self._revision_actions(),
            *self._note_actions(),
            *self._budget_actions(),
            *self._deployment_actions(handover, rejected),
            *self._prune(handover),
        ]
        serving = handover.current
        mine = self.deployments.get(self.target)
        sharing = {share.revision for share in handover.traffic if share.percent}
        facts = Facts(
            desired=self.desired,
            ready=sum(pod.ready and pod.counts for pod in self.observed.pods if pod.revision in sharing),
            target=self.target,
            current=serving,
            unheard=sum(pod.unheard and pod.counts for pod in self.observed.pods),
            target_ready=sum(pod.ready and pod.counts for pod in _pods_of(self.observed.pods, self.target)),
            target_updated=mine is None or mine.updated,
            suspended=self.spec.suspend,
            verdict=self.verdict,
            rejected=rejected,
            rollout=self.course.state,
            problem=self.problem,
            target_trouble=self.trouble,
            serving_trouble=self._diagnose(serving) if serving and serving != self.target else None,
            last_trouble=self._last_trouble(),
            quality=self.measured.latest if self.spec.slo.quality is not None else None,
            notices=notices(self.reranker, serving, self.measured, self.now),
        )
        status, told = _tell(self.observed, facts, handover.traffic, handover.complete, self.now)
        return Plan(tuple(actions), status, told, 0.0 if self._moved_on() else self.look_again)

    def _moved_on(self) -> bool:
        """What the next plan is made of changes with this one's status, of which no watch will tell."""
        before, after = self.observed.rollout, self.course.state
        return after is not None and (before is None or (before.started, before.phase) != (after.started, after.phase))

    def _diagnose(self, revision: str) -> Diagnosis | None:
        return diagnose(_pods_of(self.observed.pods, revision), self.deployments.get(revision))

    def _last_trouble(self) -> Diagnosis | None:
        """What the status says of the same revision, where that is the revision's own fault."""
        status = self.observed.status
        if status.get("updatedRevision") != self.target:
            return None
        told = [c for c in status.get("conditions", ()) if c["type"] == conditions.DEGRADED and c["status"] == "True"]
        return next((Diagnosis(c["reason"], c["message"]) for c in told if c["reason"] in OWN_TROUBLES), None)

    # --- who serves, with how many ---

    def _stuck(self) -> tuple[int, float | None]:
        """The target's workers that find no room, and when to look again."""
        held = frozenset[str]().union(
            *(
                state.resources
                for state in self.observed.deployments
                if state.revision != self.target and state.replicas
            )
        )
        waiting, mine = _pods_of(self.observed.pods, self.target), self.deployments.get(self.target)
        return blocked(waiting, mine, held, self.now, PATIENCE_SECONDS)

    def _hand_over(self) -> tuple[Handover, RejectedRevision | None]:
        views = [
            msgspec.structs.replace(view, blocked=self.stuck if view.revision == self.target else self._waiting(view))
            for view in _views(self.observed, self._restorable(), self.now)
        ]
        by_itself = self.course.judging or self.course.promoting
        rejected = self.course.rejected or (None if by_itself else self._rejected(views))
        aside = set_aside(self.observed, self.target)
        views = [msgspec.structs.replace(view, ready=0) if view.revision in aside else view for view in views]
        warm = {revision: pods for revision, pods in self.verdict.warm.items() if revision not in aside}
        decided = self._shared_out(views, rejected, warm)
        none = tuple(TrafficShare(revision, 0) for revision in sorted(aside))
        return msgspec.structs.replace(decided, traffic=decided.traffic + none), rejected

    def _shared_out(
        self, views: list[RevisionView], rejected: RejectedRevision | None, warm: Mapping[str, int]
    ) -> Handover:
        """Replicas and traffic, by how far a canary has come."""
        state = self.course.state
        over = state is not None and state.phase in ENDED and self.course.rejected is None
        if state is None or over or self.current is None or state.revision != self.target:
            none = rejected is not None
            decided = hand_over(self.target, self.current, self.desired, views, rejected=none, warm=warm)
            promoted = state is not None and (state.phase, state.revision) == ("Promoted", self.target)
            # Old workers that still are ready get no more, as when it was promoted.
            return all_to(self.target, decided) if promoted and decided.complete and decided.traffic else decided
        if self.course.judging:
            replace_one = self.spec.rollout.when_full == "replaceOne"
            stored = self.observed.status.get("traffic", ())
            had = next((share["percent"] for share in stored if share["revision"] == self.target), 0)
            of_phase = {"percent": state.percent, "had": had, "replace_one": replace_one, "warm": warm}
            decided = carry(self.target, self.current, self.desired, views, **of_phase)
            begun = self.observed.rollout is not None and self.observed.rollout.started == state.started
            # First gateways are told that it gets no request; its workers come with the next plan.
            return decided if begun else self._with_target_as_it_is(decided)
        if self.course.promoting:
            return promote(self.target, self.current, self.desired, views, percent=state.percent, warm=warm)
        decided = hand_over(self.target, self.current, self.desired, views, rejected=True, warm=warm)
        old = [view for view in views if view.revision != self.target]
        if not old:
            return decided  # who served is gone with all that was known of it
        decided = msgspec.structs.replace(decided, traffic=shares(old, self.target, self.current, 0, warm))
        if self.observed.rollout is not None and self.observed.rollout.phase != "RolledBack":
            # First it gets no more requests; its workers go with the next plan.
            return self._with_target_as_it_is(decided)
        return decided

    def _with_target_as_it_is(self, decided: Handover) -> Handover:
        mine = self.deployments.get(self.target)
        found = {self.target: mine.replicas if mine is not None else 0}
        return msgspec.structs.replace(decided, replicas=decided.replicas | found)

    def _waiting(self, old: RevisionView) -> int:
        """Workers of an old revision that find no room."""
        pods, found = _pods_of(self.observed.pods, old.revision), self.deployments.get(old.revision)
        return blocked(pods, found, found.resources, self.now, PATIENCE_SECONDS)[0] if found is not None else 0

    def _restorable(self) -> set[str]:
        """The serving revision counts also where someone has deleted its Deployment: its spec is kept."""
        stored = self.stored.get(self.current or "")
        return {stored.revision} if stored is not None and stored.spec is not None else set()

    def _rejected(self, views: Sequence[RevisionView]) -> RejectedRevision | None:
        """The target, where an old replica has been freed for nothing."""
        lent = any(view.lent for view in views)
        ready = any(view.revision == self.target and view.ready for view in views)
        if lent and not ready and self.trouble is not None and self.trouble.hopeless and self.desired > 0:
            return RejectedRevision(self.target, self.trouble.reason, self.trouble.message, format_time(self.now))
        return None

    # --- what to write ---

    def _revision_actions(self) -> list[Action]:
        newest = self.observed.revisions[0].number if self.observed.revisions else 0
        found = self.stored.get(self.target)
        if found is not None and found.number == newest:
            return []
        number = newest + 1
        notes = found.notes if found is not None else None
        manifest = controller_revision(self.owner, self.target, self.revision, number, notes)
        if found is not None:
            return [Apply(CONTROLLER_REVISIONS, manifest, "update", found.resource_version)]
        note = f"the spec asks for a new revision, {self.target}"
        event = Event("Normal", "RevisionCreated", "CreateRevision", note)
        return [Apply(CONTROLLER_REVISIONS, manifest, "create", event=event)]

    def _note_actions(self) -> list[Action]:
        left = notes_to_leave(self.observed, self.course, self.findings, self.now)
        return [
            Apply(
                CONTROLLER_REVISIONS,
                controller_revision(self.owner, revision, kept.spec, kept.number, notes),
                "update",
                kept.resource_version,
            )
            for revision, notes in left.items()
            if (kept := self.stored[revision]).spec is not None
        ]

    def _budget_actions(self) -> list[Action]:
        found = self.observed.budget
        if self.desired < 2:
            return [_delete(BUDGETS, found)] if found else []
        return apply_if_different(BUDGETS, pod_disruption_budget(self.owner), found)

    def _deployment_actions(self, handover: Handover, rejected: RejectedRevision | None) -> list[Action]:
        actions: list[Action] = []
        lent = {handover.lent_by: (self.target, handover.fits)} if handover.lent_by else {}
        for revision, replicas in handover.replicas.items():
            found = self.deployments.get(revision)
            if revision == self.target:
                actions.extend(self._apply_target(found, replicas, rejected))
            elif found is None:
                actions.extend(self._restore(revision, replicas))
            elif self._is_done_with(found, replicas, handover):
                actions.append(_delete(DEPLOYMENTS, found.body))
            else:
                scaled = self._scale(found, replicas, *lent.get(revision, (None, None)))
                actions.extend(scaled or self._renew(found, replicas, handover, rejected))
        return actions

    def _apply_target(
        self, found: DeploymentState | None, replicas: int, rejected: RejectedRevision | None
    ) -> list[Action]:
        if rejected is not None and found is None:
            return []
        try:
            manifest = self._deployment(self.target, self.revision, replicas)
        except BadSpec as error:
            self.problem = self.problem or Problem("InvalidSpec", str(error))
            return []
        # Its time of lending is over: the mark must not count when the tables turn again.
        actions = self._scale(found, found.replicas, None) if found is not None and found.lent_to else []
        if found is not None:
            actions.extend(self._marks(found, replicas))
        body = found.body if found is not None else None
        # A target that serves and whose Deployment is gone was not waited for: someone has deleted it.
        deleted = self.target == self.current and replicas > 0
        return [*actions, *apply_if_different(DEPLOYMENTS, manifest, body, deleted)]

    def _restore(self, revision: str, replicas: int) -> list[Action]:
        manifest = self._deployment_as_stored(revision, replicas) if replicas else None
        return apply_if_different(DEPLOYMENTS, manifest, None, deleted=True) if manifest is not None else []

    def _renew(
        self, found: DeploymentState, replicas: int, handover: Handover, rejected: RejectedRevision | None
    ) -> list[Action]:
        """Who serves beside a canary, or because the target was rejected, may do so for weeks: a newer image reaches
        it, and both arms run the same. In a plain handover its workers are about to go, and stay as they are."""
        stays = self.course.judging or rejected is not None
        if not stays or found.revision != handover.current or found.lent_to:
            return []
        manifest = self._deployment_as_stored(found.revision, replicas)
        return apply_if_different(DEPLOYMENTS, manifest, found.body) if manifest is not None else []

    def _scale(
        self, found: DeploymentState, replicas: int, lent_to: str | None, fits: int | None = None
    ) -> list[Action]:
        if (found.replicas, found.lent_to, found.fits) == (replicas, lent_to, fits):
            return []
        event = None
        if lent_to and found.lent_to != lent_to:
            note = f"no room for revision {lent_to}: one replica of revision {found.revision} is stopped to make some"
            event = Event("Normal", "ReplicaFreed", "Rollout", note)
        namespace = self.owner.namespace
        scale = Scale(namespace, found.name, found.uid, found.resource_version, replicas, lent_to, fits, event)
        return [*self._marks(found, replicas), scale]

    def _marks(self, found: DeploymentState, replicas: int) -> list[Action]:
        """Before a count drops, the idlest workers are made the cheapest. Of whom nothing is known is not idle; who is
        not ready goes before all others anyway, and Kubernetes sees to that."""
        if not 0 < replicas < found.replicas:
            return []
        outstanding = self.verdict.outstanding
        pods = [pod for pod in _pods_of(self.observed.pods, found.revision) if pod.counts and pod.ready]
        known = sorted((outstanding[pod.uid], pod.name) for pod in pods if pod.uid in outstanding)
        going = [name for _, name in known[: max(0, len(pods) - replicas)]]
        costs = {name: place - len(going) for place, name in enumerate(going)}
        return [
            Mark(self.owner.namespace, pod.name, pod.uid, costs.get(pod.name))
            for pod in pods
            if (pod.name in costs and pod.deletion_cost != str(costs[pod.name]))
            or (pod.name not in costs and (pod.deletion_cost or "").startswith("-"))  # of a drop that did not come
        ]

    def _deployment(self, hash_: str, revision: RevisionSpec, replicas: int) -> dict[str, Any]:
        return deployment(self.owner, hash_, revision, replicas, self.spec.requests.timeout, self.worker)

    def _deployment_as_stored(self, revision: str, replicas: int) -> dict[str, Any] | None:
        """Of a revision that the spec does not ask for any more; None where it is not known any more."""
        stored = self.stored.get(revision)
        if stored is None or stored.spec is None:
            return None
        try:
            return self._deployment(revision, stored.spec, replicas)
        except BadSpec:
            return None

    def _is_done_with(self, found: DeploymentState, replicas: int, handover: Handover) -> bool:
        """Nothing of an old revision is left, nor wanted: its last worker has finished its requests and gone."""
        empty = found.replicas == replicas == 0 and found.existing == 0 and found.settled
        left = any(not pod.finished for pod in _pods_of(self.observed.pods, found.revision))
        return empty and found.revision != handover.current and not left

    def _prune(self, handover: Handover) -> list[Action]:
        in_use = {self.target, handover.current, *self.deployments}
        spare = [state for state in self.observed.revisions if state.revision not in in_use]
        return [
            Delete(CONTROLLER_REVISIONS, self.owner.namespace, old.name, old.uid, old.resource_version)
            for old in spare[KEPT_REVISIONS:]
        ]


def _pods_of(pods: Sequence[PodState], revision: str) -> list[PodState]:
    return [pod for pod in pods if pod.revision == revision]


def _views(observed: Observed, restorable: set[str], now: float) -> list[RevisionView]:
    """Every revision that has a Deployment or could have one again, newest first."""
    target = None if observed.reranker is None else revision_hash(revision_of(observed.reranker.spec))
    numbers = {state.revision: state.number for state in observed.revisions}
    found = {state.revision: state for state in observed.deployments}
    newest_first = sorted({*found, *restorable}, key=lambda revision: (-numbers.get(revision, 0), revision))
    return [
        RevisionView(
            revision=revision,
            replicas=found[revision].replicas if revision in found else 0,
            ready=sum(pod.ready and pod.counts for pod in _pods_of(observed.pods, revision)),
            loading=sum(pod.counts and pod.scheduled and not pod.ready for pod in _pods_of(observed.pods, revision)),
            stopping=sum(
                pod.terminating and now < pod.ends_by + OVERDUE_SECONDS for pod in _pods_of(observed.pods, revision)
            ),
            lent=revision in found and target is not None and found[revision].lent_to == target,
            fits=found[revision].fits if revision in found else None,
        )
        for revision in newest_first
    ]


def apply_if_different(
    kind: Kind, manifest: dict[str, Any], found: dict[str, Any] | None, deleted: bool = False
) -> list[Action]:
    """``deleted``: where it is not there, it has been, and someone has deleted it."""
    name = f"{kind.name} {manifest['metadata']['name']}"
    if found is None:
        event = (
            Event("Warning", "DriftRepaired", "Repair", f"{name} was deleted and is made again") if deleted else None
        )
        return [Apply(kind, manifest, "drift" if deleted else "create", event=event)]
    differs = differences(manifest, found)
    if not differs:
        return []
    stamps = manifest["metadata"]["annotations"]
    # The same manifest was applied before: the difference is someone else's doing, not a new wish of ours.
    ours = stamps.items() <= found["metadata"].get("annotations", {}).items()
    places = ", ".join(differs[:3]) + (" and more" if len(differs) > 3 else "")
    note = f"{name} was changed by someone else and is put back ({places})"
    event = Event("Warning", "DriftRepaired", "Repair", note) if ours else None
    return [Apply(kind, manifest, "drift" if ours else "update", found["metadata"]["resourceVersion"], event)]


def _delete(kind: Kind, found: dict[str, Any]) -> Delete:
    metadata = found["metadata"]
    return Delete(kind, metadata["namespace"], metadata["name"], metadata["uid"], metadata["resourceVersion"])


def _tell(
    observed: Observed, facts: Facts, traffic: Sequence[TrafficShare], complete: bool, now: float
) -> tuple[dict[str, Any] | None, tuple[Event, ...]]:
    """The status object to apply (None: it stands already), and the Events that its changes are worth."""
    metadata, old = observed.metadata, observed.status
    judged = conditions.judge(facts, old.get("conditions", ()), metadata.generation, now)
    scaling = old.get("scaling")
    if facts.verdict is not None and (facts.verdict.refresh or scaling is None):
        scaling = _scaling_status(facts.verdict)
    elif facts.verdict is not None:  # only figures have moved on
        judged = conditions.keep(judged, conditions.SCALING, old.get("conditions", ()), metadata.generation)
    counting = [pod for pod in observed.pods if pod.counts]
    status: dict[str, Any] = {
        "observedGeneration": metadata.generation,
        "replicas": len(counting),
        "readyReplicas": sum(pod.ready for pod in counting),
        "selector": pod_selector(metadata.name),
        "traffic": msgspec.to_builtins(list(traffic)),
        "conditions": msgspec.to_builtins(list(judged)),
    }
    optional = {
        "currentRevision": facts.current,
        "updatedRevision": facts.target,
        "rejectedRevision": facts.rejected,
        "rollout": facts.rollout,
        "quality": facts.quality,
        "scaling": scaling,
    }
    status |= {field: msgspec.to_builtins(value) for field, value in optional.items() if value is not None}
    manifest = status_manifest(names.KIND, metadata, status, old, traffic=("revision",))
    if manifest is None:
        return None, ()
    told = events.transitions(old, judged, facts.current, facts.target, complete)
    told += events.of_rollout(observed.rollout, facts.rollout)
    return manifest, told + events.scaled(old.get("scaling") or {}, facts.verdict)


def _scaling_status(verdict: Verdict) -> dict[str, Any]:
    decision = verdict.decision
    status = ScalingStatus(
        mode=verdict.mode,
        desired_replicas=verdict.desired,
        desired_loaners=verdict.desired_loaners,
        loaners=verdict.serving,
        reason=decision.reason if decision else "",
        message=conditions.scaling_message(verdict),
        queued_requests=verdict.queued,
        capacity_tokens_per_second=verdict.capacity,
        start_seconds=verdict.start_seconds,
        wake_seconds=verdict.wake_seconds,
        last_request_time=format_time(verdict.last_request) if verdict.last_request else None,
        memory=msgspec.json.encode(decision.memory).decode() if decision else None,
    )
    # By hand, without omit_defaults: a printer column shows a zero, and not nothing.
    found = {field.encode_name: getattr(status, field.name) for field in msgspec.structs.fields(status)}
    return {name: value for name, value in found.items() if value is not None}
