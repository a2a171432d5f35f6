"""The pods of one warm pool, and to whom they are lent, as their labels and annotations say. Pure over the store.

A loan stands in the Pod alone: claimed (its labels), then serving (the annotation with the model's key). So a new
leader goes on from what is there. Which models a worker holds is known from its own answers only, and passed in.
"""

from collections.abc import Mapping
from typing import Any

import msgspec
from rerank_api import names

from rerank_operator.controller.kinds import PODS, Key
from rerank_operator.controller.observe import PodState, pod_state
from rerank_operator.controller.store import Store
from rerank_operator.controller.times import time_or_zero


class Wish(msgspec.Struct, frozen=True):
    """How many warm pods a Reranker should have in all, those that it has included; 0 gives them back.

    A Reranker for which nothing has been decided yet has no wish, and keeps what it has.
    """

    key: Key
    loaners: int
    since: float
    """Unix time since when it has wished for more than it has: who came first is served first."""


class Loan(msgspec.Struct, frozen=True):
    reranker: str
    """In the pool's namespace."""
    revision: str
    since: float
    """Unix time of the claim."""
    serving: str | None = None
    """Key of the model that gateways may ask; None: not loaded yet."""


class WarmPod(msgspec.Struct, frozen=True):
    name: str
    uid: str
    resource_version: str
    address: str
    """Empty: not placed yet."""
    restarts: int
    """Of its worker: each begins without models."""
    state: PodState
    loan: Loan | None = None
    models: frozenset[str] = frozenset()
    """Keys of the models that it has ready, as far as known."""

    @property
    def usable(self) -> bool:
        """Its worker answers, and goes on to."""
        return self.state.ready and self.state.counts and bool(self.address)

    @property
    def serves(self) -> bool:
        return self.usable and self.loan is not None and self.loan.serving is not None


class PoolState(msgspec.Struct, frozen=True):
    """Pods that are being stopped or have ended are not in here, lent or not: they are nobody's help any more."""

    pods: tuple[WarmPod, ...] = ()
    """By name."""

    @property
    def free(self) -> tuple[WarmPod, ...]:
        """Those that can be claimed."""
        return tuple(pod for pod in self.pods if pod.usable and pod.loan is None)

    def loans(self, reranker: str) -> tuple[WarmPod, ...]:
        """Pods that are claimed for ``reranker``, serving or not."""
        return tuple(pod for pod in self.pods if pod.loan is not None and pod.loan.reranker == reranker)

    def serving(self, reranker: str) -> int:
        return sum(pod.serves for pod in self.loans(reranker))

    def claiming(self, reranker: str) -> int:
        """Claimed and not serving (yet, or for a while: a worker that has crashed loads again).

        Not those on silent nodes: nobody knows whether they come back, and whoever counts on them waits in vain.
        """
        return sum(not pod.serves and not pod.state.unheard for pod in self.loans(reranker))


Models = Mapping[str, frozenset[str]]
"""Keys of the models that are ready in a worker, by the Pod's uid; a Pod that is not in it has not been asked."""


def pool_state(store: Store, namespace: str, pool: str, models: Models | None = None) -> PoolState:
    """Empty where there is no such pool, or it has no pods yet."""
    pods = [warm_pod(body, models or {}) for body in store.members(PODS, (namespace, pool))]
    return PoolState(tuple(pod for pod in pods if pod.state.counts))


def warm_pod(body: dict[str, Any], models: Models) -> WarmPod:
    metadata, status = body["metadata"], body.get("status", {})
    workers = [c for c in status.get("containerStatuses", ()) if c["name"] == names.WORKER_CONTAINER]
    uid = metadata["uid"]
    return WarmPod(
        name=metadata["name"],
        uid=uid,
        resource_version=metadata["resourceVersion"],
        address=status.get("podIP", ""),
        restarts=max((c.get("restartCount", 0) for c in workers), default=0),
        state=pod_state(body),
        loan=_loan(metadata),
        models=models.get(uid, frozenset()),
    )


def _loan(metadata: dict[str, Any]) -> Loan | None:
    labels, annotations = metadata.get("labels", {}), metadata.get("annotations", {})
    reranker = labels.get(names.LABEL_LOANED_TO)
    if not reranker:
        return None
    at = annotations.get(names.ANNOTATION_LOANED_AT)  # where it is no time, the loan is there all the same
    return Loan(
        reranker=reranker,
        revision=labels.get(names.LABEL_LOANED_REVISION, ""),
        since=time_or_zero(at),
        serving=annotations.get(names.ANNOTATION_LOAN_SERVING),
    )
