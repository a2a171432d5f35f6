"""What the page is told: from the objects that the operator sees, the figures and the clock. Pure.

Reads, and decides nothing about Rerankers.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from rerank_api import names, units
from rerank_api.reranker import Reranker, parse_reranker

from rerank_operator.controller.kinds import Key
from rerank_operator.controller.observe import PodState
from rerank_operator.controller.times import time_or_zero
from rerank_operator.page import counting
from rerank_operator.page.exposition import Counts
from rerank_operator.page.figures import LONGEST_WINDOW, Figures, Staff, Window
from rerank_operator.page.history import History
from rerank_operator.page.shapes import (
    Detail,
    Fleet,
    Lacking,
    Objective,
    Revision,
    Rollout,
    Row,
    Seen,
    State,
    Worker,
)
from rerank_operator.rollout.canary import ENDED

NOW_SECONDS = 60.0
"""That requests a second and latencies of "now" are of."""
SPARKS = 60
"""Points of the small curve in the fleet's table: minutes."""


def staff_of(body: Mapping[str, Any]) -> Staff:
    """Who works for a Reranker as its status says, whatever else is in it."""
    status = body.get("status") or {}
    scaling = status.get("scaling") or {}
    # In the other modes it is what would be, and nothing says what is wanted.
    desired = scaling.get("desiredReplicas") if scaling.get("mode") in ("Auto", "ByHand", "Suspended") else None
    return Staff(_whole(status.get("readyReplicas")), _whole(desired), _whole(scaling.get("loaners", 0)))


def fleet(bodies: Sequence[dict[str, Any]], seen: Seen, figures: Figures, apart: float) -> Fleet:
    """Every Reranker, by name. ``apart``: what the clock of the figures lacks of Unix seconds."""
    ordered = sorted(bodies, key=lambda body: (body["metadata"]["namespace"], body["metadata"]["name"]))
    return Fleet(seen, [row(body, seen, figures, apart) for body in ordered])


def row(body: dict[str, Any], seen: Seen, figures: Figures, apart: float) -> Row:
    try:
        reranker = parse_reranker(body)
    except msgspec.ValidationError as error:
        return _not_understood(body, str(error))
    key = (reranker.metadata.namespace, reranker.metadata.name)
    state, reason, message = standing(reranker)
    staff, fresh = staff_of(body), _fresh(seen)
    window = figures.window(key, NOW_SECONDS) if fresh else None
    latency = reranker.spec.slo.latency
    burns = [(one.burn, one.sli) for one in objectives(reranker, figures, fresh) if one.burn is not None]
    burn, burning = max(burns, default=(None, ""))
    rollout = reranker.status.rollout
    going = rollout is not None and rollout.phase not in ENDED
    maintenance, maintenance_trouble = _maintenance(reranker, seen.time)
    return Row(
        namespace=key[0],
        name=key[1],
        state=state,
        reason=reason,
        message=message,
        ready=staff.ready,
        desired=staff.desired,
        loaned=staff.loaned or 0,
        waiting=figures.waiting(key) if fresh else None,
        rate=window.rate if window else None,
        failed=_share_failed(window),
        quantile=latency.quantile,
        latency=counting.quantile(latency.quantile, window.counts) if window else None,
        threshold=_seconds(latency.threshold),
        burn=burn,
        burning=burning,
        canary=rollout.phase if rollout is not None and going else "",
        percent=rollout.percent if rollout is not None and going else 0,
        paused=bool(rollout is not None and going and rollout.paused),
        maintenance=maintenance,
        maintenance_trouble=maintenance_trouble,
        spark=_spark(figures, key, seen.time - apart),
    )


def _not_understood(body: dict[str, Any], error: str) -> Row:
    metadata = body["metadata"]
    return Row(
        namespace=metadata["namespace"], name=metadata["name"], state="unknown", reason="NotUnderstood", message=error
    )


def detail(
    body: dict[str, Any],
    pods: Sequence[tuple[PodState, bool]],
    history: History,
    seen: Seen,
    figures: Figures,
    apart: float,
) -> Detail | Lacking:
    """``pods``: its workers, and whether each is a warm pod on loan."""
    try:
        reranker = parse_reranker(body)
    except msgspec.ValidationError as error:
        why = f"This version of the operator does not understand the object: {error}"
        return Lacking(seen, body["metadata"]["namespace"], body["metadata"]["name"], why)
    key = (reranker.metadata.namespace, reranker.metadata.name)
    status, spec, fresh = reranker.status, reranker.spec, _fresh(seen)
    window, ever, points = figures.window(key, LONGEST_WINDOW), figures.ever(key), figures.points(key)
    scaling = status.scaling
    return Detail(
        seen=seen,
        row=row(body, seen, figures, apart),
        since=figures.last - ever.seconds + apart if ever and figures.last is not None else None,
        model=spec.model.uri,
        model_revision=spec.model.revision,
        created=time_or_zero(body["metadata"].get("creationTimestamp")) or None,
        current=status.current_revision,
        updated=status.updated_revision,
        rejected=status.rejected_revision.revision if status.rejected_revision else None,
        min_replicas=spec.scaling.min_replicas,
        max_replicas=spec.scaling.max_replicas,
        mode=scaling.mode if scaling else "",
        scaling=scaling.message if scaling else "",
        capacity=scaling.capacity_tokens_per_second if scaling else None,
        objectives=objectives(reranker, figures, fresh),
        codes=_codes(window.counts) if window and fresh else {},
        window=window.seconds if window and fresh else 0.0,
        revisions=_revisions(reranker, figures.revisions(key, LONGEST_WINDOW) if fresh else {}),
        rollout=_rollout(reranker),
        conditions=list(status.conditions),
        workers=[_worker(pod, loaned) for pod, loaned in pods],
        history=history.notes(key),
        history_since=history.since(key),
        times=[at + apart for at in points.times] if points else [],
        points=points.columns if points else {},
    )


def not_listed(key: Key, seen: Seen) -> Lacking:
    """Before all objects were listed, nobody knows which there are."""
    return Lacking(seen, *key, "This operator has not listed the cluster yet: nothing is known of it so far.")


def standing(reranker: Reranker) -> tuple[State, str, str]:
    """How it is in a word, with the reason and message of the condition that says so."""
    conditions = {condition.type: condition for condition in reranker.status.conditions}
    ready, degraded = conditions.get("Ready"), conditions.get("Degraded")
    if ready is None:
        return "unknown", "NotObserved", "the operator has not looked at it yet"
    if ready.reason == "Suspended":
        return "suspended", ready.reason, ready.message
    calm: dict[str, State] = {"NoReplicasRequested": "idle", "WaitingForWorkers": "starting"}
    if degraded is not None and degraded.status == "True":
        down = ready.status == "False" and ready.reason not in calm
        return "down" if down else "degraded", degraded.reason, degraded.message
    if ready.status == "True":
        return "serving", ready.reason, ready.message
    if ready.status == "Unknown":
        return "unknown", ready.reason, ready.message
    return calm.get(ready.reason, "down"), ready.reason, ready.message


def objectives(reranker: Reranker, figures: Figures, fresh: bool) -> list[Objective]:
    """How the promises of ``spec.slo`` are kept."""
    key, slo = (reranker.metadata.namespace, reranker.metadata.name), reranker.spec.slo
    window, ever = figures.window(key, LONGEST_WINDOW) if fresh else None, figures.ever(key)
    found = []
    for sli, promised, threshold in (
        ("availability", slo.availability, None),
        ("latency", slo.latency.quantile, _seconds(slo.latency.threshold)),
    ):
        good, total, burn = _kept(window, sli, promised)
        found.append(Objective(sli, promised, threshold, good, total, burn, *_kept(ever, sli, promised)))
    return found


def _kept(window: Window | None, sli: str, promised: float) -> tuple[float | None, float | None, float | None]:
    """Good, total and burn."""
    served = window.served(sli) if window else None
    if served is None:
        return None, None, None
    good, total = served
    return good, total, (1 - good / total) / (1 - promised) if total else None


def _share_failed(window: Window | None) -> float | None:
    if window is None or not (total := counting.requests(window.counts)):
        return None
    return counting.failed(window.counts) / total


def _codes(counts: Counts) -> dict[str, float]:
    codes = {name.partition("/")[2]: value for name, value in counts.items() if name.startswith("code/") and value}
    return dict(sorted(codes.items()))


def _revisions(reranker: Reranker, windows: Mapping[str, Window]) -> list[Revision]:
    """Those that have a share of the traffic, or had requests."""
    status, shares = reranker.status, {share.revision: share.percent for share in reranker.status.traffic}
    rollout = status.rollout
    canary = rollout.revision if rollout is not None and rollout.phase not in ENDED else None
    found = []
    for name in sorted({*shares, *windows}):
        window = windows.get(name)
        counts = window.counts if window else {}
        if name not in shares and not counting.requests(counts):
            continue
        stable = name in (status.current_revision, rollout.stable if canary and rollout else None)
        role = "" if not name else "canary" if name == canary else "stable" if stable else "older"
        p50, p95, p99 = (counting.quantile(share, counts) for share in (0.5, 0.95, 0.99))
        rate = window.rate if window else None
        found.append(Revision(name, role, shares.get(name), rate, _share_failed(window), p50, p95, p99))
    order = {"stable": 0, "canary": 1, "older": 2, "": 3}
    return sorted(found, key=lambda one: order[one.role])


def _rollout(reranker: Reranker) -> Rollout | None:
    status, spec = reranker.status.rollout, reranker.spec.rollout
    if status is None:
        return None
    gates = ["Starting"]
    gates += ["Golden"] if spec.golden_set is not None else []
    gates += ["Mirror"] if spec.mirror_percent else []
    gates += ["Traffic", "Promoting"]
    return Rollout(status, status.phase not in ENDED, spec.strategy, list(spec.steps), gates)


def _worker(pod: PodState, loaned: bool) -> Worker:
    if pod.finished:
        state = "ended"
    elif pod.terminating:
        state = "stopping"
    elif pod.ready:
        state = "ready"
    elif pod.unheard:
        state = "unheard"
    else:
        state = "starting" if pod.scheduled else "waiting"
    trouble = pod.unschedulable or (pod.waiting.message or pod.waiting.reason if pod.waiting else "")
    return Worker(
        name=pod.name,
        revision=pod.revision,
        state=state,
        since=pod.ready_since or None,
        restarts=pod.restarts,
        loaned=loaned,
        message=trouble if state in ("starting", "waiting") else "",
    )


def _spark(figures: Figures, key: Key, now: float) -> list[float | None]:
    """The mean of each minute, the last one the youngest; None: nothing is known of it."""
    points = figures.points(key)
    if points is None:
        return []
    minutes: list[list[float]] = [[] for _ in range(SPARKS)]
    for at, rate in zip(points.times, points.columns["rate"], strict=True):
        age = int((now - at) // 60)
        if not math.isnan(rate) and 0 <= age < SPARKS:
            minutes[SPARKS - 1 - age].append(rate)
    return [round(sum(rates) / len(rates), 3) if rates else None for rates in minutes]


def _fresh(seen: Seen) -> bool:
    return seen.looked is not None and seen.time - seen.looked <= seen.patience


def _maintenance(reranker: Reranker, now: float) -> tuple[float | None, str]:
    """Its end, and why it cannot be read: as gateways read it, which do or do not silence the alerts."""
    text = reranker.metadata.annotations.get(names.ANNOTATION_MAINTENANCE, "")
    if not text:
        return None, ""
    try:
        until = units.parse_instant(text)
    except ValueError as error:
        return None, str(error)
    return until if until > now else None, ""


def _seconds(text: str) -> float | None:
    """None: the duration is not understood."""
    try:
        return units.parse_duration(text)
    except ValueError:
        return None


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) else None
