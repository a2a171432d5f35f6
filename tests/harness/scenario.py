"""A trace played on a Reranker of a cluster, from nothing back to nothing: what clients saw, and what the fleet did.

Workers are paced (``harness.paced``); gateways, operator, API server and kubelets are real, and so is the HTTP. What is
computed from what was seen is a function of it.
"""

import contextlib
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from rerank_api import names

from harness import paced
from harness.cluster import STATE, VENV_BIN, Cluster, CommandError, wait_for
from harness.load import Call, Replay, Report
from harness.paced import Profile
from harness.release import Release, is_ready, reranker, warm_pool
from harness.traces import MEAN_TOKENS, Trace
from harness.watching import Change, Watch

MODEL_URI = f"file://{STATE / 'models' / 'demo-reranker'}"
THRESHOLD = 0.5
"""Seconds: the latency objective of these Rerankers."""


def elastic(name: str, namespace: str, profile: Profile, pool: str | None = None, **scaling: Any) -> dict[str, Any]:
    """A Reranker of paced workers that is scaled on demand, from and to zero."""
    return reranker(
        name,
        namespace,
        MODEL_URI,
        runtime={"podTemplate": paced.overlay(profile, VENV_BIN)},
        requests={"timeout": "60s", "queueLimit": 10_000},
        scaling={"minReplicas": 0, "maxReplicas": 6, **({"warmPool": pool} if pool else {}), **scaling},
        slo={"latency": {"quantile": 0.95, "threshold": f"{1000 * THRESHOLD:.0f}ms"}},
    )


def paced_pool(name: str, namespace: str, profile: Profile, size: int) -> dict[str, Any]:
    """A WarmPool of paced workers."""
    return warm_pool(name, namespace, size, podTemplate=paced.overlay(profile, VENV_BIN))


class Fleet(NamedTuple):
    """One Reranker's workers at a moment. ``wanted``: replicas that its Deployments were told to have; ``pods``: own
    ones that exist, ready or not; ``claimed``: warm pods lent to it, of which ``serving`` take requests."""

    wanted: int = 0
    ready: int = 0
    pods: int = 0
    claimed: int = 0
    serving: int = 0


@dataclass(frozen=True)
class Moment:
    """The fleet from ``at`` (Unix seconds) on."""

    at: float
    fleet: Fleet


def fleet_of(name: str, objects: Iterable[dict[str, Any]]) -> Fleet:
    """Of Deployments and Pods of one namespace."""
    wanted = ready = pods = claimed = serving = 0
    for found in objects:
        metadata, labels = found["metadata"], found["metadata"].get("labels", {})
        if "replicas" in found["spec"]:
            wanted += found["spec"]["replicas"] if labels.get(names.LABEL_RERANKER) == name else 0
        elif labels.get(names.LABEL_RERANKER) == name:
            pods += 1
            ready += is_ready(found)
        elif labels.get(names.LABEL_LOANED_TO) == name:
            claimed += 1
            serving += names.ANNOTATION_LOAN_SERVING in metadata.get("annotations", {})
    return Fleet(wanted, ready, pods, claimed, serving)


def history(name: str, changes: Iterable[Change]) -> list[Moment]:
    """How the fleet went, from the changes of its namespace's Deployments and Pods."""
    present: dict[str, dict[str, Any]] = {}
    found: list[Moment] = []
    for change in sorted(changes, key=lambda change: change.seen):
        uid = change.object["metadata"]["uid"]
        if change.kind == "DELETED":
            present.pop(uid, None)
        else:
            present[uid] = change.object
        fleet = fleet_of(name, present.values())
        if not found or found[-1].fleet != fleet:
            found.append(Moment(change.seen, fleet))
    return found


def rises(values: Sequence[int]) -> int:
    """How often a number began to rise: once at first, and again after each time that it fell."""
    count, falling = 0, True
    for before, after in zip((0, *values), values, strict=False):
        if after > before and falling:
            count, falling = count + 1, False
        elif after < before:
            falling = True
    return count


def integral(moments: Sequence[Moment], of: Callable[[Fleet], int], end: float) -> float:
    """Seconds times number."""
    ends = [moment.at for moment in moments[1:]] + [end]
    return sum(of(moment.fleet) * max(0.0, until - moment.at) for moment, until in zip(moments, ends, strict=True))


def summary(trace: Trace, report: Report, moments: Sequence[Moment], began: float, zero_at: float) -> dict[str, Any]:
    """``began``, ``zero_at``: Unix seconds of the trace's zero, and of the fleet's return to nothing."""
    before = [moment for moment in moments if moment.at < began]
    during = [Moment(began, before[-1].fleet if before else Fleet()), *(m for m in moments if m.at >= began)]
    wanted, claimed = [m.fleet.wanted for m in during], [m.fleet.claimed for m in during]
    answered = [outcome for outcome in report.outcomes if outcome.ok]
    last = max((outcome.ended for outcome in report.outcomes), default=0.0) - time.monotonic() + time.time()
    missed = sum(outcome.seconds > THRESHOLD for outcome in answered) + len(report.failed)
    first = next((moment.at for moment in during if moment.fleet.ready or moment.fleet.serving), None)
    return {
        "trace": {
            "name": trace.name,
            "seconds": round(trace.seconds, 1),
            "tokens": trace.tokens,
            "rises": trace.rises,
        },
        "clients": {
            **report.summary(),
            "lost": len(report.failed),
            "over_objective_ratio": round(missed / max(1, len(report.outcomes)), 4),
            "load_late_ms": round(1000 * report.late, 1),
        },
        "fleet": {
            "first_serving_s": None if first is None else round(first - began, 2),
            "peak_wanted": max(wanted),
            "peak_claimed": max(claimed),
            "peak_serving": max(m.fleet.ready + m.fleet.serving for m in during),
            "own_changes": sum(a != b for a, b in pairwise(wanted)),
            "own_rises": rises(wanted),
            "loaner_changes": sum(a != b for a, b in pairwise(claimed)),
            "loaner_rises": rises(claimed),
            "own_pod_seconds": round(integral(during, lambda fleet: fleet.pods, zero_at), 1),
            "loaner_seconds": round(integral(during, lambda fleet: fleet.claimed, zero_at), 1),
            "zero_after_last_answer_s": round(zero_at - last, 1),
            "history": [" ".join(("seconds", *Fleet._fields))]
            + [" ".join(map(str, (round(m.at - began, 2), *m.fleet))) for m in during],
        },
    }


@contextlib.contextmanager
def workers_watched(cluster: Cluster, namespace: str) -> Generator[Callable[[], list[Change]]]:
    """The changes so far of the Deployments and Pods of ``namespace``, for ``history``."""
    with contextlib.ExitStack() as stack:
        watches = [
            stack.enter_context(Watch(cluster, path))
            for path in (f"/apis/apps/v1/namespaces/{namespace}/deployments", f"/api/v1/namespaces/{namespace}/pods")
        ]
        yield lambda: [change for watch in watches for change in list(watch.changes)]


def play(
    cluster: Cluster, release: Release, namespace: str, name: str, trace: Trace, timeout: float = 180
) -> dict[str, Any]:
    """Wait until the Reranker has no worker, play ``trace``, and wait until it has none again, ``timeout`` seconds at
    most each time. Raises CommandError at the deadline.

    One request goes before all of it: a Reranker that was ever used knows what a worker of its can do.
    """
    with workers_watched(cluster, namespace) as changes:

        def at_zero(since: float) -> float | None:
            """When it came to nothing; None while it has anything, or the watches have shown nothing yet."""
            seen = history(name, changes())
            return max(since, seen[-1].at) if seen and seen[-1].fleet == Fleet() else None

        gateways = wait_for("a ready gateway", release.gateway_urls, timeout=60)
        with Replay(lambda: gateways, f"{namespace}/{name}", [Call(0.0, MEAN_TOKENS)], timeout) as first:
            if (outcome := first.wait().outcomes[0]).error is not None:
                raise CommandError(f"the first request of {namespace}/{name}: {outcome.status} {outcome.error}")
        wait_for(f"{namespace}/{name} to have no workers", lambda: at_zero(0.0), timeout, poll=0.5)
        with Replay(lambda: gateways, f"{namespace}/{name}", trace.calls) as load:
            began = load.began - time.monotonic() + time.time()
            report = load.wait()
        ended = time.time()
        zero_at = wait_for(f"{namespace}/{name} to be without workers again", lambda: at_zero(ended), timeout, poll=0.5)
        return summary(trace, report, history(name, changes()), began, zero_at)
