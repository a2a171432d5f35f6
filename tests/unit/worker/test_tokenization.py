"""Pairs of token ids: equal to the tokenizers library's own pairs, the query never cut, any text accepted."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rerank_worker.tokenization import PairTokenizer, UnsupportedTokenizer, read_template
from tokenizers import Tokenizer, processors

from .conftest import make_tokenizer

MAX = 24
REFERENCE = make_tokenizer()
REFERENCE.enable_truncation(MAX, strategy="only_second")
OURS = PairTokenizer(make_tokenizer(), MAX)


def encode(query: str, document: str, limit: int | None = None) -> tuple[list[int], list[int], bool, bool]:
    ids = OURS.query(query)
    pair, limited, cut = OURS.pair(ids, OURS.documents([document])[0], limit)
    return pair.ids, pair.types, limited, cut


texts = st.text(st.characters(codec="utf-8"), max_size=80) | st.text("ab ", max_size=80)


@settings(max_examples=300)
@given(st.text(st.characters(codec="utf-8"), max_size=10), texts)
def test_pairs_equal_the_library_s(query: str, document: str) -> None:
    if OURS.room(OURS.query(query)) < 1:
        return
    expected = REFERENCE.encode(query, document)
    ids, types, _, cut = encode(query, document)
    assert ids == expected.ids
    assert types == expected.type_ids
    assert cut == bool(expected.overflowing)


def test_every_plane_of_unicode_and_control_characters() -> None:
    for start in range(0, 0x110000, 0x1000):
        text = "".join(chr(code) for code in range(start, start + 0x1000) if not 0xD800 <= code < 0xE000)
        assert encode("q", text)[0] == REFERENCE.encode("q", text).ids


def test_a_million_characters() -> None:
    ids, _, _, cut = encode("q", "word " * 200_000)
    assert len(ids) == MAX
    assert cut


LONG = {
    "words": "some words " * 20_000,
    "one word": "abc" * 70_000,
    "cjk": "\u4e2d\u6587" * 100_000,
    "words after what is dropped": "\u0000" * 100_000 + "some words " * 10_000,
    "words after spaces": " " * 100_000 + "some words " * 10_000,
    "one word after spaces": " " * 100_000 + "abc",
    "combining": "e\u0301 " * 70_000,
}


@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_a_long_text_gives_the_tokens_that_it_gives_in_full(text: str) -> None:
    expected = REFERENCE.encode("q", text)
    ids, types, _, cut = encode("q", text)
    assert (ids, types, cut) == (expected.ids, expected.type_ids, bool(expected.overflowing))


def test_a_long_text_is_tokenized_from_the_side_that_is_kept() -> None:
    left = PairTokenizer(make_tokenizer(), MAX, cut_left=True)
    ids = left.documents(["zz " * 50_000 + "abcdefgh"])[0]
    assert ids[-8:] == left.documents(["x abcdefgh"])[0][-8:]
    assert len(ids) < 10_000


def test_the_memory_for_a_text_does_not_grow_with_what_is_cut_off() -> None:
    """An 8 MB document took a gigabyte, in each thread that tokenizes."""
    (ids,) = OURS.documents(["some words " * 500_000])
    assert MAX < len(ids) < 10_000
    assert MAX < len(OURS.query("some words " * 500_000)) < 10_000


def test_room_is_what_the_query_leaves() -> None:
    assert OURS.room(OURS.query("abcd")) == MAX - 3 - 4


@pytest.mark.parametrize(
    ("document", "limit", "length", "limited", "cut"),
    [
        ("abcdef", None, 6, False, False),
        ("abcdef", 6, 6, False, False),
        ("abcdef", 4, 4, True, False),
        ("a" * 50, None, MAX - 4, False, True),
        ("a" * 50, 22, MAX - 4, True, True),
        ("", None, 0, False, False),
    ],
)
def test_cuts_are_told_apart(document: str, limit: int | None, length: int, limited: bool, cut: bool) -> None:
    ids, _, *flags = encode("q", document, limit)
    assert len(ids) == 4 + length
    assert flags == [limited, cut]


def test_documents_are_cut_at_the_side_that_the_tokenizer_asks_for() -> None:
    left = PairTokenizer(make_tokenizer(), 8, cut_left=True)
    query = left.query("q")
    pair, _, _ = left.pair(query, left.documents(["abcdefgh"])[0])
    assert pair.ids[3:-1] == left.documents(["abcdefgh"])[0][-4:]


def test_saved_truncation_and_padding_are_dropped() -> None:
    saved = make_tokenizer()
    saved.enable_truncation(4)
    saved.enable_padding(length=20)
    ours = PairTokenizer(saved, 100)
    assert len(ours.documents(["abcdefgh", "a"])[0]) == 8
    assert len(ours.documents(["abcdefgh", "a"])[1]) == 1


def test_threads_do_not_disturb_each_other() -> None:
    texts = [f"{number} " * (number % 7 + 1) for number in range(200)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(OURS.query, texts)) == [OURS.query(text) for text in texts]


def test_a_template_in_another_order_is_refused(tokenizer: Tokenizer) -> None:
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A", pair="[CLS] $B [SEP] $A", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    with pytest.raises(UnsupportedTokenizer, match="query before the document"):
        read_template(tokenizer, cut_left=False)


def test_the_first_threads_take_what_was_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first requests for a model waited for a copy of its tokenizer for each thread."""
    made = 0
    clone = PairTokenizer._clone

    def counted(self: PairTokenizer) -> Tokenizer:
        nonlocal made
        made += 1
        return clone(self)

    monkeypatch.setattr(PairTokenizer, "_clone", counted)
    tokenizer = PairTokenizer(make_tokenizer(), MAX)
    tokenizer.prepare(2)
    assert made == 2
    together = Barrier(3)

    def use() -> list[int]:
        together.wait(30)
        return tokenizer.query("a b") + tokenizer.query("c")

    for expected in (3, 6):
        with ThreadPoolExecutor(3) as pool:
            answers = [pool.submit(use) for _ in range(3)]
            assert [answer.result() for answer in answers] == [OURS.query("a b c")] * 3
        assert made == expected
