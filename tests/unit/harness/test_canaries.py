"""What the story of a canary is read from: statuses in their order, and what users were answered."""

from typing import Any

import pytest
from harness import wrong_tokenizer
from harness.canaries import Moment, Place, met, moments, places, went_back
from harness.load import Outcome
from harness.watching import Change


def moment(phase: str, step: int = 0, started: str = "now") -> Moment:
    # The operator leaves out what is zero.
    rollout = {"phase": phase, "started": started, **({"step": step} if step else {})}
    return Moment(0.0, {"status": {"rollout": rollout}})


def test_stays_are_told_once_each_and_of_one_rollout_only():
    story = [
        Moment(0.0, {}),
        moment("Traffic", 1, started="before"),
        moment("Starting"),
        moment("Starting"),
        moment("Traffic"),
        moment("Traffic", 1),
        moment("RolledBack", 1),
    ]
    stays = [Place("Starting", 0), Place("Traffic", 0), Place("Traffic", 1), Place("RolledBack", 1)]
    assert places(story, "now") == stays


@pytest.mark.parametrize(
    ("stays", "back"),
    [
        ([], []),
        ([("Starting", 0), ("Golden", 0), ("Traffic", 0), ("Traffic", 1), ("Promoting", 2), ("Promoted", 2)], []),
        ([("Traffic", 1), ("RolledBack", 1)], []),
        ([("Traffic", 1), ("Traffic", 0)], [(("Traffic", 1), ("Traffic", 0))]),
        ([("Mirror", 0), ("Golden", 0), ("Mirror", 0)], [(("Mirror", 0), ("Golden", 0))]),
    ],
)
def test_a_step_back_is_found(stays: list[tuple[str, int]], back: list[tuple[tuple[str, int], tuple[str, int]]]):
    assert went_back([Place(*stay) for stay in stays]) == back


def test_shares_checks_and_requests_of_a_revision():
    status: dict[str, Any] = {
        "traffic": [{"revision": "old", "percent": 80}, {"revision": "new", "percent": 20}],
        "rollout": {
            "phase": "Traffic",
            "checks": [{"name": "load", "verdict": "pass"}, {"name": "errors", "verdict": "fail"}],
        },
    }
    found = Moment(0.0, {"status": status})
    assert [found.percent(revision) for revision in ("old", "new", "other")] == [80, 20, 0]
    assert found.failed_checks == ["errors"]
    assert (found.check("load")["verdict"], found.check("golden")) == ("pass", {})
    outcomes = [Outcome(0.0, 0.1, 200, None, revision, "url") for revision in ("old", "new", "new", None)]
    assert met(outcomes, "new") == 2


def test_moments_are_those_of_one_reranker_that_is_there():
    changes = [
        Change(1.0, "ADDED", {"metadata": {"name": "shop"}}),
        Change(2.0, "MODIFIED", {"metadata": {"name": "other"}}),
        Change(3.0, "MODIFIED", {"metadata": {"name": "shop"}}),
        Change(4.0, "DELETED", {"metadata": {"name": "shop"}}),
    ]
    assert [found.seen for found in moments(changes, "shop")] == [1.0, 3.0]


def test_another_tokenizer_has_each_word_once_and_none_in_its_place():
    size = 30_522
    ids = [wrong_tokenizer.shifted(number, size) for number in range(size)]
    assert sorted(ids) == list(range(size))
    assert ids[: wrong_tokenizer.FIRST] == list(range(wrong_tokenizer.FIRST))
    assert not any(ids[number] == number for number in range(wrong_tokenizer.FIRST, size))
