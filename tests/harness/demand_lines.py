"""A second listener on a gateway's demand stream: when it told of a waiting request, and of none. Reads only."""

import contextlib
import http.client
import threading
import time
import urllib.parse

from rerank_api.demand import DEMAND_PATH, decode_line

ADMIN_PORT = 9090
SILENCE = 30.0
"""Seconds without a line after which the gateway counts as gone: its heartbeat comes each second."""


class DemandLines:
    """``gateway``: base URL of its API; the stream is on its admin port."""

    def __init__(self, gateway: str, namespace: str, name: str, port: int = ADMIN_PORT) -> None:
        self._host = str(urllib.parse.urlsplit(gateway).hostname)
        self._port = port
        self._key = (namespace, name)
        self._queued: list[tuple[float, int]] = []
        self._thread = threading.Thread(target=self._read, name="demand lines", daemon=True)
        self._thread.start()

    def first_since(self, instant: float) -> float | None:
        """Unix seconds at which a line came that told of a waiting request, at or after ``instant``; None: none did, or
        the stream has ended."""
        return next((seen for seen, queued in list(self._queued) if seen >= instant and queued > 0), None)

    def waiting(self) -> bool:
        """Whether the last line about the Reranker told of a waiting request. Of one that nobody has asked for yet a
        gateway tells nothing."""
        return bool(self._queued) and self._queued[-1][1] > 0

    def _read(self) -> None:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=SILENCE)
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", DEMAND_PATH)
            response = connection.getresponse()
            while line := response.readline():
                seen = time.time()
                for one in decode_line(line).rerankers:
                    if (one.namespace, one.name) == self._key:
                        self._queued.append((seen, one.queued))
