"""The revision hash: stable across releases, blind to what does not change a worker."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rerank_api.reranker import RerankerSpec
from rerank_api.revision import revision_from_data, revision_hash, revision_of, revision_to_data


def spec(**fields) -> RerankerSpec:
    return msgspec.convert({"model": {"uri": "file:///models/a"}} | fields, RerankerSpec)


def hash_of(**fields) -> str:
    return revision_hash(revision_of(spec(**fields)))


def test_hash_does_not_change_between_releases():
    """A changed hash would roll every fleet on an upgrade of the operator."""
    assert hash_of() == "lc2djz6mkc"
    assert (
        hash_of(runtime={"precision": "float16", "podTemplate": {"spec": {"nodeSelector": {"gpu": "l4"}}}})
        == "zx4s25zn5q"
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"replicas": 5},
        {"suspend": True},
        {"scaling": {"minReplicas": 2}},
        {"requests": {"timeout": "3s", "queueLimit": 5, "maxDocuments": 9, "maxBodyBytes": "1Mi"}},
        {"rollout": {"strategy": "Replace"}},
        {"rollout": {"strategy": "Canary", "steps": [10], "paused": True, "goldenSet": {"configMap": "golden"}}},
        {
            "slo": {"availability": 0.99, "latency": {"threshold": "1s"}, "quality": {"minimum": 0.9}},
            "cost": {"replicaHour": 1.5},
            "observability": {"capture": {"percent": 5}},
        },
        {"runtime": {}},
        {"batching": {"maxDelay": "5ms", "lengthBucket": 16}},
        {"model": {"uri": "file:///models/a", "temperature": 1}},
    ],
)
def test_same_workers_same_hash(fields):
    assert hash_of(**fields) == hash_of()


@pytest.mark.parametrize(
    "fields",
    [
        {"model": {"uri": "file:///models/b"}},
        {"model": {"uri": "file:///models/a", "sha256": {"model.safetensors": "0" * 64}}},
        {"runtime": {"resources": {"limits": {"nvidia.com/gpu": 1}}}},
        {"batching": {"maxDelay": "6ms"}},
        {"requests": {"longDocuments": "reject"}},
        {"requests": {"chunkPooling": "mean"}},
        {"runtime": {"compile": "never"}},
        {"runtime": {"qualityFloor": 0.9}},
    ],
)
def test_other_workers_other_hash(fields):
    assert hash_of(**fields) != hash_of()


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "runtime": st.fixed_dictionaries({}, optional={"precision": st.sampled_from(["auto", "float16"])}),
            "batching": st.fixed_dictionaries({}, optional={"lengthBucket": st.integers(1, 512)}),
        },
    )
)
def test_stored_revision_reads_back(fields):
    revision = revision_of(spec(**fields))
    assert revision_hash(revision_from_data(revision_to_data(revision))) == revision_hash(revision)
