"""What a judge has seen, as a text that an annotation can hold: a restart of the operator loses no evidence.

Below 48 KiB after the longest rollout: seconds in four bytes each (the judge rounds them to that before it looks at
them), flags as bits; evidence in full, for the verdicts must be the same as without the restart. What follows from the
weights and the settings is not stored, so a text is good under those only. Holds no text and no identity of a request.
"""

import base64
import math
import struct
import zlib
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

import msgspec

from rerank_operator.rollout.judge.dependence import KEPT, Flags
from rerank_operator.rollout.judge.evidence import Evidence, Totals
from rerank_operator.rollout.judge.intervals import Intervals, Sample
from rerank_operator.rollout.judge.judge import Judge, Settings
from rerank_operator.rollout.judge.latency import Exceedance
from rerank_operator.rollout.judge.windows import Window

VERSION = 3
"""Of what is stored, and of the odds ratios, which are not."""
MOST_BYTES = 2**18
"""That a text may unpack to: six times the longest."""

_Number = Annotated[int, msgspec.Meta(ge=0)]


class BadMemory(ValueError):
    """A text that this judge cannot go on from; the message says why."""


class _Stored(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    pass


class _Flags(_Stored):
    bits: bytes
    length: Annotated[int, msgspec.Meta(ge=0, le=KEPT)]


class _Window(_Stored):
    seconds: bytes
    failed: list[_Number]


class _Compared(_Stored):
    """Errors, or the latency at one quantile."""

    worse: list[list[float]]
    """Evidence.logs."""
    fine: list[list[float]]
    stable: _Flags
    canary: _Flags
    totals: Totals


class _Sample(_Stored):
    seconds: bytes
    every: Annotated[int, msgspec.Meta(ge=1)]
    came: _Number


class _Intervals(_Stored):
    fine: list[_Number]
    slower: list[_Number]
    stable: _Sample
    canary: _Sample


class _Memory(_Stored):
    version: int
    weights: list[float]
    settings: Settings
    golden: bool
    step: _Number
    since: float
    requests: _Number
    canary_requests: _Number
    stable: _Window
    canary: _Window
    errors: _Compared
    errors_requests: _Number
    errors_failed: _Number
    exceedances: list[_Compared]
    recent: bytes
    thresholds: list[float]
    fresh: _Number
    intervals: _Intervals
    cold: _Number
    queries: _Number


def to_text(judge: Judge) -> str:
    """In the letters of base64."""
    seen = judge.seen
    errors, latency = seen.errors, seen.latency
    memory = _Memory(
        VERSION,
        list(judge.weights),
        judge.settings,
        judge.golden,
        seen.step,
        seen.since,
        seen.requests,
        seen.canary_requests,
        _Window(_packed(seen.stable.seconds), list(seen.stable.failed)),
        _Window(_packed(seen.canary.seconds), list(seen.canary.failed)),
        _Compared(errors.worse.logs, errors.fine.logs, _bits(errors.stable), _bits(errors.canary), errors.totals),
        errors.requests,
        errors.failed,
        [_exceedance(one) for one in latency.exceedances],
        _packed(list(latency.recent)),
        latency.thresholds,
        latency.fresh,
        _intervals(latency.intervals),
        latency.cold,
        judge.queries,
    )
    return base64.b64encode(zlib.compress(msgspec.msgpack.encode(memory), 9)).decode("ascii")


def from_text(text: str, weights: Sequence[float], settings: Settings, *, golden: bool, queries: int = 0) -> Judge:
    """The judge that ``to_text`` was given. Raises BadMemory: the text is not understood, or was made under other
    weights, settings or with another idea of whether there is a golden set, or of how many metrics are the user's."""
    memory = _decoded(text)
    judge = Judge(weights, Window(), settings, golden=golden, queries=queries)
    if memory.version != VERSION:
        raise BadMemory(f"the evidence was written by another version: {memory.version}, this one reads {VERSION}")
    split = (memory.golden, memory.queries)
    if (memory.weights, memory.settings, split) != (judge.weights, settings, (golden, queries)):
        raise BadMemory("the evidence was gathered with other steps, limits or metrics: it must be gathered anew")
    try:
        _fill(judge, memory)
    except (ValueError, struct.error) as error:
        raise BadMemory(f"the evidence makes no sense: {error}") from None
    return judge


def _decoded(text: str) -> _Memory:
    try:
        unpack = zlib.decompressobj()
        content = unpack.decompress(base64.b64decode(text, validate=True), MOST_BYTES)
        if not unpack.eof:
            raise ValueError(f"it is cut short, or longer than {MOST_BYTES} bytes")
        return msgspec.msgpack.decode(content, type=_Memory)
    except (ValueError, zlib.error) as error:
        raise BadMemory(f"the evidence cannot be read: {error}") from None


def _fill(judge: Judge, memory: _Memory) -> None:
    """Raises ValueError or struct.error for what no judge could have written."""
    seen = judge.seen
    errors, latency = seen.errors, seen.latency
    if memory.step >= len(judge.weights):
        raise ValueError(f"step {memory.step} of {len(judge.weights)}")
    begun = memory.step + 1
    seen.step, seen.since = memory.step, _finite([memory.since])[0]
    seen.requests, seen.canary_requests = memory.requests, memory.canary_requests
    seen.stable, seen.canary = _window(memory.stable), _window(memory.canary)
    _fill_evidence(errors.worse, memory.errors.worse, begun)
    _fill_evidence(errors.fine, memory.errors.fine, 1)
    errors.stable, errors.canary = _flags(memory.errors.stable), _flags(memory.errors.canary)
    errors.totals, errors.requests, errors.failed = memory.errors.totals, memory.errors_requests, memory.errors_failed
    for one, stored in zip(latency.exceedances, memory.exceedances, strict=True):
        _fill_evidence(one.worse, stored.worse, begun)
        _fill_evidence(one.fine, stored.fine, 1)
        one.stable, one.canary, one.totals = _flags(stored.stable), _flags(stored.canary), stored.totals
    latency.recent.extend(_unpacked(memory.recent))
    if len(memory.thresholds) not in (0, len(latency.exceedances)):
        raise ValueError(f"{len(memory.thresholds)} thresholds")
    latency.thresholds, latency.fresh = _finite(memory.thresholds), memory.fresh
    latency.cold = memory.cold
    stored, intervals = memory.intervals, latency.intervals
    if not len(stored.fine) == len(stored.slower) == len(intervals.quantiles):
        raise ValueError(f"intervals of {len(stored.fine)} quantiles")
    intervals.fine, intervals.slower = stored.fine, stored.slower
    intervals.stable, intervals.canary = _sample(stored.stable), _sample(stored.canary)


def _intervals(intervals: Intervals) -> _Intervals:
    samples = (
        _Sample(_packed(sample.seconds), sample.every, sample.came) for sample in (intervals.stable, intervals.canary)
    )
    return _Intervals(intervals.fine, intervals.slower, *samples)


def _sample(stored: _Sample) -> Sample:
    return Sample(_unpacked(stored.seconds), stored.every, stored.came)


def _exceedance(one: Exceedance) -> _Compared:
    return _Compared(one.worse.logs, one.fine.logs, _bits(one.stable), _bits(one.canary), one.totals)


def _fill_evidence(evidence: Evidence, logs: list[list[float]], begun: int) -> None:
    if len(logs) != begun or any(len(each) != len(evidence.ratios) for each in logs):
        raise ValueError(f"evidence of {len(logs)} beginnings, where there were {begun}")
    evidence.logs = [_finite(each) for each in logs]


def _bits(flags: Flags) -> _Flags:
    return _Flags(flags.bits.to_bytes((flags.length + 7) // 8, "little"), flags.length)


def _flags(stored: _Flags) -> Flags:
    flags = Flags(int.from_bytes(stored.bits, "little"), stored.length)
    if flags.bits >> flags.length:
        raise ValueError(f"flags beyond the {flags.length} requests that there are")
    return flags


def _window(stored: _Window) -> Window:
    window = Window(_unpacked(stored.seconds), stored.failed)
    places = [-1, *stored.failed, len(window.seconds)]
    if any(later <= earlier for earlier, later in pairwise(places)):
        raise ValueError("failed requests that are none of those that wait")
    return window


def _packed(seconds: Sequence[float]) -> bytes:
    return struct.pack(f"<{len(seconds)}f", *seconds)


def _unpacked(content: bytes) -> list[float]:
    return _finite(struct.unpack(f"<{len(content) // 4}f", content))


def _finite(numbers: Sequence[float]) -> list[float]:
    if not all(map(math.isfinite, numbers)):
        raise ValueError("a number is not finite")
    return list(numbers)
