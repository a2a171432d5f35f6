"""What the header of the weights says, before anything is built: whole files, and as many layers as config.json has.

Reads headers only, never tensors. A wrong number of layers is not harmless: too many are built for hours before the
first is missed, and too few score wrongly without a word.

Source of the format: github.com/huggingface/safetensors, README, "Format".
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rerank_worker.failures import ConfigurationFailure
from rerank_worker.loading.verify import read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
"""transformers reads the first, and where there is none what the second names."""

LONGEST_HEADER = 100_000_000
"""Bytes, the format's own limit."""

_LAYER = re.compile(r"(?:^|\.)layers?\.(\d+)\.")
"""In a tensor's name, such as bert.encoder.layer.5.output.dense.weight; not in ALBERT's, whose layers share weights."""

_COUNTS = ("num_hidden_layers", "n_layers")
"""Fields of config.json that tell how many layers are built; the second is DistilBERT's."""


def check_weights(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse weights that are damaged or have another number of layers than ``config`` asks for.

    Raises ConfigurationFailure that names the file and the remedy.
    """
    if (folder / SINGLE).is_file():
        names = list(header(folder / SINGLE))
    else:
        weight_map = read_json(folder, INDEX).get("weight_map")
        if not isinstance(weight_map, Mapping):
            return
        names = [str(name) for name in weight_map]
        for file in sorted({str(file) for file in weight_map.values()}):
            if "/" in file or not (folder / file).is_file():
                raise ConfigurationFailure(f"spec.model.uri: {INDEX} names {file}, but the model has no such file")
            header(folder / file)
    found = {int(match[1]) for name in names if (match := _LAYER.search(name))}
    field = next((field for field in _COUNTS if field in config), None)
    if found and field is not None and config[field] != max(found) + 1:
        raise ConfigurationFailure(
            f"spec.model.uri: config.json of the model sets {field} to {str(config[field])[:80]}, but its weights have "
            f"{max(found) + 1} layers: restore the config.json that belongs to the weights"
        )


def header(path: Path) -> dict[str, Any]:
    """The tensors of a safetensors file, by name. Raises ConfigurationFailure where it is none, or is cut short."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if start == b"version ":
            raise _damaged(path, "it is a git-lfs pointer and no weights: fetch them with git lfs pull")
        if len(start) < 8 or length > min(size - 8, LONGEST_HEADER):
            raise _damaged(path, "its header is not one of safetensors, or is cut short: copy the file again")
        text = file.read(length)
    try:
        tensors = {name: tensor for name, tensor in json.loads(text).items() if name != "__metadata__"}
        end = max((int(tensor["data_offsets"][1]) for tensor in tensors.values()), default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise _damaged(path, f"its header cannot be read ({type(error).__name__}): copy the file again") from error
    if end != size - 8 - length:
        raise _damaged(path, f"{end} bytes of tensors are announced, {size - 8 - length} are there: copy it again")
    return tensors


def _damaged(path: Path, why: str) -> ConfigurationFailure:
    return ConfigurationFailure(f"spec.model.uri: {path.name} of the model is damaged: {why}")
