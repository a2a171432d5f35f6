"""The internal protocol between gateway and worker: one JSON POST a request. Clients never see it.

Kept small on purpose: API shapes (Cohere, Jina, TEI) are the gateway's, tokenisation and scoring the worker's.
"""

from typing import Literal

import msgspec

SCORE_PATH = "/v1/score"
MODELS_PATH = "/v1/models"
"""GET: the models in this process; PUT and DELETE of /v1/models/{key}: load or swap, unload (with the admin's bearer
token); POST of /v1/models/{key}/score: as SCORE_PATH, for that model."""
LIVE_PATH = "/healthz"
READY_PATH = "/readyz"
METRICS_PATH = "/metrics"

HEADER_REQUEST_ID = "X-Request-Id"
HEADER_TIMEOUT = "X-Rerank-Timeout-Ms"
"""Milliseconds that the sender will still wait; the worker drops work whose time is over."""


HEADER_PRIORITY = "X-Rerank-Priority"
"""high, normal (the default) or low: which request's pairs come first. Low ones wait, but never for ever."""

HEADER_CAPACITY = "X-Rerank-Capacity"
"""On a worker's answer with scores: the tokens a second that it can score, as measured, a whole number above 0. Absent
while it does not know."""

Priority = Literal["high", "normal", "low"]


class ScoreRequest(msgspec.Struct, forbid_unknown_fields=True):
    query: str
    documents: list[str]
    raw_scores: bool = False
    """True: the model's logits, without temperature and activation."""
    max_tokens_per_document: int | None = None
    """Cut each document to this many tokens before scoring."""


class ScoreResponse(msgspec.Struct):
    scores: list[float]
    """One a document, in the order of the request."""
    tokens: int
    """Real tokens scored, over all pairs, special tokens included."""
    truncated: list[int] = []
    """Indices of the documents that were cut to fit."""
    chunked: list[int] = []
    """Indices of the documents that were scored in several chunks, none of their text left out."""


ErrorCode = Literal[
    "invalid_request",  # 400: malformed JSON, wrong types, lone surrogates
    "too_long",  # 422: a document beyond maxLength and longDocuments is reject; or the query alone fills maxLength
    "busy",  # 429: admission refused, with Retry-After
    "deadline",  # 504: X-Rerank-Timeout-Ms was over before the scores were ready
    "unavailable",  # 503: loading or draining
    "internal",  # 500
    # Of the admin calls and of requests for a model by its key only:
    "unauthorized",  # 401: no bearer token, or the wrong one
    "not_found",  # 404: no model has this key, or the admin calls are switched off
    "loading",  # 409: the model that is to be unloaded is being loaded, which cannot be stopped
    "no_room",  # 507: the model does not fit beside those that are loaded
]


class WorkerError(msgspec.Struct):
    """Body of every answer that is not 200. ``code`` is for programs, ``message`` for people."""

    code: ErrorCode
    message: str
