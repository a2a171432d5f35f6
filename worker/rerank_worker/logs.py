"""Log lines: one line each, JSON unless text was asked for. Callers never pass queries or documents.

Structured fields go in as ``extra={"fields": {...}}``.
"""

import json
import logging
import sys
import time
from typing import Literal

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
        return " ".join([stamp, record.levelname, message, *(f"{key}={value}" for key, value in fields.items())])


def set_up(log_format: LogFormat) -> None:
    """Send every logger of the process to stderr in ``log_format``; libraries speak from warnings up."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine(log_format))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("rerank_worker").setLevel(logging.INFO)
    logging.captureWarnings(True)
