from datetime import UTC, datetime, timedelta

import pytest
from rerank_operator.scaling.schedules import Schedule, floor

EVENING = Schedule("evening", "30 17 * * *", "0 22 * * *", 4, "Europe/Berlin")
OFFICE = Schedule("office", "0 8 * * 1-5", "0 18 * * 1-5", 2, "Europe/Berlin")
WEEKEND = Schedule("weekend", "0 18 * * 5", "0 8 * * 1", 3)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


@pytest.mark.parametrize(
    ("now", "lead", "expected"),
    [
        ("2026-11-20T17:29:59+01:00", 0, 2),  # a Friday: OFFICE alone
        ("2026-11-20T17:30:00+01:00", 0, 4),
        ("2026-11-20T16:30:00+00:00", 0, 4),  # the same moment, told in UTC
        ("2026-11-20T17:28:29+01:00", 90, 2),
        ("2026-11-20T17:29:00+01:00", 90, 4),  # the start leads by the time of a load
        ("2026-11-20T21:59:59+01:00", 0, 4),
        ("2026-11-20T22:00:00+01:00", 0, 0),  # the end does not lead
        ("2026-11-20T22:00:00+01:00", 600, 0),
        ("2026-11-21T12:00:00+01:00", 0, 0),  # a Saturday
        ("2026-11-21T17:30:00+01:00", 0, 4),
    ],
)
def test_floor(now: str, lead: float, expected: int):
    assert floor((EVENING, OFFICE), at(now), lead) == expected


def test_the_floor_of_nothing_is_none():
    assert floor((), at("2026-11-20T12:00:00Z"), 60) == 0


@pytest.mark.parametrize(
    ("now", "on"),
    [
        ("2026-11-20T17:59:00Z", False),
        ("2026-11-20T18:00:00Z", True),
        ("2026-11-22T12:00:00Z", True),
        ("2026-11-23T07:59:59Z", True),
        ("2026-11-23T08:00:00Z", False),
    ],
)
def test_a_window_may_last_for_days(now: str, on: bool):
    assert WEEKEND.is_on(at(now), 0) is on


def test_a_lead_longer_than_the_window_keeps_it_in_one_piece():
    """From the lead on, the window is on up to its end, though `now + lead` has passed that end by then."""
    short = Schedule("short", "0 12 * * *", "2 12 * * *", 1)
    start = at("2026-11-20T11:49:00Z")
    on = [short.is_on(start + timedelta(minutes=minute), 600) for minute in range(15)]
    assert on == [False, *[True] * 12, False, False]


def test_a_start_that_repeats_within_a_window_does_not_end_it():
    repeated = Schedule("repeated", "0 8 * * *", "0 22 * * 5", 1)
    assert repeated.is_on(at("2026-11-18T03:00:00Z"), 0)  # since Saturday at 8, until Friday at 22
    assert not repeated.is_on(at("2026-11-20T23:00:00Z"), 0)


def minutes_on(schedule: Schedule, start: str, hours: int) -> list[datetime]:
    first = at(start).astimezone(UTC)
    moments = [first + timedelta(minutes=minute) for minute in range(hours * 60)]
    return [moment for moment in moments if schedule.is_on(moment, 0)]


def test_spring_forward():
    """On 29 March 2026 the clock in Berlin jumps from 2:00 to 3:00: a start at 2:30 comes at 3:00, or 1:00 UTC."""
    on = minutes_on(Schedule("night", "30 2 * * *", "0 4 * * *", 1, "Europe/Berlin"), "2026-03-29T00:00:00+01:00", 6)
    assert (on[0], on[-1], len(on)) == (at("2026-03-29T01:00Z"), at("2026-03-29T01:59Z"), 60)


def test_an_end_in_the_gap_comes_when_the_gap_ends():
    on = minutes_on(Schedule("night", "0 1 * * *", "30 2 * * *", 1, "Europe/Berlin"), "2026-03-28T23:00:00+01:00", 6)
    assert (on[0], on[-1], len(on)) == (at("2026-03-29T00:00Z"), at("2026-03-29T00:59Z"), 60)


def test_fall_back():
    """On 25 October 2026 the clock in Berlin shows 2:00 to 3:00 twice; 2:30 is the first of the two, 0:30 UTC."""
    on = minutes_on(Schedule("night", "30 2 * * *", "0 4 * * *", 1, "Europe/Berlin"), "2026-10-25T00:00:00+02:00", 8)
    assert (on[0], on[-1], len(on)) == (at("2026-10-25T00:30Z"), at("2026-10-25T02:59Z"), 150)


def test_an_end_in_the_hour_that_comes_twice_is_the_first():
    on = minutes_on(Schedule("night", "0 1 * * *", "30 2 * * *", 1, "Europe/Berlin"), "2026-10-24T23:00:00+02:00", 8)
    assert (on[0], on[-1], len(on)) == (at("2026-10-24T23:00Z"), at("2026-10-25T00:29Z"), 90)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"timezone": "Europe/Berln"}, "timezone: 'Europe/Berln' is not a time zone: write a name of the IANA"),
        ({"timezone": "../etc/passwd"}, "timezone: '../etc/passwd' is not a time zone"),
        (
            {"start": "30 17 * *"},
            "start: '30 17 \\* \\*' is not a cron expression \\(Wrong number of fields\\): ",
        ),
        ({"end": "0 25 * * *"}, "end: '0 25 \\* \\* \\*' is not a cron expression \\(Bad hour\\)"),
        ({"start": "0 0 31 2 *"}, "start: '0 0 31 2 \\*'"),
        ({"end": "30 17 * * *"}, "end: is the same as start"),
    ],
)
def test_a_bad_schedule_is_refused(changes: dict[str, str], message: str):
    fields = {"name": "evening", "start": "30 17 * * *", "end": "0 22 * * *", "timezone": "Europe/Berlin", **changes}
    with pytest.raises(ValueError, match=message):
        Schedule(min_replicas=4, **fields)
