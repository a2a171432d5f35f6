"""The ControllerRevision that keeps one revision's full spec, so that going back never depends on memory."""

from typing import Any

from rerank_api.reranker import Metadata
from rerank_api.revision import RevisionSpec, object_name, revision_to_data

from rerank_operator.manifests.common import metadata


def controller_revision(owner: Metadata, hash_: str, revision: RevisionSpec, number: int) -> dict[str, Any]:
    """``number``: grows with each revision that becomes the target, also when an older one comes back."""
    return {
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": metadata(owner, object_name(owner.name, hash_), hash_),
        "data": revision_to_data(revision),
        "revision": number,
    }
