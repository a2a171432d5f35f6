"""The rows of the training and evaluation files, and how they are read and written. Nothing is computed here."""

import gzip
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypedDict


class Group(TypedDict):
    """One training query."""

    query: str
    passages: list[str]  # the query's own first
    cosines: list[float]  # the plain bi-encoder's, of each passage


class Question(TypedDict):
    """One evaluation query; packages are named."""

    query: str
    relevant: str
    candidates: list[str]


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Gzip JSON Lines; the same rows give the same bytes."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def read_rows(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def read_evaluation(path: Path) -> tuple[list[Question], dict[str, str]]:
    """The queries of an evaluation file and the passage of each package."""
    questions: list[Question] = []
    passages: dict[str, str] = {}
    for row in read_rows(path):
        if "query" in row:
            questions.append(Question(query=row["query"], relevant=row["relevant"], candidates=row["candidates"]))
        elif "passage" in row:
            passages[row["package"]] = row["passage"]
    return questions, passages
