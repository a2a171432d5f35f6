"""Gauges of what the gateway holds, read when they are scraped, so that they cannot drift from the truth."""

from collections.abc import Callable, Iterable

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from rerank_api import names

from rerank_gateway import labels, slo
from rerank_gateway.cache import Caches
from rerank_gateway.cluster.state import Key, RoutingTable
from rerank_gateway.waiting import Queues


class LiveGauges(Collector):
    def __init__(
        self,
        queues: Queues,
        table: Callable[[], RoutingTable],
        caches: Caches,
        in_maintenance: Callable[[Key], bool],
    ) -> None:
        self._queues = queues
        self._table = table
        self._caches = caches
        self._in_maintenance = in_maintenance

    def collect(self) -> Iterable[Metric]:
        waiting = GaugeMetricFamily(
            "rerank_gateway_waiting_requests", "Requests waiting for a worker.", labels=labels.RERANKER
        )
        in_flight = GaugeMetricFamily(
            "rerank_gateway_in_flight_requests", "Requests at a worker.", labels=labels.RERANKER
        )
        endpoints = GaugeMetricFamily("rerank_gateway_endpoints", "Workers that are Ready.", labels=labels.REVISION)
        serving = GaugeMetricFamily(
            "rerank_gateway_serving_endpoints",
            "Workers that are Ready and may answer users' requests: not those of a canary that has no share yet.",
            labels=labels.RERANKER,
        )
        cached = GaugeMetricFamily(
            "rerank_gateway_cache_bytes", "Memory that cached scores take, all told.", labels=labels.RERANKER
        )
        objectives = GaugeMetricFamily(
            "rerank_gateway_objective_ratio",
            "Share of requests that spec.slo promises to keep (sli: availability or latency).",
            labels=(*labels.RERANKER, "sli"),
        )
        thresholds = GaugeMetricFamily(
            "rerank_gateway_latency_threshold_seconds",
            "Seconds within which spec.slo.latency promises an answer.",
            labels=labels.RERANKER,
        )
        maintenance = GaugeMetricFamily(
            "rerank_gateway_maintenance",
            f"1 until the time in the annotation {names.ANNOTATION_MAINTENANCE}, when nobody is to be alarmed.",
            labels=labels.RERANKER,
        )
        for key, cache in self._caches:
            cached.add_metric(key, cache.size)
        queues = dict(self._queues)
        for key, route in self._table().routes.items():
            queue = queues.get(key)
            waiting.add_metric(key, queue.waiting if queue else 0)
            in_flight.add_metric(key, queue.in_flight if queue else 0)
            for sli in slo.INDICATORS:
                objectives.add_metric((*key, sli), route.policy.objectives.ratio(sli))
            thresholds.add_metric(key, route.policy.objectives.threshold)
            maintenance.add_metric(key, self._in_maintenance(key))
            counts: dict[str, int] = {revision: 0 for revision, _ in route.policy.traffic}
            for endpoint in (*route.endpoints, *route.set_aside):
                counts[endpoint.revision] = counts.get(endpoint.revision, 0) + endpoint.ready
            for revision, count in counts.items():
                endpoints.add_metric((*key, revision), count)
            serving.add_metric(key, sum(endpoint.ready for endpoint in route.endpoints))
        yield from (waiting, in_flight, endpoints, serving, cached, objectives, thresholds, maintenance)
