"""What the header of the weights says, before anything is built: whole files, and as many layers as config.json has.

Reads headers only, never tensors. A wrong number of layers is not harmless: too many are built for hours before the
first is missed, and too few score wrongly without a word.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from rerank_worker.failures import ConfigurationFailure, first_line
from rerank_worker.loading.verify import read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
"""transformers reads the first, and where there is none what the second names."""

_POINTER = b"version https://git-lfs"

_LAYER = re.compile(r"(?:^|\.)layers?\.(\d+)\.")
"""In a tensor's name, such as bert.encoder.layer.5.output.dense.weight; not in ALBERT's, whose layers share weights."""

_COUNTS = ("num_hidden_layers", "n_layers")
"""Fields of config.json that tell how many layers are built; the second is DistilBERT's."""


def check_weights(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse weights that are damaged or have another number of layers than ``config`` asks for.

    Raises ConfigurationFailure that names the file and the remedy.
    """
    if (folder / SINGLE).is_file():
        names = _names(folder / SINGLE)
    else:
        weight_map = read_json(folder, INDEX).get("weight_map")
        if not isinstance(weight_map, Mapping):
            return
        names = []
        for file in sorted({str(file) for file in weight_map.values()}):
            if "/" in file or not (folder / file).is_file():
                raise ConfigurationFailure(f"spec.model.uri: {INDEX} names {file}, but the model has no such file")
            names += _names(folder / file)
    found = {int(match[1]) for name in names if (match := _LAYER.search(name))}
    field = next((field for field in _COUNTS if field in config), None)
    if found and field is not None and config[field] != max(found) + 1:
        raise ConfigurationFailure(
            f"spec.model.uri: config.json of the model sets {field} to {str(config[field])[:80]}, but its weights have "
            f"{max(found) + 1} layers: restore the config.json that belongs to the weights"
        )


def _names(path: Path) -> list[str]:
    """The tensors' names. safetensors itself compares the header with the file's length; no tensor is read."""
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise _damaged(path, "it is a git-lfs pointer and no weights: fetch them with git lfs pull")
    try:
        with safe_open(path, framework="numpy") as tensors:
            return list(tensors.keys())
    except SafetensorError as error:
        raise _damaged(path, f"{first_line(error)}: copy the file again") from error


def _damaged(path: Path, why: str) -> ConfigurationFailure:
    return ConfigurationFailure(f"spec.model.uri: {path.name} of the model is damaged: {why}")
