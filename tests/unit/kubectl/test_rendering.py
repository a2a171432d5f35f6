"""Statuses as text and as JSON."""

import shlex
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rerank_api import names
from rerank_api.reranker import (
    Capture,
    DifferedRequest,
    QualityObjective,
    QualityStatus,
    Reranker,
    RolloutCheck,
    RolloutPhase,
)
from rerank_kubectl.changes import promote
from rerank_kubectl.commands import Call, next_commands
from rerank_kubectl.options import parse
from rerank_kubectl.rendering import progress_line, reranker_table, since, status_json, status_page
from unit.kubectl.build import (
    CANARY,
    LATER,
    LOADED,
    NOW,
    OTHER,
    SAME_ERRORS,
    SAME_LATENCY,
    STABLE,
    UNSURE,
    condition,
    rejection,
    reranker,
    rollout,
)

CALL = Call()
TRAFFIC = [{"revision": STABLE, "percent": 95}, {"revision": CANARY, "percent": 5}]


def test_a_status_page():
    seen = reranker(rollout("Traffic", LOADED, UNSURE, message="step 2 of 4"), traffic=TRAFFIC)
    assert status_page(seen, NOW, CALL) == (
        """\
Reranker search/products
  serves     bcdfghjklm
  asked for  nqrstvwxz2
  traffic    bcdfghjklm 95 %, nqrstvwxz2 5 %

Rollout of nqrstvwxz2 beside bcdfghjklm (Canary)
  phase      Traffic, since 2026-11-22T03:00:00Z (5m12s ago)
  began      2026-11-22T02:50:00Z (15m12s ago)
  step       2 of 4 (1, [5], 25, 50 %); 5 % of the requests now
  requests   123 of users that it has answered
  message    step 2 of 4

  CHECK    VERDICT  FIGURES
  load     pass     2 workers loaded the model and scored
  latency  hold     p95 is not known to be less than 20 % longer; 400 requests
                    more would tell

What you can do
  see it through to its end:
    kubectl rerank status products -n search --watch
  keep it where it is:
    kubectl rerank pause products -n search
  take it back:
    kubectl rerank abort products -n search --revision=nqrstvwxz2
  promote it now (it has not shown yet that it is no worse):
    kubectl rerank promote products -n search --revision=nqrstvwxz2 --force
"""
    )


@pytest.mark.parametrize(
    ("seen", "text"),
    [
        (reranker(rejectedRevision=rejection()), f"Rejected {CANARY} at {LATER} (5m12s ago)\n  Slower: latency: p95"),
        (reranker(rollout(paused="spec.rollout.paused is true")), "  paused     spec.rollout.paused is true"),
        (reranker(rollout(paused="because")), "  phase      Traffic (paused), since"),
        (reranker(), "  traffic    no worker is ready"),
        (reranker(currentRevision=None, updatedRevision=None), "  serves     none yet"),
        (reranker(generation=3), "the operator has not read the latest spec yet"),
        (reranker(rollout("Starting")), "no check has said anything yet"),
        (
            reranker(rejectedRevision=rejection(), annotations={names.ANNOTATION_RETRY: "2026-11-22T03:00:01Z"}),
            "a person has asked to try it again",
        ),
    ],
)
def test_what_a_page_says(seen: Reranker, text: str):
    assert text in status_page(seen, NOW, CALL)


def test_why_it_is_paused_is_told_once():
    seen = reranker(rollout(paused="the deadline is over", message="paused: the deadline is over"))
    assert status_page(seen, NOW, CALL).count("the deadline is over") == 1


@given(
    st.lists(st.text(st.characters(codec="ascii", exclude_characters=" \n\r\t\v\f\x1c\x1d\x1e\x1f"), max_size=12)),
    st.integers(60, 120),
)
def test_a_page_is_as_wide_as_the_terminal_but_for_what_is_copied(words: list[str], width: int):
    text = " ".join(words)
    seen = reranker(
        rollout("Traffic", RolloutCheck("errors", "hold", text), message=text), rejectedRevision=rejection()
    )
    lines = status_page(seen, NOW, CALL, width).splitlines()
    assert max(len(line) for line in lines if not line.startswith("    kubectl")) <= width


@pytest.mark.parametrize(
    ("phase", "step", "text"),
    [
        ("Starting", 0, "0 of 4 (1, 5, 25, 50 %)"),
        ("Traffic", 0, "1 of 4 ([1], 5, 25, 50 %)"),
        ("Traffic", 3, "4 of 4 (1, 5, 25, [50] %)"),
        ("Traffic", 4, "4 of 4 (1, 5, 25, [50] %)"),
        ("Promoting", 4, "4 of 4 passed (1, 5, 25, 50 %)"),
        ("RolledBack", 0, "0 of 4 passed (1, 5, 25, 50 %)"),
        ("Promoted", 1, "1 of 4 passed (1, 5, 25, 50 %)"),
    ],
)
def test_steps_are_told_as_people_count(phase: RolloutPhase, step: int, text: str):
    assert f"  step       {text};" in status_page(reranker(rollout(phase, step=step)), NOW, CALL)


def test_the_table_tells_no_figures_where_there_is_no_rollout():
    rows = [
        reranker(rollout()),
        reranker(rollout(paused="why")),
        reranker(rollout("Promoted", percent=100)),
        reranker(rejectedRevision=rejection()),
        reranker(updatedRevision=STABLE),
    ]
    assert reranker_table(rows, namespaces=True) == (
        """\
NAMESPACE   NAME       PHASE              PERCENT   STEP   REQUESTS   REVISION
search      products   Traffic            5 %       2/4    123        nqrstvwxz2
search      products   Traffic (paused)   5 %       2/4    123        nqrstvwxz2
search      products   Promoted           100 %     -      123        nqrstvwxz2
search      products   Rejected           -         -      -          bcdfghjklm
search      products   -                  -         -      -          bcdfghjklm
"""
    )
    assert "NAMESPACE" not in reranker_table(rows, namespaces=False)


@pytest.mark.parametrize(
    ("seen", "verbs"),
    [
        (reranker(rollout()), ["status", "pause", "abort", "promote"]),
        (reranker(rollout("Promoting")), ["status", "abort"]),
        (
            reranker(rollout(paused="a"), annotations={names.ANNOTATION_ROLLOUT_PAUSED: "true"}),
            ["resume", "abort", "promote"],
        ),
        (reranker(rollout(paused="a"), spec={"paused": True}), ["patch", "abort", "promote"]),
        (reranker(rollout(paused="the deadline")), ["abort", "promote"]),
        (reranker(rollout("RolledBack"), rejectedRevision=rejection()), ["retry", "history"]),
        (reranker(rollout("RolledBack"), rejectedRevision=rejection(OTHER)), ["history"]),
        (reranker(), ["history"]),
    ],
)
def test_the_commands_that_fit_the_state(seen: Reranker, verbs: list[str]):
    words = [one.command.split() for one in next_commands(seen, CALL)]
    assert [line[2] if line[1] == "rerank" else line[1] for line in words] == verbs


@pytest.mark.parametrize("checks", [[], [LOADED, UNSURE], [LOADED, SAME_ERRORS, SAME_LATENCY]])
def test_the_promotion_that_is_printed_does_what_it_says_and_forces_only_what_is_not_shown(checks: list[RolloutCheck]):
    """It was refused for want of --force."""
    seen = reranker(rollout("Traffic", *checks))
    (printed,) = [one for one in next_commands(seen, CALL) if one.what.startswith("promote")]
    asked = parse(shlex.split(printed.command)[2:])
    assert promote(seen, asked.revision, asked.force, CALL).annotations
    assert asked.force == ("it has not shown" in printed.what) == (SAME_LATENCY not in checks)


def test_the_commands_name_the_cluster_that_was_asked():
    call = Call(context="a b", kubeconfig="/home/me/config")
    for one in next_commands(reranker(rollout()), call):
        assert "-n search" in one.command
        assert one.command.endswith("'--context=a b' --kubeconfig=/home/me/config")


QUALITY = QualityStatus(STABLE, LATER, "ndcg@5", 40, 0.8214, 0.975, 0.9)


def test_how_the_golden_set_was_ranked():
    seen = reranker(quality=QUALITY)
    told = "nDCG@5 0.821, accuracy@5 0.975, MRR 0.900 of 40 queries by bcdfghjklm, 2026-11-22T03:00:00Z (5m12s ago)"
    assert f"  quality    {told}\n" in status_page(seen, NOW, CALL, 200)
    assert status_json(seen, CALL)["quality"]["ndcg"] == 0.8214
    calibrated = msgspec.structs.replace(QUALITY, brier=0.11, ece=0.031)
    slo = msgspec.structs.replace(seen.spec.slo, quality=QualityObjective(0.8))
    promised = msgspec.structs.replace(reranker(quality=calibrated), spec=msgspec.structs.replace(seen.spec, slo=slo))
    page = status_page(promised, NOW, CALL, 300)
    assert "MRR 0.900, Brier 0.110, ECE 0.031 of 40" in page
    assert "; ndcg@5 is to be 0.8 at least\n" in page


def test_the_requests_that_differed_most_are_named():
    differed = [DifferedRequest("request-1", -0.25, 0.5), DifferedRequest("2\x1b[2J", drift=0.125)]
    seen = reranker(rollout("Mirror", LOADED, differed=differed))
    assert """
  DIFFERED MOST   AGREEMENT   LARGEST DIFFERENCE
  request-1       -0.250      0.500
  2 [2J           -           0.125
""" in status_page(seen, NOW, CALL)
    assert "samples" not in {one.command.split()[2] for one in next_commands(seen, CALL)}
    observed = msgspec.structs.replace(seen.spec.observability, capture=Capture())
    capturing = msgspec.structs.replace(seen, spec=msgspec.structs.replace(seen.spec, observability=observed))
    assert "kubectl rerank samples products -n search --disagreements" in status_page(capturing, NOW, CALL)


def test_json_has_every_field_and_null_for_what_is_not_known():
    told = status_json(reranker(rollout("Starting", percent=0, step=0, requests=0), currentRevision=None), CALL)
    assert told["currentRevision"] is None
    assert told["rejectedRevision"] is None
    assert told["traffic"] == []
    assert told["observed"] is True
    assert {key: told["rollout"][key] for key in ("percent", "step", "requests", "paused", "checks", "ended")} == {
        "percent": 0,
        "step": 0,
        "requests": 0,
        "paused": "",
        "checks": [],
        "ended": "",
    }
    assert told["unproven"] == ["no user's request has gone to it: it is in phase Starting"]
    assert status_json(reranker(), CALL)["rollout"] is None


def test_a_line_of_a_log():
    assert progress_line(reranker(rollout("Traffic", LOADED, UNSURE))) == (
        f"{CANARY} Traffic, 5 %, step 2/4, 123 requests: load pass, latency hold"
    )
    assert progress_line(reranker()) == f"no rollout; {STABLE} serves"


@pytest.mark.parametrize("phase", ["Promoting", "Promoted", "RolledBack", "Cancelled"])
def test_a_line_names_no_step_where_it_is_in_none(phase: RolloutPhase):
    """``Traffic, 50 %, step 2/2`` was followed by ``Promoted, 100 %, step 1/2``."""
    assert progress_line(reranker(rollout(phase))) == f"{CANARY} {phase}, 5 %, 123 requests"


FOLDER = "spec.model.uri: /models/products is no folder on the worker's node"


def test_why_nothing_serves_is_told():
    """``status`` said no more than that no worker is ready."""
    ready, degraded = condition("Ready", "False", FOLDER), condition("Degraded", "True", FOLDER)
    page = status_page(reranker(conditions=[ready, degraded], updatedRevision=STABLE), NOW, CALL, 120)
    assert f"  not ready  ModelLoadFailed: {FOLDER}\n" in page
    assert page.count(FOLDER) == 1
    told = status_json(reranker(conditions=[ready]), CALL)["conditions"]
    assert told[0]["message"] == FOLDER


@pytest.mark.parametrize(
    ("conditions", "text"),
    [
        ([condition("Ready", "True"), condition("Degraded", "True", "no GPU")], "  degraded   ModelLoadFailed: no GPU"),
        ([condition("Ready", "Unknown", "silent"), condition("Degraded", "False")], "  not ready  ModelLoadFailed: s"),
        ([condition("Ready", "True"), condition("Annotations", "False", "retry=later")], "  no effect  retry=later"),
    ],
)
def test_what_is_wrong_with_what_serves_is_told(conditions: list[dict[str, Any]], text: str):
    assert text in status_page(reranker(conditions=conditions), NOW, CALL)


def test_what_is_well_or_told_below_is_not_told_as_trouble():
    well = [condition("Ready", "True"), condition("Degraded", "False")]
    assert "degraded" not in status_page(reranker(conditions=well), NOW, CALL)
    rejected = [condition("Ready", "True"), condition("Degraded", "True", reason="RevisionRejected")]
    page = status_page(reranker(conditions=rejected, rejectedRevision=rejection()), NOW, CALL)
    assert "degraded" not in page
    assert f"Rejected {CANARY}" in page


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("2026-11-22T03:05:12Z", " (0s ago)"),
        ("2026-11-22T03:04:13Z", " (59s ago)"),
        ("2026-11-22T02:05:11Z", " (1h0m ago)"),
        ("2026-11-20T02:05:12Z", " (2d1h ago)"),
        ("2026-11-22T03:06:00Z", " (0s ago)"),
        ("yesterday", ""),
        ("", ""),
    ],
)
def test_how_long_ago_a_time_is(text: str, told: str):
    assert since(text, NOW) == text + told
