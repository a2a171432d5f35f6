"""Who gets which warm pod: in order of arrival, never one pod for two, and what is not known changes nothing."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rerank_operator.warm.loans import Loans, decide_loans
from rerank_operator.warm.members import Member
from rerank_operator.warm.models import Failure, Failures, Workers, refused
from rerank_operator.warm.observe import PoolState, WarmPod
from unit.operator.warm.pool import NOW, holding, lent, member, model, pod, state


def decide(
    pool: PoolState,
    *members: Member,
    workers: Workers | None = None,
    failures: Failures | None = None,
    busy: frozenset[str] = frozenset(),
) -> Loans:
    return decide_loans(pool, members, workers or {}, failures or {}, busy, NOW)


def claims(loans: Loans) -> list[tuple[str, str]]:
    return [(claim.reranker, claim.pod.name) for claim in loans.claims]


def releases(loans: Loans) -> dict[str, str]:
    return {release.pod.name: release.why for release in loans.releases}


def failed(*pods: str, claimed: float | None = None, until: float = NOW - 0.5) -> Failure:
    return Failure(1, NOW - 1, until, "no such file", dict.fromkeys(pods, claimed))


# --- claims ---


def test_the_last_pod_goes_to_who_came_first():
    loans = decide(state(pod(1)), member("a", 1, since=NOW - 1), member("b", 1, since=NOW - 2))
    assert claims(loans) == [("b", "pod-1")]
    assert loans.waiting.keys() == {"a"}
    assert loans.waiting["a"].reason == "Exhausted"


def test_a_pod_that_has_the_model_is_preferred_and_others_are_left_to_who_wants_them():
    pool = state(pod(1, model("b")), pod(2, model("a")))
    assert claims(decide(pool, member("a", 1, since=NOW - 2), member("b", 1))) == [("a", "pod-2"), ("b", "pod-1")]


def test_a_pod_whose_worker_is_busy_is_claimed_last_but_claimed():
    pool = state(pod(1), pod(2))
    assert claims(decide(pool, member("a", 1), busy=frozenset({"uid-1"}))) == [("a", "pod-2")]
    assert claims(decide(pool, member("a", 2), busy=frozenset({"uid-1"}))) == [("a", "pod-2"), ("a", "pod-1")]


def test_what_it_has_counts_whether_it_serves_yet_or_not():
    pool = state(pod(1, loan=lent("a")), pod(2, loan=lent("a", serving=True)), pod(3))
    assert claims(decide(pool, member("a", 2))) == []
    assert claims(decide(pool, member("a", 3))) == [("a", "pod-3")]


@pytest.mark.parametrize("pool", [state(pod(1, ready=False)), state(pod(1, ready=False, unheard=True)), state()])
def test_a_pod_that_is_not_ready_is_not_claimed(pool: PoolState):
    loans = decide(pool, member("a", 1))
    assert claims(loans) == []
    assert loans.waiting["a"].reason == "Exhausted"


def test_who_cannot_be_served_gets_none_and_is_told_why():
    loans = decide(state(pod(1)), member("a", 1, able=False, problem="it asks for nvidia.com/gpu: 1"))
    assert claims(loans) == []
    assert loans.waiting["a"].message == "it asks for nvidia.com/gpu: 1"


def test_after_a_failed_load_another_pod_is_tried_and_after_all_have_failed_any():
    pool, one = state(pod(1), pod(2)), member("a", 1)
    assert claims(decide(pool, one, failures={model("a"): failed("uid-1")})) == [("a", "pod-2")]
    assert claims(decide(pool, one, failures={model("a"): failed("uid-1", "uid-2")})) == [("a", "pod-1")]


def test_until_a_failed_load_may_be_tried_again_nothing_is_claimed():
    loans = decide(state(pod(1)), member("a", 1), failures={model("a"): failed(until=NOW + 5)})
    assert claims(loans) == []
    assert loans.waiting["a"].reason == "LoadFailed"


# --- the end of a loan ---


def test_a_reranker_without_a_wish_keeps_what_it_has():
    pool = state(pod(1, loan=lent("a", serving=True)), pod(2, loan=lent("a")))
    assert decide(pool, member("a")) == Loans()


def test_what_is_not_needed_goes_back_the_newest_first_and_what_does_not_serve_yet_before_all():
    pool = state(
        pod(1, loan=lent("a", NOW - 30, serving=True)),
        pod(2, loan=lent("a", NOW - 20, serving=True)),
        pod(3, loan=lent("a", NOW - 40)),
    )
    assert releases(decide(pool, member("a", 2))).keys() == {"pod-3"}
    assert releases(decide(pool, member("a", 1))).keys() == {"pod-3", "pod-2"}
    assert releases(decide(pool, member("a", 0))).keys() == {"pod-1", "pod-2", "pod-3"}


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ([], "its Reranker is gone or names the pool no more"),
        ([member("a", 1, able=False)], "its Reranker is suspended"),
        ([member("a", 1, able=False, problem="it asks for nvidia.com/gpu: 1")], "nvidia.com/gpu"),
    ],
)
def test_who_must_not_be_served_gives_its_pods_back(members: list[Member], why: str):
    loans = decide(state(pod(1, loan=lent("a", serving=True))), *members)
    assert why in releases(loans)["pod-1"]


def test_a_lent_pod_that_is_not_ready_is_given_back_and_another_claimed():
    loans = decide(state(pod(1, loan=lent("a", serving=True), ready=False), pod(2)), member("a", 1))
    assert releases(loans) == {"pod-1": "the pod is not ready"}
    assert claims(loans) == [("a", "pod-2")]


def test_a_lent_pod_on_a_silent_node_stays_lent_and_another_is_claimed_in_its_place():
    dead = pod(1, loan=lent("a", serving=True), ready=False, unheard=True)
    loans = decide(state(dead, pod(2)), member("a", 1))
    assert (claims(loans), releases(loans)) == ([("a", "pod-2")], {})
    assert (state(dead).serving("a"), state(dead).claiming("a")) == (0, 0)
    both = state(dead, pod(2, loan=lent("a", serving=True)))
    assert decide(both, member("a", 1)) == Loans()
    assert releases(decide(both, member("a", 0))).keys() == {"pod-2"}
    back = state(pod(1, loan=lent("a", NOW - 20, serving=True)), pod(2, loan=lent("a", NOW - 10, serving=True)))
    assert releases(decide(back, member("a", 1))).keys() == {"pod-2"}


def test_a_load_that_failed_ends_the_loan_that_it_was_for_and_no_other():
    failures = {model("a"): failed("uid-1", claimed=NOW - 6, until=NOW + 10)}
    assert releases(decide(state(pod(1, loan=lent("a", NOW - 6))), member("a", 1), failures=failures))
    assert not releases(decide(state(pod(1, loan=lent("a", NOW - 4))), member("a", 1), failures=failures))


def test_also_where_the_leader_that_claimed_it_had_its_clock_ahead():
    failures = {model("a"): failed("uid-1", claimed=NOW + 60, until=NOW)}
    assert releases(decide(state(pod(1, loan=lent("a", NOW + 60))), member("a", 1), failures=failures))


@pytest.mark.parametrize("wish", [None, 0, 1, 2])
def test_who_cannot_be_read_keeps_what_it_has_and_gets_no_more(wish: int | None):
    lent_pods = (pod(1, loan=lent("a", serving=True)), pod(2, loan=lent("a")), pod(3, ready=False, loan=lent("a")))
    loans = decide(state(*lent_pods, pod(4)), member("a", wish, able=False, unreadable=True, problem="cannot be read"))
    assert (releases(loans), claims(loans), loans.serves) == ({}, [], ())


# --- patches that the API server refuses ---


def test_a_pod_whose_patch_was_refused_rests_alone():
    refusal = {refused("uid-1"): failed("uid-1", until=NOW + 2)}
    over = {refused("uid-1"): failed("uid-1", until=NOW)}
    free = state(pod(1), pod(2))
    assert claims(decide(free, member("a", 2), failures=refusal)) == [("a", "pod-2")]
    assert claims(decide(free, member("a", 2), failures=over)) == [("a", "pod-1"), ("a", "pod-2")]
    pool = state(pod(1, loan=lent("a", NOW - 1)), pod(2, loan=lent("a", NOW - 2)))
    assert releases(decide(pool, member("a", 0), failures=refusal)).keys() == {"pod-2"}
    workers = {
        "uid-1": holding(model("a"), loaded=(model("a"), NOW - 1)),
        "uid-2": holding(model("a"), loaded=(model("a"), NOW - 2)),
    }
    serves = decide(pool, member("a", 2), workers=workers, failures=refusal).serves
    assert [serve.pod.name for serve in serves] == ["pod-2"]


def test_a_worker_that_has_lost_the_model_gives_the_pod_back():
    pool = state(pod(1, loan=lent("a", serving=True), restarts=1))
    workers = {"uid-1": holding(restarts=1)}
    assert releases(decide(pool, member("a", 1), workers=workers)) == {"pod-1": "its worker has lost the model"}
    stale = {"uid-1": holding(model("a"), restarts=0)}
    assert decide(pool, member("a", 1), workers=stale) == Loans()


# --- serving ---


def test_it_serves_once_its_model_was_loaded_for_this_very_loan():
    loan = lent("a", NOW - 1)
    pool = state(pod(1, model("a"), loan=loan))

    def serves(loaded: Any, **changes: Any) -> list[str]:
        workers = {"uid-1": holding(model("a"), loaded=loaded, **changes)}
        return [serve.key for serve in decide(pool, member("a", 1), workers=workers).serves]

    assert serves((model("a"), loan.since)) == [model("a")]
    assert serves((model("a"), loan.since - 60)) == []
    assert serves((model("b"), loan.since)) == []
    assert serves(None) == []
    assert serves((model("a"), loan.since), restarts=1) == []


def test_what_serves_already_is_not_marked_again():
    loan = lent("a", serving=True)
    workers = {"uid-1": holding(model("a"), loaded=(model("a"), loan.since))}
    assert decide(state(pod(1, loan=loan)), member("a", 1), workers=workers) == Loans()


def test_a_loan_moves_to_a_new_revision_when_that_is_loaded_and_serves_the_old_one_until_then():
    loan = lent("a", serving=True)
    pool, new = state(pod(1, loan=loan)), member("a", 1, revision="r2")
    assert decide(pool, new, workers={"uid-1": holding(model("a"))}) == Loans()
    loaded = holding(model("a"), model("a", "r2"), loaded=(model("a", "r2"), loan.since))
    (serve,) = decide(pool, new, workers={"uid-1": loaded}).serves
    assert (serve.revision, serve.key) == ("r2", model("a", "r2"))


# --- whatever happens ---

NAMES = ["a", "b", "c"]

pods = st.builds(
    lambda index, held, loan, ready, unheard: pod(
        index, *(model(name) for name in held), loan=loan, ready=ready, unheard=unheard and not ready
    ),
    st.integers(1, 8),
    st.sets(st.sampled_from(NAMES)),
    st.none() | st.builds(lent, st.sampled_from([*NAMES, "gone"]), st.floats(0, NOW), serving=st.booleans()),
    st.booleans(),
    st.booleans(),
)
wishes = st.none() | st.integers(0, 6)


@given(
    st.lists(pods, unique_by=lambda one: one.uid),
    st.tuples(wishes, wishes, wishes),
    st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5)),
    st.sets(st.integers(1, 8)),
)
def test_never_one_pod_for_two_and_never_more_than_wished_nor_fewer_than_can_be(
    found: list[WarmPod], wanted: tuple[Any, ...], order: tuple[int, ...], busy: set[int]
):
    members = [member(name, wanted[i], NOW - order[i]) for i, name in enumerate(NAMES)]
    pool = state(*found)
    loans = decide(pool, *members, busy=frozenset(f"uid-{i}" for i in busy))
    free = {one.name for one in pool.free}
    claimed = [claim.pod.name for claim in loans.claims]
    assert len(claimed) == len(set(claimed))
    assert set(claimed) <= free
    assert not set(claimed) & releases(loans).keys()
    came = sorted((one for one in members if one.wish), key=lambda one: (one.wish.since if one.wish else 0, one.name))
    for place, one in enumerate(came):
        assert one.wish is not None
        kept = [p for p in pool.loans(one.name) if p.name not in releases(loans) and not p.state.unheard]
        has = len(kept) + sum(claim.reranker == one.name for claim in loans.claims)
        assert has <= max(one.wish.loaners, 0)
        if has < one.wish.loaners:  # then nobody who came later got any
            assert set(claimed) == free
            assert not any(claim.reranker == later.name for later in came[place + 1 :] for claim in loans.claims)
            assert loans.waiting[one.name].missing == one.wish.loaners - has


@given(st.integers(1, 4), st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 3)), max_size=40))
def test_nobody_starves(size: int, changes: list[tuple[str, int]]):
    """Whoever waits is served before everybody who has wished for more since."""
    lent_to: dict[int, str | None] = dict.fromkeys(range(1, size + 1))
    wished, since = dict.fromkeys(NAMES, 0), dict.fromkeys(NAMES, 0.0)
    for step, (name, number) in enumerate(changes):
        if number > wished[name]:
            since[name] = float(step)
        wished[name] = number
        for _ in range(3):
            pool = state(*(pod(i, loan=lent(who) if who else None) for i, who in lent_to.items()))
            loans = decide(pool, *(member(one, wished[one], since[one]) for one in NAMES))
            for release in loans.releases:
                lent_to[int(release.pod.name[4:])] = None
            for claim in loans.claims:
                assert lent_to[int(claim.pod.name[4:])] is None
                lent_to[int(claim.pod.name[4:])] = claim.reranker
                waited = [one for one in NAMES if one in loans.waiting]
                assert all((since[claim.reranker], claim.reranker) <= (since[one], one) for one in waited)
        have = {one: sum(who == one for who in lent_to.values()) for one in NAMES}
        assert all(have[one] <= wished[one] for one in NAMES)
        short = [one for one in NAMES if have[one] < wished[one]]
        assert not short or None not in lent_to.values()


def test_a_worker_that_does_not_answer_is_nobodys_and_no_models_fault():
    silent = {"uid-1/": failed("uid-1", claimed=NOW - 5, until=NOW + 2)}
    claimed = state(pod(1, loan=lent("a", NOW - 5)), pod(2))
    loans = decide(claimed, member("a", 1), failures=silent)
    assert releases(loans) == {"pod-1": "its worker does not answer"}
    assert claims(loans) == [("a", "pod-2")]
    assert claims(decide(state(pod(1)), member("a", 1), failures=silent)) == []
    assert decide(state(pod(1, loan=lent("a", NOW - 5, serving=True))), member("a", 1), failures=silent) == Loans()
    over = {"uid-1/": failed("uid-1", until=NOW - 7)}
    assert claims(decide(state(pod(1)), member("a", 1), failures=over)) == [("a", "pod-1")]
