"""Measuring batch sizes on the hardware of a Reranker's workers: a Job made of the worker's own pod template.

Decisions are pure; ``follow`` looks until the Job has ended, with the looks, the clock and the wait passed in. The pod
of the Job never bears a label by which a gateway, a Deployment or a disruption budget would take it for a worker.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import msgspec
from rerank_api import names
from rerank_api.reranker import Reranker

from rerank_kubectl.changes import Refused
from rerank_kubectl.kubectl import Failed
from rerank_kubectl.rendering import one_line
from rerank_kubectl.state import canary

BATCH_SIZES = (8, 16, 32, 64)
EVERY = 2.0
"""Seconds between looks."""
SILENCE = 60.0
"""Seconds without an answer that a restart of the API server may take."""
LOAD_SECONDS = 900
"""Beyond the measuring: a load that has begun is not stopped, and large weights take their time."""
KEPT_SECONDS = 600
"""That an ended Job is kept by the cluster where nobody is there any more to remove it."""
ENDING_SECONDS = 10
"""Between SIGTERM and the end of its pod."""
TOLD = 20
"""Last lines of a log that are shown of a Job that failed."""

_WORKER_ONLY = ("startupProbe", "readinessProbe", "livenessProbe", "lifecycle", "ports", "args")
_REPORT = {"text": re.compile(r"^\d+ pairs, \d+ tokens"), "json": re.compile(r"^\{$")}
"""First line of what rerank-worker tune prints; before it come lines of progress."""


class Stage(msgspec.Struct, frozen=True):
    """How far a Job is."""

    state: Literal["waiting", "running", "done", "failed"]
    why: str = ""
    """What it waits for, or why it failed."""
    pod: str | None = None


def hindrances(reranker: Reranker) -> list[str]:
    """Why the room of one more worker may be needed by others just now."""
    scaling, found = reranker.status.scaling, []
    if canary(reranker) is not None:
        found.append("a rollout goes on")
    if scaling is not None and scaling.queued_requests:
        found.append(f"{scaling.queued_requests} requests wait for a worker")
    if scaling is not None and scaling.desired_replicas > reranker.status.ready_replicas:
        found.append(f"{scaling.desired_replicas} workers are wanted and {reranker.status.ready_replicas} are ready")
    return found


def job_name(reranker: str, suffix: str) -> str:
    """Chosen here and not by the API server: a Job of which no answer tells has to be removed, too."""
    return f"{reranker[:40].rstrip('.-')}-tune-{suffix}"


def job(name: str, deployment: Any, reranker: Reranker, seconds: float, wait: float, as_json: bool) -> dict[str, Any]:
    """The manifest. ``deployment``: of the revision whose workers are meant, as the API server returned it. Raises
    Refused where it has no worker."""
    template = deployment["spec"]["template"]
    spec: dict[str, Any] = template["spec"]
    worker = next((one for one in spec["containers"] if one["name"] == names.WORKER_CONTAINER), None)
    if worker is None:
        raise Refused(f"Deployment {deployment['metadata']['name']} has no container {names.WORKER_CONTAINER}")
    command = ["rerank-worker", "tune", f"--seconds={seconds:g}", "--batch-sizes", *map(str, BATCH_SIZES)]
    container = {key: value for key, value in worker.items() if key not in _WORKER_ONLY}
    container["command"] = [*command, "--json"] if as_json else command
    metadata = reranker.metadata
    own = {
        names.LABEL_NAME: names.APP_NAME,
        names.LABEL_INSTANCE: metadata.name,
        names.LABEL_COMPONENT: "tune",
    }
    theirs = {
        key: value
        for key, value in (template["metadata"].get("labels") or {}).items()
        if not key.startswith(f"{names.GROUP}/") and key != names.LABEL_MANAGED_BY
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "namespace": metadata.namespace,
            "labels": own,
            # Not the one that controls it: that asks for rights on the Reranker's finalizers.
            "ownerReferences": [
                {
                    "apiVersion": names.API_VERSION,
                    "kind": names.KIND,
                    "name": metadata.name,
                    "uid": metadata.uid,
                }
            ],
        },
        "spec": {
            "backoffLimit": 0,
            "activeDeadlineSeconds": int(wait + seconds + LOAD_SECONDS + ENDING_SECONDS),
            "ttlSecondsAfterFinished": KEPT_SECONDS,
            "template": {
                "metadata": {"labels": theirs | own, "annotations": template["metadata"].get("annotations") or {}},
                "spec": spec
                | {
                    # Sidecars would keep the pod from ending.
                    "containers": [container],
                    "restartPolicy": "Never",
                    "terminationGracePeriodSeconds": ENDING_SECONDS,
                },
            },
        },
    }


def stage(pods: Sequence[Any]) -> Stage:
    """``pods``: those of the Job, as the API server returned them."""
    if not pods:
        return Stage("waiting", "its pod has not been made yet: `kubectl describe jobs` tells why")
    status, name = pods[0].get("status", {}), pods[0]["metadata"]["name"]
    container: Mapping[str, Any] = next(
        (
            one.get("state") or {}
            for one in status.get("containerStatuses") or []
            if one["name"] == names.WORKER_CONTAINER
        ),
        {},
    )
    # Not the pod's phase: a sidecar that somebody injects outlives the measuring.
    if (ended := container.get("terminated")) is not None:
        code, reason = ended.get("exitCode"), ended.get("reason")
        why = f"exit code {code}" + (f" ({reason})" if reason not in (None, "Error", "Completed") else "")
        return Stage("done", pod=name) if code == 0 else Stage("failed", why, name)
    if status.get("phase") in ("Failed", "Succeeded"):
        return Stage(
            "failed", ": ".join(filter(None, (status.get("reason"), status.get("message")))) or "no exit", name
        )
    if "running" in container:
        return Stage("running", pod=name)
    held = container.get("waiting") or {}
    if held.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
        return Stage("waiting", ": ".join(filter(None, (held["reason"], held.get("message")))), name)
    unscheduled = next(
        (
            one.get("message")
            for one in status.get("conditions") or []
            if one["type"] == "PodScheduled" and one["status"] != "True"
        ),
        None,
    )
    return Stage("waiting", unscheduled or "its pod is being started", name)


def follow(
    look: Callable[[], Stage],
    progress: Callable[[str], str],
    show: Callable[[str], None],
    clock: Callable[[], float],
    wait: Callable[[float], None],
    patience: float,
    seconds: float,
) -> Stage:
    """The stage in which it ended: done or failed. ``progress``: the last line that a running pod has printed;
    ``show``: told each time that something is new. ``patience``: seconds until it runs, ``seconds``: until it has
    ended from then on. Raises Refused when they are over, and Failed when nothing answers for SILENCE seconds."""
    began, heard = clock(), clock()
    ran: float | None = None
    while True:
        try:
            found = look()
            told = progress(found.pod) if found.state == "running" and found.pod else found.why
        except Failed as failed:
            if not failed.passing or clock() - heard > SILENCE:
                raise
        else:
            heard = clock()
            if found.state in ("done", "failed"):
                return found
            show(told or "started")
            if found.state == "running":
                ran = clock() if ran is None else ran
                if clock() - ran > seconds:
                    raise Refused(f"the measuring has not ended {seconds:g} s after its start, and was stopped")
            elif clock() - began > patience:
                raise Refused(
                    f"the measuring did not begin within {patience:g} s (--wait): {found.why}. It needs the room of "
                    "one more worker"
                )
        wait(EVERY)


def report_of(log: Sequence[str], as_json: bool) -> str | None:
    """What is printed at the end; None: there is no report in the log."""
    first = _REPORT["json" if as_json else "text"]
    start = next((number for number, line in enumerate(log) if first.match(line)), None)
    if start is None:
        return None
    found = list(log[start:])
    if as_json:
        # Programs read it: not with what a library may say when the process ends.
        if "}" not in found:
            return None
        del found[found.index("}") + 1 :]
    return "\n".join(map(one_line, found)) + "\n"


def failure(found: Stage, log: Sequence[str]) -> str:
    last = "".join(f"\n  {one_line(line)}" for line in log[-TOLD:])
    return f"the measuring failed: {one_line(found.why)}; its log ends with:{last or ' nothing'}"
