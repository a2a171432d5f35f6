"""Operator processes of this checkout, and a cluster that a test module has to itself for them: no chart.

They can be killed, frozen and looked into. Never for a cluster that others use too: their lease is one, and so are the
definitions.
"""

import contextlib
import os
import re
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Generator
from pathlib import Path

from harness.cluster import ROOT, VENV_BIN, Cluster, devcluster, local_cluster, wait_for

LEASE = ["--lease-duration=5", "--renew-deadline=3", "--retry-period=0.5", "--lease-namespace=default"]
TAKE_OVER_SECONDS = 30
"""Far longer than the lease: the machine may be busy."""
LOG_TAIL = 6_000
"""Characters of an operator's log that are printed at its end."""


class Operator:
    """One operator process."""

    def __init__(self, cluster: Cluster, log: Path, *flags: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = log
        command = [VENV_BIN / "rerank-operator", "--worker-image=example/worker:1", "--metrics-host=127.0.0.1"]
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [*command, f"--metrics-port={self.port}", "--resync-seconds=5", *LEASE, *flags],
                env={**os.environ, "KUBECONFIG": str(cluster.kubeconfig)},
                stderr=output,
            )

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=2) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def metric(self, name: str) -> float:
        """The sum over all labels."""
        _, text = self.get("/metrics")
        return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))

    def ready(self) -> bool:
        return self.get("/readyz")[0] == 200

    def leads(self) -> bool:
        return self.metric("rerank_operator_leader") == 1.0

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> None:
        """Kill it, even if it is frozen, and print the last of its log."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait(timeout=10)
        print(self.log.read_text()[-LOG_TAIL:])


Start = Callable[..., Operator]
"""Starts one more operator, with the flags given, and returns it once it is ready."""


@contextlib.contextmanager
def operators_of(cluster: Cluster, logs: Path, *common: str) -> Generator[Start]:
    """Starts operators with the flags ``common``, their logs in ``logs``; those that are left are ended after it."""
    started: list[Operator] = []

    def start(*flags: str) -> Operator:
        one = Operator(cluster, logs / f"operator-{len(started)}.log", *common, *flags)
        started.append(one)
        wait_for("an operator that is ready", one.ready, timeout=30)
        return one

    try:
        yield start
    finally:
        for one in started:
            one.end()


@contextlib.contextmanager
def own_cluster(name: str, nodes: int = 0) -> Generator[Cluster]:
    """A new local cluster with the definitions and nothing else in it, gone afterwards."""
    devcluster("down", "--name", name)  # what a run that was killed has left behind
    try:
        cluster = local_cluster(name, nodes)
        cluster.kubectl("apply", "--server-side", "-f", ROOT / "crds")
        cluster.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
        yield cluster
    finally:
        devcluster("down", "--name", name)
