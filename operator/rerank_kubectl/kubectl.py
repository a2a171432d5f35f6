"""The one edge: the user's own kubectl as a subprocess, so that contexts, credentials and flags are kubectl's.

Every call has a time limit. It never asks anything on the terminal, and never writes but by ``annotate``, ``patch``,
``create_job`` and ``delete_job``.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any

import msgspec
from rerank_api import names
from rerank_api.reranker import Metadata, Reranker, parse_reranker

SECONDS = 60
"""For one call: logging in takes its time where a credential plugin asks a remote server."""
RERANKERS = f"{names.PLURAL}.{names.GROUP}"
REVISIONS = "controllerrevisions.apps"
JOBS = "jobs.batch"
ENDING_SECONDS = 5
"""That a kubectl which is told to end may take."""
LOOK_SECONDS = 0.05
MOST_LINES = 10_000
"""Of one pod's log."""

_FORWARDED = re.compile(rb"Forwarding from 127\.0\.0\.1:(\d+) ")
_LOG_LINE = re.compile(r"[IWEF]\d{4} ")
"""Of kubectl's own log (klog), which repeats what the last line then says."""


class Failed(Exception):
    """A call gave no answer; the text is one line for the user, with the remedy. ``passing``: may be over soon."""

    def __init__(self, message: str, *, passing: bool = True) -> None:
        super().__init__(message)
        self.passing = passing


class Kubectl:
    """``flags``: what every call is given, such as ``--context=NAME``. ``namespace``: None for the context's own."""

    def __init__(self, flags: Sequence[str] = (), namespace: str | None = None, seconds: float = SECONDS) -> None:
        self._flags = list(flags)
        self._seconds = seconds
        self.namespace = namespace

    def reranker(self, name: str) -> Reranker:
        """Raises Failed, not passing where there is none of that name."""
        return _parsed(self._get(RERANKERS, name, *self._scope()))

    def rerankers(self, *, all_namespaces: bool = False) -> list[Reranker]:
        scope = ["--all-namespaces"] if all_namespaces else self._scope()
        return [_parsed(item) for item in self._get(RERANKERS, *scope)["items"]]

    def revisions(self, owner: Metadata) -> list[Any]:
        """The ControllerRevisions of a Reranker as the API server returned them."""
        selector = f"--selector={names.LABEL_RERANKER}={owner.name}"
        return self._get(REVISIONS, selector, f"--namespace={owner.namespace}")["items"]

    def annotate(self, owner: Metadata, annotations: Mapping[str, str | None]) -> None:
        """All at once; None: removed, where it is there."""
        changes = [f"{key}-" if value is None else f"{key}={value}" for key, value in annotations.items()]
        self._run("annotate", RERANKERS, owner.name, f"--namespace={owner.namespace}", "--overwrite", *changes)

    def patch(self, owner: Metadata, patch: Mapping[str, Any]) -> None:
        """A merge patch of a Reranker."""
        place = [RERANKERS, owner.name, f"--namespace={owner.namespace}"]
        self._run("patch", *place, "--type=merge", f"--patch={json.dumps(patch)}")

    def pods(self, namespace: str | None, selector: str) -> list[Any]:
        """As the API server returned them; ``namespace``: None for all."""
        where = "--all-namespaces" if namespace is None else f"--namespace={namespace}"
        return self._get("pods", f"--selector={selector}", where)["items"]

    def config_map(self, namespace: str, name: str) -> Any:
        return self._get("configmaps", name, f"--namespace={namespace}")

    def deployment(self, namespace: str, name: str) -> Any:
        return self._get("deployments.apps", name, f"--namespace={namespace}")

    def create_job(self, manifest: Mapping[str, Any]) -> None:
        self._run("create", "--filename=-", "--output=name", stdin=json.dumps(manifest).encode())

    def delete_job(self, namespace: str, name: str) -> None:
        """With its pods; nothing where there is none. A terminal's Ctrl-C does not reach it. Raises Failed, which tells
        the command that removes the Job."""
        words = ["delete", JOBS, name, f"--namespace={namespace}", "--ignore-not-found"]
        try:
            self._run(*words, "--wait=false", apart=True)
        except Failed as failed:
            by_hand = shlex.join(["kubectl", *words, *self._flags])
            raise Failed(
                f"{failed}. Job {namespace}/{name} may be left and hold a GPU; to remove it: {by_hand}",
                passing=failed.passing,
            ) from None

    def log_lines(self, namespace: str, pod: str, *more: str, holding: bytes = b"") -> list[str]:
        """What the pod has printed so far: the lines that hold those bytes, the last MOST_LINES of them. ``more``:
        options of ``kubectl logs``. Raises Failed, also where reading takes too long."""
        words = ["logs", pod, f"--namespace={namespace}", *more]
        with (
            tempfile.TemporaryFile() as errors,
            self._started(words, subprocess.PIPE, errors) as process,
        ):
            late = threading.Event()

            def end() -> None:
                late.set()
                process.kill()

            timer = threading.Timer(self._seconds, end)
            timer.start()
            try:
                assert process.stdout is not None
                kept = deque((line for line in process.stdout if holding in line), MOST_LINES)
            finally:
                timer.cancel()
            if late.is_set():
                raise Failed(f"the log of pod {pod} was not read within {self._seconds:g} s: ask for less (--since)")
            if process.wait() != 0:
                raise _failure(os.pread(errors.fileno(), 65536, 0).decode(errors="replace"), "logs")
        return [line.decode(errors="replace").rstrip("\n") for line in kept]

    @contextmanager
    def forward(self, namespace: str, pod: str, port: int) -> Generator[int]:
        """A port of this machine's 127.0.0.1 that leads to ``port`` of the pod while the context lasts. Raises Failed.

        A port-forward reaches a pod wherever ``kubectl exec`` does: also where the API server has no way to the pods'
        own addresses, and past network policies.
        """
        words = ["port-forward", f"pod/{pod}", f":{port}", f"--namespace={namespace}", "--address=127.0.0.1"]
        with (
            tempfile.TemporaryFile() as told,
            tempfile.TemporaryFile() as errors,
            self._started(words, told, errors) as process,
        ):
            yield self._forwarded(process, told, errors)

    @contextmanager
    def _started(
        self, words: Sequence[str], stdout: IO[bytes] | int, errors: IO[bytes]
    ) -> Generator[subprocess.Popen[bytes]]:
        """Ended with the context, whatever happens in it."""
        try:
            process = subprocess.Popen(
                [_program(), *words, *self._flags], stdin=subprocess.DEVNULL, stdout=stdout, stderr=errors
            )
        except OSError as error:
            raise Failed(f"kubectl cannot be run: {error}", passing=False) from None
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(ENDING_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()

    def _forwarded(self, process: subprocess.Popen[bytes], told: IO[bytes], errors: IO[bytes]) -> int:
        until = time.monotonic() + self._seconds
        while True:
            ended = process.poll() is not None
            # pread: the process writes at the offset that both share.
            if match := _FORWARDED.search(os.pread(told.fileno(), 4096, 0)):
                return int(match[1])
            if ended:
                raise _failure(os.pread(errors.fileno(), 65536, 0).decode(errors="replace"), "port-forward")
            if time.monotonic() > until:
                raise Failed(f"kubectl port-forward did not reach the pod within {self._seconds:g} s")
            time.sleep(LOOK_SECONDS)

    def _scope(self) -> list[str]:
        return [f"--namespace={self.namespace}"] if self.namespace else []

    def _get(self, *args: str) -> Any:
        answer = self._run("get", *args, "--output=json")
        try:
            return msgspec.json.decode(answer)
        except msgspec.DecodeError as error:
            raise Failed(f"kubectl answered what is not JSON ({error}): is another program named kubectl?") from None

    def _run(self, *args: str, stdin: bytes = b"", apart: bool = False) -> bytes:
        """``apart``: in a session of its own, so that what a terminal sends to this command does not end it."""
        # kubectl asks for a user name where it has no credentials: without a terminal it ends instead.
        try:
            done = subprocess.run(
                [_program(), *args, *self._flags],
                input=stdin,
                capture_output=True,
                timeout=self._seconds,
                start_new_session=apart,
            )
        except subprocess.TimeoutExpired:
            raise Failed(
                f"kubectl did not answer within {self._seconds:g} s: does `kubectl get {names.PLURAL}` wait for a "
                "login, or is the cluster out of reach?"
            ) from None
        except OSError as error:
            raise Failed(f"kubectl cannot be run: {error}", passing=False) from None
        if done.returncode != 0:
            raise _failure(done.stderr.decode(errors="replace"), args[0])
        return done.stdout


def _program() -> str:
    found = shutil.which("kubectl")
    if found is None:
        raise Failed("kubectl is not on PATH: install it, see https://kubernetes.io/docs/tasks/tools/", passing=False)
    return found


def _parsed(item: Any) -> Reranker:
    try:
        return parse_reranker(item)
    except msgspec.ValidationError as error:
        name = item.get("metadata", {}).get("name", "?") if isinstance(item, dict) else "?"
        raise Failed(
            f"Reranker {name} is not understood ({error}): is kubectl-rerank of another version than the operator?",
            passing=False,
        ) from None


def _failure(stderr: str, verb: str) -> Failed:
    """In kubectl's own words, where they are good, and what to do."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip() and not _LOG_LINE.match(line)]
    said = lines[-1] if lines else "kubectl failed and did not say why"
    if "doesn't have a resource type" in said:
        return Failed(
            f"this cluster knows no Rerankers ({said.removeprefix('error: ')}): look at the context (kubectl config "
            "current-context), or install the operator's chart",
            passing=False,
        )
    if "(NotFound)" in said and RERANKERS in said:
        return Failed(f"{said}: `kubectl rerank status -A` lists the Rerankers that there are", passing=False)
    if "(NotFound)" in said:
        return Failed(said, passing=False)
    if "(Forbidden)" in said:
        role = "view" if verb in ("get", "logs") else "edit"
        return Failed(
            f"{said}: the ClusterRole {role} allows it, in that namespace, with what the chart adds to it",
            passing=False,
        )
    return Failed(said)
