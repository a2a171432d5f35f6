"""What this gateway has seen of each revision's answers, told at ANSWERS_PATH: types in rerank_api.answers.

Whether an attempt counts is settled before it begins, so that what is left out shifts neither arm's failures. Figures,
and ids of mirrored requests: never a text or a client's name. Bounded for each revision; those that are gone are
forgotten.
"""

import math
from array import array
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec
from aiohttp import web
from rerank_api.answers import (
    ANSWERS_PATH,
    KEPT,
    KEPT_MIRRORED,
    Answers,
    Mirrored,
    MirroredAnswers,
    RevisionAnswers,
)

from rerank_gateway.cluster.state import Endpoint, Key, RoutingTable
from rerank_gateway.metrics import FORGET_AFTER
from rerank_gateway.protocol.common import invalid

WARM_AFTER = 3
"""Attempts that a worker must have ended: those that began before it had are left out, whatever came of them. It may
have had to load, compile or fill caches for them. A worker that crashes at each and comes back is warm all the same."""

LOOK_EVERY = 60.0
"""Seconds between looks for what is gone."""


class Ring:
    """The latest ``size`` figures, numbered from 0 as they come; single precision."""

    __slots__ = ("_kept", "_size", "next")

    def __init__(self, size: int) -> None:
        self.next = 0
        """Place of the figure that comes next."""
        self._size = size
        self._kept = array("f")

    def add(self, figure: float) -> None:
        if self.next < self._size:
            self._kept.append(figure)
        else:
            self._kept[self.next % self._size] = figure
        self.next += 1

    def since(self, place: int) -> "array[float]":
        """From that place on, as far as they are kept, oldest first."""
        first = max(place, self.next - len(self._kept))
        if first >= self.next:
            return array("f")
        start, end = first % self._size, (self.next - 1) % self._size + 1
        return self._kept[start:end] if start < end else self._kept[start:] + self._kept[:end]


_K = TypeVar("_K", "_Worker", "_Revision")


@dataclass(slots=True)
class _Worker:
    ended: int = 0
    """Attempts, up to WARM_AFTER."""
    warm_since: float = math.inf
    gone_since: float | None = None


@dataclass(slots=True)
class _Revision:
    attempts: Ring = field(default_factory=lambda: Ring(KEPT))
    """Seconds; with a minus sign where it failed."""
    mirrored: deque[Mirrored] = field(default_factory=lambda: deque(maxlen=KEPT_MIRRORED))
    mirrored_next: int = 0
    workers: dict[str, _Worker] = field(default_factory=dict)
    """By their Pods' uids. Kept while a container starts anew, unlike the queue's loads."""
    gone_since: float | None = None


class AnswerLog:
    """``gateway``: random id of this process."""

    def __init__(self, gateway: str, clock: Callable[[], float]) -> None:
        self._gateway = gateway
        self._clock = clock
        self._rerankers: dict[Key, dict[str, _Revision]] = {}
        self._look_at = -math.inf

    def attempted(self, endpoint: Endpoint, began: float, *, failed: bool) -> None:
        """A worker has answered a user's request or failed on it just now; ``began``: when it was first waited for."""
        revision = self._of((endpoint.namespace, endpoint.reranker), endpoint.revision)
        worker = revision.workers.get(endpoint.uid)
        if worker is None:
            worker = revision.workers[endpoint.uid] = _Worker()
        now = self._clock()
        if worker.ended < WARM_AFTER:
            worker.ended += 1
            if worker.ended == WARM_AFTER:
                worker.warm_since = now
        elif began >= worker.warm_since:
            revision.attempts.add(-(now - began) if failed else now - began)

    def mirrored(self, endpoint: Endpoint, compared: Mirrored) -> None:
        revision = self._of((endpoint.namespace, endpoint.reranker), endpoint.revision)
        revision.mirrored.append(compared)
        revision.mirrored_next += 1

    def update(self, table: RoutingTable) -> None:
        """For each new routing table: forgets what has been gone for FORGET_AFTER."""
        now = self._clock()
        if now < self._look_at:
            return
        self._look_at = now + LOOK_EVERY
        for key, revisions in list(self._rerankers.items()):
            route = table.routes.get(key)
            names = route.revisions if route is not None else set()
            uids = {endpoint.uid for endpoint in (*route.endpoints, *route.set_aside)} if route is not None else set()
            _forget(revisions, names, now)
            for revision in revisions.values():
                _forget(revision.workers, uids, now)
            if not revisions:
                del self._rerankers[key]

    def tell(self, key: Key, after: dict[str, int], mirrored_after: dict[str, int]) -> Answers:
        """What came from those places on, by revision; all that is kept where no place is given."""
        revisions = self._rerankers.get(key, {})
        return Answers(
            self._gateway,
            [_told(name, revision.attempts, after.get(name, 0)) for name, revision in revisions.items()],
            [
                _told_mirrored(name, revision, mirrored_after.get(name, 0))
                for name, revision in revisions.items()
                if revision.mirrored_next
            ],
        )

    def _of(self, key: Key, name: str) -> _Revision:
        revisions = self._rerankers.get(key)
        if revisions is None:
            revisions = self._rerankers[key] = {}
        revision = revisions.get(name)
        if revision is None:
            revision = revisions[name] = _Revision()
        return revision


def _forget(kept: dict[str, _K], present: set[str], now: float) -> None:
    for name, one in list(kept.items()):
        if name in present:
            one.gone_since = None
        elif one.gone_since is None:
            one.gone_since = now
        elif now - one.gone_since > FORGET_AFTER:
            del kept[name]


def _told(name: str, attempts: Ring, place: int) -> RevisionAnswers:
    figures = attempts.since(place)
    return RevisionAnswers(
        name,
        attempts.next,
        [round(abs(figure), 6) for figure in figures],
        # A failure within no measurable time is still -0.0.
        [index for index, figure in enumerate(figures) if math.copysign(1.0, figure) < 0],
    )


def _told_mirrored(name: str, revision: _Revision, place: int) -> MirroredAnswers:
    count = min(max(revision.mirrored_next - place, 0), len(revision.mirrored))
    answers = list(revision.mirrored)[len(revision.mirrored) - count :]
    return MirroredAnswers(name, revision.mirrored_next, answers)


def add_answers(app: web.Application, log: AnswerLog) -> None:
    async def tell(request: web.Request) -> web.Response:
        query = request.query
        key = (_needed(request, "namespace"), _needed(request, "name"))
        after, mirrored_after = (_places(name, query.getall(name, ())) for name in ("after", "mirrored-after"))
        body = msgspec.json.encode(log.tell(key, after, mirrored_after))
        return web.Response(body=body, content_type="application/json", headers={"Cache-Control": "no-store"})

    app.router.add_get(ANSWERS_PATH, tell, allow_head=False)


def _needed(request: web.Request, name: str) -> str:
    value = request.query.get(name)
    if not value:
        raise invalid(name, "is missing: say which Reranker, as namespace=NAMESPACE&name=NAME")
    return value


def _places(name: str, given: Iterable[str]) -> dict[str, int]:
    places: dict[str, int] = {}
    for text in given:
        revision, _, place = text.rpartition(":")
        if not (revision and place.isascii() and place.isdigit() and len(place) < 16):
            raise invalid(name, "expected REVISION:PLACE, the place a whole number as `next` told it")
        places[revision] = int(place)
    return places
