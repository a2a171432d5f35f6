"""A real Prometheus of a test's own, and something for it to scrape. Both listen on this machine only."""

import contextlib
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

PROMETHEUS = shutil.which("prometheus")
needs_prometheus = pytest.mark.skipif(
    PROMETHEUS is None, reason="there is no prometheus: tests/harness/get_prometheus takes it from Debian's packages"
)
SCRAPE_SECONDS = 0.2


@contextlib.contextmanager
def exporter(tell: Callable[[], str]) -> Generator[int]:
    """The port at which ``tell``'s text is served, as any path."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = tell().encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def scraping(port: int, folder: Path) -> Generator[str]:
    """The address of a Prometheus that scrapes ``port`` every SCRAPE_SECONDS; it keeps its data and its log in
    ``folder``, and may take some seconds to answer."""
    assert PROMETHEUS is not None
    every = f"{1000 * SCRAPE_SECONDS:.0f}ms"
    configuration = folder / "prometheus.yml"
    configuration.write_text(
        "scrape_configs:\n"
        f"- {{job_name: shop, scrape_interval: {every}, scrape_timeout: {every},\n"
        f"   static_configs: [{{targets: ['127.0.0.1:{port}']}}]}}\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        own = free.getsockname()[1]
    arguments = (
        f"--config.file={configuration}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{own}",
    )
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen((PROMETHEUS, *arguments), stdout=log, stderr=subprocess.STDOUT)
    try:
        yield f"http://127.0.0.1:{own}"
    finally:
        process.kill()
        process.wait(10)
