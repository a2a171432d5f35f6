"""Which Reranker a request means, which revision serves it and which worker gets it.

Pure: decided from the routing table, the load of each endpoint, the time and the request's own draw.
"""

import hashlib
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from rerank_gateway.cluster.state import Endpoint, Route, RoutingTable
from rerank_gateway.errors import ApiError

RELEASE_SECONDS = 0.25
"""Work that a worker is given beyond what it needs at the moment: the rest waits here, where it is seen, can go to
another worker and can still be passed by what is more urgent. It must hold a batch that is being scored and one that is
ready behind it. A GPU's batch takes tens of milliseconds: at its measured budget of tokens, a larger one would not be
faster (rerank_worker.engine.capacity). The way between the two, a millisecond or so, is far less than a batch."""

RELEASE_TOKENS = 4_096
"""At least so much, whatever the capacity: two batches of a CPU, which take hundreds of milliseconds each."""

URGENT_RELEASE = 2.0
"""Requests of high priority find so many times the room: the worker scores them before all others that it holds, so
they need not wait here for one of those to end."""


@dataclass(slots=True)
class Load:
    """What this gateway has outstanding at one endpoint, and how that endpoint has behaved."""

    requests: int = 0
    tokens: int = 0
    """Estimated; see waiting.Ticket."""
    held: int = 0
    """What of them counts against the limit; see Limits.held."""
    last_used: float = 0.0
    failures: int = 0
    """In a row."""
    retry_at: float = 0.0
    """Until then the endpoint gets nothing."""
    on_trial: bool = False
    """It failed last time, so it gets one request at a time until one succeeds."""
    capacity: float | None = None
    """Tokens/s that it said last that it can score; None: it has not said."""

    def paused(self, now: float) -> bool:
        """It gets nothing now."""
        return self.retry_at > now

    def broken(self, now: float) -> bool:
        """It gets nothing now, for it did not answer as a worker does; one that is busy will soon."""
        return self.on_trial and self.paused(now)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much may be outstanding at one endpoint at most, whatever its capacity, and where that is not known.

    Enough to keep the next batches filled while one is being scored. ``tokens``: as Limits.held counts them.
    """

    requests: int = 64
    tokens: int = 65_536

    def tokens_at(self, capacity: float | None, urgent: bool = False) -> int:
        """Tokens held from which on an endpoint of ``capacity`` tokens/s gets no more."""
        if capacity is None:
            return self.tokens
        released = max(capacity * RELEASE_SECONDS, RELEASE_TOKENS)
        return int(min(released * URGENT_RELEASE if urgent else released, self.tokens))

    def held(self, tokens: int, capacity: float | None) -> int:
        """What a request of ``tokens`` counts for at an endpoint of that capacity: half of what it may hold at most.

        So there is one ready while another is being scored, however large they are; and one that takes many seconds
        leaves room for small ones, which the worker scores between its batches (rerank_worker.batching, WHOLE).
        """
        return min(tokens, max(1, self.tokens_at(capacity) // 2))


@dataclass(frozen=True, slots=True)
class Pool:
    """Endpoints that share one share of the traffic."""

    revision: str | None
    """None: the revisions are not told apart."""
    endpoints: Sequence[Endpoint]
    """Those that may get something now: none while all are busy."""


@dataclass(frozen=True, slots=True)
class Pools:
    """The endpoints that are not broken, split as the traffic is."""

    pools: Sequence[Pool]
    edges: Sequence[float]
    """Cumulative share of the traffic before the end of each pool but the last."""

    @property
    def shape(self) -> Sequence[tuple[str | None, float]]:
        """Equal where every draw belongs to the same revision; empty where all requests may use all endpoints."""
        if len(self.pools) < 2:
            return []
        return [(pool.revision, edge) for pool, edge in zip(self.pools, [*self.edges, 1.0], strict=True)]

    def pick(self, draw: float) -> Pool | None:
        """The pool that a request with this draw (0 <= draw < 1) belongs to; None when there is none."""
        return self.pools[bisect_right(self.edges, draw)] if self.pools else None


def draw_of(route: Route, key: str) -> float:
    """The draw, 0 <= draw < 1, of all requests to ``route`` with this key: evenly spread over keys, the same in every
    gateway. As a revision's share grows it keeps the draws that it had; a key's luck is another one at each Reranker.
    """
    digest = hashlib.blake2b(f"{route.label}\n{key}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest) >> 11) / 2**53  # as many bits as a float holds: never rounded up to 1


def split(route: Route, loads: Mapping[str, Load], now: float) -> Pools:
    """Endpoints by revision and traffic percent.

    A revision whose endpoints are all broken leaves its share to the others; when no revision with traffic has one that
    is not, all endpoints serve, for an answer by another revision is better than none (what is set aside is none of
    them). One whose endpoints are busy keeps its share, and its requests wait: a canary under load would else be
    measured by what is left of it.
    """
    usable = [endpoint for endpoint in route.endpoints if not loads.get(endpoint.uid, _IDLE).broken(now)]
    by_revision: defaultdict[str, list[Endpoint]] = defaultdict(list)
    for endpoint in [endpoint for endpoint in usable if endpoint.ready] or usable:
        of_revision = by_revision[endpoint.revision]
        if not loads.get(endpoint.uid, _IDLE).paused(now):
            of_revision.append(endpoint)
    if not by_revision:
        return Pools((), ())
    shares = [
        (revision, percent) for revision, percent in route.policy.traffic if percent > 0 and revision in by_revision
    ]
    total = sum(percent for _, percent in shares)
    if not total:
        return Pools([Pool(None, [endpoint for group in by_revision.values() for endpoint in group])], ())
    edges: list[float] = []
    reached = 0
    for _, percent in shares[:-1]:
        reached += percent
        edges.append(reached / total)
    return Pools([Pool(revision, by_revision[revision]) for revision, _ in shares], edges)


def least_outstanding(
    pool: Pool,
    loads: Mapping[str, Load],
    limits: Limits,
    avoid: Collection[str] = (),
    *,
    typical_capacity: float | None = None,
    urgent: bool = False,
) -> Endpoint | None:
    """The endpoint with the least outstanding work that may take more; None when all are full.

    Endpoints in ``avoid`` (this request already failed there) come last; ties go to the one unused for longest.
    ``typical_capacity``: taken for that of an endpoint that has not told its own; ``urgent``: more room counts, see
    URGENT_RELEASE.
    """
    best: Endpoint | None = None
    best_rank: tuple[bool, int, int, float] | None = None
    for endpoint in pool.endpoints:
        load = loads.get(endpoint.uid) or _IDLE
        if load.requests and (
            load.on_trial
            or load.requests >= limits.requests
            or load.held >= limits.tokens_at(load.capacity or typical_capacity, urgent)
        ):
            continue
        rank = (endpoint.uid in avoid, load.tokens, load.requests, load.last_used)
        if best_rank is None or rank < best_rank:
            best, best_rank = endpoint, rank
    return best


_IDLE = Load()


def find_route(table: RoutingTable, path: tuple[str, str] | None, model: str | None) -> Route:
    """The Reranker that the path names, else ``model`` ("name" or "namespace/name"), else the only one there is.

    Raises ApiError when there is none or more than one.
    """
    if path is not None:
        return _existing(table, path, "/".join(path))
    if model:
        namespace, slash, name = model.rpartition("/")
        if slash:
            return _existing(table, (namespace, name), model)
        keys = table.keys_by_name.get(model, ())
        if len(keys) > 1:
            raise ApiError(
                400,
                "ambiguous_model",
                f"model {model!r} exists in {len(keys)} namespaces: write it as namespace/{model}",
                field="model",
            )
        return _existing(table, keys[0] if keys else ("", model), model)
    if len(table.routes) == 1:
        return next(iter(table.routes.values()))
    if not table.routes:
        raise no_reranker()
    raise ApiError(
        400,
        "model_required",
        "model is missing and there is more than one Reranker: name it, as name or namespace/name, or put it in the "
        "path: /namespace/name/v2/rerank",
        field="model",
    )


def no_reranker() -> ApiError:
    return ApiError(404, "model_not_found", "there is no Reranker yet: apply one", field="model")


def _existing(table: RoutingTable, key: tuple[str, str], asked: str) -> Route:
    route = table.routes.get(key)
    if route is None:
        shown = asked if len(asked) <= 100 else f"{asked[:100]}..."
        raise ApiError(
            404,
            "model_not_found",
            f"there is no Reranker {shown!r}: GET /v1/models lists those that are served",
            field="model",
        )
    return route
