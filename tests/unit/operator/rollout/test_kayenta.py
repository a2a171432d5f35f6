"""Kayenta's rules, with numbers worked by hand."""

import random
from collections.abc import Callable

import pytest
from rerank_operator.rollout.judge.windows import Window
from rerank_operator.rollout.simulate.kayenta import Kayenta, Label, classify, first, point, score
from rerank_operator.rollout.simulate.policy import Outcome

STEPS = [1, 5, 25, 50, 100]
HOUR = 3600.0

Arm = Callable[[random.Random], Window]


def arm(mean: float = 0.1, error_rate: float = 0.02, requests: int = 60) -> Arm:
    def minute(chance: random.Random) -> Window:
        seconds = [max(0.001, chance.gauss(mean, 0.02)) for _ in range(requests)]
        return Window(seconds, [place for place in range(requests) if chance.random() < error_rate])

    return minute


def judged(canary: Arm, horizon: float, stable: Arm | None = None) -> tuple[Kayenta, Outcome | None, float]:
    """Looked at every minute until it decides, or the horizon."""
    kayenta = Kayenta(STEPS, Window(), horizon)
    chance, now = random.Random(1), 0.0
    while now < horizon:
        now = min(now + kayenta.interval, horizon)
        if outcome := kayenta.look(now, (stable or arm())(chance), canary(chance)):
            return kayenta, outcome, now
    return kayenta, None, now


class TestStage:
    def test_holds_the_last_weight_below_100_and_promotes_after_the_third_hour(self):
        kayenta, outcome, now = judged(arm(), 5 * HOUR)
        assert (outcome, now, kayenta.weight, kayenta.reason) == ("promote", 3 * HOUR, 50, "")

    @pytest.mark.parametrize(
        ("horizon", "decided"),
        [
            (HOUR, HOUR),
            (2 * HOUR, 2 * HOUR),
            (1.5 * HOUR, HOUR),  # half an hour is left over
            (1800.0, 1800.0),
            (90.0, 90.0),
        ],
    )
    def test_a_shorter_horizon_shortens_the_lifetime(self, horizon: float, decided: float):
        assert judged(arm(), horizon)[1:] == ("promote", decided)

    @pytest.mark.parametrize(
        ("canary", "reason"), [(arm(mean=0.15), "latency"), (arm(error_rate=0.1), "errors"), (arm(0.15, 0.1), "errors")]
    )
    def test_one_metric_of_three_fails_the_first_run(self, canary: Arm, reason: str):
        kayenta, outcome, now = judged(canary, 3 * HOUR)
        assert (outcome, now, kayenta.reason) == ("rollback", HOUR, reason)

    def test_better_is_no_reason(self):
        assert judged(arm(0.05, 0.0), HOUR)[1] == "promote"

    def test_without_traffic_half_the_metrics_or_more_have_no_data_and_it_fails(self):
        kayenta, outcome, now = judged(lambda _: Window(), 3 * HOUR)
        assert (outcome, now, kayenta.reason) == ("rollback", HOUR, "no data")

    def test_a_canary_where_everything_fails(self):
        """A single value in each arm: noise makes them comparable."""
        never, always = arm(error_rate=0.0), arm(error_rate=1.0)
        kayenta, outcome, _ = judged(always, HOUR, never)
        assert (outcome, kayenta.reason) == ("rollback", "errors")

    def test_minutes_without_requests_are_no_points(self):
        """Every second minute is empty: as zeros they would make the canary look far better."""
        left = iter([False, True] * 30)
        slow = arm(mean=0.15)
        assert judged(lambda chance: slow(chance) if next(left) else Window(), HOUR)[1] == "rollback"

    def test_does_not_look_at_ranking(self):
        kayenta = Kayenta(STEPS, Window(), HOUR)
        assert kayenta.golden([0.9, 0.9], [0.1, 0.1]) is None
        assert kayenta.weight == 50

    def test_only_100_is_refused(self):
        with pytest.raises(ValueError, match=r"\[100\]"):
            Kayenta([100], Window(), HOUR)


class TestPoints:
    def test_the_baseline_is_as_large_as_the_canary(self):
        stable = Window([0.1, 0.2, 0.3, 0.4], [1, 3])
        assert first(stable, 2) == Window([0.1, 0.2], [1])
        assert first(stable, 9) == stable

    def test_percent_and_milliseconds(self):
        found = point(Window([0.1 * place for place in range(1, 22)], [4]))
        assert found == pytest.approx({"error rate": 100 / 21, "mean latency": 1100, "p95 latency": 2000})
        assert point(Window([0.25])) == pytest.approx({"error rate": 0, "mean latency": 250, "p95 latency": 250})
        assert point(Window()) == {}


class TestClassify:
    @pytest.mark.parametrize(
        ("canary", "baseline", "expected"),
        [
            ([], [1.0], "nodata"),
            ([1.0], [], "nodata"),
            ([3.0, 1.0, 2.0], [1.0, 2.0, 3.0], "pass"),  # the same data
            ([0.0] * 60, [0.0] * 50, "pass"),
            ([5.0] * 30, [3.0] * 30, "high"),
            ([3.0] * 30, [5.0] * 30, "pass"),
            ([5.0], [3.0], "error"),  # a point each has no interval
            ([5.0] * 30, [3.0], "high"),
            ([20.0, 22, 21, 25, 30], [1.0, 2.2, 1.1, 2.5, 3], "high"),
            ([1.0, 2.2, 1.1, 2.5, 3], [20.0, 22, 21, 25, 30], "pass"),
        ],
    )
    def test_table(self, canary: list[float], baseline: list[float], expected: Label):
        assert classify(canary, baseline) == expected

    def test_a_clear_but_uncertain_increase_passes(self):
        """The interval must lie above a quarter of the estimate, not only above 0."""
        baseline = [100.0 + place for place in range(60)]
        assert classify([value + 9 for value in baseline], baseline) == "pass"
        assert classify([value + 12 for value in baseline], baseline) == "high"

    def test_where_most_minutes_are_without_errors_the_solver_s_tolerance_decides(self):
        """Estimate and bounds are then 0 but for it. Kayenta's own suite has such data as High ("Large Input"); with no
        error at all in the baseline, the lower bound ends at 0 itself."""
        assert classify([0.0] * 30 + [1.0] * 30, [0.0] * 50 + [1.0] * 10) == "high"
        assert classify([0.0] * 40 + [1.0] * 20, [0.0] * 60) == "pass"
        assert classify([0.0] * 20 + [1.0] * 40, [0.0] * 60) == "high"

    def test_a_lower_mean_is_not_high_whatever_the_ranks_say(self):
        baseline = [100.0 + 0.1 * place for place in range(59)] + [100_000.0]
        assert classify([value + 20 for value in baseline[:59]] + [120.0], baseline) == "pass"


class TestScore:
    @pytest.mark.parametrize(
        ("labels", "expected"),
        [
            (["pass", "pass", "pass"], 100),
            (["high", "pass", "pass"], 66.67),
            (["high", "high", "high"], 0),
            (["error", "pass", "high"], 66.67),
            (["error", "error", "error"], 100),
            (["nodata", "pass", "pass"], 100),
            (["nodata", "nodata", "pass"], 0),
        ],
    )
    def test_table(self, labels: list[Label], expected: float):
        assert score(labels) == expected
