"""The listener on a demand stream, against a real server whose lines the test sends."""

import queue
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from harness.cluster import wait_for
from harness.demand_lines import DemandLines
from rerank_api.demand import DEMAND_PATH, DemandLine, RerankerDemand, encode_line

Lines = queue.Queue[bytes | None]


@pytest.fixture
def server() -> Iterator[tuple[int, Lines]]:
    """Its port, and where the lines go that it is to tell; None ends the stream."""
    lines: Lines = queue.Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == DEMAND_PATH
            self.send_response(200)
            self.end_headers()
            while (line := lines.get()) is not None:
                self.wfile.write(line)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running.server_address[1], lines
        lines.put(None)
        running.shutdown()
        thread.join(10)


def line(name: str, queued: int) -> bytes:
    return encode_line(DemandLine("g", 0.0, full=True, rerankers=[RerankerDemand("s", name, queued, 0, 0, 0, 0, 0)]))


def test_waiting_until_a_line_tells_that_nobody_does(server: tuple[int, Lines]):
    port, lines = server
    told = DemandLines("http://127.0.0.1:1", "s", "a", port)
    assert not told.waiting()
    lines.put(line("other", 3))
    lines.put(line("a", 2))
    waits = wait_for("the line that tells of requests", lambda: told.first_since(0.0), timeout=10, poll=0.01)
    assert told.waiting()
    lines.put(line("a", 0))
    wait_for("the line that tells of none", lambda: not told.waiting(), timeout=10, poll=0.01)
    assert told.first_since(0.0) == waits
    assert told.first_since(waits + 1000) is None
