"""Scores of real transformers models equal CrossEncoder.predict, for every architecture served, and over HTTP.

Models are tiny and random: equality is about tokenizing, padding, batching and activation, not about quality.
"""

import asyncio
import json
import random
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from rerank_api.worker_config import ModelSource, WorkerConfig
from rerank_worker.batching import Backlog
from rerank_worker.failures import ConfigurationFailure, EnvironmentFailure
from rerank_worker.loading.model import Loaded, load
from rerank_worker.loading.verify import ARCHITECTURES, DECODERS
from rerank_worker.server.serving import final_scores

from .conftest import Serve, save_model

WORDS = ["alpha", "beta", "gamma", "delta", "0123", "x", "Übung", "中文", "end."]
TOLERANCE = {"float32": 1e-5, "float16": 5e-3, "bfloat16": 4e-2}


def make_pairs(number: int, longest: int = 40) -> list[tuple[str, str]]:
    """Pairs of all lengths; queries stay under half of the model's length, where both libraries cut the same way."""
    chance = random.Random(7)
    documents = [" ".join(chance.choices(WORDS, k=chance.randrange(longest))) for _ in range(number)]
    return [(" ".join(chance.choices(WORDS, k=chance.randrange(1, 6))), document) for document in documents]


def predict(folder: Path, pairs: list[tuple[str, str]], precision: str = "float32", **settings: Any) -> np.ndarray:
    import torch
    from sentence_transformers import CrossEncoder

    kwargs = {"dtype": getattr(torch, precision)}
    reference = CrossEncoder(str(folder), device="cpu", local_files_only=True, model_kwargs=kwargs, **settings)
    return np.asarray(reference.predict(pairs, show_progress_bar=False), dtype=np.float64)


def config(folder: Path, **settings: Any) -> WorkerConfig:
    return WorkerConfig(model=ModelSource(path=str(folder)), device="cpu", **settings)


def score(loaded: Loaded, pairs: list[tuple[str, str]]) -> np.ndarray:
    """Every pair through the backlog and the engine, as the engine thread does it."""
    tokenizer, engine = loaded.tokenizer, loaded.engine
    encoded = [tokenizer.pair(tokenizer.query(query), tokenizer.documents([text])[0])[0] for query, text in pairs]
    backlog: Backlog[None] = Backlog()
    backlog.add(None, [len(pair) for pair in encoded], arrived=0.0, deadline=1.0)
    logits = [0.0] * len(pairs)
    while batch := backlog.take(loaded.policy):
        scored = engine.collect(engine.compute(engine.prepare([encoded[slot.index] for _, slot in batch])))
        for (_, slot), logit in zip(batch, scored, strict=True):
            logits[slot.index] = logit
    return np.asarray(final_scores(logits, 1.0, loaded.activation))


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES - DECODERS))
def test_every_architecture_scores_like_cross_encoder(architecture: str, tmp_path: Path) -> None:
    kind = architecture.removesuffix("ForSequenceClassification")
    extra: dict[str, dict[str, Any]] = {
        "Albert": {"embedding_size": 16},
        "DebertaV2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16},
        "DistilBert": {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2},
        "Electra": {"embedding_size": 16},
    }
    save_model(tmp_path, kind, **extra.get(kind, {}))
    pairs = make_pairs(40)
    expected = predict(tmp_path, pairs)
    assert expected.std() > 1e-3, "scores so alike prove nothing"
    np.testing.assert_allclose(score(load(config(tmp_path, max_batch_tokens=512), 2), pairs), expected, atol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_every_precision_scores_like_cross_encoder(precision: Any, tiny_bert: Path) -> None:
    pairs = make_pairs(60)
    loaded = load(config(tiny_bert, precision=precision), 2)
    np.testing.assert_allclose(score(loaded, pairs), predict(tiny_bert, pairs, precision), atol=TOLERANCE[precision])


@pytest.fixture
def copy(tiny_bert: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_bert, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize(
    "activation", ["torch.nn.modules.activation.Sigmoid", "torch.nn.modules.linear.Identity", "mine.Activation"]
)
def test_the_model_s_own_activation(activation: str, copy: Path) -> None:
    content = json.loads((copy / "config.json").read_text())
    content["sentence_transformers"] = {"activation_fn": activation}
    (copy / "config.json").write_text(json.dumps(content))
    pairs = make_pairs(10)
    np.testing.assert_allclose(score(load(config(copy), 2), pairs), predict(copy, pairs), atol=1e-5)


def test_a_folder_saved_by_sentence_transformers(tiny_bert: Path, tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder
    from torch import nn

    saved = CrossEncoder(
        str(tiny_bert), device="cpu", local_files_only=True, activation_fn=nn.Identity(), max_length=48
    )
    pairs = make_pairs(20)
    expected = saved.predict(pairs)
    saved.save_pretrained(str(tmp_path))
    loaded = load(config(tmp_path), 2)
    assert loaded.policy.max_length == 48
    np.testing.assert_allclose(score(loaded, pairs), expected, atol=1e-5)


def test_max_length(tiny_bert: Path) -> None:
    pairs = make_pairs(20)
    loaded = load(config(tiny_bert, max_length=50), 2)
    np.testing.assert_allclose(score(loaded, pairs), predict(tiny_bert, pairs, max_length=50), atol=1e-5)


async def test_concurrent_requests_over_http(serve: Serve, tiny_bert: Path) -> None:
    documents = [document for _, document in make_pairs(40)]
    queries = [query for query, _ in make_pairs(6)]
    expected = predict(tiny_bert, [(query, document) for query in queries for document in documents])
    worker = await serve(build=lambda: load(config(tiny_bert, max_batch_tokens=1024), 2))

    async def one(query: str) -> list[float]:
        status, body, _ = await worker.score({"query": query, "documents": documents})
        assert status == 200
        return body["scores"]

    answers = await asyncio.gather(*map(one, queries))
    np.testing.assert_allclose(np.concatenate(answers), expected, atol=1e-5)
    info = json.loads((await worker.get("/v1/info"))[1])
    assert info["architecture"] == "BertForSequenceClassification"
    assert set(info["sha256"]) == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert worker.metric("rerank_worker_batch_requests_sum") > worker.metric("rerank_worker_batch_requests_count")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_length": 1000}, r"spec\.model\.maxLength .* is 1000, but the model takes at most 64"),
        ({"device": "cuda"}, r"spec\.runtime\.device is cuda, but the worker sees no CUDA device"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], message: str, tiny_bert: Path) -> None:
    import torch

    if settings.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ConfigurationFailure, match=message):
        load(msgspec.structs.replace(config(tiny_bert), **settings), 2)


def test_damaged_weights(copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ConfigurationFailure, match=r"spec\.model\.uri: model\.safetensors of the model is damaged"):
        load(config(copy), 2)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("tokenizer.json", {}, r"tokenizer cannot be read \(.*copy tokenizer\.json and tokenizer_config\.json again"),
        ("tokenizer.json", {"model": {"type": "Unigram"}}, r"tokenizer cannot be read"),
        ("config.json", {"vocab_size": 200}, r"other shapes than its config\.json asks for \(vocab_size, hidden_size"),
        ("config.json", {"hidden_size": 64}, r"other shapes than its config\.json asks for"),
    ],
)
def test_files_that_do_not_belong_together(file: str, change: dict[str, Any], message: str, copy: Path) -> None:
    """What libraries say then is a KeyError, or an option that nobody here can set."""
    content = json.loads((copy / file).read_text())
    (copy / file).write_text(json.dumps(content | change if change and file == "config.json" else change))
    with pytest.raises(ConfigurationFailure, match=r"spec\.model\.uri: .*" + message) as failure:
        load(config(copy), 2)
    assert "ignore_mismatched_sizes" not in failure.value.sentence


def test_weights_without_a_head(copy: Path) -> None:
    """transformers would score with a random head."""
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    del weights["classifier.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigurationFailure, match=r"lack classifier\.weight: .*random numbers"):
        load(config(copy), 2)


def test_a_tokenizer_with_tokens_that_the_model_does_not_know(copy: Path) -> None:
    """Such a token in one request would break a GPU for all of them."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(copy)
    tokenizer.add_tokens(["<added>"])
    tokenizer.save_pretrained(copy)
    with pytest.raises(ConfigurationFailure, match=r"spec\.model\.uri: the model's tokenizer has (\d+) tokens where"):
        load(config(copy), 2)


def test_weights_that_score_nothing(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    weights["bert.embeddings.LayerNorm.weight"].fill_(3e38)
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigurationFailure, match=r"not finite numbers: its numbers outgrow float32.*copy the model"):
        load(config(copy), 2)


def test_memory_that_runs_out_while_loading(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    def no_memory(*_: Any, **__: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr(transformers.AutoModelForSequenceClassification, "from_pretrained", no_memory)
    with pytest.raises(EnvironmentFailure, match=r"out of memory while loading the model.*spec\.runtime\.resources"):
        load(config(copy), 2)
