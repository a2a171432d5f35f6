"""Which traces are kept, decided from a request's headers before any span is made.

The SDK decides the same (a test holds this to it), but most requests are not sampled, and a span of the SDK that keeps
nothing takes longer than all that is counted of its request. Pure, and loads no SDK.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from rerank_api import otlp

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"
"""Headers of the W3C's Trace Context. The form of the first: version, trace, span, and flags."""

_PARENT = re.compile(r"(?!ff|00.{54})[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
"""A version to come may say more than the 55 characters of version 00."""
_SAMPLED = 1
_FLAGS = tuple(f"{flags:02x}" for flags in range(256))
"""As the header has them, written once: each request needs one."""
_IDS = 1 << 64
"""By the lower half of its id a share of the traces is kept."""


class Parent(NamedTuple):
    """The span that a request comes from."""

    trace_id: str
    """32 hex digits."""
    span_id: str
    flags: int

    @property
    def sampled(self) -> bool:
        return bool(self.flags & _SAMPLED)


def parent(headers: Mapping[str, str]) -> Parent | None:
    """None: there is none, or none of the form that is known."""
    given = headers.get(TRACEPARENT)
    found = _PARENT.fullmatch(given) if given is not None else None
    return Parent(found[1], found[2], int(found[3], 16)) if found is not None else None


def traceparent(trace_id: str, span_id: str, flags: int) -> str:
    """The header by which the next process continues the trace below that span."""
    return f"00-{trace_id}-{span_id}-{_FLAGS[flags]}"


class Sampling(NamedTuple):
    by_parent: bool
    """Who sends a request decides, where it is part of a trace."""
    bound: int
    """Kept are, else, ids of which the lower half is below it."""

    def keeps(self, trace_id: str, parent: Parent | None) -> bool:
        if parent is not None and self.by_parent:
            return parent.sampled
        return int(trace_id[16:], 16) < self.bound


def of(environment: Mapping[str, str]) -> Sampling:
    """``environment``: one that otlp.traces_wanted has checked."""
    sampler = environment.get(otlp.SAMPLER, "").lower() or otlp.BY_DEFAULT
    if sampler in otlp.WITH_RATIO:
        share = otlp.checked_ratio(environment.get(otlp.SAMPLER_ARGUMENT, ""))
    else:
        share = float(sampler in otlp.ALWAYS)
    return Sampling(sampler in otlp.PARENT_BASED, round(share * _IDS))
