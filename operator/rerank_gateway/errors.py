"""Every answer that is not a success: a JSON body with a code for programs and a sentence for people.

Nothing here may show what is inside: an unexpected exception becomes a plain 500, and goes to the log without any
text of the request.
"""

import logging
import traceback
from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from rerank_gateway.record import RECORD

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ApiError(Exception):
    """Ends a request with ``status``. ``message`` says what was wrong and what to do; ``field`` where."""

    def __init__(
        self, status: int, code: str, message: str, *, field: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.field = field
        self.retry_after = retry_after


class _Error(msgspec.Struct, omit_defaults=True):
    code: str
    message: str
    field: str | None = None


class _ErrorBody(msgspec.Struct):
    error: _Error
    message: str  # where Cohere's clients look


def error_body(code: str, message: str, field: str | None = None) -> bytes:
    return msgspec.json.encode(_ErrorBody(_Error(code, message, field), message))


def error_response(error: ApiError) -> web.Response:
    response = web.Response(
        status=error.status,
        body=error_body(error.code, error.message, error.field),
        content_type="application/json",
    )
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(error.retry_after)
    if error.status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except ApiError as error:
        record = request.get(RECORD)
        if record is not None:
            record.error = error.code
        return error_response(error)
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods - {"HEAD"}))
        message = f"{request.method} is not allowed here: use {allowed}"
        response = error_response(ApiError(405, "method_not_allowed", message))
        response.headers["Allow"] = allowed
        return response
    except web.HTTPNotFound:
        path = request.path if len(request.path) <= 100 else f"{request.path[:100]}..."
        message = f"there is nothing at {path!r}: POST to /v2/rerank, /v1/rerank or /rerank"
        return error_response(ApiError(404, "not_found", message))
    except web.HTTPException as error:
        return error_response(ApiError(error.status, "invalid_request", error.reason))
    except (HttpProcessingError, web.RequestPayloadError) as error:
        return error_response(ApiError(400, "invalid_request", f"the body is no valid HTTP: {type(error).__name__}"))
    except Exception as error:
        # Only the type and the place: the message of an exception may quote the request.
        place = "".join(traceback.format_tb(error.__traceback__))
        log.error("unexpected %s while answering a request\n%s", type(error).__name__, place)
        return error_response(ApiError(500, "internal", "internal error: the gateway's log tells more"))
