"""The flat engine's scores: those of plain transformers, whoever is beside a pair, in every precision.

The reference is the transformers model in float32, unpadded, one pair at a time.
"""

import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from rerank_worker.engine import EngineUnsupported, Pair
from rerank_worker.engine.torch_flat import attention_grouped, build, linear, packing
from rerank_worker.engine.torch_flat.architectures import describe
from rerank_worker.engine.torch_flat.encoder import Encoder
from rerank_worker.engine.torch_flat.engine import TorchFlatEngine
from rerank_worker.loading.verify import jina_flash_config

from . import checkpoints

TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1, "float16": 0.02}
"""On logits whose standard deviation is 0.2 to 1."""

Folder = Callable[[str], Path]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    saved: dict[str, Path] = {}

    def save(name: str) -> Path:
        if name not in saved:
            saved[name] = checkpoints.FLATTENABLE[name](tmp_path_factory.mktemp(name))
        return saved[name]

    return save


def make_pair(rng: random.Random, length: int) -> Pair:
    """Random tokens, the padding token among them (a document may hold its text)."""
    query = rng.randint(1, length)
    return Pair([rng.randrange(0, 70) for _ in range(length)], [int(i >= query) for i in range(length)])


def make_pairs(seed: int, lengths: Sequence[int]) -> list[Pair]:
    rng = random.Random(seed)
    return [make_pair(rng, length) for length in lengths]


def score(engine: Any, pairs: Sequence[Pair]) -> npt.NDArray[np.float32]:
    return np.array(engine.collect(engine.compute(engine.prepare(pairs))), dtype=np.float32)


def reference(name: str, folder: Folder, pairs: Sequence[Pair]) -> npt.NDArray[np.float32]:
    """jina's weights are those of the XLM-R checkpoint under other names."""
    checkpoint = checkpoints.checkpoint(folder("xlm-roberta" if name == "jina" else name))
    module = checkpoint.module(torch.float32)
    logits = []
    for pair in pairs:
        inputs = {"input_ids": torch.tensor([pair.ids]), "attention_mask": torch.ones(1, len(pair), dtype=torch.long)}
        if checkpoint.takes_types:
            inputs["token_type_ids"] = torch.tensor([pair.types])
        with torch.inference_mode():
            logits.append(module(**inputs).logits[0, 0].item())
    return np.array(logits, dtype=np.float32)


LENGTHS = [1, 2, 3, 64, 64, 63, 17, 17, 17, 18, 40, 41, 5, 64, 33, 9, 1]


@pytest.mark.parametrize("name", checkpoints.FLATTENABLE)
@pytest.mark.parametrize("precision", TOLERANCE)
def test_as_plain_transformers(name: str, precision: Any, folder: Folder) -> None:
    pairs = make_pairs(1, LENGTHS)
    engine = build(checkpoints.checkpoint(folder(name), precision=precision))
    expected = reference(name, folder, pairs)
    assert expected.std() > 0.1
    np.testing.assert_allclose(score(engine, pairs), expected, atol=TOLERANCE[precision], rtol=0)


@pytest.mark.parametrize("name", ["xlm-roberta", "modernbert", "modernbert-cls"])
@pytest.mark.parametrize("longest", [0, 20])
def test_long_pairs_go_one_by_one(name: str, longest: int, folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_grouped, "LONGEST", longest)
    monkeypatch.setattr(attention_grouped, "BLOCK", 7)
    pairs = make_pairs(2, LENGTHS)
    engine = build(checkpoints.checkpoint(folder(name)))
    np.testing.assert_allclose(score(engine, pairs), reference(name, folder, pairs), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", checkpoints.FLATTENABLE)
def test_alone_as_in_a_crowd(name: str, folder: Folder) -> None:
    rng = random.Random(3)
    pairs = make_pairs(4, [rng.randint(1, 64) for _ in range(60)])
    engine = build(checkpoints.checkpoint(folder(name)))
    alone = np.concatenate([score(engine, [pair]) for pair in pairs])
    np.testing.assert_allclose(score(engine, pairs), alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["minilm", "modernbert", "modernbert-cls", "jina"])
def test_nothing_leaks_from_a_neighbour(name: str, folder: Folder) -> None:
    pairs = make_pairs(5, [20, 21, 20, 21, 22, 20, 21])
    engine = build(checkpoints.checkpoint(folder(name)))
    before = score(engine, pairs)
    for number, pair in enumerate(pairs):
        other = make_pairs(6 + number, [len(pair)])
        after = score(engine, [*pairs[:number], *other, *pairs[number + 1 :]])
        changed = np.flatnonzero(before != after)
        assert changed.tolist() == [number]


def test_a_wrong_group_is_caught(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the mask over what a group pads, pairs are no longer scored as alone: the tests above can fail."""
    part = attention_grouped.GroupedAttention._part

    def unmasked(self: Any, *arguments: Any) -> Any:
        found = part(self, *arguments)
        if found.padding is not None:
            found.padding.zero_()
        return found

    monkeypatch.setattr(attention_grouped.GroupedAttention, "_part", unmasked)
    pairs = make_pairs(7, [20, 21])
    engine = build(checkpoints.checkpoint(folder("minilm")))
    alone = np.concatenate([score(engine, [pair]) for pair in pairs])
    assert abs(score(engine, pairs) - alone).max() > 1e-3


def test_without_packed_layers(folder: Folder) -> None:
    """Where oneDNN's layers are not to be had."""
    checkpoint = checkpoints.checkpoint(folder("modernbert"))
    described = describe(checkpoint, torch.float32)
    encoder = Encoder(described, linear.plain, torch.device("cpu"), torch.float32, checkpoint.max_length)
    pairs = make_pairs(8, LENGTHS)
    expected = reference("modernbert", folder, pairs)
    np.testing.assert_allclose(score(TorchFlatEngine(encoder, False), pairs), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_packed_layers_as_plain_ones(dtype: torch.dtype, bias: bool) -> None:
    if not linear.can_pack(dtype):
        pytest.skip(f"no packed layers for {dtype} here")
    torch.manual_seed(0)
    weight, x, residual = (torch.randn(shape).to(dtype) for shape in ((48, 32), (7, 32), (7, 48)))
    shift = torch.randn(48).to(dtype) if bias else None
    with torch.inference_mode():
        packed, plain = linear.packed("site", weight, shift), linear.plain("site", weight, shift)
        tolerance = 1e-5 if dtype == torch.float32 else 0.13
        for ours, theirs in (
            (packed(x), plain(x)),
            (packed.gelu(x), plain.gelu(x)),
            (packed.add(x, residual), plain.add(x, residual)),
        ):
            torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)


def test_sites_are_named_once(folder: Folder) -> None:
    sites: list[str] = []

    def record(site: str, weight: torch.Tensor, bias: torch.Tensor | None) -> linear.Dense:
        sites.append(site)
        return linear.plain(site, weight, bias)

    checkpoint = checkpoints.checkpoint(folder("modernbert-cls"))
    Encoder(describe(checkpoint, torch.float32), record, torch.device("cpu"), torch.float32, checkpoint.max_length)
    assert len(set(sites)) == len(sites)
    assert [site for site in sites if site.startswith("layers.0.")] == [
        f"layers.0.{name}" for name in ("qkv", "out", "ffn_in", "gate", "ffn_out")
    ]
    # The last layer's query is computed for first tokens only.
    assert [site for site in sites if site.startswith("layers.2.")][:2] == ["layers.2.query", "layers.2.kv"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"hidden_act": "gelu_new"}, "hidden_act"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"is_decoder": True}, "is_decoder"),
        ({"add_cross_attention": True}, "add_cross_attention"),
        ({"lora_adaptations": ["retrieval"]}, "lora_adaptations"),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "rope_parameters"),
    ],
)
def test_what_is_not_followed_is_refused(change: dict[str, Any], named: str, folder: Folder) -> None:
    checkpoint = checkpoints.checkpoint(folder("minilm"))
    checkpoint.config = checkpoint.config | change
    with pytest.raises(EngineUnsupported, match=named):
        build(checkpoint)


def test_other_architectures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineUnsupported, match="DebertaV2ForSequenceClassification"):
        build(checkpoints.checkpoint(checkpoints.save_deberta(tmp_path)))


def test_jina_is_known_by_its_config(folder: Folder) -> None:
    config = checkpoints.checkpoint(folder("jina")).config
    code = config["auto_map"]
    tuned = {kind: f"jinaai/jina-reranker-v2-base-multilingual--{name}" for kind, name in code.items()}
    assert jina_flash_config(config)
    assert jina_flash_config(config | {"auto_map": tuned})
    assert not jina_flash_config(config | {"auto_map": {}})
    assert not jina_flash_config(config | {"architectures": ["BertForSequenceClassification"]})
    assert not jina_flash_config(config | {"auto_map": code | {"AutoConfig": "configuration_other.Config"}})
    assert not jina_flash_config(checkpoints.checkpoint(folder("xlm-roberta")).config)


def test_the_modules_own_weights_are_not_kept(folder: Folder) -> None:
    """One copy of the layers stays in memory after release."""
    import gc
    import weakref

    checkpoint = checkpoints.checkpoint(folder("minilm"))
    engine = build(checkpoint)
    module = checkpoint.module(torch.float32)
    layers = [weakref.ref(layer) for layer in module.modules() if isinstance(layer, torch.nn.Linear)]
    del module
    checkpoint.release()
    gc.collect()
    assert all(layer() is None for layer in layers)
    assert len(score(engine, make_pairs(9, [4]))) == 1


def test_jina_s_weights_in_less_than_float32_lose_nothing_more(folder: Folder, tmp_path: Path) -> None:
    """Heads of 8: the scale of queries is no power of two, and rounds in bfloat16."""
    from safetensors.torch import load_file, save_file

    for name in ("jina", "xlm-roberta"):
        shutil.copytree(folder(name), tmp_path / name)
        path = tmp_path / name / "model.safetensors"
        rounded = {key: tensor.to(torch.bfloat16) for key, tensor in load_file(path).items()}
        save_file(rounded, path, metadata={"format": "pt"})
    pairs = make_pairs(10, LENGTHS)
    expected = reference("jina", lambda name: tmp_path / name, pairs)
    found = score(build(checkpoints.checkpoint(tmp_path / "jina")), pairs)
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


def test_jina_s_tables_are_as_large_as_its_config_says(folder: Folder) -> None:
    """A token beyond them would break a GPU for everybody."""
    checkpoint = checkpoints.checkpoint(folder("jina"))
    checkpoint.config = checkpoint.config | {"vocab_size": checkpoint.config["vocab_size"] + 1}
    with pytest.raises(EngineUnsupported, match=r"rows of word_embeddings where config\.json says"):
        build(checkpoint)


def test_a_closed_engine_frees_its_weights_at_once(folder: Folder) -> None:
    """Without a collection, which comes when it likes: the next model's weights need the room."""
    import gc
    import weakref

    checkpoint = checkpoints.checkpoint(folder("modernbert"))
    engine = build(checkpoint)
    score(engine, make_pairs(11, [4]))
    encoder = weakref.ref(engine._encoder)
    gc.disable()
    try:
        engine.close()
        assert encoder() is None
    finally:
        gc.enable()


def test_infinities_of_a_pair_stay_its_own() -> None:
    """As half precision has them when it overflows. What is masked is multiplied by zero, which makes no infinity go
    away."""
    packed = packing.pack([Pair([5] * length, [0] * length) for length in (20, 20, 21)])
    torch.manual_seed(0)
    qkv = torch.randn(61, 3, 4, 8)
    qkv[:20, 2] = torch.inf
    attention = attention_grouped.GroupedAttention(packed, torch.device("cpu"), torch.float32)
    assert len(attention._parts) == 1
    assert torch.isfinite(attention.all(qkv, None)[20:]).all()
    assert torch.isfinite(attention.all(qkv, 4)[20:]).all()
    first = attention.first(qkv[packed.offsets[:-1], 0], qkv[:, 1:], None)
    assert torch.isfinite(first[1:]).all()
