"""Who gets which pod of a warm pool. Pure: it hands out, the caller claims (and may lose a race for a pod)."""

from collections.abc import Collection, Sequence
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


def pick(free: Sequence[FreePod], model: str, later: Collection[str]) -> FreePod:
    """The pod for who wishes for ``model``: one that has it in memory; else the one whose models the wishes after it
    (``later``) want least."""
    return min(
        free, key=lambda pod: (model not in pod.models, sum(one in later for one in pod.models), len(pod.models))
    )


def assign(free: Sequence[FreePod], wishes: Sequence[Wish]) -> list[Claim]:
    """Pods for ``wishes``, in their order (that of arrival): no pod twice; who comes late may get none."""
    left = sorted(free, key=lambda pod: pod.name)
    claims: list[Claim] = []
    for place, wish in enumerate(wishes):
        later = {other.model for other in wishes[place + 1 :]}
        for _ in range(min(wish.pods, len(left))):
            pod = pick(left, wish.model, later)
            left.remove(pod)
            claims.append(Claim(wish.reranker, pod.name))
    return claims
