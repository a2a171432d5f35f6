"""The operator's own ``decide``, asked as often as the operator asks it."""

from rerank_operator.scaling.decide import Memory, decide
from rerank_operator.scaling.policy import Policy
from rerank_operator.scaling.simulate.controller import Order, Seen


class Ours:
    """A gateway tells of a change at most ten times a second, and the operator decides at each."""

    eager: float | None = 0.1

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.memory = Memory()

    def order(self, seen: Seen, now: float) -> Order:
        decision = decide(self.policy, seen.demand, seen.fleet, self.memory, now)
        self.memory = decision.memory
        return Order(decision.replicas, decision.loaners, decision.again)
