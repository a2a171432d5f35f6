"""The demo's reranker on real pairs: fp32 scores equal CrossEncoder.predict's, half precision ranks the same.

Half precision cannot keep apart what differs by less than its own steps, so an order counts as the same when no two
documents are swapped that the full-precision scores hold apart by more than that.
"""

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rerank_api.worker_config import ModelSource, WorkerConfig
from rerank_worker.loading.model import Loaded, load

MODELS = Path(__file__).parents[2] / "models"
QUERIES, CANDIDATES = 20, 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "demo-reranker"
    subprocess.run([sys.executable, str(MODELS / "build.py"), "--out", str(out)], check=True, timeout=120)
    return out


@pytest.fixture(scope="module")
def pairs() -> list[tuple[str, str]]:
    """Held-out queries, each with its shortest passages (the test stays quick), a query's pairs side by side."""
    with gzip.open(MODELS / "held_out.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    passages = {row["package"]: row["passage"] for row in rows if "passage" in row}
    chosen: list[tuple[str, str]] = []
    for row in [row for row in rows if "query" in row][:QUERIES]:
        shortest = sorted((passages[name] for name in row["candidates"]), key=len)[:CANDIDATES]
        chosen += [(row["query"], passage) for passage in shortest]
    return chosen


@pytest.fixture(scope="module")
def reference(folder: Path, pairs: list[tuple[str, str]]) -> np.ndarray:
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(folder), device="cpu", local_files_only=True)
    return np.asarray(model.predict(pairs, show_progress_bar=False), dtype=np.float64).reshape(-1, CANDIDATES)


def score(folder: Path, pairs: list[tuple[str, str]], precision: Any) -> np.ndarray:
    loaded: Loaded = load(WorkerConfig(model=ModelSource(path=str(folder)), device="cpu", precision=precision), 2)
    tokenizer, engine = loaded.tokenizer, loaded.engine
    encoded = [tokenizer.pair(tokenizer.query(query), tokenizer.documents([text])[0])[0] for query, text in pairs]
    order = sorted(range(len(pairs)), key=lambda index: len(encoded[index]))
    logits = np.zeros(len(pairs))
    for start in range(0, len(order), 32):
        batch = order[start : start + 32]
        logits[batch] = engine.collect(engine.compute(engine.prepare([encoded[index] for index in batch])))
    assert loaded.activation == "sigmoid"
    return (1 / (1 + np.exp(-logits))).reshape(-1, CANDIDATES)


def test_float32_scores_equal_cross_encoder(folder: Path, pairs: list[tuple[str, str]], reference: np.ndarray) -> None:
    scores = score(folder, pairs, "float32")
    assert reference.std() > 1e-3, "scores so alike prove nothing"
    np.testing.assert_allclose(scores, reference, atol=1e-5)
    assert (np.argsort(-scores) == np.argsort(-reference)).all()


@pytest.mark.parametrize(("precision", "step"), [("float16", 1e-3), ("bfloat16", 5e-3)])
def test_half_precision_ranks_the_same(
    precision: str, step: float, folder: Path, pairs: list[tuple[str, str]], reference: np.ndarray
) -> None:
    queries = 4
    scores = score(folder, pairs[: queries * CANDIDATES], precision)
    for ours, theirs in zip(scores, reference[:queries], strict=True):
        apart = theirs[:, None] - theirs[None, :] > step
        assert (ours[:, None] > ours[None, :])[apart].all()
