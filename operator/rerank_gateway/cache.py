"""Scores that this gateway keeps, for Rerankers that ask for it (spec.requests.cache).

An entry is one pair of query and document, scored by one revision with the same options. No text is kept: entries are
found by a keyed hash whose random key lives and dies with the process, so a memory dump tells nobody what was asked.
Bounded in bytes for each Reranker and in all; the least recently used go first. Never blocks, never talks to anyone.
"""

import os
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import msgspec
from rerank_api import wire

from rerank_gateway.cluster.state import CachePolicy, Key, Route, RoutingTable
from rerank_gateway.protocol.common import RerankQuery
from rerank_gateway.routing import Load, split

# What one entry takes of the process's memory, its share of the tables around it with it: 218 to 268 bytes by how full
# the tables are (by hand, CPython 3.11: growth of /proc/self/statm for each of up to 1.5 million entries). A test holds
# what Python itself asks for to it.
ENTRY_BYTES = 288

_DIGEST_BYTES = 16
# When it was stored, the score, its tokens, and whether the document was cut, or scored in chunks.
_ENTRY = struct.Struct("<ddq??")


@dataclass(frozen=True, slots=True)
class DocumentScore:
    score: float
    tokens: int
    """Its part of the tokens that its request was counted with: exact in sum, by length within."""
    truncated: bool
    chunked: bool


class ScoreCache:
    """One Reranker's scores, by digest."""

    def __init__(self) -> None:
        self._entries: OrderedDict[bytes, bytes] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self._entries) * ENTRY_BYTES

    def get(self, digest: bytes, now: float, ttl: float) -> DocumentScore | None:
        entry = self._entries.get(digest)
        if entry is None:
            return None
        stored, score, tokens, truncated, chunked = _ENTRY.unpack(entry)
        if now - stored >= ttl:
            del self._entries[digest]
            return None
        self._entries.move_to_end(digest)
        return DocumentScore(score, tokens, truncated, chunked)

    def put(self, digest: bytes, scored: DocumentScore, now: float) -> None:
        self._entries[digest] = _ENTRY.pack(now, scored.score, scored.tokens, scored.truncated, scored.chunked)
        self._entries.move_to_end(digest)

    def trim(self, max_bytes: int) -> None:
        """Drops the least recently used until the rest fits."""
        while self._entries and self.size > max_bytes:
            self._entries.popitem(last=False)


@dataclass(frozen=True, slots=True)
class Pairs:
    """The pairs of one request, by the digests of their content; what revision scores them is no part of these."""

    digests: Sequence[bytes]
    weights: Sequence[int]
    """How long each pair is, in characters."""

    def of(self, indices: Sequence[int]) -> "Pairs":
        return Pairs([self.digests[index] for index in indices], [self.weights[index] for index in indices])


class Caches:
    """A cache for each Reranker that asks for one, ``max_bytes`` together."""

    def __init__(self, max_bytes: int, clock: Callable[[], float]) -> None:
        self._max_bytes = max_bytes
        self._clock = clock
        self._key = os.urandom(32)
        self._caches: dict[Key, ScoreCache] = {}

    def __iter__(self) -> Iterator[tuple[Key, ScoreCache]]:
        return iter(list(self._caches.items()))

    def pairs(self, route: Route, query: RerankQuery) -> Pairs | None:
        """None: nothing of this Reranker is kept."""
        if route.policy.cache is None or route.policy.suspended:
            return None
        common = blake2b(key=self._key, digest_size=_DIGEST_BYTES)
        options = msgspec.json.encode([query.raw_scores, query.max_tokens_per_document])
        for part in (*route.key, options, query.query):
            content = part.encode() if isinstance(part, str) else part
            # With its length before it, so that no two lists of parts read the same.
            common.update(len(content).to_bytes(8))
            common.update(content)
        digests = []
        for document in query.documents:
            digest = common.copy()
            digest.update(document.encode())
            digests.append(digest.digest())
        return Pairs(digests, [len(query.query) + len(document) + 1 for document in query.documents])

    def find(self, route: Route, pairs: Pairs, revision: str) -> list[DocumentScore | None]:
        """What ``revision`` is known to score, for each pair."""
        cache, policy = self._caches.get(route.key), route.policy.cache
        if cache is None or policy is None:
            return [None] * len(pairs.digests)
        now = self._clock()
        return [cache.get(self._of_revision(digest, revision), now, policy.ttl) for digest in pairs.digests]

    def keep(self, route: Route, pairs: Pairs, revision: str, scored: Sequence[DocumentScore]) -> None:
        """``route``: as it is now, which may be without a cache by now."""
        policy = route.policy.cache
        if policy is None:
            return
        cache = self._caches.setdefault(route.key, ScoreCache())
        now = self._clock()
        for digest, one in zip(pairs.digests, scored, strict=True):
            cache.put(self._of_revision(digest, revision), one, now)
        cache.trim(policy.max_bytes)
        self._trim_all()

    def update(self, table: RoutingTable) -> None:
        """Drops what is no longer asked for, at once."""
        for key, cache in list(self._caches.items()):
            policy = _policy(table, key)
            if policy is None:
                del self._caches[key]
            else:
                cache.trim(policy.max_bytes)

    def _of_revision(self, digest: bytes, revision: str) -> bytes:
        return blake2b(digest + revision.encode(), key=self._key, digest_size=_DIGEST_BYTES).digest()

    def _trim_all(self) -> None:
        """The largest gives way, so that a busy Reranker cannot empty the caches of small ones."""
        while (excess := sum(cache.size for cache in self._caches.values()) - self._max_bytes) > 0:
            largest = max(self._caches.values(), key=len)
            largest.trim(largest.size - excess)


def _policy(table: RoutingTable, key: Key) -> CachePolicy | None:
    route = table.routes.get(key)
    return route.policy.cache if route is not None else None


def expected_revision(route: Route, loads: Mapping[str, Load], draw: float, now: float) -> str | None:
    """The revision that a request with this draw would be scored by; None when that cannot be told.

    While there is no worker it is the one that would be started: not known while another revision is wanted than the
    one that served last.
    """
    pool = split(route, loads, now).pick(draw)
    if pool is not None and pool.revision is not None:
        return pool.revision
    shares = [(revision, percent) for revision, percent in route.policy.traffic if percent > 0]
    if shares:
        # Their workers are gone. Known scores are better than those of a revision that has no traffic.
        left = draw * sum(percent for _, percent in shares)
        for revision, percent in shares:
            left -= percent
            if left < 0:
                return revision
        return shares[-1][0]
    revisions = {endpoint.revision for endpoint in route.endpoints}
    if not revisions:
        return route.policy.settled_revision
    return revisions.pop() if len(revisions) == 1 else None


def by_document(response: wire.ScoreResponse, weights: Sequence[int]) -> list[DocumentScore]:
    """The worker's answer document by document, its tokens shared out by ``weights``."""
    truncated, chunked = set(response.truncated), set(response.chunked)
    total = sum(weights)
    scored, reached, given = [], 0, 0
    for index, (score, weight) in enumerate(zip(response.scores, weights, strict=True)):
        reached += weight
        upto = response.tokens * reached // total
        scored.append(DocumentScore(score, upto - given, index in truncated, index in chunked))
        given = upto
    return scored


def together(scored: Sequence[DocumentScore]) -> wire.ScoreResponse:
    """As one worker would have answered for all of them."""
    return wire.ScoreResponse(
        scores=[one.score for one in scored],
        tokens=sum(one.tokens for one in scored),
        truncated=[index for index, one in enumerate(scored) if one.truncated],
        chunked=[index for index, one in enumerate(scored) if one.chunked],
    )
