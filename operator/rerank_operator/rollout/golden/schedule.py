"""When a golden set is to be ranked again for slo.quality. Pure: it never reads a clock.

Each Reranker has times of its own within the interval, the same after every restart, so that a fleet whose operator was
away does not rank everything at once for ever after. Without a result it is due at once; after a failure, after a
pause.
"""

import hashlib
import math

FIRST_PAUSE, LONGEST_PAUSE = 30.0, 600.0
"""Seconds after a failure, twice as long after each further one; never longer than the interval."""


def due(name: str, interval: float, last: float | None, failures: int = 0, tried: float = 0.0) -> float:
    """Unix time from which on it is due.

    ``name``: of the Reranker, for its own times. ``interval``: seconds. ``last``: when it was ranked; None: not yet, or
    by another revision, or another golden set. ``failures``: since then, the latest at ``tried``. What comes is half an
    interval later than ``last`` at least, and one and a half at most, where nothing failed.
    """
    begin = _own_time(name, interval, last + interval / 2) if last is not None else 0.0
    return max(begin, tried + pause(failures, interval)) if failures else begin


def pause(failures: int, interval: float) -> float:
    """Seconds to the next try."""
    # Bounded before it is a power: a worker may refuse a set for months.
    return min(FIRST_PAUSE * 2 ** min(failures - 1, 10), LONGEST_PAUSE, interval)


def _own_time(name: str, interval: float, earliest: float) -> float:
    """The first of its times from ``earliest`` on."""
    share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64
    return (math.ceil(earliest / interval - share) + share) * interval
