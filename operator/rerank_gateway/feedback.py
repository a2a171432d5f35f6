"""Labels that clients post once their users have judged answers. What they come to tells how scores are calibrated.

Pure: bytes in, sums out. Takes neither texts nor ids, keeps no label, and nothing of one is for a log.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import msgspec

from rerank_gateway.protocol.common import decode

MAX_LABELS = 1000
MAX_BODY_BYTES = 2**18
"""Ample for so many labels."""

BINS = tuple(f"{tenths / 10:.1f}" for tenths in range(10))
"""Ten bins of scores by their lower edges; 1 is in the last one."""


class Label(msgspec.Struct, frozen=True):
    score: Annotated[float, msgspec.Meta(ge=0, le=1)]
    """As answered, with the Reranker's own activation: a probability."""
    relevant: bool


class Feedback(msgspec.Struct, frozen=True):
    labels: Annotated[list[Label], msgspec.Meta(min_length=1, max_length=MAX_LABELS)]
    model: str | None = None
    """As in a rerank request."""
    revision: str | None = None
    """That gave the scores, if the client knows."""


_decoder = msgspec.json.Decoder(Feedback)


def parse(body: bytes) -> Feedback:
    """Raises ApiError 400 naming the field."""
    return decode(_decoder, body)


@dataclass(slots=True)
class Bin:
    labels: int = 0
    relevant: int = 0
    scores: float = 0.0
    """Their sum."""


def tally(labels: Iterable[Label]) -> tuple[list[Bin], float]:
    """What the labels come to: one Bin for each of BINS, and the sum of (score - relevant)^2, of which the mean is the
    Brier score; the expected calibration error follows from the bins."""
    bins = [Bin() for _ in BINS]
    squared_error = 0.0
    for label in labels:
        into = bins[min(int(label.score * len(BINS)), len(BINS) - 1)]
        into.labels += 1
        into.relevant += label.relevant
        into.scores += label.score
        squared_error += (label.score - label.relevant) ** 2
    return bins, squared_error
