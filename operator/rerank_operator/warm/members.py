"""The Rerankers of a warm pool: what a warm pod would load for each, and why it may not. Pure over the store."""

from collections.abc import Sequence
from typing import Any

import msgspec
from rerank_api import names
from rerank_api.reranker import Metadata, Model, Reranker, parse_reranker
from rerank_api.revision import RevisionSpec, revision_from_data, revision_hash, revision_of
from rerank_api.warm_pool import WarmPoolSpec
from rerank_api.worker_config import WorkerConfig

from rerank_operator.controller.kinds import CONTROLLER_REVISIONS, RERANKERS, Key
from rerank_operator.controller.store import Store
from rerank_operator.controller.times import time_or_zero
from rerank_operator.manifests.common import amount
from rerank_operator.manifests.pod_template import BadSpec, worker_config
from rerank_operator.warm.observe import Wish


class Served(msgspec.Struct, frozen=True):
    """What a warm pod loads to serve a Reranker."""

    revision: str
    key: str
    """Of the model in the worker."""
    model: Model
    config: WorkerConfig


class Member(msgspec.Struct, frozen=True):
    """A Reranker that names the pool."""

    metadata: Metadata
    served: Served | None
    """None: no warm pod may serve it now."""
    problem: str | None = None
    """Why not, where a person should know. What was asked for (suspended, for example) is no problem."""
    wish: Wish | None = None
    """None: nothing has been decided for it yet."""
    unreadable: bool = False
    """This version of the operator does not understand what is stored: it keeps the pods that it has."""
    last_request: float = 0.0
    """Unix time; 0: none is known."""
    borrowed: int = 0
    """Pods whose room its canary has."""

    @property
    def name(self) -> str:
        return self.metadata.name


class Reader:
    """Reads each version of a Reranker once: there may be hundreds in a pool, and all are looked at for each wake."""

    def __init__(self) -> None:
        self._read: dict[Key, dict[str, tuple[tuple[Any, ...], Member]]] = {}

    def members(self, store: Store, pool: Key, spec: WarmPoolSpec, wishes: Sequence[Wish]) -> tuple[Member, ...]:
        """By name; Rerankers that are being deleted are none any more."""
        by_key = {wish.key: wish for wish in wishes}
        before = self._read.get(pool, {})
        now: dict[str, tuple[tuple[Any, ...], Member]] = {}
        found = []
        for body in store.members(RERANKERS, pool):
            metadata = body["metadata"]
            if "deletionTimestamp" in metadata:
                continue
            name = metadata["name"]
            kept = _kept_revision(store, body)
            version = kept["metadata"]["resourceVersion"] if kept is not None else ""
            read = (metadata["uid"], metadata["resourceVersion"], version, spec)
            old = before.get(name)
            member = old[1] if old is not None and old[0] == read else _member(body, kept, spec)
            now[name] = (read, member)
            wish = by_key.get((pool[0], name))
            found.append(msgspec.structs.replace(member, wish=wish) if wish is not None else member)
        self._read[pool] = now
        return tuple(found)

    def forget(self, pool: Key) -> None:
        self._read.pop(pool, None)


def _kept_revision(store: Store, body: dict[str, Any]) -> dict[str, Any] | None:
    """The ControllerRevision of the revision that serves."""
    metadata, status = body["metadata"], body.get("status") or {}
    current = status.get("currentRevision")
    for kept in store.children(CONTROLLER_REVISIONS, (metadata["namespace"], metadata["name"])):
        if current and kept["metadata"].get("labels", {}).get(names.LABEL_REVISION) == current:
            return kept
    return None


def _member(body: dict[str, Any], kept: dict[str, Any] | None, spec: WarmPoolSpec) -> Member:
    metadata = msgspec.convert(body["metadata"], Metadata)
    try:
        reranker = parse_reranker(body)
    except msgspec.ValidationError as error:
        return Member(metadata, None, f"cannot be read: {error}", unreadable=True)
    revision = _revision(reranker, kept)
    if revision is None and not reranker.spec.suspend:
        return Member(metadata, None, "the revision that serves cannot be read", unreadable=True)
    served, problem = _served(reranker, revision, spec)
    scaling = reranker.status.scaling
    last = time_or_zero(scaling.last_request_time) if scaling is not None else 0.0
    rollout = reranker.status.rollout
    return Member(metadata, served, problem, last_request=last, borrowed=rollout.borrowed if rollout is not None else 0)


def _served(reranker: Reranker, revision: RevisionSpec | None, spec: WarmPoolSpec) -> tuple[Served | None, str | None]:
    if reranker.spec.suspend or revision is None:
        return None, None
    if problem := lacking(spec, revision):
        return None, problem
    namespace, name = reranker.metadata.namespace, reranker.metadata.name
    digest = revision_hash(revision)
    runtime = revision.runtime
    try:
        config = worker_config(namespace, name, digest, revision)
    except BadSpec as error:
        return None, str(error)
    config = msgspec.structs.replace(
        config,
        precision=spec.precision if runtime.precision == "auto" else runtime.precision,
        device=spec.device if runtime.device == "auto" else runtime.device,
    )
    return Served(digest, names.model_key(namespace, name, digest), revision.model, config), None


def _revision(reranker: Reranker, kept: dict[str, Any] | None) -> RevisionSpec | None:
    """The one that serves, as it was kept; else the one that the spec asks for."""
    target = revision_of(reranker.spec)
    if kept is None or reranker.status.current_revision == revision_hash(target):
        return target
    try:
        return revision_from_data(kept.get("data"))
    except msgspec.ValidationError:
        return None


def lacking(spec: WarmPoolSpec, revision: RevisionSpec) -> str | None:
    """What the pool's pods would have to have for ``revision``, and do not.

    CPU and memory are left out: a model that does not fit beside others is refused by the worker, which can tell.
    """
    if revision.model.uri.startswith("pvc://"):
        return "its model is on a volume (pvc://), which warm pods do not mount: use hf:// or file://"
    offered = _extended(spec.resources)
    for name, wanted in sorted(_extended(revision.runtime.resources).items()):
        have, need = amount(offered.get(name, "0")), amount(wanted)
        if have is None or need is None or have < need:
            there = f"offer {offered[name]}" if name in offered else "have none"
            return f"it asks for {name}: {wanted}, and the pods {there}: set spec.resources.limits of the pool"
    if revision.runtime.device == "cuda" and spec.device == "cpu":
        return "it asks for runtime.device cuda, and the pool's spec.device is cpu"
    return None


def _extended(resources: dict[str, dict[str, str | int]]) -> dict[str, str | int]:
    """Devices: whatever has a domain in its name. They are limits, or both alike."""
    both = (resources.get("requests") or {}) | (resources.get("limits") or {})
    return {name: value for name, value in both.items() if "/" in name and amount(value) != 0}
