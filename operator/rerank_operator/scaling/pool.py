"""Who gets which pod of a warm pool. Pure: it hands out, the caller claims (and may lose a race for a pod)."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FreePod:
    name: str
    models: frozenset[str]
    """Models that it has in memory."""


@dataclass(frozen=True, slots=True)
class Wish:
    reranker: str
    model: str
    pods: int
    """More warm pods than it has and has on their way."""


@dataclass(frozen=True, slots=True)
class Claim:
    reranker: str
    pod: str


def assign(free: Sequence[FreePod], wishes: Sequence[Wish]) -> list[Claim]:
    """Pods for ``wishes``, in their order (that of arrival): no pod twice; who comes late may get none.

    A wish takes a pod that has its model in memory; else the one whose models the wishes after it want least.
    """
    left = sorted(free, key=lambda pod: pod.name)
    claims: list[Claim] = []
    for place, wish in enumerate(wishes):
        later = {other.model for other in wishes[place + 1 :]}
        for _ in range(min(wish.pods, len(left))):
            pod = min(left, key=lambda pod: (wish.model not in pod.models, len(pod.models & later), len(pod.models)))
            left.remove(pod)
            claims.append(Claim(wish.reranker, pod.name))
    return claims
