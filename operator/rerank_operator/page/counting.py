"""Arithmetic on counters that gateways tell: what has come since, what a span of time holds, and its quantiles. Pure.

A counter that fell, or a series that vanished, began anew: all of its family then counts from zero. What has come is
never less than nothing. A quantile of no requests is not known.
"""

import math
from collections.abc import Iterable, Mapping

from rerank_operator.page.exposition import Counts, Sample


def increase(before: Mapping[str, float], now: Mapping[str, float]) -> Counts:
    """What was counted between two looks at one process. Series that are new have begun at zero."""
    anew = {_family(name) for name, value in before.items() if now.get(name, -1.0) < value}
    return {name: value - (0.0 if _family(name) in anew else before.get(name, 0.0)) for name, value in now.items()}


def since(before: Sample, now: Sample) -> dict[tuple[str, str], dict[str, Counts]]:
    """What one gateway has counted since ``before``, by Reranker and revision; latencies as ``binned``.

    Nothing of a Reranker that was not looked at before: its series may be those of a namesake that is gone. A process
    that once does not tell when it began is taken for the same one.
    """
    anew = None not in (before.began, now.began) and before.began != now.began
    known = {} if anew else before.counts
    return {
        key: {
            revision: binned(increase(known.get(key, {}).get(revision, {}), counts))
            for revision, counts in revisions.items()
        }
        for key, revisions in now.counts.items()
        if anew or key in known
    }


def binned(counts: Counts) -> Counts:
    """Each ``le`` as those between it and the next lower one, so that histograms with other edges can be added up."""
    edges = sorted((float(name[3:]), name) for name in counts if name.startswith("le/"))
    bins, below = {}, 0.0
    for _, name in edges:
        bins[name] = max(0.0, counts[name] - below)
        below = max(below, counts[name])
    return counts | bins


def added(one: Mapping[str, float], other: Mapping[str, float]) -> Counts:
    return {**one, **{name: one.get(name, 0.0) + value for name, value in other.items()}}


def less(now: Mapping[str, float], then: Mapping[str, float]) -> Counts:
    """The difference of two sums, which never fall but by rounding."""
    return {name: max(0.0, value - then.get(name, 0.0)) for name, value in now.items()}


def requests(counts: Mapping[str, float]) -> float:
    """All that were answered, or given up by their clients."""
    return sum(value for name, value in counts.items() if name.startswith("code/"))


def failed(counts: Mapping[str, float]) -> float:
    """Those refused for no fault of the client: 429 and 5xx."""
    return sum(value for name, value in counts.items() if name == "code/429" or name.startswith("code/5"))


def quantile(share: float, bins: Mapping[str, float]) -> float | None:
    """Seconds within which ``share`` of the requests of ``binned`` counts were answered, linear within a bin as
    Prometheus has it. The last finite edge where it is beyond all; None: there were none."""
    edges = sorted((float(name[3:]), value) for name, value in bins.items() if name.startswith("le/"))
    total = sum(value for _, value in edges)
    if total <= 0:
        return None
    wanted, below, lower = share * total, 0.0, 0.0
    for edge, value in edges:
        if below + value >= wanted and value > 0:
            return lower if math.isinf(edge) else lower + (edge - lower) * max(0.0, wanted - below) / value
        below += value
        lower = lower if math.isinf(edge) else edge
    return lower


def total(parts: Iterable[Mapping[str, float]]) -> Counts:
    sums: Counts = {}
    for part in parts:
        sums = added(sums, part)
    return sums


def _family(name: str) -> str:
    return name.partition("/")[0]
