"""Where a long document is cut into chunks, and how the scores of its chunks become one: functions of values only.

Each chunk is scored beside the query as a pair of its own, so a chunk must never be longer than the query leaves room
for, and every token that is kept must be in at least one chunk.
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from rerank_api.reranker import ChunkPooling

MAX_CHUNKS = 64
"""Chunks of one document: what lies beyond them is cut and reported as truncated."""

OVERLAP = 32
"""Tokens that two neighbouring chunks share, so that a sentence at a border is whole in one of them; a quarter of the
room at most, so that a long query does not make chunks of nothing but overlap."""


def _step(room: int) -> int:
    return room - min(OVERLAP, room // 4)


def count(tokens: int, room: int) -> int:
    """Chunks of at most ``room`` tokens (at least one) that hold all of ``tokens``, without a bound."""
    return 1 if tokens <= room else 1 + -(-(tokens - room) // _step(room))


def most_tokens(room: int) -> int:
    """Tokens of one document that ``MAX_CHUNKS`` chunks hold."""
    return (MAX_CHUNKS - 1) * _step(room) + room


def spans(tokens: int, room: int, from_end: bool) -> list[tuple[int, int]]:
    """[start, end) of each chunk in a document of ``tokens`` tokens, in reading order, ``MAX_CHUNKS`` at most.

    ``from_end``: where not all fits, the end of the document is kept (the tokenizer's truncation_side is left).
    """
    chunks = min(count(tokens, room), MAX_CHUNKS)
    found = [(start, min(start + room, tokens)) for start in range(0, chunks * _step(room), _step(room))]
    if from_end:
        return [(tokens - end, tokens - start) for start, end in reversed(found)]
    return found


def pool(logits: Sequence[float], counts: Sequence[int], pooling: ChunkPooling) -> list[float]:
    """One logit a document, from those of its chunks; ``counts``: chunks of each document, in the order of logits."""
    scores, start = [], 0
    for chunks in counts:
        own = logits[start : start + chunks]
        scores.append(own[0] if chunks == 1 else max(own) if pooling == "max" else sum(own) / chunks)
        start += chunks
    return scores


def documents(pairs: Sequence[int], counts: Sequence[int]) -> list[int]:
    """The documents, in ascending order, of which ``pairs`` (indices) are chunks; ``counts`` as in ``pool``."""
    ends = list(accumulate(counts))
    return sorted({bisect_right(ends, pair) for pair in pairs})
