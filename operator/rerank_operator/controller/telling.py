"""What the status says of a plan, and which of its changes are worth an Event. Pure."""

from collections.abc import Sequence
from typing import Any

import msgspec
from rerank_api import names
from rerank_api.reranker import ScalingStatus, TrafficShare

from rerank_operator.controller import conditions, events
from rerank_operator.controller.conditions import Facts
from rerank_operator.controller.events import Event
from rerank_operator.controller.observe import Observed
from rerank_operator.controller.times import format_time
from rerank_operator.controller.verdict import Verdict
from rerank_operator.manifests.common import pod_selector
from rerank_operator.manifests.status import status_manifest


def tell(
    observed: Observed, facts: Facts, traffic: Sequence[TrafficShare], complete: bool, now: float
) -> tuple[dict[str, Any] | None, tuple[Event, ...]]:
    """The status object to apply (None: it stands already), and the Events that its changes are worth."""
    metadata, old = observed.metadata, observed.status
    judged = conditions.judge(facts, old.get("conditions", ()), metadata.generation, now)
    scaling = old.get("scaling")
    if facts.verdict is not None and (facts.verdict.refresh or scaling is None):
        scaling = _scaling_status(facts.verdict)
    elif facts.verdict is not None:  # only figures have moved on
        judged = conditions.keep(judged, conditions.SCALING, old.get("conditions", ()), metadata.generation)
    counting = [pod for pod in observed.pods if pod.counts]
    status: dict[str, Any] = {
        "observedGeneration": metadata.generation,
        "replicas": len(counting),
        "readyReplicas": sum(pod.ready for pod in counting),
        "selector": pod_selector(metadata.name),
        "traffic": msgspec.to_builtins(list(traffic)),
        "conditions": msgspec.to_builtins(list(judged)),
    }
    optional = {
        "currentRevision": facts.current,
        "updatedRevision": facts.target,
        "rejectedRevision": facts.rejected,
        "rollout": facts.rollout,
        "quality": facts.quality,
        "scaling": scaling,
    }
    status |= {field: msgspec.to_builtins(value) for field, value in optional.items() if value is not None}
    manifest = status_manifest(names.KIND, metadata, status, old, traffic=("revision",))
    if manifest is None:
        return None, ()
    told = events.transitions(old, judged, facts.current, facts.target, complete)
    told += events.of_rollout(observed.rollout, facts.rollout)
    return manifest, told + events.scaled(old.get("scaling") or {}, facts.verdict)


def _scaling_status(verdict: Verdict) -> dict[str, Any]:
    decision = verdict.decision
    status = ScalingStatus(
        mode=verdict.mode,
        desired_replicas=verdict.desired,
        desired_loaners=verdict.desired_loaners,
        loaners=verdict.serving,
        reason=decision.reason if decision else "",
        message=conditions.scaling_message(verdict),
        queued_requests=verdict.queued,
        capacity_tokens_per_second=verdict.capacity,
        start_seconds=verdict.start_seconds,
        wake_seconds=verdict.wake_seconds,
        last_request_time=format_time(verdict.last_request) if verdict.last_request else None,
        memory=msgspec.json.encode(decision.memory).decode() if decision else None,
    )
    # By hand, without omit_defaults: a printer column shows a zero, and not nothing.
    found = {field.encode_name: getattr(status, field.name) for field in msgspec.structs.fields(status)}
    return {name: value for name, value in found.items() if value is not None}
