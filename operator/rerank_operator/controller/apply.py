"""Carries out a plan: the thin edge that writes to the API server. Decides nothing but what an error means.

Answers go into the store at once, so that the next plan does not wait for the watch to bring back what we wrote.
"""

import logging
import time
from typing import Any

from rerank_api import names
from rerank_api.reranker import Metadata

from rerank_operator.controller import events, metrics
from rerank_operator.controller.actions import Action, Apply, Delete, Mark, Scale
from rerank_operator.controller.api import ApiError, KubeApi, Unreachable
from rerank_operator.controller.conditions import Problem
from rerank_operator.controller.events import Allowance, Event
from rerank_operator.controller.kinds import DEPLOYMENTS, EVENTS, PODS, RERANKERS, Kind
from rerank_operator.controller.store import Store

log = logging.getLogger(__name__)


class NotYet(Exception):
    """Something has to go first (a deleted namesake's children); the queue tries again."""


class Applier:
    """``owner``: the kind whose children and status are written."""

    def __init__(self, api: KubeApi, store: Store, instance: str, owner: Kind = RERANKERS) -> None:
        self._api = api
        self._store = store
        self._instance = instance
        self._owner = owner
        self.allowance = Allowance()

    async def carry_out(self, actions: tuple[Action, ...], regarding: Metadata) -> Problem | None:
        """All of ``actions`` that can be done. Returns what the API server refused for good, in its own words.

        What may pass (a conflict, no answer, lost leadership) is raised instead, for the queue to try again.
        """
        problem: Problem | None = None
        for action in actions:
            try:
                await self._do(action, regarding)
            except ApiError as error:
                if error.passing:
                    raise
                problem = problem or Problem("ApplyFailed", f"{_what(action)} was refused: {error.message}")
        return problem

    async def write_status(self, status: dict[str, Any]) -> None:
        self._store.learned(self._owner, await self._api.apply(self._owner, status, "status"))
        metrics.WRITES.labels(self._owner.name, "status").inc()

    async def tell(self, event: Event, regarding: Metadata) -> None:
        """Events help people; that one cannot be written must not hold up anything."""
        level = logging.WARNING if event.type == "Warning" else logging.INFO
        log.log(level, "%s: %s", event.reason, event.note, extra=self._subject(regarding))
        now = time.time()
        if not self.allowance.take(regarding.uid, event.type, now):
            metrics.EVENTS_DROPPED.labels("too many").inc()
            return
        try:
            manifest = events.manifest(event, regarding, self._instance, now, self._owner.name)
            await self._api.create_event(regarding.namespace, manifest, EVENTS)
        except (ApiError, Unreachable) as error:
            metrics.EVENTS_DROPPED.labels("refused").inc()
            log.warning("event %s could not be written: %s", event.reason, error, extra=self._subject(regarding))

    def _subject(self, regarding: Metadata) -> dict[str, str]:
        what = "reranker" if self._owner is RERANKERS else "pool"
        return {"namespace": regarding.namespace, what: regarding.name}

    async def _do(self, action: Action, regarding: Metadata) -> None:
        match action:
            case Apply():
                changed = await self._apply(action, regarding)
            case Scale():
                changed = await self._scale(action)
            case Mark():
                changed = await self._mark(action)
            case Delete():
                changed = await self._delete(action)
        if changed and isinstance(action, Apply | Scale) and action.event is not None:
            await self.tell(action.event, regarding)

    async def _apply(self, action: Apply, regarding: Metadata) -> bool:
        if action.found_version is None:
            await self._check_free(action, regarding)
        answer = await self._api.apply(action.kind, action.manifest)
        changed = answer["metadata"]["resourceVersion"] != action.found_version
        self._store.learned(action.kind, answer)
        if changed:
            metrics.WRITES.labels(action.kind.name, action.why).inc()
        if changed and action.why == "drift":
            metrics.DRIFT.labels(action.kind.name).inc()
        return changed

    async def _check_free(self, action: Apply, regarding: Metadata) -> None:
        """Server-side apply would take over an object of the same name, whoever made it."""
        metadata = action.manifest["metadata"]
        try:
            found = await self._api.get(action.kind, metadata["namespace"], metadata["name"])
        except ApiError as error:
            if error.status == 404:
                return
            raise
        owners = found["metadata"].get("ownerReferences", [])
        if any(owner["uid"] == regarding.uid for owner in owners):
            return
        what = f"{action.kind.name} {metadata['name']}"
        if any(owner["kind"] == self._owner.name and owner["name"] == regarding.name for owner in owners):
            raise NotYet(f"{what} of the deleted {self._owner.name} of this name is not gone yet")
        label = names.LABEL_RERANKER if self._owner is RERANKERS else names.LABEL_WARM_POOL
        if not owners and found["metadata"].get("labels", {}).get(label) == regarding.name:
            return  # left behind by a deletion with --cascade=orphan: ours again
        words = f"{what} exists and was not made for this {self._owner.name}: delete or rename it"
        raise ApiError(422, "Conflict", words)

    async def _scale(self, action: Scale) -> bool:
        patch = {
            "metadata": {
                "uid": action.uid,
                "resourceVersion": action.resource_version,
                "annotations": {
                    names.ANNOTATION_LENT_TO: action.lent_to,
                    names.ANNOTATION_FITS: None if action.fits is None else str(action.fits),
                },
            },
            "spec": {"replicas": action.replicas},
        }
        return await self._merge(DEPLOYMENTS, action, patch, "scale")

    async def _mark(self, action: Mark) -> bool:
        cost = None if action.cost is None else str(action.cost)
        patch = {"metadata": {"uid": action.uid, "annotations": {names.ANNOTATION_DELETION_COST: cost}}}
        return await self._merge(PODS, action, patch, "mark")

    async def _merge(self, kind: Kind, action: Scale | Mark, patch: dict[str, Any], why: str) -> bool:
        """False: it has gone."""
        try:
            answer = await self._api.merge(kind, action.namespace, action.name, patch)
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        self._store.learned(kind, answer)
        metrics.WRITES.labels(kind.name, why).inc()
        return True

    async def _delete(self, action: Delete) -> bool:
        try:
            await self._api.delete(action.kind, action.namespace, action.name, action.uid, action.resource_version)
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        metrics.WRITES.labels(action.kind.name, "delete").inc()
        return True


def _what(action: Action) -> str:
    match action:
        case Apply():
            return f"{action.kind.name} {action.manifest['metadata']['name']}"
        case Scale():
            return f"{DEPLOYMENTS.name} {action.name}"
        case Mark():
            return f"{PODS.name} {action.name}"
        case Delete():
            return f"deletion of {action.kind.name} {action.name}"
