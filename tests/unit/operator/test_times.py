import pytest
from hypothesis import given
from hypothesis import strategies as st
from rerank_operator.controller.times import format_micro_time, format_time, parse_time, time_or_zero


def test_as_kubernetes_writes_them():
    assert format_time(1_800_000_000.9) == "2027-01-15T08:00:00Z"
    assert format_micro_time(1_800_000_000.25) == "2027-01-15T08:00:00.250000Z"


@given(st.integers(0, 4_000_000_000_000_000))
def test_what_is_written_is_read(microseconds: int):
    seconds = microseconds / 1e6
    assert parse_time(format_micro_time(seconds)) == pytest.approx(seconds, rel=0, abs=2e-6)
    assert parse_time(format_time(seconds)) == int(seconds)


@pytest.mark.parametrize("text", [None, "", "yesterday", "2027-13-01T00:00:00Z", "0001-01-01T00:00:00"])
def test_what_is_no_time(text: str | None):
    assert time_or_zero(text) == 0.0
