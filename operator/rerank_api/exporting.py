"""How gateway and worker send spans: over OTLP/HTTP, as the standard OTEL_* environment says (``otlp`` reads it first).

The one module here that does I/O and loads a library of its own: only who exports traces imports it, and has the SDK
among its own requirements. A thread of the SDK's sends from a queue with a limit: nothing waits for a collector, and
what it does not take in time is lost. What it has to say of that must not fill the log.
"""

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable
from socket import gethostname

from opentelemetry.exporter.otlp.proto.common import _internal as encoding
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk._shared_internal import BatchProcessor
from opentelemetry.sdk.resources import (
    SERVICE_INSTANCE_ID,
    SERVICE_NAME,
    SERVICE_VERSION,
    OTELResourceDetector,
    Resource,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import Sampler

log = logging.getLogger(__name__)

LAST_SPANS = 2.0
"""Seconds that a process which ends gives to what was not sent yet."""

COMPLAIN_EVERY = 60.0
"""Seconds between lines about a collector that does not take spans."""

_COMPLAINING = (OTLPSpanExporter.__module__, BatchProcessor.__module__, encoding.__name__)
"""Loggers of who sends, of the queue that is full, and of who leaves out what is no text."""


class Exporter:
    """``service``: whose spans they are, where the environment does not name it; ``clock``: the one of all times."""

    def __init__(self, service: str, version: str, clock: Callable[[], float]) -> None:
        own = {SERVICE_NAME: service, SERVICE_VERSION: version, SERVICE_INSTANCE_ID: gethostname()}
        # What the environment says goes before; the SDK's own guesses (a random instance) do not.
        self._resource = Resource.create({**own, **OTELResourceDetector().detect().attributes})
        self._processor = BatchSpanProcessor(OTLPSpanExporter())
        self._clock = clock
        # What is wrong with a client's header is the client's, whose words would be quoted.
        logging.getLogger("opentelemetry.trace").setLevel(logging.CRITICAL)
        self._seldom = _Seldom(clock)
        for name in _COMPLAINING:
            logging.getLogger(name).addFilter(self._seldom)

    def provider(self, sampler: Sampler | None = None, ids: IdGenerator | None = None) -> TracerProvider:
        """Of tracers whose spans are sent. None: the environment's sampler; ids at random."""
        made = TracerProvider(sampler, self._resource, shutdown_on_exit=False, id_generator=ids)
        made.add_span_processor(self._processor)
        return made

    def zero(self) -> int:
        """Unix nanoseconds at the clock's 0. Asked once for all times of a request, so that a step of the system's time
        makes no span longer or shorter, and the next request has the right time again."""
        return time.time_ns() - round(self._clock() * 1e9)

    async def close(self) -> None:
        """Send what is left, for ``LAST_SPANS`` at most."""
        # The SDK's own wait has another bound, and a collector that is away would use it up.
        last = threading.Thread(target=self._processor.shutdown, name="last spans", daemon=True)
        last.start()
        await asyncio.to_thread(last.join, LAST_SPANS)
        if last.is_alive():
            log.warning("the last spans were not sent: the collector did not take them within %g s", LAST_SPANS)
        for name in _COMPLAINING:
            logging.getLogger(name).removeFilter(self._seldom)


class _Seldom(logging.Filter):
    """Lets one line of all that have it through, now and then. For any thread."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self._clock = clock
        self._lock = threading.Lock()
        self._next = -math.inf

    def filter(self, record: logging.LogRecord) -> bool:
        del record  # whatever it says
        now = self._clock()
        with self._lock:
            if now < self._next:
                return False
            self._next = now + COMPLAIN_EVERY
        return True
