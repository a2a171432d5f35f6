"""Which pods serve a Reranker's revision, and what one of them says of labelled queries: its model's logits.

Asks beside what users send, with low priority, two requests at a time. Sends texts to that worker and nowhere else.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, Literal

import aiohttp
import msgspec
from rerank_api import names, wire
from rerank_operator.rollout.golden.ask import CannotAsk
from rerank_operator.rollout.golden.golden_set import LabelledQuery
from rerank_operator.rollout.golden.workers import scores_of

from rerank_kubectl.changes import Refused
from rerank_kubectl.kubectl import Kubectl

SECONDS = 30.0
"""For the worker's list of its models."""


class Worker(msgspec.Struct, frozen=True):
    """A pod that serves. ``key``: of the model, as the worker lists it."""

    namespace: str
    pod: str
    key: str = "default"

    @property
    def path(self) -> str:
        return f"{wire.MODELS_PATH}/{self.key}/score"


class _Facts(msgspec.Struct):
    activation: Literal["sigmoid", "identity"]
    temperature: Annotated[float, msgspec.Meta(gt=0)]


class _Model(msgspec.Struct):
    key: str
    facts: dict[str, Any]


class _Models(msgspec.Struct):
    models: list[_Model]


class Scored(msgspec.Struct, frozen=True):
    activation: str
    """sigmoid or identity: what the model does, where the spec says auto."""
    temperature: float
    """In force in that worker."""
    logits: list[list[float]]
    """Of each query's documents."""


def selectors(reranker: str, revision: str) -> list[str]:
    """Of its own workers, and of the warm pods that are lent to it."""
    return [
        f"{names.LABEL_RERANKER}={reranker},{names.LABEL_REVISION}={revision},"
        f"{names.LABEL_COMPONENT}={names.COMPONENT_WORKER}",
        f"{names.LABEL_LOANED_TO}={reranker},{names.LABEL_LOANED_REVISION}={revision}",
    ]


def serving(pods: Iterable[Any], reranker: str, revision: str) -> list[Worker]:
    """Those of ``pods``, as the API server returned them, that are ready to score."""
    found = []
    for pod in pods:
        metadata, conditions = pod["metadata"], pod.get("status", {}).get("conditions") or []
        ready = any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
        if not ready or metadata.get("deletionTimestamp"):
            continue
        namespace, pod_name = metadata["namespace"], metadata["name"]
        if names.LABEL_WARM_POOL not in metadata.get("labels", {}):
            found.append(Worker(namespace, pod_name))
            continue
        key = names.model_key(namespace, reranker, revision)
        if (metadata.get("annotations") or {}).get(names.ANNOTATION_LOAN_SERVING) == key:
            found.append(Worker(namespace, pod_name, key))
    return found


def score(kubectl: Kubectl, worker: Worker, queries: Sequence[LabelledQuery], told: Callable[[], None]) -> Scored:
    """``told``: after each query. Raises Failed where the pod cannot be reached, Refused where it does not score."""
    with kubectl.forward(worker.namespace, worker.pod, names.WORKER_PORT) as port:
        try:
            return asyncio.run(_score(f"127.0.0.1:{port}", worker, queries, told))
        except CannotAsk as error:
            raise Refused(str(error).replace(f"127.0.0.1:{port}", worker.pod, 1)) from None


async def _score(host: str, worker: Worker, queries: Sequence[LabelledQuery], told: Callable[[], None]) -> Scored:
    async with aiohttp.ClientSession() as session:
        facts = await _facts(session, host, worker.key)
        logits = await scores_of(session, host, queries, raw=True, path=worker.path, told=told)
    return Scored(facts.activation, facts.temperature, logits)


async def _facts(session: aiohttp.ClientSession, host: str, key: str) -> _Facts:
    limit = aiohttp.ClientTimeout(total=SECONDS)
    try:
        # No redirects: what runs in a pod could have this machine ask any address that it can reach.
        url = f"http://{host}{wire.MODELS_PATH}"
        async with session.get(url, timeout=limit, allow_redirects=False) as response:
            body = await response.read()
        models = msgspec.json.decode(body, type=_Models).models
        return msgspec.convert(next(model.facts for model in models if model.key == key), _Facts)
    except StopIteration:
        raise CannotAsk(f"worker {host}: has no model {key} any more: try again") from None
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        said = str(error) or type(error).__name__
        raise CannotAsk(f"worker {host}: did not tell its models: {said}") from None
