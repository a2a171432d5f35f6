"""Long documents in chunks: every token is in a chunk, none is too long, and pooling gives one score a document."""

import asyncio
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rerank_worker import chunking
from rerank_worker.tokenization import PairTokenizer

from .conftest import MAX_LENGTH, Serve, make_tokenizer, until

TOKENIZER = PairTokenizer(make_tokenizer(), MAX_LENGTH)
ROOM = MAX_LENGTH - 4
"""Tokens for a document beside a query of one token."""
STEP = ROOM - 7
FULL = chunking.most_tokens(ROOM)


@given(st.integers(0, 20_000), st.integers(1, 600), st.booleans())
def test_spans_hold_every_token_that_is_kept_and_none_is_too_long(tokens: int, room: int, from_end: bool) -> None:
    spans = chunking.spans(tokens, room, from_end)
    assert 1 <= len(spans) <= chunking.MAX_CHUNKS
    assert all(0 <= start <= end <= tokens and end - start <= room for start, end in spans)
    assert all(after[0] <= before[1] < after[1] for before, after in itertools.pairwise(spans))
    kept = min(tokens, chunking.most_tokens(room))
    assert spans[-1][1] - spans[0][0] == kept
    assert (spans[-1][1] == tokens) if from_end else (spans[0][0] == 0)
    assert len(spans) == min(chunking.count(tokens, room), chunking.MAX_CHUNKS)


@pytest.mark.parametrize(
    ("tokens", "room", "from_end", "expected"),
    [
        (0, 100, False, [(0, 0)]),
        (100, 100, False, [(0, 100)]),
        (101, 100, False, [(0, 100), (75, 101)]),
        (101, 100, True, [(0, 26), (1, 101)]),
        (900, 480, False, [(0, 480), (448, 900)]),
        (3, 1, False, [(0, 1), (1, 2), (2, 3)]),
    ],
)
def test_spans(tokens: int, room: int, from_end: bool, expected: list[tuple[int, int]]) -> None:
    assert chunking.spans(tokens, room, from_end) == expected


@pytest.mark.parametrize(("pooling", "expected"), [("max", [1.0, 5.0, -1.0]), ("mean", [1.0, 3.0, -2.0])])
def test_pooling(pooling: chunking.ChunkPooling, expected: list[float]) -> None:
    assert chunking.pool([1.0, 5.0, 1.0, -3.0, -1.0], [1, 2, 2], pooling) == expected


@pytest.mark.parametrize("cut_left", [False, True])
def test_chunks_are_pairs_that_overlap(cut_left: bool) -> None:
    tokenizer = PairTokenizer(make_tokenizer(), MAX_LENGTH, cut_left)
    query = tokenizer.query("q")
    document = tokenizer.documents(["abcdefghijklmnopqrstuvwxyz" * 3], 10_000)[0]
    pairs, limited, cut = tokenizer.chunks(query, document)
    assert (limited, cut) == (False, False)
    assert [pair.ids[:3] for pair in pairs] == [pairs[0].ids[:3]] * len(pairs)
    parts = [pair.ids[3:-1] for pair in pairs]
    assert all(len(pair.ids) <= MAX_LENGTH and len(pair.types) == len(pair.ids) for pair in pairs)
    joined = parts[0]
    for before, part in itertools.pairwise(parts):
        assert before[-7:] == part[:7]
        joined = joined + part[7:]
    assert joined == document


def test_the_tokens_of_all_chunks_are_found_in_a_very_long_text() -> None:
    (document,) = TOKENIZER.documents(["abc " * 300_000], FULL)
    assert FULL < len(document) < 100_000


async def test_chunks_are_scored_pooled_and_reported(serve: Serve) -> None:
    worker = await serve(long_documents="chunk")
    documents = ["a", "a " * (ROOM + 1), "a " * FULL, "a " * (FULL + 1), "a " * ROOM]
    status, body, _ = await worker.score({"query": "q", "documents": documents})
    assert status == 200
    assert body["scores"] == [5, MAX_LENGTH, MAX_LENGTH, MAX_LENGTH, MAX_LENGTH]
    assert (body["chunked"], body["truncated"]) == ([1, 2], [3])
    full = chunking.MAX_CHUNKS * MAX_LENGTH
    assert body["tokens"] == 5 + (MAX_LENGTH + 4 + 8) + full + full + MAX_LENGTH
    assert sum(map(len, worker.engine.batches)) == 1 + 2 + 64 + 64 + 1


async def test_the_mean_of_the_chunks(serve: Serve) -> None:
    worker = await serve(long_documents="chunk", chunk_pooling="mean")
    _, body, _ = await worker.score({"query": "q", "documents": ["a " * (ROOM + 1)]})
    assert body["scores"] == [(MAX_LENGTH + 4 + 8) / 2]


async def test_max_tokens_per_document_applies_before_chunks(serve: Serve) -> None:
    worker = await serve(long_documents="chunk")
    request = {"query": "q", "documents": ["a " * 200, "a " * 40, "a " * 3], "max_tokens_per_document": ROOM + 1}
    _, body, _ = await worker.score(request)
    assert (body["chunked"], body["truncated"]) == ([], [0, 1])
    assert body["tokens"] == 2 * (MAX_LENGTH + 12) + 7


async def test_admission_counts_all_chunks(serve: Serve) -> None:
    worker = await serve(long_documents="chunk", options={"waiting_tokens": 400})
    worker.engine.open.clear()
    first = asyncio.create_task(worker.score({"query": "q", "documents": ["a b " * 200]}))
    await until(lambda: worker.engine.computing == 1)
    assert worker.metric("rerank_worker_waiting_tokens") > 250
    status, body, _ = await worker.score({"query": "q", "documents": ["a b " * 200]})
    assert (status, body["code"]) == (429, "busy")
    worker.engine.open.set()
    assert (await first)[0] == 200


@pytest.mark.parametrize(
    ("pairs", "counts", "expected"),
    [
        ([], [1, 2], []),
        ([0], [1, 2, 1], [0]),
        ([1, 2], [1, 2, 1], [1]),
        ([0, 3], [1, 2, 1], [0, 2]),
        ([5], [2, 3, 1, 4], [2]),
    ],
)
def test_documents_of_chunks(pairs: list[int], counts: list[int], expected: list[int]) -> None:
    assert chunking.documents(pairs, counts) == expected
