"""How well the worker's scores agree with sentence-transformers' CrossEncoder.predict, for each precision; JSON out.

    python tests/bench/agreement.py [--queries 30] [--candidates 10]

Real held-out pairs of the demo model on the CPU. A ranking is the same when argsort gives the same order of a query's
candidates; compared with CrossEncoder at the same precision, and with CrossEncoder in float32.
"""

import argparse
import gzip
import json
from pathlib import Path

import numpy as np
import torch
from rerank_api.worker_config import ModelSource, WorkerConfig
from rerank_worker.loading.model import load
from sentence_transformers import CrossEncoder

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".state" / "models" / "demo-reranker"
PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=30)
    parser.add_argument("--candidates", type=int, default=10)
    options = parser.parse_args()
    pairs = held_out_pairs(options.queries, options.candidates)
    shape = (options.queries, options.candidates)
    full = reference(pairs, torch.float32).reshape(shape)
    found = {}
    for name, dtype in PRECISIONS.items():
        theirs = full if dtype == torch.float32 else reference(pairs, dtype).reshape(shape)
        ours = worker_scores(pairs, name).reshape(shape)
        found[name] = {
            "max_difference": float(np.abs(ours - theirs).max()),
            "same_rankings": same(ours, theirs),
            "same_rankings_as_float32": same(ours, full),
            "cross_encoder_same_as_its_float32": same(theirs, full),
        }
    print(json.dumps({"queries": options.queries, "candidates": options.candidates, "agreement": found}, indent=2))


def held_out_pairs(queries: int, candidates: int) -> list[tuple[str, str]]:
    with gzip.open(ROOT / "tests" / "models" / "held_out.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    passages = {row["package"]: row["passage"] for row in rows if "passage" in row}
    asked = [row for row in rows if "query" in row][:queries]
    return [(row["query"], passages[name]) for row in asked for name in row["candidates"][:candidates]]


def reference(pairs: list[tuple[str, str]], dtype: torch.dtype) -> np.ndarray:
    model = CrossEncoder(str(FOLDER), device="cpu", local_files_only=True, model_kwargs={"dtype": dtype})
    return np.asarray(model.predict(pairs, show_progress_bar=False), dtype=np.float64)


def worker_scores(pairs: list[tuple[str, str]], precision: str) -> np.ndarray:
    config = WorkerConfig(model=ModelSource(path=str(FOLDER)), device="cpu", precision=precision)  # ty: ignore[invalid-argument-type]
    loaded = load(config, 2)
    tokenizer, engine = loaded.tokenizer, loaded.engine
    encoded = [tokenizer.pair(tokenizer.query(query), tokenizer.documents([text])[0])[0] for query, text in pairs]
    order = sorted(range(len(pairs)), key=lambda index: len(encoded[index]))
    logits = np.zeros(len(pairs))
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        logits[batch] = engine.collect(engine.compute(engine.prepare([encoded[index] for index in batch])))
    return 1 / (1 + np.exp(-logits))


def same(ours: np.ndarray, theirs: np.ndarray) -> int:
    """Queries whose candidates come in the same order; ties by position."""
    order = np.argsort(-ours, kind="stable"), np.argsort(-theirs, kind="stable")
    return int((order[0] == order[1]).all(axis=1).sum())


if __name__ == "__main__":
    main()
