"""What happened to a cluster's objects, and when: watches of the API server, each in a thread of its own.

Reads only. A watch that ends before it is told to is an error: a gap in it would look like nothing having happened.
"""

import json
import subprocess
import threading
import time
from dataclasses import dataclass
from typing import Any, Self

from harness.cluster import Cluster, CommandError

SECONDS = 1_800


@dataclass(frozen=True)
class Change:
    """``seen``: Unix seconds at which it came here; ``kind``: ADDED, MODIFIED or DELETED."""

    seen: float
    kind: str
    object: dict[str, Any]

    @property
    def name(self) -> str:
        return self.object["metadata"]["name"]


class Watch:
    """``with Watch(cluster, path) as watch:`` collects the changes of a collection such as
    ``/api/v1/namespaces/search/pods``; those that are there at first come as ADDED."""

    def __init__(self, cluster: Cluster, path: str) -> None:
        self.path = path
        self.changes: list[Change] = []
        self._process = subprocess.Popen(
            ["kubectl", *cluster.arguments, "get", "--raw", f"{path}?watch=true&timeoutSeconds={SECONDS}"],
            env=cluster.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._thread = threading.Thread(target=self._read, name=f"watch {path}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        broken = self._process.poll() is not None
        self._process.kill()
        self._thread.join(10)
        errors = self._process.stderr.read() if self._process.stderr else ""
        self._process.wait(10)
        if broken and exc_info[0] is None:
            raise CommandError(f"the watch of {self.path} ended by itself: {errors}")

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            seen = time.time()
            event = json.loads(line)
            if event["type"] in ("ADDED", "MODIFIED", "DELETED"):
                self.changes.append(Change(seen, event["type"], event["object"]))

    def since(self, instant: float) -> list[Change]:
        """Changes that came at or after ``instant`` (Unix seconds)."""
        return [change for change in self.changes if change.seen >= instant]
