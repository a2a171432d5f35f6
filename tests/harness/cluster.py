"""A Kubernetes to test on: the local one of tests/devcluster, or any other by its kubeconfig.

kubectl and Helm are the real programs, called with this cluster's kubeconfig and never with the user's.
"""

import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

ROOT = Path(__file__).resolve().parents[2]
STATE = ROOT / ".state"
BIN = STATE / "bin"
VENV_BIN = ROOT / ".venv" / "bin"

T = TypeVar("T")


class CommandError(AssertionError):
    """A command failed; the message holds what it printed."""


def run(
    *args: str | Path,
    env: Mapping[str, str] | None = None,
    input: str | None = None,
    check: bool = True,
    timeout: float = 120,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end. Raises CommandError with its output when it fails or outlasts ``timeout``."""
    command = [str(arg) for arg in args]
    try:
        done = subprocess.run(
            command, env=env, input=input, text=True, capture_output=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise CommandError(f"{' '.join(command)}: no end after {timeout:g} s\n{error.stdout}\n{error.stderr}") from None
    if check and done.returncode != 0:
        raise CommandError(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def wait_for(what: str, condition: Callable[[], T | None], timeout: float, poll: float = 0.2) -> T:
    """The first value of ``condition`` that is true. Raises CommandError naming ``what`` at the deadline."""
    deadline = time.monotonic() + timeout
    last: Any = None
    while True:
        try:
            last = condition()
        except CommandError as error:
            last = None
            reason = str(error)
        else:
            reason = repr(last)
        if last:
            return last
        if time.monotonic() > deadline:
            raise CommandError(f"waited {timeout:g} s for {what}; last seen: {reason}")
        time.sleep(poll)


@dataclass(frozen=True)
class Cluster:
    """One cluster. ``name`` is set for a local one, whose processes may be killed and frozen."""

    kubeconfig: Path
    name: str | None = None
    context: str | None = None

    @property
    def local(self) -> bool:
        return self.name is not None

    @property
    def environment(self) -> dict[str, str]:
        """Of programs that are to find this cluster, with the kubectl and Helm that were built for it."""
        path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
        return {**os.environ, "KUBECONFIG": str(self.kubeconfig), "PATH": path}

    @property
    def arguments(self) -> list[str]:
        """What kubectl is to be given besides."""
        return ["--context", self.context] if self.context else []

    def kubectl(
        self, *args: str | Path, input: str | None = None, check: bool = True, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        return run("kubectl", *self.arguments, *args, env=self.environment, input=input, check=check, timeout=timeout)

    def helm(self, *args: str | Path, check: bool = True, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        context = ["--kube-context", self.context] if self.context else []
        return run("helm", *context, *args, env=self.environment, check=check, timeout=timeout)

    def devcluster(self, *args: str, check: bool = True, timeout: float = 180) -> subprocess.CompletedProcess[str]:
        """A subcommand of the local cluster's own tool, for this cluster."""
        if self.name is None:
            raise CommandError("this is not a local cluster: its processes cannot be reached")
        command, *rest = args
        return devcluster(command, "--name", self.name, *rest, check=check, timeout=timeout)

    def get(self, *args: str) -> dict[str, Any]:
        """``kubectl get ARGS -o json``, parsed."""
        return json.loads(self.kubectl("get", *args, "-o", "json").stdout)

    def items(self, *args: str) -> list[dict[str, Any]]:
        return self.get(*args)["items"]

    def apply(self, *manifests: Mapping[str, Any] | str) -> None:
        """Server-side apply of manifests given as mappings or YAML text."""
        text = "\n---\n".join(m if isinstance(m, str) else yaml.safe_dump(dict(m)) for m in manifests)
        self.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", input=text)

    def processes(self, **labels: str) -> list[dict[str, Any]]:
        """Running container processes of the local cluster: namespace, pod, container, pid, podIP."""
        found = json.loads(self.devcluster("pods", "-o", "json").stdout)
        return [p for p in found if all(p.get(key) == value for key, value in labels.items())]


def devcluster(*args: str, check: bool = True, timeout: float = 180) -> subprocess.CompletedProcess[str]:
    binary = BIN / "devcluster"
    if not binary.exists():
        raise CommandError("the local cluster is not built: run `make setup`")
    return run(binary, *args, "--state", STATE / "clusters", check=check, timeout=timeout)


def local_cluster(name: str, nodes: int | None = None) -> Cluster:
    """Bring up (or find) the local cluster ``name``; its containers find this checkout's programs on PATH.

    Without ``nodes`` a cluster that is there keeps those that it has; a new one has one.
    """
    size = () if nodes is None else ("--nodes", str(nodes))
    devcluster("up", "--name", name, *size, "--path", str(VENV_BIN), timeout=240)
    return Cluster(kubeconfig=STATE / "clusters" / name / "kubeconfig", name=name)
