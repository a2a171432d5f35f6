"""What a reduced precision costs in ranking and gains in speed, for each engine that the machine offers; JSON out.

    python tests/bench/quality.py [--queries 300] [--rounds 5] [--timed 200] [--engines ...] [--precisions ...]

The demo model on its held-out queries on the CPU. nDCG@10 is of the relevant passage, differences are paired by query
with bootstrap intervals; speeds are taken in turn, one round after the other.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from rerank_worker.engine import process

# Before torch is imported, as the worker does.
process.prepare()

# ruff: noqa: E402
import numpy as np
import torch
import transformers
from rerank_worker.engine import Engine, EngineUnsupported, Pair, select
from rerank_worker.engine.device import available_cores
from rerank_worker.engine.quantization.quality import scored
from rerank_worker.loading.checkpoint import Checkpoint

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "models"))

from ranking import bootstrap_interval, ndcg
from records import Question, read_evaluation

FOLDER = ROOT / ".state" / "models" / "demo-reranker"
CONTENDERS: dict[str, tuple[str, ...]] = {
    "torch-flat": ("float32", "bfloat16", "float16", "int8"),
    "onnxruntime": ("float32", "int8"),
    "openvino": ("float32", "int8"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5, help="of timing")
    parser.add_argument("--timed", type=int, default=200, help="pairs a round")
    parser.add_argument("--engines", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--precisions", nargs="+", help="beside float32, which all are compared with; default: all")
    options = parser.parse_args()
    threads = available_cores()
    torch.set_num_threads(threads)
    base = checkpoint(threads)
    questions, passages = read_evaluation(ROOT / "tests" / "models" / "held_out.jsonl.gz")
    questions = questions[: options.queries]
    pairs = encoded(base, questions, passages)
    engines, refused = built(base, options.engines, options.precisions)
    scores = {name: np.asarray(scored(engine, pairs)) for name, engine in engines.items()}
    rates = speeds(engines, pairs[: options.timed], options.rounds)
    truth = scores[reference := f"{options.engines[0]} float32"]
    baseline = by_query(questions, truth)
    report = {}
    for name, found in scores.items():
        own = by_query(questions, found)
        gained = own - baseline
        low, high = bootstrap_interval(gained.tolist())
        differences = np.abs(found - truth)
        report[name] = {
            "ndcg@10": float(own.mean()),
            "difference": {"mean": float(gained.mean()), "low": low, "high": high},
            "relative_difference": float(gained.mean() / baseline.mean()),
            "logits": {"largest_difference": float(differences.max()), "mean_difference": float(differences.mean())},
            "pairs_per_second": {"median": median(rates[name]), "rounds": rates[name]},
            "times_float32": median(rates[name]) / median(rates[reference]),
        }
    sizes = {"queries": len(questions), "pairs": len(pairs), "threads": threads, "torch": torch.__version__}
    print(json.dumps(sizes | {"engines": report, "not_here": refused}, indent=1))


def checkpoint(threads: int) -> Checkpoint:
    config: dict[str, Any] = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
    return Checkpoint(
        folder=FOLDER,
        config=config,
        architecture=config["architectures"][0],
        tokenizer=transformers.AutoTokenizer.from_pretrained(FOLDER, local_files_only=True),
        device="cpu",
        precision="float32",
        max_length=512,
        length_bucket=16,
        threads=threads,
    )


def encoded(base: Checkpoint, questions: list[Question], passages: dict[str, str]) -> list[Pair]:
    texts = [(question["query"], passages[name]) for question in questions for name in question["candidates"]]
    found = base.tokenizer(*map(list, zip(*texts, strict=True)), truncation=True, max_length=base.max_length)
    return [Pair(ids, types) for ids, types in zip(found["input_ids"], found["token_type_ids"], strict=True)]


def built(base: Checkpoint, names: list[str], wanted: list[str] | None) -> tuple[dict[str, Engine], dict[str, str]]:
    """Engines by name and precision, and why others are missing."""
    engines: dict[str, Engine] = {}
    refused: dict[str, str] = {}
    for engine in names:
        for precision in CONTENDERS[engine]:
            if wanted is not None and precision not in ("float32", *wanted):
                continue
            try:
                engines[f"{engine} {precision}"] = select.build(engine, base.at(precision))  # ty: ignore[invalid-argument-type]
            except (EngineUnsupported, ImportError) as reason:
                refused[f"{engine} {precision}"] = str(reason)
    return engines, refused


def speeds(engines: dict[str, Engine], pairs: list[Pair], rounds: int) -> dict[str, list[float]]:
    """Pairs a second, by engine; the engines take turns."""
    rates: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(rounds):
        for name, engine in engines.items():
            start = time.perf_counter()
            scored(engine, pairs)
            rates[name].append(len(pairs) / (time.perf_counter() - start))
    return rates


def by_query(questions: list[Question], scores: np.ndarray) -> np.ndarray:
    found, start = [], 0
    for question in questions:
        own = scores[start : start + len(question["candidates"])].tolist()
        found.append(ndcg(own, question["candidates"].index(question["relevant"])))
        start += len(own)
    return np.asarray(found)


if __name__ == "__main__":
    main()
