"""A model whose tokenizer is not its own: it loads and scores, and every word means another one."""

import hashlib
import json
import shutil
from pathlib import Path

FIRST = 999
"""Id of the first entry of BERT's vocabulary that is neither special nor unused."""
SHIFT = 7_001


def build(model: Path, folder: Path) -> Path:
    """A copy of ``model`` in ``folder``, with the same words under ids that have been moved on."""
    shutil.copytree(model, folder)
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    moved = {word: shifted(number, len(vocabulary)) for word, number in vocabulary.items()}
    tokenizer["model"]["vocab"] = dict(sorted(moved.items(), key=lambda item: item[1]))
    file.write_text(json.dumps(tokenizer, ensure_ascii=False))
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in tokenizer["model"]["vocab"]))
    return folder


def shifted(number: int, size: int) -> int:
    """One to one; special and unused entries stay where they are."""
    return number if number < FIRST else FIRST + (number - FIRST + SHIFT) % (size - FIRST)


def sha256(model: Path) -> str:
    """Of ``model``'s own tokenizer, as spec.model.sha256 wants it."""
    return hashlib.sha256((model / "tokenizer.json").read_bytes()).hexdigest()
