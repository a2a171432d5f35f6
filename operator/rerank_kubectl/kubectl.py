"""The one edge: the user's own kubectl as a subprocess, so that contexts, credentials and flags are kubectl's.

Every call has a time limit. It never asks anything on the terminal, and never writes but by ``annotate``.
"""

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from rerank_api import names
from rerank_api.reranker import Metadata, Reranker, parse_reranker

SECONDS = 60
"""For one call: logging in takes its time where a credential plugin asks a remote server."""
RERANKERS = f"{names.PLURAL}.{names.GROUP}"
REVISIONS = "controllerrevisions.apps"

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

    def _scope(self) -> list[str]:
        return [f"--namespace={self.namespace}"] if self.namespace else []

    def _get(self, *args: str) -> Any:
        answer = self._run("get", *args, "--output=json")
        try:
            return msgspec.json.decode(answer)
        except msgspec.DecodeError as error:
            raise Failed(f"kubectl answered what is not JSON ({error}): is another program named kubectl?") from None

    def _run(self, *args: str) -> bytes:
        program = shutil.which("kubectl")
        if program is None:
            raise Failed(
                "kubectl is not on PATH: install it, see https://kubernetes.io/docs/tasks/tools/", passing=False
            )
        # kubectl asks for a user name where it has no credentials: without a terminal it ends instead.
        try:
            done = subprocess.run(
                [program, *args, *self._flags], stdin=subprocess.DEVNULL, capture_output=True, timeout=self._seconds
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
    if "(NotFound)" in said:
        return Failed(f"{said}: `kubectl rerank status -A` lists the Rerankers that there are", passing=False)
    if "(Forbidden)" in said:
        role = "view" if verb == "get" else "edit"
        return Failed(
            f"{said}: the ClusterRole {role} allows it, in that namespace, with what the chart adds to it",
            passing=False,
        )
    return Failed(said)
