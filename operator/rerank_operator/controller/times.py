"""Times as Kubernetes objects have them: RFC 3339 text there, Unix seconds here. Pure: it never reads a clock."""

from datetime import UTC, datetime


def parse_time(text: str) -> float:
    """Raises ValueError where it is no time."""
    return datetime.fromisoformat(text).timestamp()


def time_or_zero(text: str | None) -> float:
    """0 where there is none, or somebody has written what is no time."""
    try:
        return parse_time(text) if text else 0.0
    except ValueError:
        return 0.0


def format_time(now: float) -> str:
    """A ``Time``: to the second."""
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def format_micro_time(now: float) -> str:
    """A ``MicroTime``: to the microsecond."""
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
