"""What the operator tells a worker, as JSON in the environment variable named by ``names.ENV_WORKER_CONFIG``.

Resolved values: durations are seconds here, and a pvc:// model is a path. Unknown fields are refused: a worker that
does not understand its operator must say so instead of serving something else.
"""

import msgspec

from rerank_api.reranker import Activation, Backend, ChunkPooling, Compile, Device, LongDocuments, Precision


class ModelSource(msgspec.Struct, rename="camel", frozen=True, forbid_unknown_fields=True):
    """``path`` (a local folder) or ``repo`` with ``revision`` (on the Hugging Face hub): exactly one of the two."""

    path: str | None = None
    repo: str | None = None
    revision: str | None = None
    sha256: dict[str, str] = {}


class WorkerConfig(msgspec.Struct, rename="camel", frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Defaults are left out, so that a field added by a later release does not renew the pods of every fleet."""

    model: ModelSource
    namespace: str = ""
    reranker: str = ""
    revision: str = ""
    device: Device = "auto"
    precision: Precision = "auto"
    backend: Backend = "auto"
    compile: Compile = "auto"
    quality_floor: float = 0.99
    """Least nDCG@10 of an int8 or float8 ranking where float32's own scores are the gains; below it the worker does not
    serve. Measured at load on the worker's own sample."""
    max_length: int | None = None
    """Tokens of query and document together; None: the model's own limit, 512 at most."""
    activation: Activation = "auto"
    temperature: float = 1.0
    max_delay_seconds: float = 0.005
    length_bucket: int = 16
    max_batch_tokens: int | None = None
    """Tokens in one batch, padding included; None: what the device takes, measured at start."""
    long_documents: LongDocuments = "truncate"
    chunk_pooling: ChunkPooling = "max"
    """How the scores of a document's chunks become one, where long_documents is chunk."""
