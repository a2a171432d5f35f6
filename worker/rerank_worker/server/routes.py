"""Paths and methods of the worker, and the one place where exceptions become answers."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Protocol

from aiohttp import web
from rerank_api import wire

from rerank_worker.logs import Sparing
from rerank_worker.metrics import Metrics
from rerank_worker.server import protocol
from rerank_worker.server.admin import AdminRoutes
from rerank_worker.server.admission import Admission
from rerank_worker.server.body import Body
from rerank_worker.server.models import Model
from rerank_worker.server.protocol import Refusal
from rerank_worker.trace import Trace, sampled_trace_id

if TYPE_CHECKING:
    from rerank_worker.tracing import Tracing

log = logging.getLogger(__name__)

LINES_AT_ONCE, SECONDS_A_LINE = 20, 1.0
"""Of the log, for requests that are answered with the same error code: a full worker refuses thousands a second."""

CLIENT_WENT_AWAY = 499

INFO_PATH = "/v1/info"

MAX_BODY_BYTES = 96 * 2**20
"""Above the gateway's own largest limit (64 MiB); only keeps a stray client from filling the memory."""

DEFAULT_TIMEOUT = 60.0
"""Seconds for a request without a deadline of its own."""

_PATHS = (
    f"POST {wire.SCORE_PATH}, POST {wire.MODELS_PATH}/KEY/score, GET {wire.MODELS_PATH}, PUT and DELETE "
    f"{wire.MODELS_PATH}/KEY, GET {INFO_PATH}, GET {wire.LIVE_PATH}, GET {wire.READY_PATH}, GET {wire.METRICS_PATH}"
)


_TRACE_ID = web.RequestKey("trace_id", str)


class State(Protocol):
    """What the routes ask of the running server."""

    metrics: Metrics
    bodies: Admission
    tracing: "Tracing | None"
    """None: no traces are exported."""

    def model(self, key: str | None) -> Model:
        """The model with ``key``; None: the one the process was started with. Raises Refusal while the worker takes no
        requests, and where there is no such model."""
        ...

    def entered(self) -> None: ...

    def left(self) -> None: ...

    def draining(self) -> bool: ...

    def not_live(self) -> str | None: ...

    def not_ready(self) -> str | None: ...

    def info(self) -> dict[str, object]: ...


def build_app(state: State, admin: AdminRoutes) -> web.Application:
    routes = _Routes(state)
    app = web.Application(middlewares=[routes.errors_as_json])
    app.router.add_post(wire.SCORE_PATH, routes.score)
    app.router.add_post(wire.MODELS_PATH + "/{key}/score", routes.score)
    admin.add_to(app)
    app.router.add_get(INFO_PATH, routes.info)
    app.router.add_get(wire.LIVE_PATH, routes.live)
    app.router.add_get(wire.READY_PATH, routes.ready)
    app.router.add_get(wire.METRICS_PATH, routes.metrics)
    return app


class _Routes:
    def __init__(self, state: State) -> None:
        self._state = state
        self._sparing = Sparing(LINES_AT_ONCE, SECONDS_A_LINE)

    @web.middleware
    async def errors_as_json(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        try:
            response = await handler(request)
        except Refusal as refusal:
            response = protocol.refuse(refusal)
        except web.HTTPException as error:
            response = protocol.refuse_http(error, request.method, _PATHS)
        except ConnectionError:
            raise
        except Exception:
            self._tell(request, "internal", 500, "a request failed", traceback=True)
            response = protocol.refuse(Refusal("internal", "the worker failed on this request; its log says why"))
        if (request_id := request.headers.get(wire.HEADER_REQUEST_ID)) is not None:
            response.headers[wire.HEADER_REQUEST_ID] = request_id
        if self._state.draining():
            # So that kept-alive connections move to workers that stay.
            response.force_close()
        return response

    async def score(self, request: web.Request) -> web.Response:
        state, started, code = self._state, time.monotonic(), CLIENT_WENT_AWAY
        kind: str | None = "client_went_away"
        trace = self._begin(request, started)
        state.entered()
        try:
            response = await self._score(request, started, trace)
            code, kind = response.status, None
            return response
        except Refusal as refusal:
            code, kind = protocol.STATUS[refusal.code], refusal.code
            self._tell(request, kind, code, "request refused")
            raise
        except web.HTTPException as error:
            code, kind = error.status, "invalid_request"
            self._tell(request, kind, code, "request refused")
            raise
        except asyncio.CancelledError:
            raise
        except Exception:
            code, kind = 500, "internal"
            raise
        finally:
            state.left()
            state.metrics.requests.labels(str(code)).inc()
            state.metrics.request_duration.observe(time.monotonic() - started)
            if trace is not None and state.tracing is not None:
                state.tracing.end(trace, code, kind, request.headers.get(wire.HEADER_REQUEST_ID, ""))

    def _begin(self, request: web.Request, started: float) -> Trace | None:
        if self._state.tracing is None:
            return None
        route = request.match_info.route.resource
        path = request.path if route is None else route.canonical
        trace = self._state.tracing.begin(request.headers, request.method, path, started)
        request[_TRACE_ID] = "" if trace is None else trace.trace_id
        return trace

    async def _score(self, request: web.Request, started: float, trace: Trace | None) -> web.Response:
        headers = request.headers
        model = self._state.model(request.match_info.get("key"))
        scorer = model.ready()
        seconds = protocol.seconds_left(headers.get(wire.HEADER_TIMEOUT), DEFAULT_TIMEOUT)
        priority = protocol.priority(headers.get(wire.HEADER_PRIORITY))
        scorer.check()
        with model.serving(), Body(request, MAX_BODY_BYTES, self._state.bodies) as body:
            decoded = protocol.decode(await body.read(started + seconds - time.monotonic()))
            response = protocol.answer(await scorer.score(decoded, started + seconds, priority, trace))
            if (capacity := round(scorer.tokens_per_second or 0)) > 0:
                response.headers[wire.HEADER_CAPACITY] = str(capacity)
            return response

    def _tell(self, request: web.Request, kind: str, code: int, message: str, *, traceback: bool = False) -> None:
        """A line of the log, unless there were many of the ``kind``."""
        if (left_out := self._sparing.left_out(f"{message} {kind}")) is None:
            return
        fields: dict[str, object] = {
            "code": kind,
            "status": code,
            "path": request.path,
            "request_id": request.headers.get(wire.HEADER_REQUEST_ID, ""),
        }
        if trace_id := request.get(_TRACE_ID) or sampled_trace_id(request.headers):
            fields["trace_id"] = trace_id
        if left_out:
            fields["left_out"] = left_out
        level = logging.ERROR if traceback else logging.WARNING if code == 500 else logging.INFO
        log.log(level, message, extra={"fields": fields}, exc_info=traceback)

    async def info(self, _request: web.Request) -> web.Response:
        return protocol.answer(self._state.info())

    async def live(self, _request: web.Request) -> web.Response:
        return self._probe(self._state.not_live())

    async def ready(self, _request: web.Request) -> web.Response:
        return self._probe(self._state.not_live() or self._state.not_ready())

    def _probe(self, problem: str | None) -> web.Response:
        if problem is not None:
            raise Refusal("unavailable", problem)
        return protocol.answer({"status": "ok"})

    async def metrics(self, _request: web.Request) -> web.Response:
        text = await asyncio.to_thread(self._state.metrics.text)
        return web.Response(body=text, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})
