"""Pairs of our own to calibrate with and to judge a reduced precision by: the same for the same model, every time.

Queries and documents of sixteen languages, from a few words to several hundred tokens; a query that the model's
vocabulary does not have is left out, and where few are left, pairs of random words of the vocabulary take their place:
ranges of activations need tokens that the model knows, in whatever language.
"""

import json
import random
from importlib import resources
from typing import Any, TypedDict

from rerank_worker.engine import Pair
from rerank_worker.loading.checkpoint import Checkpoint
from rerank_worker.tokenization import read_template

UNKNOWN = 0.1
"""Share of unknown tokens beyond which a query's pairs are left out."""

LEAST = 8
"""Queries that must be left for the texts to be used."""

EVERY = 4
"""One query of so many is for calibration; the others judge, so that nothing is judged by what it was fitted to."""

WORK = 8.5e10
"""Tokens times weights of the linear layers that each part may cost: about a second in float32 on two cores."""

LEAST_TOKENS = 1500


class Row(TypedDict):
    query: str
    text: str
    short: str


def calibration(checkpoint: Checkpoint) -> list[Pair]:
    """Pairs to find ranges with."""
    groups = _groups(checkpoint)[::EVERY]
    return [pair for group in _within(groups, _budget(checkpoint.config)) for pair in group]


def judged(checkpoint: Checkpoint) -> list[list[Pair]]:
    """Pairs to compare two precisions with, grouped by query; none of them is in ``calibration``."""
    groups = [group for number, group in enumerate(_groups(checkpoint)) if number % EVERY]
    return _within(groups, _budget(checkpoint.config))


def _budget(config: dict[str, Any]) -> float:
    """Tokens that may be computed, given the shape of the model in ``config``."""
    hidden, layers = int(config.get("hidden_size") or 768), int(config.get("num_hidden_layers") or 12)
    inner = int(config.get("intermediate_size") or 4 * hidden)
    return max(LEAST_TOKENS, WORK / (layers * hidden * (4 * hidden + 2 * inner)))


def _within(groups: list[list[Pair]], tokens: float) -> list[list[Pair]]:
    """The first groups that cost ``tokens`` at most, at least one."""
    taken: list[list[Pair]] = []
    for group in groups:
        tokens -= sum(map(len, group))
        if taken and tokens < 0:
            break
        taken.append(group)
    return taken


def _groups(checkpoint: Checkpoint) -> list[list[Pair]]:
    rows = read()
    groups = []
    for number, row in enumerate(rows):
        group = [_pair(checkpoint, row["query"], text) for text in _documents(rows, number)]
        if _unknown(checkpoint, group) <= UNKNOWN:
            groups.append(group)
    return groups if len(groups) >= LEAST else _made_up(checkpoint, len(rows))


def read() -> list[Row]:
    """The texts of the package."""
    file = resources.files("rerank_worker.engine.quantization").joinpath("sample.jsonl")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _documents(rows: list[Row], number: int) -> list[str]:
    """Two that answer the query of that number, and three or four that do not."""
    own, following, later = (rows[(number + step) % len(rows)] for step in (0, 1, 5))
    texts = [own["text"], own["short"], following["text"], following["short"], later["short"]]
    if number % EVERY < 2:
        texts.append(" ".join(rows[(number + step) % len(rows)]["text"] for step in (2, 0, 3)))
    return texts


def _pair(checkpoint: Checkpoint, query: str, text: str) -> Pair:
    asked = {"truncation": "longest_first", "max_length": checkpoint.max_length, "return_token_type_ids": True}
    found = checkpoint.tokenizer(query, text, **asked)
    ids = list(found["input_ids"])
    return Pair(ids, list(found.get("token_type_ids") or [0] * len(ids)))


def _unknown(checkpoint: Checkpoint, group: list[Pair]) -> float:
    unknown = checkpoint.tokenizer.unk_token_id
    return sum(pair.ids.count(unknown) for pair in group) / max(1, sum(map(len, group)))


def _made_up(checkpoint: Checkpoint, count: int) -> list[list[Pair]]:
    tokenizer = checkpoint.tokenizer
    special = set(tokenizer.all_special_ids)
    words = [number for number in range(len(tokenizer)) if number not in special]
    template = read_template(tokenizer.backend_tokenizer, False)
    chosen = random.Random(0)  # noqa: S311  the same words every time
    room = max(2, checkpoint.max_length - template.specials)
    groups = []
    for _ in range(count):
        query = chosen.choices(words, k=min(chosen.randint(3, 12), room // 2))
        lengths = [min(length, room - len(query)) for length in (4, 12, 25, 50, 100)]
        groups.append([template.assemble(query, chosen.choices(words, k=length)) for length in lengths])
    return groups
