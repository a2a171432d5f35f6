"""Schedules: windows of the week in which a Reranker has a floor of replicas. Pure: the time is passed in.

A schedule only ever raises the floor; it never lowers a count and never keeps one down.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

_REPEATED = timedelta(hours=1, minutes=1)
"""Longer than the part of a day that a change of the clock makes come twice."""
_EXAMPLE = 'write five fields (minute, hour, day of month, month, day of week), such as "30 17 * * 1-5"'


@dataclass(frozen=True, slots=True)
class Schedule:
    """From each ``start`` to the next ``end`` (cron, five fields, in ``timezone``) at least ``min_replicas`` replicas.

    Changes of the clock are treated as Debian's cron does: a time that the day does not have comes when the gap ends,
    and a time that it has twice comes the first time.

    Raises ValueError, beginning with the field's name, when an expression or the time zone is not one.
    """

    name: str
    start: str
    end: str
    min_replicas: int
    timezone: str = "UTC"

    def __post_init__(self) -> None:
        try:
            zone = ZoneInfo(self.timezone)
        except (KeyError, ValueError, OSError):
            raise ValueError(
                f"timezone: {self.timezone!r} is not a time zone: write a name of the IANA database, such as "
                "Europe/Berlin"
            ) from None
        for field, expression in (("start", self.start), ("end", self.end)):
            try:
                next(CronSim(expression, datetime(2024, 1, 1, tzinfo=zone)))
            except CronSimError as error:
                raise ValueError(f"{field}: {expression!r} is not a cron expression ({error}): {_EXAMPLE}") from None
            except StopIteration:
                raise ValueError(f"{field}: {expression!r} never comes: {_EXAMPLE}") from None
        if self.start.split() == self.end.split():
            raise ValueError("end: is the same as start, so that the window would be empty: write when it ends")

    def is_on(self, now: datetime, lead: float) -> bool:
        """Whether ``now`` (aware) is in a window, or at most ``lead`` seconds before one.

        The last start is enough to look at: where an earlier window reaches into a later one, both end at once.
        """
        zone = ZoneInfo(self.timezone)
        led = now.astimezone(UTC) + timedelta(seconds=lead)
        # From later on: in the hour that a day has twice, cronsim goes back by what the clock on the wall shows.
        backwards = CronSim(self.start, (led + _REPEATED).astimezone(zone), reverse=True)
        started = next((start for start in backwards if start.astimezone(UTC) <= led), None)
        ends = next(CronSim(self.end, started), None) if started is not None else None
        # In UTC: of two times in one zone, Python compares what the clock on the wall shows.
        return ends is not None and now < ends.astimezone(UTC)


def floor(schedules: Iterable[Schedule], now: datetime, lead: float) -> int:
    """The most that a schedule asks for at ``now`` (aware), 0 without one; windows begin ``lead`` seconds early.

    ``lead`` is how long a replica takes to be ready, so that they are when the window begins.
    """
    return max((schedule.min_replicas for schedule in schedules if schedule.is_on(now, lead)), default=0)
