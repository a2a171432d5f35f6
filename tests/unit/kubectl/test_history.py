"""What became of revisions, from what is kept of them."""

import msgspec
import pytest
from rerank_kubectl.changes import Refused
from rerank_kubectl.history import history_json, history_table, only, read_history, revision_page
from unit.kubectl.build import CANARY, LATER, LOADED, NOW, OTHER, STABLE, UNSURE, kept, reranker, rollout

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


def test_a_revision_that_is_tried_again_is_the_canary_now():
    assert f"{CANARY}   3        {LATER}   canary   RolledBack" in history_table(
        read_history(ITEMS), reranker(rollout())
    )


def test_nothing_kept():
    assert history_table([], SEEN) == "no revision is kept yet\n"


@pytest.mark.parametrize("outcome", ["{", '{"phase": "Flying"}', "[]"])
def test_an_outcome_that_is_not_understood_is_no_outcome(outcome: str):
    (found,) = read_history([kept(CANARY, 1, outcome)])
    assert found.outcome is None
    table = history_table([found], SEEN)
    assert "   ?            -" in table
    assert "not understood" in table
    assert "not understood" in revision_page(found, SEEN, NOW)


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
