"""The ControllerRevision that keeps one revision's full spec, so that going back never depends on memory."""

from collections.abc import Mapping
from typing import Any

from rerank_api.reranker import Metadata
from rerank_api.revision import RevisionSpec, object_name, revision_to_data

from rerank_operator.manifests.common import metadata


def controller_revision(
    owner: Metadata, hash_: str, revision: RevisionSpec, number: int, notes: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """``number``: grows with each revision that becomes the target, also when an older one comes back. ``notes``:
    annotations that its rollouts leave; the API server lets nothing else of it change."""
    found = metadata(owner, object_name(owner.name, hash_), hash_)
    return {
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": found | ({"annotations": dict(notes)} if notes else {}),
        "data": revision_to_data(revision),
        "revision": number,
    }
