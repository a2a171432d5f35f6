"""What may be loaded: the lock's checksums, safetensors only, an architecture that is known to score right, no code.

Reads files and refuses; never loads weights and never imports torch.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rerank_worker.failures import ConfigurationFailure
from rerank_worker.loading.source import FILES

ARCHITECTURES = frozenset(
    {
        "AlbertForSequenceClassification",
        "BertForSequenceClassification",
        "CamembertForSequenceClassification",
        "DebertaV2ForSequenceClassification",
        "DistilBertForSequenceClassification",
        "ElectraForSequenceClassification",
        "MPNetForSequenceClassification",
        "ModernBertForSequenceClassification",
        "RobertaForSequenceClassification",
        "XLMRobertaForSequenceClassification",
    }
)
"""Each is tested against sentence-transformers; one that is not tested is not served."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksums(folder: Path) -> dict[str, str]:
    """sha256 of every file that the worker reads of the model, by name."""
    paths = sorted({path for pattern in FILES for path in folder.glob(pattern) if path.is_file()})
    with ThreadPoolExecutor(max_workers=4) as pool:
        return dict(zip((path.name for path in paths), pool.map(sha256_of, paths), strict=True))


def check_lock(folder: Path, lock: Mapping[str, str]) -> None:
    """Refuse the model unless each file named in ``lock`` has its checksum."""
    for name, expected in lock.items():
        if "/" in name or name in {"", ".", ".."}:
            raise ConfigurationFailure(f"spec.model.sha256: {name!r} is not the name of a file in the model's folder")
        if not _SHA256.fullmatch(expected.lower()):
            raise ConfigurationFailure(f"spec.model.sha256: the value of {name} is not 64 hexadecimal digits")
        path = folder / name
        if not path.is_file():
            raise ConfigurationFailure(f"spec.model.sha256 names {name}, but the model has no such file")
        found = sha256_of(path)
        if found != expected.lower():
            raise ConfigurationFailure(
                f"spec.model.sha256: {name} has checksum {found} where {expected.lower()} is locked: the model was "
                "changed or damaged; restore the file, or lock the new checksum if the change is meant"
            )


def check_files(folder: Path) -> None:
    """Refuse a folder without safetensors weights, configuration or a fast tokenizer."""
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.ckpt") for path in folder.glob(pattern))
        if pickled:
            raise ConfigurationFailure(
                f"spec.model.uri: the model has only pickled weights ({pickled[0]}), which can run code when read: "
                "save it with safetensors (save_pretrained does) and point spec.model.uri there"
            )
        raise ConfigurationFailure(f"spec.model.uri: the model has no *.safetensors weights in {folder}")
    if not (folder / "config.json").is_file():
        raise ConfigurationFailure(f"spec.model.uri: the model has no config.json in {folder}")
    if not (folder / "tokenizer.json").is_file():
        raise ConfigurationFailure(
            "spec.model.uri: the model has no tokenizer.json: save its fast tokenizer into the folder "
            "(AutoTokenizer.from_pretrained(...).save_pretrained(folder))"
        )


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """The object in a JSON file of the model; empty when there is no such file."""
    path = folder / name
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigurationFailure(f"spec.model.uri: {name} of the model is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConfigurationFailure(f"spec.model.uri: {name} of the model is not a JSON object")
    return content


def check_config(config: Mapping[str, Any], tokenizer_config: Mapping[str, Any]) -> str:
    """The architecture, when the worker can serve it. Raises ConfigurationFailure with a remedy when it cannot."""
    for name, content in (("config.json", config), ("tokenizer_config.json", tokenizer_config)):
        if content.get("auto_map"):
            raise ConfigurationFailure(
                f"spec.model.uri: {name} of the model asks for its own code (auto_map), which is never run: convert "
                "the model to an architecture that transformers ships, or remove auto_map if it already is one"
            )
    architectures = config.get("architectures") or []
    name = architectures[0] if architectures else None
    if name not in ARCHITECTURES:
        raise ConfigurationFailure(
            f"spec.model.uri: the worker does not serve the architecture {name}; it serves "
            + ", ".join(sorted(ARCHITECTURES))
        )
    labels = len(config["id2label"]) if config.get("id2label") else config.get("num_labels", 2)
    if labels != 1:
        raise ConfigurationFailure(
            f"spec.model.uri: the model has {labels} labels where a reranker has one score: use a cross-encoder with "
            "num_labels 1"
        )
    return str(name)
