"""What scaling comes to for one Reranker: whose word counts, and the numbers that are in force. Pure.

A decision is always made where it can be; whether it is carried out is said here, and nowhere else.
"""

from collections.abc import Mapping

import msgspec
from rerank_api import names
from rerank_api.reranker import Reranker, ScalingState

from rerank_operator.controller.observe import Observed
from rerank_operator.rollout.canary import JUDGED
from rerank_operator.scaling.decide import Decision
from rerank_operator.scaling.replicas import desired_replicas


class Verdict(msgspec.Struct, frozen=True):
    """The numbers in force, why, and what is known beside them."""

    mode: ScalingState
    replicas: int
    """Workers of its own that there should be."""
    loaners: int = 0
    """Warm pods that it should have."""
    decision: Decision | None = None
    """What demand asks for, in force or not; None: nothing could be decided, or it is suspended."""
    invalid: str | None = None
    """Why spec.scaling cannot be followed; the numbers stay as they are."""
    serving: int = 0
    """Warm pods that serve it now."""
    warm: Mapping[str, int] = {}
    """The same by revision."""
    queued: int | None = None
    capacity: float | None = None
    start_seconds: float | None = None
    wake_seconds: float | None = None
    last_request: float | None = None
    """Unix seconds."""
    short: str | None = None
    """Why it gets fewer warm pods than it should have."""
    outstanding: Mapping[str, int] = {}
    """Tokens at each worker, by its Pod's uid; who is not in it is unknown, and not idle."""
    refresh: bool = True
    """False: the status need not follow where only figures have moved on."""

    @property
    def desired(self) -> int:
        """What the status calls desired: in Recommend and Paused what would be, not what is."""
        told = self.decision is not None and self.mode in ("Recommend", "Paused")
        return self.decision.replicas if told and self.decision is not None else self.replicas

    @property
    def desired_loaners(self) -> int:
        told = self.decision is not None and self.mode in ("Recommend", "Paused")
        return self.decision.loaners if told and self.decision is not None else self.loaners


def scaling_mode(reranker: Reranker) -> ScalingState:
    """Whose word counts; the first that speaks."""
    if reranker.spec.suspend:
        return "Suspended"
    if reranker.spec.replicas is not None:
        return "ByHand"
    if reranker.metadata.annotations.get(names.ANNOTATION_SCALING_PAUSED, "").lower() == "true":
        return "Paused"
    return "Recommend" if reranker.spec.scaling.mode == "recommend" else "Auto"


def held_replicas(observed: Observed, reranker: Reranker, mode: ScalingState) -> int:
    """The count as it is, for as long as nothing else is decided.

    That is what was decided last; where another's word counted until now, what the Deployments were told. Where there
    is nothing yet, or all was suspended, as many as one begins with: one, or minReplicas.
    """
    last = observed.status.get("scaling") or {}
    first = desired_replicas(msgspec.structs.replace(reranker.spec, replicas=None, suspend=False))
    if last.get("mode") == "Suspended":
        return first
    if mode == "Auto" == last.get("mode") and isinstance(last.get("desiredReplicas"), int):
        return last["desiredReplicas"]
    rollout, found = observed.rollout, observed.deployments
    if rollout is not None and rollout.phase in JUDGED:
        # All but the canary's workers, and what makes room for those.
        stable = [state for state in found if state.revision != rollout.revision]
        return sum(state.replicas + (state.lent_to is not None) for state in stable) if stable else first
    # While another rollout goes on, the Deployment of one revision or the other is told the whole count.
    return max((state.replicas for state in found), default=first)


def replicas_in_force(reranker: Reranker, mode: ScalingState, held: int, decision: Decision | None) -> int:
    if mode in ("Suspended", "ByHand"):
        return desired_replicas(reranker.spec)
    return decision.replicas if mode == "Auto" and decision is not None else held


def undecided(observed: Observed, reranker: Reranker) -> Verdict:
    """Where nobody has looked at the demand."""
    mode = scaling_mode(reranker)
    return Verdict(mode, replicas_in_force(reranker, mode, held_replicas(observed, reranker, mode), None))
