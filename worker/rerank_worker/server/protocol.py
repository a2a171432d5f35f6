"""Bytes and headers to typed requests, outcomes to answers. Errors name the field and never repeat a text."""

import re
from dataclasses import dataclass
from typing import Any, TypeVar, get_args

import msgspec
from aiohttp import web
from rerank_api import wire
from rerank_api.wire import ErrorCode, Priority, ScoreRequest, WorkerError
from rerank_api.worker_config import WorkerConfig

from rerank_worker.failures import ConfigurationFailure
from rerank_worker.loading.model import check_ranges

STATUS: dict[ErrorCode, int] = {
    "invalid_request": 400,
    "unauthorized": 401,
    "not_found": 404,
    "loading": 409,
    "too_long": 422,
    "busy": 429,
    "deadline": 504,
    "unavailable": 503,
    "internal": 500,
    "no_room": 507,
}

T = TypeVar("T", bound=msgspec.Struct)

_LONE = re.compile(rb"\\u[dD][89abAB]..(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]..)\\u[dD][c-fC-F]")
"""An escape of half a surrogate pair without its other half; the decoder's own words may be about something else."""

_PLACE = re.compile(r" - at `\$(?P<path>\.[^`]*)`$")
"""Where in the JSON an error is, at the end of its words."""

_PRIORITIES: dict[str, Priority] = {name: name for name in get_args(Priority)}

MAX_TIMEOUT = 600.0
"""Seconds; the most that any request may wait for its answer."""

_decoder = msgspec.json.Decoder(ScoreRequest)
_config_decoder = msgspec.json.Decoder(WorkerConfig)
_encoder = msgspec.json.Encoder()


@dataclass(eq=False)
class Refusal(Exception):
    """A request that is answered with an error. ``retry_after``: seconds, told where the answer is 429 or 503."""

    code: ErrorCode
    message: str
    retry_after: int = 1


def decode(body: bytes) -> ScoreRequest:
    """The request in ``body``. Raises Refusal (invalid_request)."""
    request = _decode(_decoder, body)
    limit = request.max_tokens_per_document
    if limit is not None and limit < 1:
        raise Refusal("invalid_request", "max_tokens_per_document is less than 1: leave it out for no limit")
    return request


def decode_config(body: bytes) -> WorkerConfig:
    """What to load, as the operator writes it. Raises Refusal (invalid_request)."""
    config = _decode(_config_decoder, body)
    try:
        check_ranges(config)
    except ConfigurationFailure as failure:
        raise Refusal("invalid_request", failure.sentence) from failure
    return config


def _decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise Refusal("invalid_request", f"the request does not fit: {explained(error, decoder.type)}") from error
    except msgspec.DecodeError as error:
        what = " (it has a lone surrogate: \\ud800 to \\udfff are halves of a pair)" if _LONE.search(body) else ""
        raise Refusal("invalid_request", f"the body is not valid JSON: {error}{what}") from error
    except UnicodeDecodeError as error:
        raise Refusal("invalid_request", f"the body is not UTF-8: {error.reason} at byte {error.start}") from error
    except RecursionError as error:
        raise Refusal("invalid_request", "the body is nested too deeply") from error


def explained(error: msgspec.DecodeError, kind: type[msgspec.Struct]) -> str:
    """The words of ``error``, about JSON that is no ``kind``, and what may be written there instead."""
    text = str(error)
    place = _PLACE.search(text)
    found: Any = kind
    for name in place["path"].split(".")[1:] if place else []:
        found = _fields(found).get(name)
    if "unknown field" in text and (known := _fields(found)):
        return f"{text}: the fields are {', '.join(known)}"
    if "enum value" in text and (allowed := get_args(found)):
        return f"{text}: write one of {', '.join(map(str, allowed))}"
    return text


def _fields(kind: Any) -> dict[str, Any]:
    """Types of a Struct's fields, by their names in JSON; empty for what is none."""
    if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
        return {}
    return {field.encode_name: field.type for field in msgspec.structs.fields(kind)}


def seconds_left(header: str | None, default: float) -> float:
    """Seconds that the sender still waits; ``default`` where it does not say. Raises Refusal."""
    if header is None:
        return default
    # isdigit alone admits digits of other scripts.
    if not (header.isascii() and header.isdigit()):
        raise Refusal("invalid_request", f"the header {wire.HEADER_TIMEOUT} is not a whole number of milliseconds")
    # A number of thousands of digits takes long to read, or cannot be.
    if len(header.lstrip("0")) > 12:
        raise Refusal(
            "invalid_request",
            f"the header {wire.HEADER_TIMEOUT} is too large a number: a request waits {MAX_TIMEOUT:.0f} s at most "
            f"({MAX_TIMEOUT * 1000:.0f})",
        )
    return min(int(header) / 1000, MAX_TIMEOUT)


def priority(header: str | None) -> Priority:
    """Whose pairs come first. Raises Refusal."""
    if header is None:
        return "normal"
    if header not in _PRIORITIES:
        known = ", ".join(get_args(Priority))
        raise Refusal("invalid_request", f"the header {wire.HEADER_PRIORITY} is none of {known}")
    return _PRIORITIES[header]


def encode(content: object) -> bytes:
    return _encoder.encode(content)


def answer(content: object) -> web.Response:
    return web.Response(body=encode(content), content_type="application/json")


def refuse(refusal: Refusal) -> web.Response:
    status = STATUS[refusal.code]
    headers = {"Retry-After": str(refusal.retry_after)} if status in (429, 503) else {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    body = encode(WorkerError(refusal.code, refusal.message))
    return web.Response(status=status, body=body, content_type="application/json", headers=headers)


def refuse_http(error: web.HTTPException, method: str, paths: str) -> web.Response:
    """aiohttp's own refusals (404, 405) and those of bodies (413, 415) as JSON, with their headers. ``paths``: what
    there is instead of the path that is not."""
    message = error.reason
    if error.status in (413, 415) and error.text:
        message = error.text
    elif error.status == 404:
        message = f"there is no such path; there are: {paths}"
    elif error.status == 405:
        message = f"this path does not take {method}, but {error.headers['Allow']}"
    headers = {name: value for name, value in error.headers.items() if name in {"Allow", "Retry-After"}}
    body = encode(WorkerError("invalid_request", message))
    return web.Response(status=error.status, body=body, content_type="application/json", headers=headers)
