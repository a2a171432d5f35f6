"""The newest version of each object, as the watches, the periodic lists and our own writes have told it.

Holds values only and decides nothing. Every change of an object that is learned elsewhere than from a watch must also
arrive through the watch; what stays unconfirmed over several lists shows that the watch is dead (see ``health``).
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from rerank_operator.controller.kinds import PODS, RERANKERS, WARM_POOLS, WATCHED, Key, Kind, key_of, pool_of

ObjectName = tuple[str, str]
"""Namespace and name of any object."""


class _Index:
    """The objects of each kind that concern one key."""

    def __init__(self, key_of: Callable[[Kind, dict[str, Any]], Key | None]) -> None:
        self._key_of = key_of
        self._names: dict[tuple[str, Key], set[ObjectName]] = defaultdict(set)

    def replace(self, kind: Kind, old: dict[str, Any] | None, new: dict[str, Any] | None) -> set[Key]:
        """Returns the keys that the change concerns."""
        keys = set()
        if old is not None and (key := self._key_of(kind, old)):
            keys.add(key)
            own = self._names[kind.name, key]
            own.discard(_name(old))
            if not own:
                del self._names[kind.name, key]
        if new is not None and (key := self._key_of(kind, new)):
            keys.add(key)
            self._names[kind.name, key].add(_name(new))
        return keys

    def names(self, kind: Kind, key: Key) -> list[ObjectName]:
        return sorted(self._names.get((kind.name, key), ()))


def _nobody(_: Key) -> None:
    pass


class Store:
    def __init__(self, pool_changed: Callable[[Key], None] = _nobody) -> None:
        """``pool_changed`` is told every WarmPool that a change concerns, also of a change that we wrote ourselves."""
        self._pool_changed = pool_changed
        self._objects: dict[str, dict[ObjectName, dict[str, Any]]] = {kind.name: {} for kind in WATCHED}
        self._children = _Index(key_of)
        self._members = _Index(pool_of)
        self._unconfirmed: dict[tuple[str, ObjectName], tuple[int, int]] = {}
        # Objects removed since the last list began: its answer may still hold them, and must not bring them back.
        self._removed: dict[str, dict[ObjectName, int]] = {kind.name: {} for kind in WATCHED}

    def seen(self, kind: Kind, deleted: bool, body: dict[str, Any]) -> Key | None:
        """An event of a watch. Returns the Reranker it concerns, or None when it brings nothing new."""
        name, version = _name(body), _version(body)
        waiting = self._unconfirmed.get((kind.name, name))
        if waiting and version >= waiting[0]:
            del self._unconfirmed[kind.name, name]
        return self._remove(kind, name, version, body) if deleted else self._put(kind, body)

    def learned(self, kind: Kind, body: dict[str, Any]) -> Key | None:
        """An object as the answer to a write gave it."""
        key = self._put(kind, body)
        if key:
            self._unconfirmed[kind.name, _name(body)] = (_version(body), 0)
        return key

    def listed(
        self, kind: Kind, namespace: str | None, bodies: Iterable[dict[str, Any]], version: str, known: set[ObjectName]
    ) -> set[Key]:
        """A whole list, taken at ``version``; ``known``: what ``before_list`` gave before it was asked for.

        Returns the Rerankers whose objects it corrected: what a watch has missed.
        """
        changed: set[Key] = set()
        present = set()
        for body in bodies:
            present.add(_name(body))
            if key := self.learned(kind, body):
                changed.add(key)
        for name in known - present:
            body = self._objects[kind.name].get(name)
            in_scope = namespace is None or name[0] == namespace
            if body is not None and in_scope and _version(body) <= int(version):
                changed.update(filter(None, [self._remove(kind, name, int(version), body)]))
        for place, (wanted, lists) in list(self._unconfirmed.items()):
            if place[0] != kind.name or (namespace is not None and place[1][0] != namespace):
                continue
            if place[1] not in present:
                del self._unconfirmed[place]
            else:
                self._unconfirmed[place] = (wanted, lists + 1)
        return changed

    def before_list(self, kind: Kind) -> set[ObjectName]:
        self._removed[kind.name].clear()
        return set(self._objects[kind.name])

    def keys(self) -> set[Key]:
        """Every Reranker there is."""
        return set(self._objects[RERANKERS.name])

    def pools(self) -> set[Key]:
        """Every WarmPool there is."""
        return set(self._objects[WARM_POOLS.name])

    def get(self, kind: Kind, namespace: str, name: str) -> dict[str, Any] | None:
        return self._objects[kind.name].get((namespace, name))

    def children(self, kind: Kind, key: Key) -> list[dict[str, Any]]:
        """Objects of ``kind`` that bear the label of the Reranker ``key``, warm pods lent to it too, by name."""
        return [self._objects[kind.name][name] for name in self._children.names(kind, key)]

    def members(self, kind: Kind, pool: Key) -> list[dict[str, Any]]:
        """Objects of ``kind`` that are part of the WarmPool ``pool``, or Rerankers that name it, by name."""
        return [self._objects[kind.name][name] for name in self._members.names(kind, pool)]

    def lag(self) -> tuple[int, str]:
        """Most lists that an object has gone through without its watch reporting it, and the kind of that object."""
        return max(((lists, kind) for (kind, _), (_, lists) in self._unconfirmed.items()), default=(0, ""))

    def _put(self, kind: Kind, body: dict[str, Any]) -> Key | None:
        name = _name(body)
        old = self._objects[kind.name].get(name)
        if old is not None and _version(old) >= _version(body):
            return None
        if self._removed[kind.name].get(name, -1) >= _version(body):
            return None
        body["metadata"].pop("managedFields", None)
        if kind is PODS:
            body.pop("spec", None)  # there are many, and nothing reads it
        self._objects[kind.name][name] = body
        return self._changed(kind, old, body)

    def _remove(self, kind: Kind, name: ObjectName, version: int, body: dict[str, Any]) -> Key | None:
        old = self._objects[kind.name].get(name)
        if old is not None and _version(old) > version:
            return None
        self._removed[kind.name][name] = version
        if old is None:
            return None
        del self._objects[kind.name][name]
        return self._changed(kind, old, None) or key_of(kind, body)

    def _changed(self, kind: Kind, old: dict[str, Any] | None, new: dict[str, Any] | None) -> Key | None:
        """The Reranker that is concerned now; of a warm pod that was given back, the one that had it."""
        for pool in sorted(self._members.replace(kind, old, new)):
            self._pool_changed(pool)
        keys = self._children.replace(kind, old, new)
        now = key_of(kind, new) if new is not None else None
        return now or next(iter(keys), None)


def _name(body: dict[str, Any]) -> ObjectName:
    return body["metadata"]["namespace"], body["metadata"]["name"]


def _version(body: dict[str, Any]) -> int:
    """Resource versions of one kind are comparable numbers (KEP-5504)."""
    return int(body["metadata"]["resourceVersion"])
