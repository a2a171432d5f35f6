"""Adds up what the gateways tell about each Reranker. Pure: told what was heard and when, and asked for the sums.

Arrivals are counted as differences within one gateway process, from what it says when it is first met. So a reconnect
or a restart of either side makes no false rate, and the sums never fall. A gateway that is not heard keeps its last
figures in the sum and makes it incomplete: what is missing is never read as no demand.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from rerank_api.demand import DemandLine, RerankerDemand

from rerank_operator.controller.kinds import Key
from rerank_operator.scaling.demand import Demand

SILENT_SECONDS = 3.0
"""A gateway says something each second; three in a row that do not come are no chance."""
MAX_REMEMBERED = 10_000
"""Deleted Rerankers whose counters are kept, of each gateway: as many as it keeps itself."""
SIGHT_SECONDS = 10.0
"""For so long after the last successful look at who the gateways are, there is taken to be no other."""


@dataclass(frozen=True, slots=True)
class Told:
    """What the gateways together say about one Reranker at one moment."""

    demand: Demand
    capacity: float | None = None
    """Tokens a second of one worker: the median of the gateways' own medians; None: none knows."""
    waking_since: float | None = None
    """Unix seconds at which the oldest request came that waits while there is no worker; None: there is none."""
    outstanding: Mapping[str, int] = field(default_factory=dict)
    """Tokens at each worker, by its Pod's uid. Who is not in it is unknown to the gateways."""
    sent: float | None = None
    """Unix seconds at which the newest of these figures was told."""


@dataclass(slots=True)
class _Gateway:
    """What one address has told."""

    process: str | None = None
    """Which process answered last; None: none has."""
    heard: float | None = None
    """When it last told something in time."""
    lead: float | None = None
    """The least of (when received - when sent) in this connection: both clocks' difference, and the way."""
    figures: dict[Key, tuple[RerankerDemand, float]] = field(default_factory=dict)
    """What is so now, and when that was sent."""
    counted: dict[Key, tuple[int, int]] = field(default_factory=dict)
    """Requests and tokens that have arrived at this process, as far as they are in the sums; who was named last stands
    last."""


class Totals:
    """Times are of one clock that never jumps, except those that gateways send."""

    def __init__(self) -> None:
        self._gateways: dict[str, _Gateway] = {}
        self._arrived: dict[Key, tuple[int, int]] = {}
        self._ended: dict[Key, float] = {}
        self._found_at: float | None = None

    def found(self, addresses: Collection[str], now: float) -> None:
        """These are all the gateways that there are. Who is not among them stays until it is ``gone``."""
        self._found_at = now
        for address in addresses:
            self._gateways.setdefault(address, _Gateway())

    def connected(self, address: str) -> None:
        """A new stream begins; its first line has to be a full one."""
        self._gateways.setdefault(address, _Gateway()).lead = None

    def line(self, address: str, line: DemandLine, now: float) -> set[Key]:
        """Takes one line over. Returns the Rerankers whose figures it changes."""
        gateway = self._gateways.setdefault(address, _Gateway())
        changed = set[Key]()
        met = gateway.process == line.gateway
        if not met:  # another process: what the one before it had waits and runs no more
            changed.update(gateway.figures)
            gateway.process, gateway.figures, gateway.counted = line.gateway, {}, {}
        if line.full:
            changed.update(gateway.figures)
            gateway.figures = {}
        for told in line.rerankers:
            key = (told.namespace, told.name)
            changed.add(key)
            gateway.figures[key] = told, line.sent
            self._count(gateway, key, told, met)
            if told.last_ended is not None:
                self._ended[key] = max(told.last_ended, self._ended.get(key, told.last_ended))
        # What lay about while this process was frozen comes late: it is no sign that the gateway is heard now.
        behind = now - line.sent
        gateway.lead = behind if gateway.lead is None else min(behind, gateway.lead)
        if behind - gateway.lead <= SILENT_SECONDS:
            gateway.heard = now
        return changed

    def _count(self, gateway: _Gateway, key: Key, told: RerankerDemand, met: bool) -> None:
        now = (told.arrived_requests, told.arrived_tokens)
        # Not named before by a process that was met before: all of it has come since.
        before = gateway.counted.get(key, (0, 0) if met else now)
        gateway.counted.pop(key, None)  # who was named last stands last
        gateway.counted[key] = now
        requests, tokens = now[0] - before[0], now[1] - before[1]
        if requests >= 0 and tokens >= 0:  # else counted anew from who knows when
            sums = self._arrived.get(key, (0, 0))
            self._arrived[key] = sums[0] + requests, sums[1] + tokens

    def gone(self, address: str) -> set[Key]:
        """There is no such gateway any more, nor any request in it. Returns the Rerankers that it had told about."""
        gateway = self._gateways.pop(address, None)
        return set(gateway.figures) if gateway else set()

    def keep(self, keys: Collection[Key]) -> None:
        """Forget Rerankers other than ``keys``: they are gone.

        Not at once what gateways have counted for them, which they go on from where a namesake is made; nor figures
        that are not zero, for a new Reranker may be known to a gateway first.
        """
        for kept in (self._arrived, self._ended):
            for key in kept.keys() - keys:
                del kept[key]
        for gateway in self._gateways.values():
            for key in gateway.figures.keys() - keys:
                told, _ = gateway.figures[key]
                if not (told.queued or told.in_flight or told.outstanding):
                    del gateway.figures[key]
            gone = [key for key in gateway.counted if key not in keys]
            for key in gone[: max(0, len(gone) - MAX_REMEMBERED)]:
                del gateway.counted[key]

    def silent(self, address: str, now: float) -> bool:
        gateway = self._gateways.get(address)
        return gateway is None or gateway.heard is None or now - gateway.heard > SILENT_SECONDS

    def heard(self, now: float) -> tuple[int, int]:
        """Gateways that are heard, and those that are not."""
        silent = sum(self.silent(address, now) for address in self._gateways)
        return len(self._gateways) - silent, silent

    def complete(self, now: float) -> bool:
        """Every gateway that there is has told how it is now. Without any gateway nothing is known."""
        seen = self._found_at is not None and now - self._found_at <= SIGHT_SECONDS
        return seen and bool(self._gateways) and not self.heard(now)[1]

    def told(self, key: Key, now: float) -> Told:
        """The sums for ``key``: all zero, and complete where the gateways are, when none has heard of it."""
        found = [gateway.figures[key] for gateway in self._gateways.values() if key in gateway.figures]
        figures = [told for told, _ in found]
        arrived_requests, arrived_tokens = self._arrived.get(key, (0, 0))
        capacities = sorted(told.capacity for told in figures if told.capacity)
        outstanding: dict[str, int] = {}
        for told in figures:
            for uid, tokens in told.outstanding.items():
                outstanding[uid] = outstanding.get(uid, 0) + tokens
        return Told(
            demand=Demand(
                queued=sum(told.queued for told in figures),
                queued_tokens=sum(told.queued_tokens for told in figures),
                in_flight=sum(told.in_flight for told in figures),
                in_flight_tokens=sum(told.in_flight_tokens for told in figures),
                arrived_requests=arrived_requests,
                arrived_tokens=arrived_tokens,
                last_ended=self._ended.get(key),
                complete=self.complete(now),
            ),
            capacity=capacities[len(capacities) // 2] if capacities else None,
            waking_since=min((told.waking_since for told in figures if told.waking_since is not None), default=None),
            outstanding=outstanding,
            sent=max((sent for _, sent in found), default=None),
        )
