"""Durations, quantities and times as people write them ("150ms", "5m30s", "8Mi", RFC 3339) to seconds and bytes.

Only parses and formats; which values a field accepts is the CRD's business.
"""

import math
import re
from datetime import datetime

_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|us|µs|ns|h|m|s)")
_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}

_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(Ki|Mi|Gi|Ti|k|M|G|T)?")
_FACTORS = {
    None: 1,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
}

LATEST_INSTANT = 253_402_300_799
"""9999-12-31T23:59:59Z, Unix seconds: a calendar with years of four digits has no later one."""


def parse_duration(text: str) -> float:
    """Seconds in a Go-style duration such as ``"5ms"``, ``"1m30s"`` or ``"0s"``.

    Raises ValueError when the text is not one.
    """
    seconds, end = 0.0, 0
    for part in _DURATION_PART.finditer(text):
        if part.start() != end:
            break
        seconds += float(part[1]) * _SECONDS[part[2]]
        end = part.end()
    if end == 0 or end != len(text) or seconds == math.inf:
        raise ValueError(f"{text[:100]!r} is not a duration: write numbers with units, such as 5ms, 10s or 1m30s")
    return seconds


def parse_quantity(value: str | int) -> int:
    """Whole units (bytes, for memory) in a Kubernetes quantity such as ``"8Mi"``, ``"1.5G"`` or ``1048576``.

    Raises ValueError when the value is not one.
    """
    match = _QUANTITY.fullmatch(str(value))
    amount = float(match[1]) * _FACTORS[match[2]] if match is not None else math.inf
    if amount == math.inf:
        raise ValueError(
            f"{str(value)[:100]!r} is not a quantity: write a number and perhaps a unit, such as 8Mi or 500k"
        )
    return int(amount)


def parse_instant(text: str) -> float:
    """Unix seconds of an RFC 3339 time, which has a zone, such as ``"2026-11-22T18:00:00Z"``: 0 to LATEST_INSTANT.

    Raises ValueError when the text is not one, or one that cannot be told in UTC: with their zones, the first and the
    last hours of the calendar lie outside of it.
    """
    try:
        found = datetime.fromisoformat(text)
        seconds = found.timestamp() if found.tzinfo is not None else None
    except (ValueError, OverflowError):
        seconds = None
    if seconds is None or not 0 <= seconds <= LATEST_INSTANT:
        raise ValueError(
            f"{text[:100]!r} is no RFC 3339 time with its zone from 1970 to 9999: write it such as 2026-11-22T18:00:00Z"
        )
    return seconds
