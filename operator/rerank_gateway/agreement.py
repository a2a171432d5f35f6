"""How alike two lists of scores rank the same documents. Pure."""

from bisect import bisect_right, insort
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from itertools import islice
from math import sqrt

COMPARED = 200
"""Documents, the first of the request: beyond, comparing would hold up those who wait."""


def kendall(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Kendall's tau-b (1945), from -1 (reversed) to 1 (the same order); ties in one list alone lower it.

    None where a list ranks nothing: fewer than two documents, or all with one score. Of the first COMPARED documents.
    Counted as in Knight, "A computer method for calculating Kendall's tau" (1966): sorted by one list, the pairs that
    the other one has the other way round are its inversions.
    """
    pairs = sorted(islice(zip(one, other, strict=True), COMPARED))
    tied_one = _tied(first for first, _ in pairs)
    tied_other = _tied(second for _, second in pairs)
    total = len(pairs) * (len(pairs) - 1) // 2
    if total in (tied_one, tied_other):
        return None
    seen: list[float] = []
    discordant = 0
    for _, second in pairs:
        discordant += len(seen) - bisect_right(seen, second)
        insort(seen, second)
    concordant = total - tied_one - tied_other + _tied(pairs) - discordant
    return (concordant - discordant) / sqrt((total - tied_one) * (total - tied_other))


def drift(one: Sequence[float], other: Sequence[float]) -> float:
    """Largest difference of a document's two scores; there is at least one document."""
    return max(abs(first - second) for first, second in zip(one, other, strict=True))


def _tied(values: Iterable[Hashable]) -> int:
    """Pairs of equal values."""
    return sum(count * (count - 1) // 2 for count in Counter(values).values())
