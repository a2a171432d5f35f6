"""A warm pool as the API server returns it, with just enough in it: builders for the tests of warm pools."""

from datetime import UTC, datetime
from typing import Any

from rerank_api import names
from rerank_api.reranker import Metadata, parse_reranker
from rerank_api.revision import revision_hash, revision_of
from rerank_api.warm_pool import WarmPoolSpec
from rerank_operator.controller.observe import PodState
from rerank_operator.manifests.pod_template import worker_config
from rerank_operator.manifests.warm_pool import labels
from rerank_operator.warm.admin import ModelFact
from rerank_operator.warm.members import Member, Served
from rerank_operator.warm.models import Worker
from rerank_operator.warm.observe import Loan, PoolState, WarmPod, Wish

NAMESPACE, POOL = "search", "shared"
KEY = (NAMESPACE, POOL)
NOW = 1_800_000_000.0


def warm_pool(size: int = 2, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.WARM_POOL_KIND,
        "metadata": {
            "name": POOL,
            "namespace": NAMESPACE,
            "uid": "uid-pool",
            "generation": 1,
            "resourceVersion": "1",
        },
        "spec": {"size": size, **spec},
    }


def reranker(name: str = "a", version: int = 1, *, status: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    model = spec.pop("model", {"uri": f"file:///models/{name}"})
    scaling = {"warmPool": POOL} | spec.pop("scaling", {})
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {
            "name": name,
            "namespace": NAMESPACE,
            "uid": f"uid-{name}",
            "generation": 1,
            "resourceVersion": str(version),
        },
        "spec": {"model": model, "scaling": scaling, **spec},
        **({"status": status} if status else {}),
    }


def hash_of(body: dict[str, Any]) -> str:
    return revision_hash(revision_of(parse_reranker(body).spec))


def key_of(body: dict[str, Any]) -> str:
    return names.model_key(NAMESPACE, body["metadata"]["name"], hash_of(body))


def pod_body(
    index: int, version: int = 1, *, ready: bool = True, restarts: int = 0, loan: Loan | None = None
) -> dict[str, Any]:
    """A Pod of the pool, as the API server returns it."""
    metadata: dict[str, Any] = {
        "name": f"{POOL}-warm-{index}",
        "namespace": NAMESPACE,
        "uid": f"pod-{index}",
        "resourceVersion": str(version),
        "labels": labels(POOL),
    }
    if loan is not None:
        metadata["labels"] |= {names.LABEL_LOANED_TO: loan.reranker, names.LABEL_LOANED_REVISION: loan.revision}
        at = datetime.fromtimestamp(loan.since, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        serving = {names.ANNOTATION_LOAN_SERVING: loan.serving} if loan.serving else {}
        metadata["annotations"] = {names.ANNOTATION_LOANED_AT: at, **serving}
    state = "True" if ready else "False"
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "status": {
            "phase": "Running",
            "podIP": f"10.0.0.{index}",
            "conditions": [
                {"type": "Ready", "status": state},
                {"type": "ContainersReady", "status": state},
                {"type": "PodScheduled", "status": "True"},
            ],
            "containerStatuses": [
                {"name": "worker", "ready": ready, "restartCount": restarts, "state": {"running": {}}},
            ],
        },
    }


# --- values, for the pure parts ---


def pod(
    index: int, *models: str, loan: Loan | None = None, ready: bool = True, unheard: bool = False, restarts: int = 0
) -> WarmPod:
    return WarmPod(
        name=f"pod-{index}",
        uid=f"uid-{index}",
        resource_version="1",
        address=f"10.0.0.{index}",
        restarts=restarts,
        state=PodState(name=f"pod-{index}", revision="", ready=ready, unheard=unheard),
        loan=loan,
        models=frozenset(models),
    )


def state(*pods: WarmPod) -> PoolState:
    return PoolState(tuple(sorted(pods, key=lambda one: one.name)))


def served(name: str, revision: str = "r1") -> Served:
    body = parse_reranker(reranker(name))
    config = worker_config(NAMESPACE, name, revision, revision_of(body.spec))
    return Served(revision, model(name, revision), body.spec.model, config)


def model(name: str, revision: str = "r1") -> str:
    return names.model_key(NAMESPACE, name, revision)


def member(
    name: str,
    wish: int | None = None,
    since: float = NOW,
    *,
    revision: str = "r1",
    last_request: float = 0.0,
    able: bool = True,
    problem: str | None = None,
    unreadable: bool = False,
) -> Member:
    return Member(
        metadata=Metadata(name=name, namespace=NAMESPACE, uid=f"uid-{name}"),
        served=served(name, revision) if able else None,
        problem=problem,
        unreadable=unreadable,
        wish=None if wish is None else Wish((NAMESPACE, name), wish, since),
        last_request=last_request,
    )


def lent(name: str, since: float = NOW - 10, *, revision: str = "r1", serving: bool = False) -> Loan:
    return Loan(name, revision, since, model(name, revision) if serving else None)


def holding(*keys: str, loaded: tuple[str, float] | None = None, restarts: int = 0, asked: float = NOW) -> Worker:
    return Worker(restarts, asked, tuple(ModelFact(key, "ready") for key in keys), loaded)


def spec(size: int = 2, **changes: Any) -> WarmPoolSpec:
    return WarmPoolSpec(size=size, **changes)
