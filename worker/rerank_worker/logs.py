"""Log lines: one line each, JSON unless text was asked for. Callers never pass queries or documents.

Structured fields go in as ``extra={"fields": {...}}``.
"""

import json
import logging
import sys
import threading
import time
from collections.abc import Callable
from typing import Literal

from rerank_worker.failures import one_line

LogFormat = Literal["json", "text"]


class _OneLine(logging.Formatter):
    def __init__(self, style: LogFormat) -> None:
        super().__init__()
        self._log_format = style

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if record.exc_info:
            message = f"{message}\n{self.formatException(record.exc_info)}"
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        fields = getattr(record, "fields", {})
        if self._log_format == "json":
            line = {"time": stamp, "level": record.levelname.lower(), "logger": record.name, "message": message}
            return json.dumps(line | fields, default=str)
        message = message.replace("\n", " | ")
        return one_line(
            " ".join([stamp, record.levelname, message, *(f"{key}={value}" for key, value in fields.items())])
        )


class Sparing:
    """Which lines are written: of each kind ``burst`` at once, and then one every ``every`` seconds. Kinds are kept for
    ever, so they must be few. For any thread."""

    def __init__(self, burst: int, every: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._burst = burst
        self._every = every
        self._clock = clock
        self._lock = threading.Lock()
        # By kind: lines that may be written, as of when, and how many were left out since the last that was.
        self._kinds: dict[str, tuple[float, float, int]] = {}

    def left_out(self, kind: str) -> int | None:
        """Of a line that may be written: how many before it were not; None: this one may not be either."""
        now = self._clock()
        with self._lock:
            room, since, missing = self._kinds.get(kind, (float(self._burst), now, 0))
            room = min(float(self._burst), room + (now - since) / self._every)
            written = room >= 1
            self._kinds[kind] = (room - 1, now, 0) if written else (room, now, missing + 1)
        return missing if written else None


def set_up(log_format: LogFormat) -> None:
    """Send every logger of the process to stderr in ``log_format``; libraries speak from warnings up."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine(log_format))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("rerank_worker").setLevel(logging.INFO)
    logging.captureWarnings(True)
