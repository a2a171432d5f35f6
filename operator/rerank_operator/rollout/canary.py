"""What becomes of a canary: a pure function of what there is, what was found out and what people ask for.

Gates come in order, and none is left out but by hand. It never lets a revision have users' requests before it has
loaded and, where there are such gates, ranked the golden set and answered mirrored requests; and it never promotes one
for lack of data. What it says stands in the Reranker's status, from which it goes on after a restart.
"""

import math
from typing import Literal

import msgspec
from rerank_api import names, units
from rerank_api.reranker import DifferedRequest, RejectedRevision, Rollout, RolloutCheck, RolloutPhase, RolloutStatus

from rerank_operator.controller.times import time_or_zero

LONGEST_MESSAGE = 4096
"""Characters, of what may quote a worker or the API server."""
ENDED = frozenset({"Promoted", "RolledBack", "Cancelled"})
JUDGED = frozenset({"Starting", "Golden", "Mirror", "Traffic"})
"""Phases in which stable keeps all its replicas."""
REASONS = {
    "golden": "RanksWorse",
    "mirror": "MirroredRequestsFailed",
    "errors": "MoreErrors",
    "latency": "Slower",
}
"""Why a revision was rejected, by the check that failed."""
BY_HAND = "promoted by hand"
"""How the message of such a promotion begins, by which it is known in later looks, too."""
OWN_METRIC_WORSE = "BusinessMetricWorse"
"""The same for a query of spec.rollout.prometheus, which is checked under a name of its own."""
BEFORE_TRAFFIC = frozenset({"load", "golden", "mirror"})
"""Checks that take back what is in an A/B test, too."""


class Findings(msgspec.Struct, frozen=True):
    """What was found out about a canary beside its objects."""

    revision: str
    golden: RolloutCheck | None = None
    mirror: RolloutCheck | None = None
    differed: tuple[DifferedRequest, ...] = ()
    """The mirrored requests that differed most; empty also where another operator has looked at them."""
    metrics: tuple[RolloutCheck, ...] = ()
    """Of users' requests."""
    action: Literal["hold", "advance", "promote", "rollback"] = "hold"
    """Of the judge of users' requests."""
    reason: str = ""
    """The metric that decided."""
    step: int = 0
    """Steps that are passed."""
    requests: int = 0
    """Of users that the canary has answered."""
    evidence: str | None = None
    """To be kept with the canary; None: what is kept will do."""


class Scene(msgspec.Struct, frozen=True):
    """Everything that is decided by."""

    now: float
    time: str
    """The same in RFC 3339."""
    rollout: Rollout
    target: str
    current: str | None
    """Stable."""
    known: bool
    """Stable is there, or its spec is."""
    desired: int
    ready: int = 0
    """Workers of the target."""
    blocked: int = 0
    """Those that find no room."""
    hopeless: tuple[str, str] | None = None
    """Reason and message where workers of the target will not come up."""
    waiting: str = ""
    """Why they are not up yet, where that is known."""
    state: RolloutStatus | None = None
    rejected: RejectedRevision | None = None
    """As it stands; it counts where it is of the target."""
    findings: Findings | None = None
    promote: str = ""
    abort: str = ""
    """Rollouts that a person has named, by when they began: a word that was meant for an earlier one is none."""
    paused: bool = False
    """By annotation."""
    retry: bool = False
    """Asked for since the rejection."""


class Course(msgspec.Struct, frozen=True):
    state: RolloutStatus | None
    rejected: RejectedRevision | None = None

    @property
    def judging(self) -> bool:
        return self.state is not None and self.state.phase in JUDGED

    @property
    def promoting(self) -> bool:
        return self.state is not None and self.state.phase == "Promoting"


def course(scene: Scene) -> Course:
    """How it goes on. ``state`` in it is about the target, or tells of the last rollout."""
    if scene.rejected is not None and scene.rejected.revision == scene.target and not scene.retry:
        return Course(scene.state, scene.rejected)
    going = scene.state if scene.state is not None and scene.state.phase not in ENDED else None
    if going is not None and going.phase == "Promoting" and scene.current == scene.target == going.revision:
        return Course(_serves(going, scene.time))
    if scene.rollout.strategy == "Replace" or scene.current in (None, scene.target) or not scene.known:
        why = "the spec has turned back" if scene.current == scene.target else "the spec asks for no canary any more"
        return Course(_ended(going, scene.time, "Cancelled", why) if going is not None else scene.state)
    if going is None or going.revision != scene.target or going.stable != scene.current:
        going = _begin(scene)
    return _walk(going, scene)


def promoted(course: Course, time: str) -> Course:
    """It serves all requests now."""
    assert course.state is not None
    return Course(_serves(course.state, time))


def size(desired: int, percent: float) -> int:
    """Workers for that share of the requests: of 5 and 50 percent 3; one at least while there are to be any."""
    return max(1, math.ceil(desired * percent / 100)) if desired else 0


def carried(percent: int, ready: int, desired: int) -> int:
    """Percent of the requests that so many ready workers carry as well as ``desired`` carry all; at most ``percent``.
    One worker is always given a percent: with 300 replicas it carries a third of it, which shows at worst as slow."""
    if ready == 0:
        return 0
    return min(percent, max(1, 100 * ready // max(desired, 1)))


def outcome_of(before: RolloutStatus | None, after: RolloutStatus | None, time: str) -> RolloutStatus | None:
    """How the rollout in ``before`` has ended just now, at ``time``; None: it goes on, or had ended."""
    if before is None or before.phase in ENDED:
        return None
    if after is not None and (after.revision, after.started) == (before.revision, before.started):
        return after if after.phase in ENDED else None
    return msgspec.structs.replace(
        before, phase="Cancelled", percent=0, message="the spec changed before it was decided", ended=time
    )


def _begin(scene: Scene) -> RolloutStatus:
    return RolloutStatus(
        revision=scene.target,
        stable=scene.current or "",
        phase="Starting",
        started=scene.time,
        phase_started=scene.time,
    )


def _walk(state: RolloutStatus, scene: Scene) -> Course:
    """As many gates as are passed already, and why it stays where it then is."""
    state = _with_checks_asked_for(state, scene.rollout)
    if scene.findings is not None and scene.findings.revision == state.revision:
        state = _with_findings(state, scene.findings)
    if scene.abort == state.started:
        return _reject(state, scene, "Aborted", f"aborted by hand (annotation {names.ANNOTATION_ABORT})")
    # While it takes over, one worker of several that crashes is no reason to send all back to the few that are left.
    if scene.hopeless is not None and not (state.phase == "Promoting" and scene.ready):
        reason, message = scene.hopeless
        return _reject(_with_check(state, RolloutCheck("load", "fail", message)), scene, reason, message)
    # In an A/B test figures only tell, and who promotes one has passed over them: no later strategy brings them back.
    only_told = scene.rollout.strategy == "ABTest" or state.phase == "Promoting"
    deciding = [check for check in state.checks if not only_told or check.name in BEFORE_TRAFFIC]
    failed = next((check for check in deciding if check.verdict == "fail"), None)
    if failed is not None:
        return _reject(state, scene, REASONS.get(failed.name, OWN_METRIC_WORSE), f"{failed.name}: {failed.message}")
    if scene.promote == state.started and state.phase != "Promoting":
        state = _enter(state, scene, "Promoting", _by_hand(state, scene.rollout))
    paused = _paused(state, scene)
    state = msgspec.structs.replace(state, paused=paused)
    while not paused and (gate := _GATES.get(state.phase)) and (after := gate(state, scene)) is not None:
        state = after
    if state.phase == "Traffic":
        percent = scene.rollout.steps[min(state.step, len(scene.rollout.steps) - 1)]
        state = msgspec.structs.replace(state, percent=percent)
    state = msgspec.structs.replace(state, borrowed=_borrowed(state, scene))
    return Course(msgspec.structs.replace(state, message=_message(state, scene)[:LONGEST_MESSAGE]))


def _borrowed(state: RolloutStatus, scene: Scene) -> int:
    """Only as many as find no room, and until the canary is stable or gone: what went to and fro would load models in
    vain."""
    if scene.rollout.when_full != "borrow" or state.phase not in JUDGED:
        return 0
    lacking = min(scene.ready + scene.blocked, size(scene.desired, state.percent)) if scene.blocked else 0
    return max(state.borrowed, lacking)


def _with_findings(state: RolloutStatus, findings: Findings) -> RolloutStatus:
    for check in (findings.golden, findings.mirror, *findings.metrics):
        if check is not None:
            state = _with_check(state, check)
    most = list(findings.differed) or state.differed
    return msgspec.structs.replace(state, differed=most, requests=max(state.requests, findings.requests))


def _with_checks_asked_for(state: RolloutStatus, rollout: Rollout) -> RolloutStatus:
    """Without those of queries that are not in the spec any more, or of an A/B test that is none any more."""
    asked = {"load", *REASONS, *(query.name for query in rollout.prometheus)}
    if rollout.strategy == "ABTest":
        asked.add("difference")
    return msgspec.structs.replace(state, checks=[check for check in state.checks if check.name in asked])


def _with_check(state: RolloutStatus, check: RolloutCheck) -> RolloutStatus:
    """In the order in which they first came."""
    check = msgspec.structs.replace(check, message=check.message[:LONGEST_MESSAGE])
    checks = [check if one.name == check.name else one for one in state.checks]
    if check.name not in {one.name for one in checks}:
        checks.append(check)
    return msgspec.structs.replace(state, checks=checks)


def _paused(state: RolloutStatus, scene: Scene) -> str:
    if state.phase == "Promoting":
        return ""
    if scene.rollout.paused:
        return "spec.rollout.paused is true"
    if scene.paused:
        return f"the annotation {names.ANNOTATION_ROLLOUT_PAUSED} is true"
    if scene.rollout.strategy == "ABTest" and state.phase == "Traffic":
        return ""  # held until a person decides, however long that takes
    if scene.now - time_or_zero(state.started) > units.parse_duration(scene.rollout.deadline):
        return f"it is not decided after {scene.rollout.deadline} (spec.rollout.deadline): promote or abort it"
    return ""


# --- the gates: the state after each, or None while it is not passed ---


def _start(state: RolloutStatus, scene: Scene) -> RolloutStatus | None:
    if scene.ready == 0:
        return None
    said = f"{scene.ready} worker{'s' * (scene.ready > 1)} loaded the model and scored"
    state = _with_check(state, RolloutCheck("load", "pass", said))
    return _enter(state, scene, "Golden" if scene.rollout.golden_set is not None else _after_golden(scene))


def _golden(state: RolloutStatus, scene: Scene) -> RolloutStatus | None:
    if scene.rollout.golden_set is not None and not _passed(state, "golden"):
        return None
    return _enter(state, scene, _after_golden(scene))


def _mirror(state: RolloutStatus, scene: Scene) -> RolloutStatus | None:
    if scene.rollout.mirror_percent > 0 and not _passed(state, "mirror"):
        return None
    return _enter(state, scene, "Traffic")


def _traffic(state: RolloutStatus, scene: Scene) -> RolloutStatus | None:
    findings = scene.findings
    if findings is None or findings.revision != state.revision or scene.rollout.strategy == "ABTest":
        return None
    last = len(scene.rollout.steps) - 1
    if findings.action == "promote":
        return _enter(msgspec.structs.replace(state, step=last + 1), scene, "Promoting")
    step = min(findings.step, last)
    return msgspec.structs.replace(state, step=step) if step > state.step else None


_GATES = {
    "Starting": _start,
    "Golden": _golden,
    "Mirror": _mirror,
    "Traffic": _traffic,
}


def _after_golden(scene: Scene) -> RolloutPhase:
    return "Mirror" if scene.rollout.mirror_percent > 0 else "Traffic"


def _passed(state: RolloutStatus, name: str) -> bool:
    return any(check.name == name and check.verdict == "pass" for check in state.checks)


def _enter(state: RolloutStatus, scene: Scene, phase: RolloutPhase, message: str = "") -> RolloutStatus:
    return msgspec.structs.replace(state, phase=phase, phase_started=scene.time, message=message, paused="")


def _ended(state: RolloutStatus, time: str, phase: RolloutPhase, message: str) -> RolloutStatus:
    percent = 100 if phase == "Promoted" else 0
    return msgspec.structs.replace(
        state, phase=phase, phase_started=time, ended=time, message=message, paused="", percent=percent, borrowed=0
    )


def _serves(state: RolloutStatus, time: str) -> RolloutStatus:
    """Whose word it was stays known: a person's may have passed over what the judge would not."""
    by_hand = f": {state.message}" if state.message.startswith(BY_HAND) else ""
    return _ended(state, time, "Promoted", f"revision {state.revision} serves all requests{by_hand}")


def _reject(state: RolloutStatus, scene: Scene, reason: str, message: str) -> Course:
    message = message[:LONGEST_MESSAGE]
    rejected = RejectedRevision(state.revision, reason, message, scene.time)
    return Course(_ended(state, scene.time, "RolledBack", f"{reason}: {message}"), rejected)


# --- in a sentence ---


def _message(state: RolloutStatus, scene: Scene) -> str:
    if state.paused:
        return f"paused: {state.paused}"
    held = {check.name: check.message for check in state.checks if check.verdict == "hold"}
    starting = "its first worker is starting" if scene.desired else "no worker is wanted now; it waits until one is"
    told = {
        "Starting": scene.waiting or starting,
        "Golden": held.get("golden", "the golden set is being ranked"),
        "Mirror": held.get("mirror", "mirrored requests are being compared"),
        "Traffic": _of_step(state, scene, held),
        "Promoting": state.message or "all gates are passed; it takes over",
    }
    return told[state.phase]


def _by_hand(state: RolloutStatus, rollout: Rollout) -> str:
    """With what the person has passed over."""
    where = f"in phase {state.phase}"
    if state.phase == "Traffic":
        where = f"at step {min(state.step + 1, len(rollout.steps))} of {len(rollout.steps)}"
    gates = {"load": True, "golden": rollout.golden_set is not None, "mirror": rollout.mirror_percent > 0}
    asked = [gate for gate, there in gates.items() if there]
    asked += ["errors", "latency", *(query.name for query in rollout.prometheus)]
    left = [name for name in asked if not _passed(state, name)]
    passed = f"not passed: {', '.join(left)}" if left else "every check passed"
    return f"{BY_HAND} (annotation {names.ANNOTATION_PROMOTE}) {where}, {passed}"


def _of_step(state: RolloutStatus, scene: Scene, held: dict[str, str]) -> str:
    steps = scene.rollout.steps
    where = f"step {min(state.step + 1, len(steps))} of {len(steps)}: {state.percent} % of the requests"
    if scene.rollout.strategy == "ABTest":
        return f"A/B test: {state.percent} % of the requests, until a person promotes or aborts it"
    if scene.desired == 0:
        return f"{where}, once there are any"
    if carried(state.percent, scene.ready, scene.desired) < state.percent:
        where += f", as far as {scene.ready} of {size(scene.desired, state.percent)} workers carry them"
        where += f" ({scene.waiting})" if scene.waiting else ""
    return where + "".join(f"; {name} to be shown" for name in held if name not in BEFORE_TRAFFIC)
