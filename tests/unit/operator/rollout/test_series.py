"""A metric of the user's own, interval by interval: what counts, what does not, and how often it is wrong."""

import math
from itertools import pairwise

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rerank_operator.rollout.judge.evidence import BETS
from rerank_operator.rollout.judge.judge import Action, MetricVerdict, Verdict
from rerank_operator.rollout.judge.series import Limit, Series, Values, suspicious, together

LOWER, HIGHER = Limit(0.05, higher=False), Limit(0.1, higher=True)
CHANCE, MISS = 0.01 / 3, 0.1


def series(*values: Values, limit: Limit = LOWER, step: int = 0) -> Series:
    found = Series.begin("orders", 0.0)
    found.reach(step)
    for one in values:
        found.add(one, limit)
    return found


def verdict(found: Series, limit: Limit = LOWER, steps: int = 1) -> str:
    return found.judge("orders", limit, steps, CHANCE, MISS).verdict


@pytest.mark.parametrize(
    ("limit", "stable", "canary", "beyond"),
    [
        (LOWER, 1.0, 0.96, False),
        (LOWER, 1.0, 0.94, True),
        (LOWER, 1.0, 5.0, False),
        (LOWER, 0.02, 0.0, True),
        (HIGHER, 1.0, 1.09, False),
        (HIGHER, 1.0, 1.11, True),
        (HIGHER, 1.0, 0.0, False),
        (HIGHER, 1e-9, 1.2e-9, True),
        (LOWER, 1.0, -1.0, True),
    ],
)
def test_an_interval_is_beyond_the_limit_or_it_is_not(limit: Limit, stable: float, canary: float, beyond: bool):
    assert series(Values(stable, canary), limit=limit).points == [(int(beyond), int(not beyond))]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (Values(), "no data for stable and canary"),
        (Values(1.0, None), "no data for canary"),
        (Values(math.nan, 1.0), "no data for stable"),
        (Values(1.0, math.inf), "not finite: canary inf, stable 1"),
        (Values(0.0, 1.0), "stable's value is 0, of which no share can be taken (canary 1)"),
        (Values(-1.0, -2.0), "stable's value is -1, of which no share"),
        (Values(trouble="Prometheus at http://p:9090 gave no answer"), "gave no answer"),
    ],
)
def test_what_cannot_be_compared_counts_for_nothing_and_is_told(values: Values, told: str):
    found = series(*[values] * 50)
    assert found.points == [(0, 0)]
    said = found.judge("orders", LOWER, 1, CHANCE, MISS)
    assert (said.verdict, said.worse) == ("hold", 1.0)
    assert told in said.message
    assert msgspec.json.decode(msgspec.json.encode(found), type=Series) == found


def test_it_is_told_with_its_figures():
    said = series(Values(0.04, 0.03), Values(0.04, 0.039)).judge("orders", LOWER, 1, CHANCE, MISS)
    assert said.message == (
        "canary 0.039, stable 0.04 (-2.5 %, up to -5 % is allowed); worse in 1 of 2 intervals; "
        "evidence of worse 0.556 of 300, of not worse by the limit 0.556 of 10"
    )
    assert "nothing to compare yet; evidence" in series().judge("orders", LOWER, 1, CHANCE, MISS).message


@pytest.mark.parametrize(
    ("worse", "fine", "expected"),
    [
        (0, 0, "hold"),
        (0, 4, "hold"),
        (0, 5, "pass"),
        (10, 0, "hold"),
        (11, 0, "fail"),
        (14, 1, "fail"),
        (3, 3, "hold"),
        (50, 50, "hold"),
        (2, 9, "hold"),
        (2, 11, "pass"),
    ],
)
def test_verdicts_by_how_many_intervals_are_beyond_the_limit(worse: int, fine: int, expected: str):
    values = [Values(1.0, 0.5)] * worse + [Values(1.0, 1.0)] * fine
    assert verdict(series(*values)) == expected
    assert verdict(series(*reversed(values))) == expected


def test_trouble_that_comes_with_more_traffic_is_found_as_soon_and_does_not_pass_meanwhile():
    found = series(*[Values(1.0, 1.0)] * 200)
    assert verdict(found, steps=4) == "pass"
    found.reach(3)
    seen = []
    for _ in range(20):
        found.add(Values(1.0, 0.5), LOWER)
        seen.append(verdict(found, steps=4))
    assert seen.index("fail") == 11, "one interval later than where nothing came before"
    assert "hold" in seen, "what looks suspicious is not passed, whatever came before"


def test_more_steps_cost_nothing_before_they_begin():
    assert series(Values(1.0, 0.5)).evidence(1)[0] == pytest.approx(1 + sum(BETS) / len(BETS))
    assert series(Values(1.0, 0.5)).evidence(4)[0] == pytest.approx(1 + sum(BETS) / len(BETS) / 2)


@given(st.lists(st.booleans(), max_size=300), st.integers(1, 5), st.data())
def test_evidence_is_fair_at_even_odds_whatever_came_before(came: list[bool], steps: int, data: st.DataObject):
    """The mean over both next intervals is what there is: no capital comes from nowhere."""
    found = series()
    for beyond in came:
        if data.draw(st.booleans()):
            found.reach(min(len(found.points), steps - 1))
        found.add(Values(1.0, 0.0 if beyond else 1.0), LOWER)
    before = found.evidence(steps)
    after = []
    for canary in (0.0, 1.0):
        then = msgspec.json.decode(msgspec.json.encode(found), type=Series)
        then.add(Values(1.0, canary), LOWER)
        after.append(then.evidence(steps))
    for kind in (0, 1):
        assert (after[0][kind] + after[1][kind]) / 2 == pytest.approx(before[kind])


@given(st.integers(0, 10**7), st.integers(0, 10**7))
def test_however_long_it_takes_it_stays_small_and_is_kept(worse: int, fine: int):
    found = Series("orders", 1.8e9, [(worse, fine)] * 20, Values(1.0, 0.5))
    text = msgspec.json.encode(found)
    assert len(text) < 1024
    assert msgspec.json.decode(text, type=Series) == found
    assert verdict(found, steps=20) in ("pass", "fail", "hold")
    beyond, others = (tuple(Series("orders", 0.0, [pair]).evidence(1)) for pair in ((worse, fine), (fine, worse)))
    assert beyond == tuple(reversed(others)), "the mirrored series is the mirrored evidence"


def _first(flags: np.ndarray, chance: float, steps: int) -> str:
    """What a rollout that looks at every interval does first; its steps begin where a person may see no pattern."""
    found = series()
    for place, beyond in enumerate(flags):
        found.reach(min(place // 20, steps - 1))
        found.add(Values(1.0, 0.0 if beyond else 1.0), LOWER)
        said = found.judge("orders", LOWER, steps, chance, 1e-9).verdict
        if said == "fail":
            return said
    return "hold"


def test_a_canary_that_is_worse_in_half_of_the_intervals_fails_as_seldom_as_asked_for():
    draws = np.random.default_rng(6).random((600, 150)) < 0.5
    failed = sum(_first(flags, 0.1, 4) == "fail" for flags in draws)
    assert failed <= 0.1 * 600
    assert failed > 0, "the test can fail"


@pytest.mark.parametrize(("limit", "expected"), [(LOWER, 20), (HIGHER, 10)])
def test_equal_arms_with_counts_of_one_by_the_limit_are_beyond_it_in_half_of_the_intervals_at_most(
    limit: Limit, expected: int
):
    """What the schema says of the interval: so many events are to be expected of the canary, or chance puts it beyond.
    Stable has a hundred times as many, as in a first step."""
    draw = np.random.default_rng(7)
    requests = np.array([100, 10_000])
    rate = expected / requests[0]
    for events in (rate, rate * 3):
        counts = draw.binomial(requests, min(events, 1.0), (4000, 2)) / requests
        beyond = sum(limit.beyond(stable, canary) for canary, stable in counts)
        assert beyond / 4000 < 0.5


def test_rare_events_of_a_small_share_put_an_equal_canary_beyond_the_limit():
    """Why the interval must not be too short: one event expected in two intervals is none in most."""
    counts = np.random.default_rng(8).binomial([25, 2500], 0.02, (4000, 2)) / [25, 2500]
    assert sum(LOWER.beyond(stable, canary) for canary, stable in counts) / 4000 > 0.55


def test_evidence_grows_with_every_interval_that_is_beyond():
    found = series()
    grown = []
    for _ in range(12):
        found.add(Values(1.0, 0.5), LOWER)
        grown.append(found.evidence(1)[0])
    assert all(later > earlier for earlier, later in pairwise(grown))


PASS, HOLD, FAIL = (MetricVerdict("own", verdict, "") for verdict in ("pass", "hold", "fail"))
JUDGED = MetricVerdict("errors", "pass", "")


@pytest.mark.parametrize(
    ("action", "own", "expected", "reason"),
    [
        ("promote", (), "promote", "r"),
        ("promote", (PASS, PASS), "promote", "r"),
        ("promote", (PASS, HOLD), "hold", "own"),
        ("advance", (HOLD,), "advance", "r"),
        ("hold", (HOLD,), "hold", "r"),
        ("promote", (HOLD, FAIL), "rollback", "own"),
        ("hold", (FAIL,), "rollback", "own"),
        ("rollback", (FAIL,), "rollback", "r"),
        ("rollback", (PASS,), "rollback", "r"),
    ],
)
def test_one_of_the_users_metrics_is_enough_to_go_back_and_all_must_pass(
    action: Action, own: tuple[MetricVerdict, ...], expected: str, reason: str
):
    said = together(Verdict(action, "r", (JUDGED,)), own)
    assert (said.action, said.reason, said.metrics) == (expected, reason, (JUDGED, *own))


def test_no_step_is_taken_while_one_looks_suspicious():
    assert suspicious([series(Values(1.0, 0.5), Values(1.0, 0.5)).judge("own", LOWER, 1, CHANCE, MISS)])
    assert not suspicious([series(Values(1.0, 0.5)).judge("own", LOWER, 1, CHANCE, MISS), PASS])
