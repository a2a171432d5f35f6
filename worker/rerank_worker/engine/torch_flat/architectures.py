"""Where each architecture keeps its weights, and what its configuration makes of them: one description for all.

Covers BERT, RoBERTa, XLM-R, CamemBERT, jina-reranker-v2 (its own names, without its own code) and ModernBERT. Refuses
with EngineUnsupported, naming the field, whatever the forward pass would not follow. Computes nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from rerank_worker.engine import EngineUnsupported
from rerank_worker.loading.checkpoint import Checkpoint
from rerank_worker.loading.verify import jina_flash_config


@dataclass(frozen=True, slots=True)
class Matrix:
    """``weight``: (outputs, inputs)."""

    weight: torch.Tensor
    bias: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class Norm:
    weight: torch.Tensor
    bias: torch.Tensor | None
    eps: float


@dataclass(frozen=True, slots=True)
class Layer:
    """``gate``: what the activated ``ffn_in`` is multiplied with (GeGLU). ``window``: tokens that attention sees to
    each side; None: all. ``theta``: base of the rotary positions. ``attention_norm``: None where the first layer of a
    pre-norm model has none."""

    query: Matrix
    key: Matrix
    value: Matrix
    out: Matrix
    ffn_in: Matrix
    gate: Matrix | None
    ffn_out: Matrix
    attention_norm: Norm | None
    ffn_norm: Norm
    window: int | None = None
    theta: float | None = None


@dataclass(frozen=True, slots=True)
class Described:
    """A cross-encoder with one label.

    ``pre_norm``: norms come before attention and feed-forward rather than after adding the residual. ``positions`` and
    ``types``: tables; None: the model has none. ``first_position``: row of a pair's first token in ``positions``.
    ``skipped``: token id that does not count as a position and has row ``first_position`` - 1 (RoBERTa's padding);
    None: every token counts.
    """

    heads: int
    pre_norm: bool
    words: torch.Tensor
    positions: torch.Tensor | None
    types: torch.Tensor | None
    first_position: int
    skipped: int | None
    embedding_norm: Norm
    layers: tuple[Layer, ...]
    final_norm: Norm | None
    pooling: Literal["first", "mean"]
    head: Matrix
    head_activation: Literal["tanh", "gelu"]
    head_norm: Norm | None
    score: Matrix


_ROBERTAS = frozenset(
    {"RobertaForSequenceClassification", "XLMRobertaForSequenceClassification", "CamembertForSequenceClassification"}
)

ARCHITECTURES = _ROBERTAS | {"BertForSequenceClassification", "ModernBertForSequenceClassification"}

_FOLLOWED: dict[str, tuple[Any, ...]] = {
    "position_embedding_type": (None, "absolute"),
    "is_decoder": (None, False),
    "add_cross_attention": (None, False),
    "pruned_heads": (None, {}),
    # jina's own: other tasks and other models of the same code.
    "emb_pooler": (None,),
    "lora_adaptations": (None,),
    "load_trained_adapters": (None, False),
}
"""Values under which the forward pass is the one below; other values of these fields change the scores."""


def describe(checkpoint: Checkpoint, dtype: torch.dtype) -> Described:
    """The model with its weights on the CPU, in ``dtype`` where transformers converts them.

    The tensors may be those of ``checkpoint.module(dtype)``: not to be changed. Raises EngineUnsupported, or what
    loading raises.
    """
    if checkpoint.architecture not in ARCHITECTURES:
        raise EngineUnsupported(f"{checkpoint.architecture} has no flat forward pass")
    jina = jina_flash_config(checkpoint.config)
    check(checkpoint.config)
    if jina:
        config, weights = _jina_config(checkpoint), _jina_weights(checkpoint)
    else:
        module = checkpoint.module(dtype)
        config, weights = module.config, _Weights(module.state_dict())
    # Again with the defaults of transformers filled in.
    check(config.to_dict())
    if jina:
        return _jina(config, weights)
    if checkpoint.architecture in _ROBERTAS:
        return _roberta(config, weights)
    if checkpoint.architecture == "ModernBertForSequenceClassification":
        return _modernbert(config, weights)
    return _bert(config, weights)


def check(config: Mapping[str, Any]) -> None:
    """Raise EngineUnsupported for a field whose value the forward pass does not follow."""
    for field, followed in _FOLLOWED.items():
        if config.get(field) not in followed:
            raise EngineUnsupported(f"config.json sets {field} to {str(config[field])[:80]}")
    for field in ("hidden_act", "hidden_activation", "classifier_activation"):
        if config.get(field, "gelu") != "gelu":
            raise EngineUnsupported(f"config.json sets {field} to {str(config[field])[:80]}, not gelu")
    for kind, parameters in (config.get("rope_parameters") or {}).items():
        if isinstance(parameters, Mapping) and parameters.get("rope_type", "default") != "default":
            raise EngineUnsupported(f"config.json sets rope_parameters.{kind}.rope_type to {parameters['rope_type']}")


class _Weights:
    """Tensors by the names of a checkpoint."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = tensors

    def tensor(self, name: str) -> torch.Tensor:
        try:
            return self._tensors[name]
        except KeyError as error:
            raise EngineUnsupported(f"the weights have no {name}") from error

    def matrix(self, name: str) -> Matrix:
        return Matrix(self.tensor(f"{name}.weight"), self._tensors.get(f"{name}.bias"))

    def norm(self, name: str, eps: float) -> Norm:
        return Norm(self.tensor(f"{name}.weight"), self._tensors.get(f"{name}.bias"), eps)


def _bert(config: Any, weights: _Weights) -> Described:
    return _post_norm(config, weights, "bert", weights.matrix("bert.pooler.dense"), weights.matrix("classifier"))


def _roberta(config: Any, weights: _Weights) -> Described:
    head, score = weights.matrix("classifier.dense"), weights.matrix("classifier.out_proj")
    return _post_norm(config, weights, "roberta", head, score, config.pad_token_id)


def _post_norm(
    config: Any, weights: _Weights, base: str, head: Matrix, score: Matrix, padding: int | None = None
) -> Described:
    eps = config.layer_norm_eps
    layers = []
    for number in range(config.num_hidden_layers):
        name = f"{base}.encoder.layer.{number}"
        layers.append(
            Layer(
                query=weights.matrix(f"{name}.attention.self.query"),
                key=weights.matrix(f"{name}.attention.self.key"),
                value=weights.matrix(f"{name}.attention.self.value"),
                out=weights.matrix(f"{name}.attention.output.dense"),
                ffn_in=weights.matrix(f"{name}.intermediate.dense"),
                gate=None,
                ffn_out=weights.matrix(f"{name}.output.dense"),
                attention_norm=weights.norm(f"{name}.attention.output.LayerNorm", eps),
                ffn_norm=weights.norm(f"{name}.output.LayerNorm", eps),
            )
        )
    return Described(
        heads=config.num_attention_heads,
        pre_norm=False,
        words=weights.tensor(f"{base}.embeddings.word_embeddings.weight"),
        positions=weights.tensor(f"{base}.embeddings.position_embeddings.weight"),
        types=weights.tensor(f"{base}.embeddings.token_type_embeddings.weight"),
        first_position=0 if padding is None else padding + 1,
        skipped=padding,
        embedding_norm=weights.norm(f"{base}.embeddings.LayerNorm", eps),
        layers=tuple(layers),
        final_norm=None,
        pooling="first",
        head=head,
        head_activation="tanh",
        head_norm=None,
        score=score,
    )


def _jina_config(checkpoint: Checkpoint) -> Any:
    """config.json as XLM-R's: the fields have the same names. The class named in it is not looked up."""
    from transformers import XLMRobertaConfig

    own = ("auto_map", "architectures", "model_type", "transformers_version", "_name_or_path", "torch_dtype")
    return XLMRobertaConfig(**{name: value for name, value in checkpoint.config.items() if name not in own})


def _jina_weights(checkpoint: Checkpoint) -> _Weights:
    from safetensors.torch import load_file

    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(checkpoint.folder.glob("*.safetensors")):
        tensors |= load_file(path)
    foreign = [name for name in tensors if "parametrizations" in name or "lora" in name]
    if foreign:
        raise EngineUnsupported(f"the weights have adapters ({foreign[0]}): merge them into the model")
    return _Weights(tensors)


def _jina(config: Any, weights: _Weights) -> Described:
    """Names as in huggingface.co/jinaai/xlm-roberta-flash-implementation: one matrix for query, key and value."""
    renamed: dict[str, torch.Tensor] = {
        "roberta.embeddings.LayerNorm.weight": weights.tensor("roberta.emb_ln.weight"),
        "roberta.embeddings.LayerNorm.bias": weights.tensor("roberta.emb_ln.bias"),
    }
    sizes = (config.vocab_size, config.max_position_embeddings, config.type_vocab_size)
    tables = ("word_embeddings", "position_embeddings", "token_type_embeddings")
    for table, size in zip(tables, sizes, strict=True):
        found = weights.tensor(f"roberta.embeddings.{table}.weight")
        if len(found) < size:
            # An index beyond a table breaks a GPU for all.
            raise EngineUnsupported(f"the weights have {len(found)} rows of {table} where config.json says {size}")
        renamed[f"roberta.embeddings.{table}.weight"] = found
    names = {
        "attention.output.dense": "mixer.out_proj",
        "attention.output.LayerNorm": "norm1",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
        "output.LayerNorm": "norm2",
    }
    for number in range(config.num_hidden_layers):
        theirs, own = f"roberta.encoder.layer.{number}", f"roberta.encoder.layers.{number}"
        for kind in ("weight", "bias"):
            for name, jina in names.items():
                renamed[f"{theirs}.{name}.{kind}"] = weights.tensor(f"{own}.{jina}.{kind}")
            parts = weights.tensor(f"{own}.mixer.Wqkv.{kind}").chunk(3)
            for name, part in zip(("query", "key", "value"), parts, strict=True):
                renamed[f"{theirs}.attention.self.{name}.{kind}"] = part
    for name in ("classifier.dense", "classifier.out_proj"):
        for kind in ("weight", "bias"):
            renamed[f"{name}.{kind}"] = weights.tensor(f"{name}.{kind}")
    return _roberta(config, _Weights(renamed))


def _modernbert(config: Any, weights: _Weights) -> Described:
    eps = config.norm_eps
    layers = []
    for number, kind in enumerate(config.layer_types):
        if kind not in ("full_attention", "sliding_attention"):
            raise EngineUnsupported(f"config.json has {kind} in layer_types")
        name = f"model.layers.{number}"
        query, key, value = _split(weights.matrix(f"{name}.attn.Wqkv"), 3)
        ffn_in, gate = _split(weights.matrix(f"{name}.mlp.Wi"), 2)
        layers.append(
            Layer(
                query=query,
                key=key,
                value=value,
                out=weights.matrix(f"{name}.attn.Wo"),
                ffn_in=ffn_in,
                gate=gate,
                ffn_out=weights.matrix(f"{name}.mlp.Wo"),
                attention_norm=weights.norm(f"{name}.attn_norm", eps) if number else None,
                ffn_norm=weights.norm(f"{name}.mlp_norm", eps),
                window=config.sliding_window if kind == "sliding_attention" else None,
                theta=config.rope_parameters[kind]["rope_theta"],
            )
        )
    return Described(
        heads=config.num_attention_heads,
        pre_norm=True,
        words=weights.tensor("model.embeddings.tok_embeddings.weight"),
        positions=None,
        types=None,
        first_position=0,
        skipped=None,
        embedding_norm=weights.norm("model.embeddings.norm", eps),
        layers=tuple(layers),
        final_norm=weights.norm("model.final_norm", eps),
        pooling="first" if config.classifier_pooling == "cls" else "mean",
        head=weights.matrix("head.dense"),
        head_activation="gelu",
        head_norm=weights.norm("head.norm", eps),
        score=weights.matrix("classifier"),
    )


def _split(matrix: Matrix, parts: int) -> list[Matrix]:
    biases = [None] * parts if matrix.bias is None else matrix.bias.chunk(parts)
    return [Matrix(weight, bias) for weight, bias in zip(matrix.weight.chunk(parts), biases, strict=True)]
