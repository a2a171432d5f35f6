"""The worker's own pair tokenizer, once it has agreed with the model's in transformers on sample texts.

For models that take a pair as it is; those with a prompt: prompts.
"""

from typing import Any

from rerank_worker.failures import ConfigurationFailure
from rerank_worker.tokenization import PairTokenizer, UnsupportedTokenizer

# A tokenizer that disagrees with transformers on any of these is refused: its scores would be wrong in silence.
_SAMPLES = (
    ("short query", "A document, with punctuation; and UPPER case."),
    ("ünïcödé 中文 🙂", "tabs\tand\nlines  \u00a0 \u200d end"),
    ("q", ""),
    ("long", "a longer word, " * 4000),
)


def pair_tokenizer(reference: Any, max_length: int) -> PairTokenizer:
    """A PairTokenizer that agrees with ``reference``, the model's tokenizer in transformers, on sample texts."""
    if not reference.is_fast:
        raise ConfigurationFailure("spec.model.uri: the model's tokenizer has no fast version (tokenizer.json)")
    try:
        tokenizer = PairTokenizer(reference.backend_tokenizer, max_length, reference.truncation_side == "left")
    except UnsupportedTokenizer as error:
        raise ConfigurationFailure(f"spec.model.uri: the model's tokenizer is not supported: {error}") from error
    for query, document in _SAMPLES:
        ids = tokenizer.query(query)
        if tokenizer.room(ids) < 1:
            continue
        # As a batch of one: transformers takes a lone pair with an empty second text for a single text.
        expected = reference(
            [query], [document], truncation="only_second", max_length=max_length, return_token_type_ids=True
        )
        pair, _, _ = tokenizer.pair(ids, tokenizer.documents([document])[0])
        if pair.ids != expected["input_ids"][0] or pair.types != expected["token_type_ids"][0]:
            raise ConfigurationFailure(
                "spec.model.uri: the model's tokenizer is not supported: it tokenizes a text differently alone and in "
                "a pair"
            )
    return tokenizer
