"""One JSON object a line on stdout.

Exceptions are written as their type and place, never with their own text: it may quote a request.
"""

import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Any

import msgspec

_encoder = msgspec.json.Encoder()


class Line(msgspec.Struct, omit_defaults=True):
    """What is written for each request. logging would take longer for it than all that is counted of the request."""

    time: datetime
    level: str
    logger: str
    message: str


def write(line: Line) -> None:
    """Among the lines of logging. One that cannot be written is lost, as there: no request fails for it."""
    try:  # without contextlib.suppress: each request pays for it
        out = sys.stdout.buffer
        out.write(_encoder.encode(line) + b"\n")
        out.flush()
    except (OSError, ValueError):
        pass


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = record.exc_info[0].__name__
            line["place"] = "".join(traceback.format_tb(record.exc_info[2]))
        return msgspec.json.encode(line).decode()


def configure(level: str) -> None:
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
