"""Decoder rerankers against transformers, one unpadded pair at a time, and against CrossEncoder on the same folder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rerank_api.worker_config import ModelSource, WorkerConfig
from rerank_worker.engine import Engine, EngineUnsupported, Pair, torch_decoder, torch_padded
from rerank_worker.loading import model, prompts
from unit.worker.engines import checkpoints

QUERY = "where do cats sleep?"
DOCUMENTS = [
    "On sofas.",
    "",
    "a " * 30,
    "yes",
    "\n\n two lines \n",
    "中文",
    "They sleep 16 hours a day; mostly by day.",
]


@pytest.fixture(scope="module", params=list(checkpoints.DECODERS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.DECODERS[request.param](tmp_path_factory.mktemp("models") / request.param)


def build(folder: Path, max_length: int = 400, **settings: Any) -> tuple[Engine, Callable[[str], Pair]]:
    checkpoint = checkpoints.checkpoint(folder, max_length=max_length, **settings)
    checkpoint.prompt = prompts.read_prompt(folder, checkpoint.architecture, checkpoint.tokenizer)
    tokenizer = prompts.pair_tokenizer(checkpoint.tokenizer, checkpoint.prompt, max_length)
    query = tokenizer.query(QUERY)
    return torch_decoder.build(checkpoint), lambda text: tokenizer.pair(query, tokenizer.documents([text])[0])[0]


def score(engine: Engine, pairs: list[Pair]) -> list[float]:
    return engine.collect(engine.compute(engine.prepare(pairs)))


def plain(folder: Path, pair: Pair) -> float:
    """The full logits of transformers' module for one pair without padding."""
    import transformers

    kind = json.loads((folder / "config.json").read_text())["architectures"][0]
    module: Any = getattr(transformers, kind).from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = module(torch.tensor([pair.ids])).logits[0]
    if kind.endswith("ForSequenceClassification"):
        return logits[0].item()
    answers = json.loads((folder / "1_LogitScore" / "config.json").read_text())
    return (logits[-1, answers["true_token_id"]] - logits[-1, answers["false_token_id"]]).item()


def test_as_transformers_alone_and_in_a_crowd(folder: Path) -> None:
    engine, pair = build(folder)
    pairs = [pair(text) for text in DOCUMENTS]
    expected = [plain(folder, each) for each in pairs]
    assert np.ptp(expected) > 0.05
    assert score(engine, pairs) == pytest.approx(expected, abs=2e-5)
    assert [score(engine, [each])[0] for each in pairs] == pytest.approx(expected, abs=2e-5)
    assert score(engine, pairs[::-1]) == pytest.approx(expected[::-1], abs=2e-5)


def test_what_pads_a_row_does_not_reach_its_score(folder: Path) -> None:
    engine, pair = build(folder)
    short, long = pair("cats"), pair("a longer document about dogs")
    ids, last = engine.prepare([long, short])
    expected = engine.collect(engine.compute((ids.clone(), last.clone())))
    ids[1, len(short) :] = 7
    assert engine.collect(engine.compute((ids, last))) == expected


def test_as_cross_encoder_says(folder: Path) -> None:
    from sentence_transformers import CrossEncoder

    loaded = model.load(WorkerConfig(model=ModelSource(path=str(folder)), device="cpu", max_length=300), 2)
    tokenizer = loaded.tokenizer
    query = tokenizer.query(QUERY)
    texts = [*DOCUMENTS, "a very long document " * 40]
    pairs = [tokenizer.pair(query, ids)[0] for ids in tokenizer.documents(texts)]
    assert loaded.info["engine"] == "torch-decoder"
    assert loaded.activation == "identity"
    assert max(len(each) for each in pairs) == 300
    peer = CrossEncoder(str(folder), device="cpu", max_length=300, local_files_only=True)
    expected = peer.predict([(QUERY, text) for text in texts], batch_size=3, show_progress_bar=False)
    assert score(loaded.engine, pairs) == pytest.approx(expected.tolist(), abs=2e-5)


def test_only_the_answers_rows_of_the_head_are_kept(tmp_path: Path) -> None:
    folder = checkpoints.save_qwen3_reranker(tmp_path / "model", tie_word_embeddings=False)
    engine, pair = build(folder)
    assert isinstance(engine, torch_decoder.TorchDecoderEngine)
    assert engine._rows.shape == (2, 32)
    assert not hasattr(engine._decoder, "lm_head")
    assert score(engine, [pair("cats")]) == pytest.approx([plain(folder, pair("cats"))], abs=2e-5)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_is_near(folder: Path, precision: Any) -> None:
    engine, pair = build(folder)
    half, _ = build(folder, precision=precision)
    pairs = [pair(text) for text in DOCUMENTS]
    assert score(half, pairs) == pytest.approx(score(engine, pairs), abs=0.3)


def test_one_answer_alone_is_a_score(tmp_path: Path) -> None:
    folder = checkpoints.save_qwen3_reranker(tmp_path / "model")
    answers = folder / "1_LogitScore" / "config.json"
    both = json.loads(answers.read_text())
    answers.write_text(json.dumps(both | {"false_token_id": None}))
    one, pair = build(folder)
    with_no = score(build_with(folder, answers, both), [pair("cats")])[0]
    with_yes = score(one, [pair("cats")])[0]
    assert with_yes != pytest.approx(with_no, abs=1e-3)


def build_with(folder: Path, answers: Path, content: dict[str, int]) -> Engine:
    answers.write_text(json.dumps(content))
    return build(folder)[0]


def test_engines_do_not_take_each_others_models(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineUnsupported, match="torch-decoder"):
        torch_padded.build(checkpoints.checkpoint(folder))
    encoder = checkpoints.save_minilm(tmp_path / "encoder")
    with pytest.raises(EngineUnsupported, match="not a decoder"):
        torch_decoder.build(checkpoints.checkpoint(encoder))
    checkpoint = checkpoints.checkpoint(folder, precision="int8")
    checkpoint.prompt = prompts.read_prompt(folder, checkpoint.architecture, checkpoint.tokenizer)
    with pytest.raises(EngineUnsupported, match="int8"):
        torch_decoder.build(checkpoint)
