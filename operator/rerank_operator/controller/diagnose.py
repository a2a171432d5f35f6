"""Why workers do not become ready, told in the words of who knows: the worker, the kubelet, the scheduler, the API.

Pure. Looks at facts and names them; what to do about it is the plan's business.
"""

import re
from collections.abc import Callable, Sequence

import msgspec

from rerank_operator.controller.observe import DeploymentState, PodState

EXIT_CANNOT_LOAD = 64
"""The worker's exit code for a configuration or model that no retry will heal."""
EXIT_ENVIRONMENT = 71
"""The worker's exit code for what may pass: out of memory, hub unreachable."""
CRASHES_THAT_COUNT = 3
"""Restarts after which a worker that may come up yet is called crash-looping."""

_IMAGE_REASONS = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
_CREATE_REASONS = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError", "PreCreateHookError"}
_INSUFFICIENT = re.compile(r"Insufficient ([A-Za-z0-9./_-]*[A-Za-z0-9])")


class Diagnosis(msgspec.Struct, frozen=True):
    reason: str
    message: str
    hopeless: bool = False
    """Waiting will not help: a replica that was freed for this revision should go back."""


def diagnose(pods: Sequence[PodState], deployment: DeploymentState | None) -> Diagnosis | None:
    """The most telling trouble of one revision's workers; None where each is ready or on its way."""
    unready = sorted((pod for pod in pods if pod.counts and not pod.ready), key=lambda pod: pod.name)
    for check in _POD_CHECKS:
        for pod in unready:
            if found := check(pod):
                return found
    if deployment is not None and deployment.creation_failure is not None:
        return Diagnosis("PodCreationFailed", f"pods cannot be created: {deployment.creation_failure}")
    if deployment is not None and deployment.stalled is not None and unready:
        return Diagnosis(
            "ProgressDeadlineExceeded",
            f"workers have been starting for too long ({deployment.stalled}): see the logs of pod {unready[0].name}",
            hopeless=True,
        )
    return None


def _cannot_load(pod: PodState) -> Diagnosis | None:
    ended = pod.termination
    if ended is None or ended.exit_code not in (EXIT_CANNOT_LOAD, EXIT_ENVIRONMENT):
        return None
    hopeless = ended.exit_code == EXIT_CANNOT_LOAD or pod.restarts >= CRASHES_THAT_COUNT
    words = last_words(ended.message) or "the worker left no message"
    return Diagnosis("ModelLoadFailed", f"{words} (exit code {ended.exit_code} of pod {pod.name})", hopeless)


def _out_of_memory(pod: PodState) -> Diagnosis | None:
    ended = pod.termination
    if ended is None or ended.reason != "OOMKilled":
        return None
    message = (
        f"container {ended.container} of pod {pod.name} needs more memory than its limit and was killed: "
        "raise spec.runtime.resources.limits.memory"
    )
    return Diagnosis("OutOfMemory", message, pod.restarts >= CRASHES_THAT_COUNT)


def _image(pod: PodState) -> Diagnosis | None:
    if pod.waiting is None or pod.waiting.reason not in _IMAGE_REASONS:
        return None
    words = pod.waiting.message or pod.waiting.reason
    return Diagnosis("ImagePullFailed", f"container {pod.waiting.container} of pod {pod.name}: {words}", hopeless=True)


def _not_created(pod: PodState) -> Diagnosis | None:
    if pod.waiting is None or pod.waiting.reason not in _CREATE_REASONS:
        return None
    words = pod.waiting.message or pod.waiting.reason
    message = f"container {pod.waiting.container} of pod {pod.name}: {words}"
    return Diagnosis("PodCreationFailed", message, hopeless=True)


def _crashing(pod: PodState) -> Diagnosis | None:
    backing_off = pod.waiting is not None and pod.waiting.reason == "CrashLoopBackOff"
    if pod.termination is None or not (backing_off or pod.restarts >= CRASHES_THAT_COUNT):
        return None
    ended = pod.termination
    words = last_words(ended.message) or ended.reason or "no message"
    message = f"container {ended.container} of pod {pod.name} crashes: {words} (exit code {ended.exit_code})"
    return Diagnosis("CrashLooping", message, pod.restarts >= CRASHES_THAT_COUNT)


def _unschedulable(pod: PodState) -> Diagnosis | None:
    if pod.unschedulable is None:
        return None
    return Diagnosis("Unschedulable", f"no node for pod {pod.name}: {pod.unschedulable}")


def _node_silent(pod: PodState) -> Diagnosis | None:
    if not pod.unheard:
        return None
    return Diagnosis("NodeSilent", f"the node of pod {pod.name} does not report: see `kubectl get nodes`")


_POD_CHECKS: tuple[Callable[[PodState], Diagnosis | None], ...] = (
    _cannot_load,
    _out_of_memory,
    _image,
    _not_created,
    _crashing,
    _unschedulable,
    _node_silent,
)


def last_words(message: str) -> str:
    """The worker's one sentence. Where the kubelet took the end of the log instead, its last line."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[-1][:1000] if lines else ""


def short_of(message: str) -> set[str]:
    """Resources that the scheduler, or a quota, says are lacking."""
    found = set(_INSUFFICIENT.findall(message))
    if "exceeded quota" in message:
        found |= set(re.findall(r"(?:requests|limits)\.([A-Za-z0-9./_-]+)=", message))
    return found


def blocked(
    pods: Sequence[PodState],
    deployment: DeploymentState | None,
    held: frozenset[str],
    now: float,
    patience: float,
) -> tuple[int, float | None]:
    """Workers of one revision that lack what others hold, for ``patience`` seconds at least.

    Also when to look again, in seconds, where one has not waited that long. A node that an autoscaler is about to add,
    or a pod that is about to end, should get its chance before capacity is taken away from what serves.
    """
    waits = [
        pod.unschedulable_since + patience - now
        for pod in pods
        if pod.counts and pod.unschedulable is not None and short_of(pod.unschedulable) & held
    ]
    count = sum(wait <= 0 for wait in waits)
    if deployment is not None and short_of(deployment.creation_failure or "") & held:
        count += max(0, deployment.replicas - sum(pod.counts for pod in pods))
    later = [wait for wait in waits if wait > 0]
    return count, min(later) if later and not count else None
