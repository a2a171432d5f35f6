"""Every metric of the worker, in base units. Labels are bounded: never a text, a model path or a request id.

One registry a server, so that several can live in one process (tests do).
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_SHORT_SECONDS = (0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_TOKENS = (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)


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
            "Requests dropped before they were scored: their deadline came, or nobody waits for them any more.",
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
            buckets=_SHORT_SECONDS,
            registry=registry,
        )
        self.batch_wait = Histogram(
            "rerank_worker_batch_wait_seconds",
            "How long a free engine held a batch back for company.",
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
        self.info = Info("rerank_worker", "What this worker serves.", registry=registry)

    def text(self) -> bytes:
        return generate_latest(self.registry)
