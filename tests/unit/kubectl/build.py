"""Rerankers with a rollout, and what they leave behind, as the API server returns them."""

from datetime import UTC, datetime
from typing import Any

from rerank_api import names
from rerank_api.reranker import Reranker, RolloutCheck, RolloutPhase, RolloutStatus, parse_reranker

STABLE, CANARY, OTHER = "bcdfghjklm", "nqrstvwxz2", "z2456789bc"
NOW = datetime(2026, 11, 22, 3, 5, 12, tzinfo=UTC)
LATER, EARLIER = "2026-11-22T03:00:00Z", "2026-11-22T02:50:00Z"

LOADED = RolloutCheck("load", "pass", "2 workers loaded the model and scored")
SAME_ERRORS = RolloutCheck("errors", "pass", "0 of 400 failed, of stable 1 of 7600")
SAME_LATENCY = RolloutCheck("latency", "pass", "p95 is not longer by 20 %")
UNSURE = RolloutCheck("latency", "hold", "p95 is not known to be less than 20 % longer; 400 requests more would tell")


def rollout(phase: RolloutPhase = "Traffic", *checks: RolloutCheck, **more: Any) -> RolloutStatus:
    fields: dict[str, Any] = {"revision": CANARY, "stable": STABLE, "percent": 5, "step": 1, "requests": 123}
    fields |= {"started": EARLIER, "phase_started": LATER, "checks": list(checks)}
    return RolloutStatus(phase=phase, **(fields | more))


def reranker(going: RolloutStatus | None = None, **more: Any) -> Reranker:
    """``more``: as ``body`` takes it."""
    return parse_reranker(body(going, **more))


def body(
    going: RolloutStatus | None = None,
    *,
    annotations: dict[str, str] | None = None,
    spec: dict[str, Any] | None = None,
    generation: int = 2,
    **status: Any,
) -> dict[str, Any]:
    """``status``: fields by their names on the wire."""
    told = {"observedGeneration": 2, "currentRevision": STABLE, "updatedRevision": CANARY} | status
    if going is not None:
        told["rollout"] = going
    return {
        "metadata": {
            "name": "products",
            "namespace": "search",
            "generation": generation,
            "annotations": annotations or {},
        },
        "spec": {"model": {"uri": "hf://a/b"}, "rollout": {"strategy": "Canary"} | (spec or {})},
        "status": told,
    }


def rejection(revision: str = CANARY, time: str = LATER) -> dict[str, str]:
    return {"revision": revision, "reason": "Slower", "message": "latency: p95 is longer by 40 %", "time": time}


def condition(kind: str, status: str, message: str = "", reason: str = "ModelLoadFailed") -> dict[str, Any]:
    told = {"type": kind, "status": status, "reason": reason, "message": message}
    return told | {"observedGeneration": 2, "lastTransitionTime": LATER}


def kept(revision: str, number: int, outcome: str | None = None) -> dict[str, Any]:
    """A ControllerRevision."""
    return {
        "metadata": {
            "name": f"products-{revision}",
            "creationTimestamp": EARLIER,
            "labels": {names.LABEL_RERANKER: "products", names.LABEL_REVISION: revision},
            "annotations": {names.ANNOTATION_OUTCOME: outcome} if outcome is not None else {},
        },
        "data": {"model": {"uri": f"hf://a/{revision}"}},
        "revision": number,
    }
