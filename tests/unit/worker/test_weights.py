"""Weights that are damaged, or do not belong to their config.json, are refused before anything is built."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rerank_worker.failures import ConfigurationFailure
from rerank_worker.loading.weights import INDEX, SINGLE, check_numbers, check_weights


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


KINDS = {"F64": np.float64, "F32": np.float32, "F16": np.float16}


def save_numbers(path: Path, kind: str, numbers: list[float]) -> None:
    """Safetensors of a tensor of zeros, one of ``numbers`` and one of integers with all bits set."""
    values = np.asarray(numbers, np.float32)
    # The upper half of a float32.
    own = (values.view(np.uint32) >> 16).astype(np.uint16) if kind == "BF16" else values.astype(KINDS[kind])
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, of, content in (
        ("zeros", kind, np.zeros_like(own)),
        ("own", kind, own),
        ("ids", "I64", np.full(3, -1, np.int64)),
    ):
        content = content.tobytes()
        shape = [len(content) // (8 if of == "I64" else own.itemsize)]
        header[name] = {"dtype": of, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


FINITE = st.floats(-60_000, 60_000, width=16)


@given(st.sampled_from([*KINDS, "BF16"]), st.lists(FINITE, max_size=40), st.data())
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_no_number_is_found_wherever_it_is(
    tmp_path: Path, kind: str, numbers: list[float], data: st.DataObject
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rerank_worker.loading.weights._CHUNK", 16)
        save_numbers(tmp_path / SINGLE, kind, numbers)
        check_numbers(tmp_path)
        bad = data.draw(st.lists(st.sampled_from([math.nan, math.inf, -math.inf]), min_size=1, max_size=3))
        for one in bad:
            numbers.insert(data.draw(st.integers(0, len(numbers))), one)
        save_numbers(tmp_path / SINGLE, kind, numbers)
        told = rf"model.safetensors of the model is damaged: {len(bad)} of the {len(numbers)} weights in own are no"
        with pytest.raises(ConfigurationFailure, match=told):
            check_numbers(tmp_path)


def test_numbers_of_all_shards_are_looked_at(tmp_path: Path) -> None:
    save_numbers(tmp_path / "a.safetensors", "F32", [1.0])
    save_numbers(tmp_path / "b.safetensors", "F32", [math.nan])
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}))
    with pytest.raises(ConfigurationFailure, match=r"b\.safetensors of the model is damaged"):
        check_numbers(tmp_path)


def test_the_largest_numbers_are_numbers(tmp_path: Path) -> None:
    save_numbers(tmp_path / SINGLE, "F32", [3.4e38, -3.4e38, 1e-45] * 3)
    check_numbers(tmp_path)
