"""What the tests of the graph engines share: small models, pairs of real token ids, and transformers' own scores.

One or two layers, so that exports are quick; ModernBERT needs two to have a local one.
"""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rerank_worker.engine import Engine, Pair
from unit.worker.engines import checkpoints

MODELS: dict[str, Callable[[Path], Path]] = {
    "minilm": lambda folder: checkpoints.save_minilm(folder, num_hidden_layers=1),
    "xlm-roberta": lambda folder: checkpoints.save_xlm_roberta(folder, num_hidden_layers=1),
    "roberta": lambda folder: checkpoints.save_roberta(folder, num_hidden_layers=1),
    "camembert": lambda folder: checkpoints.save_camembert(folder, num_hidden_layers=1),
    "modernbert": lambda folder: checkpoints.save_modernbert(folder, num_hidden_layers=2),
    "modernbert-cls": lambda folder: checkpoints.save_modernbert_cls(folder, num_hidden_layers=2),
    "deberta": lambda folder: checkpoints.save_deberta(folder, num_hidden_layers=1),
}


def make_pairs(folder: Path, number: int = 12) -> list[Pair]:
    """Of many lengths, the full one among them."""
    tokenizer = checkpoints.checkpoint(folder).tokenizer
    chance = random.Random(5)
    texts = ["".join(chance.choices(checkpoints.LETTERS, k=chance.randrange(1, 50))) for _ in range(number - 1)]
    rows = tokenizer(
        ["query"] * number, [*texts, "x" * 100], truncation=True, max_length=64, return_token_type_ids=True
    )
    return [Pair(ids, types) for ids, types in zip(rows["input_ids"], rows["token_type_ids"], strict=True)]


def score(engine: Engine, pairs: list[Pair]) -> list[float]:
    return engine.collect(engine.compute(engine.prepare(pairs)))


def alone(engine: Engine, pairs: list[Pair]) -> list[float]:
    return [score(engine, [pair])[0] for pair in pairs]


def plain(folder: Path, pairs: list[Pair]) -> list[float]:
    """transformers' module, each pair by itself, unpadded."""
    checkpoint = checkpoints.checkpoint(folder)
    module = checkpoint.module(torch.float32)
    scores = []
    for pair in pairs:
        inputs: dict[str, Any] = {"input_ids": torch.tensor([pair.ids])}
        if checkpoint.takes_types:
            inputs["token_type_ids"] = torch.tensor([pair.types])
        with torch.no_grad():
            scores.append(module(**inputs).logits[0, 0].item())
    return scores
