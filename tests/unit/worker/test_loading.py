"""What may be loaded and what is refused, each refusal with the field and the remedy. No weights are read here."""

import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rerank_api.worker_config import ModelSource
from rerank_worker.failures import ConfigurationFailure
from rerank_worker.loading import settings, source, verify

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONFIG = {"architectures": ["BertForSequenceClassification"], "model_type": "bert", "id2label": {"0": "LABEL_0"}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "revision", "expected"),
    [
        ("hf://org/name", COMMIT, ModelSource(repo="org/name", revision=COMMIT)),
        ("hf://org/name", None, ModelSource(repo="org/name")),
        ("/models/a", None, ModelSource(path="/models/a")),
        ("file:///models/a", None, ModelSource(path="/models/a")),
    ],
)
def test_a_model_named_by_hand(text: str, revision: str | None, expected: ModelSource) -> None:
    assert source.parse_model(text, revision) == expected


def test_a_relative_folder_becomes_absolute() -> None:
    path = source.parse_model("models/a", None).path
    assert path is not None
    assert Path(path).is_absolute()


def test_a_revision_of_a_folder_is_refused() -> None:
    with pytest.raises(ConfigurationFailure, match="hf:// models only"):
        source.parse_model("/models/a", COMMIT)


def test_a_local_folder_is_taken_as_it_is(folder: Path) -> None:
    assert source.resolve(ModelSource(path=str(folder))) == folder
    assert source.resolved_revision(ModelSource(path=str(folder)), folder) is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, r"spec\.model\.uri: the folder .* does not exist"),
        (lambda path: path.write_text(""), "is a file, not a folder"),
    ],
)
def test_no_folder(tmp_path: Path, make: Callable[[Path], Any], message: str) -> None:
    make(tmp_path / "model")
    with pytest.raises(ConfigurationFailure, match=message):
        source.resolve(ModelSource(path=str(tmp_path / "model")))


@pytest.mark.parametrize("model", [ModelSource(), ModelSource(path="/a", repo="b/c")])
def test_a_source_is_one_thing(model: ModelSource) -> None:
    with pytest.raises(ConfigurationFailure, match="exactly one"):
        source.resolve(model)


def test_a_whole_folder_passes(folder: Path) -> None:
    verify.check_files(folder)
    verify.check_lock(folder, {"model.safetensors": hashlib.sha256(b"weights").hexdigest().upper()})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "no .*safetensors weights"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "no tokenizer.json.*save_pretrained"),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
            "only pickled weights .pytorch_model.bin..*save it with safetensors",
        ),
    ],
)
def test_folders_that_lack_something(folder: Path, change: Callable[[Path], Any], message: str) -> None:
    change(folder)
    with pytest.raises(ConfigurationFailure, match=r"spec\.model\.uri: .*" + message):
        verify.check_files(folder)


def test_pickled_weights_beside_safetensors_are_not_read(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps("anything"))
    verify.check_files(folder)
    assert "pytorch_model.bin" not in verify.checksums(folder)


@pytest.mark.parametrize(
    ("lock", "message"),
    [
        ({"model.safetensors": "0" * 64}, "was changed or damaged"),
        ({"model.safetensors": "xyz"}, "not 64 hexadecimal digits"),
        ({"other.safetensors": "0" * 64}, "no such file"),
        ({"../config.json": "0" * 64}, "not the name of a file"),
        ({"..": "0" * 64}, "not the name of a file"),
    ],
)
def test_locks_that_do_not_hold(folder: Path, lock: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationFailure, match=r"spec\.model\.sha256.*" + message):
        verify.check_lock(folder, lock)


def test_checksums_of_everything_that_is_read(folder: Path) -> None:
    (folder / "README.md").write_text("not read")
    assert verify.checksums(folder) == {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in ("config.json", "model.safetensors", "tokenizer.json")
    }


def test_a_known_architecture_passes() -> None:
    assert verify.check_config(CONFIG, {}) == "BertForSequenceClassification"


@pytest.mark.parametrize(
    ("change", "tokenizer_config", "message"),
    [
        ({"auto_map": {"AutoModel": "modeling.Mine"}}, {}, "config.json .*auto_map.*never run.*convert the model"),
        ({}, {"auto_map": {"AutoTokenizer": ["mine", None]}}, "tokenizer_config.json .*auto_map"),
        ({"architectures": ["LlamaForCausalLM"]}, {}, "does not serve the architecture LlamaForCausalLM; it serves"),
        ({"architectures": ["BertModel"]}, {}, "BertModel"),
        ({"architectures": None}, {}, "config.json of the model names no architectures: restore"),
        ({"architectures": []}, {}, "names no architectures"),
        ({"id2label": {"0": "a", "1": "b", "2": "c"}}, {}, "3 labels where a reranker has one"),
        ({"id2label": None}, {}, "2 labels"),
    ],
)
def test_models_that_are_not_served(change: dict[str, Any], tokenizer_config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationFailure, match=r"spec\.model\.uri: .*" + message):
        verify.check_config(CONFIG | change, tokenizer_config)


@pytest.mark.parametrize("content", ["{", "[]", '"text"'])
def test_a_config_that_is_no_object(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(ConfigurationFailure, match=r"config.json of the model is not"):
        verify.read_json(folder, "config.json")


SIGMOID = "torch.nn.modules.activation.Sigmoid"
IDENTITY = "torch.nn.modules.linear.Identity"


@pytest.mark.parametrize(
    ("asked", "config", "own", "expected"),
    [
        ("auto", {}, {}, "sigmoid"),
        ("sigmoid", {"sentence_transformers": {"activation_fn": IDENTITY}}, {}, "sigmoid"),
        ("identity", {}, {}, "identity"),
        ("auto", {"sentence_transformers": {"activation_fn": IDENTITY}}, {}, "identity"),
        ("auto", {"sbert_ce_default_activation_function": IDENTITY}, {}, "identity"),
        ("auto", {}, {"activation_fn": IDENTITY}, "identity"),
        ("auto", {"sentence_transformers": {"activation_fn": IDENTITY}}, {"activation_fn": SIGMOID}, "sigmoid"),
        ("auto", {"sentence_transformers": {"version": "4"}}, {}, "sigmoid"),
        ("auto", {"sentence_transformers": {"activation_fn": "mine.Activation"}}, {}, "sigmoid"),
    ],
)
def test_activation(asked: Any, config: dict[str, Any], own: dict[str, Any], expected: str) -> None:
    assert settings.choose_activation(asked, config, own) == expected


def test_an_activation_that_the_worker_lacks_is_refused() -> None:
    config = {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Tanh"}}
    with pytest.raises(
        ConfigurationFailure, match=r"spec\.model\.activation is auto .*Tanh.*set .* to sigmoid or identity"
    ):
        settings.choose_activation("auto", config, {})


XLM_ROBERTA = "XLMRobertaForSequenceClassification"


@pytest.mark.parametrize(
    ("config", "tokenizer_limit", "expected"),
    [
        ({"max_position_embeddings": 512}, 10**30, 512),
        ({"max_position_embeddings": 512}, 256, 256),
        ({"max_position_embeddings": 514, "architectures": [XLM_ROBERTA], "pad_token_id": 1}, 10**30, 512),
        ({"max_position_embeddings": 8194, "architectures": [XLM_ROBERTA], "pad_token_id": 1}, 10**30, 8192),
        # jina-reranker-v2, whose config.json has no model_type of transformers'.
        ({"max_position_embeddings": 1026, "architectures": [XLM_ROBERTA], "pad_token_id": 1}, 10**30, 1024),
        ({"max_position_embeddings": 514, "architectures": ["MPNetForSequenceClassification"]}, 10**30, 512),
        ({"max_position_embeddings": 8192, "architectures": ["ModernBertForSequenceClassification"]}, 10**30, 8192),
        ({"max_position_embeddings": 40960, "architectures": ["Qwen3ForCausalLM"]}, 131072, 40960),
        ({"max_position_embeddings": -1}, 1024, 1024),
        ({}, 1024, 1024),
    ],
)
def test_what_a_model_can_take(config: dict[str, Any], tokenizer_limit: int, expected: int) -> None:
    assert settings.own_limit(config, tokenizer_limit) == expected


@pytest.mark.parametrize(
    ("asked", "limit", "preferred", "expected"),
    [
        (None, 512, None, 512),
        (None, 8192, None, 512),
        (None, 40960, None, 512),
        (None, 512, 256, 256),
        (None, 128, 256, 128),
        (8192, 8192, 256, 8192),
    ],
)
def test_max_length(asked: int | None, limit: int, preferred: int | None, expected: int) -> None:
    assert settings.choose_max_length(asked, limit, preferred) == expected


def test_more_than_the_model_takes_is_refused() -> None:
    with pytest.raises(
        ConfigurationFailure, match=r"spec\.model\.maxLength .* is 1024, but the model takes at most 512"
    ):
        settings.choose_max_length(1024, 512, None)


MODULE = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}


def test_a_saved_cross_encoder_speaks_for_itself(folder: Path) -> None:
    (folder / "modules.json").write_text(json.dumps([MODULE]))
    saved = {"model_type": "CrossEncoder", "activation_fn": IDENTITY, "default_prompt_name": None}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(saved))
    assert settings.check_sentence_transformers(folder) == saved


def test_what_cross_encoder_would_not_read_is_not_read(folder: Path) -> None:
    (folder / "config_sentence_transformers.json").write_text("{")
    assert settings.check_sentence_transformers(folder) == {}


@pytest.mark.parametrize(
    ("modules", "own", "message"),
    [
        ([MODULE, MODULE | {"path": "1_Dense", "type": "x.Dense"}], {}, "pipeline of modules .Transformer, Dense"),
        ([MODULE], {"model_type": "SentenceTransformer"}, "SentenceTransformer, not a cross-encoder"),
        ([MODULE], {"default_prompt_name": "query"}, "prompt 'query'"),
        ({}, {}, "not a list of modules"),
    ],
)
def test_pipelines_that_would_score_otherwise(folder: Path, modules: Any, own: dict[str, Any], message: str) -> None:
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "config_sentence_transformers.json").write_text(json.dumps(own))
    with pytest.raises(ConfigurationFailure, match=r"spec\.model\.uri: .*" + message):
        settings.check_sentence_transformers(folder)
