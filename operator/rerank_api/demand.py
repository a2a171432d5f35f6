"""What gateways tell the operator about demand: NDJSON over ``GET DEMAND_PATH`` on a gateway's admin port, without end.

The first line holds every Reranker that the gateway knows; then a line follows each change, at most ten a second,
holding only the Rerankers that changed; and at least once a second a line, if need be without Rerankers, tells that the
gateway lives. Figures are states and counters, never differences, so a lost or repeated line does no harm. A Reranker
that a gateway has not named is unknown to it, which is not the same as one without demand.
"""

import msgspec

DEMAND_PATH = "/v1/demand"
DEMAND_CONTENT_TYPE = "application/x-ndjson"


class RerankerDemand(msgspec.Struct, rename="camel", frozen=True):
    """One Reranker's demand at one gateway. Tokens are the gateway's estimates, corrected by what workers counted, so
    that they compare with ``capacity``."""

    namespace: str
    name: str
    queued: int
    """Requests that wait at this gateway now."""
    queued_tokens: int
    in_flight: int
    """Requests that workers have from this gateway now."""
    in_flight_tokens: int
    arrived_requests: int
    """Since this gateway process began; never falls, not even when the Reranker is deleted and made again."""
    arrived_tokens: int
    """As estimated when each request came: later corrections do not change it."""
    last_ended: float | None = None
    """Unix seconds at which the last request ended here, however it ended; None: none has."""
    capacity: float | None = None
    """Tokens a second of one worker: the median of what its endpoints here said last; None: none has said."""
    waking_since: float | None = None
    """Unix seconds at which the oldest waiting request came, while there is no endpoint; else None."""
    outstanding: dict[str, int] = {}
    """Tokens that this gateway has at each worker, by the Pod's uid. All its endpoints, idle ones with 0."""


class DemandLine(msgspec.Struct, rename="camel", frozen=True):
    gateway: str
    """Random id of the gateway's process: counters go on while it stays the same."""
    sent: float
    """Unix seconds at the gateway."""
    full: bool
    """True: every Reranker that this gateway knows; one that is not here is not known to it (any more)."""
    rerankers: list[RerankerDemand] = []


def encode_line(line: DemandLine) -> bytes:
    """With the newline that ends it."""
    return msgspec.json.encode(line) + b"\n"


_decoder = msgspec.json.Decoder(DemandLine)


def decode_line(line: bytes) -> DemandLine:
    """Unknown fields are ignored: a newer gateway may send more.

    Raises msgspec.MsgspecError or UnicodeDecodeError when it is no such line.
    """
    return _decoder.decode(line)
