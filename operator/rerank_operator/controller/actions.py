"""What a plan may do to the cluster, as values: apply.py carries them out. Pure."""

from typing import Any, Literal

import msgspec

from rerank_operator.controller.events import Event
from rerank_operator.controller.kinds import Kind
from rerank_operator.manifests.common import differences


class Apply(msgspec.Struct, frozen=True):
    kind: Kind
    manifest: dict[str, Any]
    why: Literal["create", "update", "drift"]
    found_version: str | None = None
    """Of the object as it was looked at; None: it was not there."""
    event: Event | None = None
    """To be told once it is done, and if it changed anything."""


class Scale(msgspec.Struct, frozen=True):
    """Replicas of a Deployment whose template stays as it is, whatever newer settings would make of it."""

    namespace: str
    name: str
    uid: str
    resource_version: str
    replicas: int
    lent_to: str | None
    fits: int | None = None
    event: Event | None = None


class Mark(msgspec.Struct, frozen=True):
    """How dear a Pod is when its Deployment is to have fewer: who costs least goes first."""

    namespace: str
    name: str
    uid: str
    cost: int | None
    """None: as any other."""


class Delete(msgspec.Struct, frozen=True):
    kind: Kind
    namespace: str
    name: str
    uid: str
    resource_version: str


Action = Apply | Scale | Mark | Delete


def apply_if_different(
    kind: Kind, manifest: dict[str, Any], found: dict[str, Any] | None, deleted: bool = False
) -> list[Action]:
    """``deleted``: where it is not there, it has been, and someone has deleted it."""
    name = f"{kind.name} {manifest['metadata']['name']}"
    if found is None:
        event = (
            Event("Warning", "DriftRepaired", "Repair", f"{name} was deleted and is made again") if deleted else None
        )
        return [Apply(kind, manifest, "drift" if deleted else "create", event=event)]
    differs = differences(manifest, found)
    if not differs:
        return []
    stamps = manifest["metadata"]["annotations"]
    # The same manifest was applied before: the difference is someone else's doing, not a new wish of ours.
    ours = stamps.items() <= found["metadata"].get("annotations", {}).items()
    places = ", ".join(differs[:3]) + (" and more" if len(differs) > 3 else "")
    note = f"{name} was changed by someone else and is put back ({places})"
    event = Event("Warning", "DriftRepaired", "Repair", note) if ours else None
    return [Apply(kind, manifest, "drift" if ours else "update", found["metadata"]["resourceVersion"], event)]


def delete(kind: Kind, found: dict[str, Any]) -> Delete:
    metadata = found["metadata"]
    return Delete(kind, metadata["namespace"], metadata["name"], metadata["uid"], metadata["resourceVersion"])
