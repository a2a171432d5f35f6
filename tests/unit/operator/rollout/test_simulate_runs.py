"""How the runs of a judge are played and counted, with judges whose verdict is known beforehand."""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import pytest
from rerank_operator.rollout.judge.windows import Window
from rerank_operator.rollout.simulate.policy import Outcome
from rerank_operator.rollout.simulate.report import quantile, report, table
from rerank_operator.rollout.simulate.runs import Run, simulate, simulate_one
from rerank_operator.rollout.simulate.scenario import Arm, LogNormal, Quality, Scenario
from rerank_operator.rollout.simulate.traffic import BASELINE_REQUESTS

ARM = Arm(0.01, LogNormal(0.05, 0.12), Quality(0.7, 0.2))
SCENARIO = Scenario(
    requests_per_second=20.0,
    horizon=100.0,
    runs=12,
    seed=1,
    weights=(10.0, 50.0, 100.0),
    correlation=0.5,
    bursts=None,
    golden_queries=30,
    golden_correlation=0.8,
    stable=ARM,
    canary=ARM,
)


class Waits:
    """Decides nothing; the judges below differ from it by one method."""

    interval = 10.0

    def __init__(self, weights: Sequence[float], baseline: Window, horizon: float) -> None:
        self.weights, self.baseline, self.horizon = weights, baseline, horizon
        self.looks: list[float] = []
        self.requests = 0
        self.reason = ""

    @property
    def weight(self) -> float:
        return self.weights[0]

    def golden(self, stable: Sequence[float], canary: Sequence[float]) -> Outcome | None:
        assert len(stable) == len(canary) == 30
        return None

    def look(self, now: float, stable: Window, canary: Window) -> Outcome | None:
        self.looks.append(now)
        self.requests += len(canary.seconds)
        return self.decide(now)

    def decide(self, now: float) -> Outcome | None:
        return None


class Watched(Waits):
    made: ClassVar[list["Watched"]] = []

    def __init__(self, weights: Sequence[float], baseline: Window, horizon: float) -> None:
        super().__init__(weights, baseline, horizon)
        self.made.append(self)


class ThirdLook(Waits):
    def decide(self, now: float) -> Outcome | None:
        if len(self.looks) < 3:
            return None
        self.reason = "errors" if self.requests % 2 else "latency"
        return "rollback"


class Promotes(Waits):
    def decide(self, now: float) -> Outcome | None:
        return "promote" if now >= 50 else None


class ByGolden(Waits):
    def golden(self, stable: Sequence[float], canary: Sequence[float]) -> Outcome | None:
        self.reason = "quality"
        return "rollback"

    def look(self, now: float, stable: Window, canary: Window) -> Outcome | None:
        raise AssertionError("no user's request comes to a canary that its golden set has rolled back")


class NeverBegins(Waits):
    @property
    def weight(self) -> float:
        return 0.0


class FirstFailure(Waits):
    """Ends early in some runs and late in others."""

    def look(self, now: float, stable: Window, canary: Window) -> Outcome | None:
        self.reason = "errors"
        return "rollback" if canary.failed else None


def test_a_judge_is_told_the_weights_the_baseline_and_the_horizon_and_looks_at_its_interval():
    Watched.made.clear()
    found = simulate_one(replace(SCENARIO, horizon=35.0), Watched, 0)
    (judge,) = Watched.made
    assert (judge.weights, judge.horizon, len(judge.baseline.seconds)) == ((10, 50, 100), 35, BASELINE_REQUESTS)
    assert judge.looks == [10, 20, 30, 35]
    assert found == Run("hold", "", 35.0, judge.requests)
    assert 30 < judge.requests < 120  # a tenth of about 700


def test_intervals_that_do_not_add_up_exactly_make_no_look_of_nothing():
    class Tenths(Watched):
        interval = 0.1

    Watched.made.clear()
    simulate_one(replace(SCENARIO, horizon=3.0), Tenths, 0)
    assert (len(Watched.made[0].looks), Watched.made[0].looks[-1]) == (30, 3.0)


def test_a_rollback_at_a_known_look_is_counted_with_the_requests_until_then():
    runs = simulate(SCENARIO, ThirdLook, processes=1)
    assert {(run.outcome, run.seconds) for run in runs} == {("rollback", 30.0)}
    assert all(run.reason == ("errors" if run.canary_requests % 2 else "latency") for run in runs)
    found = report("double", runs, SCENARIO)
    touched = sorted(run.canary_requests for run in runs)
    assert (found["rollback_rate"], found["promote_rate"], found["hold_rate"]) == (1, 0, 0)
    assert (found["canary_requests_to_rollback_p50"], found["canary_requests_to_rollback_p90"]) == (
        touched[5],
        touched[10],
    )
    assert found["user_requests_on_canary_p50"] == touched[5]
    assert found["seconds_to_decision_p50"] == 30
    assert sum(found["reasons"].values()) == pytest.approx(1, abs=1e-5)
    assert found["reasons"]["errors"] == pytest.approx(sum(count % 2 for count in touched) / 12, abs=1e-6)


def test_a_promotion_ends_the_run():
    assert {(run.outcome, run.seconds) for run in simulate(SCENARIO, Promotes, processes=1)} == {("promote", 50.0)}


def test_a_rollback_by_the_golden_set_comes_before_any_request():
    assert simulate_one(SCENARIO, ByGolden, 0) == Run("rollback", "quality", 0.0, 0)


def test_without_a_golden_set_no_judge_is_asked_about_it():
    none = replace(ARM, quality=None)
    scenario = replace(SCENARIO, golden_queries=0, stable=none, canary=none)
    with pytest.raises(AssertionError, match="no user's request"):
        simulate_one(scenario, ByGolden, 0)


def test_a_canary_of_weight_zero_gets_nothing():
    assert simulate_one(SCENARIO, NeverBegins, 0) == Run("hold", "", 100.0, 0)


def test_the_runs_are_the_same_on_any_number_of_processes():
    alone = simulate(SCENARIO, FirstFailure, processes=1)
    assert simulate(SCENARIO, FirstFailure, processes=1) == alone
    assert simulate(SCENARIO, FirstFailure, processes=3) == alone
    assert len(set(alone)) > 3
    assert simulate(replace(SCENARIO, seed=2), FirstFailure, processes=1) != alone


def test_more_runs_begin_with_the_same_ones():
    assert (
        simulate(replace(SCENARIO, runs=5), FirstFailure, processes=1)
        == simulate(SCENARIO, FirstFailure, processes=1)[:5]
    )


def test_progress_is_told_run_by_run():
    told: list[int] = []
    simulate(replace(SCENARIO, runs=4), ByGolden, processes=2, told=told.append)
    assert told == [1, 2, 3, 4]


RUNS = [
    Run("rollback", "errors", 10.0, 5),
    Run("rollback", "latency", 20.0, 50),
    Run("promote", "", 40.0, 400),
    Run("hold", "", 100.0, 30),
]


def test_the_report_counts_each_run_once():
    found = report("double", RUNS, replace(SCENARIO, runs=4))
    figures = {key: value for key, value in found.items() if key != "settings"}
    assert figures == {
        "judge": "double",
        "runs": 4,
        "rollback_rate": 0.5,
        "promote_rate": 0.25,
        "hold_rate": 0.25,
        "canary_requests_to_rollback_p50": 5,
        "canary_requests_to_rollback_p90": 50,
        "seconds_to_decision_p50": 20,
        "user_requests_on_canary_p50": 30,
        "reasons": {"errors": 0.25, "latency": 0.25},
    }


def test_what_no_run_has_is_not_zero():
    found = report("double", RUNS[3:], replace(SCENARIO, runs=1))
    assert found["canary_requests_to_rollback_p50"] is None
    assert found["canary_requests_to_rollback_p90"] is None
    assert found["seconds_to_decision_p50"] is None
    assert found["user_requests_on_canary_p50"] == 30
    assert "canary's requests until rollback  p50 -, p90 -" in table(found)


def test_the_table_names_what_decided():
    lines = table(report("double", RUNS, replace(SCENARIO, runs=4))).splitlines()
    assert lines[0] == "judge double, 4 runs, seed 1"
    assert lines[2].split(maxsplit=2) == ["rolled", "back", "50.0% (errors 25.0%, latency 25.0%)"]


@pytest.mark.parametrize(("share", "value"), [(0.5, 2), (0.75, 3), (0.9, 4), (0.01, 1)])
def test_quantiles_are_values_that_were_seen(share: float, value: float):
    assert quantile([4, 2, 3, 1], share) == value
    assert quantile([], share) is None
