"""Histograms, also with a bucket edge exactly at each Reranker's own threshold.

With one set of edges for all, as prometheus_client has it, the share of requests within an objective could only be
guessed. On the path of every request: a look-up by bisection and two additions. For one thread, the event loop's.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from copy import copy
from typing import Self

from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

from rerank_gateway.labels import Labels


class Buckets:
    """The series of one Reranker or revision."""

    __slots__ = ("_counts", "_edges", "_exemplars", "_sum")

    def __init__(self, edges: tuple[float, ...]) -> None:
        self._begin(edges)

    def _begin(self, edges: tuple[float, ...]) -> None:
        self._edges = edges
        self._counts = [0] * (len(edges) + 1)
        self._sum = 0.0
        self._exemplars: dict[int, Exemplar] = {}

    def use(self, edges: tuple[float, ...]) -> None:
        """Counts begin anew where the edges differ: what was counted cannot be told apart by the new ones."""
        if edges != self._edges:
            self._begin(edges)

    def observe(self, value: float, exemplar: Exemplar | None = None) -> None:
        """The latest exemplar of a bucket is kept."""
        bucket = bisect_left(self._edges, value)
        self._counts[bucket] += 1
        self._sum += value
        if exemplar is not None:
            self._exemplars[bucket] = exemplar

    def snapshot(self) -> Self:
        taken = copy(self)
        taken._counts, taken._exemplars = self._counts.copy(), self._exemplars.copy()
        return taken

    def add_to(self, family: HistogramMetricFamily, labels: Labels) -> None:
        buckets: list[tuple[str, float] | tuple[str, float, Exemplar]] = []
        seen = 0
        for index, (edge, count) in enumerate(zip((*self._edges, float("inf")), self._counts, strict=True)):
            seen += count
            bound, exemplar = floatToGoString(edge), self._exemplars.get(index)
            buckets.append((bound, seen) if exemplar is None else (bound, seen, exemplar))
        family.add_metric(labels, buckets, self._sum)


class Histograms(Collector):
    """All series of one histogram, by their labels' values. Each begins with its first value."""

    def __init__(self, name: str, documentation: str, labels: Sequence[str], edges: tuple[float, ...]) -> None:
        """``labels`` begin with namespace and Reranker; ``edges``: rising, those that all Rerankers have."""
        self._name = name
        self._documentation = documentation
        self._labels = labels
        self._edges = edges
        self._own_edges: dict[Labels, tuple[float, ...]] = {}
        self._series: dict[Labels, Buckets] = {}

    def promise(self, key: Labels, threshold: float) -> None:
        """A Reranker's threshold, from now on."""
        edges = self._own_edges[key] = tuple(sorted({*self._edges, threshold}))
        for labels, buckets in self._series.items():
            if labels[:2] == key:
                buckets.use(edges)

    def retract(self, key: Labels) -> None:
        """A Reranker is gone. Its series stay until they are forgotten."""
        self._own_edges.pop(key, None)

    def of(self, labels: Labels) -> Buckets:
        """The series with these labels, made at its first use."""
        buckets = self._series.get(labels)
        if buckets is None:
            buckets = self._series[labels] = Buckets(self._own_edges.get(labels[:2], self._edges))
        return buckets

    def forget(self, labels: Labels) -> None:
        self._series.pop(labels, None)

    def snapshot(self) -> Self:
        """As it is now, for another thread to read."""
        taken = copy(self)
        taken._series = {labels: buckets.snapshot() for labels, buckets in self._series.items()}
        return taken

    def describe(self) -> Iterable[HistogramMetricFamily]:
        yield HistogramMetricFamily(self._name, self._documentation, labels=self._labels)

    def collect(self) -> Iterable[HistogramMetricFamily]:
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._labels)
        for labels, buckets in self._series.items():
            buckets.add_to(family, labels)
        yield family
