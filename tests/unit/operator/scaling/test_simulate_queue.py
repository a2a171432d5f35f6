import math

import pytest
from rerank_operator.scaling.simulate.queueing import Replica, Waiting

HIGH, NORMAL, LOW = range(3)


def drained(waiting: Waiting) -> list[int]:
    return [waiting.take()[1] for _ in range(waiting.count)]


def test_one_priority_is_first_come_first_served():
    waiting = Waiting(math.inf)
    for tokens in (5, 1, 9):
        waiting.add(float(tokens == 9), tokens, NORMAL)
    assert (waiting.count, waiting.tokens) == (3, 15)
    assert drained(waiting) == [5, 1, 9]
    assert (waiting.count, waiting.tokens) == (0, 0)


@pytest.mark.parametrize(
    ("low_waited", "order"),
    [(0.0, ["high", "normal", "low"]), (4.9, ["high", "low", "normal"]), (5.1, ["low", "high", "normal"])],
)
def test_a_low_request_is_overtaken_for_five_seconds_and_no_longer(low_waited: float, order: list[str]):
    waiting = Waiting(math.inf)
    waiting.add(10.0 - low_waited, 3, LOW)
    waiting.add(10.0, 2, NORMAL)
    waiting.add(10.0, 1, HIGH)
    assert drained(waiting) == [{"high": 1, "normal": 2, "low": 3}[name] for name in order]


def test_requests_expire_at_their_own_moment():
    waiting = Waiting(10.0)
    for arrived, priority in ((0.0, NORMAL), (1.0, LOW), (2.0, NORMAL)):
        waiting.add(arrived, 7, priority)
    assert waiting.expire(9.9) == []
    assert sorted(waiting.expire(11.0)) == [10.0, 11.0]
    assert (waiting.count, waiting.tokens) == (1, 7)


def test_a_batch_shares_the_speed_of_its_replica():
    """1,000 tokens/s. Alone for 0.5 s, the first has 500 of its 1,000 tokens; then each gets 500 a second, and the
    second (300 tokens) ends at 1.1; the first has 200 left and the replica for itself: 1.3."""
    replica = Replica(told=0.0)
    assert replica.join(0.0, 1000.0, number=1, arrived=0.0, tokens=1000) == 1.0
    assert replica.join(0.5, 1000.0, number=2, arrived=0.5, tokens=300) == pytest.approx(1.1)
    assert replica.clear_at == pytest.approx(1.3)
    assert replica.batch[0][1] == 2


def test_what_joins_while_nothing_is_served_does_not_inherit_what_was_attained():
    replica = Replica(told=0.0)
    replica.join(0.0, 1000.0, 1, 0.0, 1000)
    replica.batch.clear()
    assert replica.join(7.0, 1000.0, 2, 7.0, 1000) == 8.0
    assert replica.clear_at == 8.0
