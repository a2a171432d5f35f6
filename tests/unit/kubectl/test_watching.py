"""Looking until a rollout ends, on a clock that only waiting moves."""

from collections.abc import Callable, Sequence

import pytest
from rerank_api.reranker import Reranker
from rerank_kubectl.kubectl import Failed
from rerank_kubectl.state import GOING_ON, NOT_PROMOTED, SERVES
from rerank_kubectl.watching import EVERY, FIGURES_EVERY, SILENCE, Lines, Watched, watch
from unit.kubectl.build import CANARY, LOADED, OTHER, SAME_ERRORS, reranker, rollout

GOING = reranker(rollout())
PROMOTED = reranker(rollout("Promoted"), currentRevision=CANARY)
AWAY, GONE = Failed("the connection was refused"), Failed("not found", passing=False)


class Story:
    """What each look finds, the last thing for ever after."""

    def __init__(self, looks: Sequence[Reranker | Failed]) -> None:
        self.looks = list(looks)
        self.now = 1000.0
        self.shown: list[Reranker] = []

    def look(self) -> Reranker:
        found = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        if isinstance(found, Failed):
            raise found
        return found

    def wait(self, seconds: float) -> None:
        assert seconds <= EVERY
        self.now += max(seconds, 0.001)

    def watch(self, timeout: float = 3600) -> Watched:
        clock: Callable[[], float] = lambda: self.now  # noqa: E731
        return watch(self.look, self.shown.append, clock, self.wait, timeout)


@pytest.mark.parametrize(
    ("looks", "code"),
    [
        ([GOING, GOING, PROMOTED], SERVES),
        ([PROMOTED], SERVES),
        ([GOING, reranker(rollout("RolledBack"))], NOT_PROMOTED),
        ([GOING, reranker(rollout("Cancelled"))], NOT_PROMOTED),
        ([GOING, reranker(rollout(revision=OTHER))], NOT_PROMOTED),
        ([GOING, AWAY, AWAY, PROMOTED], SERVES),
    ],
)
def test_it_ends_with_the_rollout(looks: list[Reranker | Failed], code: int):
    story = Story(looks)
    assert story.watch().code == code
    assert story.shown == [look for look in looks if isinstance(look, Reranker)]


def test_a_canary_that_the_new_spec_replaces_is_not_the_one_that_is_watched():
    """Right after an apply: the operator still tells of the rollout before."""
    before = reranker(rollout(revision=OTHER), generation=3)
    assert Story([before, GOING, PROMOTED]).watch().code == SERVES


def test_it_ends_at_the_timeout():
    story = Story([GOING])
    watched = story.watch(timeout=7)
    assert watched.code == GOING_ON
    assert watched.last == GOING
    assert story.now == pytest.approx(1007)


def test_a_cluster_that_stays_silent_is_waited_for_so_long_and_no_longer():
    story = Story([GOING, AWAY])
    with pytest.raises(Failed, match="refused"):
        story.watch()
    assert SILENCE < story.now - 1000 <= SILENCE + EVERY


@pytest.mark.parametrize("looks", [[GOING, GONE], [AWAY]])
def test_what_cannot_pass_and_a_first_look_that_fails_end_it_at_once(looks: list[Reranker | Failed]):
    story = Story(looks)
    with pytest.raises(Failed):
        story.watch()
    assert story.now <= 1000 + EVERY


def test_lines_tell_of_changes_at_once_and_of_figures_now_and_then():
    lines = Lines()
    more = reranker(rollout(requests=124))
    assert lines.of(GOING, 0) is not None
    assert lines.of(GOING, FIGURES_EVERY * 2) is None, "nothing new"
    assert lines.of(reranker(rollout("Traffic", LOADED)), 70) is not None, "a verdict is new"
    assert lines.of(reranker(rollout("Traffic", LOADED, SAME_ERRORS)), 71) is not None
    assert lines.of(reranker(rollout("Traffic", LOADED, SAME_ERRORS, requests=124)), 72) is None
    assert lines.of(reranker(rollout("Traffic", LOADED, SAME_ERRORS, requests=124)), 71 + FIGURES_EVERY) is not None
    assert lines.of(more, 102) is not None
