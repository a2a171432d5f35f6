"""What each command writes, and what it refuses."""

from datetime import timedelta, timezone
from functools import partial
from typing import Any

import pytest
from rerank_api import names
from rerank_api.reranker import Reranker, RolloutPhase
from rerank_kubectl import changes
from rerank_kubectl.changes import Refused
from rerank_kubectl.commands import Call
from unit.kubectl.build import (
    CANARY,
    EARLIER,
    LATER,
    LOADED,
    NOW,
    OTHER,
    SAME_ERRORS,
    SAME_LATENCY,
    UNSURE,
    rejection,
    reranker,
    rollout,
)

CALL = Call(context="test")
PROVEN = rollout("Traffic", LOADED, SAME_ERRORS, SAME_LATENCY)
PAUSED = {names.ANNOTATION_ROLLOUT_PAUSED: "true"}
TO_PROMOTE = {names.ANNOTATION_PROMOTE: EARLIER, names.ANNOTATION_ABORT: None}


def test_a_proven_canary_is_promoted_by_when_its_rollout_began():
    assert changes.promote(reranker(PROVEN), None, False, CALL).annotations == TO_PROMOTE


def test_an_unproven_canary_is_promoted_by_force_only_and_the_refusal_says_why_and_how():
    seen = reranker(rollout("Traffic", LOADED, UNSURE))
    with pytest.raises(Refused) as refused:
        changes.promote(seen, None, False, CALL)
    assert f"latency says hold: {UNSURE.message}" in str(refused.value)
    again = f"kubectl rerank promote products -n search --revision={CANARY} --force --context=test"
    assert str(refused.value).endswith(again)
    assert changes.promote(seen, None, True, CALL).annotations == TO_PROMOTE


@pytest.mark.parametrize("phase", ["Starting", "Golden", "Mirror"])
def test_a_canary_that_no_user_has_met_is_promoted_by_force_only(phase: RolloutPhase):
    with pytest.raises(Refused, match=f"phase {phase}"):
        changes.promote(reranker(rollout(phase, LOADED)), None, False, CALL)


def test_what_is_being_promoted_is_left_alone_by_promote():
    change = changes.promote(reranker(rollout("Promoting", UNSURE)), None, False, CALL)
    assert change.annotations == {}
    assert "already" in change.said


@pytest.mark.parametrize("phase", ["Starting", "Golden", "Mirror", "Traffic", "Promoting"])
def test_a_canary_is_aborted_in_every_phase_without_asking(phase: RolloutPhase):
    change = changes.abort(reranker(rollout(phase, UNSURE)), None, CALL)
    assert change.annotations == {names.ANNOTATION_ABORT: EARLIER, names.ANNOTATION_PROMOTE: None}
    assert "kubectl rerank retry products" in change.said
    assert ("requests wait" in change.said) == (phase == "Promoting")


@pytest.mark.parametrize("verb", ["promote", "abort"])
@pytest.mark.parametrize(
    ("seen", "revision", "sentence"),
    [
        (reranker(), None, "has no canary to {verb}: no rollout of a canary has begun"),
        (reranker(rollout("RolledBack")), None, f"the last rollout, of revision {CANARY}, is over (RolledBack)"),
        (reranker(rollout("Promoted"), generation=3), None, "the operator has not read the latest spec yet"),
        (reranker(PROVEN), OTHER, f"is {CANARY}, not {OTHER}"),
        (reranker(rollout("Promoted")), CANARY, "is over (Promoted)"),
    ],
)
def test_only_the_canary_that_is_there_is_promoted_or_aborted(
    verb: str, seen: Reranker, revision: str | None, sentence: str
):
    decide = partial(changes.promote, force=True) if verb == "promote" else changes.abort
    with pytest.raises(Refused) as refused:
        decide(seen, revision, call=CALL)
    assert sentence.format(verb=verb) in str(refused.value)


@pytest.mark.parametrize(
    ("seen", "written", "said"),
    [
        (reranker(PROVEN), PAUSED, "stay where it is (phase Traffic, 5 % of the requests)"),
        (reranker(), PAUSED, "the next one is to wait"),
        (reranker(rollout("Promoted")), PAUSED, "the next one is to wait"),
        (reranker(PROVEN, annotations=PAUSED), {}, "paused already"),
        (reranker(PROVEN, annotations={names.ANNOTATION_ROLLOUT_PAUSED: "yes"}), PAUSED, "stay where it is"),
        (reranker(PROVEN, spec={"paused": True}), {}, "spec.rollout.paused is true"),
    ],
)
def test_pause(seen: Reranker, written: dict[str, str], said: str):
    change = changes.pause(seen, CALL)
    assert change.annotations == written
    assert said in change.said


@pytest.mark.parametrize(
    ("seen", "sentence"),
    [
        (reranker(rollout("Promoting")), "no pause stops"),
        (reranker(spec={"strategy": "Replace"}), "set it to Canary"),
    ],
)
def test_what_cannot_be_paused_is_refused(seen: Reranker, sentence: str):
    with pytest.raises(Refused, match=sentence):
        changes.pause(seen, CALL)


def test_resume_removes_what_pause_has_set():
    change = changes.resume(reranker(PROVEN, annotations=PAUSED), CALL)
    assert change.annotations == {names.ANNOTATION_ROLLOUT_PAUSED: None}
    assert change.but == ""


def test_resume_of_what_is_not_paused_writes_nothing():
    assert changes.resume(reranker(PROVEN), CALL).annotations == {}


def test_resume_tells_that_the_spec_holds_it_and_the_command_that_changes_it():
    spec: dict[str, Any] = {"paused": True}
    patch = "kubectl patch reranker products -n search --type=merge"
    with pytest.raises(Refused, match=patch):
        changes.resume(reranker(PROVEN, spec=spec), CALL)
    both = changes.resume(reranker(PROVEN, spec=spec, annotations=PAUSED), CALL)
    assert both.annotations == {names.ANNOTATION_ROLLOUT_PAUSED: None}
    assert patch in both.but


def test_resume_tells_of_a_deadline_that_holds_it():
    held = rollout("Traffic", UNSURE, paused="it is not decided after 24h")
    with pytest.raises(Refused, match="it is not decided after 24h"):
        changes.resume(reranker(held), CALL)


@pytest.mark.parametrize(
    ("since", "asked"),
    [
        (LATER, "2026-11-22T03:00:01Z"),
        ("2026-11-22T03:00:00.700000Z", "2026-11-22T03:00:01Z"),
        ("2026-11-22T05:00:00+02:00", "2026-11-22T03:00:01Z"),
        ("", "2026-11-22T03:05:12Z"),
    ],
)
def test_retry_is_asked_just_after_the_rejection_and_forgets_what_was_asked_before(since: str, asked: str):
    """Whatever our clock says: one that is ahead would have later rejections tried again, too."""
    seen = reranker(rollout("RolledBack"), rejectedRevision=rejection(time=since))
    here = NOW.astimezone(timezone(timedelta(hours=9)))
    assert changes.retry(seen, here, CALL).annotations == {
        names.ANNOTATION_RETRY: asked,
        names.ANNOTATION_ABORT: None,
        names.ANNOTATION_PROMOTE: None,
    }


@pytest.mark.parametrize(
    ("seen", "sentence"),
    [
        (reranker(PROVEN), "no rejected revision"),
        (reranker(rejectedRevision=rejection(OTHER)), "by now"),
        (
            reranker(rejectedRevision=rejection(), annotations={names.ANNOTATION_RETRY: "2026-11-22T03:00:01Z"}),
            "already",
        ),
    ],
)
def test_retry_where_nothing_is_rejected_is_refused(seen: Reranker, sentence: str):
    with pytest.raises(Refused, match=sentence):
        changes.retry(seen, NOW, CALL)
