"""What all request shapes share: the internal query, decoding with errors that name the field, and the ranking."""

import math
import re
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from rerank_gateway.errors import ApiError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RerankQuery:
    """What is to be scored, whatever shape it came in."""

    query: str
    documents: list[str]
    raw_scores: bool = False
    max_tokens_per_document: int | None = None
    refuse_truncation: bool = False
    """The client asked for an error rather than a cut document."""


@dataclass(frozen=True, slots=True)
class RerankAnswer:
    request_id: str
    model: str
    scores: list[float]
    tokens: int
    truncated: list[int]
    chunked: list[int]


class Envelope(msgspec.Struct):
    """The part of a body that decides who takes it. The rest is decoded when its limits are known."""

    model: str | None = None
    texts: msgspec.Raw = msgspec.Raw(b"null")

    @property
    def has_texts(self) -> bool:
        return bytes(memoryview(self.texts)[:5]) != b"null"


def decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """Raises ApiError 400 that names the field and says what is wrong with the body."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _invalid_field(str(error)) from None
    except msgspec.DecodeError as error:
        raise ApiError(400, "invalid_json", _why_malformed(body, str(error))) from None
    except UnicodeDecodeError:
        raise ApiError(400, "invalid_json", _NOT_UTF8) from None
    except RecursionError:
        raise ApiError(400, "invalid_json", "the body is nested too deeply") from None


_FIELD = re.compile(r"(?P<what>.*) - at `\$\.?(?P<field>[^`]*)`")
_MISSING = re.compile(r"Object missing required field `(?P<field>[^`]*)`(?: - at `\$\.?(?P<within>[^`]*)`)?")


def _invalid_field(message: str) -> ApiError:
    if missing := _MISSING.match(message):
        within, field = missing["within"], missing["field"]
        return invalid(f"{within}.{field}" if within else field, "is required")
    if at := _FIELD.fullmatch(message):
        what = at["what"].replace("`", "")
        return invalid(at["field"], what[0].lower() + what[1:])
    return ApiError(400, "invalid_request", f"the body: {message.replace('`', '')}")


_NOT_UTF8 = "the body is not valid UTF-8: encode it as UTF-8"

# A half of a UTF-16 pair, written as an escape, without its other half.
_LONE_SURROGATE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)


def _why_malformed(body: bytes, message: str) -> str:
    if not body.strip():
        return "the body is empty: send a JSON object"
    try:
        body.decode()
    except UnicodeDecodeError:
        return _NOT_UTF8
    if _LONE_SURROGATE.search(body):
        return "the body has a lone surrogate (such as \\ud800), which is no character: remove it or send the pair"
    if re.search(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]", body):
        return "the body has a raw control character, which JSON does not allow: escape it as \\u00XX"
    return f"the body is not valid JSON: {message}"


def invalid(field: str, what: str) -> ApiError:
    """400 for one field, named as a path such as documents[3].text."""
    return ApiError(400, "invalid_request", f"{field}: {what}", field=field)


def check_query(query: str) -> None:
    if not query.strip():
        raise invalid("query", "must not be empty")


def check_count(field: str, count: int, limit: int, owner: str) -> None:
    if count == 0:
        raise invalid(field, "must not be empty")
    if count > limit:
        raise invalid(field, f"{count} documents are more than {limit} (requests.maxDocuments of {owner}): send fewer")


def check_at_least_one(field: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise invalid(field, f"must be 1 or more, not {value if value > -(10**9) else 'so low'}")


def ranking(scores: list[float], top_n: int | None) -> list[int]:
    """Indices by falling score, equal scores by index; at most ``top_n``."""
    order = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)
    return order if top_n is None else order[:top_n]


def search_units(documents: int) -> int:
    """Cohere's unit of accounting: one query with up to 100 documents."""
    return max(1, math.ceil(documents / 100))


def to_text(value: Any) -> str | None:
    """A field's value as text; None when it is no single value."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    return None
