"""Log lines on stderr: JSON for machines, text for people. No request bodies, no tokens, no users' texts."""

import json
import logging
import sys
import time
from typing import Literal

_SUBJECT = ("namespace", "reranker", "pool")


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        # kopf sets attributes of the same names to other things: only text is ours.
        line |= {key: value for key in _SUBJECT if isinstance(value := getattr(record, key, None), str)}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class Sparing(logging.Filter):
    """Passes one record in ``seconds``: kopf logs each try of each watch while the API server is away."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds
        self._last = -seconds

    def filter(self, record: logging.LogRecord) -> bool:
        if record.created - self._last < self._seconds:
            return False
        self._last = record.created
        return True


def set_up(form: Literal["json", "text"], level: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if form == "json" else text)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # One line for each event of each object says nothing that our own lines do not.
    logging.getLogger("kopf").setLevel(logging.WARNING)
    logging.getLogger("kopf._cogs.clients.watching").addFilter(Sparing(30))
    logging.getLogger("kopf._cogs.clients.fetching").addFilter(Sparing(30))
    # It warns that signals do not reach it in a thread (they reach us), and tells failures that ``watches`` tells too.
    logging.getLogger("kopf._core.reactor.running").setLevel(logging.CRITICAL)
