"""Who gets which warm pod, who gives one back, and when a lent pod begins to serve. Pure: the caller claims.

In order of arrival; a pod is lent to one Reranker at a time; a pod that is given back keeps its models. What is not
known (no wish, an object that cannot be read) changes nothing. A pod on a silent node stays lent, but counts for
nothing: another is claimed in its place.
"""

from collections.abc import Collection, Mapping, Sequence

import msgspec

from rerank_operator.scaling.pool import FreePod, pick
from rerank_operator.warm.members import Member
from rerank_operator.warm.models import Failures, Workers, failed_with, known, place, refused, resting
from rerank_operator.warm.observe import PoolState, WarmPod


class Claim(msgspec.Struct, frozen=True):
    """Lend a free pod."""

    pod: WarmPod
    reranker: str
    revision: str


class Serve(msgspec.Struct, frozen=True):
    """Its model is ready: let gateways ask the pod for it."""

    pod: WarmPod
    reranker: str
    revision: str
    key: str


class Release(msgspec.Struct, frozen=True):
    pod: WarmPod
    why: str


class Waiting(msgspec.Struct, frozen=True):
    """Why a Reranker gets fewer warm pods than it wishes for."""

    reason: str
    """Exhausted, LoadFailed or CannotServe."""
    missing: int
    message: str


class Loans(msgspec.Struct, frozen=True):
    releases: tuple[Release, ...] = ()
    serves: tuple[Serve, ...] = ()
    claims: tuple[Claim, ...] = ()
    waiting: Mapping[str, Waiting] = {}
    """By the name of the Reranker."""


def decide_loans(
    state: PoolState,
    members: Sequence[Member],
    workers: Workers,
    failures: Failures,
    busy: Collection[str],
    now: float,
) -> Loans:
    """``busy``: uids of pods whose worker has something in hand: they are claimed last."""
    by_name = {member.name: member for member in members}
    releases: list[Release] = []
    serves: list[Serve] = []
    kept: dict[str, list[WarmPod]] = {member.name: [] for member in members}
    for pod in state.pods:
        if pod.loan is None:
            continue
        member = by_name.get(pod.loan.reranker)
        if (why := _reason_to_end(pod, member, workers, failures)) is not None:
            releases.append(Release(pod, why))
        elif not pod.state.unheard:
            kept[pod.loan.reranker].append(pod)
    for member in members:
        pods = kept[member.name]
        if member.unreadable:
            continue
        if member.wish is not None and len(pods) > member.wish.loaners:
            # Who does not serve yet is missed least; then the one that came last.
            pods.sort(key=lambda pod: (not pod.serves, pod.loan.since if pod.loan else 0.0, pod.name), reverse=True)
            surplus = len(pods) - member.wish.loaners
            releases.extend(Release(pod, "it is not needed any more") for pod in pods[:surplus])
            del pods[:surplus]
        serves.extend(serve for pod in pods if (serve := _serve(pod, member, workers)) is not None)
    claims, waiting = _claims(state, members, kept, failures, busy, now)
    # What the API server has just refused rests, each pod by itself: the loans of the others go on.
    releases = [release for release in releases if _patchable(release.pod, failures, now)]
    serves = [serve for serve in serves if _patchable(serve.pod, failures, now)]
    return Loans(tuple(releases), tuple(serves), tuple(claims), waiting)


def _patchable(pod: WarmPod, failures: Failures, now: float) -> bool:
    refusal = failures.get(refused(pod.uid))
    return refusal is None or now >= refusal.until


def _reason_to_end(pod: WarmPod, member: Member | None, workers: Workers, failures: Failures) -> str | None:
    loan = pod.loan
    assert loan is not None
    if member is None:
        return "its Reranker is gone or names the pool no more"
    if member.unreadable:
        return None
    if member.served is None:
        return member.problem or "its Reranker is suspended"
    if not pod.usable and not pod.state.unheard:
        return "the pod is not ready"
    if failed_with(pod, failures.get(member.served.key)):
        return "the model could not be loaded"
    if loan.serving is None and failed_with(pod, failures.get(place(pod.uid, ""))):
        return "its worker does not answer"
    worker = known(pod, workers)
    if loan.serving is not None and worker is not None and loan.serving not in worker.ready:
        return "its worker has lost the model"
    return None


def _serve(pod: WarmPod, member: Member, workers: Workers) -> Serve | None:
    loan, served, worker = pod.loan, member.served, known(pod, workers)
    if loan is None or served is None or worker is None or not pod.usable:
        return None
    if loan.serving == served.key and loan.revision == served.revision:
        return None
    if worker.loaded != (served.key, loan.since) or served.key not in worker.ready:
        return None
    return Serve(pod, member.name, served.revision, served.key)


def _claims(
    state: PoolState,
    members: Sequence[Member],
    kept: Mapping[str, Sequence[WarmPod]],
    failures: Failures,
    busy: Collection[str],
    now: float,
) -> tuple[list[Claim], dict[str, Waiting]]:
    left = {pod.name: pod for pod in state.free if not resting(pod, failures, now) and _patchable(pod, failures, now)}
    waiting: dict[str, Waiting] = {}
    wishes: list[tuple[Member, int]] = []
    for member in sorted(members, key=lambda m: (m.wish.since if m.wish else 0.0, m.name)):
        missing = member.wish.loaners - len(kept[member.name]) if member.wish is not None else 0
        if missing <= 0:
            continue
        if (problem := _cannot_lend(member, failures, missing, now)) is not None:
            waiting[member.name] = problem
        else:
            wishes.append((member, missing))
    claims: list[Claim] = []
    later = {member.served.key for member, _ in wishes if member.served is not None}
    for member, missing in wishes:
        served = member.served
        assert served is not None
        later.discard(served.key)
        failure = failures.get(served.key)
        tried = failure.pods.keys() if failure is not None else frozenset[str]()
        got = 0
        while left and got < missing:
            # Who has failed with it, and who has something else in hand, only where there is no other.
            worth = {pod.name: (pod.uid in tried, pod.uid in busy) for pod in left.values()}
            best = min(worth.values())
            choice = [FreePod(pod.name, pod.models) for pod in left.values() if worth[pod.name] == best]
            claims.append(Claim(left.pop(pick(choice, served.key, later).name), member.name, served.revision))
            got += 1
        if got < missing:
            waiting[member.name] = Waiting("Exhausted", missing - got, _exhausted(state, missing - got))
    return claims, waiting


def _cannot_lend(member: Member, failures: Failures, missing: int, now: float) -> Waiting | None:
    if member.served is None:
        return Waiting("CannotServe", missing, member.problem or "it is suspended")
    failure = failures.get(member.served.key)
    if failure is not None and now < failure.until:
        return Waiting("LoadFailed", missing, f"its model could not be loaded in a warm pod: {failure.message}")
    return None


def _exhausted(state: PoolState, missing: int) -> str:
    lent = sum(pod.loan is not None for pod in state.pods)
    return f"{missing} more are wished for than there are: of {len(state.pods)} pods {lent} are lent and none is free"
