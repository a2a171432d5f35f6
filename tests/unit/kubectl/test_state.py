"""What a status means: what is over, what is not shown, what is rejected."""

import pytest
from rerank_api import names
from rerank_api.reranker import Reranker, RolloutCheck, RolloutPhase
from rerank_kubectl.state import GOING_ON, NOT_PROMOTED, SERVES, canary, ended, rejected, unproven
from unit.kubectl.build import (
    CANARY,
    EARLIER,
    LATER,
    LOADED,
    OTHER,
    SAME_ERRORS,
    SAME_LATENCY,
    UNSURE,
    rejection,
    reranker,
    rollout,
)


@pytest.mark.parametrize(
    ("phase", "goes_on"),
    [
        ("Starting", True),
        ("Golden", True),
        ("Mirror", True),
        ("Traffic", True),
        ("Promoting", True),
        ("Promoted", False),
        ("RolledBack", False),
        ("Cancelled", False),
    ],
)
def test_a_canary_is_one_until_its_rollout_is_over(phase: RolloutPhase, goes_on: bool):
    assert (canary(reranker(rollout(phase))) is not None) == goes_on


@pytest.mark.parametrize(
    ("phase", "checks", "said"),
    [
        ("Traffic", [LOADED, SAME_ERRORS, SAME_LATENCY], []),
        ("Traffic", [LOADED, SAME_ERRORS, UNSURE], [f"latency says hold: {UNSURE.message}"]),
        ("Traffic", [LOADED, RolloutCheck("errors", "fail", "9 of 10 failed")], ["errors says fail: 9 of 10 failed"]),
        ("Traffic", [LOADED, SAME_ERRORS, SAME_LATENCY, RolloutCheck("difference", "hold", "p50 +1 %")], []),
        ("Traffic", [LOADED], ["nothing has been said yet about users' requests"]),
        ("Traffic", [], ["nothing has been said yet about users' requests"]),
        ("Mirror", [LOADED], ["no user's request has gone to it: it is in phase Mirror"]),
        ("Starting", [], ["no user's request has gone to it: it is in phase Starting"]),
    ],
)
def test_what_a_promotion_passes_over_is_told(phase: RolloutPhase, checks: list[RolloutCheck], said: list[str]):
    assert unproven(rollout(phase, *checks)) == said


@pytest.mark.parametrize(
    ("of", "updated", "since", "retry", "counts"),
    [
        (CANARY, CANARY, LATER, None, True),
        (CANARY, CANARY, LATER, EARLIER, True),
        (CANARY, CANARY, LATER, LATER, True),
        (CANARY, CANARY, EARLIER, LATER, False),
        (CANARY, CANARY, LATER, "soon", True),
        (CANARY, CANARY, "", LATER, False),
        (OTHER, CANARY, LATER, None, False),
    ],
)
def test_a_rejection_counts_while_it_is_of_the_spec_and_nobody_said_retry(
    of: str, updated: str, since: str, retry: str | None, counts: bool
):
    annotations = {names.ANNOTATION_RETRY: retry} if retry is not None else {}
    seen = reranker(annotations=annotations, rejectedRevision=rejection(of, since), updatedRevision=updated)
    assert (rejected(seen) is not None) == counts


@pytest.mark.parametrize(
    ("seen", "followed", "code"),
    [
        pytest.param(reranker(rollout()), None, None, id="goes on"),
        pytest.param(reranker(rollout("Promoting")), CANARY, None, id="being promoted"),
        pytest.param(reranker(rollout("Promoted"), currentRevision=CANARY), CANARY, SERVES, id="promoted"),
        pytest.param(reranker(rollout("RolledBack")), CANARY, NOT_PROMOTED, id="rolled back"),
        pytest.param(reranker(rollout("Cancelled")), CANARY, NOT_PROMOTED, id="cancelled"),
        pytest.param(reranker(rollout(revision=OTHER)), CANARY, NOT_PROMOTED, id="another one has come"),
        pytest.param(reranker(rollout("Promoted"), currentRevision=CANARY), None, SERVES, id="was promoted before"),
        pytest.param(
            reranker(rollout("RolledBack"), rejectedRevision=rejection()), None, NOT_PROMOTED, id="was rejected"
        ),
        pytest.param(reranker(rollout("Promoted", revision=OTHER)), None, None, id="the next one is about to begin"),
        pytest.param(
            reranker(rollout("Promoted"), currentRevision=CANARY, generation=3), None, None, id="spec not read yet"
        ),
        pytest.param(
            reranker(
                rollout("RolledBack"),
                rejectedRevision=rejection(time=EARLIER),
                annotations={names.ANNOTATION_RETRY: LATER},
            ),
            None,
            None,
            id="to be tried again",
        ),
        pytest.param(reranker(currentRevision=None), None, None, id="the first revision starts"),
        pytest.param(reranker(currentRevision=None, updatedRevision=None), None, None, id="nothing is known yet"),
    ],
)
def test_how_a_watched_rollout_ends(seen: Reranker, followed: str | None, code: int | None):
    assert ended(seen, followed) == code


def test_the_three_ends_have_statuses_of_their_own():
    assert len({SERVES, NOT_PROMOTED, GOING_ON, 2}) == 4, "2 is bad input"
