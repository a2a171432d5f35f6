"""Who serves, with how many workers, while a canary is judged, promoted or taken back. Pure.

Stable keeps every replica until the canary is promoted, so that going back is a change of weights and of nothing else.
It must never give a canary a request before its first step.
"""

from collections.abc import Mapping, Sequence

import msgspec
from rerank_api.reranker import TrafficShare

from rerank_operator.rollout import canary
from rerank_operator.rollout.replace import (
    NO_PODS,
    Handover,
    RevisionView,
    hand_over,
    serving_first,
    share_traffic,
    spread,
)


def carry(
    target: str,
    current: str,
    desired: int,
    revisions: Sequence[RevisionView],
    *,
    percent: int,
    had: int,
    replace_one: bool,
    warm: Mapping[str, int] = NO_PODS,
) -> Handover:
    """While it is judged. ``percent``: of users' requests that the canary is to get; ``had``: that it gets by now, more
    than which it is not given while no other worker is ready, for it would get all of them; ``replace_one``: where it
    finds no room, one of several stable replicas makes some."""
    new = next((view for view in revisions if view.revision == target), RevisionView(target))
    old = serving_first([view for view in revisions if view.revision != target], current)
    none = {view.revision: 0 for view in old}
    share = canary.carried(percent, new.ready, desired)
    if not share_traffic(old, {revision: pods for revision, pods in warm.items() if revision != target}):
        share = min(share, had)
    traffic = shares(old, target, current, share, warm)
    if desired == 0 or not old:
        return Handover(none | {target: 0}, current, False, traffic)
    lent = replace_one and desired > 1 and (any(view.lent for view in old) or _finds_no_room(new, old, desired))
    replicas = spread(desired - lent, old, spared=warm.get(old[0].revision, 0))
    size = canary.size(desired, percent)
    return Handover(replicas | {target: size}, current, False, traffic, old[0].revision if lent else None)


def _finds_no_room(new: RevisionView, old: Sequence[RevisionView], desired: int) -> bool:
    coming = new.loading or any(view.stopping for view in old)
    return bool(new.blocked) and not coming and sum(view.ready for view in old) >= desired


def promote(
    target: str,
    current: str,
    desired: int,
    revisions: Sequence[RevisionView],
    *,
    percent: int,
    warm: Mapping[str, int] = NO_PODS,
) -> Handover:
    """The canary takes over; its share never falls below the ``percent`` that it had, so who met it meets it again."""
    handover = hand_over(target, current, desired, revisions, warm=warm)
    if handover.complete:
        return all_to(target, handover)
    new = next((view for view in revisions if view.revision == target), RevisionView(target))
    ready = {share.revision: share.percent for share in handover.traffic}
    had = canary.carried(percent, new.ready, desired)
    if ready.get(target, 0) >= had or len(ready) < 2:
        return handover
    old = [view for view in revisions if view.revision != target]
    return msgspec.structs.replace(handover, traffic=shares(serving_first(old, current), target, current, had, warm))


def all_to(target: str, handover: Handover) -> Handover:
    """It has as many workers as are wanted: those of others that still are ready get no more requests."""
    return msgspec.structs.replace(handover, traffic=(TrafficShare(target, 100),))


def shares(
    old: Sequence[RevisionView], target: str, current: str, percent: int, warm: Mapping[str, int] = NO_PODS
) -> tuple[TrafficShare, ...]:
    """``percent`` for the target, also where that is 0; the rest for who serves, by ready workers."""
    others = {revision: pods for revision, pods in warm.items() if revision != target}
    rest = share_traffic(old, others) or (TrafficShare(current, 100),)
    left = 100 - percent
    scaled = {share.revision: share.percent * left // 100 for share in rest}
    largest = max(rest, key=lambda share: share.percent).revision
    scaled[largest] += left - sum(scaled.values())
    found = [TrafficShare(revision, part) for revision, part in scaled.items() if part] + [
        TrafficShare(target, percent)
    ]
    return tuple(sorted(found, key=lambda share: share.revision))
