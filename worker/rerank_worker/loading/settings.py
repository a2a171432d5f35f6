"""What the model's own files say about scoring: its activation and its longest input.

Follows sentence-transformers' CrossEncoder, so that "auto" gives the same scores; where a folder asks for something
that the worker does not do (an encoder's prompt, further modules), it is refused instead of scored wrongly.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from rerank_api.reranker import Activation

from rerank_worker.failures import ConfigurationFailure
from rerank_worker.loading.verify import DECODERS, read_json, read_modules

ChosenActivation = Literal["sigmoid", "identity"]

DEFAULT_MAX_LENGTH = 512
"""Tokens; quality and speed fall beyond it for most models, so longer is a choice."""

# These count positions from the padding token's id + 1, so fewer tokens fit than there are position embeddings. By
# architecture: a model_type is the choice of whoever saved the model (jina-reranker-v2 has its own code's, or none).
_OFFSET_POSITIONS = ("Roberta", "XLMRoberta", "Camembert", "MPNet")

_ACTIVATIONS: dict[str, ChosenActivation] = {
    "torch.nn.modules.activation.Sigmoid": "sigmoid",
    "torch.nn.Sigmoid": "sigmoid",
    "torch.nn.modules.linear.Identity": "identity",
    "torch.nn.Identity": "identity",
}


def check_sentence_transformers(folder: Path, architecture: str = "") -> Mapping[str, Any]:
    """config_sentence_transformers.json where CrossEncoder would read it; refuses what would score otherwise."""
    if not (folder / "modules.json").is_file():
        return {}
    decoder = architecture in DECODERS
    modules = read_modules(folder)
    kinds = [module.kind for module in modules]
    served = [["Transformer"], ["Transformer", "LogitScore"]] if decoder else [["Transformer"]]
    if kinds not in served or modules[0].path:
        raise ConfigurationFailure(
            f"spec.model.uri: the model is a pipeline of modules ({', '.join(kinds)}); the worker serves a single "
            "sequence-classification model, or a decoder with LogitScore"
        )
    content = read_json(folder, "config_sentence_transformers.json")
    if content.get("model_type") not in (None, "CrossEncoder"):
        raise ConfigurationFailure(
            f"spec.model.uri: the model is a {content['model_type']}, not a cross-encoder: it has no reranking head"
        )
    if decoder:
        return content
    prompt = content.get("default_prompt_name")
    if prompt is not None:
        raise ConfigurationFailure(
            f"spec.model.uri: the model puts the prompt {prompt!r} before its inputs, which the worker does not support"
        )
    own = read_json(folder, "sentence_bert_config.json")
    for name in ("do_lower_case", "processing_kwargs", "query_expansion"):
        if own.get(name):
            raise ConfigurationFailure(
                f"spec.model.uri: sentence_bert_config.json of the model sets {name}, which the worker does not "
                "follow: save the model without it, or put it into the tokenizer"
            )
    return content


def choose_activation(asked: Activation, config: Mapping[str, Any], own: Mapping[str, Any]) -> ChosenActivation:
    """``own``: config_sentence_transformers.json. The order of places is CrossEncoder's; a sigmoid where none says."""
    if asked != "auto":
        return asked
    name = (
        own.get("activation_fn")
        or (config.get("sentence_transformers") or {}).get("activation_fn")
        or config.get("sbert_ce_default_activation_function")
    )
    # CrossEncoder does not run an activation from outside torch unless remote code is trusted, and takes its default.
    if name is None or not name.startswith("torch."):
        return "sigmoid"
    if name not in _ACTIVATIONS:
        raise ConfigurationFailure(
            f"spec.model.activation is auto and the model asks for {name}, which the worker does not have: set "
            "spec.model.activation to sigmoid or identity"
        )
    return _ACTIVATIONS[name]


def own_limit(config: Mapping[str, Any], tokenizer_limit: int) -> int:
    """Most tokens of one pair that the model can take."""
    positions = config.get("max_position_embeddings")
    if not isinstance(positions, int) or positions <= 0:
        return tokenizer_limit
    if str((config.get("architectures") or [""])[0]).startswith(_OFFSET_POSITIONS):
        padding = config.get("pad_token_id")
        positions -= (1 if padding is None else padding) + 1
    return min(tokenizer_limit, positions)


def choose_max_length(asked: int | None, limit: int, preferred: int | None) -> int:
    """Tokens of a pair. ``limit``: what the model can take; ``preferred``: what its authors saved as their choice."""
    if asked is None:
        return min(limit, preferred or limit, DEFAULT_MAX_LENGTH)
    if asked > limit:
        raise ConfigurationFailure(
            f"spec.model.maxLength (--max-length) is {asked}, but the model takes at most {limit} tokens: "
            "lower it, or leave it out"
        )
    return asked
