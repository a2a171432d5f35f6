"""What a judge has seen survives a restart: the same verdicts, in a text that fits an annotation."""

import base64
import zlib
from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rerank_operator.rollout.judge.judge import WAITING, Judge, Settings
from rerank_operator.rollout.judge.memory import MOST_BYTES, BadMemory, from_text, to_text
from rerank_operator.rollout.judge.windows import Window, latest

MOST = 48 * 1024
STEPS = (1, 5, 25, 50)
QUICK = Settings(step_requests=5, step_seconds=1)


def arm(seed: int, count: int, errors: float = 0.01, middle: float = 0.1, sigma: float = 0.5) -> Window:
    chance = np.random.default_rng(seed)
    seconds = middle * np.exp(sigma * chance.standard_normal(count))
    return Window(seconds.tolist(), np.flatnonzero(chance.random(count) < errors).tolist())


def again(judge: Judge, weights: Sequence[float] = STEPS, given: Settings = QUICK) -> Judge:
    return from_text(to_text(judge), weights, given, golden=judge.golden)


LOOK = st.tuples(
    st.integers(0, 400), st.integers(0, 200), st.sampled_from([0.0, 0.02, 0.5]), st.sampled_from([0.1, 0.13])
)


@given(st.integers(0, 1000), st.integers(0, 3000), st.lists(LOOK, min_size=1, max_size=12), st.sets(st.integers(0, 12)))
@settings(max_examples=60)
def test_a_round_trip_anywhere_changes_no_verdict(
    seed: int, before: int, looks: list[tuple[int, int, float, float]], restarts: set[int]
):
    baseline = arm(seed, before)
    kept, restarted = (Judge(STEPS, baseline, QUICK, golden=False) for _ in range(2))
    for place, (stable, canary, errors, middle) in enumerate(looks):
        if place in restarts:
            restarted = again(restarted)
        windows = arm(seed + 2 * place, stable), arm(seed + 2 * place + 1, canary, errors, middle)
        assert kept.look(10.0 * place, *windows) == restarted.look(10.0 * place, *windows)
        assert (kept.step, kept.weight, kept.canary_requests) == (
            restarted.step,
            restarted.weight,
            restarted.canary_requests,
        )
    assert to_text(kept) == to_text(restarted)


def test_the_longest_rollout_fits():
    """Twenty steps, full histories, flags as random as can be, and one arm that waits for the other."""
    weights = tuple(range(1, 21))
    judge = Judge(weights, arm(1, 8192, errors=0.5), QUICK)
    for step in range(20):
        judge.skip_to(step, 100.0 * step)
        for look in range(4):
            seed = 1000 + 10 * step + look
            judge.look(100.0 * step, arm(seed, 2100, errors=0.5), arm(seed + 5, 2100, errors=0.5))
    judge.look(3000.0, arm(5, 10_000, errors=0.5, sigma=2.0), Window())
    assert len(judge.seen.stable.seconds) == WAITING
    assert judge.step == 19
    text = to_text(judge)
    assert 20_000 < len(text) < MOST
    assert to_text(from_text(text, weights, QUICK, golden=True)) == text


@pytest.mark.parametrize(
    "given",
    [
        Settings(0.0001, 0.1, 1, 0.0, errors_margin=0.001, latency_margin=0.06, ndcg_margin=0.002),
        Settings(0.5, 0.1, 100_000, 86_400.0, errors_margin=1.0, latency_margin=10.0, ndcg_margin=1.0),
    ],
    ids=["least", "most"],
)
def test_whatever_a_spec_may_ask_for_can_be_kept(given: Settings):
    judge = Judge(STEPS, arm(1, 500), given)
    assert again(judge, STEPS, given).settings == given


def test_one_arm_that_waits_for_the_other_is_kept_within_a_limit():
    judge = Judge(STEPS, arm(1, 2000), QUICK)
    for look in range(5):
        judge.look(float(look), arm(2 + look, 1000), Window())
    assert judge.seen.stable == latest(judge.seen.stable, WAITING)
    assert judge.seen.errors.totals.stable.requests == 0
    judge.look(6.0, Window(), arm(9, 20))
    assert judge.seen.errors.totals.stable.requests == WAITING
    assert judge.seen.errors.totals.canary.requests == 20


def test_the_latest_of_a_window_are_its_end():
    assert latest(Window([1, 2, 3, 4], [0, 2]), 2) == Window([3, 4], [0])
    assert latest(Window([1], [0]), 2) == Window([1], [0])


@pytest.mark.parametrize(
    ("weights", "given", "golden"),
    [((1, 5, 25), QUICK, True), (STEPS, Settings(), True), (STEPS, QUICK, False)],
    ids=["other weights", "other settings", "no golden set"],
)
def test_evidence_gathered_otherwise_is_refused(weights: tuple[int, ...], given: Settings, golden: bool):
    text = to_text(Judge(STEPS, arm(1, 500), QUICK))
    with pytest.raises(BadMemory, match="gathered anew"):
        from_text(text, weights, given, golden=golden)


def test_evidence_gathered_under_another_split_of_the_error_probability_is_refused():
    text = to_text(Judge(STEPS, arm(1, 500), QUICK, queries=2))
    assert from_text(text, STEPS, QUICK, golden=True, queries=2).queries == 2
    for queries in (0, 1, 3):
        with pytest.raises(BadMemory, match="gathered anew"):
            from_text(text, STEPS, QUICK, golden=True, queries=queries)


def packed(content: bytes) -> str:
    return base64.b64encode(zlib.compress(content)).decode()


def _changed(place: int, value: object) -> str:
    fields = msgspec.msgpack.decode(zlib.decompress(base64.b64decode(to_text(Judge(STEPS, arm(1, 500), QUICK)))))
    fields[place] = value
    return packed(msgspec.msgpack.encode(fields))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "cut short"),
        ("no base64", "cannot be read"),
        ("ü", "cannot be read"),
        (base64.b64encode(b"not packed").decode(), "cannot be read"),
        (to_text(Judge(STEPS, arm(1, 500), QUICK))[:200], "cut short"),
        (packed(b"\xc0" * (MOST_BYTES + 1)), "longer than"),
        (packed(msgspec.msgpack.encode({"version": 1})), "cannot be read"),
        (_changed(0, 1), "another version: 1"),
        (_changed(4, 4), "step 4 of 4"),
        (_changed(4, 1), "evidence of 1 beginnings, where there were 2"),
        (_changed(5, float("nan")), "not finite"),
        (_changed(8, [b"abc", []]), "requires a buffer"),
        (_changed(8, [b"abcd", [1]]), "none of those that wait"),
        (_changed(15, [0.1]), "1 thresholds"),
    ],
)
def test_what_is_not_understood_is_refused(text: str, told: str):
    with pytest.raises(BadMemory, match=told):
        from_text(text, STEPS, QUICK, golden=True)


def test_later_steps_can_begin_without_a_verdict():
    judge = Judge(STEPS, arm(1, 2000), QUICK)
    judge.skip_to(2, 50.0)
    assert (judge.step, judge.weight) == (2, 25)
    judge.skip_to(1, 51.0)
    assert judge.step == 2
    assert judge.look(50.5, arm(2, 100), arm(3, 100)).reason == "requests"  # its second is not over
    assert judge.look(51.0, arm(4, 100), arm(5, 100)).action == "advance"
    assert judge.step == 3
    with pytest.raises(ValueError, match="must be below 4"):
        judge.skip_to(4, 60.0)


def test_the_canarys_requests_are_counted_through_all_steps():
    judge = Judge(STEPS, arm(1, 2000), QUICK)
    for look in range(4):
        judge.look(10.0 * (look + 1), arm(2 + look, 100), arm(9 + look, 7))
    assert judge.step > 0
    assert judge.canary_requests == 28


def test_messages_tell_what_was_seen():
    judge = Judge((50,), arm(1, 2000, errors=0.0), Settings(), golden=False)
    errors, latency = judge.look(1.0, Window(), Window()).metrics
    assert "nothing to compare yet; evidence of worse 1 of 200" in errors.message
    assert "no answer of the canary to compare with stable's p95" in latency.message
    assert "its first 20, cold starts and failures are left out" in latency.message
    stable, canary = Window([0.1] * 990 + [0.9] * 10, [0, 1]), Window([0.1, 0.1, 0.1, 0.9] * 100, [5])
    errors, latency = judge.look(2.0, stable, canary).metrics
    assert "canary 1 of 400 failed (0.25 %), stable 2 of 1000 (0.2 %)" in errors.message
    assert "canary slower than stable's p99 (" in latency.message  # where it stands out
    assert "in 25 % of 379 requests (1 % expected), stable in 1 % of 998" in latency.message
    assert "of not worse by the margin" in latency.message


def test_where_nothing_stands_out_the_quantile_of_the_promotion_is_told():
    judge = Judge((50,), arm(1, 2000, errors=0.0), Settings(), golden=False)
    stable, canary = Window([0.1] * 990 + [0.4] * 10, [0, 1]), Window([0.1] * 380 + [0.3] * 20)
    told = judge.look(2.0, stable, canary).metrics[1].message
    assert "canary slower than stable's p95 (" in told
    assert "in 5.3 % of 380 requests (5 % expected), stable in 1 % of 998" in told


def test_without_stables_latencies_the_message_says_what_is_missing():
    judge = Judge((50,), Window(), Settings())
    told = judge.look(1.0, arm(1, 30, errors=0), arm(2, 30)).metrics[1].message
    assert "stable's latency is not known yet: that takes 100 answers of it, and 30 came" in told
