"""What a model may not do: change the scores by settings that nothing follows, name code, change while it loads."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rerank_api.worker_config import ModelSource, WorkerConfig
from rerank_worker.failures import ConfigurationFailure, EnvironmentFailure, is_of_the_machine
from rerank_worker.loading import settings, verify
from rerank_worker.loading.checkpoint import Checkpoint
from rerank_worker.loading.model import load
from unit.worker.engines import checkpoints

CONFIG = {"architectures": ["BertForSequenceClassification"], "model_type": "bert", "num_labels": 1}
CAUSAL = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
JINA = {
    "architectures": ["XLMRobertaForSequenceClassification"],
    "num_labels": 1,
    "position_embedding_type": "absolute",
    "auto_map": {
        "AutoConfig": "configuration_xlm_roberta.XLMRobertaFlashConfig",
        "AutoModel": "modeling_xlm_roberta.XLMRobertaModel",
        "AutoModelForSequenceClassification": "modeling_xlm_roberta.XLMRobertaForSequenceClassification",
    },
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "1_LogitScore").mkdir()
    (tmp_path / "1_LogitScore" / "config.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (CONFIG, "BertForSequenceClassification"),
        (
            CONFIG | {"position_embedding_type": "absolute", "is_decoder": False, "pruned_heads": {}},
            CONFIG["architectures"][0],
        ),
        (CONFIG | {"attn_implementation": "sdpa", "quantization_config": None}, "BertForSequenceClassification"),
        # Two labels are what a causal model's configuration says by default.
        (CAUSAL, "Qwen3ForCausalLM"),
        (
            CAUSAL | {"architectures": ["Qwen3ForSequenceClassification"], "num_labels": 1},
            "Qwen3ForSequenceClassification",
        ),
        (JINA, "XLMRobertaForSequenceClassification"),
    ],
)
def test_configurations_that_are_followed(config: dict[str, Any], expected: str) -> None:
    assert verify.check_config(config, {}) == expected


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (CONFIG | {"position_embedding_type": "relative_key_query"}, "position_embedding_type to relative_key_query"),
        (CONFIG | {"is_decoder": True}, "is_decoder"),
        (CONFIG | {"add_cross_attention": True}, "add_cross_attention"),
        (CONFIG | {"pruned_heads": {"0": [1]}}, "pruned_heads"),
        (CONFIG | {"quantization_config": {"quant_method": "bitsandbytes"}}, "quantization_config"),
        (CONFIG | {"transformers_weights": "other.safetensors"}, "transformers_weights"),
        (CONFIG | {"attn_implementation": "someone/kernel:attention"}, "attn_implementation"),
        (CONFIG | {"_attn_implementation": "paged|someone/kernel"}, "_attn_implementation"),
        (CONFIG | {"_attn_implementation_internal": "someone/kernel"}, "_attn_implementation_internal"),
        (CAUSAL | {"is_causal": False}, "is_causal to False"),
        (CAUSAL | {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        (JINA | {"position_embedding_type": "alibi"}, "position_embedding_type"),
    ],
)
def test_settings_that_nothing_follows_are_refused_by_name(config: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigurationFailure, match=r"spec\.model\.uri: config.json of the model sets " + field):
        verify.check_config(config, {})


@pytest.mark.parametrize(
    ("config", "tokenizer_config"),
    [
        (CONFIG | {"text_config": {"auto_map": {"AutoModel": "mine.Model"}}}, {}),
        (CONFIG | {"parts": [{"auto_map": {"AutoModel": "mine.Model"}}]}, {}),
        (CONFIG | {"auto_map": JINA["auto_map"]}, {}),
        (JINA | {"auto_map": {"AutoModelForSequenceClassification": "evil.Model"}}, {}),
        (JINA, {"auto_map": {"AutoTokenizer": ["mine", None]}}),
        (JINA | {"inner": {"auto_map": {"AutoModel": "mine.Model"}}}, {}),
    ],
)
def test_code_is_refused_wherever_it_is_named(config: dict[str, Any], tokenizer_config: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationFailure, match=r"asks for its own code .auto_map., which is never run"):
        verify.check_config(config, tokenizer_config)


def test_an_adapter_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigurationFailure, match="is an adapter"):
        verify.check_files(folder)


@pytest.mark.parametrize("path", ["../outside", "a/b", ".."])
def test_modules_stay_within_the_folder(folder: Path, path: str) -> None:
    (folder / "modules.json").write_text(json.dumps([{"type": "a.LogitScore", "path": path}]))
    with pytest.raises(ConfigurationFailure, match="not a folder in the model's"):
        verify.read_modules(folder)


@pytest.mark.parametrize("name", ["do_lower_case", "processing_kwargs", "query_expansion"])
def test_inputs_that_would_be_prepared_otherwise_are_refused(folder: Path, name: str) -> None:
    kind = "sentence_transformers.base.modules.transformer.Transformer"
    (folder / "modules.json").write_text(json.dumps([{"type": kind, "path": ""}]))
    (folder / "sentence_bert_config.json").write_text(json.dumps({name: {"a": 1}}))
    with pytest.raises(ConfigurationFailure, match=f"sets {name}, which the worker does not follow"):
        settings.check_sentence_transformers(folder, "BertForSequenceClassification")


def test_what_says_how_a_decoder_is_asked_is_locked_too(folder: Path) -> None:
    sums = verify.checksums(folder)
    assert set(sums) == {"config.json", "tokenizer.json", "model.safetensors", "1_LogitScore/config.json"}
    assert verify.check_lock(folder, sums) == sums
    (folder / "1_LogitScore" / "config.json").write_text('{"true_token_id": 1}')
    with pytest.raises(ConfigurationFailure, match=r"1_LogitScore/config\.json has checksum"):
        verify.check_lock(folder, sums)


def test_checksums_that_are_known_are_not_made_again(folder: Path) -> None:
    assert verify.checksums(folder, {"model.safetensors": "known"})["model.safetensors"] == "known"
    with pytest.raises(ConfigurationFailure, match="has checksum known"):
        verify.check_lock(folder, {"model.safetensors": "0" * 64}, {"model.safetensors": "known"})


def replaced(folder: Path) -> None:
    (folder / "new").write_bytes(b"weights")
    (folder / "new").replace(folder / "model.safetensors")


def written_with_its_old_time(folder: Path) -> None:
    path = folder / "model.safetensors"
    before = path.stat()
    # The kernel's clock for files moves in steps of some milliseconds.
    while path.stat().st_ctime_ns == before.st_ctime_ns:
        path.write_bytes(b"WEIGHTS")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def put_back(folder: Path) -> None:
    path = folder / "model.safetensors"
    before = path.stat().st_ctime_ns
    while path.stat().st_ctime_ns == before:
        path.rename(folder / "aside")
        path.write_bytes(b"other")
        path.unlink()
        (folder / "aside").rename(path)


def linked_elsewhere(folder: Path) -> None:
    (folder / "other").write_bytes(b"weights")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(folder / "other")


@pytest.mark.parametrize(
    "change",
    [
        replaced,
        written_with_its_old_time,
        put_back,
        linked_elsewhere,
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: (folder / "added.safetensors").write_bytes(b""),
        lambda folder: (folder / "1_LogitScore" / "config.json").write_text('{"true_token_id": 1}'),
    ],
)
def test_a_file_that_changes_breaks_the_seal(folder: Path, change: Callable[[Path], object]) -> None:
    seal = verify.seal(folder)
    verify.check_seal(folder, seal)
    change(folder)
    with pytest.raises(EnvironmentFailure, match=r"changed while they were loaded.*\((added|model|1_LogitScore)"):
        verify.check_seal(folder, seal)


def test_what_is_not_read_may_change(folder: Path) -> None:
    seal = verify.seal(folder)
    (folder / "README.md").write_text("new")
    verify.check_seal(folder, seal)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.save_minilm(tmp_path_factory.mktemp("models") / "model")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_file_swapped_between_check_and_load_is_caught(
    name: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    check = verify.check_config

    def swap(*arguments: Any) -> str:
        (tmp_path / "new").write_bytes((folder / name).read_bytes())
        (tmp_path / "new").replace(folder / name)
        return check(*arguments)

    monkeypatch.setattr(verify, "check_config", swap)
    with pytest.raises(EnvironmentFailure, match=rf"changed while they were loaded.*{name}"):
        load(WorkerConfig(model=ModelSource(path=str(folder)), device="cpu"), 2, quick=True)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.EIO, "Input/output error"), True),
        (OSError(errno.ESTALE, "Stale file handle"), True),
        (OSError("Can't load the configuration of the model"), False),
        (FileNotFoundError(errno.ENOENT, "No such file"), False),
        (ValueError("unrecognized"), False),
    ],
)
def test_a_disk_that_fails_is_not_the_model_s_fault(error: Exception, expected: bool) -> None:
    assert is_of_the_machine(error) is expected
    wrapped = RuntimeError("cannot load")
    wrapped.__cause__ = error
    assert is_of_the_machine(wrapped) is expected


def test_loading_from_a_disk_that_fails(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Checkpoint, "module", broken)
    with pytest.raises(EnvironmentFailure, match=r"cannot read the model in .*Input/output error"):
        load(WorkerConfig(model=ModelSource(path=str(model)), device="cpu"), 2, quick=True)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_weights_that_are_no_numbers_are_refused_at_load(precision: Any, tmp_path: Path) -> None:
    """One row of embeddings that was NaN was found by whoever's document had that word, one request after another."""
    from safetensors.torch import load_file, save_file

    folder = checkpoints.save_minilm(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    (name,) = [name for name in weights if name.endswith("word_embeddings.weight")]
    weights[name][7, 3] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigurationFailure, match=rf"damaged: 1 of the \d+ weights in {name} are no finite numbers"):
        load(WorkerConfig(model=ModelSource(path=str(folder)), device="cpu", precision=precision), 2, quick=True)
