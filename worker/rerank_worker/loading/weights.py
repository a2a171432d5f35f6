"""Whether the weights are whole, have as many layers as config.json says, and hold numbers; keeps none of them.

Headers are looked at before anything is built, and numbers beside the building. A wrong number of layers is not
harmless: too many are built for hours before the first is missed, and too few score wrongly without a word. Nor is a
row of embeddings that is no number: whoever's document has that word finds it, one request after another.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open

from rerank_worker.failures import ConfigurationFailure, first_line
from rerank_worker.loading.verify import read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
"""transformers reads the first, and where there is none what the second names."""

_AGAIN = "copy the file again"

_POINTER = b"version https://git-lfs"

_LAYER = re.compile(r"(?:^|\.)layers?\.(\d+)\.")
"""In a tensor's name, such as bert.encoder.layer.5.output.dense.weight; not in ALBERT's, whose layers share weights."""

_EXPONENTS: dict[str, tuple[type[np.unsignedinteger[Any]], int]] = {
    "F64": (np.uint64, 0x7FF0_0000_0000_0000),
    "F32": (np.uint32, 0x7F80_0000),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
}
"""By safetensors' names of types: the bits of the exponent, which are all set in infinities and NaNs only (IEEE 754;
bfloat16 is the upper half of a float32)."""

_CHUNK = 2**20
"""Bytes that are looked at together: they stay in the processor's cache."""

_COUNTS = ("num_hidden_layers", "n_layers")
"""Fields of config.json that tell how many layers are built; the second is DistilBERT's."""


def check_weights(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse weights that are damaged or have another number of layers than ``config`` asks for.

    Raises ConfigurationFailure that names the file and the remedy.
    """
    names = [name for path in _files(folder) for name in _names(path)]
    found = {int(match[1]) for name in names if (match := _LAYER.search(name))}
    field = next((field for field in _COUNTS if field in config), None)
    if found and field is not None and config[field] != max(found) + 1:
        raise ConfigurationFailure(
            f"spec.model.uri: config.json of the model sets {field} to {str(config[field])[:80]}, but its weights have "
            f"{max(found) + 1} layers: restore the config.json that belongs to the weights"
        )


def check_numbers(folder: Path) -> None:
    """Refuse weights of which any is infinite or no number. Reads all of them, a little at a time.

    Raises ConfigurationFailure that names the tensor.
    """
    for path in _files(folder):
        # The header is right, and fits the file, once safetensors has read it.
        _names(path)
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            for name, tensor in json.loads(file.read(size)).items():
                if name == "__metadata__" or tensor["dtype"] not in _EXPONENTS:
                    continue
                kind, exponent = _EXPONENTS[tensor["dtype"]]
                start, end = tensor["data_offsets"]
                file.seek(8 + size + start)
                if wrong := _no_numbers(file, end - start, kind, exponent):
                    count = (end - start) // np.dtype(kind).itemsize
                    raise _damaged(path, f"{wrong} of the {count} weights in {name} are no finite numbers: {_AGAIN}")


def _no_numbers(file: BinaryIO, size: int, kind: type[np.unsignedinteger[Any]], exponent: int) -> int:
    """How many of the next ``size`` bytes' numbers have all bits of ``exponent`` set."""
    wrong, mask = 0, kind(exponent)
    while size > 0:
        part = file.read(min(_CHUNK, size))
        if len(part) < min(_CHUNK, size):
            # The file was cut since its header was read, which whoever watches for changes says.
            break
        wrong += int(np.count_nonzero((np.frombuffer(part, kind) & mask) == mask))
        size -= len(part)
    return wrong


def _files(folder: Path) -> list[Path]:
    """The files that transformers reads weights from; none where it would find none. Raises ConfigurationFailure."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    weight_map = read_json(folder, INDEX).get("weight_map")
    if not isinstance(weight_map, Mapping):
        return []
    files = sorted({str(file) for file in weight_map.values()})
    for file in files:
        if "/" in file or not (folder / file).is_file():
            raise ConfigurationFailure(f"spec.model.uri: {INDEX} names {file}, but the model has no such file")
    return [folder / file for file in files]


def _names(path: Path) -> list[str]:
    """The tensors' names. safetensors itself compares the header with the file's length; no tensor is read."""
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise _damaged(path, "it is a git-lfs pointer and no weights: fetch them with git lfs pull")
    try:
        with safe_open(path, framework="numpy") as tensors:
            return list(tensors.keys())
    except SafetensorError as error:
        raise _damaged(path, f"{first_line(error)}: {_AGAIN}") from error


def _damaged(path: Path, why: str) -> ConfigurationFailure:
    return ConfigurationFailure(f"spec.model.uri: {path.name} of the model is damaged: {why}")
