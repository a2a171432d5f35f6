"""The WarmPool resource as typed values, read from what the API server returns.

The CRD under ``crds/`` is the source of truth for what is allowed; defaults here are the CRD's own, and a test holds
the two together. Nothing here decides anything.
"""

from typing import Any, Literal

import msgspec

from rerank_api.reranker import Condition, Device, Metadata

PoolPrecision = Literal["auto", "float32", "float16", "bfloat16"]


class _Resource(msgspec.Struct, rename="camel", frozen=True, omit_defaults=True):
    """Camel-case on the wire, snake-case in code; what a newer schema adds is ignored by older code."""


class PreloadedModel(_Resource, frozen=True):
    """A model by ``uri`` and ``revision``, written as in ``spec.model`` of the Rerankers that serve it."""

    uri: str
    revision: str | None = None


class WarmPoolSpec(_Resource, frozen=True):
    """``size`` pods that hold models ready and are lent to the Rerankers that name the pool."""

    size: int
    device: Device = "auto"
    precision: PoolPrecision = "auto"
    """For Rerankers whose own precision is auto."""
    resources: dict[str, dict[str, str | int]] = {}
    preload: list[PreloadedModel] | None = None
    """Models kept in every pod; None: those of the Rerankers that name the pool, most recently used first."""
    max_models_per_pod: int = 8
    pod_template: dict[str, Any] = {}


class LoanedModel(_Resource, frozen=True):
    """A Reranker's ``revision`` and how many pods of the pool have it ready, lent or not."""

    reranker: str
    revision: str
    pods: int


class WarmPoolStatus(_Resource, frozen=True):
    observed_generation: int = 0
    replicas: int = 0
    ready_replicas: int = 0
    free: int = 0
    """Ready and lent to nobody."""
    loaned: int = 0
    selector: str = ""
    models: list[LoanedModel] = []
    conditions: list[Condition] = []


class WarmPool(_Resource, frozen=True):
    metadata: Metadata
    spec: WarmPoolSpec
    status: WarmPoolStatus = WarmPoolStatus()


def parse_warm_pool(body: Any) -> WarmPool:
    """The typed WarmPool in ``body``, the mapping that the API server returned.

    Raises msgspec.ValidationError naming the field when the object does not fit (it was stored under another schema).
    """
    return msgspec.convert(body, WarmPool)
