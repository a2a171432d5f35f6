"""Flagger's rules, with numbers worked by hand."""

import pytest
from rerank_operator.rollout.judge.windows import Window
from rerank_operator.rollout.simulate.flagger import Flagger, duration, failed_check
from rerank_operator.rollout.simulate.policy import Outcome

STEPS = [1, 5, 25, 50, 100]
GOOD = Window([0.1] * 200)
FAILING = Window([0.1] * 200, [7, 8, 9])
SLOW = Window([0.1] * 190 + [0.9] * 10)
NONE = Window()


def followed(flagger: Flagger, *minutes: Window) -> list[tuple[float, Outcome | None]]:
    """The weight before each look, and its outcome."""
    return [(flagger.weight, flagger.look(60.0 * minute, GOOD, each)) for minute, each in enumerate(minutes, start=1)]


def started(weights: list[float] | None = None) -> Flagger:
    return Flagger(weights or STEPS, Window(), 3600)


class TestSteps:
    def test_up_with_every_passed_check_and_promoted_after_the_last_below_100(self):
        flagger = started()
        assert followed(flagger, *[GOOD] * 4) == [(1, None), (5, None), (25, None), (50, "promote")]
        assert flagger.reason == ""

    def test_the_end_of_the_list_is_the_last_where_100_is_not_given(self):
        assert followed(started([10, 20]), GOOD, GOOD) == [(10, None), (20, "promote")]

    def test_a_failed_check_stays_and_the_sixth_look_rolls_back(self):
        """Five failed checks are asked for at the start of the next run, before its own check."""
        flagger = started()
        assert followed(flagger, *[FAILING] * 5) == [(1, None)] * 5
        assert flagger.reason == ""
        assert flagger.look(360, GOOD, GOOD) == "rollback"
        assert flagger.reason == "errors"

    def test_passed_checks_take_no_failed_one_away(self):
        flagger = started()
        minutes = [GOOD, SLOW, SLOW, GOOD, FAILING, FAILING, GOOD, SLOW, GOOD]
        found = followed(flagger, *minutes)
        assert [weight for weight, _ in found] == [1, 5, 5, 5, 25, 25, 25, 50, 50]
        assert found[-1][1] == "rollback"
        assert flagger.reason == "latency"

    def test_promoted_with_four_failed_checks(self):
        assert followed(started([50]), *[NONE] * 4, GOOD)[-1] == (50, "promote")

    def test_without_traffic_rolled_back(self):
        flagger = started()
        assert followed(flagger, *[NONE] * 6)[-1] == (1, "rollback")
        assert flagger.reason == "no data"

    def test_part_of_an_interval_is_not_looked_at(self):
        flagger = started()
        followed(flagger, GOOD)
        assert flagger.look(90, GOOD, GOOD) is None
        assert flagger.weight == 5

    def test_does_not_look_at_ranking_nor_at_stable(self):
        flagger = started()
        assert flagger.golden([0.9, 0.9], [0.1, 0.1]) is None
        assert flagger.weight == 1
        assert flagger.look(60, NONE, GOOD) is None
        assert flagger.weight == 5

    def test_only_100_is_refused(self):
        with pytest.raises(ValueError, match=r"\[100\]"):
            started([100])


class TestCheck:
    @pytest.mark.parametrize(
        ("window", "expected"),
        [
            (NONE, "no data"),
            (GOOD, ""),
            (Window([0.1] * 200, [7, 8]), ""),  # 99 % is enough
            (FAILING, "errors"),
            (Window([0.1], [0]), "errors"),
            (Window([0.9] * 200, [7, 8, 9]), "errors"),  # the first metric that fails ends the check
            (Window([0.1] * 198 + [0.9] * 2), ""),  # 99 % are in the buckets up to 500 ms
            (Window([0.1] * 197 + [0.9] * 3), "latency"),
            (Window([0.5]), ""),  # a bucket holds its upper bound
            (Window([0.51]), "latency"),
        ],
    )
    def test_what_fails(self, window: Window, expected: str):
        assert failed_check(window) == expected

    def test_the_duration_is_cut_off_to_whole_milliseconds(self):
        """1088.01 of 1099 make 99 %, 1088 are in the buckets up to 500 ms: 500 + 500 * 0.01 / 11."""
        seconds = [0.1] * 1088 + [0.9] * 11
        assert 500 < duration(seconds) < 501
        assert failed_check(Window(seconds)) == ""


class TestDuration:
    @pytest.mark.parametrize(
        ("seconds", "expected"),
        [
            ([0.3], 250 + 250 * 0.99),  # linear in the bucket, wherever in it the request lies
            ([0.0001], 0.5 * 0.99),
            ([0.02] * 50 + [0.2] * 50, 100 + 150 * (99 - 50) / 50),
            ([0.02] * 99 + [0.2], 25.0),
            ([4000.0], 3.6e6),
        ],
    )
    def test_from_buckets(self, seconds: list[float], expected: float):
        assert duration(seconds) == pytest.approx(expected)
