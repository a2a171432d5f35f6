"""The models of the bench: the demo reranker (MiniLM-L6), and random weights in the shapes of MiniLM-L12 and bge-base.

Random weights cost what trained ones cost; the head is scaled so that scores differ enough to be compared. Folders lie
under .state/bench/models and are made once.
"""

import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import workload

STATE = workload.ROOT / ".state"
MODELS = STATE / "bench" / "models"
DEMO = STATE / "models" / "demo-reranker"
NAMES = ("minilm-l6", "minilm-l12", "bge-base")
SPREAD = 2.0
"""Standard deviation of the logits of random weights."""


class NotReady(Exception):
    """Something must be set up first; the message says what."""


def folder(name: str) -> Path:
    """The model folder of shape ``name``, made where it is not there yet. Raises NotReady."""
    if not (DEMO / "model.safetensors").is_file():
        raise NotReady("no demo model: run 'make setup' first")
    target = DEMO if name == "minilm-l6" else MODELS / name
    if not target.is_dir():
        MODELS.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=MODELS, prefix=".making-") as scratch:
            fresh = Path(scratch) / name
            _random(name, fresh)
            fresh.rename(target)
    return target


def onnx(name: str, python: Path) -> Path:
    """The shape as sentence-transformers exports it (with ``python``, the st-onnx peer's). Raises NotReady."""
    source, target = folder(name), MODELS / f"{name}-onnx"
    if not (target / "onnx" / "model.onnx").is_file():
        if not python.is_file():
            raise NotReady("no environment for the ONNX export: run with --setup")
        MODELS.mkdir(parents=True, exist_ok=True)
        script = Path(__file__).parent / "peers" / "export.py"
        with tempfile.TemporaryDirectory(dir=MODELS, prefix=".making-") as scratch:
            fresh = Path(scratch) / name
            subprocess.run([python, script, source, fresh], check=True, timeout=900, capture_output=True)
            shutil.rmtree(target, ignore_errors=True)
            fresh.rename(target)
    return target


def _random(name: str, target: Path) -> None:
    import torch
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        XLMRobertaConfig,
        XLMRobertaForSequenceClassification,
    )

    demo = json.loads((DEMO / "config.json").read_text(encoding="utf-8"))
    common: dict[str, Any] = {
        "vocab_size": demo["vocab_size"],
        "num_labels": 1,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
    }
    torch.manual_seed(workload.SEED)
    target.mkdir()
    for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(DEMO / file, target / file)
    if name == "minilm-l12":
        shutil.copyfile(DEMO / "vocab.txt", target / "vocab.txt")
        sizes: dict[str, Any] = {"hidden_size": 384, "intermediate_size": 1536, **_lively(384)}
        model: Any = BertForSequenceClassification(BertConfig(**common, **sizes, type_vocab_size=2, pad_token_id=0))
    else:
        _roberta_tokenizer(target)
        sizes = {"hidden_size": 768, "intermediate_size": 3072, **_lively(768)}
        config = XLMRobertaConfig(**common, **sizes, type_vocab_size=1, max_position_embeddings=514, pad_token_id=1)
        model = XLMRobertaForSequenceClassification(config)
    model.eval()
    _spread(model, target)
    model.config.sentence_transformers = {"activation_fn": "torch.nn.modules.activation.Sigmoid"}
    model.save_pretrained(target)


def _lively(hidden: int) -> dict[str, float]:
    """Weights so large that attention picks words and a score depends on its text; with the usual 0.02 it hardly does,
    and what is left is rounding."""
    return {"initializer_range": 1.5 / hidden**0.5}


def _roberta_tokenizer(target: Path) -> None:
    """The demo's words in XLM-R's format: padding is token 1, a pair has four special tokens and no types."""
    content = json.loads((target / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    names = {number: token for token, number in vocabulary.items()}
    vocabulary[names[0]], vocabulary[names[1]] = 1, 0
    for token in content["added_tokens"]:
        token["id"] = vocabulary[token["content"]]
    cls, sep = vocabulary["[CLS]"], vocabulary["[SEP]"]
    content["post_processor"] = {
        "type": "RobertaProcessing",
        "sep": ["[SEP]", sep],
        "cls": ["[CLS]", cls],
        "trim_offsets": True,
        "add_prefix_space": False,
    }
    (target / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 512,
        "cls_token": "[CLS]",
        "bos_token": "[CLS]",
        "sep_token": "[SEP]",
        "eos_token": "[SEP]",
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "mask_token": "[MASK]",
    }
    (target / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")


def _spread(model: Any, target: Path) -> None:
    """Scale the head so that the logits of some pairs of the workload vary by SPREAD around nought."""
    import torch
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(target, local_files_only=True)
    head = model.classifier.out_proj if hasattr(model.classifier, "out_proj") else model.classifier
    request = workload.build(target, requests=1)[0]
    with torch.inference_mode():
        inputs = [
            tokenizer(request.query, text, truncation=True, max_length=512, return_tensors="pt")
            for text in request.documents
        ]
        logits = torch.cat([model(**one).logits[:, 0] for one in inputs])
        factor = SPREAD / float(logits.std())
        head.weight *= factor
        head.bias.copy_((head.bias - logits.mean()) * factor)
