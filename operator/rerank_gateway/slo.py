"""What a Reranker promises about its requests, and what one request says about that.

Pure: codes and times in, verdicts out. Never counts anything itself, and never blames the service for what its client
got wrong, wanted sooner than is promised, or did not wait for.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from rerank_api.units import parse_instant

Sli = Literal["availability", "latency"]
INDICATORS: tuple[Sli, ...] = get_args(Sli)

OK = 200
TOO_MANY = 429
CLIENT_WENT_AWAY = 499
TOO_LATE = 504


@dataclass(frozen=True, slots=True)
class Objectives:
    """spec.slo, as far as it is about single requests."""

    availability: float = 0.999
    """Share of requests that must not fail."""
    latency: float = 0.95
    """Share of answers that must be there within ``threshold``."""
    threshold: float = 0.15
    """Seconds, from a request's headers to its answer."""

    def ratio(self, sli: Sli) -> float:
        return self.availability if sli == "availability" else self.latency


def available(code: int, *, patience: float = math.inf, threshold: float) -> bool | None:
    """Whether the request was answered (True) or failed (False); None: it says nothing about that.

    ``patience``: seconds after which its client wanted no answer any more. Of the service's making is every 5xx and
    429 (it had no room), a suspended Reranker's too; but not a deadline that the client has set within ``threshold``,
    for nobody promised an answer so soon. Every other 4xx is the client's own, and 499 a client that went away.
    """
    if code == OK:
        return True
    if code == TOO_LATE and patience < threshold:
        return None
    return False if code == TOO_MANY or code >= 500 else None


def in_time(code: int, seconds: float, *, threshold: float) -> bool | None:
    """Whether the scores came within ``threshold`` (seconds); None: the request says nothing about that.

    ``seconds`` are those that the client waited, whatever for: a queue, a worker that had to be woken, or the cache,
    whose answers are answers too. A client that went away after the threshold has waited for too long already; one
    that went before it might have been answered in time. What failed counts as not available, and not twice.
    """
    if code == OK:
        return seconds <= threshold
    return False if code == CLIENT_WENT_AWAY and seconds > threshold else None


def maintenance_end(text: str) -> float:
    """Unix time until which a Reranker is in maintenance, from the annotation's text; empty: none, 0.

    Raises ValueError: the text is no RFC 3339 time, which has a zone.
    """
    return parse_instant(text) if text else 0.0
