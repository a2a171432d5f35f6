"""Every metric of the worker, in base units. Labels are bounded: never a text, a model path or a request id.

One registry a server, so that several can live in one process (tests do). Asking NVML takes milliseconds: ``text`` is
for a thread that may wait.
"""

import resource
import sys
import threading
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from rerank_worker import memory
from rerank_worker.gpus import Gpus

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_SHORT_SECONDS = (0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_PAIR_TOKENS = (16, 32, 64, 96, 128, 192, 256, 384, 512, 1024, 2048, 4096, 8192)
_TOKENS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)

_SCORE_BINS = 20

_EDGES = np.array([np.log(edge / (1 - edge)) for edge in np.arange(1, _SCORE_BINS) / _SCORE_BINS])
"""Logits at which a probability comes into the next bin, so that none has to be computed."""

_FACTS = ("model", "model_sha256", "tokenizer_sha256", "architecture", "device", "precision")
"""Labels of the info metric, beside the version."""


class PairTokens(Collector):
    """A histogram of pairs' lengths that takes a whole batch at a time: the engine thread has better things to do than
    a call for each pair (270 microseconds for 150 pairs, where this takes 11)."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._lock = threading.Lock()
        self._counts = [0] * (len(_PAIR_TOKENS) + 1)
        self._sum = 0
        registry.register(self)

    def observe(self, descending: Sequence[int]) -> None:
        """Lengths of a batch's pairs, the longest first."""
        ascending = descending[::-1]
        below = [bisect_right(ascending, bound) for bound in _PAIR_TOKENS]
        with self._lock:
            for index, (start, end) in enumerate(zip([0, *below], [*below, len(ascending)], strict=True)):
                self._counts[index] += end - start
            self._sum += sum(ascending)

    def collect(self) -> Iterable[HistogramMetricFamily]:
        with self._lock:
            counts, total = list(self._counts), self._sum
        buckets: list[tuple[str, float]] = []
        seen = 0
        for bound, count in zip([*map(float, _PAIR_TOKENS), float("inf")], counts, strict=True):
            seen += count
            buckets.append(("+Inf" if bound == float("inf") else str(bound), seen))
        family = HistogramMetricFamily("rerank_worker_pair_tokens", "Real tokens of a scored pair.")
        family.add_metric([], buckets, total)
        yield family


class Scores(Collector):
    """How probabilities spread over bins of a twentieth, a whole answer's at a time."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._lock = threading.Lock()
        self._counts = np.zeros(_SCORE_BINS, dtype=np.int64)
        registry.register(self)

    def observe(self, logits: Sequence[float], temperature: float) -> None:
        """Finite logits of documents, whose probabilities are sigmoid(logit / temperature)."""
        bins = np.searchsorted(_EDGES, np.asarray(logits) / temperature, side="right")
        counts = np.bincount(bins, minlength=_SCORE_BINS)
        with self._lock:
            self._counts += counts

    def collect(self) -> Iterable[CounterMetricFamily]:
        family = CounterMetricFamily(
            "rerank_worker_scores",
            "Documents scored, by sigmoid(logit / temperature), whatever the activation: from the label's value on, "
            "and less than a twentieth more.",
            labels=["bin"],
        )
        with self._lock:
            counts = self._counts.tolist()
        for number, count in enumerate(counts):
            family.add_metric([f"{number / _SCORE_BINS:.2f}"], count)
        yield family


class Resources(Collector):
    """Memory and GPUs as they are when scraped. What cannot be told has no series."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._gpus = Gpus()
        registry.register(self)

    def collect(self) -> Iterable[GaugeMetricFamily]:
        held = GaugeMetricFamily(
            "rerank_worker_memory_bytes",
            "Memory taken now: of the host (resident), and of the device (allocated by torch) where CUDA is in use.",
            labels=["memory"],
        )
        held.add_metric(["host"], memory.resident())
        if (device := memory.cuda()) is not None:
            held.add_metric(["device"], device.memory_allocated())
        utilization = GaugeMetricFamily(
            "rerank_worker_gpu_utilization_ratio",
            "Share of the last moments in which the GPU computed, for any process (NVML).",
            labels=["gpu"],
        )
        used = GaugeMetricFamily(
            "rerank_worker_gpu_memory_used_bytes", "The GPU's memory that any process holds (NVML).", labels=["gpu"]
        )
        total = GaugeMetricFamily("rerank_worker_gpu_memory_total_bytes", "The GPU's memory (NVML).", labels=["gpu"])
        for gpu in self._gpus.read():
            told = ((utilization, gpu.utilization), (used, gpu.used_bytes), (total, gpu.total_bytes))
            for family, value in told:
                if value is not None:
                    family.add_metric([str(gpu.index)], value)
        yield from (held, utilization, used, total)


class Serving(Collector):
    """One series for each model of the process, with what it is; one with empty labels while there is none."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._version = version("rerank-worker")
        self._models: dict[str, tuple[str, ...]] = {}
        registry.register(self)

    def set(self, key: str, facts: Mapping[str, str]) -> None:
        self._models[key] = tuple(facts.get(name, "") for name in _FACTS)

    def remove(self, key: str) -> None:
        self._models.pop(key, None)

    def collect(self) -> Iterable[InfoMetricFamily]:
        family = InfoMetricFamily(
            "rerank_worker",
            "What this worker serves: a series for each model (empty labels: none yet). model_sha256 is of "
            "`sha256sum *.safetensors`, in the order of names.",
            labels=[*_FACTS, "version"],
        )
        # Two models of a process may be the same but for their keys.
        for facts in sorted(set(self._models.values())) or [("",) * len(_FACTS)]:
            family.add_metric([*facts, self._version], {})
        yield family


def _peak_host_bytes() -> float:
    # Kibibytes on Linux.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def _peak_device_bytes() -> float:
    """0 where CUDA is not in use; never the reason to import torch."""
    torch = sys.modules.get("torch")
    return float(torch.cuda.max_memory_allocated()) if torch is not None and torch.cuda.is_initialized() else 0.0


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry

        self.requests = Counter(
            "rerank_worker_requests", "Score requests answered, by HTTP status code.", ["code"], registry=registry
        )
        self.request_duration = Histogram(
            "rerank_worker_request_duration_seconds",
            "From the request's headers to its answer.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.in_flight = Gauge("rerank_worker_requests_in_flight", "Score requests being answered.", registry=registry)
        self.dropped = Counter(
            "rerank_worker_dropped_requests",
            "Requests dropped before they were scored: their deadline came (deadline), or could not be met any more "
            "(unreachable), or nobody waits for them any more (abandoned).",
            ["reason"],
            registry=registry,
        )
        self.pairs = Counter("rerank_worker_pairs", "Pairs scored.", registry=registry)
        self.tokens = Counter("rerank_worker_tokens", "Real tokens scored, special tokens included.", registry=registry)
        self.padding_tokens = Counter(
            "rerank_worker_padding_tokens", "Tokens computed only to fill batches up.", registry=registry
        )
        self.truncated_documents = Counter(
            "rerank_worker_truncated_documents", "Documents cut before scoring.", registry=registry
        )
        self.truncated_requests = Counter(
            "rerank_worker_truncated_requests", "Requests with any document cut before scoring.", registry=registry
        )
        self.chunked_documents = Counter(
            "rerank_worker_chunked_documents", "Documents scored in several chunks.", registry=registry
        )
        self.batch_pairs = Histogram("rerank_worker_batch_pairs", "Pairs a batch.", buckets=_COUNTS, registry=registry)
        self.batch_tokens = Histogram(
            "rerank_worker_batch_tokens", "Tokens a batch, padding included.", buckets=_TOKENS, registry=registry
        )
        self.batch_requests = Histogram(
            "rerank_worker_batch_requests", "Requests that share a batch.", buckets=_COUNTS, registry=registry
        )
        self.tokenize_time = Histogram(
            "rerank_worker_tokenize_time_seconds",
            "Tokenizing one request, waiting for a thread included.",
            buckets=_SHORT_SECONDS,
            registry=registry,
        )
        self.queue_time = Histogram(
            "rerank_worker_queue_time_seconds",
            "From tokenized to the first batch that holds a pair of the request.",
            ["priority"],
            buckets=_SHORT_SECONDS,
            registry=registry,
        )
        self.batch_wait = Histogram(
            "rerank_worker_batch_wait_seconds",
            "How long a free engine held a batch back, for company or for another model's turn.",
            buckets=_SHORT_SECONDS,
            registry=registry,
        )
        self.engine_time = Histogram(
            "rerank_worker_engine_time_seconds", "Computing one batch.", buckets=_SECONDS, registry=registry
        )
        self.waiting_tokens = Gauge(
            "rerank_worker_waiting_tokens", "Tokens admitted and not yet answered (estimated).", registry=registry
        )
        self.waiting_bytes = Gauge(
            "rerank_worker_waiting_bytes",
            "Bytes of bodies of requests that are not yet answered.",
            registry=registry,
        )
        self.models = Gauge("rerank_worker_models", "Models in this process, by state.", ["state"], registry=registry)
        self.admin_refused = Counter(
            "rerank_worker_admin_refused_requests",
            "Admin calls without the right bearer token.",
            registry=registry,
        )
        self.model_load = Gauge(
            "rerank_worker_model_load_seconds", "From start to the first score; 0 while loading.", registry=registry
        )
        self.out_of_memory_recoveries = Counter(
            "rerank_worker_out_of_memory_recoveries",
            "Batches that did not fit into memory and were split.",
            registry=registry,
        )
        # The label says which model of the process; counters and histograms are sums over all of them, but such gauges
        # would overwrite each other. A few models at most are in a process, and ``forget`` drops those that leave.
        self.batch_budget = Gauge(
            "rerank_worker_batch_budget_tokens",
            "Tokens that a batch may cost now; lower than configured after a batch was out of memory.",
            ["model"],
            registry=registry,
        )
        self.capacity = Gauge(
            "rerank_worker_capacity_tokens_per_second",
            "Real tokens a second that the model can score: as measured at load, corrected by what was served since.",
            ["model"],
            registry=registry,
        )
        self.pair_tokens = PairTokens(registry)
        self.peak_memory = Gauge(
            "rerank_worker_peak_memory_bytes",
            "Most memory taken since the start: of the host (resident), and of the device (allocated by torch).",
            ["memory"],
            registry=registry,
        )
        self.peak_memory.labels("host").set_function(_peak_host_bytes)
        self.peak_memory.labels("device").set_function(_peak_device_bytes)
        self.scores = Scores(registry)
        self.resources = Resources(registry)
        self.serving = Serving(registry)

    def forget(self, model: str) -> None:
        """Drop what is told of a model that has left the process."""
        for gauge in (self.batch_budget, self.capacity):
            gauge.remove(model)
        self.serving.remove(model)

    def text(self) -> bytes:
        """What Prometheus reads."""
        return generate_latest(self.registry)
