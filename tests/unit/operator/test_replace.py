"""The handover between revisions: a table of situations, and what must hold in any of them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rerank_operator.rollout.replace import RevisionView, hand_over, share_traffic


def view(revision: str, replicas: int = 0, ready: int = 0, **more: Any) -> RevisionView:
    return RevisionView(revision, replicas, ready, **more)


@pytest.mark.parametrize(
    ("current", "desired", "views", "replicas", "serving"),
    [
        pytest.param(None, 2, [], {"new": 2}, None, id="first start"),
        pytest.param(None, 2, [view("new", 2, 1)], {"new": 2}, "new", id="first worker ready"),
        pytest.param("new", 3, [view("new", 2, 2)], {"new": 3}, "new", id="scaled up"),
        pytest.param("new", 0, [view("new", 2, 2)], {"new": 0}, "new", id="scaled to zero"),
        pytest.param("old", 2, [view("old", 2, 2)], {"new": 2, "old": 2}, "old", id="rollout begins"),
        pytest.param("old", 2, [view("new", 2, 1), view("old", 2, 2)], {"new": 2, "old": 1}, "old", id="half way"),
        pytest.param("old", 2, [view("new", 2, 2), view("old", 1, 1)], {"new": 2, "old": 0}, "new", id="complete"),
        pytest.param("old", 4, [view("new", 2, 0), view("old", 2, 2)], {"new": 4, "old": 4}, "old", id="grows stuck"),
        pytest.param("old", 2, [view("new", 2, 0), view("old", 1, 1)], {"new": 2, "old": 2}, "old", id="new one lost"),
        pytest.param(
            "new", 3, [view("b", 3, 2), view("new", 1, 1)], {"new": 3, "b": 2}, "new",
            id="turned back: what is ready stands in until it is replaced",
        ),
        pytest.param("new", 3, [view("new", 3, 1), view("b")], {"new": 3, "b": 0}, "new", id="never grown again"),
        pytest.param("old", 0, [view("new", 0, 0), view("old", 2, 2)], {"new": 0, "old": 0}, "old", id="to zero"),
        pytest.param("old", 1, [view("new"), view("old")], {"new": 1, "old": 1}, "old", id="back from zero"),
        pytest.param("new", 0, [view("new", 2, 2)], {"new": 0}, "new", id="to zero without a rollout"),
        pytest.param(None, 0, [view("new")], {"new": 0}, None, id="never served"),
        pytest.param(
            "a", 2, [view("new", 2), view("b", 2, 1), view("a", 1, 1)], {"new": 2, "b": 1, "a": 1}, "a",
            id="a third revision: what is ready stays, what is not goes",
        ),
        pytest.param(None, 2, [view("new", 2), view("b", 2, 0)], {"new": 2, "b": 0}, None, id="broken start mended"),
        pytest.param(None, 2, [view("new", 2), view("b", 2, 2)], {"new": 2, "b": 2}, "b", id="status was lost"),
        pytest.param("old", 1, [view("new", 1), view("old")], {"new": 1, "old": 1}, "old", id="old one was deleted"),
    ],
)  # fmt: skip
def test_replicas(current: str | None, desired: int, views: list[RevisionView], replicas: dict[str, int], serving: str):
    decided = hand_over("new", current, desired, views)
    assert decided.replicas == replicas
    assert decided.current == serving


@pytest.mark.parametrize(
    ("views", "replicas", "lent_by"),
    [
        pytest.param([view("new", 2, 0, blocked=2), view("old", 2, 2)], {"new": 2, "old": 1}, "old", id="one is freed"),
        pytest.param(
            [view("new", 2, 0, blocked=2), view("old", 1, 1, lent=True)], {"new": 2, "old": 1}, "old", id="one"
        ),
        pytest.param([view("new", 2, 0), view("old", 1, 1, lent=True)], {"new": 2, "old": 1}, "old", id="it loads"),
        pytest.param([view("new", 2, 1), view("old", 1, 1, lent=True)], {"new": 2, "old": 0}, "old", id="it paid off"),
        pytest.param(
            [view("new", 2, 0, blocked=1, loading=1), view("old", 2, 2)], {"new": 2, "old": 2}, None, id="loads"
        ),
        pytest.param([view("new", 2, 0, blocked=2), view("old", 1, 1)], {"new": 2, "old": 2}, None, id="none to spare"),
    ],
)
def test_a_replica_is_freed_where_there_is_no_room(views: list[RevisionView], replicas: dict[str, int], lent_by: str):
    decided = hand_over("new", "old", 2, views)
    assert decided.replicas == replicas
    assert decided.lent_by == lent_by


def test_more_is_asked_for_than_there_is_room():
    """One of three old workers is pending too: to free that one would free nothing."""
    decided = hand_over("new", "old", 3, [view("new", 3, blocked=3), view("old", 3, 2, blocked=1)])
    assert (decided.replicas, decided.lent_by, decided.fits) == ({"new": 3, "old": 1}, "old", 2)
    half = [view("new", 3, 1, blocked=2), view("old", 1, 1, lent=True, fits=2)]
    assert hand_over("new", "old", 3, half).replicas == {"new": 3, "old": 0}
    last = hand_over("new", "old", 3, [view("new", 3, 2, blocked=1), view("old", 0, 0, lent=True, fits=2)])
    assert (last.replicas, last.current, last.complete) == ({"new": 3, "old": 0}, "new", True)


def test_a_rejected_revision_goes_and_the_old_one_is_restored():
    decided = hand_over("new", "old", 3, [view("new", 3, 0), view("old", 2, 2, lent=True)], rejected=True)
    assert decided.replicas == {"new": 0, "old": 3}
    assert (decided.current, decided.lent_by, decided.complete) == ("old", None, False)


@pytest.mark.parametrize(
    ("ready", "shares"),
    [
        ({}, {}),
        ({"a": 0}, {}),
        ({"a": 1}, {"a": 100}),
        ({"a": 2, "b": 1}, {"a": 67, "b": 33}),
        ({"a": 1, "b": 1, "c": 1}, {"a": 34, "b": 33, "c": 33}),
        ({"a": 3, "b": 0}, {"a": 100}),
    ],
)
def test_traffic_follows_ready_workers(ready: dict[str, int], shares: dict[str, int]):
    found = share_traffic([view(name, count, count) for name, count in ready.items()])
    assert {share.revision: share.percent for share in found} == shares


@pytest.mark.parametrize(
    ("current", "views", "warm", "rejected", "shares"),
    [
        # Regression: three warm pods of the old revision counted as capacity, and the one new worker got everything.
        pytest.param("new", [view("new", 1, 1), view("old", 0, 0)], {"old": 3}, False, {"new": 25, "old": 75}, id="go"),
        pytest.param(
            "old", [view("new", 2, 1), view("old", 1, 1)], {"old": 2}, False, {"new": 25, "old": 75}, id="mix"
        ),
        pytest.param(
            "new", [view("new", 1, 1)], {"old": 1}, False, {"new": 50, "old": 50}, id="no Deployment any more"
        ),
        pytest.param("new", [view("new")], {"new": 2}, False, {"new": 100}, id="warm pods alone"),
        pytest.param("old", [view("new", 1, 1), view("old")], {"old": 1, "new": 1}, True, {"old": 100}, id="rejected"),
        pytest.param("old", [view("new", 1, 1), view("old")], {"new": 1}, True, {"new": 100}, id="rejected, none else"),
    ],
)
def test_warm_pods_have_their_share(
    current: str, views: list[RevisionView], warm: dict[str, int], rejected: bool, shares: dict[str, int]
):
    decided = hand_over("new", current, 1, views, rejected=rejected, warm=warm)
    assert {share.revision: share.percent for share in decided.traffic} == shares
    assert decided.replicas == hand_over("new", current, 1, views, rejected=rejected).replicas


counts = st.integers(0, 8)
views = st.lists(
    st.builds(
        RevisionView, st.sampled_from("abcd"), counts, counts, counts, counts, counts, st.booleans(), st.none() | counts
    ),
    unique_by=lambda v: v.revision,
)


@given(views=views, desired=counts, current=st.sampled_from(["a", "b", "c", None]), rejected=st.booleans())
def test_invariants(views: list[RevisionView], desired: int, current: str | None, rejected: bool):
    decided = hand_over("a", current, desired, views, rejected=rejected)
    by_name = {v.revision: v for v in views}
    kept = sum(min(by_name[name].ready, count) for name, count in decided.replicas.items() if name in by_name)
    ready = sum(min(v.ready, v.replicas) for v in views)
    old = [v for v in views if v.revision != "a"]
    taken_back = rejected and bool(old)
    if desired > 0 and not taken_back:
        spare = 1 if decided.lent_by else 0
        new = by_name.get("a", view("a"))
        assert kept >= min(desired, ready - max(0, new.replicas - desired)) - spare
    assert set(decided.replicas) >= {v.revision for v in views}
    assert all(count >= 0 for count in decided.replicas.values())
    if not taken_back:
        assert decided.replicas["a"] == desired
        others = sum(count for name, count in decided.replicas.items() if name != "a")
        assert others <= desired
    shares = {share.revision: share.percent for share in decided.traffic}
    assert sum(shares.values()) == (100 if any(v.ready for v in views) else 0)
    assert all(by_name[name].ready for name in shares)
    assert hand_over("a", current, desired, views, rejected=rejected) == decided


def test_no_replica_of_the_old_revision_is_begun_where_warm_pods_serve_it():
    decided = hand_over("new", "old", 1, [view("new"), view("old")], warm={"old": 1})
    assert decided.replicas == {"new": 1, "old": 0}
    assert decided.current == "old"
    # Without them the new one is not all that there is: it may turn out not to start.
    assert hand_over("new", "old", 1, [view("new"), view("old")]).replicas == {"new": 1, "old": 1}
    # Those that run stay until the new one serves.
    running = hand_over("new", "old", 2, [view("new"), view("old", 2, 2)], warm={"old": 1})
    assert running.replicas == {"new": 2, "old": 2}


@given(desired=st.integers(1, 6), room=st.integers(0, 8), broken=st.booleans(), data=st.data())
def test_every_rollout_converges(desired: int, room: int, broken: bool, data: st.DataObject):
    """A small cluster: pods beyond its room stay pending; each step one pod of the new revision may become ready."""
    room = max(room, desired)
    old_pods, new_pods, new_ready, lent, rejected = desired, 0, 0, False, False
    lowest = desired
    for _ in range(8 * desired + 8):
        waiting = max(0, new_pods - max(0, room - old_pods))
        loading = new_pods - new_ready - waiting
        new = view("new", new_pods, new_ready, blocked=waiting, loading=loading)
        views = [new, view("old", old_pods, old_pods, lent=lent)]
        decided = hand_over("new", "old", desired, views, rejected=rejected)
        old_pods, new_pods = decided.replicas["old"], decided.replicas["new"]
        lent = decided.lent_by is not None
        running = max(0, min(new_pods, room - old_pods))
        new_ready = min(new_ready, running)
        lowest = min(lowest, min(old_pods, room) + new_ready)
        if decided.complete or (rejected and old_pods == desired):
            break
        if running > new_ready and broken:
            rejected = rejected or lent
        elif running > new_ready and data.draw(st.booleans(), label="a pod becomes ready"):
            new_ready += 1
    assert lowest >= desired - 1
    if room > desired:
        assert broken or lowest == desired
