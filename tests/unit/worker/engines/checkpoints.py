"""Checkpoints of every architecture that engines serve: small, random weights, normal Hugging Face folders.

Weights are large enough (standard deviation 0.2) for scores to differ from pair to pair and for errors to show; seeds
are fixed. Each function writes config.json, model.safetensors and a fast tokenizer into a folder and returns it.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rerank_worker.loading.checkpoint import Checkpoint
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
PIECES = [*LETTERS, *("##" + letter for letter in LETTERS)]

BERT_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
"""In the order of XLM-R: the padding id is 1, and positions start at 2."""

BERT_VOCABULARY = {token: number for number, token in enumerate([*BERT_SPECIAL, *PIECES])}
ROBERTA_VOCABULARY = {token: number for number, token in enumerate([*ROBERTA_SPECIAL, *PIECES])}

MAX_LENGTH = 64


def save_minilm(folder: Path, **settings: Any) -> Path:
    """The shape of ms-marco-MiniLM-L6 and L12."""
    import transformers

    sizes: dict[str, Any] = _sizes(len(BERT_VOCABULARY), 0) | {"max_position_embeddings": 80}
    config = transformers.BertConfig(**sizes | settings)
    return _save(folder, transformers.BertForSequenceClassification, config, _bert_tokenizer(), types=True)


def save_xlm_roberta(folder: Path, **settings: Any) -> Path:
    """The shape of bge-reranker-base, bge-reranker-large and bge-reranker-v2-m3."""
    import transformers

    config = transformers.XLMRobertaConfig(**_roberta_sizes() | settings)
    return _save(folder, transformers.XLMRobertaForSequenceClassification, config, _roberta_tokenizer())


def save_roberta(folder: Path, **settings: Any) -> Path:
    """RoBERTa (stsb-roberta-base and its like)."""
    import transformers

    config = transformers.RobertaConfig(**_roberta_sizes() | settings)
    return _save(folder, transformers.RobertaForSequenceClassification, config, _roberta_tokenizer())


def save_camembert(folder: Path, **settings: Any) -> Path:
    """CamemBERT (the French cross-encoders)."""
    import transformers

    config = transformers.CamembertConfig(**_roberta_sizes() | settings)
    return _save(folder, transformers.CamembertForSequenceClassification, config, _roberta_tokenizer())


def save_modernbert(folder: Path, **settings: Any) -> Path:
    """The shape of gte-reranker-modernbert-base: local layers see 4 tokens to each side, every third layer all."""
    import transformers

    sizes: dict[str, Any] = _sizes(len(BERT_VOCABULARY), 0) | {
        "num_hidden_layers": 4,
        "max_position_embeddings": 256,
        "local_attention": 8,
        "global_attn_every_n_layers": 3,
        "classifier_pooling": "mean",
        "cls_token_id": 2,
        "sep_token_id": 3,
        "bos_token_id": 2,
        "eos_token_id": 3,
    }
    config = transformers.ModernBertConfig(**sizes | settings)
    return _save(folder, transformers.ModernBertForSequenceClassification, config, _bert_tokenizer())


def save_modernbert_cls(folder: Path, **settings: Any) -> Path:
    """ModernBERT that scores by its first token, with its last layer a local one."""
    return save_modernbert(folder, **{"classifier_pooling": "cls", "num_hidden_layers": 3} | settings)


def save_jina(folder: Path, **settings: Any) -> Path:
    """jina-reranker-v2-base-multilingual with its own names of weights and its own config.json.

    Names: huggingface.co/jinaai/xlm-roberta-flash-implementation, and the conversion of jina_embeddings_v3 in
    transformers' conversion_mapping.py. The maths is XLM-R's, so the weights are those of ``save_xlm_roberta``.
    """
    from safetensors.torch import load_file, save_file

    save_xlm_roberta(folder, **settings)
    weights = load_file(folder / "model.safetensors")
    save_file(jina_names(weights), folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    for name in ("model_type", "dtype", "transformers_version"):
        config.pop(name, None)
    config |= {
        "_name_or_path": "jinaai/jina-reranker-v2-base-multilingual",
        "auto_map": {
            "AutoConfig": "configuration_xlm_roberta.XLMRobertaFlashConfig",
            "AutoModel": "modeling_xlm_roberta.XLMRobertaModel",
            "AutoModelForSequenceClassification": "modeling_xlm_roberta.XLMRobertaForSequenceClassification",
        },
        "emb_pooler": None,
        "num_labels": 1,
        "position_embedding_type": "absolute",
        "torch_dtype": "bfloat16",
        "use_flash_attn": True,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return folder


def jina_names(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of an XLMRobertaForSequenceClassification under jina's names."""
    own: dict[str, torch.Tensor] = {}
    renamed = {
        "roberta.embeddings.LayerNorm": "roberta.emb_ln",
        "roberta.encoder.layer.": "roberta.encoder.layers.",
        "attention.output.dense": "mixer.out_proj",
        "attention.output.LayerNorm": "norm1",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
        "output.LayerNorm": "norm2",
    }
    for name, tensor in weights.items():
        if "attention.self." in name:
            continue
        for theirs, jina in renamed.items():
            name = name.replace(theirs, jina)
        own[name] = tensor
    layers = {name.split("attention.self.")[0] for name in weights if "attention.self." in name}
    for layer in layers:
        for kind in ("weight", "bias"):
            parts = [weights[f"{layer}attention.self.{part}.{kind}"] for part in ("query", "key", "value")]
            own[f"{layer.replace('.layer.', '.layers.')}mixer.Wqkv.{kind}"] = torch.cat(parts)
    return own


def save_deberta(folder: Path, **settings: Any) -> Path:
    """DeBERTa-v2 as mxbai-rerank has it: relative positions with log buckets, shared keys."""
    import transformers

    sizes: dict[str, Any] = _sizes(len(BERT_VOCABULARY), 0) | {
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": 16,
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "position_biased_input": False,
        "max_relative_positions": -1,
        "max_position_embeddings": 80,
        "type_vocab_size": 0,
        "pooler_hidden_size": 32,
    }
    config = transformers.DebertaV2Config(**sizes | settings)
    return _save(folder, transformers.DebertaV2ForSequenceClassification, config, _bert_tokenizer())


def save_qwen3(folder: Path, **settings: Any) -> Path:
    """The shape of Qwen3-Reranker: grouped heads with their own norms, tied embeddings, "yes" and "no" are tokens."""
    import transformers

    tokenizer = _qwen_tokenizer()
    sizes: dict[str, Any] = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 64,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "bos_token_id": tokenizer.token_to_id("<|endoftext|>"),
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
    }
    config = transformers.Qwen3Config(**sizes | settings)
    _save_model(folder, transformers.Qwen3ForCausalLM, config)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        padding_side="left",
    ).save_pretrained(folder)
    return folder


RERANKER_TEMPLATE = """\
{%- set instruction = messages | selectattr("role", "eq", "system") | map(attribute="content") | first
    | default("Find what answers the query") -%}
{%- set query_text = messages | selectattr("role", "eq", "query") | map(attribute="content") | first -%}
{%- set document_text = messages | selectattr("role", "eq", "document") | map(attribute="content") | first -%}
<|im_start|>system
Judge. Answer "yes" or "no".<|im_end|>
<|im_start|>user
<Instruct>: {{ instruction }}
<Query>: {{ query_text }}
<Document>: {{ document_text }}<|im_end|>
<|im_start|>assistant
<think>

</think>


"""
"""Laid out as Qwen3-Reranker's, with fewer words."""


def save_qwen3_reranker(folder: Path, **settings: Any) -> Path:
    """``save_qwen3`` with what sentence-transformers 5.4 and later save beside a decoder, as Qwen3-Reranker has it."""
    save_qwen3(folder, **settings)
    vocabulary = _qwen_tokenizer()
    _save_prompt(folder, "text-generation", "logits", "causal_logits")
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"},
        {
            "idx": 1,
            "name": "1",
            "path": "1_LogitScore",
            "type": "sentence_transformers.cross_encoder.modules.logit_score.LogitScore",
        },
    ]
    answers = {"true_token_id": vocabulary.token_to_id("yes"), "false_token_id": vocabulary.token_to_id("no")}
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_LogitScore").mkdir()
    (folder / "1_LogitScore" / "config.json").write_text(json.dumps(answers))
    return folder


def save_qwen3_classifier(folder: Path, **settings: Any) -> Path:
    """A Qwen3 reranker that was converted to one label."""
    import transformers

    save_qwen3(folder)
    pad = _qwen_tokenizer().token_to_id("<|endoftext|>")
    config = transformers.Qwen3Config.from_pretrained(folder, num_labels=1, pad_token_id=pad, **settings)
    (folder / "model.safetensors").unlink()
    _save_model(folder, transformers.Qwen3ForSequenceClassification, config)
    _save_prompt(folder, "sequence-classification", "logits", "scores")
    kind = "sentence_transformers.base.modules.transformer.Transformer"
    (folder / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": kind}]))
    return folder


def _save_prompt(folder: Path, task: str, output: str, module_output: str) -> None:
    (folder / "chat_template.jinja").write_text(RERANKER_TEMPLATE)
    ways = {"method": "forward", "method_output_name": output}
    transformer = {
        "transformer_task": task,
        "modality_config": {"text": ways, "message": ways | {"format": "flat"}},
        "module_output_name": module_output,
    }
    (folder / "sentence_bert_config.json").write_text(json.dumps(transformer))
    own = {
        "model_type": "CrossEncoder",
        "activation_fn": "torch.nn.modules.linear.Identity",
        "prompts": {"web": "Given a web search query, retrieve passages"},
        "default_prompt_name": "web",
    }
    (folder / "config_sentence_transformers.json").write_text(json.dumps(own))


def save_albert(folder: Path, **settings: Any) -> Path:
    """ALBERT: one layer's weights for all layers."""
    import transformers

    sizes: dict[str, Any] = _sizes(len(BERT_VOCABULARY), 0) | {"max_position_embeddings": 80, "embedding_size": 16}
    config = transformers.AlbertConfig(**sizes | settings)
    return _save(folder, transformers.AlbertForSequenceClassification, config, _bert_tokenizer(), types=True)


def save_electra(folder: Path, **settings: Any) -> Path:
    """ELECTRA (ms-marco-electra-base)."""
    import transformers

    sizes: dict[str, Any] = _sizes(len(BERT_VOCABULARY), 0) | {"max_position_embeddings": 80, "embedding_size": 16}
    config = transformers.ElectraConfig(**sizes | settings)
    return _save(folder, transformers.ElectraForSequenceClassification, config, _bert_tokenizer(), types=True)


def save_mpnet(folder: Path, **settings: Any) -> Path:
    """MPNet: relative positions beside RoBERTa's."""
    import transformers

    config = transformers.MPNetConfig(**_roberta_sizes() | settings)
    return _save(folder, transformers.MPNetForSequenceClassification, config, _roberta_tokenizer())


def save_distilbert(folder: Path, **settings: Any) -> Path:
    """DistilBERT: no types, another name for each size."""
    import transformers

    sizes: dict[str, Any] = {
        "vocab_size": len(BERT_VOCABULARY),
        "dim": 32,
        "n_layers": 3,
        "n_heads": 4,
        "hidden_dim": 64,
        "pad_token_id": 0,
        "max_position_embeddings": 80,
        "num_labels": 1,
    }
    config = transformers.DistilBertConfig(**sizes | settings)
    return _save(folder, transformers.DistilBertForSequenceClassification, config, _bert_tokenizer())


FLATTENABLE: dict[str, Callable[[Path], Path]] = {
    "minilm": save_minilm,
    "xlm-roberta": save_xlm_roberta,
    "roberta": save_roberta,
    "camembert": save_camembert,
    "modernbert": save_modernbert,
    "modernbert-cls": save_modernbert_cls,
    "jina": save_jina,
}
"""What has a flat forward pass, by a short name."""

CLASSIFIERS: dict[str, Callable[[Path], Path]] = {
    name: save for name, save in FLATTENABLE.items() if name != "jina"
} | {"deberta": save_deberta}
"""What transformers loads as a sequence classifier without remote code."""

PADDED: dict[str, Callable[[Path], Path]] = CLASSIFIERS | {
    "albert": save_albert,
    "electra": save_electra,
    "mpnet": save_mpnet,
    "distilbert": save_distilbert,
}
"""What torch-padded serves."""

DECODERS: dict[str, Callable[[Path], Path]] = {
    "qwen3-reranker": save_qwen3_reranker,
    "qwen3-classifier": save_qwen3_classifier,
}
"""What is asked with a prompt, which the folder has."""


def checkpoint(folder: Path, **settings: Any) -> Checkpoint:
    """A Checkpoint of ``folder`` for the CPU in float32, as loading makes it."""
    import transformers

    config = json.loads((folder / "config.json").read_text())
    defaults: dict[str, Any] = {
        "device": "cpu",
        "precision": "float32",
        "max_length": MAX_LENGTH,
        "length_bucket": 8,
        "threads": 2,
    }
    return Checkpoint(
        folder=folder,
        config=config,
        architecture=config["architectures"][0],
        tokenizer=transformers.PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True),
        **defaults | settings,
    )


def _sizes(vocabulary: int, padding: int) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "pad_token_id": padding,
        "num_labels": 1,
    }


def _roberta_sizes() -> dict[str, Any]:
    return _sizes(len(ROBERTA_VOCABULARY), 1) | {
        "max_position_embeddings": 82,
        "type_vocab_size": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "layer_norm_eps": 1e-5,
    }


def _save(folder: Path, kind: Any, config: Any, tokenizer: Tokenizer, types: bool = False) -> Path:
    from transformers import PreTrainedTokenizerFast

    _save_model(folder, kind, config)
    bert = tokenizer.token_to_id("[PAD]") is not None
    names = dict(
        zip(
            ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"),
            BERT_SPECIAL if bert else ("<pad>", "<unk>", "<s>", "</s>", "<mask>"),
            strict=True,
        )
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=MAX_LENGTH,
        model_input_names=["input_ids", *(["token_type_ids"] if types else []), "attention_mask"],
        **names,
    ).save_pretrained(folder)
    return folder


def _save_model(folder: Path, kind: Any, config: Any) -> None:
    torch.manual_seed(0)
    model = kind(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.2)
            elif name.endswith("bias"):
                parameter.normal_(std=0.1)
            else:
                # The norms: near one, but each different.
                parameter.normal_(mean=1.0, std=0.1)
    model.save_pretrained(folder)


def _pieces(vocabulary: dict[str, int], unknown: str) -> Tokenizer:
    """Every letter is a token."""
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=unknown))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def _bert_tokenizer() -> Tokenizer:
    tokenizer = _pieces(BERT_VOCABULARY, "[UNK]")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, BERT_VOCABULARY[token]) for token in ("[CLS]", "[SEP]")],
    )
    tokenizer.add_special_tokens(BERT_SPECIAL)
    return tokenizer


def _roberta_tokenizer() -> Tokenizer:
    tokenizer = _pieces(ROBERTA_VOCABULARY, "<unk>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[(token, ROBERTA_VOCABULARY[token]) for token in ("<s>", "</s>")],
    )
    tokenizer.add_special_tokens(ROBERTA_SPECIAL)
    return tokenizer


def _qwen_tokenizer() -> Tokenizer:
    """Bytes, the words "yes" and "no", and the special tokens of Qwen3's chat template."""
    merges = [("y", "e"), ("ye", "s"), ("n", "o")]
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(merge) for merge in merges)]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens(["<think>", "</think>"])
    return tokenizer
