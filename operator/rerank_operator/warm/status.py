"""The status of a WarmPool: counts, the models that its pods hold, and two conditions. Pure.

The first check with an answer wins, as with a Reranker's conditions. Figures that change by themselves stay out of the
messages, or every look would be a write.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from rerank_api import names
from rerank_api.reranker import Condition, Metadata
from rerank_api.warm_pool import LoanedModel, WarmPoolStatus

from rerank_operator.controller.conditions import DEGRADED, READY, Answer, Problem, judge_by
from rerank_operator.controller.diagnose import Diagnosis
from rerank_operator.controller.events import Event, of_condition
from rerank_operator.manifests.status import status_manifest
from rerank_operator.manifests.warm_pool import pod_selector
from rerank_operator.warm.loans import Waiting
from rerank_operator.warm.members import Member
from rerank_operator.warm.observe import PoolState

TOLD = 5
"""So many Rerankers are named in one message."""


class Facts(msgspec.Struct, frozen=True):
    """Everything that the conditions are judged by."""

    size: int
    ready: int
    borrowed: int = 0
    """Pods that it does without, for canaries that find no room else."""
    unheard: int = 0
    """Pods of nodes that do not report."""
    problem: Problem | None = None
    """Why what the spec asks for could not even be written."""
    trouble: Diagnosis | None = None
    """Why pods do not become ready."""
    waiting: Mapping[str, Waiting] = {}
    """By the Reranker's name."""
    unused: tuple[str, ...] = ()
    """Preloads that no Reranker uses."""
    not_kept: Mapping[str, str] = {}
    """Models that could not be loaded to be kept ready, by their keys, and why."""


Check = Callable[[Facts], Answer | None]


def status(
    metadata: Metadata,
    old: dict[str, Any],
    facts: Facts,
    state: PoolState,
    members: Sequence[Member],
    now: float,
) -> WarmPoolStatus:
    """``old``: as stored; a transition time changes only where its condition's status does."""
    served = [(member.name, member.served) for member in members if member.served is not None]
    held = [
        LoanedModel(name, model.revision, sum(model.key in pod.models for pod in state.pods)) for name, model in served
    ]
    return WarmPoolStatus(
        observed_generation=metadata.generation,
        replicas=len(state.pods),
        ready_replicas=facts.ready,
        free=len(state.free),
        loaned=sum(pod.loan is not None for pod in state.pods),
        selector=pod_selector(metadata.name),
        models=[model for model in held if model.pods],
        conditions=list(judge_by(_CHAINS, facts, old.get("conditions", ()), metadata.generation, now)),
    )


def manifest(metadata: Metadata, wanted: WarmPoolStatus, old: dict[str, Any]) -> dict[str, Any] | None:
    """What to apply; None: it stands already."""
    # Every field, also those that are 0: what is left out would keep its place in the printed columns empty.
    content = {
        field.encode_name: msgspec.to_builtins(getattr(wanted, field.name)) for field in msgspec.structs.fields(wanted)
    }
    return status_manifest(names.WARM_POOL_KIND, metadata, content, old, models=("reranker", "revision"))


def told(old: dict[str, Any], written: dict[str, Any]) -> tuple[Event, ...]:
    """The Events that a change of the status is worth: what needs a person, and that it no longer does."""
    before = {condition.get("type"): condition for condition in old.get("conditions", ())}
    now = msgspec.convert(written["status"]["conditions"], list[Condition])
    return tuple(
        event
        for condition in now
        if condition.type == DEGRADED
        for event in of_condition(before.get(DEGRADED, {}), condition)
    )


# --- Ready: is there a pod that can be lent, or is lent? ---


def _all_borrowed(facts: Facts) -> Answer | None:
    if facts.size or not facts.borrowed:
        return None
    return "False", "Borrowed", f"the room of all {facts.borrowed} pods is borrowed by canaries until they are decided"


def _empty(facts: Facts) -> Answer | None:
    return ("False", "NoPodsRequested", "spec.size is 0: raise it to have warm pods") if facts.size == 0 else None


def _ready(facts: Facts) -> Answer | None:
    if facts.ready == 0:
        return None
    less = f"; the room of {facts.borrowed} more is borrowed by canaries" if facts.borrowed else ""
    return "True", "PodsReady", f"{facts.ready} of {facts.size} pods are ready{less}"


def _unheard(facts: Facts) -> Answer | None:
    if facts.unheard == 0:
        return None
    return "Unknown", "NodeSilent", f"the nodes of {facts.unheard} pods do not report"


def _not_ready(facts: Facts) -> Answer | None:
    trouble = facts.problem or facts.trouble
    return ("False", trouble.reason, trouble.message) if trouble else None


def _starting(facts: Facts) -> Answer | None:
    return "False", "WaitingForPods", f"none of {facts.size} pods is ready yet"


# --- Degraded: does anything need a person? ---


def _problem(facts: Facts) -> Answer | None:
    return ("True", facts.problem.reason, facts.problem.message) if facts.problem else None


def _trouble(facts: Facts) -> Answer | None:
    return ("True", facts.trouble.reason, facts.trouble.message) if facts.trouble and facts.size else None


def _waiting(reason: str) -> Check:
    def check(facts: Facts) -> Answer | None:
        found = {name: one for name, one in sorted(facts.waiting.items()) if one.reason == reason}
        return ("True", reason, _told({name: one.message for name, one in found.items()})) if found else None

    return check


def _not_kept(facts: Facts) -> Answer | None:
    return ("True", "PreloadFailed", _told(dict(sorted(facts.not_kept.items())))) if facts.not_kept else None


def _unused(facts: Facts) -> Answer | None:
    if not facts.unused:
        return None
    named = ", ".join(facts.unused[:TOLD])
    message = (
        f"spec.preload names what is the model of no Reranker with this warmPool, so nobody knows how to load it: "
        f"{named}. Write uri and revision as in the Reranker's spec.model, or remove the entry"
    )
    return "True", "PreloadUnused", message


def _healthy(facts: Facts) -> Answer | None:
    return "False", "Healthy", "nothing is known to be wrong"


def _told(messages: Mapping[str, str]) -> str:
    more = f"; and {len(messages) - TOLD} more" if len(messages) > TOLD else ""
    return "; ".join(f"{name}: {message}" for name, message in list(messages.items())[:TOLD]) + more


_CHAINS: dict[str, tuple[Check, ...]] = {
    READY: (_all_borrowed, _empty, _ready, _unheard, _not_ready, _starting),
    DEGRADED: (
        _problem,
        _trouble,
        _waiting("LoadFailed"),
        _waiting("CannotServe"),
        _waiting("Exhausted"),
        _not_kept,
        _unused,
        _healthy,
    ),
}
