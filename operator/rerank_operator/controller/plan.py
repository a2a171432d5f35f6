"""What to write so that one Reranker becomes what its spec says: a pure function of what is there and of the time.

Level-based: it never asks what happened, only what is. The same observation gives the same plan, and a plan that has
been carried out gives an empty one. Nothing here does I/O or remembers anything; the state that a rollout needs stands
in the Reranker's status, in ControllerRevisions and in annotations of Deployments. Who serves is decided in serving.py,
what the status tells in telling.py.
"""

from typing import Any

import msgspec
from rerank_api.reranker import Metadata, RejectedRevision, Reranker, TrafficShare
from rerank_api.revision import RevisionSpec, revision_hash, revision_of

from rerank_operator.controller import conditions
from rerank_operator.controller.actions import Action, Apply, Delete, Mark, Scale, apply_if_different, delete
from rerank_operator.controller.conditions import Facts, Problem
from rerank_operator.controller.diagnose import Diagnosis
from rerank_operator.controller.events import Event
from rerank_operator.controller.kinds import BUDGETS, CONTROLLER_REVISIONS, DEPLOYMENTS
from rerank_operator.controller.notices import Measured, notices, stored_notices
from rerank_operator.controller.observe import DeploymentState, Observed
from rerank_operator.controller.scene import notes_to_leave, rejection_of, scene_of
from rerank_operator.controller.serving import Revisions, Serving, pods_of, views
from rerank_operator.controller.telling import tell
from rerank_operator.controller.times import format_time
from rerank_operator.controller.verdict import Verdict, undecided
from rerank_operator.manifests.controller_revision import controller_revision
from rerank_operator.manifests.deployment import deployment
from rerank_operator.manifests.pod_disruption_budget import pod_disruption_budget
from rerank_operator.manifests.pod_template import BadSpec, WorkerImage
from rerank_operator.rollout.canary import Findings, course, promoted
from rerank_operator.rollout.replace import Handover, share_traffic

KEPT_REVISIONS = 10
"""ControllerRevisions kept for going back, beside those in use."""
OWN_TROUBLES = frozenset({"ModelLoadFailed", "CrashLooping", "ImagePullFailed", "OutOfMemory"})
"""Reasons that lie in the revision: the next worker of it would find the same."""


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
    seen = views(observed, None, now)
    current = observed.status.get("currentRevision")
    ready = sum(view.ready for view in seen)
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
    status, told = tell(observed, facts, stored or share_traffic(seen), complete=False, now=now)
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
        self.revisions = Revisions(observed, self.target, now)
        self.deployments, self.stored = self.revisions.deployments, self.revisions.stored
        self.trouble = self.revisions.trouble
        stuck = self.revisions.stuck
        scene = scene_of(observed, reranker, self.target, verdict.replicas, self.trouble, stuck, findings, now)
        self.course = course(scene)
        self.findings = findings
        self.measured = measured

    def plan(self) -> Plan:
        replace_one = self.spec.rollout.when_full == "replaceOne"
        handover, rejected = Serving(self.revisions, self.course, self.verdict, replace_one=replace_one).decide()
        if handover.complete and self.course.promoting:
            self.course = promoted(self.course, format_time(self.now))
        actions = [
            *self._revision_actions(),
            *self._note_actions(),
            *self._budget_actions(),
            *self._deployment_actions(handover, rejected),
            *self._prune(handover),
        ]
        facts = self._facts(handover, rejected)
        status, told = tell(self.observed, facts, handover.traffic, handover.complete, self.now)
        return Plan(tuple(actions), status, told, 0.0 if self._moved_on() else self.revisions.look_again)

    def _facts(self, handover: Handover, rejected: RejectedRevision | None) -> Facts:
        serving, pods = handover.current, self.observed.pods
        mine = self.deployments.get(self.target)
        sharing = {share.revision for share in handover.traffic if share.percent}
        return Facts(
            desired=self.verdict.replicas,
            ready=sum(pod.ready and pod.counts for pod in pods if pod.revision in sharing),
            target=self.target,
            current=serving,
            unheard=sum(pod.unheard and pod.counts for pod in pods),
            target_ready=sum(pod.ready and pod.counts for pod in pods_of(pods, self.target)),
            target_updated=mine is None or mine.updated,
            suspended=self.spec.suspend,
            verdict=self.verdict,
            rejected=rejected,
            rollout=self.course.state,
            problem=self.problem,
            target_trouble=self.trouble,
            serving_trouble=self.revisions.diagnose(serving) if serving and serving != self.target else None,
            last_trouble=self._last_trouble(),
            quality=self.measured.latest if self.spec.slo.quality is not None else None,
            notices=notices(self.reranker, serving, self.measured, self.now),
        )

    def _moved_on(self) -> bool:
        """What the next plan is made of changes with this one's status, of which no watch will tell."""
        before, after = self.observed.rollout, self.course.state
        return after is not None and (before is None or (before.started, before.phase) != (after.started, after.phase))

    def _last_trouble(self) -> Diagnosis | None:
        """What the status says of the same revision, where that is the revision's own fault."""
        status = self.observed.status
        if status.get("updatedRevision") != self.target:
            return None
        told = [c for c in status.get("conditions", ()) if c["type"] == conditions.DEGRADED and c["status"] == "True"]
        return next((Diagnosis(c["reason"], c["message"]) for c in told if c["reason"] in OWN_TROUBLES), None)

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
        if self.verdict.replicas < 2:
            return [delete(BUDGETS, found)] if found else []
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
                actions.append(delete(DEPLOYMENTS, found.body))
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
        deleted = self.target == self.revisions.current and replicas > 0
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
        pods = [pod for pod in pods_of(self.observed.pods, found.revision) if pod.counts and pod.ready]
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
        left = any(not pod.finished for pod in pods_of(self.observed.pods, found.revision))
        return empty and found.revision != handover.current and not left

    def _prune(self, handover: Handover) -> list[Action]:
        in_use = {self.target, handover.current, *self.deployments}
        spare = [state for state in self.observed.revisions if state.revision not in in_use]
        return [
            Delete(CONTROLLER_REVISIONS, self.owner.namespace, old.name, old.uid, old.resource_version)
            for old in spare[KEPT_REVISIONS:]
        ]
