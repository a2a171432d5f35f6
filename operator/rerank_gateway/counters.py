"""Counters, each series a plain number.

prometheus_client's own take a lock and more for each count, and a request needs fifteen: that was twice the time. For
one thread, the event loop's, on the path of every request.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from copy import copy
from typing import Self

from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from rerank_gateway.labels import Labels


class Count:
    """One series."""

    __slots__ = ("value",)

    def __init__(self, value: float = 0) -> None:
        self.value = value


class Counters(Collector):
    """All series of one counter, by their labels' values. Each begins with its first count."""

    def __init__(self, name: str, documentation: str, labels: Sequence[str], owner: Sequence[str]) -> None:
        """``owner``: the first of ``labels``, of what a series is forgotten with."""
        self._name = name
        self._documentation = documentation
        self._labels = labels
        self._owner = len(owner)
        self._series: dict[Labels, Count] = {}
        self._owned: defaultdict[Labels, list[Labels]] = defaultdict(list)

    def of(self, labels: Labels) -> Count:
        """The series with these labels, made at its first use; it counts until it is forgotten."""
        series = self._series.get(labels)
        if series is None:
            series = self._series[labels] = Count()
            self._owned[labels[: self._owner]].append(labels)
        return series

    def add(self, labels: Labels, amount: float = 1) -> None:
        """``amount``: 0 or more."""
        self.of(labels).value += amount

    def forget(self, owner: Labels) -> None:
        for labels in self._owned.pop(owner, ()):
            del self._series[labels]

    def snapshot(self) -> Self:
        """As it is now, for another thread to read."""
        taken = copy(self)
        taken._series = {labels: Count(series.value) for labels, series in self._series.items()}
        return taken

    def describe(self) -> Iterable[CounterMetricFamily]:
        yield CounterMetricFamily(self._name, self._documentation, labels=self._labels)

    def collect(self) -> Iterable[CounterMetricFamily]:
        family = CounterMetricFamily(self._name, self._documentation, labels=self._labels)
        for labels, series in self._series.items():
            family.add_metric(labels, series.value)
        yield family
