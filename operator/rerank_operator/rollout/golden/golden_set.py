"""Reads queries with labels, and refuses what could not be judged by, with the query and the field. Never guesses a
label.

A golden set judges rankings: each of its queries has something to rank. Labels for a calibration need not.
"""

import contextlib
import json
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import yaml

MOST_QUERIES, MOST_DOCUMENTS, MOST_GRADE = 10_000, 1_000, 10
DEEPEST = 16
"""Levels of lists and mappings; a golden set has four."""
LONGEST_NUMBER = 100
LONGEST_REASON = 500
"""Characters of what is wrong: it may quote the set, and stands in statuses, which have bounds."""
_BYTE_ORDER_MARK = "\ufeff"

_NUMBER = frozenset("0123456789_:.+-")
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Text = Annotated[str, msgspec.Meta(min_length=1, max_length=1_000_000)]
Grade = Annotated[int, msgspec.Meta(ge=0, le=MOST_GRADE)]


class BadGoldenSet(ValueError):
    """A file that cannot be used; the message names it, the place in it, and the remedy."""


class LabelledQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    query: Text
    documents: Annotated[list[Text], msgspec.Meta(min_length=1, max_length=MOST_DOCUMENTS)]
    labels: list[Grade]
    """How relevant each document is: 0 is not at all."""

    def __post_init__(self) -> None:
        if len(self.labels) != len(self.documents):
            raise ValueError(f"labels: {len(self.labels)} for {len(self.documents)} documents: give one for each")


class GoldenQuery(LabelledQuery, frozen=True, forbid_unknown_fields=True):
    """Its labels are not all equal, so one at least is above 0."""

    documents: Annotated[list[Text], msgspec.Meta(min_length=2, max_length=MOST_DOCUMENTS)]

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.labels)) < 2:
            raise ValueError(f"labels: all are {self.labels[0]}: any order would be as good; leave the query out")


class GoldenSet(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    queries: Annotated[list[GoldenQuery], msgspec.Meta(min_length=1, max_length=MOST_QUERIES)]
    k: Annotated[int, msgspec.Meta(ge=1, le=MOST_DOCUMENTS)] = 10
    """How many of the first documents count for nDCG and accuracy."""


class Labels(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a golden set is, too."""

    queries: Annotated[list[LabelledQuery], msgspec.Meta(min_length=1, max_length=MOST_QUERIES)]
    k: int = 10
    """Of no use here."""


_Set = TypeVar("_Set", GoldenSet, Labels)


def read_golden_set(path: Path) -> GoldenSet:
    """The golden set in ``path``; *.jsonl holds JSON lines, and of others ``parse_golden_set`` tells what they hold.
    Raises BadGoldenSet."""
    return _read(path, GoldenSet)


def read_labels(path: Path) -> Labels:
    """The labelled queries in ``path``, written as a golden set is. Raises BadGoldenSet."""
    return _read(path, Labels)


def parse_golden_set(text: str, name: str) -> GoldenSet:
    """The golden set in ``text``: YAML or JSON with ``queries`` and perhaps ``k``, or JSON lines, one query each.

    ``name``: what it is called in messages. A mebibyte of YAML takes a third of a second. Raises BadGoldenSet.
    """
    return _parsed(text, name, GoldenSet)


def parse_labels(text: str, name: str) -> Labels:
    """The labelled queries in ``text``, as ``parse_golden_set`` reads a golden set. Raises BadGoldenSet."""
    return _parsed(text, name, Labels)


def _read(path: Path, kind: type[_Set]) -> _Set:
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise BadGoldenSet(f"{path}: cannot be read ({error.strerror}): give the path of a golden set") from None
    except UnicodeDecodeError:
        raise BadGoldenSet(f"{path}: is no text in UTF-8") from None
    return _parsed(text, str(path), kind, lines=path.suffix == ".jsonl")


def _parsed(text: str, name: str, kind: type[_Set], *, lines: bool = False) -> _Set:
    """``lines``: it holds JSON lines, whatever it looks like."""
    text = text.removeprefix(_BYTE_ORDER_MARK)
    try:
        found = msgspec.convert({"queries": _lines(text)} if lines or _are_lines(text) else _mapping(text), kind)
    except (yaml.YAMLError, RecursionError) as error:
        raise BadGoldenSet(f"{name}: is neither YAML nor JSON: {str(error)[:LONGEST_REASON]}") from None
    except ValueError as error:
        raise BadGoldenSet(f"{name}: {str(error)[:LONGEST_REASON]}") from None
    # Aliases would make gigabytes of requests out of a kilobyte.
    if sum(len(query.query) + sum(map(len, query.documents)) for query in found.queries) > len(text):
        raise BadGoldenSet(f"{name}: holds more text than it has letters: write texts out instead of YAML's aliases")
    return found


def _are_lines(text: str) -> bool:
    """JSON lines: the first one is a whole object that is no set; or is broken, and every line begins as one does."""
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines or not lines[0].startswith("{"):
        return False
    try:
        return "queries" not in json.loads(lines[0])
    except (ValueError, RecursionError):
        return len(lines) > 1 and all(line.startswith("{") for line in lines)


def _mapping(text: str) -> dict[Any, Any]:
    body = _whole(text)
    if not isinstance(body, dict):
        query = '{"query": "...", "documents": ["...", "..."], "labels": [1, 0]}'
        raise ValueError(f"its first line is no query in JSON: write {query}, one a line, or a list under queries:")
    return body


def _whole(text: str) -> Any:
    if text.lstrip().startswith("{"):
        with contextlib.suppress(ValueError):
            return json.loads(text)  # as YAML it would take seconds
    _refuse_excess(text)
    try:
        return yaml.load(text, _Loader)  # noqa: S506 (both loaders are safe ones)
    except (ValueError, LookupError, AttributeError) as error:  # 2026-13-01, !!int "", !!timestamp soon
        raise yaml.YAMLError(f"a value is not what its form or tag says ({error}): put texts into quotes") from None


def _refuse_excess(text: str) -> None:
    """Raises yaml.YAMLError. libyaml's loader goes as deep as a text does, and takes the process with it; a number in
    base 60 (1:59:59) takes it the square of its length."""
    depth = 0
    for event in yaml.parse(text, _Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > DEEPEST:
                raise yaml.YAMLError(f"line {event.start_mark.line + 1} is nested deeper than {DEEPEST} levels")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif (
            isinstance(event, yaml.ScalarEvent)
            and event.implicit[0]  # without quotes
            and len(event.value) > LONGEST_NUMBER
            and set(event.value) <= _NUMBER
        ):
            told = f"line {event.start_mark.line + 1} has a number of {len(event.value)} letters"
            raise yaml.YAMLError(f"{told}: {LONGEST_NUMBER} at most")


def _lines(text: str) -> list[Any]:
    found = []
    for number, line in enumerate(text.split("\n"), 1):  # splitlines() would also do so within texts, at U+2028
        if line.strip():
            try:
                found.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"line {number}: is no JSON: {error}") from None
    return found
