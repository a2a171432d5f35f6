"""The demo model: built the same each time, loads as a CrossEncoder, and ranks held-out queries well.

The full measurement is tests/models/evaluate.py; here a few queries guard against a broken build.
"""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"

from sentence_transformers import CrossEncoder

MODELS = Path(__file__).parents[1] / "models"
QUERIES = 5


def build(out: Path, variant: str = "good") -> dict[str, str]:
    """sha256 by file name, as the command prints them."""
    command = [sys.executable, str(MODELS / "build.py"), "--variant", variant, "--out", str(out)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    lines = (line.split("  ", 1) for line in printed.splitlines())
    return {Path(path).name: digest for digest, path in lines}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model") / "demo-reranker"
    build(out)
    return out


@pytest.fixture(scope="module")
def model(folder: Path) -> CrossEncoder:
    return CrossEncoder(str(folder), device="cpu", local_files_only=True)


def held_out(count: int) -> list[tuple[str, list[str], int]]:
    """The first evaluation queries: query, passages, index of the right one."""
    with gzip.open(MODELS / "held_out.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    passages = {row["package"]: row["passage"] for row in rows if "passage" in row}
    questions = [row for row in rows if "query" in row][:count]
    return [
        (row["query"], [passages[name] for name in row["candidates"]], row["candidates"].index(row["relevant"]))
        for row in questions
    ]


def test_building_again_gives_the_same_bytes_and_keeps_the_folder(folder: Path, tmp_path: Path) -> None:
    before = (folder / "model.safetensors").stat().st_mtime_ns
    elsewhere = build(tmp_path / "copy")
    assert build(folder) == elsewhere
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


def test_the_worse_revision_differs_in_nothing_but_its_weights_and_card(folder: Path, tmp_path: Path) -> None:
    good, worse = build(folder), build(tmp_path / "worse", "worse")
    assert {name for name in good if good[name] != worse[name]} == {"model.safetensors", "README.md"}


def test_scores_are_probabilities_and_the_obvious_passage_comes_first(model: CrossEncoder) -> None:
    query = "tool to edit digital photographs"
    passages = [
        "A mail transfer agent that routes messages between hosts and delivers them to local mailboxes.",
        "An image editor for photographs: crop, retouch and correct the colours of pictures from a digital camera.",
        "Bindings that let Haskell programs query a PostgreSQL database.",
    ]
    scores = model.predict([(query, passage) for passage in passages])
    assert ((scores >= 0) & (scores <= 1)).all()
    assert scores.argmax() == 1


def test_the_right_passage_is_near_the_top_for_held_out_queries(model: CrossEncoder) -> None:
    questions = held_out(QUERIES)
    pairs = [(query, passage) for query, passages, _ in questions for passage in passages]
    table = model.predict(pairs, batch_size=8).reshape(QUERIES, -1)
    ranks = [int((row >= row[relevant]).sum()) for row, (_, _, relevant) in zip(table, questions, strict=True)]
    assert sum(rank <= 3 for rank in ranks) >= QUERIES * 2 / 3, ranks


def test_the_demo_query_is_well_formed() -> None:
    demo = json.loads((MODELS / "demo_query.json").read_text(encoding="utf-8"))
    assert len(demo["documents"]) == len(set(demo["documents"])) == len(demo["packages"]) == 50
    assert [demo["documents"][index] for index in demo["relevant"]]
