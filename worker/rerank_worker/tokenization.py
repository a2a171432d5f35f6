"""From texts to pairs of token ids, as transformers' fast tokenizers would build them.

The query is tokenized once a request and only the document is ever cut; sentence-transformers cuts whichever is longer,
so the two differ exactly where a query fills more than half of the model's length. Tokens are cut, not characters: a
tokenizer looks ahead. Only what lies far beyond the last token that counts is never tokenized.
"""

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from tokenizers import Tokenizer

from rerank_worker import chunking
from rerank_worker.engine import Pair

FAR = 64
"""Characters for each token of the model's length, beyond which a text is not tokenized: a token takes about 500 bytes
of memory while its text is tokenized, so that one request of 8 MB would take a gigabyte."""


Fitted: TypeAlias = tuple[list[Pair], bool, bool]
"""What a document became: its pairs, whether it was cut to the caller's limit, and whether it was cut to fit."""


class UnsupportedTokenizer(Exception):
    """The tokenizer builds pairs in a way that cannot be followed."""


@dataclass(frozen=True, slots=True)
class Template:
    """How a pair is put together: special tokens around the query's and the document's, and the type ids of all."""

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    query_type: int
    document_type: int
    special_types: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    cut_left: bool
    """Cut documents at their start (the tokenizer's truncation_side)."""
    query_edges: tuple[str, str] = ("", "")
    """Text of a prompt around the query that is tokenized with it: its tokens may join the query's."""
    document_edge: str = ""
    """Likewise, before the document."""

    @property
    def specials(self) -> int:
        return len(self.before) + len(self.between) + len(self.after)

    def assemble(self, query: list[int], document: list[int]) -> Pair:
        ids = [*self.before, *query, *self.between, *document, *self.after]
        first, second, third = self.special_types
        types = [
            *first,
            *[self.query_type] * len(query),
            *second,
            *[self.document_type] * len(document),
            *third,
        ]
        return Pair(ids, types)

    def cut(self, document: list[int], room: int) -> list[int]:
        if len(document) <= room:
            return document
        return document[len(document) - room :] if self.cut_left else document[:room]


def read_template(tokenizer: Tokenizer, cut_left: bool) -> Template:
    """The pair template of ``tokenizer``, read off a sample. Raises UnsupportedTokenizer."""
    sample = tokenizer.encode("query text", "document text")
    parts: list[tuple[int | None, list[int], list[int]]] = []
    for sequence, token, kind in zip(sample.sequence_ids, sample.ids, sample.type_ids, strict=True):
        if not parts or parts[-1][0] != sequence:
            parts.append((sequence, [], []))
        parts[-1][1].append(token)
        parts[-1][2].append(kind)
    special: list[tuple[list[int], list[int]]] = [([], []), ([], []), ([], [])]
    kinds: dict[int, int] = {}
    for sequence, ids, types in parts:
        if sequence is None:
            special[len(kinds)] = (ids, types)
        elif sequence == len(kinds) and len(set(types)) == 1:
            kinds[sequence] = types[0]
        else:
            raise UnsupportedTokenizer("it does not put the query before the document")
    if set(kinds) != {0, 1}:
        raise UnsupportedTokenizer("it does not join two texts into one sequence")
    return Template(
        before=tuple(special[0][0]),
        between=tuple(special[1][0]),
        after=tuple(special[2][0]),
        query_type=kinds[0],
        document_type=kinds[1],
        special_types=(tuple(special[0][1]), tuple(special[1][1]), tuple(special[2][1])),
        cut_left=cut_left,
    )


class PairTokenizer:
    """Tokenizes in any thread; each thread has a clone of its own (sharing one across threads is not safe)."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        max_length: int,
        cut_left: bool = False,
        template: Template | None = None,
        literal: bool = False,
    ) -> None:
        """``literal``: texts that look like special tokens are text. Otherwise they become those tokens, as they do in
        sentence-transformers."""
        plain = Tokenizer.from_str(tokenizer.to_str())
        # A saved tokenizer may carry the truncation and padding of whoever saved it.
        plain.no_truncation()
        plain.no_padding()
        self._serialized = plain.to_str()
        self._clones = threading.local()
        self._spare: deque[Tokenizer] = deque()
        self._literal = literal
        self.template = template or read_template(plain, cut_left)
        self.max_length = max_length

    def prepare(self, threads: int) -> None:
        """Make the clones of so many threads now. The library makes one in 40 ms for 30,000 tokens, and lets nothing
        else in the process run meanwhile: the first requests would wait for it."""
        while len(self._spare) < threads:
            self._spare.append(self._clone())

    def _clone(self) -> Tokenizer:
        clone = Tokenizer.from_str(self._serialized)
        # No part of what is serialized.
        clone.encode_special_tokens = self._literal
        return clone

    def _own(self) -> Tokenizer:
        if not hasattr(self._clones, "tokenizer"):
            try:
                self._clones.tokenizer = self._spare.pop()
            except IndexError:
                self._clones.tokenizer = self._clone()
        return self._clones.tokenizer

    def room(self, query: list[int]) -> int:
        """Tokens that are left for a document beside ``query``; none left is zero or less."""
        return self.max_length - self.template.specials - len(query)

    def query(self, text: str) -> list[int]:
        """All tokens of ``text``, or more than there is room for."""
        before, after = self.template.query_edges
        return self._tokens([f"{before}{text}{after}"])[0]

    def documents(self, texts: Sequence[str], most: int | None = None) -> list[list[int]]:
        """All tokens of each text, or more than ``most`` of them (None: than the model takes): those at the side that
        is kept."""
        edge = self.template.document_edge
        return self._tokens([edge + text for text in texts] if edge else texts, most)

    def _tokens(self, texts: Sequence[str], most: int | None = None) -> list[list[int]]:
        # The end of a part may be tokenized otherwise than in the whole text: what counts must be far from it.
        enough = self.max_length + (self.max_length if most is None else most)
        own, far = self._own(), FAR * self.max_length
        encodings = own.encode_batch_fast([self._part(text, far) for text in texts], add_special_tokens=False)
        tokens = [encoding.ids for encoding in encodings]
        for index, text in enumerate(texts):
            length = far
            while length < len(text) and len(tokens[index]) <= enough:
                length *= 8
                # In a batch of one: only batches let other threads run meanwhile, and a long text takes seconds.
                (encoding,) = own.encode_batch_fast([self._part(text, length)], add_special_tokens=False)
                tokens[index] = encoding.ids
        return tokens

    def _part(self, text: str, length: int) -> str:
        return text[-length:] if self.template.cut_left else text[:length]

    def pair(self, query: list[int], document: list[int], limit: int | None = None) -> tuple[Pair, bool, bool]:
        """The pair, whether the document was cut to ``limit`` tokens, and whether it was cut to fit max_length."""
        limited = document if limit is None else self.template.cut(document, limit)
        fitting = self.template.cut(limited, self.room(query))
        return self.template.assemble(query, fitting), len(limited) < len(document), len(fitting) < len(limited)

    def one(self, query: list[int], document: list[int], limit: int | None = None) -> Fitted:
        """As ``pair``, in the form of ``chunks``."""
        pair, limited, cut = self.pair(query, document, limit)
        return [pair], limited, cut

    def chunks(self, query: list[int], document: list[int], limit: int | None = None) -> Fitted:
        """As ``pair``, with a pair for each chunk of a document that does not fit into one; cut only where it has more
        chunks than chunking.MAX_CHUNKS."""
        room = self.room(query)
        limited = document if limit is None else self.template.cut(document, limit)
        if len(limited) <= room:
            return [self.template.assemble(query, limited)], len(limited) < len(document), False
        parts = chunking.spans(len(limited), room, self.template.cut_left)
        pairs = [self.template.assemble(query, limited[start:end]) for start, end in parts]
        return pairs, len(limited) < len(document), len(limited) > chunking.most_tokens(room)
