"""The handover from old revisions to the one that the spec asks for, decided anew from what is there each time.

Old replicas go only as new ones become ready, so ready capacity never falls below what was asked for or was there;
the one exception is the replica that is freed when the new revision finds no room. It must never free a second one
before the first has paid off, and never send traffic to a revision without a ready worker while another has one.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import msgspec
from rerank_api.reranker import TrafficShare

NO_PODS: Mapping[str, int] = MappingProxyType({})


class RevisionView(msgspec.Struct, frozen=True):
    """What there is of one revision."""

    revision: str
    replicas: int = 0
    """What its Deployment asks for."""
    ready: int = 0
    """Ready workers that are not being stopped."""
    blocked: int = 0
    """Workers that cannot start for lack of a resource which other revisions hold (and have waited long enough)."""
    loading: int = 0
    """Workers that have a place and are not ready yet: nothing need be freed for them."""
    stopping: int = 0
    """Workers that are about to make room."""
    lent: bool = False
    """One of its replicas has been freed for the target."""
    fits: int | None = None
    """Workers of all revisions together that there was room for when it was freed; None: all that were asked for."""


class Handover(msgspec.Struct, frozen=True):
    """What should be: replicas of every revision seen, who serves, and how requests are shared out."""

    replicas: dict[str, int]
    current: str | None
    complete: bool
    traffic: tuple[TrafficShare, ...]
    lent_by: str | None = None
    """The old revision that bears the mark: one replica fewer than needed is kept, so that the target finds room."""
    fits: int | None = None
    """To be kept with that mark."""


def hand_over(
    target: str,
    current: str | None,
    desired: int,
    revisions: Sequence[RevisionView],
    *,
    rejected: bool = False,
    warm: Mapping[str, int] = NO_PODS,
) -> Handover:
    """``revisions``: newest first; the target may be among them. ``rejected``: the target is not to be tried.
    ``warm``: warm pods that serve, by revision; they get requests too. Replicas of an old revision are not begun where
    they serve it.
    """
    new = next((view for view in revisions if view.revision == target), RevisionView(target))
    old = [view for view in revisions if view.revision != target]
    if rejected and old:
        return _restore(new, serving_first(old, current), desired, warm)
    old = serving_first(old, current)
    lent, fits = any(view.lent for view in old), next((view.fits for view in old if view.lent), None)
    if not lent and _stuck(new, old, desired - new.ready, current):
        lent, fits = True, min(desired, _placed([new, *old]))
    # Beyond what there is room for nothing is waited for: the last of the old would never go.
    goal = desired if fits is None else min(desired, max(fits, _placed([new, *old])))
    none = {view.revision: 0 for view in old}
    if desired == 0:
        # Who served is who serves again: at zero the target has not shown that it can.
        known = current == target or any(view.revision == current for view in old)
        return Handover(
            none | {target: 0}, current if known else None, current == target, share_traffic([new, *old], warm)
        )
    if new.ready >= goal or not old:
        serving = target if current == target or old or new.ready else current
        return Handover(none | {target: desired}, serving, new.ready >= goal, share_traffic([new, *old], warm))

    needed = goal - new.ready - lent
    if current is None and not any(view.ready for view in old):
        needed = lent = 0  # nothing has ever served: unready leftovers would only hold resources
    replicas = spread(needed, old, grow=current != target, spared=warm.get(old[0].revision, 0))
    lent_by = old[0].revision if lent else None
    serving = target if current == target else old[0].revision if current or old[0].ready else None
    traffic = share_traffic([new, *old], warm)
    return Handover(replicas | {target: desired}, serving, False, traffic, lent_by, fits if lent else None)


def _placed(revisions: Sequence[RevisionView]) -> int:
    return sum(view.ready + view.loading for view in revisions)


def _stuck(new: RevisionView, old: list[RevisionView], missing: int, current: str | None) -> bool:
    """The new revision finds no room, none is on its way, and the old ones have no replica beyond what is needed."""
    coming = new.loading or any(view.stopping for view in old)
    if not new.blocked or coming or not _placed([new, *old]):
        return False
    replicas = sum(view.replicas for view in old)
    # Old workers that find no room either are none to wait for; others that are not placed yet are.
    known = _placed(old) + sum(view.blocked for view in old) >= replicas
    return known and (replicas <= missing if current == new.revision else replicas == missing)


def _restore(new: RevisionView, old: list[RevisionView], desired: int, warm: Mapping[str, int]) -> Handover:
    """Everything back to the revision that served; the rejected one goes to zero."""
    traffic = share_traffic(old, {revision: pods for revision, pods in warm.items() if revision != new.revision})
    traffic = traffic or share_traffic([new], warm)
    return Handover(spread(desired, old) | {new.revision: 0}, old[0].revision, False, traffic)


def serving_first(old: list[RevisionView], current: str | None) -> list[RevisionView]:
    """The revision that served comes first; where that is unknown, the one with most ready workers does."""
    return sorted(old, key=lambda view: (view.revision != current, -view.ready))


def spread(needed: int, old: list[RevisionView], grow: bool = True, spared: int = 0) -> dict[str, int]:
    """``needed`` replicas over the old revisions: ready ones first; what is missing then is the first one's to grow,
    but for as many as are ``spared``.

    Not to ``grow``: the spec has turned back to the revision that serves, so the others only stand in.
    """
    replicas = {}
    for view in old:
        replicas[view.revision] = min(view.ready, view.replicas, needed)
        needed -= replicas[view.revision]
    if grow:
        replicas[old[0].revision] += max(0, needed - spared)
    return replicas


def share_traffic(revisions: Sequence[RevisionView], warm: Mapping[str, int] = NO_PODS) -> tuple[TrafficShare, ...]:
    """Percent by ready workers, own and ``warm`` (by revision, whether it is among ``revisions`` or not), adding up to
    100 (largest remainders first); empty while none is ready."""
    own = {view.revision: view.ready for view in revisions}
    serving = {
        revision: own.get(revision, 0) + warm.get(revision, 0) for revision in [*own, *sorted(warm.keys() - own)]
    }
    ready = {revision: count for revision, count in serving.items() if count > 0}
    total = sum(ready.values())
    shares = {revision: count * 100 // total for revision, count in ready.items()}
    by_remainder = sorted(ready, key=lambda revision: -(ready[revision] * 100 % total))
    for revision in by_remainder[: 100 - sum(shares.values())]:
        shares[revision] += 1
    return tuple(TrafficShare(revision, percent) for revision, percent in sorted(shares.items()) if percent)
