"""Which engine serves a model: those that the spec allows, in order of preference, and the first that can.

Never picks an engine that the spec rules out; one that is asked for by name and cannot serve is an error.
"""

import importlib
import logging
from collections.abc import Sequence

from rerank_api.reranker import Backend

from rerank_worker.engine import Engine, EngineUnsupported
from rerank_worker.failures import ConfigurationFailure
from rerank_worker.loading.checkpoint import Checkpoint

log = logging.getLogger(__name__)

ENGINES = {
    "torch-padded": "rerank_worker.engine.torch_padded",
}
"""Modules with a ``build(checkpoint)``, by the engine's name."""

_BACKENDS: dict[Backend, tuple[str, ...]] = {
    "auto": ("torch-padded",),
    "torch": ("torch-padded",),
}


def candidates(backend: Backend) -> Sequence[str]:
    """Names of the engines that ``spec.runtime.backend`` allows, the preferred first."""
    return _BACKENDS[backend]


def build(name: str, checkpoint: Checkpoint) -> Engine:
    """The engine called ``name``. Raises EngineUnsupported, or what loading raises."""
    engine: Engine = importlib.import_module(ENGINES[name]).build(checkpoint)
    return engine


def choose(backend: Backend, checkpoint: Checkpoint) -> Engine:
    """The preferred engine that can serve ``checkpoint``. Raises ConfigurationFailure when none can."""
    reasons = []
    for name in candidates(backend):
        try:
            return build(name, checkpoint)
        except EngineUnsupported as reason:
            log.info("an engine cannot serve this model", extra={"fields": {"engine": name, "reason": str(reason)}})
            reasons.append(f"{name}: {reason}")
    raise ConfigurationFailure(
        f"spec.runtime.backend {backend} with precision {checkpoint.precision}: no engine of the worker can serve "
        f"the model so ({'; '.join(reasons)})"
    )
