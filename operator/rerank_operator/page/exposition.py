"""Reads what the page needs from the text of a gateway's /metrics. Pure, and slow for large fleets: not for an event
loop.

Only Rerankers that are asked for are kept, so a gateway cannot make the page remember others.
"""

import math
import sys
from collections.abc import Collection, Iterable

import msgspec
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample as Line

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
_WANTED = (*(f"{name}{{" for name in (*_COUNTERS, _WAITING, _IN_FLIGHT)), f"{_BEGAN} ")


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


def read_sample(text: str, keys: Collection[Key]) -> Sample:
    """What ``text`` says about ``keys``. Raises ValueError where it is not in Prometheus' text format."""
    lines = [line for line in text.split("\n") if line.startswith(_WANTED)]
    return _sample(_lines("\n".join(lines) + "\n"), keys)


def _lines(text: str) -> Iterable[Line]:
    for family in text_string_to_metric_families(text):
        yield from family.samples


def _sample(lines: Iterable[Line], keys: Collection[Key]) -> Sample:
    began, counts, waiting, in_flight = None, dict[Key, dict[str, Counts]](), dict[Key, float](), dict[Key, float]()
    for line in lines:
        if line.name == _BEGAN:
            began = line.value
            continue
        key = (line.labels.get("namespace", ""), line.labels.get("reranker", ""))
        if key not in keys or not math.isfinite(line.value):
            continue
        if line.name == _WAITING:
            waiting[key] = line.value
        elif line.name == _IN_FLIGHT:
            in_flight[key] = line.value
        else:
            affix, label = _COUNTERS[line.name]
            value = line.labels.get(label, "")
            name = sys.intern(affix + value if affix.endswith("/") else value + affix)
            revision = sys.intern(line.labels.get("revision", ""))
            counts.setdefault(key, {}).setdefault(revision, {})[name] = line.value
    return Sample(began, counts, waiting, in_flight)
