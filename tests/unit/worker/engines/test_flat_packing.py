"""Packing, groups and graph buckets: every token of every pair exactly once, whatever the lengths."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rerank_worker.engine import Pair
from rerank_worker.engine.process import PRIMITIVES, SPINS, keep_few_primitives, keep_freed_memory, wait_shortly
from rerank_worker.engine.torch_flat import graphs, packing

lengths_of = st.lists(st.integers(1, 600), min_size=1, max_size=60)


def make_pairs(lengths: list[int]) -> list[Pair]:
    """Every token id is unique, so that a misplaced one shows."""
    starts = np.cumsum([0, *lengths])
    return [Pair(list(range(start, start + n)), [n % 2] * n) for start, n in zip(starts, lengths, strict=False)]


@given(lengths_of)
def test_pack(lengths: list[int]) -> None:
    pairs = make_pairs(lengths)
    packed = packing.pack(pairs)
    assert sorted(packed.order.tolist()) == list(range(len(pairs)))
    assert packed.lengths.tolist() == sorted(lengths)
    for place, number in enumerate(packed.order):
        begin, end = packed.offsets[place], packed.offsets[place + 1]
        assert packed.ids[begin:end].tolist() == pairs[number].ids
        assert packed.types[begin:end].tolist() == pairs[number].types
        assert packed.positions[begin:end].tolist() == list(range(len(pairs[number])))


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=8))
def test_positions_skip_padding_within_each_pair(rows: list[list[int]]) -> None:
    packed = packing.pack([Pair(row, [0] * len(row)) for row in rows])
    found = packing.skipping(packed, 1)
    for place, number in enumerate(packed.order):
        count, expected = 0, []
        for token in rows[number]:
            expected.append(-1 if token == 1 else count)
            count += token != 1
        assert found[packed.offsets[place] : packed.offsets[place + 1]].tolist() == expected


@given(lengths_of, st.integers(1, 100_000), st.floats(0, 0.5), st.integers(0, 600))
def test_groups_hold_every_token_once(lengths: list[int], cells: int, waste: float, longest: int) -> None:
    packed = packing.pack(make_pairs(lengths))
    found = packing.groups(packed.offsets, cells, waste, longest)
    assert [group.begin for group in found] == [0, *(group.end for group in found[:-1])]
    assert found[-1].end == len(packed.ids)
    assert np.concatenate([group.lengths for group in found]).tolist() == packed.lengths.tolist()
    assert [group.first for group in found] == np.cumsum([0, *(group.count for group in found[:-1])]).tolist()
    for group in found:
        assert group.width == group.lengths.max()
        if group.count > 1:
            assert group.width <= longest
            assert group.count * group.width**2 <= cells
            assert group.count * group.width <= (group.end - group.begin) * (1 + waste)
        into, back, filled = packing.slots(group)
        assert into[back].tolist() == list(range(group.end - group.begin))
        assert filled.sum(1).tolist() == group.lengths.tolist()
        assert filled.ravel()[back].all()
        # A row holds tokens of its own pair only.
        owner = np.repeat(np.arange(group.count), group.lengths)
        assert (owner[into.reshape(filled.shape)] == np.arange(group.count)[:, None])[filled].all()


@settings(max_examples=200)
@given(lengths_of)
def test_graph_buckets(lengths: list[int]) -> None:
    packed = packing.pack(make_pairs(lengths))
    bucket = graphs.bucket(packed)
    if bucket is None:
        assert len(packed.ids) > graphs.MAX_TOKENS - graphs.TOKEN_STEP or len(lengths) > graphs.PAIRS[-1] // 2
        return
    filled = graphs.filled(packed, bucket)
    assert len(filled.ids) == len(filled.types) == len(filled.positions) == filled.offsets[-1] == bucket.tokens
    assert len(filled.offsets) == bucket.pairs + 1
    assert filled.lengths.min() >= 0
    assert filled.lengths.max() <= bucket.longest
    assert not filled.positions[len(packed.ids) :].any()
    assert packing.skipping(filled, 3)[len(packed.ids) :].max(initial=0) == 0
    # The real pairs are as they were, and the only ones that are scored.
    assert filled.order.tolist() == packed.order.tolist()
    assert filled.offsets[: len(lengths) + 1].tolist() == packed.offsets.tolist()
    assert filled.ids[: len(packed.ids)].tolist() == packed.ids.tolist()
    assert filled.positions[: len(packed.ids)].tolist() == packed.positions.tolist()


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([10], graphs.Bucket(256, 8, 64)),
        ([64] * 4, graphs.Bucket(256, 8, 64)),
        ([64] * 16, graphs.Bucket(1024, 16, 64)),
        ([110] * 50, graphs.Bucket(5632, 64, 128)),
        ([512] * 17, None),
        ([9_000], None),
        ([1] * 300, None),
    ],
)
def test_graph_bucket_of(lengths: list[int], expected: graphs.Bucket | None) -> None:
    assert graphs.bucket(packing.pack(make_pairs(lengths))) == expected


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ({}, {"GOMP_SPINCOUNT": str(SPINS)}),
        ({"GOMP_SPINCOUNT": "5"}, {"GOMP_SPINCOUNT": "5"}),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, {"OMP_WAIT_POLICY": "PASSIVE"}),
    ],
)
def test_what_the_user_set_stays(given_: dict[str, str], expected: dict[str, str]) -> None:
    environment = dict(given_)
    wait_shortly(environment)
    assert environment == expected


def test_few_primitives_are_kept_unless_the_user_says_how_many() -> None:
    environment = {"LRU_CACHE_CAPACITY": "5"}
    keep_few_primitives(environment)
    assert environment == {"LRU_CACHE_CAPACITY": "5", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": str(PRIMITIVES)}


def test_malloc_is_told() -> None:
    import platform

    assert keep_freed_memory() or platform.libc_ver()[0] != "glibc"
