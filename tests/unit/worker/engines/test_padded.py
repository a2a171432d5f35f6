"""The padded engine against transformers, one unpadded pair at a time, alone and in a crowd."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rerank_worker.engine import EngineUnsupported, Pair, torch_padded
from unit.worker.engines import checkpoints


@pytest.fixture(scope="module", params=list(checkpoints.PADDED))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.PADDED[request.param](tmp_path_factory.mktemp("models") / request.param)


def build(folder: Path, **settings: Any) -> torch_padded.TorchPaddedEngine:
    return torch_padded.build(checkpoints.checkpoint(folder, **settings))


def make_pairs(folder: Path, number: int) -> list[Pair]:
    tokenizer = checkpoints.checkpoint(folder).tokenizer
    chance = random.Random(3)
    words = ["alpha", "x", "0123", "beta"]
    texts = [" ".join(chance.choices(words, k=chance.randrange(12))) for _ in range(number)]
    pairs = tokenizer(["query"] * number, texts, truncation=True, max_length=64, return_token_type_ids=True)
    return [Pair(ids, types) for ids, types in zip(pairs["input_ids"], pairs["token_type_ids"], strict=True)]


def score(engine: torch_padded.TorchPaddedEngine, pairs: list[Pair]) -> list[float]:
    return engine.collect(engine.compute(engine.prepare(pairs)))


def plain(folder: Path, pairs: list[Pair]) -> list[float]:
    """transformers' module with every input it can have, for each pair by itself."""
    checkpoint = checkpoints.checkpoint(folder)
    module = checkpoint.module(torch.float32)
    scores = []
    for pair in pairs:
        inputs = {
            "input_ids": torch.tensor([pair.ids]),
            "attention_mask": torch.ones((1, len(pair)), dtype=torch.int64),
        }
        if checkpoint.takes_types:
            inputs["token_type_ids"] = torch.tensor([pair.types])
        with torch.no_grad():
            scores.append(module(**inputs).logits[0, 0].item())
    return scores


def test_as_transformers_alone_and_in_a_crowd(folder: Path) -> None:
    pairs = make_pairs(folder, 12)
    expected = plain(folder, pairs)
    assert np.ptp(expected) > 0.05
    engine = build(folder)
    assert score(engine, pairs) == pytest.approx(expected, abs=2e-5)
    assert [score(engine, [pair])[0] for pair in pairs] == pytest.approx(expected, abs=2e-5)


def test_no_mask_where_no_row_is_padded(folder: Path) -> None:
    engine = build(folder)
    pair, other = make_pairs(folder, 1)[0], Pair([2, 7, 3], [0, 0, 0])
    prepared = engine.prepare([pair, pair])
    assert "attention_mask" not in prepared
    # Nor is anything added to round its length up.
    assert prepared["input_ids"].shape == (2, len(pair))
    masked = engine.prepare([pair, other])
    assert masked["attention_mask"].sum().item() == len(pair) + len(other)
    assert masked["input_ids"].shape[1] % 8 == 0
    mask = torch.ones_like(prepared["input_ids"])
    with_mask = engine.collect(engine.compute(prepared | {"attention_mask": mask}))
    assert score(engine, [pair, pair]) == pytest.approx(with_mask, abs=2e-5)


def test_lengths_are_rounded_up_within_the_model_s_own(tmp_path: Path) -> None:
    engine = build(checkpoints.save_minilm(tmp_path / "model"), max_length=30, length_bucket=16)
    rows = [Pair([2, *[7] * (length - 2), 3], [0] * length) for length in (5, 9, 17, 29)]
    assert [engine.prepare([rows[0], row])["input_ids"].shape[1] for row in rows[1:]] == [16, 30, 30]


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precision_is_near(tmp_path: Path, precision: Any) -> None:
    folder = checkpoints.save_deberta(tmp_path / "model")
    pairs = make_pairs(folder, 8)
    assert score(build(folder, precision=precision), pairs) == pytest.approx(plain(folder, pairs), abs=0.1)


def test_precisions_that_it_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(EngineUnsupported, match="int8"):
        build(checkpoints.save_minilm(tmp_path / "model"), precision="int8")


def test_layers_are_found(folder: Path) -> None:
    layers = torch_padded.layers_of(checkpoints.checkpoint(folder).module(torch.float32))
    # ALBERT has one group of layers, which is run several times.
    assert len(layers) in (1, 3, 4)
    assert all("Layer" in type(layer).__name__ or type(layer).__name__ == "TransformerBlock" for layer in layers)


def test_a_module_that_is_moved_is_nobody_else_s(tmp_path: Path) -> None:
    device: Any = "meta"
    checkpoint = checkpoints.checkpoint(checkpoints.save_minilm(tmp_path / "model"), device=device)
    engine = torch_padded.build(checkpoint)
    assert engine._model.device.type == "meta"
    assert checkpoint.module(torch.float32).device.type == "cpu"
