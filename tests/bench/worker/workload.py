"""The texts that every peer scores: 50 documents a request, pairs of log-normal length, the same for everybody.

Made of held-out passages' words under a fixed seed. Every request has one document out of each fiftieth of the
distribution, so requests cost the same and no measurement depends on which of them it got; no document comes twice.
"""

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np
from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parents[3]
HELD_OUT = ROOT / "tests" / "models" / "held_out.jsonl.gz"

SEED = 20261121
DOCUMENTS = 50
REQUESTS = 28
MEAN_TOKENS = 110.0
SIGMA = 0.75
"""Of the logarithm of lengths.

Padded over real tokens, sorted within a request: 1.23 at batch 8, 1.5 at 16, 2.2 at 32."""
LIMITS = (16, 512)


@dataclass(frozen=True)
class Request:
    query: str
    documents: tuple[str, ...]
    lengths: tuple[int, ...]
    """Tokens of each pair, special tokens included."""

    @property
    def tokens(self) -> int:
        return sum(self.lengths)


def build(folder: Path, requests: int = REQUESTS, documents: int = DOCUMENTS) -> list[Request]:
    """``requests`` requests of ``documents`` documents, measured with the tokenizer of the model in ``folder``."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    random = np.random.default_rng(SEED)
    queries, passages = _texts()
    random.shuffle(queries)
    random.shuffle(passages)
    words = [word for passage in passages for word in passage.split()]
    costs = [len(encoding.ids) for encoding in tokenizer.encode_batch_fast(words, add_special_tokens=False)]
    special = len(tokenizer.encode("a", "b").ids) - 2
    mu = np.log(MEAN_TOKENS) - SIGMA**2 / 2
    made, position = [], 0
    for number in range(requests):
        query = queries[number % len(queries)]
        overhead = special + len(tokenizer.encode(query, add_special_tokens=False).ids)
        shares = (np.arange(documents) + random.random(documents)) / documents
        targets = np.exp(mu + SIGMA * np.array([NormalDist().inv_cdf(float(share)) for share in shares]))
        random.shuffle(targets)
        texts = []
        for target in np.clip(targets, *LIMITS):
            start, tokens = position, overhead
            while position == start or tokens + costs[position] <= target:
                tokens += costs[position]
                position += 1
                if position == len(words):
                    raise ValueError(f"the texts are used up after {number} requests: ask for fewer")
            texts.append(" ".join(words[start:position]))
        encodings = tokenizer.encode_batch([(query, text) for text in texts])
        lengths = tuple(min(len(encoding.ids), LIMITS[1]) for encoding in encodings)
        made.append(Request(query, tuple(texts), lengths))
    return made


def describe(requests: list[Request]) -> dict[str, object]:
    """What was asked, for the record: the lengths' distribution and what padding would cost."""
    lengths = np.array([length for request in requests for length in request.lengths])
    padded = {}
    for batch in (4, 8, 16, 32):
        cost = 0
        for request in requests:
            ordered = sorted(request.lengths)
            for start in range(0, len(ordered), batch):
                part = ordered[start : start + batch]
                cost += part[-1] * len(part)
        padded[str(batch)] = round(cost / int(lengths.sum()), 3)
    return {
        "seed": SEED,
        "requests": len(requests),
        "documents_a_request": len(requests[0].documents),
        "tokens_a_pair": {
            "mean": round(float(lengths.mean()), 1),
            "p10": float(np.quantile(lengths, 0.1)),
            "p50": float(np.quantile(lengths, 0.5)),
            "p90": float(np.quantile(lengths, 0.9)),
            "max": int(lengths.max()),
        },
        "tokens_a_request": {
            "min": min(request.tokens for request in requests),
            "max": max(request.tokens for request in requests),
        },
        "padded_over_real_tokens_sorted_by_batch": padded,
    }


def _texts() -> tuple[list[str], list[str]]:
    with gzip.open(HELD_OUT, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [row["query"] for row in rows if "query" in row], [row["passage"] for row in rows if "passage" in row]
