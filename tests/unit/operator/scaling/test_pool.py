from hypothesis import given
from hypothesis import strategies as st
from rerank_operator.scaling.pool import Claim, FreePod, Wish, assign


def pod(name: str, *models: str) -> FreePod:
    return FreePod(name, frozenset(models))


def test_in_order_of_arrival():
    wishes = [Wish("first", "a", 2), Wish("second", "b", 2)]
    assert assign([pod("1"), pod("2"), pod("3")], wishes) == [
        Claim("first", "1"),
        Claim("first", "2"),
        Claim("second", "3"),
    ]


def test_a_pod_that_has_the_model_comes_first():
    assert assign([pod("1", "b"), pod("2", "a")], [Wish("x", "a", 1)]) == [Claim("x", "2")]


def test_a_pod_whose_models_others_wish_for_is_left_to_them():
    wishes = [Wish("x", "new", 1), Wish("y", "b", 1)]
    assert assign([pod("1", "b"), pod("2", "c")], wishes) == [Claim("x", "2"), Claim("y", "1")]


def test_who_comes_first_gets_the_last_pod_even_if_it_suits_another_better():
    assert assign([pod("1", "b")], [Wish("x", "a", 1), Wish("y", "b", 1)]) == [Claim("x", "1")]


def test_else_the_emptiest_pod():
    assert assign([pod("1", "c", "d"), pod("2", "e")], [Wish("x", "a", 1)]) == [Claim("x", "2")]


def test_nothing_free_and_nothing_wished():
    assert assign([], [Wish("x", "a", 3)]) == []
    assert assign([pod("1")], [Wish("x", "a", 0)]) == []


MODELS = st.sampled_from("abcd")


@given(
    st.lists(st.frozensets(MODELS), max_size=8),
    st.lists(st.tuples(MODELS, st.integers(0, 4)), max_size=6),
    st.randoms(use_true_random=False),
)
def test_no_pod_twice_none_left_while_one_is_wished_for_and_no_matter_how_pods_are_listed(loaded, wanted, random):
    free = [FreePod(f"pod-{index}", models) for index, models in enumerate(loaded)]
    wishes = [Wish(f"reranker-{index}", model, pods) for index, (model, pods) in enumerate(wanted)]
    claims = assign(free, wishes)
    assert len({claim.pod for claim in claims}) == len(claims) == min(len(free), sum(wish.pods for wish in wishes))
    left = len(free)
    for wish in wishes:  # in order: everyone has all of his wish before the next has any
        got = sum(claim.reranker == wish.reranker for claim in claims)
        assert got == min(wish.pods, left)
        left -= got
    shuffled = random.sample(free, len(free))
    assert assign(shuffled, wishes) == claims
