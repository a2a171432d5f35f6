"""Who serves one Reranker: replicas and traffic of each revision, by how far a canary has come. Pure.

What is written so that it comes about is plan.py's.
"""

from collections.abc import Collection, Mapping, Sequence

import msgspec
from rerank_api.reranker import RejectedRevision, TrafficShare

from rerank_operator.controller.diagnose import Diagnosis, blocked, diagnose
from rerank_operator.controller.observe import DeploymentState, Observed, PodState, RevisionState
from rerank_operator.controller.scene import set_aside
from rerank_operator.controller.times import format_time
from rerank_operator.controller.verdict import Verdict
from rerank_operator.rollout.canary import ENDED, Course
from rerank_operator.rollout.carry import all_to, carry, promote, shares
from rerank_operator.rollout.replace import Handover, RevisionView, hand_over

OVERDUE_SECONDS = 30.0
"""A worker that should have ended so long ago is on a node that is lost, and makes no room."""
PATIENCE_SECONDS = 10.0
"""How long a new worker waits for room before an old one makes it: a pod that is ending may do so first."""


class Revisions:
    """The revisions of one Reranker at one moment, and what each has: looked up once for all that is decided."""

    def __init__(self, observed: Observed, target: str, now: float) -> None:
        self.observed = observed
        self.target = target
        self.current: str | None = observed.status.get("currentRevision")
        self.now = now
        self.deployments: Mapping[str, DeploymentState] = {state.revision: state for state in observed.deployments}
        self.stored: Mapping[str, RevisionState] = {state.revision: state for state in observed.revisions}
        self.trouble = self.diagnose(target)
        self.stuck, self.look_again = self._stuck()
        """The target's workers that find no room, and when to look again."""

    def diagnose(self, revision: str) -> Diagnosis | None:
        return diagnose(pods_of(self.observed.pods, revision), self.deployments.get(revision))

    def views(self) -> list[RevisionView]:
        """The serving revision is there also where someone has deleted its Deployment: its spec is kept."""
        stored = self.stored.get(self.current or "")
        restorable = {stored.revision} if stored is not None and stored.spec is not None else set()
        return [
            msgspec.structs.replace(view, blocked=self.stuck if view.revision == self.target else self._waiting(view))
            for view in views(self.observed, self.target, self.now, restorable)
        ]

    def _stuck(self) -> tuple[int, float | None]:
        others = [state for state in self.observed.deployments if state.revision != self.target and state.replicas]
        held = frozenset[str]().union(*(state.resources for state in others))
        waiting, mine = pods_of(self.observed.pods, self.target), self.deployments.get(self.target)
        return blocked(waiting, mine, held, self.now, PATIENCE_SECONDS)

    def _waiting(self, old: RevisionView) -> int:
        """Workers of an old revision that find no room."""
        pods, found = pods_of(self.observed.pods, old.revision), self.deployments.get(old.revision)
        return blocked(pods, found, found.resources, self.now, PATIENCE_SECONDS)[0] if found is not None else 0


class Serving:
    """The decision in the making. Each field is set once."""

    def __init__(self, revisions: Revisions, course: Course, verdict: Verdict, *, replace_one: bool) -> None:
        """``replace_one``: where a canary finds no room, one of several stable workers makes some."""
        self.observed = revisions.observed
        self.revisions = revisions
        self.target = revisions.target
        self.current = revisions.current
        self.course = course
        self.verdict = verdict
        self.desired = verdict.replicas
        self.replace_one = replace_one

    def decide(self) -> tuple[Handover, RejectedRevision | None]:
        """Who serves, and the target where it is not to be tried."""
        seen = self.revisions.views()
        by_itself = self.course.judging or self.course.promoting
        rejected = self.course.rejected or (None if by_itself else self._rejected(seen))
        aside = set_aside(self.observed, self.target)
        seen = [msgspec.structs.replace(view, ready=0) if view.revision in aside else view for view in seen]
        warm = {revision: pods for revision, pods in self.verdict.warm.items() if revision not in aside}
        decided = self._shared_out(seen, rejected, warm)
        none = tuple(TrafficShare(revision, 0) for revision in sorted(aside))
        return msgspec.structs.replace(decided, traffic=decided.traffic + none), rejected

    def _shared_out(
        self, seen: Sequence[RevisionView], rejected: RejectedRevision | None, warm: Mapping[str, int]
    ) -> Handover:
        """By how far a canary has come."""
        state = self.course.state
        over = state is not None and state.phase in ENDED and self.course.rejected is None
        if state is None or over or self.current is None or state.revision != self.target:
            none = rejected is not None
            decided = hand_over(self.target, self.current, self.desired, seen, rejected=none, warm=warm)
            promoted = state is not None and (state.phase, state.revision) == ("Promoted", self.target)
            # Old workers that still are ready get no more, as when it was promoted.
            return all_to(self.target, decided) if promoted and decided.complete and decided.traffic else decided
        if self.course.judging:
            stored = self.observed.status.get("traffic", ())
            had = next((share["percent"] for share in stored if share["revision"] == self.target), 0)
            of_phase = {"percent": state.percent, "had": had, "replace_one": self.replace_one, "warm": warm}
            decided = carry(self.target, self.current, self.desired, seen, **of_phase)
            begun = self.observed.rollout is not None and self.observed.rollout.started == state.started
            # First gateways are told that it gets no request; its workers come with the next plan.
            return decided if begun else self._with_target_as_it_is(decided)
        if self.course.promoting:
            return promote(self.target, self.current, self.desired, seen, percent=state.percent, warm=warm)
        decided = hand_over(self.target, self.current, self.desired, seen, rejected=True, warm=warm)
        old = [view for view in seen if view.revision != self.target]
        if not old:
            return decided  # who served is gone with all that was known of it
        decided = msgspec.structs.replace(decided, traffic=shares(old, self.target, self.current, 0, warm))
        if self.observed.rollout is not None and self.observed.rollout.phase != "RolledBack":
            # First it gets no more requests; its workers go with the next plan.
            return self._with_target_as_it_is(decided)
        return decided

    def _with_target_as_it_is(self, decided: Handover) -> Handover:
        mine = self.revisions.deployments.get(self.target)
        found = {self.target: mine.replicas if mine is not None else 0}
        return msgspec.structs.replace(decided, replicas=decided.replicas | found)

    def _rejected(self, seen: Sequence[RevisionView]) -> RejectedRevision | None:
        """The target, where an old replica has been freed for nothing."""
        lent = any(view.lent for view in seen)
        ready = any(view.revision == self.target and view.ready for view in seen)
        trouble = self.revisions.trouble
        if lent and not ready and trouble is not None and trouble.hopeless and self.desired > 0:
            time = format_time(self.revisions.now)
            return RejectedRevision(self.target, trouble.reason, trouble.message, time)
        return None


def pods_of(pods: Sequence[PodState], revision: str) -> list[PodState]:
    return [pod for pod in pods if pod.revision == revision]


def views(
    observed: Observed, target: str | None, now: float, restorable: Collection[str] = frozenset()
) -> list[RevisionView]:
    """Every revision that has a Deployment or could have one again, newest first. ``target``: None where the spec
    cannot be read."""
    numbers = {state.revision: state.number for state in observed.revisions}
    found = {state.revision: state for state in observed.deployments}
    newest_first = sorted({*found, *restorable}, key=lambda revision: (-numbers.get(revision, 0), revision))
    return [
        RevisionView(
            revision=revision,
            replicas=found[revision].replicas if revision in found else 0,
            ready=sum(pod.ready and pod.counts for pod in pods_of(observed.pods, revision)),
            loading=sum(pod.counts and pod.scheduled and not pod.ready for pod in pods_of(observed.pods, revision)),
            stopping=sum(
                pod.terminating and now < pod.ends_by + OVERDUE_SECONDS for pod in pods_of(observed.pods, revision)
            ),
            lent=revision in found and target is not None and found[revision].lent_to == target,
            fits=found[revision].fits if revision in found else None,
        )
        for revision in newest_first
    ]
