"""What a warm pod would load for a Reranker, and what it must not."""

from typing import Any

import pytest
from rerank_api.reranker import parse_reranker
from rerank_api.revision import revision_of, revision_to_data
from rerank_operator.controller.kinds import CONTROLLER_REVISIONS, RERANKERS
from rerank_operator.controller.store import Store
from rerank_operator.manifests.common import labels
from rerank_operator.warm.members import Member, Reader, lacking
from rerank_operator.warm.observe import Wish
from unit.operator.warm.pool import KEY, NAMESPACE, hash_of, key_of, reranker, spec


def only(store: Store, **of: Any) -> Member:
    (found,) = Reader().members(store, KEY, spec(**of), ())
    return found


def stored(*bodies: dict[str, Any]) -> Store:
    store = Store()
    for body in bodies:
        store.seen(RERANKERS, False, body)
    return store


def test_the_rerankers_that_name_the_pool():
    going = reranker("going")
    going["metadata"]["deletionTimestamp"] = "2027-01-15T07:00:00Z"
    store = stored(reranker("b"), reranker("a"), reranker("other", scaling={"warmPool": "another"}), going)
    wish = Wish((NAMESPACE, "a"), 2, 5.0)
    found = Reader().members(store, KEY, spec(), [wish, Wish(("elsewhere", "b"), 1, 1.0)])
    assert [(one.name, one.wish) for one in found] == [("a", wish), ("b", None)]


def test_what_the_spec_asks_for_while_nothing_has_served_yet():
    body = reranker("a", batching={"maxBatchTokens": 512})
    served = only(stored(body)).served
    assert served is not None
    assert (served.key, served.revision) == (key_of(body), hash_of(body))
    assert (served.config.model.path, served.config.max_batch_tokens) == ("/models/a", 512)
    assert served.config.reranker == "a"


def test_else_what_serves_as_it_was_kept():
    old, new = reranker("a"), reranker("a", 2, model={"uri": "file:///models/new"})
    new["status"] = {"currentRevision": hash_of(old)}
    store = stored(new)
    kept = {
        "metadata": {
            "name": f"a-{hash_of(old)}",
            "namespace": NAMESPACE,
            "uid": "u",
            "resourceVersion": "3",
            "labels": labels("a", hash_of(old)),
        },
        "revision": 1,
        "data": revision_to_data(revision_of(parse_reranker(old).spec)),
    }
    store.seen(CONTROLLER_REVISIONS, False, kept)
    served = only(store).served
    assert served is not None
    assert (served.revision, served.config.model.path) == (hash_of(old), "/models/a")
    kept["data"] = {"model": 5}
    kept["metadata"] |= {"resourceVersion": "4"}
    store.seen(CONTROLLER_REVISIONS, False, kept)
    found = only(store)
    assert (found.served, found.problem) == (None, "the revision that serves cannot be read")
    assert found.unreadable


def test_the_pools_precision_and_device_are_for_those_who_leave_them_open():
    body = reranker("a", runtime={"precision": "int8"})
    of = {"precision": "bfloat16", "device": "cpu"}
    served = only(stored(body), **of).served
    assert served is not None
    assert (served.config.precision, served.config.device) == ("int8", "cpu")
    served = only(stored(reranker("a")), **of).served
    assert served is not None
    assert served.config.precision == "bfloat16"


def test_a_suspended_one_is_not_served_and_nothing_is_wrong():
    found = only(stored(reranker("a", suspend=True)))
    assert (found.served, found.problem) == (None, None)


def test_one_that_cannot_be_read_is_told():
    found = only(stored(reranker("a", model={"uri": 5})))
    assert found.served is None
    assert "$.spec.model.uri" in (found.problem or "")
    assert found.unreadable
    assert not only(stored(reranker("a"))).unreadable


def test_the_last_request_is_read_from_the_status():
    scaling = {"mode": "Auto", "desiredReplicas": 0, "lastRequestTime": "2027-01-15T08:00:00Z"}
    assert only(stored(reranker("a", status={"scaling": scaling}))).last_request == 1_800_000_000.0
    assert only(stored(reranker("a", status={"scaling": scaling | {"lastRequestTime": "soon"}}))).last_request == 0.0


@pytest.mark.parametrize(
    ("runtime", "offered", "lacks"),
    [
        ({"resources": {"limits": {"nvidia.com/gpu": 1}}}, {"limits": {"nvidia.com/gpu": "1"}}, None),
        ({"resources": {"limits": {"nvidia.com/gpu": 1}}}, {}, "nvidia.com/gpu: 1, and the pods have none"),
        ({"resources": {"limits": {"nvidia.com/gpu": 2}}}, {"limits": {"nvidia.com/gpu": 1}}, "offer 1"),
        (
            {"resources": {"limits": {"nvidia.com/mig-1g.10gb": 1}}},
            {"limits": {"nvidia.com/gpu": 1}},
            "nvidia.com/mig-1g.10gb",
        ),
        ({"resources": {"limits": {"memory": "64Gi"}, "requests": {"cpu": "8"}}}, {}, None),
        ({"resources": {"limits": {"nvidia.com/gpu": 0}}}, {}, None),
    ],
)
def test_devices_must_be_offered_and_the_rest_is_the_workers_to_judge(
    runtime: dict[str, Any], offered: dict[str, Any], lacks: str | None
):
    revision = revision_of(parse_reranker(reranker("a", runtime=runtime)).spec)
    found = lacking(spec(resources=offered), revision)
    assert (found is None) if lacks is None else lacks in (found or "")


def test_a_volume_and_a_gpu_that_a_pool_for_cpus_has_not():
    on_volume = revision_of(parse_reranker(reranker("a", model={"uri": "pvc://claim/folder"})).spec)
    assert "use hf:// or file://" in (lacking(spec(), on_volume) or "")
    cuda = revision_of(parse_reranker(reranker("a", runtime={"device": "cuda"})).spec)
    assert "spec.device is cpu" in (lacking(spec(device="cpu"), cuda) or "")
    assert lacking(spec(), cuda) is None


def test_a_version_is_read_once_and_every_new_one_again():
    reader, store = Reader(), stored(reranker("a"))
    (first,) = reader.members(store, KEY, spec(), ())
    (again,) = reader.members(store, KEY, spec(), ())
    assert again is first
    (with_wish,) = reader.members(store, KEY, spec(), [Wish((NAMESPACE, "a"), 1, 2.0)])
    assert (with_wish.wish, with_wish.served) == (Wish((NAMESPACE, "a"), 1, 2.0), first.served)
    (other,) = reader.members(store, KEY, spec(precision="bfloat16"), ())
    assert other.served is not None
    assert other.served.config.precision == "bfloat16"
    store.seen(RERANKERS, False, reranker("a", 2, suspend=True))
    (suspended,) = reader.members(store, KEY, spec(), ())
    assert suspended.served is None
