"""Notes on a request that is traced, taken by those who serve it. Loads no SDK: tracing.py makes spans of them.

A request that is not sampled has none (None everywhere), so that it costs a look. Notes are times, counts and codes;
never text. The engine thread only appends; spans are made when the request ends, by the event loop's thread.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rerank_api import sampling
from rerank_api.worker_config import WorkerConfig

MOST_BATCHES = 32
"""Of a request that are noted: one of 10,000 documents is in hundreds, and their spans would hold up the event loop."""


@dataclass(eq=False, slots=True)
class Batch:
    """A batch, or a part of one, that held sampled ``requests``. Times are of time.monotonic(): it was ``started``, the
    engine began to compute it (None: it did not come to that), it ``ended``. ``padding``: tokens beside the real
    ``tokens``."""

    requests: "tuple[Trace, ...]"
    started: float
    computing: float | None
    ended: float
    pairs: int
    tokens: int
    padding: int
    engine: str
    precision: str
    error: str | None = None
    """Kind of what failed."""
    made: Any = None
    """The context of its span, once it has one."""


@dataclass(eq=False, slots=True)
class Trace:
    """A sampled request. ``span`` and ``zero`` are tracing's own; ``tokenizing``, ``waiting``: when each began and
    ended."""

    trace_id: str
    """32 hexadecimal digits."""
    span: Any
    zero: int = 0
    tokenizing: tuple[float, float] | None = None
    waiting: tuple[float, float] | None = None
    model: WorkerConfig | None = None
    documents: int | None = None
    tokens: int | None = None
    truncated: int | None = None
    in_batches: int = 0
    batches: list[Batch] = field(default_factory=list)
    """The first ``MOST_BATCHES`` of ``in_batches``."""

    def was_in(self, batch: Batch) -> None:
        self.in_batches += 1
        if len(self.batches) < MOST_BATCHES:
            self.batches.append(batch)


def sampled_trace_id(headers: Mapping[str, str]) -> str:
    """The id of the trace that the sender keeps, for logs; empty where it sends none, or does not keep it."""
    parent = sampling.parent(headers)
    return parent.trace_id if parent is not None and parent.sampled else ""
