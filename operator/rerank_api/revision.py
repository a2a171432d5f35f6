"""A revision: the part of a spec that makes workers different, its hash and its stored form.

Two specs with the same revision run the same pods; counts, limits at the gateway and ``suspend`` are not part of it.
The hash must never change between releases of the operator, or every fleet would roll on upgrade.
"""

import hashlib
from typing import Any

import msgspec

from rerank_api.reranker import Batching, ChunkPooling, LongDocuments, Model, RerankerSpec, Runtime

# Kubernetes' own alphabet for generated names: no vowels, so no words, and no look-alikes.
_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
HASH_LENGTH = 10


class RevisionSpec(msgspec.Struct, rename="camel", frozen=True, omit_defaults=True):
    """Everything a worker pod is built from."""

    model: Model
    runtime: Runtime = Runtime()
    batching: Batching = Batching()
    long_documents: LongDocuments = "truncate"
    chunk_pooling: ChunkPooling = "max"


def revision_of(spec: RerankerSpec) -> RevisionSpec:
    return RevisionSpec(
        model=spec.model,
        runtime=spec.runtime,
        batching=spec.batching,
        long_documents=spec.requests.long_documents,
        chunk_pooling=spec.requests.chunk_pooling,
    )


def revision_hash(revision: RevisionSpec) -> str:
    """A short name for the content, safe in labels and object names; equal content gives an equal hash.

    Defaults are left out before hashing, so a field added later with a default does not change the hash.
    """
    content = msgspec.json.encode(_without_defaults(revision), order="deterministic")
    digest = int.from_bytes(hashlib.sha256(content).digest())
    letters = []
    for _ in range(HASH_LENGTH):
        digest, index = divmod(digest, len(_ALPHABET))
        letters.append(_ALPHABET[index])
    return "".join(letters)


def _without_defaults(value: msgspec.Struct) -> dict[str, Any]:
    """Fields that differ from their defaults, by value (msgspec's own omit_defaults compares floats by identity)."""
    content = {}
    for field in msgspec.structs.fields(value):
        own = getattr(value, field.name)
        default = field.default if field.default is not msgspec.NODEFAULT else None
        if field.default_factory is not msgspec.NODEFAULT:
            default = field.default_factory()
        if own != default:
            content[field.encode_name] = _without_defaults(own) if isinstance(own, msgspec.Struct) else own
    return content


def revision_to_data(revision: RevisionSpec) -> dict[str, Any]:
    """The ``data`` of the ControllerRevision that keeps this revision."""
    return msgspec.to_builtins(revision)


def revision_from_data(data: Any) -> RevisionSpec:
    """The revision kept in a ControllerRevision. Raises msgspec.ValidationError naming the field."""
    return msgspec.convert(data, RevisionSpec)


def object_name(reranker: str, revision: str) -> str:
    """Name of the Deployment and the ControllerRevision of one revision."""
    return f"{reranker}-{revision}"
