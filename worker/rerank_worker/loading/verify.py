"""What may be loaded: the lock's checksums, safetensors only, an architecture that is known to score right, no code.

Reads files and refuses; never loads weights and never imports torch. A model's configuration is not trusted: fields
that have libraries fetch or run something are refused, as are those that would change the scores unnoticed.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rerank_worker.failures import ConfigurationFailure, EnvironmentFailure
from rerank_worker.loading.source import FILES

DECODERS = frozenset({"Qwen3ForCausalLM", "Qwen3ForSequenceClassification"})
"""Asked with a prompt that comes with the model (loading/prompts)."""

ARCHITECTURES = DECODERS | frozenset(
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

_ATTENTIONS = (None, "eager", "sdpa", "flash_attention_2")

_SERVED_VALUES: dict[str, tuple[Any, ...]] = {
    # transformers 5 has dropped relative positions from BERT and its kin: it would score without them and not say so.
    "position_embedding_type": (None, "absolute"),
    "is_decoder": (None, False),
    "is_encoder_decoder": (None, False),
    "add_cross_attention": (None, False),
    "pruned_heads": (None, {}),
    "per_layer_config": (None, {}),
    # The precision is the spec's; quantized weights need libraries that the worker does not have.
    "quantization_config": (None,),
    # Weights outside the files that are checked.
    "transformers_weights": (None,),
    # A name with a slash is a kernel that transformers would fetch and run (as in CVE-2026-4372).
    "attn_implementation": _ATTENTIONS,
    "_attn_implementation": _ATTENTIONS,
    "_attn_implementation_internal": _ATTENTIONS,
    "experts_implementation": (None,),
    "_experts_implementation": (None,),
    "_experts_implementation_internal": (None,),
}
"""Values of config.json that the engines follow, for the fields where others change the scores or what is loaded."""

_JINA_CODE = {
    "AutoConfig": "configuration_xlm_roberta.XLMRobertaFlashConfig",
    "AutoModelForSequenceClassification": "modeling_xlm_roberta.XLMRobertaForSequenceClassification",
}

_DECODER_VALUES: dict[str, tuple[Any, ...]] = {
    # The decoder engine relies on no token seeing a later one.
    "is_causal": (None, True),
    "use_bidirectional_attention": (None, False),
}

_SHA256 = re.compile(r"[0-9a-f]{64}")

Seal = Mapping[str, tuple[int, ...]]
"""Identity of each file that is read, by name: changes whenever a file is replaced or written to."""


@dataclass(frozen=True, slots=True)
class Module:
    """An entry of modules.json: the class without its package, and its folder within the model's."""

    kind: str
    path: str


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_of(folder: Path) -> dict[str, Path]:
    """The files that the worker reads of the model, by name within ``folder``."""
    paths = {path for pattern in FILES for path in folder.glob(pattern) if path.is_file()}
    return {path.relative_to(folder).as_posix(): path for path in sorted(paths)}


def checksums(folder: Path, known: Mapping[str, str] | None = None) -> dict[str, str]:
    """sha256 of every file that the worker reads of the model, by name. ``known``: those that are there already."""
    known = known or {}
    files = files_of(folder)
    missing = [name for name in files if name not in known]
    with ThreadPoolExecutor(max_workers=4) as pool:
        found = dict(zip(missing, pool.map(sha256_of, [files[name] for name in missing]), strict=True))
    return {name: known[name] if name in known else found[name] for name in files}


def weights_sha256(digests: Mapping[str, str]) -> str:
    """One checksum for all weights, of the ``digests`` of a model's files by name: the sha256 of what
    `sha256sum *.safetensors` prints, so that it can be made by hand."""
    lines = [f"{digests[name]}  {name}\n" for name in sorted(digests) if name.endswith(".safetensors")]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def seal(folder: Path) -> Seal:
    """To be taken before the first file is checked; ``check_seal`` compares when all have been read.

    Of the link as of what it points to: the hub's cache is links. The time of change (ctime) is the kernel's, so that
    a file which is swapped and put back is noticed too.
    """

    def identity(path: Path) -> tuple[int, ...]:
        return tuple(
            number
            for stat in (path.lstat(), path.stat())
            for number in (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        )

    return {name: identity(path) for name, path in files_of(folder).items()}


def check_seal(folder: Path, before: Seal) -> None:
    """Raise EnvironmentFailure when a file of the model is not the one that was checked."""
    try:
        after = seal(folder)
    except FileNotFoundError as error:
        raise EnvironmentFailure(f"{_CHANGED}: {Path(str(error.filename)).name} is gone") from error
    names = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    if names:
        raise EnvironmentFailure(f"{_CHANGED} ({', '.join(names[:3])})")


_CHANGED = (
    "the model's files were changed while they were loaded: what was loaded may not be what was checked; start again "
    "when nothing writes to the folder of spec.model.uri"
)


def check_lock(folder: Path, lock: Mapping[str, str], known: Mapping[str, str] | None = None) -> dict[str, str]:
    """The checksums of the files named in ``lock``; refuses the model unless they are those of the lock.

    ``known``: checksums that are there already.
    """
    digests = {}
    for name, expected in lock.items():
        if name.startswith("/") or {"", ".", ".."} & set(name.split("/")):
            raise ConfigurationFailure(f"spec.model.sha256: {name!r} is not the name of a file in the model's folder")
        if not _SHA256.fullmatch(expected.lower()):
            raise ConfigurationFailure(f"spec.model.sha256: the value of {name} is not 64 hexadecimal digits")
        path = folder / name
        if not path.is_file():
            raise ConfigurationFailure(f"spec.model.sha256 names {name}, but the model has no such file")
        found = (known or {}).get(name) or sha256_of(path)
        if found != expected.lower():
            raise ConfigurationFailure(
                f"spec.model.sha256: {name} has checksum {found} where {expected.lower()} is locked: the model was "
                "changed or damaged; restore the file, or lock the new checksum if the change is meant"
            )
        digests[name] = found
    return digests


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
    if (folder / "adapter_config.json").is_file():
        raise ConfigurationFailure(
            "spec.model.uri: the model is an adapter (adapter_config.json): merge it into its base model "
            "(merge_and_unload) and save that"
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


def read_modules(folder: Path) -> list[Module]:
    """modules.json of the model. Raises ConfigurationFailure where it is not a list of modules within the folder."""
    try:
        content = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        if not isinstance(content, list):
            raise TypeError(f"it is a {type(content).__name__}")
        modules = [Module(str(module["type"]).rpartition(".")[2], str(module.get("path", ""))) for module in content]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigurationFailure(
            f"spec.model.uri: modules.json of the model is not a list of modules: {type(error).__name__}: {error}"
        ) from error
    for module in modules:
        if "/" in module.path or module.path in {".", ".."}:
            raise ConfigurationFailure(
                f"spec.model.uri: modules.json of the model names {module.path!r}, which is not a folder in the model's"
            )
    return modules


def check_config(config: Mapping[str, Any], tokenizer_config: Mapping[str, Any]) -> str:
    """The architecture, when the worker can serve it. Raises ConfigurationFailure with a remedy when it cannot."""
    own = {name: value for name, value in config.items() if name != "auto_map"} if jina_flash_config(config) else config
    for name, content in (("config.json", own), ("tokenizer_config.json", tokenizer_config)):
        if _asks_for_code(content):
            raise ConfigurationFailure(
                f"spec.model.uri: {name} of the model asks for its own code (auto_map), which is never run: convert "
                "the model to an architecture that transformers ships, or remove auto_map if it already is one"
            )
    architectures = config.get("architectures") or []
    name = architectures[0] if architectures else None
    if name is None:
        raise ConfigurationFailure(
            "spec.model.uri: config.json of the model names no architectures: restore the one that the model was saved "
            "with"
        )
    if name not in ARCHITECTURES:
        raise ConfigurationFailure(
            f"spec.model.uri: the worker does not serve the architecture {name}; it serves "
            + ", ".join(sorted(ARCHITECTURES))
        )
    for field, served in (_SERVED_VALUES | (_DECODER_VALUES if name in DECODERS else {})).items():
        if config.get(field) not in served:
            raise ConfigurationFailure(
                f"spec.model.uri: config.json of the model sets {field} to {str(config[field])[:80]}, which the worker "
                "does not follow: its scores would not be the model's; use a model that does without"
            )
    if name.endswith("ForCausalLM"):
        return name
    labels = len(config["id2label"]) if config.get("id2label") else config.get("num_labels", 2)
    if labels != 1:
        raise ConfigurationFailure(
            f"spec.model.uri: the model has {labels} labels where a reranker has one score: use a cross-encoder with "
            "num_labels 1"
        )
    return str(name)


def jina_flash_config(config: Mapping[str, Any]) -> bool:
    """Whether config.json is that of jina-reranker-v2 or a model tuned from it: XLM-R under other names.

    Source: config.json of huggingface.co/jinaai/jina-reranker-v2-base-multilingual. Its code is neither needed nor run.
    """
    code = config.get("auto_map")
    return (
        config.get("architectures") == ["XLMRobertaForSequenceClassification"]
        and isinstance(code, Mapping)
        # A repository may be named before the class, as in "owner/model--file.Class".
        and all(str(code.get(kind, "")).rpartition("--")[2] == name for kind, name in _JINA_CODE.items())
    )


def _asks_for_code(content: Any) -> bool:
    """Whether auto_map is set, at any depth: libraries follow nested ones too (CVE-2025-66448)."""
    if isinstance(content, Mapping):
        return bool(content.get("auto_map")) or any(_asks_for_code(value) for value in content.values())
    return isinstance(content, list) and any(_asks_for_code(value) for value in content)
