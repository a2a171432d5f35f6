"""A metric of the user's own decides on a canary: a shop counts its orders by the revision that ranked, a real
Prometheus scrapes the shop, and the operator asks it. Nothing else of the canary is worse.

Each test prints its figures as one JSON line.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.canaries import Trial, begin_anew, failed_for_users, met, shop, under_load
from harness.cluster import Cluster
from harness.prometheus import exporter, needs_prometheus, scraping
from harness.release import Release

# The Prometheus listens on this machine only.
pytestmark = [needs_prometheus, pytest.mark.local_only, pytest.mark.timeout(500)]

QUERY = " / ".join(
    f'sum(increase(shop_{what}_total{{revision="{{revision}}"}}[10s]))' for what in ("orders", "searches")
)
ROLLOUT: dict[str, Any] = {
    "strategy": "Canary",
    "steps": [50],
    "stepDuration": "1s",
    "mirrorPercent": 0,
    "limits": {"latencyIncrease": 10, "errorIncrease": 0.5},
    "prometheus": [{"name": "conversion", "query": QUERY, "maxDecrease": 0.3, "interval": "10s"}],
}
"""So that errors and latency, which are none of this test's, are soon shown to be no worse."""
USUAL = 0.5
"""Orders by search."""


class Shop:
    """Every so many of the answered requests lead to an order, depending on the revision that answered."""

    def __init__(self) -> None:
        self.trial: Trial | None = None
        self.stable = ""
        self.others = USUAL

    def tell(self) -> str:
        if self.trial is None:
            return ""
        outcomes = list(self.trial.load.report.outcomes)
        lines = []
        for revision in sorted({one.revision for one in outcomes if one.revision is not None}):
            searches = met(outcomes, revision)
            orders = int(searches * (USUAL if revision == self.stable else self.others))
            lines.append(f'shop_searches_total{{revision="{revision}"}} {searches}')
            lines.append(f'shop_orders_total{{revision="{revision}"}} {orders}')
        return "".join(f"{line}\n" for line in lines)


@pytest.fixture(scope="module")
def counted() -> Shop:
    return Shop()


@pytest.fixture(scope="module")
def told_release(release: Release, counted: Shop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    """The operator knows of a Prometheus that scrapes ``counted``."""
    folder: Path = tmp_path_factory.mktemp("prometheus")
    with exporter(counted.tell) as port, scraping(port, folder) as url:
        release.install(f"operator.prometheusUrl={url}")
        yield release
    release.install()


# First: from the next test on the operator knows of one.
def test_without_a_prometheus_the_canary_is_held_and_told_what_to_set(
    kube: Cluster, release: Release, test_namespace: str, model_uri: str
):
    begin_anew(kube, shop(test_namespace, model_uri, rollout=ROLLOUT))
    with under_load(kube, release, test_namespace) as trial:
        trial.apply(shop(test_namespace, model_uri, rollout=ROLLOUT, batching={"lengthBucket": 32}))
        moment = trial.wait(
            "errors and latency to be passed",
            lambda now: {now.check(name).get("verdict") for name in ("errors", "latency")} == {"pass"},
        )
        trial.more_requests()
        assert trial.now.place.phase == "Traffic"
        assert moment.check("conversion")["verdict"] == "hold"
        assert "operator.prometheusUrl" in moment.check("conversion")["message"]


@pytest.mark.parametrize(("conversion", "phase"), [(0.1, "RolledBack"), (USUAL, "Promoted")], ids=["worse", "equal"])
def test_a_canary_is_judged_by_conversion(
    kube: Cluster,
    told_release: Release,
    counted: Shop,
    test_namespace: str,
    model_uri: str,
    conversion: float,
    phase: str,
):
    counted.stable = begin_anew(kube, shop(test_namespace, model_uri, rollout=ROLLOUT))
    counted.others = conversion
    with under_load(kube, told_release, test_namespace) as trial:
        counted.trial = trial
        trial.apply(shop(test_namespace, model_uri, rollout=ROLLOUT, batching={"lengthBucket": 32}))
        end = trial.decided()
        trial.more_requests()
        counted.trial = None
    print(json.dumps(trial.figures(f"conversion {conversion:g} against {USUAL:g}", end)))
    check = end.check("conversion")
    print(check["message"])
    assert end.rollout["phase"] == phase
    assert failed_for_users(trial.load.report) == []
    if phase == "Promoted":
        assert check["verdict"] == "pass"
        return
    assert end.failed_checks == ["conversion"]
    assert end.status["rejectedRevision"]["reason"] == "BusinessMetricWorse"
    assert "worse in 1" in check["message"]
    assert (end.percent(counted.stable), end.percent(end.rollout["revision"])) == (100, 0)
