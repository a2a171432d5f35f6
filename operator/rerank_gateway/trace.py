"""The trace that a request is part of, as those see it who are on the request's way.

This one keeps no spans and costs next to nothing: it only hands the client's context on. Where traces are exported,
tracing.py makes those that keep them. Loads no SDK, and is never told any text of a request.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from rerank_api import sampling
from rerank_api.sampling import TRACEPARENT, traceparent

from rerank_gateway.cluster.state import Endpoint

if TYPE_CHECKING:
    from rerank_gateway.record import Record


class Attempt:
    """One try at a worker."""

    __slots__ = ("headers", "status")

    def __init__(self, headers: Mapping[str, str]) -> None:
        self.headers = headers
        """To be sent along, so that the worker's spans belong to the trace."""
        self.status = 0
        """HTTP status of the worker's answer; 0: there was none."""


class Trace:
    """Of a request whose spans are not kept."""

    __slots__ = ("_headers", "trace_id")

    sampled = False

    def __init__(self, trace_id: str = "", headers: Mapping[str, str] | None = None) -> None:
        self.trace_id = trace_id
        """32 hex digits; empty: the request is part of none."""
        self._headers = headers or {}

    def waiting(self) -> AbstractContextManager[None]:
        """While the request waits in the queue."""
        return _NOTHING

    def attempt(self, endpoint: Endpoint, number: int, *, mirrored: bool = False) -> AbstractContextManager[Attempt]:
        """While a worker has the request. ``number``: from 1; ``mirrored``: a canary is asked, and no user waits."""
        return nullcontext(Attempt(self._headers))

    def cut(self) -> None:
        """The gateway is about to end the request, and not its client: the time of a drain is over."""

    def end(self, record: "Record", ended: float) -> None:
        """The answer has gone out, or its client has. ``ended``: of the clock by which the trace began."""


_NOTHING = nullcontext()
UNTRACED = Trace()

Begin = Callable[[Mapping[str, str], str, str, float], Trace]
"""From a request's headers, method, route and when it came."""


def pass_on(headers: Mapping[str, str], method: str, route: str, started: float) -> Trace:
    """Where no traces are exported: a worker that does so continues the client's."""
    parent = sampling.parent(headers)
    return UNTRACED if parent is None else Trace(parent.trace_id, {TRACEPARENT: traceparent(*parent)})
