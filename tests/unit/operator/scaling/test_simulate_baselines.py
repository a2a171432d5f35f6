"""The published algorithms, with numbers worked by hand."""

import math

import pytest
from rerank_operator.scaling.policy import Policy
from rerank_operator.scaling.simulate.keda_hpa import KedaHpa
from rerank_operator.scaling.simulate.kpa import Kpa
from unit.operator.scaling.simulated import seen

POLICY = Policy(max_replicas=100)


def nothing(_: float) -> int:
    return 0


def steady(controller: Kpa, concurrency: float, seconds: int, start: float = 0.0, **fleet: int) -> tuple[int, float]:
    """Asks every two seconds while ``concurrency`` holds; returns the last count and the moment."""
    now, replicas, spent = start, 0, 1000.0 * start
    while now <= start + seconds:
        order = controller.order(seen(math.ceil(concurrency), request_seconds=spent, **fleet), now)
        replicas, now, spent = order.replicas, now + 2, spent + 2 * concurrency
    return replicas, now - 2


class TestKpa:
    @pytest.mark.parametrize(
        ("target", "concurrency", "ready", "expected"),
        [
            (10, 35.0, 5, 5),  # aims at 7 of 10: 35 / 7
            (10, 36.0, 5, 6),
            (10, 7.0, 1, 1),
            (100, 140.0, 2, 2),  # the default: 70 at once
            (1, 3.0, 3, 3),  # never aims at less than 1
            (10, 7.0, 8, 4),  # at most halved at once
            (10, 7.0, 9, 4),
        ],
    )
    def test_steady_concurrency(self, target: float, concurrency: float, ready: int, expected: int):
        assert steady(Kpa(POLICY, nothing, target), concurrency, 60, wanted=ready)[0] == expected

    def test_panics_at_twice_the_ready_pods_and_then_only_grows(self):
        """Target 7. The panic window (6 s) sees 28 at once: 4 pods for 2 ready ones, while the stable one sees 7.3."""
        kpa = Kpa(POLICY, nothing, 10)
        _, now = steady(kpa, 5.0, 60, wanted=2)
        spent = 60 * 5.0
        for _ in range(3):
            now, spent = now + 2, spent + 2 * 28
            order = kpa.order(seen(28, wanted=2, request_seconds=spent), now)
        assert order.replicas == 4
        for _ in range(30):
            now, spent = now + 2, spent + 2 * 1
            order = kpa.order(seen(1, wanted=4, request_seconds=spent), now)
            assert order.replicas == 4, "nothing shrinks in a panic"
        for _ in range(3):
            now, spent = now + 2, spent + 2 * 1
            order = kpa.order(seen(1, wanted=4, request_seconds=spent), now)
        assert order.replicas == 2, "over after a stable window without it: 1 / 7, but at most halved"

    def test_wakes_with_the_first_request(self):
        kpa = Kpa(POLICY, nothing, 10)
        assert kpa.order(seen(0, wanted=0), 0.0).again == math.inf
        assert kpa.order(seen(1, wanted=0), 500.25).replicas == 1
        order = kpa.order(seen(12, wanted=1, ready=0, request_seconds=13.0), 502.0)
        assert (order.replicas, order.again) == (2, 2.0), "7.4 at once since the first request"

    def test_a_queue_behind_a_cold_start_counts(self):
        """None ready counts as one: 70 waiting at a target of 7 are a panic for ten pods."""
        kpa = Kpa(POLICY, nothing, 10)
        kpa.order(seen(70, wanted=0), 100.0)
        assert kpa.order(seen(70, wanted=1, ready=0, request_seconds=140.0), 102.0).replicas == 10

    def test_to_zero_when_the_stable_window_is_empty(self):
        """The activator is in the way long enough (the burst capacity of 200 keeps it there), so no grace is left."""
        kpa = Kpa(POLICY, nothing, 10)
        _, now = steady(kpa, 1.0, 100, wanted=1)
        counts = []
        for _ in range(40):
            now += 2
            counts.append(kpa.order(seen(0, wanted=1, request_seconds=102.0, last_ended=100.0), now).replicas)
        assert counts[:30].count(1) == 30
        assert counts[-1] == 0

    def test_the_grace_counts_from_when_the_activator_is_in_the_way(self):
        """Target 400 for one pod: more than the burst capacity, so the activator is not in the way before."""
        kpa = Kpa(POLICY, nothing, 400)
        steady(kpa, 0.0, 60, wanted=1)
        assert kpa.order(seen(0, wanted=1), 88.0).replicas == 1
        assert kpa.order(seen(0, wanted=1), 90.0).replicas == 0

    def test_keeps_within_the_bounds(self):
        kpa = Kpa(Policy(max_replicas=3), lambda _: 2, 10)
        assert steady(kpa, 700.0, 60, wanted=2)[0] == 3
        assert steady(Kpa(Policy(max_replicas=3), lambda _: 2, 10), 0.0, 60, wanted=2)[0] == 2


class TestHpa:
    """Asked at the syncs, every 15 s."""

    @pytest.mark.parametrize(
        ("target", "concurrency", "current", "expected"),
        [
            (100, 400, 2, 4),  # the value is twice the target
            (100, 420, 4, 4),  # within the tolerance of 10 %
            (100, 441, 4, 5),
            (75, 4500, 50, 60),  # 50 replicas at 90 of 75
            (1, 100, 1, 5),  # four pods more
            (1, 100, 10, 20),  # or twice as many
            (1, 1000, 80, 100),  # maxReplicas
        ],
    )
    def test_up(self, target: float, concurrency: int, current: int, expected: int):
        hpa = KedaHpa(POLICY, nothing, target)
        hpa.order(seen(concurrency, wanted=current), 14.0)
        assert hpa.order(seen(concurrency, wanted=current), 15.0).replicas == expected

    def test_down_after_the_highest_of_five_minutes(self):
        hpa = KedaHpa(POLICY, nothing, 10)
        hpa.order(seen(80, wanted=8), 14.0)
        counts = {now: hpa.order(seen(80 if now < 60 else 20, wanted=8), now).replicas for now in range(15, 375, 15)}
        assert {now: count for now, count in counts.items() if count != 8} == {345: 2, 360: 2}

    def test_never_below_one(self):
        hpa = KedaHpa(POLICY, nothing, 10)
        for now in range(0, 330, 15):
            order = hpa.order(seen(0, wanted=2, last_ended=100.0), now)
        assert order.replicas == 1


class TestKeda:
    def test_wakes_when_the_queue_is_next_read(self):
        keda = KedaHpa(POLICY, nothing, 10)
        assert keda.order(seen(0, wanted=0), 0.0).again == math.inf
        order = keda.order(seen(3, wanted=0), 100.2)
        assert (order.replicas, order.again) == (0, pytest.approx(0.3))
        order = keda.order(seen(9, wanted=0), 100.5)
        assert (order.replicas, order.again) == (1, pytest.approx(4.5)), "one, whatever waits; the HPA syncs at 105"

    def test_to_zero_five_minutes_after_the_last_request_from_any_count(self):
        keda = KedaHpa(POLICY, nothing, 10)
        keda.order(seen(30, wanted=3), 14.0)
        assert keda.order(seen(0, wanted=3, last_ended=21.0), 30.0).replicas == 3
        order = keda.order(seen(0, wanted=3, last_ended=21.0), 315.0)
        assert order.replicas == 3
        assert order.again == pytest.approx(6.0)
        assert keda.order(seen(0, wanted=3, last_ended=21.0), 321.0).replicas == 0

    def test_a_floor_holds(self):
        keda = KedaHpa(POLICY, lambda _: 2, 10)
        assert keda.order(seen(0, wanted=0), 0.0).replicas == 2
        keda.order(seen(0, wanted=3), 14.0)
        for now in range(15, 1000, 15):
            order = keda.order(seen(0, wanted=3), now)
        assert order.replicas == 2
