"""Traces from nothing back to nothing under open-loop load: no request is lost, no flapping, and zero again in the end.

Paced workers (``harness.paced``) stand in for GPUs, as replicas that share two cores add no capacity; all else is real.
The longer runs with figures: ``tests/bench/scaling_cluster.py``.
"""

import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from harness import traces
from harness.cluster import Cluster, wait_for
from harness.paced import Profile
from harness.release import Release, is_ready
from harness.scenario import elastic, paced_pool, play
from rerank_api import names

pytestmark = pytest.mark.local_only

PROFILE = Profile(start_seconds=4, load_seconds=0.3)
POOL, POOL_SIZE = "shared", 2
TRACES = {
    "crowd": traces.flash_crowd(PROFILE.capacity, seconds=15),
    "jobs": traces.on_off(PROFILE.capacity, on=8, off=15, times=2, load=0.8),
}
DEADLINE = 170.0


@pytest.fixture(scope="module")
def runs(kube: Cluster, release: Release, test_namespace: str) -> Iterator[dict[str, Future[dict[str, Any]]]]:
    """All at once, each on a Reranker of its own, to be done in time: the crowd beside a pool, the jobs without one."""
    kube.apply(
        paced_pool(POOL, test_namespace, PROFILE, POOL_SIZE),
        elastic("crowd", test_namespace, PROFILE, POOL, idleTimeout="3s"),
        elastic("jobs", test_namespace, PROFILE, idleTimeout="3s"),
    )

    def pool_ready() -> bool:
        pods = kube.items("pods", "-n", test_namespace, "-l", f"{names.LABEL_WARM_POOL}={POOL}")
        return sum(map(is_ready, pods)) >= POOL_SIZE

    wait_for("the pool", pool_ready, timeout=90)
    with ThreadPoolExecutor(len(TRACES)) as threads:
        yield {
            name: threads.submit(play, kube, release, test_namespace, name, trace, DEADLINE)
            for name, trace in TRACES.items()
        }


@pytest.mark.parametrize("name", list(TRACES))
@pytest.mark.timeout(600)
def test_nothing_is_lost_and_it_returns_to_zero(runs: dict[str, Future[dict[str, Any]]], name: str):
    run = runs[name].result()  # returns only once the fleet has come to nothing
    print(json.dumps({"name": name, **run}))
    assert run["clients"]["requests"] == len(TRACES[name].calls)
    assert run["clients"]["lost"] == 0, run["clients"]["failures"]
    # Up once for each time that the demand rose, and never up and down in between.
    assert run["fleet"]["own_rises"] <= run["trace"]["rises"]
