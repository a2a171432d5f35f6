"""What is noted about one request, for the access log and the metrics. Never holds text of a query or document."""

import math
from dataclasses import dataclass

from aiohttp import web

from rerank_gateway.trace import UNTRACED, Trace


@dataclass(slots=True)
class Record:
    request_id: str
    route: str = ""
    """The route's pattern, not the path that was asked for."""
    namespace: str = ""
    reranker: str = ""
    revision: str = ""
    code: int = 0
    error: str = ""
    body_bytes: int = 0
    documents: int = 0
    tokens: int = 0
    truncated: int = 0
    chunked: int = 0
    attempts: int = 0
    waited: float = 0.0
    seconds: float = 0.0
    """Of the last attempt that gave scores, from when it began to wait for a worker."""
    priority: str = ""
    """high, normal or low; empty until it is known."""
    cache: str = ""
    """hit, partial or miss; empty where nothing is cached."""
    cached: int = 0
    """Documents whose scores were known."""
    patience: float = math.inf
    """Seconds after which the client wants no answer any more, as it has said."""
    candidate_fetch: float | None = None
    """Seconds that the client says it took to find the documents."""
    trace_id: str = ""
    """Of the trace that the request is part of, 32 hex digits; empty where there is none."""
    sampled: bool = False
    """The trace is exported: one who follows its id finds something."""
    trace: Trace = UNTRACED
    """Which those on the request's way tell what they do."""


RECORD: web.RequestKey[Record] = web.RequestKey("record", Record)
