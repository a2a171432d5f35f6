from typing import Any

import pytest
from rerank_operator.scaling.policy import Policy, policy_from_manifest
from rerank_operator.scaling.schedules import Schedule


def manifest(scaling: Any = None, slo: Any = None) -> dict[str, Any]:
    spec = {"model": {"uri": "file:///m"}, "scaling": scaling, "slo": slo}
    return {"kind": "Reranker", "spec": {field: value for field, value in spec.items() if value is not None}}


def test_defaults():
    assert policy_from_manifest(manifest()) == Policy()
    assert policy_from_manifest({"spec": {}}) == Policy()


def test_every_field():
    read = policy_from_manifest(
        manifest(
            {
                "minReplicas": 1,
                "maxReplicas": 20,
                "targetQueueDepth": 2.5,
                "targetQueueTime": "10ms",
                "idleTimeout": "1m30s",
                "schedules": [
                    {
                        "name": "evening",
                        "timezone": "Europe/Berlin",
                        "start": "30 17 * * *",
                        "end": "0 22 * * *",
                        "minReplicas": 4,
                    },
                    {"name": "noon", "start": "0 12 * * *", "end": "0 13 * * *", "minReplicas": 2},
                ],
                "warmPool": "shared",
                "mode": "recommend",
            },
            {"latency": {"quantile": 0.99, "threshold": "200ms"}, "availability": 0.999, "queueTime": "20ms"},
        )
    )
    assert read == Policy(
        min_replicas=1,
        max_replicas=20,
        target_queue_depth=2.5,
        target_queue_time=0.010,
        idle_timeout=90.0,
        schedules=(
            Schedule("evening", "30 17 * * *", "0 22 * * *", 4, "Europe/Berlin"),
            Schedule("noon", "0 12 * * *", "0 13 * * *", 2, "UTC"),
        ),
        warm_pool="shared",
        mode="recommend",
        latency_threshold=0.2,
        latency_quantile=0.99,
    )


NOON = {"name": "noon", "start": "0 12 * * *", "end": "0 13 * * *", "minReplicas": 2}


@pytest.mark.parametrize(
    ("scaling", "slo", "message"),
    [
        ({"minReplica": 1}, None, r"spec.scaling.minReplica: there is no such field: write one of idleTimeout, max"),
        ({"minReplicas": -1}, None, r"spec.scaling.minReplicas: -1 must be a whole number from 0 to 1000"),
        ({"minReplicas": True}, None, r"spec.scaling.minReplicas: True must be a whole number"),
        ({"minReplicas": "2"}, None, r"spec.scaling.minReplicas: '2' must be a whole number"),
        ({"maxReplicas": 0}, None, r"spec.scaling.maxReplicas: 0 must be a whole number from 1 to 1000"),
        ({"maxReplicas": 1001}, None, r"spec.scaling.maxReplicas: 1001 must be a whole number from 1 to 1000"),
        ({"minReplicas": 9}, None, r"spec.scaling.minReplicas: 9 is more than maxReplicas \(8\): lower it or raise"),
        ({"targetQueueDepth": 0}, None, r"spec.scaling.targetQueueDepth: must be more than 0"),
        ({"targetQueueDepth": float("nan")}, None, r"spec.scaling.targetQueueDepth: nan must be a number"),
        ({"targetQueueTime": "20"}, None, r"spec.scaling.targetQueueTime: '20' is not a duration: write numbers with"),
        ({"targetQueueTime": "0s"}, None, r"spec.scaling.targetQueueTime: must be more than 0s"),
        ({"targetQueueTime": "1s"}, None, r"spec.scaling.targetQueueTime: 1s of waiting leave no time"),
        ({"idleTimeout": 300}, None, r"spec.scaling.idleTimeout: '300' is not a duration"),
        ({"warmPool": ""}, None, r"spec.scaling.warmPool: '' must be a text"),
        ({"mode": "manual"}, None, r"spec.scaling.mode: 'manual' must be one of auto, recommend"),
        ({"schedules": {}}, None, r"spec.scaling.schedules: \{\} is not a list"),
        ({"schedules": ["noon"]}, None, r"spec.scaling.schedules\[0\]: 'noon' is not a mapping"),
        ({"schedules": [NOON | {"minReplicas": 9}]}, None, r"spec.scaling.schedules: 'noon' asks for 9 replicas, more"),
        ({"schedules": [NOON, NOON]}, None, r"spec.scaling.schedules\[1\].name: 'noon' stands twice"),
        ({"schedules": [{"name": "noon"}]}, None, r"spec.scaling.schedules\[0\].start: is missing"),
        ({"schedules": [NOON | {"zone": "UTC"}]}, None, r"spec.scaling.schedules\[0\].zone: there is no such field"),
        ({"schedules": [NOON | {"start": "noon"}]}, None, r"spec.scaling.schedules\[0\].start: 'noon' is not a cron"),
        (None, {"latency": {"treshold": "1s"}}, r"spec.slo.latency.treshold: there is no such field: write one of qua"),
        (None, {"latency": {"threshold": "0s"}}, r"spec.slo.latency.threshold: must be more than 0s"),
        (None, {"latency": {"quantile": 95}}, r"spec.slo.latency.quantile: 95 must be a number from 0 to 1"),
        (None, {"latency": {"quantile": 1}}, r"spec.slo.latency.quantile: must lie between 0 and 1"),
        (None, {"latency": []}, r"spec.slo.latency: \[\] is not a mapping"),
        (None, {"uptime": 0.9}, r"spec.slo.uptime: there is no such field"),
        ("all", None, r"spec.scaling: 'all' is not a mapping"),
    ],
)
def test_what_is_wrong_is_named(scaling: Any, slo: Any, message: str):
    with pytest.raises(ValueError, match=message):
        policy_from_manifest(manifest(scaling, slo))
