"""Reads what the page needs from a gateway's /metrics. Pure, and slow for large fleets: not for an event loop.

Only Rerankers that are asked for are kept, so a gateway cannot make the page remember others. Whatever it answers, it
takes time and memory in proportion to its length.
"""

import io
import math
import sys
from collections.abc import Collection

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from rerank_operator.controller.kinds import Key

Counts = dict[str, float]
"""Counters of one revision by family and series: ``code/200``, ``availability/total``, ``availability/good``,
``latency/total``, ``latency/good``, and ``le/0.05``, the requests answered within so many seconds."""

_BEGAN = "process_start_time_seconds"
_WAITING = "rerank_gateway_waiting_requests"
_IN_FLIGHT = "rerank_gateway_in_flight_requests"
_COUNTERS = {
    "rerank_gateway_requests_total": ("code/", "code"),
    "rerank_gateway_sli_requests_total": ("/total", "sli"),
    "rerank_gateway_sli_good_requests_total": ("/good", "sli"),
    "rerank_gateway_request_duration_seconds_bucket": ("le/", "le"),
}
"""A counter to what its series are called here: what stands before or behind the label's value, and the label."""
SERIES = (*_COUNTERS, _WAITING, _IN_FLIGHT, _BEGAN)
"""By name, all that are read: what gateways are to be asked for."""
_WANTED = tuple((name + after).encode() for name in SERIES for after in "{ ")
_LONGEST_LINE = 2000
"""Bytes: three times what the longest names need. The parser's time grows with the square of it."""


_Place = tuple[str, Key, str, str]
"""Metric, Reranker, revision, and what the series is called here."""


class Sample(msgspec.Struct, frozen=True):
    """What one gateway said at one moment."""

    began: float | None = None
    """When its process began, Unix seconds of its clock; None: it does not tell."""
    counts: dict[Key, dict[str, Counts]] = {}
    """By Reranker and revision; the revision is empty where a request was answered before one was chosen."""
    waiting: dict[Key, float] = {}
    """Requests that wait for a worker."""
    in_flight: dict[Key, float] = {}
    """Requests at a worker."""


_MOST_SERIES = 100
"""Of one Reranker, that a reader remembers: two revisions have 80."""
_FEWEST_SERIES = 10_000
"""That a reader may remember however few Rerankers there are."""


class Reader:
    """Reads one answer after the other. The parser takes 30 us for a line, and labels stay as they are: what a series
    is called is parsed once, whichever gateway tells it, and later only its value is read."""

    def __init__(self) -> None:
        self._places: dict[bytes, _Place] = {}

    def read(self, answer: bytes, keys: Collection[Key]) -> Sample:
        """What ``answer`` says about ``keys``. Raises ValueError where it is not in Prometheus' text format, or nothing
        of a gateway stands in it."""
        most = max(_FEWEST_SERIES, _MOST_SERIES * len(keys))
        if len(self._places) >= most:
            self._places.clear()  # of revisions and Rerankers that are gone
        began, counts, waiting, in_flight = None, dict[Key, dict[str, Counts]](), dict[Key, float](), dict[Key, float]()
        told = False
        for line in io.BytesIO(answer):  # one at a time: all at once they take ten times the room
            if not line.startswith(_WANTED):
                continue
            if len(line) > _LONGEST_LINE:
                raise _not_understood(line)
            told = True
            series, _, number = line.rpartition(b" ")
            place = self._places.get(series)
            if place is None:
                place, value = _parsed(line)
                if series.endswith(b"}") and len(self._places) < most:  # else a time follows the value
                    self._places[series] = place
            else:
                value = float(number)
            family, key, revision, name = place
            if not 0 <= value < math.inf:
                continue
            if family == _BEGAN:
                began = value
            elif key not in keys:
                continue
            elif family == _WAITING:
                waiting[key] = value
            elif family == _IN_FLIGHT:
                in_flight[key] = value
            else:
                counts.setdefault(key, {}).setdefault(revision, {})[name] = value
        if not told:
            raise ValueError("there are no metrics of a gateway in it")
        return Sample(began, counts, waiting, in_flight)


def _parsed(line: bytes) -> tuple[_Place, float]:
    try:
        (family,) = text_string_to_metric_families(line.decode() + "\n")
        (sample,) = family.samples
        labels = sample.labels
        affix, label = _COUNTERS.get(sample.name, ("", ""))
        value = labels.get(label, "")
        name = affix + value if affix.endswith("/") else value + affix
        if name.startswith("le/") and math.isnan(float(name[3:])):
            raise ValueError("an edge is no number")
    except Exception as error:  # the parser's errors are of many kinds
        raise _not_understood(line) from error
    key = (labels.get("namespace", ""), labels.get("reranker", ""))
    return (sys.intern(sample.name), key, sys.intern(labels.get("revision", "")), sys.intern(name)), sample.value


def _not_understood(line: bytes) -> ValueError:
    return ValueError(f"a line of its metrics is not understood: {line[:200].decode(errors='replace')!r}")
