"""How pairs become one packed batch: order, token rows, the groups that attention works on. Pure index arithmetic.

Every token of every pair is in exactly one group; a group never mixes tokens of two pairs in one row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

from rerank_worker.engine import Pair

Ints = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Packed:
    """``order[i]``: which of the given pairs is the i-th here. ``offsets``: (pairs + 1,), where each begins in the
    packed tokens. ``ids`` and ``types``: (tokens,). ``positions``: (tokens,), counted from 0 within each pair."""

    order: npt.NDArray[np.int64]
    offsets: Ints
    ids: Ints
    types: Ints
    positions: Ints

    @property
    def lengths(self) -> Ints:
        return np.diff(self.offsets)


def pack(pairs: Sequence[Pair]) -> Packed:
    """The pairs by length, one after the other: neighbours are then alike and share a group."""
    lengths = np.fromiter(map(len, pairs), dtype=np.int32, count=len(pairs))
    order = np.argsort(lengths, kind="stable")
    lengths = lengths[order]
    offsets = np.zeros(len(pairs) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    total = int(offsets[-1])
    ids = np.fromiter(chain.from_iterable(pairs[i].ids for i in order), dtype=np.int32, count=total)
    types = np.fromiter(chain.from_iterable(pairs[i].types for i in order), dtype=np.int32, count=total)
    positions = np.arange(total, dtype=np.int32) - np.repeat(offsets[:-1], lengths)
    return Packed(order, offsets, ids, types, positions)


def skipping(packed: Packed, token: int) -> Ints:
    """(tokens,): positions counted from 0 over the tokens other than ``token``; that one has -1 (RoBERTa's padding, in
    create_position_ids_from_input_ids of transformers)."""
    counts = packed.ids != token
    if counts.all():
        return packed.positions
    running = np.cumsum(counts, dtype=np.int32)
    # A dummy pair without tokens begins after the last token.
    starts = np.minimum(packed.offsets[:-1], len(counts) - 1)
    before = running[starts] - counts[starts]
    counted = running - np.repeat(before, packed.lengths) - 1
    # Never beyond the plain position, which is 0 in the dummies of graphs.
    return np.where(counts, np.minimum(counted, packed.positions), -1).astype(np.int32)


@dataclass(frozen=True, slots=True)
class Group:
    """Neighbouring pairs whose attention is computed together.

    ``first``: number of the first pair; ``begin``, ``end``: tokens; ``width``: of the longest. ``lengths``: (pairs,).
    """

    first: int
    begin: int
    end: int
    width: int
    lengths: Ints

    @property
    def count(self) -> int:
        return len(self.lengths)

    @property
    def even(self) -> bool:
        """Whether all pairs are of one length, so that nothing is padded."""
        return self.end - self.begin == self.count * self.width


def groups(offsets: Ints, cells: int, waste: float, longest: int) -> list[Group]:
    """Groups of neighbours with ``count * width**2`` at most ``cells``, and at most ``waste`` of their tokens padding.

    A pair longer than ``longest`` is alone, as is one that no other fits beside.
    """
    lengths = np.diff(offsets)
    found: list[Group] = []
    first, pairs = 0, lengths.tolist()
    while first < len(pairs):
        width = total = pairs[first]
        last = first + 1
        if width <= longest:
            while last < len(pairs) and pairs[last] <= longest:
                wider = max(width, pairs[last])
                count = last + 1 - first
                if count * wider * wider > cells or count * wider > (total + pairs[last]) * (1 + waste):
                    break
                width, total, last = wider, total + pairs[last], last + 1
        found.append(Group(first, int(offsets[first]), int(offsets[last]), width, lengths[first:last]))
        first = last
    return found


def slots(group: Group) -> tuple[Ints, Ints, npt.NDArray[np.bool_]]:
    """Where padding goes: (count * width,) token of the group in each slot; (tokens,) slot of each token;
    (count, width) whether a slot holds a token. Padding is the first token of the slot's own pair: what is masked is
    still multiplied by zero, and a neighbour's infinities would come through that."""
    filled = np.arange(group.width, dtype=np.int32) < group.lengths[:, None]
    back = np.flatnonzero(filled).astype(np.int32)
    into = np.repeat(np.cumsum(group.lengths, dtype=np.int32) - group.lengths, group.width)
    into[back] = np.arange(len(back), dtype=np.int32)
    return into, back, filled
