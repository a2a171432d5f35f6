"""What became of revisions, from what is kept of them."""

import msgspec
import pytest
from rerank_api.outcome import Outcome
from rerank_kubectl.changes import Refused
from rerank_kubectl.history import history_json, history_table, only, read_history, revision_page
from unit.kubectl.build import CANARY, EARLIER, LATER, LOADED, NOW, OTHER, STABLE, UNSURE, kept, reranker, rollout

ROLLED_BACK = rollout("RolledBack", LOADED, UNSURE, ended=LATER, message="Slower: latency: p95 is longer by 40 %")
ITEMS = [
    kept(OTHER, 1),
    kept(CANARY, 3, msgspec.json.encode(ROLLED_BACK).decode()),
    kept(STABLE, 2, msgspec.json.encode(rollout("Promoted", revision=STABLE, stable=OTHER, ended=LATER)).decode()),
]
SEEN = reranker(updatedRevision=STABLE)


def test_the_newest_comes_first_and_what_never_was_a_canary_is_told_as_such():
    assert history_table(read_history(ITEMS), SEEN) == (
        """\
REVISION     NUMBER   WHEN                   NOW      RESULT       REQUESTS
nqrstvwxz2   3        2026-11-22T03:00:00Z   -        RolledBack   123
  Slower: latency: p95 is longer by 40 %
bcdfghjklm   2        2026-11-22T03:00:00Z   serves   Promoted     123
z2456789bc   1        2026-11-22T02:50:00Z   -        no canary    -
"""
    )


AGAIN = rollout("Traffic", LOADED, started=LATER, percent=20, message="step 1 of 1: 20 % of the requests")


def test_a_revision_that_is_tried_again_goes_on_and_what_came_of_it_before_is_told_below():
    """The row of a canary with a fifth of the requests said RolledBack, of the try before."""
    assert history_table(read_history(ITEMS), reranker(AGAIN)) == (
        """\
REVISION     NUMBER   WHEN                   NOW       RESULT                   REQUESTS
nqrstvwxz2   3        2026-11-22T03:00:00Z   canary    going on, Traffic 20 %   123
  step 1 of 1: 20 % of the requests
nqrstvwxz2   3        2026-11-22T03:00:00Z   earlier   RolledBack               123
  Slower: latency: p95 is longer by 40 %
bcdfghjklm   2        2026-11-22T03:00:00Z   serves    Promoted                 123
z2456789bc   1        2026-11-22T02:50:00Z   -         no canary                -
"""
    )


def test_an_ab_test_that_goes_on_is_told_as_such():
    """It said "no canary" of a revision with half of the requests."""
    table = history_table(read_history([kept(CANARY, 2), kept(STABLE, 1)]), reranker(AGAIN))
    assert f"{CANARY}   2        {LATER}   canary   going on, Traffic 20 %   123\n" in table
    assert f"{STABLE}   1        {EARLIER}   serves   no canary                -\n" in table


def test_each_way_that_a_revision_ended_is_told_the_latest_first():
    """Only the last one was kept: a promotion forgot the verdict of the try before."""
    told = Outcome(**msgspec.structs.asdict(rollout("Promoted", started=LATER, ended=LATER)), earlier=(ROLLED_BACK,))
    history = read_history([kept(CANARY, 1, msgspec.json.encode(told).decode())])
    assert [row.split()[3:5] for row in history_table(history, SEEN).splitlines() if row.startswith(CANARY)] == [
        ["-", "Promoted"],
        ["earlier", "RolledBack"],
    ]
    page = revision_page(history[0], SEEN, NOW)
    assert "  result     Promoted\n" in page
    assert "\nEarlier: RolledBack\n" in page
    assert page.index(UNSURE.name) > page.index("Earlier")
    (earlier,) = history_json(history, SEEN)["revisions"][0]["outcome"]["earlier"]
    assert earlier["message"] == ROLLED_BACK.message


def test_one_revision_that_is_tried_again_in_full():
    (found,) = only(read_history(ITEMS), CANARY)
    page = revision_page(found, reranker(AGAIN), NOW)
    first, _, earlier = page.partition("\nEarlier: RolledBack\n")
    assert "  result     going on, Traffic 20 %\n" in first
    assert "  ended      -\n" in first
    assert "  why        step 1 of 1: 20 % of the requests\n" in first
    assert "  why        Slower: latency: p95 is longer by 40 %\n" in earlier
    assert history_json([found], reranker(AGAIN))["rollout"]["percent"] == 20
    assert history_json([found], SEEN)["rollout"] is None


def test_nothing_kept():
    assert history_table([], SEEN) == "no revision is kept yet\n"


@pytest.mark.parametrize("outcome", ["{", '{"phase": "Flying"}', "[]"])
def test_an_outcome_that_is_not_understood_is_no_outcome(outcome: str):
    (found,) = read_history([kept(CANARY, 1, outcome)])
    assert found.outcome is None
    table = history_table([found], SEEN)
    assert "   ?        -" in table
    assert "not understood" in table
    assert "not understood" in revision_page(found, SEEN, NOW)
    assert "not understood" in revision_page(found, reranker(AGAIN), NOW)


def test_one_revision_in_full():
    (found,) = only(read_history(ITEMS), CANARY)
    page = revision_page(found, SEEN, NOW)
    assert page == (
        """\
Revision nqrstvwxz2 of search/products
  number     3
  created    2026-11-22T02:50:00Z (15m12s ago)
  now        -
  result     RolledBack
  beside     bcdfghjklm
  began      2026-11-22T02:50:00Z (15m12s ago)
  ended      2026-11-22T03:00:00Z (5m12s ago)
  requests   123 of users
  why        Slower: latency: p95 is longer by 40 %

  CHECK    VERDICT  FIGURES
  load     pass     2 workers loaded the model and scored
  latency  hold     p95 is not known to be less than 20 % longer; 400 requests
                    more would tell

Its spec
  {
    "model": {
      "uri": "hf://a/nqrstvwxz2"
    }
  }
"""
    )


def test_a_revision_that_is_not_kept_is_refused_with_those_that_are():
    with pytest.raises(Refused, match=f"there are {CANARY}, {STABLE}, {OTHER}"):
        only(read_history(ITEMS), "nothing")


def test_json_keeps_everything():
    told = history_json(read_history(ITEMS), SEEN)
    assert told["currentRevision"] == STABLE
    assert [one["revision"] for one in told["revisions"]] == [CANARY, STABLE, OTHER]
    assert told["revisions"][0]["outcome"]["checks"][1]["verdict"] == "hold"
    assert told["revisions"][2]["outcome"] is None
    assert told["revisions"][2]["spec"] == {"model": {"uri": f"hf://a/{OTHER}"}}
