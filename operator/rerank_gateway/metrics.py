"""The gateway's Prometheus metrics. Labels come from Rerankers that exist, never from the text of a request.

Gauges are read when scraped, so they cannot drift from the truth.
"""

from collections.abc import Callable, Iterable
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from rerank_gateway.cache import Caches
from rerank_gateway.cluster.state import Endpoint, Key, RoutingTable
from rerank_gateway.record import Record
from rerank_gateway.waiting import Queues

disable_created_metrics()  # a second series for each counter, which nothing here reads

# fmt: off
_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2.5, 5, 10, 30, 60,
            300)
# fmt: on
_DOCUMENTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
_RERANKER = ("namespace", "reranker")
_REVISION = ("namespace", "reranker", "revision")

MirrorResult = Literal["ok", "failed", "skipped"]

# Series of a Reranker or revision that is gone stay this long, so that the last scrape sees their final values.
FORGET_AFTER = 900.0


class Metrics:
    def __init__(self, clock: Callable[[], float]) -> None:
        self.registry = CollectorRegistry()
        self._clock = clock
        self._series: set[tuple[str, str, str]] = set()
        self._gone_since: dict[tuple[str, str, str], float] = {}
        self._requests = Counter(
            "rerank_gateway_requests",
            "Requests answered, by HTTP code; 499: the client went away. Labels are empty when no Reranker was found.",
            (*_REVISION, "code"),
            registry=self.registry,
        )
        self._duration = Histogram(
            "rerank_gateway_request_duration_seconds",
            "From a request's headers to its answer, for answers with scores of which not all were cached.",
            _REVISION,
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._queue_time = Histogram(
            "rerank_gateway_queue_duration_seconds",
            "Time that answered requests waited in the gateway for a worker.",
            _REVISION,
            buckets=(0.001, *_SECONDS),
            registry=self.registry,
        )
        self._documents = Histogram(
            "rerank_gateway_request_documents",
            "Documents in one request.",
            _RERANKER,
            buckets=_DOCUMENTS,
            registry=self.registry,
        )
        self._tokens = Counter(
            "rerank_gateway_tokens", "Tokens scored, as counted by workers.", _REVISION, registry=self.registry
        )
        self._truncated = Counter(
            "rerank_gateway_truncated_documents", "Documents cut to fit.", _REVISION, registry=self.registry
        )
        self._chunked = Counter(
            "rerank_gateway_chunked_documents",
            "Documents scored in several parts, as requests.longDocuments: chunk asks.",
            _REVISION,
            registry=self.registry,
        )
        self._retries = Counter(
            "rerank_gateway_retries",
            "Attempts that were tried again elsewhere: the worker was busy, unreachable or broken.",
            (*_REVISION, "reason"),
            registry=self.registry,
        )
        self._prioritized = Counter(
            "rerank_gateway_priority_requests",
            "Requests answered, by the priority that they asked for.",
            (*_RERANKER, "priority"),
            registry=self.registry,
        )
        self._cache_documents = Counter(
            "rerank_gateway_cache_documents",
            "Documents of Rerankers with a cache, by result: hit where the score was known, miss where it was not.",
            (*_RERANKER, "result"),
            registry=self.registry,
        )
        self._mirrored = Counter(
            "rerank_gateway_mirrored_requests",
            "Users' requests asked of a canary too: failed where it refused, broke or took too long; skipped where it "
            "had no room, or as many as may be were on their way.",
            (*_RERANKER, "result"),
            registry=self.registry,
        )
        self._by_reranker = (self._documents, self._prioritized, self._cache_documents, self._mirrored)
        self._by_revision = (
            self._requests,
            self._duration,
            self._queue_time,
            self._tokens,
            self._truncated,
            self._chunked,
            self._retries,
        )

    def answered(self, record: Record, duration: float) -> None:
        labels = (record.namespace, record.reranker, record.revision)
        if record.reranker:
            self._series.add(labels)
        self._requests.labels(*labels, str(record.code)).inc()
        if record.documents:
            self._documents.labels(record.namespace, record.reranker).observe(record.documents)
        if record.reranker and record.priority:
            self._prioritized.labels(record.namespace, record.reranker, record.priority).inc()
        if record.cache:
            self._cache_documents.labels(record.namespace, record.reranker, "hit").inc(record.cached)
            missed = record.documents - record.cached
            self._cache_documents.labels(record.namespace, record.reranker, "miss").inc(missed)
        if record.code == 200 and record.revision and record.cache != "hit":
            self._duration.labels(*labels).observe(duration)
            self._queue_time.labels(*labels).observe(record.waited)
            self._tokens.labels(*labels).inc(record.tokens)
            self._truncated.labels(*labels).inc(record.truncated)
            self._chunked.labels(*labels).inc(record.chunked)

    def retried(self, endpoint: Endpoint, reason: str) -> None:
        labels = (endpoint.namespace, endpoint.reranker, endpoint.revision)
        self._series.add(labels)
        self._retries.labels(*labels, reason).inc()

    def mirrored(self, key: Key, result: MirrorResult) -> None:
        self._mirrored.labels(*key, result).inc()

    def observe(
        self,
        queues: Queues,
        table: Callable[[], RoutingTable],
        caches: Caches,
        held_bytes: Callable[[], int],
        demand_readers: Callable[[], int],
    ) -> None:
        """Registers the gauges that are read when scraped."""
        self.registry.register(_LiveGauges(queues, table, caches))
        held = Gauge("rerank_gateway_held_bytes", "Bytes of request bodies held in memory.", registry=self.registry)
        held.set_function(held_bytes)
        readers = Gauge(
            "rerank_gateway_demand_readers",
            "Open streams of demand; the leading operator has one.",
            registry=self.registry,
        )
        readers.set_function(demand_readers)

    def forget_gone(self, table: RoutingTable) -> None:
        """Drops the series of Rerankers and revisions that have been gone for a while. For each scrape."""
        now = self._clock()
        present = {(*key, revision) for key, route in table.routes.items() for revision in ("", *route.revisions)}
        for series in self._series - present:
            if now - self._gone_since.setdefault(series, now) > FORGET_AFTER:
                del self._gone_since[series]
                self._series.discard(series)
                namespace, reranker, revision = series
                for metric in self._by_revision:
                    metric.remove_by_labels({"namespace": namespace, "reranker": reranker, "revision": revision})
                if (namespace, reranker) not in table.routes:
                    for metric in self._by_reranker:
                        metric.remove_by_labels({"namespace": namespace, "reranker": reranker})
        for series in present & self._gone_since.keys():
            del self._gone_since[series]


class _LiveGauges(Collector):
    def __init__(self, queues: Queues, table: Callable[[], RoutingTable], caches: Caches) -> None:
        self._queues = queues
        self._table = table
        self._caches = caches

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        waiting = GaugeMetricFamily(
            "rerank_gateway_waiting_requests", "Requests waiting for a worker.", labels=_RERANKER
        )
        in_flight = GaugeMetricFamily("rerank_gateway_in_flight_requests", "Requests at a worker.", labels=_RERANKER)
        endpoints = GaugeMetricFamily("rerank_gateway_endpoints", "Workers that are Ready.", labels=_REVISION)
        cached = GaugeMetricFamily(
            "rerank_gateway_cache_bytes", "Memory that cached scores take, all told.", labels=_RERANKER
        )
        for key, cache in self._caches:
            cached.add_metric(key, cache.size)
        queues = dict(self._queues)
        for key, route in self._table().routes.items():
            queue = queues.get(key)
            waiting.add_metric(key, queue.waiting if queue else 0)
            in_flight.add_metric(key, queue.in_flight if queue else 0)
            counts: dict[str, int] = {revision: 0 for revision, _ in route.policy.traffic}
            for endpoint in (*route.endpoints, *route.set_aside):
                counts[endpoint.revision] = counts.get(endpoint.revision, 0) + endpoint.ready
            for revision, count in counts.items():
                endpoints.add_metric((*key, revision), count)
        yield from (waiting, in_flight, endpoints, cached)
