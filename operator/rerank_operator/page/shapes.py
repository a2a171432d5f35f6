"""The JSON that the page's scripts read, field by field. What is not known is null, in each of it.

No text of a query or a document is in any of it, nor anything of Secrets.
"""

from typing import Literal

import msgspec
from rerank_api.reranker import Condition, RolloutStatus

from rerank_operator.page.history import Note

State = Literal["serving", "degraded", "starting", "idle", "suspended", "down", "unknown"]


class _View(msgspec.Struct, frozen=True, rename="camel"):
    """Camel-case in JSON; NaN and None are null there."""


class Gateway(_View, frozen=True):
    """One gateway, and whether the last look heard it."""

    name: str
    heard: bool
    since: float | None
    """Since when it is not heard, Unix seconds; None: it is, or never was."""
    trouble: str = ""


class Seen(_View, frozen=True):
    """How it is with this operator and what it sees. All times are Unix seconds."""

    time: float
    """Now, by the operator's clock."""
    leads: bool
    leader: str
    """Who holds the lease, as last seen; empty: nobody does."""
    synced: bool
    """All objects have been listed once."""
    listed: float | None
    """When all objects were last listed: what a watch has missed is corrected then."""
    listing: float
    """Seconds in which that should happen again."""
    trouble: str
    """Why this operator does not make progress; empty: it does."""
    gateways: list[Gateway]
    gateways_named: bool
    """Whether the operator was told who the gateways are."""
    looked: float | None
    """When a gateway was last heard."""
    since: float | None
    """Since when this page looks at gateways."""
    patience: float
    """Figures that are older, in seconds, are not those of now."""


class Objective(_View, frozen=True):
    """One objective, and how it is kept."""

    sli: Literal["availability", "latency"]
    objective: float
    """Share that is promised."""
    threshold: float | None
    """Seconds, of latency."""
    good: float | None
    """In the last minutes; None: not known, as the two below."""
    total: float | None
    burn: float | None
    """Of the error budget: 1 spends it in just the time that it is for. None also where there were no requests."""
    good_ever: float | None
    """The three since the page knows it."""
    total_ever: float | None
    burn_ever: float | None


class Row(_View, frozen=True):
    """One Reranker in the fleet's table."""

    namespace: str
    name: str
    state: State
    reason: str
    message: str
    ready: int | None = None
    desired: int | None = None
    loaned: int = 0
    waiting: float | None = None
    rate: float | None = None
    failed: float | None = None
    """Share of the requests that failed by no fault of the client."""
    quantile: float | None = None
    """That the objective is about."""
    latency: float | None = None
    """Seconds at that quantile."""
    threshold: float | None = None
    burn: float | None = None
    """The worst of its objectives, over the last minutes."""
    burning: str = ""
    """Which one that is."""
    canary: str = ""
    """Phase; empty: none goes on."""
    percent: int = 0
    paused: bool = False
    maintenance: float | None = None
    """Alerts are silent until then."""
    maintenance_trouble: str = ""
    """Why the time that is asked for cannot be read; alerts are not silent then."""
    spark: list[float | None] = []
    """Requests a second, of each minute of the last hour."""


class Fleet(_View, frozen=True):
    seen: Seen
    rerankers: list[Row]


class Revision(_View, frozen=True):
    """One revision as the gateways met it in the last minutes."""

    revision: str
    role: Literal["stable", "canary", "older", ""]
    """Empty: no revision was chosen for these requests."""
    percent: int | None
    """Of the users' requests that it is to get."""
    rate: float | None
    failed: float | None
    p50: float | None
    p95: float | None
    p99: float | None


class Worker(_View, frozen=True):
    name: str
    revision: str
    state: Literal["ready", "starting", "waiting", "stopping", "ended", "unheard"]
    since: float | None
    """It is ready since then, Unix seconds."""
    restarts: int
    loaned: bool
    message: str


class Rollout(_View, frozen=True):
    """The rollout that goes on, or the last one."""

    status: RolloutStatus
    active: bool
    strategy: str
    steps: list[int]
    gates: list[str]
    """The phases that it goes through, in their order."""


class Detail(_View, frozen=True):
    """One Reranker."""

    seen: Seen
    row: Row
    since: float | None
    """Since when the page has figures of it."""
    model: str
    model_revision: str | None
    created: float | None
    current: str | None
    updated: str | None
    rejected: str | None
    min_replicas: int
    max_replicas: int
    mode: str
    """Who decides how many workers there are; empty: it is not known."""
    scaling: str
    """Why there are as many, in a sentence."""
    capacity: float | None
    """Tokens a second of one worker."""
    objectives: list[Objective]
    codes: dict[str, float]
    """Answers of the last minutes by HTTP code."""
    window: float
    """Seconds that those minutes are."""
    revisions: list[Revision]
    rollout: Rollout | None
    conditions: list[Condition]
    workers: list[Worker]
    history: list[Note]
    """Newest first."""
    history_since: float | None
    """Since when changes are seen as they happen."""
    times: list[float]
    """Of the points below, Unix seconds."""
    points: dict[str, list[float]]


class Lacking(_View, frozen=True):
    """A Reranker of which nothing can be shown, and why."""

    seen: Seen
    namespace: str
    name: str
    message: str
