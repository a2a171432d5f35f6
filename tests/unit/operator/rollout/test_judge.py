"""The verdict on a canary: what fails it, what passes a step, what is waited for."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from rerank_operator.rollout.judge.judge import Judge, Settings, Verdict, judge_golden
from rerank_operator.rollout.judge.latency import Latency
from rerank_operator.rollout.judge.windows import Window, joined

STEPS = (1, 5, 25, 50, 100)
Draw = Callable[[int], Window]


class Arm:
    def __init__(self, seed: int, middle: float = 0.1, sigma: float = 0.4, errors: float = 0.001) -> None:
        self._chance = np.random.default_rng(seed)
        self._middle, self._sigma, self._errors = middle, sigma, errors

    def __call__(self, count: int) -> Window:
        seconds = self._middle * np.exp(self._sigma * self._chance.standard_normal(count))
        failed = np.flatnonzero(self._chance.random(count) < self._errors)
        return Window(seconds.tolist(), failed.tolist())


def _roll_out(stable: Draw, canary: Draw, looks: int = 2000, requests: int = 500, **more: Any) -> tuple[Verdict, int]:
    """The last verdict, and how many requests the canary had got."""
    judge = Judge(STEPS, stable(2000), Settings(**more), golden=False)
    verdict, sent = Verdict("hold", ""), 0
    for look in range(looks):
        count = round(requests * judge.weight / 100)
        sent += count
        verdict = judge.look(10.0 * (look + 1), stable(requests - count), canary(count))
        if verdict.action in ("promote", "rollback"):
            break
    return verdict, sent


def test_a_canary_that_is_as_good_is_promoted():
    verdict, _ = _roll_out(Arm(1), Arm(2))
    assert verdict.action == "promote"
    assert [metric.verdict for metric in verdict.metrics] == ["pass", "pass"]


@pytest.mark.parametrize(
    ("canary", "metric", "most"),
    [
        (Arm(2, errors=1.0), "errors", 30),
        (Arm(2, errors=0.05), "errors", 600),
        (Arm(2, errors=0.011), "errors", 6000),
        (Arm(2, middle=1.0), "latency", 50),
        (Arm(2, middle=0.12), "latency", 2000),
        (Arm(2, sigma=0.55), "latency", 6000),
    ],
    ids=["always fails", "fails in 5 %", "fails in 1.1 %", "ten times slower", "slower by a fifth", "a longer tail"],
)
def test_a_worse_one_is_rolled_back_by_the_metric_that_is_worse(canary: Arm, metric: str, most: int):
    verdict, sent = _roll_out(Arm(1), canary)
    assert (verdict.action, verdict.reason) == ("rollback", metric)
    assert sent <= most


def test_one_that_is_faster_and_fails_less_is_promoted():
    verdict, _ = _roll_out(Arm(1, errors=0.01), Arm(2, middle=0.05))
    assert verdict.action == "promote"


def test_slower_by_less_than_is_tolerated_is_no_regression():
    slower = _roll_out(Arm(1), Arm(2, middle=0.104), requests=2000)[0]
    assert slower.action == "promote"
    assert _roll_out(Arm(1), Arm(2, middle=0.104), requests=2000, latency_tolerated=0.0)[0].action == "rollback"


def test_no_requests_are_no_verdict():
    judge = Judge(STEPS, Arm(1)(2000), Settings())
    for look in range(1000):
        assert judge.look(60.0 * look, Arm(1)(100), Window()).action == "hold"
    assert judge.weight == 1


def test_nothing_known_of_stable_is_no_verdict_on_latency():
    judge = Judge((50,), Window(), Settings(), golden=False)
    verdict = judge.look(100.0, Arm(1)(40), Arm(2, middle=10.0)(40))
    assert verdict.action == "hold"


def test_a_step_takes_its_requests_and_its_time():
    judge = Judge(STEPS, Arm(1)(2000), Settings(step_requests=50, step_seconds=60), golden=False)
    stable, canary = Arm(1), Arm(2)
    assert judge.look(60.0, stable(1000), canary(49)).reason == "requests"
    assert judge.look(61.0, stable(20), canary(1)).action == "advance"
    assert judge.weight == 5
    assert judge.look(120.0, stable(1000), canary(100)).reason == "requests"  # 59 seconds
    assert judge.look(121.0, stable(20), canary(1)).action == "advance"


def test_what_comes_little_by_little_counts_as_what_comes_at_once():
    def bad(parts: int) -> int:
        stable, canary = Arm(1), Arm(2, errors=0.3)
        judge = Judge((50,), stable(2000), Settings(), golden=False)
        for look in range(2000):
            if judge.look(float(look), stable(10 // parts), canary(10 // parts)).action == "rollback":
                return (look + 1) * (10 // parts)
        raise AssertionError("never rolled back")

    assert bad(10) <= 2 * bad(1)


def test_an_empty_arm_loses_nothing_of_the_other():
    stable, canary = Arm(1), Arm(2, errors=1.0)
    judge = Judge((1, 50), stable(2000), Settings(), golden=False)
    verdict = Verdict("hold", "")
    for look in range(10):  # a request of the canary now and then, never together with one of stable
        assert judge.look(look + 0.1, stable(30), Window()).action == "hold"
        verdict = judge.look(look + 0.2, Window(), canary(1))
        if verdict.action == "rollback":
            break
    assert (verdict.action, verdict.reason) == ("rollback", "errors")


@pytest.mark.parametrize("weights", [(100,), ()])
def test_without_a_step_at_which_both_serve_nothing_can_be_compared(weights: tuple[float, ...]):
    with pytest.raises(ValueError, match="below 100"):
        Judge(weights, Window(), Settings())


def test_windows_join_in_order():
    assert joined(Window([1, 2], [1]), Window([3, 4], [0])) == Window([1, 2, 3, 4], [1, 2])
    assert joined(Window([1], [0]), Window()) == Window([1], [0])


@pytest.mark.parametrize(
    ("drop", "queries", "action"),
    [(0.0, 1000, "advance"), (0.05, 200, "rollback"), (0.02, 60, "hold"), (0.0, 9, "hold"), (-0.05, 200, "advance")],
)
def test_golden_queries_decide_before_any_request(drop: float, queries: int, action: str):
    stable = [0.5 + 0.01 * (place % 7) for place in range(queries)]
    canary = [score - drop + (0.08 if place % 2 else -0.08) for place, score in enumerate(stable)]
    assert judge_golden(stable, canary, Settings()).action == action


def test_the_same_ranking_passes_the_golden_queries():
    stable = [0.1 * place for place in range(10)]
    assert judge_golden(stable, stable, Settings()).action == "advance"


def test_a_golden_set_that_is_too_small_says_how_many_queries_it_takes():
    canary = [0.7 if place % 2 else 0.3 for place in range(30)]
    verdict = judge_golden([0.5] * 30, canary, Settings())
    assert verdict.action == "hold"
    assert "a drop of 0.02 is not excluded; that takes about 178 queries" in verdict.metrics[0].message
    verdict = judge_golden([0.5], [0.5], Settings())
    assert verdict.metrics[0].message.startswith("too few golden queries to compare: 1, where it takes 10 at least")


class Alike(Arm):
    """Log latencies are an autoregression of order one."""

    correlation = 0.9
    _state = 0.0

    def __call__(self, count: int) -> Window:
        seconds = []
        for news in self._chance.standard_normal(count) * (1 - self.correlation**2) ** 0.5:
            self._state = self.correlation * self._state + news
            seconds.append(0.1 * float(np.exp(0.4 * self._state)))
        return Window(seconds, np.flatnonzero(self._chance.random(count) < 0.005).tolist())


class Regimes(Arm):
    """As fast or as slow for some 300 requests: a tail that hardly shows how alike neighbours are."""

    _level = 0.0

    def __call__(self, count: int) -> Window:
        seconds = []
        for changes in self._chance.random(count) < 1 / 300:
            if changes:
                self._level = 0.4 * self._chance.standard_normal()
            seconds.append(0.1 * float(np.exp(self._level + 0.3 * self._chance.standard_normal())))
        return Window(seconds, np.flatnonzero(self._chance.random(count) < 0.005).tolist())


@pytest.mark.parametrize("kind", [Arm, Alike, Regimes])
def test_healthy_canaries_are_rolled_back_no_more_often_than_asked_for(kind: type[Arm]):
    """With an error probability of 20 %, so that few runs can tell; 60 runs with 20 % come to 22 once in a thousand."""
    rolled_back = 0
    for run in range(60):
        arms = kind(2 * run), kind(2 * run + 1)
        verdict, _ = _roll_out(*arms, looks=30, requests=200, error_probability=0.2, miss_probability=1e-6)
        rolled_back += verdict.action == "rollback"
    assert rolled_back < 22


def test_a_tail_is_taken_to_be_as_alike_as_the_median_makes_it():
    regimes = Regimes(7)
    latency = Latency.begin(regimes(8192), 0.05, 0.2, steps=1)
    median, *tails = [effect for _, effect in latency.with_effects()]
    assert median > 20
    assert tails[0] >= 1 + 0.35 * (median - 1)
    assert tails[1] >= 1 + 0.11 * (median - 1)


@pytest.mark.parametrize(("slower", "action"), [(1.0, "promote"), (1.3, "rollback")])
def test_latencies_that_are_all_the_same_can_be_judged(slower: float, action: str):
    def arm(seconds: float) -> Draw:
        return lambda count: Window([seconds] * count)

    assert _roll_out(arm(0.1), arm(0.1 * slower))[0].action == action


@pytest.mark.parametrize(("more", "action"), [(0.0, "promote"), (0.02, "rollback")])
def test_where_many_requests_fail_a_few_more_are_found_all_the_same(more: float, action: str):
    verdict, _ = _roll_out(Arm(1, errors=0.1), Arm(2, errors=0.1 + more), requests=2000)
    assert (verdict.action, verdict.reason) == (action, "errors" if more else "")


def test_paused_it_takes_no_step_and_still_goes_back():
    stable, good, bad = Arm(1), Arm(2), Arm(3, errors=0.9)
    judge = Judge(STEPS, stable(2000), Settings(step_requests=1, step_seconds=0), golden=False)
    for look in range(20):
        verdict = judge.look(10.0 * look, stable(500), good(50), go_on=False)
        assert (verdict.action, verdict.reason, judge.step) == ("hold", "paused", 0)
    assert judge.look(201.0, stable(500), bad(50), go_on=False).action == "rollback"


@pytest.mark.parametrize(("bad", "most"), [(Arm(3, errors=1.0), 500), (Arm(3, middle=0.15), 4000)])
def test_what_goes_wrong_late_is_found_soon(bad: Arm, most: int):
    """What it did well before must not excuse it, nor its trouble be taken for requests that are all alike."""
    stable, good = Arm(1), Arm(2)
    judge = Judge((50,), stable(2000), Settings(step_requests=10**6), golden=False)
    for look in range(20):
        assert judge.look(10.0 * look, stable(500), good(500)).action == "hold"
    sent = 0
    while judge.look(1000.0, stable(100), bad(100)).action != "rollback":
        sent += 100
        assert sent < most


@pytest.mark.parametrize(
    ("golden", "queries", "needed"), [(False, 0, 200), (True, 0, 300), (False, 2, 400), (True, 8, 1100)]
)
def test_the_error_probability_is_split_over_all_metrics(golden: bool, queries: int, needed: int):
    judge = Judge((50,), Window(), Settings(), golden=golden, queries=queries)
    for metric in judge.look(1.0, Window(), Window()).metrics:
        assert f"evidence of worse 1 of {needed:.3g}," in metric.message


def test_more_metrics_ask_for_more_certainty_of_the_golden_set():
    chance = np.random.default_rng(4)
    stable = chance.random(200)
    canary = stable - chance.normal(0.0205, 0.1, 200)
    told = [judge_golden(stable.tolist(), canary.tolist(), Settings(), queries=queries) for queries in (0, 8)]
    assert [one.action for one in told] == ["rollback", "hold"]


def test_a_canary_that_is_slow_only_at_first_is_not_rolled_back():
    """Six slow answers would be evidence enough where stable is steady, and a cold cache takes as many."""
    stable, cold, warm = Arm(1), Arm(2, middle=1.0), Arm(3)
    judge = Judge((50,), stable(2000), Settings(), golden=False)
    verdict = judge.look(1.0, stable(100), cold(18))
    assert (verdict.action, verdict.metrics[1].verdict) == ("hold", "hold")
    for look in range(2, 200):
        verdict = judge.look(60.0 * look, stable(50), warm(50))
        if verdict.action != "hold":
            break
    assert verdict.action == "promote"
    judge = Judge((50,), stable(2000), Settings(), golden=False)
    assert judge.look(1.0, stable(100), cold(30)).action == "rollback"
