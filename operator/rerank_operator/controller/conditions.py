"""The conditions of a Reranker: facts gathered once, then a chain of small checks for each condition.

The first check with an answer wins; each names its reason and says in a sentence what is so. Pure.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
from rerank_api import names
from rerank_api.reranker import (
    Condition,
    ConditionStatus,
    QualityStatus,
    RejectedRevision,
    RolloutStatus,
    ScalingState,
)

from rerank_operator.controller.diagnose import Diagnosis
from rerank_operator.controller.times import format_time
from rerank_operator.controller.verdict import Verdict
from rerank_operator.rollout.canary import ENDED

LONGEST_MESSAGE = 4096

READY, PROGRESSING, DEGRADED, SCALING = "Ready", "Progressing", "Degraded", "Scaling"
CANARY_HEALTHY = "CanaryHealthy"


Answer = tuple[ConditionStatus, str, str]
"""Status, reason and message."""


class Problem(msgspec.Struct, frozen=True):
    """Why what the spec asks for could not even be written."""

    reason: str
    message: str


class Facts(msgspec.Struct, frozen=True):
    """Everything that conditions are judged by."""

    desired: int
    ready: int
    """Ready workers that get traffic, of all revisions."""
    target: str | None
    current: str | None
    unheard: int = 0
    """Workers of nodes that do not report; gateways use them while there is no other."""
    target_ready: int = 0
    target_updated: bool = True
    """The target's Deployment runs what was last applied, in all its pods."""
    suspended: bool = False
    rejected: RejectedRevision | None = None
    """The target, where it was taken back."""
    rollout: RolloutStatus | None = None
    """Of a canary: what goes on, or the last one."""
    problem: Problem | None = None
    target_trouble: Diagnosis | None = None
    serving_trouble: Diagnosis | None = None
    verdict: Verdict | None = None
    """What scaling comes to; None: the object is not understood."""
    last_trouble: Diagnosis | None = None
    """Why workers of the target could not serve when there last were any."""
    quality: QualityStatus | None = None
    """Of the golden set, as last measured."""
    notices: Mapping[str, Answer] = {}
    """Conditions that are there only while they have something to tell, by type."""

    @property
    def loaners(self) -> int:
        """Warm pods that serve."""
        return self.verdict.serving if self.verdict else 0


Check = Callable[[Facts], Answer | None]
AnyFacts = TypeVar("AnyFacts")


def judge(facts: Facts, old: Sequence[dict[str, Any]], generation: int, now: float) -> tuple[Condition, ...]:
    """``old``: the conditions as stored."""
    beside: dict[str, tuple[Check, ...]] = {kind: (_as_it_is(answer),) for kind, answer in facts.notices.items()}
    return judge_by(_CHAINS | beside, facts, old, generation, now)


def _as_it_is(answer: Answer) -> Check:
    return lambda _: answer


def judge_by(
    chains: Mapping[str, Sequence[Callable[[AnyFacts], Answer | None]]],
    facts: AnyFacts,
    old: Sequence[dict[str, Any]],
    generation: int,
    now: float,
) -> tuple[Condition, ...]:
    """A condition of each chain; a transition time changes only where the status does."""
    before = {condition.get("type"): condition for condition in old}
    judged = []
    for kind, checks in chains.items():
        status, reason, message = next(answer for check in checks if (answer := check(facts)) is not None)
        was = before.get(kind, {})
        since = was.get("lastTransitionTime") if was.get("status") == status else None
        judged.append(
            Condition(kind, status, reason, message[:LONGEST_MESSAGE], generation, since or format_time(now)),
        )
    return tuple(judged)


def keep(
    judged: tuple[Condition, ...], kind: str, old: Sequence[dict[str, Any]], generation: int
) -> tuple[Condition, ...]:
    """``judged`` with the condition ``kind`` as it is stored, where it is."""
    stored = [msgspec.convert(condition, Condition) for condition in old if condition.get("type") == kind]
    kept = [msgspec.structs.replace(condition, observed_generation=generation) for condition in stored]
    return tuple(kept[0] if kept and condition.type == kind else condition for condition in judged)


# --- Ready: is at least one worker of this Reranker getting requests? ---


def _suspended(facts: Facts) -> Answer | None:
    return ("False", "Suspended", "spec.suspend is true: set it to false to serve again") if facts.suspended else None


def _none_wanted(facts: Facts) -> Answer | None:
    if facts.desired > 0 or facts.loaners > 0:
        return None
    if facts.verdict is not None and facts.verdict.mode == "Auto" and facts.verdict.decision is not None:
        return (
            "False",
            "NoReplicasRequested",
            "there is no demand: the next request starts a worker, and is held until then",
        )
    holder = _HOLDERS.get(facts.verdict.mode) if facts.verdict is not None else None
    if holder is None or (facts.verdict is not None and facts.verdict.mode == "ByHand"):
        why = "spec.replicas and spec.scaling ask for no worker: raise spec.replicas"
    else:
        why = f"{holder}, and there are none: requests wait in vain"
    return "False", "NoReplicasRequested", why


def _serving(facts: Facts) -> Answer | None:
    if facts.ready + facts.loaners == 0:
        return None
    beside = f", and {facts.loaners} warm pods serve" if facts.loaners else ""
    if facts.ready > facts.desired:  # a rollout's, or those that are going
        return "True", "Serving", f"{facts.ready} workers are ready, {facts.desired} wanted{beside}"
    return "True", "Serving", f"{facts.ready} of {facts.desired} workers are ready{beside}"


def _unheard(facts: Facts) -> Answer | None:
    """What nobody reports on is not known to be down: an API server that was away must page no one."""
    if facts.unheard == 0:
        return None
    return "Unknown", "NodeSilent", f"the nodes of {facts.unheard} workers do not report; gateways go on using them"


def _not_ready_trouble(facts: Facts) -> Answer | None:
    trouble = facts.problem or facts.target_trouble or facts.serving_trouble
    return ("False", trouble.reason, trouble.message) if trouble else None


def _waiting(facts: Facts) -> Answer | None:
    return "False", "WaitingForWorkers", f"none of {facts.desired} workers is ready yet"


# --- Progressing: is the revision that the spec asks for still on its way? ---


def _cannot_roll_out(facts: Facts) -> Answer | None:
    return ("False", facts.problem.reason, facts.problem.message) if facts.problem else None


def _taken_back(facts: Facts) -> Answer | None:
    if facts.rejected is None:
        return None
    return "False", "RevisionRejected", _rejection(facts.rejected)


def _canary(facts: Facts) -> Answer | None:
    if facts.rollout is None or facts.rollout.phase in ENDED:
        return None
    return "True", "Canary", f"revision {facts.rollout.revision}, {facts.rollout.phase}: {facts.rollout.message}"


def _rolling_out(facts: Facts) -> Answer | None:
    if facts.desired == 0 and facts.current is not None and facts.target != facts.current:
        note = f"revision {facts.target} has not served yet; until it does, revision {facts.current} is what serves"
        return "True", "RollingOut", note
    if facts.desired == 0 or (facts.target == facts.current and facts.target_ready >= facts.desired):
        return None
    reason = "WaitingForWorkers" if facts.target == facts.current else "RollingOut"
    return "True", reason, f"{facts.target_ready} of {facts.desired} workers of revision {facts.target} are ready"


def _updating(facts: Facts) -> Answer | None:
    if facts.desired == 0 or facts.target_updated:
        return None
    return "True", "RollingOut", f"workers of revision {facts.target} are being replaced by updated ones"


def _rolled_out(facts: Facts) -> Answer | None:
    return "False", "RolloutComplete", f"revision {facts.target} is what runs"


# --- Degraded: does anything need a person? ---


def _degraded_problem(facts: Facts) -> Answer | None:
    return ("True", facts.problem.reason, facts.problem.message) if facts.problem else None


def _degraded_rejection(facts: Facts) -> Answer | None:
    return ("True", "RevisionRejected", _rejection(facts.rejected)) if facts.rejected else None


def _degraded_trouble(facts: Facts) -> Answer | None:
    trouble = facts.target_trouble or facts.serving_trouble
    return ("True", trouble.reason, trouble.message) if trouble and facts.desired > 0 else None


def _degraded_policy(facts: Facts) -> Answer | None:
    invalid = facts.verdict.invalid if facts.verdict is not None else None
    return ("True", "InvalidPolicy", invalid) if invalid is not None else None


def _degraded_last_time(facts: Facts) -> Answer | None:
    """Without workers nothing shows it any more, and the next request would find it again."""
    if facts.last_trouble is None or facts.desired > 0 or facts.suspended:
        return None
    return "True", facts.last_trouble.reason, facts.last_trouble.message


def _healthy(facts: Facts) -> Answer | None:
    return "False", "Healthy", "nothing is known to be wrong"


def _rejection(rejected: RejectedRevision) -> str:
    return (
        f"revision {rejected.revision} was taken back and is tried again when the model, runtime or batching part of "
        f"the spec changes, or when asked to (kubectl rerank retry): {rejected.reason}: {rejected.message}"
    )


# --- CanaryHealthy: is the new revision no worse than the one that serves, as far as is known? ---


def _no_canary(facts: Facts) -> Answer | None:
    return ("True", "NoCanary", "no canary has been tried") if facts.rollout is None else None


def _canary_over(facts: Facts) -> Answer | None:
    rollout = facts.rollout
    if rollout is None or rollout.phase not in ENDED:
        return None
    bad = rollout.phase == "RolledBack" and facts.rejected is not None and facts.rejected.revision == rollout.revision
    return "False" if bad else "True", rollout.phase, f"revision {rollout.revision}: {rollout.message}"


def _canary_paused(facts: Facts) -> Answer | None:
    if facts.rollout is None or not facts.rollout.paused:
        return None
    return "Unknown", "Paused", f"revision {facts.rollout.revision}: {facts.rollout.message}"


def _canary_judged(facts: Facts) -> Answer | None:
    assert facts.rollout is not None
    passed = facts.rollout.phase == "Promoting"
    note = f"revision {facts.rollout.revision}: {facts.rollout.message}"
    return ("True", "Promoting", note) if passed else ("Unknown", f"Judging{facts.rollout.phase}", note)


# --- Scaling: does demand decide how many workers there are, and what does it ask for? ---

_HOLDERS: dict[ScalingState, str] = {
    "ByHand": "spec.replicas is set: remove it to scale on demand",
    "Paused": f"the annotation {names.ANNOTATION_SCALING_PAUSED} is true: remove it to scale on demand",
    "Recommend": "spec.scaling.mode is recommend: replicas stay as they are",
}


def _scaling_suspended(facts: Facts) -> Answer | None:
    if facts.verdict is None or facts.verdict.mode != "Suspended":
        return None
    return "False", "Suspended", scaling_message(facts.verdict)


def _scaling_not_understood(facts: Facts) -> Answer | None:
    if facts.verdict is not None:
        return None
    return "False", "InvalidSpec", "the spec is not understood: replicas stay as they are"


def _scaling_invalid(facts: Facts) -> Answer | None:
    if facts.verdict is None or facts.verdict.invalid is None:
        return None
    return "False", "InvalidPolicy", scaling_message(facts.verdict)


def _scaling_held(facts: Facts) -> Answer | None:
    if facts.verdict is None or facts.verdict.mode not in _HOLDERS:
        return None
    return "False", facts.verdict.mode, scaling_message(facts.verdict)


def _scaling_unknown(facts: Facts) -> Answer | None:
    decision = facts.verdict.decision if facts.verdict else None
    if facts.verdict is None or decision is None:
        return "Unknown", "NotDecided", "the demand has not been looked at yet"
    if decision.reason != "DemandUnknown":
        return None
    return "Unknown", decision.reason, decision.message + _short(facts.verdict)


def _scaling(facts: Facts) -> Answer | None:
    decision = facts.verdict.decision if facts.verdict else None
    return ("True", decision.reason, scaling_message(facts.verdict)) if facts.verdict and decision else None


def _short(verdict: Verdict) -> str:
    return f". Too few warm pods: {verdict.short}" if verdict.short is not None else ""


def scaling_message(verdict: Verdict) -> str:
    """Why there are as many workers as there are; where demand does not decide, also what it would."""
    decision, holder = verdict.decision, _HOLDERS.get(verdict.mode)
    if verdict.mode == "Suspended":
        return "spec.suspend is true: there are no workers"
    if verdict.invalid is not None:
        return f"{verdict.invalid}. Until then replicas stay as they are"
    if decision is None:
        return holder or "the demand has not been looked at yet"
    warm = f" and {decision.loaners} warm pods" if decision.loaners else ""
    numbers = f"{decision.replicas} workers{warm}: {decision.message}{_short(verdict)}"
    return f"{holder}. Demand would have {numbers}" if holder else numbers


_CHAINS: dict[str, tuple[Check, ...]] = {
    READY: (_suspended, _none_wanted, _serving, _unheard, _not_ready_trouble, _waiting),
    PROGRESSING: (
        _suspended,
        _cannot_roll_out,
        _taken_back,
        _canary,
        _none_wanted,
        _rolling_out,
        _updating,
        _rolled_out,
    ),
    DEGRADED: (
        _degraded_problem,
        _degraded_rejection,
        _degraded_trouble,
        _degraded_policy,
        _degraded_last_time,
        _healthy,
    ),
    CANARY_HEALTHY: (_no_canary, _canary_over, _canary_paused, _canary_judged),
    SCALING: (
        _scaling_suspended,
        _scaling_not_understood,
        _scaling_invalid,
        _scaling_held,
        _scaling_unknown,
        _scaling,
    ),
}
