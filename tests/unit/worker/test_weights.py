"""Weights that are damaged, or do not belong to their config.json, are refused before anything is built."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rerank_worker.failures import ConfigurationFailure
from rerank_worker.loading.weights import INDEX, SINGLE, check_weights


def save(path: Path, names: list[str]) -> None:
    """A safetensors file with one float32 number for each name."""
    tensors = {
        name: {"dtype": "F32", "shape": [1], "data_offsets": [4 * place, 4 * place + 4]}
        for place, name in enumerate(names)
    }
    text = json.dumps({"__metadata__": {"format": "pt"}, **tensors}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4 * len(names)))


def layers(prefix: str, count: int) -> list[str]:
    return ["classifier.weight", *(f"{prefix}.{number}.output.weight" for number in range(count))]


@pytest.mark.parametrize(
    ("names", "config"),
    [
        (layers("bert.encoder.layer", 12), {"num_hidden_layers": 12}),
        (layers("model.layers", 3), {"num_hidden_layers": 3}),
        (layers("distilbert.transformer.layer", 6), {"n_layers": 6}),
        (["albert.encoder.albert_layer_groups.0.albert_layers.0.ffn.weight"], {"num_hidden_layers": 12}),
        (layers("bert.encoder.layer", 12), {}),
        (["0.linear.weight"], {"num_hidden_layers": 2}),
    ],
)
def test_whole_weights_of_their_config_pass(names: list[str], config: dict[str, Any], tmp_path: Path) -> None:
    save(tmp_path / SINGLE, names)
    check_weights(tmp_path, config)


@pytest.mark.parametrize("asked", [1_000_000, 5, 0, "6", None])
def test_another_number_of_layers_is_refused(asked: object, tmp_path: Path) -> None:
    """A million layers were built for hours, with gigabytes and no end; one too few scored 0.138 instead of 0.930."""
    save(tmp_path / SINGLE, layers("bert.encoder.layer", 6))
    with pytest.raises(ConfigurationFailure, match=r"sets num_hidden_layers to .* but its weights have 6 layers"):
        check_weights(tmp_path, {"num_hidden_layers": asked})


def test_layers_are_counted_over_all_shards(tmp_path: Path) -> None:
    first, second = layers("model.layers", 2), ["model.layers.2.output.weight"]
    save(tmp_path / "a.safetensors", first)
    save(tmp_path / "b.safetensors", second)
    where = dict.fromkeys(first, "a.safetensors") | dict.fromkeys(second, "b.safetensors")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": where}), encoding="utf-8")
    check_weights(tmp_path, {"num_hidden_layers": 3})
    with pytest.raises(ConfigurationFailure, match="3 layers"):
        check_weights(tmp_path, {"num_hidden_layers": 2})
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(ConfigurationFailure, match=r"names b\.safetensors, but the model has no such file"):
        check_weights(tmp_path, {"num_hidden_layers": 3})


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (lambda _: b"<!DOCTYPE html><html>not found</html>", "copy the file again"),
        (lambda _: b"", "copy the file again"),
        (lambda whole: whole[:20], "copy the file again"),
        (lambda whole: whole[:-3], "copy the file again"),
        (lambda whole: whole + b"more", "copy the file again"),
        (lambda whole: whole.replace(b'"data_offsets"', b'"data_offset."'), "copy the file again"),
        (lambda whole: whole[:8] + b"[" + whole[9:], "copy the file again"),
    ],
)
def test_damaged_files_are_told_by_name(damage: Callable[[bytes], bytes], told: str, tmp_path: Path) -> None:
    save(tmp_path / SINGLE, ["a", "b", "c"])
    (tmp_path / SINGLE).write_bytes(damage((tmp_path / SINGLE).read_bytes()))
    with pytest.raises(ConfigurationFailure, match=f"model.safetensors of the model is damaged: .*{told}"):
        check_weights(tmp_path, {})
