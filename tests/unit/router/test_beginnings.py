"""Texts that begin alike: what is kept of one and put before the rest of another is what tokenizing the whole gives."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

tokenizers = pytest.importorskip("tokenizers")

from tierline.router.beginnings import Beginnings  # noqa: E402
from tierline.router.events.keys import token_bytes  # noqa: E402

WORDS = [
    "a",
    "ab",
    "abc",
    "bc",
    "b",
    "c",
    " ",
    "  a",
    "\n",
    "é",
    "日本",
    "<s>",
    "<e>",
    "<ee>",
    "<e>\n",
    "<t>",
    "<n>",
    "<",
    "e>",
]
TEXTS = [
    "abc abc ab a bc b\n a  a b c é 日本 aé",
    "<s>abc ab<e>\n<s>a bc",
    "".join(WORDS) * 2,
]


def byte_level() -> Any:
    """Merges bytes, as most models of today do."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return tokenizer


def sentence_piece() -> Any:
    """Treats the start of a text as the start of a word."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=True, unk_token="?"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="first")
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=120, special_tokens=["?"], show_progress=False)
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return tokenizer


def normalizing() -> Any:
    """Puts a mark in front of each part of a text and writes letters in another form."""
    tokenizer = sentence_piece()
    tokenizer.pre_tokenizer = None
    parts = [
        tokenizers.normalizers.Prepend("_"),
        tokenizers.normalizers.Replace(" ", "_"),
        tokenizers.normalizers.NFD(),
    ]
    tokenizer.normalizer = tokenizers.normalizers.Sequence(parts)
    return tokenizer


KINDS = {kind.__name__: kind() for kind in (byte_level, sentence_piece, normalizing)}
for made in KINDS.values():
    made.add_special_tokens(["<s>", "<e>", "<ee>", "<e>\n", tokenizers.AddedToken("<t>", rstrip=True)])
    made.add_tokens([tokenizers.AddedToken("<n>", normalized=True), tokenizers.AddedToken("ab<s>", normalized=False)])

some_text = st.lists(st.sampled_from([*WORDS, "ab<s>", "<s>a<s>"]), max_size=14).map("".join)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(st.lists(st.tuples(some_text, st.integers(0, 30)), max_size=8), st.sampled_from([10**6, 3000]))
def test_every_text_has_the_tokens_that_it_has_by_itself(
    kind: str, parts: list[tuple[str, int]], size_bytes: int
) -> None:
    tokenizer = KINDS[kind]
    beginnings = Beginnings(tokenizer, size_bytes)
    text = ""
    for more, kept in parts:
        text = text[:kept] + more
        assert beginnings.tokens(text) == token_bytes(tokenizer.encode(text, add_special_tokens=False).ids)
        assert 0 <= beginnings._bytes <= size_bytes
    while beginnings._texts:
        beginnings._forget(next(iter(beginnings._texts)))
    assert (beginnings._bytes, beginnings._known) == (0, {})


def test_a_conversation_is_tokenized_once_and_kept_once() -> None:
    beginnings, text = Beginnings(KINDS["byte_level"]), ""
    for _ in range(50):
        text += "<s>abc ab a é<ee>"
        beginnings.tokens(text)
    assert beginnings.made < 0.05 * beginnings.reused
    assert len(beginnings._texts) == 1


def test_what_a_longer_token_may_hold_is_no_place_to_cut() -> None:
    beginnings = Beginnings(KINDS["byte_level"])
    beginnings.tokens("abc<e>a")
    beginnings.tokens("abc<e>b")
    assert beginnings.reused == 0


def test_a_tokenizer_without_such_tokens_tokenizes_whole_texts() -> None:
    plain = byte_level()
    assert Beginnings(plain).tokens("abc ab") == token_bytes(plain.encode("abc ab").ids)
