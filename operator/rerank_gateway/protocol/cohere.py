"""The shape with ``documents`` and ``results``: Cohere v1 and v2, Jina, and all that copy them.

A superset of their fields is understood on every path, since clients mix them; unknown fields are ignored and nulls
taken as absent. Returned documents are objects with ``text``, which is what Cohere v1, Jina and vLLM clients read.
"""

from typing import Any

import msgspec

from rerank_gateway.protocol.common import (
    RerankAnswer,
    RerankQuery,
    check_at_least_one,
    check_count,
    check_query,
    decode,
    invalid,
    ranking,
    search_units,
    to_text,
)

# Each is looked up in each document: a body full of them would keep the event loop busy for minutes.
MAX_RANK_FIELDS = 100


class DocumentsRequest(msgspec.Struct):
    query: str
    documents: list[str | dict[str, Any]]
    top_n: int | None = None
    return_documents: bool | None = None
    rank_fields: list[str] | None = None
    max_tokens_per_doc: int | None = None
    raw_scores: bool | None = None


_decoder = msgspec.json.Decoder(DocumentsRequest)


def parse(body: bytes, max_documents: int, owner: str) -> tuple[DocumentsRequest, RerankQuery]:
    """Raises ApiError 400 naming the field."""
    request = decode(_decoder, body)
    check_query(request.query)
    check_count("documents", len(request.documents), max_documents, owner)
    check_at_least_one("top_n", request.top_n)
    check_at_least_one("max_tokens_per_doc", request.max_tokens_per_doc)
    rank_fields = list(dict.fromkeys(request.rank_fields or ()))
    if len(rank_fields) > MAX_RANK_FIELDS:
        raise invalid("rank_fields", f"names {len(rank_fields)} fields, more than {MAX_RANK_FIELDS}: name fewer")
    texts = [
        document if isinstance(document, str) else _text_of(document, rank_fields, f"documents[{index}]")
        for index, document in enumerate(request.documents)
    ]
    query = RerankQuery(
        query=request.query,
        documents=texts,
        raw_scores=bool(request.raw_scores),
        max_tokens_per_document=_within_any_model(request.max_tokens_per_doc),
    )
    if not request.return_documents:
        request.documents = []  # not needed for the answer, so not held while waiting
    return request, query


def _within_any_model(tokens: int | None) -> int | None:
    """JSON's integers have no end, the worker's do; beyond every model's length they all mean the same."""
    return None if tokens is None else min(tokens, 2**30)


def _text_of(document: dict[str, Any], rank_fields: list[str], where: str) -> str:
    """The ``text`` of a document that is an object, or a line ``field: value`` for each of ``rank_fields``."""
    if not rank_fields:
        text = to_text(document.get("text"))
        if text is None:
            raise invalid(f"{where}.text", "an object needs a text, or rank_fields that name what to rank by")
        return text
    lines = []
    for field in rank_fields:
        if document.get(field) is not None:
            text = to_text(document[field])
            if text is None:
                raise invalid(f"{where}.{field}"[:200], "expected a string or a number")
            lines.append(f"{field}: {text}")
    if not lines:
        raise invalid(where, "has none of the rank_fields")
    return "\n".join(lines)


class _Result(msgspec.Struct, omit_defaults=True):
    index: int
    relevance_score: float
    document: dict[str, Any] | None = None


class _ApiVersion(msgspec.Struct):
    version: str


class _BilledUnits(msgspec.Struct):
    search_units: int


class _Tokens(msgspec.Struct):
    input_tokens: int
    output_tokens: int = 0


class _Meta(msgspec.Struct, omit_defaults=True):
    api_version: _ApiVersion
    billed_units: _BilledUnits
    tokens: _Tokens
    truncated_documents: list[int] | None = None
    chunked_documents: list[int] | None = None
    warnings: list[str] | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int


class _Response(msgspec.Struct):
    id: str
    model: str
    results: list[_Result]
    meta: _Meta
    usage: _Usage


def render(request: DocumentsRequest, answer: RerankAnswer, api_version: str) -> bytes:
    meta = _Meta(_ApiVersion(api_version), _BilledUnits(search_units(len(answer.scores))), _Tokens(answer.tokens))
    if answer.truncated:
        meta.truncated_documents = answer.truncated
        meta.warnings = [f"{len(answer.truncated)} of {len(answer.scores)} documents were cut to fit the model"]
    if answer.chunked:
        meta.chunked_documents = answer.chunked
    results = [
        _Result(index, answer.scores[index], _returned(request.documents[index]) if request.documents else None)
        for index in ranking(answer.scores, request.top_n)
    ]
    usage = _Usage(answer.tokens, answer.tokens)
    return msgspec.json.encode(_Response(answer.request_id, answer.model, results, meta, usage))


def _returned(document: str | dict[str, Any]) -> dict[str, Any]:
    return {"text": document} if isinstance(document, str) else document
