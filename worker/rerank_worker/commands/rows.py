"""Pairs out of a file, row by row, from any place in it: JSON lines or Parquet; and rows with their scores into a file.

Streams: never holds more than one line, or a few thousand rows of a Parquet file. A row that cannot be scored is a
``Bad`` with its number and the reason, never an exception, and the reason never repeats a text.
"""

import itertools
import json
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol, TypeAlias

import msgspec

from rerank_worker.failures import ConfigurationFailure, EnvironmentFailure

MAX_LINE = 64 * 2**20
"""Bytes of one line: a file that is no JSON lines at all must not be read into memory."""

PARQUET_ROWS = 1024
"""Rows that are taken out of a Parquet file at a time."""

Format: TypeAlias = Literal["jsonl", "parquet"]

Result: TypeAlias = float | list[float] | dict[str, str]
"""What the scoring of a row came to: a score, one score a document, or {"error": reason}."""


@dataclass(frozen=True, slots=True)
class Fields:
    query: str
    document: str
    score: str


@dataclass(frozen=True, slots=True)
class Row:
    """``number`` counts lines, or rows of a Parquet file, from 1. ``single``: the document was a text, not a list."""

    number: int
    query: str
    documents: list[str]
    single: bool


@dataclass(frozen=True, slots=True)
class Bad:
    number: int
    reason: str


class Place(msgspec.Struct, frozen=True):
    """Where reading goes on. ``offset``: bytes, or rows of a Parquet file; ``number``: of the last row or line."""

    offset: int = 0
    number: int = 0


class Reader(Protocol):
    format: Format

    def rows(self, place: Place) -> Iterator[tuple[Row | Bad, Place]]:
        """Each row after ``place``, with the place behind it."""
        ...

    def fraction(self, place: Place) -> float:
        """How much of the file lies before ``place``, from 0 to 1."""
        ...

    def write(self, output: Path, results: Iterator[Result], with_errors: bool) -> None:
        """Every row with its result, in order, into ``output``."""
        ...


def format_of(path: Path, option: str) -> Format:
    """By the name's end. Raises ConfigurationFailure."""
    if path.suffix in (".jsonl", ".ndjson"):
        return "jsonl"
    if path.suffix == ".parquet":
        return "parquet"
    raise ConfigurationFailure(f"{option} {path}: the name ends neither in .jsonl nor in .parquet: rename the file")


def reader(path: Path, output: Format, fields: Fields) -> Reader:
    """Reads ``path``. Raises ConfigurationFailure when it cannot be read as what its name says."""
    if format_of(path, "--input") == "jsonl":
        if output == "parquet":
            raise ConfigurationFailure("--output is .parquet and --input is .jsonl, which has no schema: write .jsonl")
        return JsonLines(path, fields)
    return Parquet(path, fields, output)


def checked(number: int, content: Any, fields: Fields) -> Row | Bad:
    """The row in ``content``, the values of a row by name."""
    for name in (fields.query, fields.document):
        if name not in content:
            return Bad(number, f"there is no field {name!r}: name the field with --query-field or --document-field")
    query, document = content[fields.query], content[fields.document]
    if not isinstance(query, str):
        return Bad(number, f"{fields.query!r} is {_kind(query)} where it must be a text")
    single = isinstance(document, str)
    documents = [document] if single else document
    if not isinstance(documents, list) or not all(isinstance(text, str) for text in documents):
        return Bad(number, f"{fields.document!r} is {_kind(document)} where it must be a text or a list of texts")
    return Row(number, query, documents, single)


def _kind(value: Any) -> str:
    known = {
        type(None): "null",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a text",
        dict: "an object",
    }
    if isinstance(value, list):
        wrong = next((item for item in value if not isinstance(item, str)), None)
        return f"a list with {_kind(wrong)}"
    return known.get(type(value), f"a {type(value).__name__}")


class JsonLines:
    """One JSON object a line; blank lines are no rows. Output rows are the input's own bytes with the score added."""

    format: Format = "jsonl"

    def __init__(self, path: Path, fields: Fields) -> None:
        self._path = path
        self._fields = fields
        self._size = max(1, path.stat().st_size)

    def rows(self, place: Place) -> Iterator[tuple[Row | Bad, Place]]:
        for line, after in self._lines(place):
            yield self._parse(after.number, line), after

    def fraction(self, place: Place) -> float:
        return min(1.0, place.offset / self._size)

    def write(self, output: Path, results: Iterator[Result], with_errors: bool) -> None:
        del with_errors
        with _durably(output) as file:
            for (line, place), result in zip(self._lines(Place()), results, strict=True):
                file.write(self._with(line, place.number, result) + b"\n")

    def _lines(self, place: Place) -> Iterator[tuple[bytes | None, Place]]:
        """Lines without their ends; None for one that is too long."""
        offset, number = place.offset, place.number
        with self._path.open("rb") as file:
            file.seek(offset)
            while line := file.readline(MAX_LINE + 1):
                offset, number = offset + len(line), number + 1
                if len(line) > MAX_LINE:
                    while not line.endswith(b"\n") and (line := file.readline(MAX_LINE)):
                        offset += len(line)
                    yield None, Place(offset, number)
                    continue
                # Windows' editors put a byte order mark before the first line.
                content = line.removeprefix(b"\xef\xbb\xbf").strip() if number == 1 else line.strip()
                if content:
                    yield content, Place(offset, number)

    def _parse(self, number: int, line: bytes | None) -> Row | Bad:
        if line is None:
            return Bad(number, f"the line is longer than {MAX_LINE} bytes: is every row on a line of its own?")
        try:
            content = msgspec.json.decode(line)
        except UnicodeDecodeError as error:
            return Bad(number, f"it is not UTF-8 ({error.reason} at byte {error.start})")
        except msgspec.DecodeError as error:
            if _has_lone_surrogate(line):
                return Bad(number, "a text holds half of a surrogate pair (\\ud800 to \\udfff), which is no character")
            return Bad(number, f"it is not JSON: {error}")
        except RecursionError:
            return Bad(number, "it is nested too deeply")
        if not isinstance(content, dict):
            return Bad(number, f"it is {_kind(content)} where it must be an object")
        if self._fields.score in content:
            return Bad(number, f"it has a field {self._fields.score!r} already: name another one with --score-field")
        return checked(number, content, self._fields)

    def _with(self, line: bytes | None, number: int, result: Result) -> bytes:
        if not isinstance(result, dict):
            # The rest of the row stays as it is, digit for digit.
            addition = msgspec.json.encode(self._fields.score) + b":" + msgspec.json.encode(result)
            assert line is not None
            return line[:-1] + b"," + addition + b"}"
        content: Any = None
        if line is not None:
            with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                content = msgspec.json.decode(line)
        known = content if isinstance(content, dict) else {"line": number}
        return msgspec.json.encode(known | {self._fields.score: None} | result)


def _has_lone_surrogate(line: bytes) -> bool:
    """msgspec only says that such a line is malformed; the standard library reads it."""
    try:
        json.dumps(json.loads(line), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    except (ValueError, RecursionError):
        return False
    return False


class Parquet:
    """One row a row. Output rows have all columns of the input and one for the score (and one for errors)."""

    format: Format = "parquet"

    def __init__(self, path: Path, fields: Fields, output: Format) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise EnvironmentFailure(
                "reading .parquet needs pyarrow, which is not installed: pip install pyarrow, or "
                "convert the file to .jsonl"
            ) from error
        self._arrow: Any = pyarrow
        self._parquet: Any = pyarrow.parquet
        self._path = path
        self._fields = fields
        self._output = output
        try:
            with self._parquet.ParquetFile(path) as file:
                self._schema: Any = file.schema_arrow
                self._groups = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        except (pyarrow.ArrowException, OSError) as error:
            raise ConfigurationFailure(f"--input {path} is not a Parquet file: {error}") from error
        self._check_columns()
        if output == "jsonl":
            self._check_values()

    def _check_columns(self) -> None:
        names = ", ".join(self._schema.names)
        for option, name in (("--query-field", self._fields.query), ("--document-field", self._fields.document)):
            if name not in self._schema.names:
                raise ConfigurationFailure(f"{option} {name}: the file has no such column; it has {names}")
        for name in (self._fields.score, "error"):
            if name in self._schema.names:
                raise ConfigurationFailure(
                    f"the file has a column {name} already: rename it, or name another one with --score-field"
                )

    def rows(self, place: Place) -> Iterator[tuple[Row | Bad, Place]]:
        number = place.number
        for batch in self._batches(place.offset, [self._fields.query, self._fields.document]):
            columns = [self._values(batch.column(name)) for name in (self._fields.query, self._fields.document)]
            for query, document in zip(*columns, strict=True):
                number += 1
                content = {self._fields.query: query, self._fields.document: document}
                yield checked(number, content, self._fields), Place(number, number)

    def fraction(self, place: Place) -> float:
        return place.offset / max(1, sum(self._groups))

    def write(self, output: Path, results: Iterator[Result], with_errors: bool) -> None:
        if self._output == "jsonl":
            self._write_lines(output, results)
            return
        arrow = self._arrow
        document = self._schema.field(self._fields.document).type
        # Lists are of many types; of another nested type all rows are bad.
        kind = arrow.list_(arrow.float64()) if arrow.types.is_nested(document) else arrow.float64()
        schema = self._schema.append(arrow.field(self._fields.score, kind))
        if with_errors:
            schema = schema.append(arrow.field("error", arrow.string()))
        with _durably(output) as file, self._parquet.ParquetWriter(file, schema) as writer:
            for batch in self._batches(0, None):
                found = [next(results) for _ in range(batch.num_rows)]
                columns = [*batch.columns, arrow.array([_score(result) for result in found], kind)]
                if with_errors:
                    columns.append(arrow.array([_error(result) for result in found], arrow.string()))
                writer.write_batch(arrow.record_batch(columns, schema=schema))

    def _write_lines(self, output: Path, results: Iterator[Result]) -> None:
        with _durably(output) as file:
            for batch in self._batches(0, None):
                columns = [self._values(column) for column in batch.columns]
                for values in zip(*columns, strict=True):
                    content, result = dict(zip(batch.schema.names, values, strict=True)), next(results)
                    errors = result if isinstance(result, dict) else {}
                    file.write(msgspec.json.encode(content | {self._fields.score: _score(result)} | errors) + b"\n")

    def _batches(self, skipped: int, columns: list[str] | None) -> Iterator[Any]:
        """Record batches of the rows after the first ``skipped``."""
        first = 0
        with self._parquet.ParquetFile(self._path) as file:
            for group, rows in enumerate(self._groups):
                if first + rows > skipped:
                    start = first
                    for batch in file.iter_batches(PARQUET_ROWS, row_groups=[group], columns=columns):
                        behind = max(0, skipped - start)
                        start += batch.num_rows
                        if behind < batch.num_rows:
                            yield batch.slice(behind)
                first += rows

    def _check_values(self) -> None:
        """Refuse columns that JSON cannot hold, by their first rows: before anything is scored."""
        for batch in itertools.islice(self._batches(0, None), 1):
            for name, column in zip(batch.schema.names, batch.columns, strict=True):
                try:
                    msgspec.json.encode(self._values(column))
                except (TypeError, ValueError) as error:
                    raise ConfigurationFailure(
                        f"column {name} ({column.type}) cannot be written as JSON ({error}): write .parquet, or leave "
                        "the column out"
                    ) from error

    def _values(self, column: Any) -> list[Any]:
        try:
            return column.to_pylist()
        except UnicodeDecodeError:
            return [_decoded(value) for value in column]


def _decoded(value: Any) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError:
        # Not a text; what is in it does not matter.
        return b""


def _score(result: Result) -> float | list[float] | None:
    return None if isinstance(result, dict) else result


def _error(result: Result) -> str | None:
    return result["error"] if isinstance(result, dict) else None


@contextmanager
def _durably(path: Path) -> Generator[BinaryIO]:
    """A file that is at ``path`` whole, on the disk, or not at all."""
    new = path.with_name(path.name + ".new")
    try:
        with new.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except BaseException:
        # Of no use, and the disk may be full of it.
        new.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes renames in ``folder`` last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
