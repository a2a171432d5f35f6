"""How long workers were ready, by Reranker, revision and whose they are, and what that costs: for metrics only.

Added up from what is observed, and only by who leads. Between two looks it counts what the earlier one saw; where they
are too far apart nobody knows, and nothing is counted. Nothing is decided by it.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Literal

from rerank_operator.controller import metrics
from rerank_operator.controller.kinds import PODS, Key
from rerank_operator.controller.observe import Observed
from rerank_operator.controller.store import Store
from rerank_operator.warm.observe import warm_pod

Source = Literal["own", "loan"]
SOURCES: tuple[Source, ...] = ("own", "loan")
Whose = tuple[str, Source]
"""Revision, and whether the workers are its own or warm pods that are lent to it."""


class Meter:
    """Seconds of ready workers since the look before. Pure: the time is passed in."""

    def __init__(self, longest_gap: float) -> None:
        """``longest_gap``: seconds between two looks beyond which what was seen says nothing about the time since."""
        self._longest_gap = longest_gap
        self._seen: dict[Key, tuple[float, Mapping[Whose, int]]] = {}

    def look(self, key: Key, ready: Mapping[Whose, int], now: float) -> dict[Whose, float]:
        """``ready``: workers now. ``now``: seconds of a clock that never goes back."""
        before = self._seen.get(key)
        self._seen[key] = (now, dict(ready))
        if before is None or not 0 < now - before[0] <= self._longest_gap:
            return {}
        return {whose: workers * (now - before[0]) for whose, workers in before[1].items()}

    def forget(self, key: Key) -> None:
        self._seen.pop(key, None)


class Usage:
    def __init__(self, store: Store, steady: Callable[[], float], longest_gap: float) -> None:
        self._store = store
        self._steady = steady
        self._meter = Meter(longest_gap)
        self._revisions: dict[Key, set[str]] = {}
        """Those that metrics tell of."""

    def look(self, observed: Observed) -> None:
        key = (observed.metadata.namespace, observed.metadata.name)
        ready = self._ready(key, observed)
        cost = observed.reranker.spec.cost if observed.reranker is not None else None
        kept = {state.revision for state in observed.revisions} | {revision for revision, _ in ready}
        shown = self._revisions.setdefault(key, set())
        for gone in shown - kept:
            self._remove(key, gone)
        for revision, source in ready:  # at 0 first: what counts is the increase from there
            metrics.REPLICA_SECONDS.labels(*key, revision, source)
            if cost is not None:
                metrics.COST.labels(*key, revision)
        shown |= {revision for revision, _ in ready}
        if cost is None:
            for revision in shown:
                metrics.COST.remove(*key, revision)
        for (revision, source), seconds in self._meter.look(key, ready, self._steady()).items():
            if revision not in shown:
                continue
            metrics.REPLICA_SECONDS.labels(*key, revision, source).inc(seconds)
            if cost is not None:
                metrics.COST.labels(*key, revision).inc(seconds * cost.replica_hour / 3600)

    def keep(self, keys: set[Key]) -> None:
        """Forget Rerankers that are gone."""
        for key in self._revisions.keys() - keys:
            self.forget(key)

    def forget(self, key: Key) -> None:
        self._meter.forget(key)
        for revision in list(self._revisions.get(key, ())):
            self._remove(key, revision)
        self._revisions.pop(key, None)

    def reset(self) -> None:
        """Another leads, or has led until now."""
        self.keep(set())

    def _remove(self, key: Key, revision: str) -> None:
        self._revisions[key].discard(revision)
        for source in SOURCES:
            metrics.REPLICA_SECONDS.remove(*key, revision, source)
        metrics.COST.remove(*key, revision)

    def _ready(self, key: Key, observed: Observed) -> Counter[Whose]:
        found: Counter[Whose] = Counter((pod.revision, "own") for pod in observed.pods if pod.ready and pod.counts)
        own = {pod.uid for pod in observed.pods}
        for body in self._store.children(PODS, key):
            if body["metadata"].get("uid", "") in own:
                continue
            lent = warm_pod(body, {})
            if lent.serves and lent.loan is not None:
                found[lent.loan.revision, "loan"] += 1
        return found
