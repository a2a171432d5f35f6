"""Choice of Reranker, revision and endpoint, and the reduction of objects that it rests on."""

from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rerank_api import names
from rerank_gateway.cluster.state import Endpoint, Policy, Route, build_table, parse_pod, parse_policy
from rerank_gateway.routing import RELEASE_TOKENS, Limits, Load, Pool, draw_of, least_outstanding, split


def _route(*revisions: str, traffic: tuple[tuple[str, int], ...] = ()) -> Route:
    endpoints = [Endpoint(f"{revision}-{i}", "ns", "rr", revision, "10.0.0.1") for i, revision in enumerate(revisions)]
    return build_table([Policy("ns", "rr", traffic=traffic)], endpoints).routes["ns", "rr"]


@given(st.lists(st.integers(0, 100), min_size=1, max_size=5))
def test_the_split_follows_the_percents(percents: list[int]) -> None:
    revisions = [f"r{i}" for i in range(len(percents))]
    pools = split(_route(*revisions, traffic=tuple(zip(revisions, percents, strict=True))), {}, now=0)
    draws = 10_000
    counts = Counter(pool.revision for i in range(draws) if (pool := pools.pick(i / draws)) is not None)
    total = sum(percents)
    assert counts.total() == (draws if total else 0)
    for revision, percent in zip(revisions, percents, strict=True):
        assert abs(counts[revision] - (draws * percent / total if total else 0)) <= 1


@given(st.text(max_size=20))
def test_a_key_has_one_draw(key: str) -> None:
    assert 0 <= draw_of(_route("a"), key) == draw_of(_route("b", traffic=(("b", 100),)), key) < 1


def test_keys_are_spread_evenly_and_otherwise_at_each_reranker() -> None:
    keys = [f"user-{i}" for i in range(10_000)]
    draws = [draw_of(_route("a"), key) for key in keys]
    counts = Counter(int(draw * 20) for draw in draws)
    assert all(400 < counts[part] < 600 for part in range(20))
    elsewhere = [draw_of(Route(Policy("ns", "other"), ()), key) for key in keys]
    both = sum(here < 0.5 and there < 0.5 for here, there in zip(draws, elsewhere, strict=True))
    assert 2300 < both < 2700


@pytest.mark.parametrize("canary", ["a", "z"], ids=["sorted first", "sorted last"])
def test_who_has_met_the_canary_meets_it_again_as_its_share_grows(canary: str) -> None:
    met: set[float] = set()
    for percent in (1, 5, 25, 50):
        traffic = tuple(sorted(((canary, percent), ("m", 100 - percent))))
        pools = split(_route("m", canary, traffic=traffic), {}, now=0)
        now = {
            draw for i in range(1000) if (pool := pools.pick(draw := i / 1000)) is not None and pool.revision == canary
        }
        assert len(now) == pytest.approx(10 * percent, abs=1)
        assert met <= now
        met = now


@pytest.mark.parametrize(
    ("ready", "traffic", "expected"),
    [
        pytest.param(["a", "b"], (), {None}, id="no traffic entry: any worker"),
        pytest.param(["a", "b"], (("c", 100),), {None}, id="no worker of a revision with traffic: any worker"),
        pytest.param(["a", "b"], (("a", 100), ("b", 0)), {"a"}, id="zero percent gets nothing"),
        pytest.param(["b"], (("a", 100), ("b", 0)), set(), id="even where nothing else is left"),
        pytest.param(["b", "c"], (("a", 100), ("b", 0)), {None}, id="then only who is not shut out"),
        pytest.param(["b", "c"], (("a", 90), ("b", 10)), {"b"}, id="who is not ready leaves its share"),
        pytest.param([], (("a", 100),), set(), id="no worker"),
    ],
)
def test_revisions_without_workers(ready: list[str], traffic: Any, expected: set[str | None]) -> None:
    pools = split(_route(*ready, traffic=traffic), {}, now=0)
    assert {pool.revision for i in range(100) if (pool := pools.pick(i / 100)) is not None} == expected


def test_workers_of_a_silent_node_serve_only_where_no_other_is_left() -> None:
    """After an outage of the API server the node controller takes Ready from every Pod, though all still serve."""
    ready, silent = (Endpoint(uid, "ns", "rr", uid, "10.0.0.1", ready=uid == "ready") for uid in ("ready", "silent"))
    policy = Policy("ns", "rr", traffic=(("ready", 50), ("silent", 50)))

    def revisions(route: Route, loads: dict[str, Load]) -> list[str | None]:
        return [pool.revision for pool in split(route, loads, now=0).pools]

    assert revisions(Route(policy, (ready, silent)), {}) == ["ready"]
    assert revisions(Route(policy, (ready, silent)), {"ready": Load(retry_at=1, on_trial=True)}) == ["silent"]
    assert revisions(Route(policy, (ready, silent)), {"ready": Load(retry_at=1)}) == ["ready"], "only busy"
    assert revisions(Route(policy, (silent,)), {}) == ["silent"]


@pytest.mark.parametrize(
    ("load", "now", "expected"),
    [
        pytest.param(Load(retry_at=5.0), 4.9, [("a", 0), ("b", 1)], id="busy: its share waits for it"),
        pytest.param(Load(retry_at=5.0, on_trial=True), 4.9, [("b", 1)], id="broken: its share goes to the others"),
        pytest.param(Load(retry_at=5.0), 5.0, [("a", 1), ("b", 1)], id="no longer busy"),
        pytest.param(Load(retry_at=5.0, on_trial=True), 5.0, [("a", 1), ("b", 1)], id="tried again"),
    ],
)
def test_an_endpoint_is_left_alone_until_its_time(load: Load, now: float, expected: list[tuple[str, int]]) -> None:
    pools = split(_route("a", "b", traffic=(("a", 50), ("b", 50))), {"a-0": load}, now)
    assert [(pool.revision, len(pool.endpoints)) for pool in pools.pools] == expected


LIMITS = Limits(requests=4, tokens=100)


@pytest.mark.parametrize(
    ("loads", "avoid", "expected"),
    [
        pytest.param({}, (), "a-0", id="all idle: the first"),
        pytest.param({"a-0": Load(1, 10), "a-1": Load(1, 9)}, (), "a-1", id="fewest tokens"),
        pytest.param({"a-0": Load(2, 10), "a-1": Load(1, 10)}, (), "a-1", id="then fewest requests"),
        pytest.param({"a-0": Load(last_used=2), "a-1": Load(last_used=1)}, (), "a-1", id="then longest unused"),
        pytest.param({"a-0": Load(4, 4), "a-1": Load(1, 50)}, (), "a-1", id="request limit"),
        pytest.param({"a-0": Load(2, 20, 100), "a-1": Load(3, 99, 99)}, (), "a-1", id="token limit"),
        pytest.param({"a-0": Load(2, 20, 100), "a-1": Load(4, 99)}, (), None, id="all full"),
        pytest.param({"a-1": Load(3, 99)}, ("a-0",), "a-1", id="where it failed comes last"),
        pytest.param({"a-1": Load(4, 99)}, ("a-0",), "a-0", id="but is better than none"),
        pytest.param({"a-0": Load(1, 1, on_trial=True), "a-1": Load(3, 9)}, (), "a-1", id="one request on trial"),
        pytest.param({"a-0": Load(0, 0, on_trial=True), "a-1": Load(3, 9)}, (), "a-0", id="the trial itself"),
    ],
)
def test_least_outstanding(loads: dict[str, Load], avoid: tuple[str, ...], expected: str | None) -> None:
    chosen = least_outstanding(Pool("a", _route("a", "a").endpoints), loads, LIMITS, avoid)
    assert (chosen.uid if chosen else None) == expected


@pytest.mark.parametrize(
    ("capacity", "urgent", "expected"),
    [
        pytest.param(None, False, 65_536, id="unknown: the flag"),
        pytest.param(100_000.0, False, 25_000, id="a quarter of a second"),
        pytest.param(100_000.0, True, 50_000, id="urgent ones go deeper"),
        pytest.param(1_000.0, False, RELEASE_TOKENS, id="a CPU's two batches"),
        pytest.param(1e6, False, 65_536, id="the flag is the most"),
        pytest.param(1e6, True, 65_536, id="for urgent ones too"),
    ],
)
def test_how_much_is_released(capacity: float | None, urgent: bool, expected: float) -> None:
    assert Limits().tokens_at(capacity, urgent) == expected


@pytest.mark.parametrize(
    ("tokens", "capacity", "expected"),
    [(7, None, 7), (10**6, None, 32_768), (10**6, 100_000.0, 12_500), (10**6, 1.0, RELEASE_TOKENS // 2)],
)
def test_a_large_request_leaves_room_for_another(tokens: int, capacity: float | None, expected: int) -> None:
    assert Limits().held(tokens, capacity) == expected


def test_a_faster_worker_gets_more_and_an_unknown_one_as_much_as_is_usual() -> None:
    pool = Pool("a", _route("a", "a").endpoints)
    loads = {"a-0": Load(2, 20_000, 20_000, capacity=100_000.0), "a-1": Load(2, 5_000, 5_000, capacity=10_000.0)}
    chosen = least_outstanding(pool, loads, Limits())
    assert chosen == pool.endpoints[0]
    loads["a-0"] = Load(2, 20_000, 20_000)
    assert least_outstanding(pool, loads, Limits(), typical_capacity=10_000.0) is None
    assert least_outstanding(pool, loads, Limits()) is not None


def _pod(**changes: Any) -> bytes:
    pod = {
        "metadata": {
            "namespace": "ns",
            "name": "rr-1",
            "uid": "u",
            "labels": {names.LABEL_RERANKER: "rr", names.LABEL_REVISION: "abc"},
        },
        "status": {"podIP": "10.0.0.7", "conditions": [{"type": "Ready", "status": "True"}]},
    }
    for part, fields in changes.items():
        pod[part] |= fields
    return msgspec.json.encode(pod)


def test_a_ready_pod_is_an_endpoint() -> None:
    assert parse_pod(_pod()) == Endpoint("u", "ns", "rr", "abc", "10.0.0.7", names.WORKER_PORT)


def test_a_pod_of_a_silent_node_is_an_endpoint_that_is_not_ready() -> None:
    conditions = [{"type": "Ready", "status": "False"}, {"type": "ContainersReady", "status": "True"}]
    endpoint = parse_pod(_pod(status={"conditions": conditions}))
    assert endpoint is not None
    assert not endpoint.ready


@pytest.mark.parametrize(
    "pod",
    [
        pytest.param(_pod(metadata={"deletionTimestamp": "2026-01-01T00:00:00Z"}), id="going"),
        pytest.param(_pod(metadata={"labels": {}}), id="nobody's"),
        pytest.param(_pod(metadata={"labels": {names.LABEL_RERANKER: "rr"}}), id="no revision"),
        pytest.param(_pod(status={"podIP": ""}), id="no address"),
        pytest.param(_pod(status={"conditions": []}), id="no conditions"),
        pytest.param(_pod(status={"conditions": [{"type": "Ready", "status": "False"}]}), id="not ready"),
        pytest.param(b'{"metadata": {"namespace": "ns", "name": "x"}}', id="no status"),
    ],
)
def test_other_pods_are_none(pod: bytes) -> None:
    assert parse_pod(pod) is None


def test_policy_of_a_reranker() -> None:
    body = {
        "metadata": {"namespace": "ns", "name": "rr", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {
            "model": {"uri": "file:///m"},
            "requests": {"maxDocuments": 7, "maxBodyBytes": "64Ki", "timeout": "1m30s", "queueLimit": 3},
            "suspend": True,
        },
        "status": {
            "traffic": [{"revision": "abc", "percent": 100}],
            "scaling": {"mode": "Auto", "desiredReplicas": 1, "capacityTokensPerSecond": 1234.5},
            "conditions": [
                {
                    "type": "Ready",
                    "status": "False",
                    "reason": "WaitingForWorkers",
                    "message": "m",
                    "observedGeneration": 1,
                    "lastTransitionTime": "2026-01-01T00:00:00Z",
                }
            ],
        },
    }
    assert parse_policy(msgspec.json.encode(body)) == Policy(
        namespace="ns",
        name="rr",
        max_documents=7,
        max_body_bytes=65536,
        max_pair_tokens=512,
        timeout=90.0,
        queue_limit=3,
        suspended=True,
        traffic=(("abc", 100),),
        capacity=1234.5,
        not_ready_reason="WaitingForWorkers",
        created=1767225600,
    )
    body["status"]["conditions"][0]["status"] = "True"
    assert parse_policy(msgspec.json.encode(body)).not_ready_reason == ""
    minimal = {"metadata": {"namespace": "ns", "name": "rr"}, "spec": {"model": {"uri": "file:///m"}}}
    assert parse_policy(msgspec.json.encode(minimal)) == Policy("ns", "rr")


def test_table_keeps_namespaces_apart() -> None:
    mine, theirs = Endpoint("1", "a", "rr", "x", "10.0.0.1"), Endpoint("2", "b", "rr", "x", "10.0.0.2")
    orphan = Endpoint("3", "c", "rr", "x", "10.0.0.3")
    table = build_table([Policy("b", "rr"), Policy("a", "rr")], [theirs, mine, orphan])
    assert table.keys_by_name == {"rr": (("a", "rr"), ("b", "rr"))}
    assert {key: route.endpoints for key, route in table.routes.items()} == {
        ("a", "rr"): (mine,),
        ("b", "rr"): (theirs,),
    }
