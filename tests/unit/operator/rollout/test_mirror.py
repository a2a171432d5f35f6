"""The gate of mirrored requests: what fails, what passes, what is waited for, and what is told."""

import numpy as np
import pytest
from rerank_api.answers import Mirrored
from rerank_operator.rollout.judge.judge import Settings
from rerank_operator.rollout.mirror import differed, judge_mirror

SETTINGS = Settings()


def good(agreement: float | None = 0.95, count: int = 1) -> list[Mirrored]:
    return [Mirrored(0.1, 0.15, agreement=agreement, drift=0.02)] * count


def bad(count: int) -> list[Mirrored]:
    return [Mirrored(0.1, 0.05, failed=True)] * count


def spread(mean: float, width: float, count: int) -> list[Mirrored]:
    return [Mirrored(0.1, 0.1, agreement=mean + (width if place % 2 else -width)) for place in range(count)]


@pytest.mark.parametrize(
    ("mirrored", "least", "verdict", "told"),
    [
        ([], None, "hold", "no mirrored request was answered yet; 20 are needed"),
        (good(count=19), None, "hold", "0 of 19 mirrored requests failed"),
        (good(count=20), None, "pass", "0 of 20 mirrored requests failed"),
        (bad(2), None, "hold", "2 of 2 mirrored requests failed; 20 are needed"),
        (bad(3), None, "fail", "3 of 3 mirrored requests failed; more than 1% fail: evidence"),
        (good(count=40) + bad(10), None, "fail", "10 of 50"),
        (good(count=18) + bad(2), None, "hold", "whether more than 1% fail is not clear yet"),
        (good(count=400) + bad(2), None, "pass", "2 of 402"),
        (good(None, count=20), None, "pass", "0 of 20"),
        (good(None, count=20), 0.9, "hold", "the agreement is known of 0, 10 are needed to compare it with 0.9"),
        (good(0.95, count=20), 0.9, "pass", "(Kendall's tau) 0.950, between 0.950 and 0.950"),
        (good(0.85, count=20), 0.9, "fail", "the agreement must be 0.9"),
        (good(0.85, count=19), 0.9, "hold", "20 are needed"),
        (spread(0.85, 0.15, 20), 0.9, "pass", "(Kendall's tau) 0.850, between 0.778 and 0.922"),
        (spread(0.85, 0.15, 200), 0.9, "fail", "the agreement must be 0.9"),
        (spread(0.0, 1.0, 20), -1.0, "pass", "between -0.480 and 0.480"),
    ],
)
def test_the_gate(mirrored: list[Mirrored], least: float | None, verdict: str, told: str):
    found = judge_mirror(mirrored, 20, SETTINGS, least)
    assert (found.verdict, told in found.message) == (verdict, True), found.message


def test_the_figures_are_told():
    mirrored = [Mirrored(0.1, 0.3, agreement=1.0, drift=0.01), Mirrored(0.2, 0.4, agreement=0.5, drift=0.03), *bad(1)]
    assert judge_mirror(mirrored, 20, SETTINGS, None).message == (
        "1 of 3 mirrored requests failed, agreement of the rankings (Kendall's tau) 0.750, "
        "a request's scores apart by up to 0.02 in the mean, median 0.15 s, canary 0.35 s; 20 are needed"
    )


def test_how_slow_a_copy_was_decides_nothing():
    assert judge_mirror([Mirrored(0.01, 60.0)] * 20, 20, SETTINGS, None).verdict == "pass"


def test_a_canary_that_fails_as_often_as_is_tolerated_fails_the_gate_no_more_often_than_asked_for():
    """Looked at after every answer, with an error probability of 20 %: of 300 runs, 60 are allowed; 81 come once in
    a thousand."""
    chance = np.random.default_rng(1)
    failed = 0
    for _ in range(300):
        flags = chance.random(300) < 0.01
        mirrored: list[Mirrored] = []
        for flag in flags:
            mirrored += bad(1) if flag else good()
            if flag and judge_mirror(mirrored, 10**6, Settings(error_probability=0.2), None).verdict == "fail":
                failed += 1
                break
    assert failed <= 81


def test_thousands_of_failures_are_no_overflow():
    assert judge_mirror(bad(10_000), 20, SETTINGS, None).verdict == "fail"


def one(name: str, agreement: float | None = 1.0, drift: float | None = 0.0, failed: bool = False) -> Mirrored:
    return Mirrored(0.1, 0.1, failed=failed, agreement=agreement, drift=drift, request_id=name)


@pytest.mark.parametrize(
    ("mirrored", "names"),
    [
        ([], []),
        ([one("a", 0.5), one("b", -0.2), one("c", 0.9)], ["b", "a", "c"]),
        ([one("a", 0.5, 0.1), one("b", 0.5, 0.3)], ["b", "a"]),
        ([one("a", None, 0.4), one("b", 0.99, 0.0), one("c", None, 0.5)], ["b", "c", "a"]),
        ([one("same"), one("a", 1.0, 0.01), one("no order", None, 0.0)], ["a"]),
        ([one("lost", None, None, failed=True), one("", 0.1), one("x" * 129, 0.1)], []),
        ([one(str(place), place / 10) for place in range(9, -1, -1)], ["0", "1", "2", "3", "4"]),
    ],
)  # fmt: skip
def test_the_requests_that_differed_most_are_named_worst_first(mirrored: list[Mirrored], names: list[str]):
    assert [told.request_id for told in differed(mirrored)] == names


def test_a_request_that_differed_is_told_with_its_figures():
    (told,) = differed([one("a", 0.123456, 0.12345678)])
    assert (told.agreement, told.drift) == (0.1235, 0.123457)
