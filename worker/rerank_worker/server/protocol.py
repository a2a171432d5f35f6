"""Bytes and headers to typed requests, outcomes to answers. Errors name the field and never repeat a text."""

from dataclasses import dataclass

import msgspec
from aiohttp import web
from rerank_api.wire import ErrorCode, ScoreRequest, WorkerError

STATUS: dict[ErrorCode, int] = {
    "invalid_request": 400,
    "too_long": 422,
    "busy": 429,
    "deadline": 504,
    "unavailable": 503,
    "internal": 500,
}

RETRY_AFTER_SECONDS = 1

_decoder = msgspec.json.Decoder(ScoreRequest)
_encoder = msgspec.json.Encoder()


@dataclass(eq=False)
class Refusal(Exception):
    """A request that is answered with an error."""

    code: ErrorCode
    message: str


def decode(body: bytes) -> ScoreRequest:
    """The request in ``body``. Raises Refusal (invalid_request)."""
    try:
        request = _decoder.decode(body)
    except msgspec.ValidationError as error:
        raise Refusal("invalid_request", f"the request does not fit: {error}") from error
    except msgspec.DecodeError as error:
        raise Refusal("invalid_request", f"the body is not valid JSON: {error}") from error
    except UnicodeDecodeError as error:
        raise Refusal("invalid_request", f"the body is not UTF-8: {error.reason} at byte {error.start}") from error
    limit = request.max_tokens_per_document
    if limit is not None and limit < 1:
        raise Refusal("invalid_request", "max_tokens_per_document is less than 1: leave it out for no limit")
    return request


def seconds_left(header: str | None, default: float) -> float:
    """Seconds that the sender still waits. Raises Refusal when the header is not a whole number."""
    if header is None:
        return default
    # isdigit alone admits digits of other scripts; the length bound keeps absurd numbers from overflowing.
    if not (header.isascii() and header.isdigit() and len(header) <= 12):
        raise Refusal("invalid_request", "the header X-Rerank-Timeout-Ms is not a whole number of milliseconds")
    return min(int(header) / 1000, default)


def encode(content: object) -> bytes:
    return _encoder.encode(content)


def answer(content: object) -> web.Response:
    return web.Response(body=encode(content), content_type="application/json")


def refuse(refusal: Refusal) -> web.Response:
    status = STATUS[refusal.code]
    headers = {"Retry-After": str(RETRY_AFTER_SECONDS)} if status in (429, 503) else None
    body = encode(WorkerError(refusal.code, refusal.message))
    return web.Response(status=status, body=body, content_type="application/json", headers=headers)


def refuse_http(error: web.HTTPException) -> web.Response:
    """aiohttp's own refusals (404, 405, 413) as JSON, with their headers."""
    message = {404: "there is no such path", 413: "the body is larger than this worker takes"}.get(
        error.status, error.reason
    )
    headers = {name: value for name, value in error.headers.items() if name in {"Allow", "Retry-After"}}
    body = encode(WorkerError("invalid_request", message))
    return web.Response(status=error.status, body=body, content_type="application/json", headers=headers)
