"""The shape of Hugging Face's Text Embeddings Inference: ``texts`` in, a bare list of scores out."""

from typing import Literal

import msgspec

from rerank_gateway.protocol.common import (
    RerankAnswer,
    RerankQuery,
    check_count,
    check_query,
    decode,
    invalid,
    ranking,
)


class TextsRequest(msgspec.Struct):
    query: str
    texts: list[str]
    raw_scores: bool | None = None
    return_text: bool | None = None
    truncate: bool | None = None
    """Absent: as the Reranker says. False: an error when a text does not fit."""
    truncation_direction: Literal["Left", "Right", "left", "right"] | None = None


_decoder = msgspec.json.Decoder(TextsRequest)


def parse(body: bytes, max_documents: int, owner: str) -> tuple[TextsRequest, RerankQuery]:
    """Raises ApiError 400 naming the field."""
    request = decode(_decoder, body)
    check_query(request.query)
    check_count("texts", len(request.texts), max_documents, owner)
    if request.truncation_direction in ("Left", "left") and request.truncate is not False:
        raise invalid("truncation_direction", "Left is not supported: texts are cut at their end (Right)")
    query = RerankQuery(
        query=request.query,
        documents=request.texts,
        raw_scores=bool(request.raw_scores),
        refuse_truncation=request.truncate is False,
    )
    if not request.return_text:
        request.texts = []  # not needed for the answer, so not held while waiting
    return request, query


class _Rank(msgspec.Struct, omit_defaults=True):
    index: int
    score: float
    text: str | None = None


def render(request: TextsRequest, answer: RerankAnswer) -> bytes:
    return msgspec.json.encode(
        [
            _Rank(index, answer.scores[index], request.texts[index] if request.texts else None)
            for index in ranking(answer.scores, None)
        ]
    )
