"""Leadership: two candidates and a lease, with clocks that are moved by hand."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rerank_operator.controller.leader import Election, Terms

TERMS = Terms(duration=15, renew=10, retry=2)


class Server:
    """The lease, guarded by its resource version as the API server does it."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self.version = 0

    def put(self, wanted: dict[str, Any]) -> dict[str, Any] | None:
        """None: a conflict."""
        expected = self.lease["metadata"]["resourceVersion"] if self.lease else None
        if wanted["metadata"].get("resourceVersion") != expected:
            return None
        self.version += 1
        self.lease = wanted | {"metadata": wanted["metadata"] | {"resourceVersion": str(self.version)}}
        return self.lease


def attempt(one: Election, server: Server, now: float) -> bool:
    """One round of a candidate: look, and take or renew if it may."""
    one.saw(server.lease, now)
    if not one.may_take(now):
        return False
    answer = server.put(one.manifest(server.lease, "ns", "lease", now))
    if answer is None:
        return False
    one.saw(answer, now)
    one.renewed(now)
    return True


def test_the_first_one_leads_and_the_other_waits_the_whole_lease():
    server, a, b = Server(), Election("a", TERMS), Election("b", TERMS)
    assert attempt(a, server, 100)
    assert not attempt(b, server, 101)
    assert not attempt(b, server, 115)
    assert not attempt(b, server, 116)
    assert attempt(b, server, 116.1)
    assert server.lease is not None
    assert server.lease["spec"]["leaseTransitions"] == 1


def test_everyone_knows_who_leads_until_the_lease_has_run_out():
    server, a, b = Server(), Election("a", TERMS), Election("b", TERMS)
    assert b.holder(99) == ""
    attempt(a, server, 100)
    assert (a.holder(100), b.holder(100)) == ("a", "")
    attempt(b, server, 101)
    assert (b.holder(101), b.holder(116), b.holder(116.1)) == ("a", "a", "")


def test_a_renewal_seen_starts_the_wait_anew():
    server, a, b = Server(), Election("a", TERMS), Election("b", TERMS)
    attempt(a, server, 100)
    attempt(b, server, 100)
    attempt(a, server, 110)
    assert not attempt(b, server, 112)
    assert not attempt(b, server, 127)
    assert attempt(b, server, 127.1)


def test_a_released_lease_is_taken_at_once():
    server, a, b = Server(), Election("a", TERMS), Election("b", TERMS)
    attempt(a, server, 100)
    attempt(b, server, 100)
    assert server.lease is not None
    released = server.lease["spec"] | {"holderIdentity": "", "leaseDurationSeconds": 1}
    server.put(server.lease | {"spec": released})
    assert attempt(b, server, 101)


@pytest.mark.parametrize(
    ("since", "seconds"),
    [(0.0, 14.0), (5.0, 9.0), (9.9, 4.1), (10.0, 0.0), (14.0, 0.0), (1000.0, 0.0)],
)
def test_writes_stop_at_the_renew_deadline_and_end_before_the_lease(since: float, seconds: float):
    one = Election("a", TERMS)
    one.renewed(100)
    assert one.write_seconds(100 + since) == pytest.approx(seconds)


def test_who_never_led_or_has_lost_may_not_write():
    server, a, b = Server(), Election("a", TERMS), Election("b", TERMS)
    assert a.write_seconds(100) == 0
    attempt(a, server, 100)
    attempt(b, server, 100)
    assert attempt(b, server, 116)
    a.saw(server.lease, 116)
    assert a.write_seconds(101) == 0


def test_the_holder_keeps_the_time_of_its_acquisition():
    server, a = Server(), Election("a", TERMS)
    attempt(a, server, 100)
    assert server.lease is not None
    acquired = server.lease["spec"]["acquireTime"]
    attempt(a, server, 102)
    assert server.lease["spec"]["acquireTime"] == acquired
    assert server.lease["spec"]["renewTime"] != acquired
    assert server.lease["spec"]["leaseTransitions"] == 0


@pytest.mark.parametrize("terms", [(15, 15, 2), (15, 14.5, 2), (15, 10, 10), (15, 10, 0)])
def test_times_that_do_not_fit_are_refused(terms: tuple[float, float, float]):
    with pytest.raises(ValueError, match="lease times do not fit"):
        Terms(*terms)


rounds = st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 12), st.floats(0, 3)), max_size=60)


@given(rounds)
def test_never_two_who_may_write(rounds: list[tuple[str, float, float]]):
    """Candidates act at any times, frozen for as long as they like; an answer may take a while to come."""
    server = Server()
    candidates = {name: Election(name, TERMS) for name in "abc"}
    now = 0.0
    for name, pause, slow in rounds:
        now += pause
        one = candidates[name]
        one.saw(server.lease, now)
        if one.may_take(now):
            sent = now
            answer = server.put(one.manifest(server.lease, "ns", "lease", now))
            now += slow
            if answer is not None:
                one.saw(answer, now)
                one.renewed(sent)
        writers = {n: c.write_seconds(now) for n, c in candidates.items() if c.write_seconds(now) > 0}
        assert len(writers) <= 1
