"""Durations and quantities in Kubernetes' spelling."""

import pytest
from rerank_api.units import parse_duration, parse_instant, parse_quantity


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5ms", 0.005), ("0s", 0), ("1m30s", 90), ("1.5h", 5400), ("250us", 0.00025), ("24h", 86400)],
)
def test_durations(text, seconds):
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "ms", "5 ms", "-5ms", "5ms!", "!5ms", "1s x 1s", "5d"])
def test_not_durations(text):
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("value", "units"), [("8Mi", 8 << 20), ("1.5G", 1_500_000_000), (1048576, 1 << 20), ("500k", 500_000)]
)
def test_quantities(value, units):
    assert parse_quantity(value) == units


@pytest.mark.parametrize("value", ["", "Mi", "-1", "8MB", "8 Mi", "1e3"])
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
