"""The newest version of each object, as the watches, the periodic lists and our own writes have told it.

Holds values only and decides nothing. Every change of an object that is learned elsewhere than from a watch must also
arrive through the watch; what stays unconfirmed over several lists shows that the watch is dead (see ``health``).
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from rerank_operator.controller.kinds import PODS, WATCHED, Key, Kind, key_of

ObjectName = tuple[str, str]
"""Namespace and name of any object."""


class Store:
    def __init__(self) -> None:
        self._objects: dict[str, dict[ObjectName, dict[str, Any]]] = {kind.name: {} for kind in WATCHED}
        self._children: dict[str, dict[Key, set[ObjectName]]] = {kind.name: defaultdict(set) for kind in WATCHED}
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
        return set(self._objects[WATCHED[0].name])

    def get(self, kind: Kind, namespace: str, name: str) -> dict[str, Any] | None:
        return self._objects[kind.name].get((namespace, name))

    def children(self, kind: Kind, key: Key) -> list[dict[str, Any]]:
        """Objects of ``kind`` that bear the label of the Reranker ``key``, by name."""
        return [self._objects[kind.name][name] for name in sorted(self._children[kind.name].get(key, ()))]

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
        key = key_of(kind, body)
        if old is not None and (old_key := key_of(kind, old)) and old_key != key:
            self._children[kind.name][old_key].discard(name)
        body["metadata"].pop("managedFields", None)
        if kind is PODS:
            body.pop("spec", None)  # there are many, and nothing reads it
        self._objects[kind.name][name] = body
        if key:
            self._children[kind.name][key].add(name)
        return key

    def _remove(self, kind: Kind, name: ObjectName, version: int, body: dict[str, Any]) -> Key | None:
        old = self._objects[kind.name].get(name)
        if old is not None and _version(old) > version:
            return None
        self._removed[kind.name][name] = version
        if old is None:
            return None
        del self._objects[kind.name][name]
        key = key_of(kind, old) or key_of(kind, body)
        if key:
            own = self._children[kind.name][key]
            own.discard(name)
            if not own:
                del self._children[kind.name][key]
        return key


def _name(body: dict[str, Any]) -> ObjectName:
    return body["metadata"]["namespace"], body["metadata"]["name"]


def _version(body: dict[str, Any]) -> int:
    """Resource versions of one kind are comparable numbers (KEP-5504)."""
    return int(body["metadata"]["resourceVersion"])
