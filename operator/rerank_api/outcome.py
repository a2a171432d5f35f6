"""How rollouts of a revision ended, as its ControllerRevision keeps it: written by the operator, read by people."""

from rerank_api.reranker import RolloutStatus


class Outcome(RolloutStatus, frozen=True):
    """The last rollout of the revision."""

    earlier: tuple[RolloutStatus, ...] = ()
    """Those before it, the latest first; few."""
