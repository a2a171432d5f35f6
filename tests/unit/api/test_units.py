"""Durations and quantities in Kubernetes' spelling."""

from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rerank_api.units import LATEST_INSTANT, parse_duration, parse_instant, parse_quantity
from rerank_operator.controller.times import format_time


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5ms", 0.005), ("0s", 0), ("1m30s", 90), ("1.5h", 5400), ("250us", 0.00025), ("24h", 86400)],
)
def test_durations(text, seconds):
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "ms", "5 ms", "-5ms", "5ms!", "!5ms", "1s x 1s", "5d", "9" * 400 + "h"])
def test_not_durations(text):
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("value", "units"), [("8Mi", 8 << 20), ("1.5G", 1_500_000_000), (1048576, 1 << 20), ("500k", 500_000)]
)
def test_quantities(value, units):
    assert parse_quantity(value) == units


@pytest.mark.parametrize("value", ["", "Mi", "-1", "8MB", "8 Mi", "1e3", "9" * 400])
def test_not_quantities(value):
    with pytest.raises(ValueError, match="is not a quantity"):
        parse_quantity(value)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2027-01-15T08:00:00Z", 1_800_000_000.0),
        ("2027-01-15T09:00:00+01:00", 1_800_000_000.0),
        ("2027-01-15T08:00:00.5Z", 1_800_000_000.5),
    ],
)
def test_a_time_with_its_zone(text: str, seconds: float):
    assert parse_instant(text) == seconds


@pytest.mark.parametrize("text", ["", "tomorrow", "2027-01-15", "2027-01-15T08:00:00", "1800000000", "08:00Z"])
def test_a_time_that_could_be_another_one_elsewhere_is_refused(text: str):
    with pytest.raises(ValueError, match="no RFC 3339 time with its zone"):
        parse_instant(text)


@pytest.mark.parametrize(
    "text",
    [
        "9999-12-31T23:59:59-08:00",
        "9999-12-31T23:59:59.9999999Z",
        "9999-12-31T23:59:59.5Z",
        "0001-01-01T00:00:00+08:00",
        "1969-12-31T23:59:59Z",
    ],
)
def test_a_time_that_cannot_be_written_again_is_refused(text: str):
    with pytest.raises(ValueError, match="from 1970 to 9999"):
        parse_instant(text)


def test_the_ends_of_the_calendar_are_times():
    assert parse_instant("1970-01-01T00:00:00Z") == 0
    assert parse_instant("9999-12-31T23:59:59Z") == LATEST_INSTANT


ZONES = st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))
TIMES = st.datetimes(timezones=st.none() | ZONES).map(datetime.isoformat)


@given(st.text() | TIMES | st.builds("{}{}".format, TIMES, st.text(max_size=3)))
@example("9999-12-31T23:59:59-08:00")
@example("9999-12-31T23:59:59.9999999Z")
@example("0001-01-01T00:00:00+23:59")
def test_whatever_is_taken_for_a_time_can_be_written(text: str):
    try:
        seconds = parse_instant(text)
    except ValueError:
        return
    assert parse_instant(format_time(seconds)) == int(seconds)
