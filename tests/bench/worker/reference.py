"""The plain model's scores, one pair at a time, nothing padded: ``reference.py FOLDER < requests.json``.

Reads [[query, [document, ...]], ...]; prints a list of sigmoids a request.
"""

import json
import sys
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer


def main(folder: str) -> None:
    # Small products: a second thread only waits, and on a busy machine it waits for long.
    torch.set_num_threads(1)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model: Any = AutoModelForSequenceClassification.from_pretrained(
        folder, local_files_only=True, dtype=torch.float32
    ).eval()
    found = []
    with torch.inference_mode():
        for query, documents in json.load(sys.stdin):
            inputs = (
                tokenizer(query, text, truncation="only_second", max_length=512, return_tensors="pt")
                for text in documents
            )
            found.append([float(torch.sigmoid(model(**one).logits[0, 0])) for one in inputs])
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
