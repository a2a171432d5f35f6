"""The gateway's Prometheus metrics. Labels come from Rerankers that exist, never from the text of a request.

Counting is on the path of every request, and cheap.
"""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar
from rerank_api import names

from rerank_gateway import slo
from rerank_gateway.cache import Caches
from rerank_gateway.cluster.state import Endpoint, Key, Policy, RoutingTable
from rerank_gateway.counters import Count, Counters
from rerank_gateway.feedback import BINS, Bin
from rerank_gateway.gauges import LiveGauges
from rerank_gateway.histograms import Buckets, Histograms
from rerank_gateway.labels import RERANKER, REVISION, Labels
from rerank_gateway.record import Record
from rerank_gateway.waiting import Queues

log = logging.getLogger(__name__)

# fmt: off
_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2.5, 5, 10, 30, 60,
            300)
# fmt: on
_DOCUMENTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)

MirrorResult = Literal["ok", "failed", "skipped"]
CaptureResult = Literal["captured", "limited"]

# Series of a Reranker or revision that is gone stay this long, so that the last scrape sees their final values.
FORGET_AFTER = 900.0


class Metrics:
    def __init__(self, clock: Callable[[], float], wall: Callable[[], float] = time.time) -> None:
        """``wall``: Unix time, of exemplars and for the ends of maintenances."""
        self._counted: list[Counters | Histograms] = []
        self._gauges = CollectorRegistry()
        self._clock = clock
        self._wall = wall
        self._policies: dict[Key, Policy] = {}
        """Of the Rerankers that exist."""
        self._maintenance: dict[Key, float] = {}
        """Unix time until when nobody is to be alarmed; of those that exist."""
        self._known: dict[tuple[str, str, str], _Revision] = {}
        """Rerankers and revisions that have series, of both indicators at least; revision empty: what no worker has
        answered."""
        self._gone_since: dict[tuple[str, str, str], float] = {}
        ProcessCollector(registry=self._gauges)
        self._requests = self._counter(
            "rerank_gateway_requests",
            "Requests answered, by HTTP code; 499: the client went away. Labels are empty when no Reranker was found, "
            "or none was asked to rank.",
            (*REVISION, "code"),
        )
        self._promised = self._counter(
            "rerank_gateway_sli_requests",
            "Requests that count for an objective of their Reranker (sli: availability or latency).",
            (*REVISION, "sli"),
        )
        self._kept = self._counter(
            "rerank_gateway_sli_good_requests",
            "Of these, the ones that were as promised: answered, or answered within the threshold.",
            (*REVISION, "sli"),
        )
        self._duration = self._histogram(
            "rerank_gateway_request_duration_seconds",
            "From a request's headers to its answer, for answers with scores of which not all were cached. One edge is "
            "the Reranker's own threshold of spec.slo.latency; where that changes, its series begin anew.",
            REVISION,
            _SECONDS,
        )
        self._queue_time = self._histogram(
            "rerank_gateway_queue_duration_seconds",
            "Time that answered requests waited in the gateway for a worker.",
            REVISION,
            (0.001, *_SECONDS),
        )
        self._documents = self._histogram(
            "rerank_gateway_request_documents", "Documents in one request.", RERANKER, _DOCUMENTS
        )
        self._candidate_fetch = self._histogram(
            "rerank_gateway_candidate_fetch_seconds",
            "Time that it took to find the documents, as clients tell in X-Rerank-Candidate-Fetch-Ms.",
            RERANKER,
            _SECONDS,
        )
        self._tokens = self._counter("rerank_gateway_tokens", "Tokens scored, as counted by workers.", REVISION)
        self._truncated = self._counter("rerank_gateway_truncated_documents", "Documents cut to fit.", REVISION)
        self._truncated_requests = self._counter(
            "rerank_gateway_truncated_requests", "Requests of which any document was cut to fit.", REVISION
        )
        self._chunked = self._counter(
            "rerank_gateway_chunked_documents",
            "Documents scored in several parts, as requests.longDocuments: chunk asks.",
            REVISION,
        )
        self._retries = self._counter(
            "rerank_gateway_retries",
            "Attempts that were tried again elsewhere: the worker was busy, unreachable or broken.",
            (*REVISION, "reason"),
        )
        self._prioritized = self._counter(
            "rerank_gateway_priority_requests",
            "Requests answered, by the priority that they asked for.",
            (*RERANKER, "priority"),
        )
        self._cache_documents = self._counter(
            "rerank_gateway_cache_documents",
            "Documents of Rerankers with a cache, by result: hit where the score was known, miss where it was not.",
            (*RERANKER, "result"),
        )
        self._mirrored = self._counter(
            "rerank_gateway_mirrored_requests",
            "Users' requests asked of a canary too: failed where it refused, broke or took too long; skipped where it "
            "had no room, or as many as may be were on their way.",
            (*RERANKER, "result"),
        )
        self._captured = self._counter(
            "rerank_gateway_captured_requests",
            "Requests whose texts were to go to the log; limited: they did not, for capture.maxPerMinute was reached.",
            (*RERANKER, "result"),
        )
        self._labels = self._counter(
            "rerank_gateway_feedback_labels",
            "Labels posted to /v1/feedback, by the score's bin (lower edge of ten); revision empty where not told.",
            (*REVISION, "bin"),
        )
        self._labels_relevant = self._counter(
            "rerank_gateway_feedback_relevant", "Of these, the relevant ones.", (*REVISION, "bin")
        )
        self._label_scores = self._counter(
            "rerank_gateway_feedback_scores", "Sum of these labels' scores.", (*REVISION, "bin")
        )
        self._label_errors = self._counter(
            "rerank_gateway_feedback_squared_error",
            "Sum of the squared differences of these labels' scores from 1 where relevant, else from 0.",
            REVISION,
        )
        self._by_reranker = (
            self._documents,
            self._candidate_fetch,
            self._prioritized,
            self._cache_documents,
            self._mirrored,
            self._captured,
        )
        self._by_revision = (
            self._duration,
            self._requests,
            self._promised,
            self._kept,
            self._queue_time,
            self._tokens,
            self._truncated,
            self._truncated_requests,
            self._chunked,
            self._retries,
            self._labels,
            self._labels_relevant,
            self._label_scores,
            self._label_errors,
        )

    def _counter(self, name: str, documentation: str, labels: Labels) -> Counters:
        owner = REVISION if labels[: len(REVISION)] == REVISION else RERANKER
        counters = Counters(name, documentation, labels, owner)
        self._counted.append(counters)
        return counters

    def _histogram(self, name: str, documentation: str, labels: Labels, edges: tuple[float, ...]) -> Histograms:
        histograms = Histograms(name, documentation, labels, edges)
        self._counted.append(histograms)
        return histograms

    def snapshot(self) -> CollectorRegistry:
        """All series as they are at this moment, so that no part exceeds its whole, for another thread to read: to make
        samples of them takes a hundred times as long, and would hold requests up."""
        registry = CollectorRegistry()
        for one in self._counted:
            registry.register(one.snapshot())
        registry.register(_Collected(list(self._gauges.collect())))
        return registry

    def answered(self, record: Record, duration: float) -> None:
        """Counts a request that has ended after so many seconds."""
        namespace, reranker, code = record.namespace, record.reranker, record.code
        key, labels = (namespace, reranker), (namespace, reranker, record.revision)
        if not reranker:
            self._requests.add((*labels, str(code)))
            return
        known = self._known.get(labels) or self._begin(labels)
        counted = known.codes.get(code)
        if counted is None:
            counted = known.codes[code] = self._requests.of((*labels, str(code)))
        counted.value += 1
        policy = self._policies.get(key)
        if policy is not None:
            threshold = policy.objectives.threshold
            known.available.judge(slo.available(code, patience=record.patience, threshold=threshold))
            known.in_time.judge(slo.in_time(code, duration, threshold=threshold))
        if record.documents:
            self._documents.of(key).observe(record.documents)
        if record.priority:
            self._prioritized.add((*key, record.priority))
        if record.cache:
            self._cache_documents.add((*key, "hit"), record.cached)
            self._cache_documents.add((*key, "miss"), record.documents - record.cached)
        if code != 200:
            return
        if record.candidate_fetch is not None:
            self._candidate_fetch.of(key).observe(record.candidate_fetch)
        if record.revision and record.cache != "hit":
            scored = known.scored
            if scored is None:
                scored = known.scored = self._begin_scored(labels)
            exemplar = Exemplar({"trace_id": record.trace_id}, duration, self._wall()) if record.sampled else None
            scored.duration.observe(duration, exemplar)
            scored.queue_time.observe(record.waited)
            scored.tokens.value += record.tokens
            if record.truncated:
                scored.truncated.value += record.truncated
                scored.truncated_requests.value += 1
            if record.chunked:
                scored.chunked.value += record.chunked

    def retried(self, endpoint: Endpoint, reason: str) -> None:
        labels = (endpoint.namespace, endpoint.reranker, endpoint.revision)
        if labels not in self._known:
            self._begin(labels)
        self._retries.add((*labels, reason))

    def mirrored(self, key: Key, result: MirrorResult) -> None:
        self._mirrored.add((*key, result))

    def captured(self, key: Key, result: CaptureResult) -> None:
        self._captured.add((*key, result))

    def knows(self, key: Key, revision: str) -> bool:
        """Whether that is a revision of the Reranker that exists, or that existed lately; empty: any."""
        return (*key, revision) in self._known

    def labelled(self, key: Key, revision: str, bins: Sequence[Bin], squared_error: float) -> None:
        """Counts what feedback.tally has made of labels. All bins of a revision come together: one without a relevant
        label is as much evidence as the others."""
        labels = (*key, revision)
        for name, of_bin in zip(BINS, bins, strict=True):
            self._labels.add((*labels, name), of_bin.labels)
            self._labels_relevant.add((*labels, name), of_bin.relevant)
            self._label_scores.add((*labels, name), of_bin.scores)
        self._label_errors.add(labels, squared_error)

    def update(self, table: RoutingTable) -> None:
        """The Rerankers and revisions that exist now. Their indicators begin at 0, so that the first bad request is
        seen as an increase, and their answers, so that the first good one is."""
        for key, route in table.routes.items():
            policy, before = route.policy, self._policies.get(key)
            if before is None or before.objectives.threshold != policy.objectives.threshold:
                self._duration.promise(key, policy.objectives.threshold)
            if before is None or before.maintenance != policy.maintenance:
                self._maintenance[key] = _maintenance_end(policy)
            self._policies[key] = policy
            for revision in ("", *route.revisions):
                if (*key, revision) not in self._known:
                    self._begin((*key, revision))
        for key in self._policies.keys() - table.routes.keys():
            del self._policies[key], self._maintenance[key]
            self._duration.retract(key)

    def _begin(self, labels: tuple[str, str, str]) -> "_Revision":
        known = _Revision(self._indicator(labels, "availability"), self._indicator(labels, "latency"))
        if labels[2]:
            known.codes[200] = self._requests.of((*labels, "200"))
        self._known[labels] = known
        return known

    def _indicator(self, labels: tuple[str, str, str], sli: slo.Sli) -> "_Indicator":
        return _Indicator(self._promised.of((*labels, sli)), self._kept.of((*labels, sli)))

    def _begin_scored(self, labels: tuple[str, str, str]) -> "_Scored":
        return _Scored(
            self._duration.of(labels),
            self._queue_time.of(labels),
            self._tokens.of(labels),
            self._truncated.of(labels),
            self._truncated_requests.of(labels),
            self._chunked.of(labels),
        )

    def observe(
        self,
        queues: Queues,
        table: Callable[[], RoutingTable],
        caches: Caches,
        held_bytes: Callable[[], int],
        demand_readers: Callable[[], int],
        ready: Callable[[], bool],
    ) -> None:
        """Registers the gauges that are read when scraped."""
        self._gauges.register(LiveGauges(queues, table, caches, self._in_maintenance))
        held = Gauge("rerank_gateway_held_bytes", "Bytes of request bodies held in memory.", registry=self._gauges)
        held.set_function(held_bytes)
        readers = Gauge(
            "rerank_gateway_demand_readers",
            "Open streams of demand; the leading operator has one.",
            registry=self._gauges,
        )
        readers.set_function(demand_readers)
        is_ready = Gauge(
            "rerank_gateway_ready",
            "1 where the gateway's readiness probe succeeds: it knows its Rerankers and is not going down; else 0.",
            registry=self._gauges,
        )
        is_ready.set_function(ready)

    def _in_maintenance(self, key: Key) -> bool:
        return self._wall() < self._maintenance.get(key, 0.0)

    def forget_gone(self, table: RoutingTable) -> None:
        """Drops the series of Rerankers and revisions that have been gone for a while. For each scrape."""
        now = self._clock()
        present = {(*key, revision) for key, route in table.routes.items() for revision in ("", *route.revisions)}
        for labels in self._known.keys() - present:
            if now - self._gone_since.setdefault(labels, now) > FORGET_AFTER:
                del self._gone_since[labels]
                del self._known[labels]
                for metric in self._by_revision:
                    metric.forget(labels)
                if labels[:2] not in table.routes:
                    for metric in self._by_reranker:
                        metric.forget(labels[:2])
        for labels in present & self._gone_since.keys():
            del self._gone_since[labels]


@dataclass(slots=True)
class _Indicator:
    promised: Count
    kept: Count

    def judge(self, good: bool | None) -> None:
        """None: the request says nothing about it."""
        if good is not None:
            self.promised.value += 1
            self.kept.value += good


@dataclass(slots=True)
class _Scored:
    """Series of a revision that has scored."""

    duration: Buckets
    queue_time: Buckets
    tokens: Count
    truncated: Count
    truncated_requests: Count
    chunked: Count


@dataclass(slots=True)
class _Revision:
    """Series in which nearly every request of a revision counts, looked up once."""

    available: _Indicator
    in_time: _Indicator
    codes: dict[int, Count] = field(default_factory=dict)
    scored: _Scored | None = None


def _maintenance_end(policy: Policy) -> float:
    """Unix time; 0 where there is no maintenance, or none that can be read."""
    try:
        return slo.maintenance_end(policy.maintenance)
    except ValueError as error:
        where = f"{policy.namespace}/{policy.name}: annotation {names.ANNOTATION_MAINTENANCE}"
        log.warning("%s: %s: no maintenance", where, error)
        return 0.0


class _Collected(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def describe(self) -> Iterable[Metric]:
        return self._families

    def collect(self) -> Iterable[Metric]:
        return self._families
