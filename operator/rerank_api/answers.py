"""What a gateway tells of the answers that each revision gave: ``GET ANSWERS_PATH`` on its admin port.

Parameters: ``namespace`` and ``name`` of the Reranker; ``after``, any number of times, as ``REVISION:PLACE``, and
``mirrored-after`` alike: what was told before is left out. Answers are numbered from 0 in each gateway process, by
revision; a gateway keeps the latest KEPT of each. Holds no text; ids are told only of requests that were mirrored.

An answer is one attempt of a user's request at a worker, so that one which fails counts against the revision that
failed, whatever the next attempt came to. Left out are attempts that no worker took (busy, unreachable) and those that
met a cold start.
"""

import msgspec

ANSWERS_PATH = "/v1/answers"
KEPT = 8192
"""Latest answers of each revision of a Reranker: as many as the judge looks back (rollout.judge.dependence.KEPT)."""
KEPT_MIRRORED = 1024


class RevisionAnswers(msgspec.Struct, rename="camel", frozen=True):
    """Answers of one revision, oldest first."""

    revision: str
    next: int
    """Place after the last one that there is: to be asked for next time."""
    seconds: list[float] = []
    """From when it waited for a worker of this revision to its answer; failed ones too. Rounded to microseconds."""
    failed: list[int] = []
    """Places in ``seconds``, ascending."""


class Mirrored(msgspec.Struct, rename="camel", frozen=True, omit_defaults=True):
    """A user's request that stable has answered, asked of the canary too; no user saw what came."""

    stable_seconds: float
    canary_seconds: float
    failed: bool = False
    """The canary's."""
    agreement: float | None = None
    """Kendall's tau-b of both rankings, -1 to 1; None: it failed, or either gave all documents the same score."""
    drift: float | None = None
    """Largest difference of a document's two scores; None: it failed."""
    request_id: str = ""
    """By which the gateway's logs and traces tell of it; empty where an earlier gateway told."""


class MirroredAnswers(msgspec.Struct, rename="camel", frozen=True):
    revision: str
    """The canary."""
    next: int
    answers: list[Mirrored] = []


class Answers(msgspec.Struct, rename="camel", frozen=True):
    gateway: str
    """Random id of the gateway's process, as in demand.DemandLine: places count from its beginning."""
    revisions: list[RevisionAnswers] = []
    mirrored: list[MirroredAnswers] = []
