"""What is applied to set the status of a Reranker or a WarmPool, where it says anything new."""

from operator import itemgetter
from typing import Any

from rerank_api import names
from rerank_api.reranker import Metadata


def status_manifest(
    kind: str, metadata: Metadata, status: dict[str, Any], old: dict[str, Any], **keys: tuple[str, ...]
) -> dict[str, Any] | None:
    """None: ``old``, as stored, says the same. ``keys``: fields that hold lists which the API server merges by key, and
    the fields that are it; they come back in an order of their own. ``conditions`` is such a list."""
    if _in_order(status, keys) == _in_order(old, keys):
        return None
    return {
        "apiVersion": names.API_VERSION,
        "kind": kind,
        # The uid keeps it from a namesake that was made since.
        "metadata": {"name": metadata.name, "namespace": metadata.namespace, "uid": metadata.uid},
        "status": status,
    }


def _in_order(status: dict[str, Any], keys: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    return status | {
        field: sorted(status.get(field, ()), key=itemgetter(*key))
        for field, key in {**keys, "conditions": ("type",)}.items()
    }
