"""Tokens of texts that begin like earlier ones: only what is new is tokenized, as in the next turn of a chat.

Rule: what is kept is cut behind tokens that part a text whatever stands around them, as chat templates put between
messages, and nowhere else: within a text a merge may reach over any other place. A tokenizer looks for such tokens
first, from left to right, and what is between two of them is tokenized by itself. The rest is tokenized with the token
that it is cut behind in front of it, since some tokenizers treat the start of a text in another way.
"""

import re
from collections import OrderedDict
from typing import TYPE_CHECKING

import xxhash

from tierline.router.events.keys import TOKEN_BYTES, token_bytes

if TYPE_CHECKING:
    import tokenizers

BEGINNINGS_BYTES = 32 * 1024**2
CUTS_MAX = 256
"""Places of one text behind which another one may go on; its last ones."""
_CUT_BYTES = 240  # the containers around one of them
_TEXT_BYTES = 600  # and around one text


class _Text:
    """A text whose tokens are kept. Invariant: ``digests`` are those of ``_known`` that lead to it."""

    __slots__ = ("digests", "raw")

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.digests: set[bytes] = set()


class Beginnings:
    """Tokenizes texts, and keeps the tokens of those of late.

    Parameters
    ----------
    tokenizer
        Asked for whole texts and for rests of them; no special tokens are added.
    size_bytes
        Memory for what is kept.

    Attributes
    ----------
    reused, made
        Counters: tokens that were known, and that were not.
    """

    def __init__(self, tokenizer: "tokenizers.Tokenizer", size_bytes: int = BEGINNINGS_BYTES) -> None:
        self.reused = self.made = 0
        self._tokenizer = tokenizer
        self._size_bytes = size_bytes
        self._bytes = 0
        added = tokenizer.get_added_tokens_decoder()
        texts = [token.content for token in added.values()]
        self._cuts = {
            number: token.content
            for number, token in added.items()
            # Others take blanks beside them, are looked for in another form of the text, or may be part of a longer one
            if not (token.normalized or token.lstrip or token.rstrip or token.single_word)
            and sum(token.content in text for text in texts) == 1
        }
        self._is_cut = re.compile("|".join(map(re.escape, self._cuts.values()))) if self._cuts else None
        self._known: dict[bytes, tuple[_Text, int]] = {}
        """By the digest of a text's beginning, where its tokens are, and how many."""
        self._texts: OrderedDict[_Text, None] = OrderedDict()

    def tokens(self, text: str) -> bytes:
        """Return the tokens of a text, as they are hashed."""
        if self._is_cut is None:
            return self._tokenized(text, 0, 0)[0]
        hashing, before = xxhash.xxh3_128(), 0
        cuts: list[tuple[int, int, bytes]] = []  # start and end of a token, and the digest of all up to its end
        for found in self._is_cut.finditer(text):
            hashing.update(text[before : found.end()].encode("utf-8", "surrogatepass"))
            before = found.end()
            cuts.append((found.start(), before, hashing.digest()))
        raw, start = b"", 0
        for begin, _, digest in reversed(cuts):
            known = self._known.get(digest)
            if known is not None:
                kept, count = known
                raw, start = kept.raw[: count * TOKEN_BYTES], begin
                break
        rest, found_at = self._tokenized(text, start, 1 if raw else 0)
        places = {end: len(raw) // TOKEN_BYTES + count for end, count in found_at.items()}
        self.reused += len(raw) // TOKEN_BYTES
        self.made += len(rest) // TOKEN_BYTES
        raw += rest
        self._keep(raw, [(digest, places.get(end)) for _, end, digest in cuts[-CUTS_MAX:]])
        return raw

    def _tokenized(self, text: str, start: int, skipped: int) -> tuple[bytes, dict[int, int]]:
        """Return the tokens of a text from ``start`` on, without so many, and how many there are up to each cut."""
        encoding = self._tokenizer.encode(text[start:], add_special_tokens=False)
        ids = encoding.ids
        found = {
            start + end: place + 1 - skipped
            for place, (number, (_, end)) in enumerate(zip(ids, encoding.offsets, strict=True))
            if number in self._cuts
        }
        return token_bytes(ids[skipped:]), found

    def _keep(self, raw: bytes, cuts: list[tuple[bytes, int | None]]) -> None:
        """Keep the tokens of a text whose beginnings have these digests and, where they were counted now, lengths."""
        kept = _Text(raw)
        for digest, count in cuts:
            known = self._known.get(digest)
            if known is not None:
                earlier, count = known
                earlier.digests.discard(digest)
                self._bytes -= _CUT_BYTES
                if not earlier.digests:
                    self._forget(earlier)
            if count is not None:
                kept.digests.add(digest)
                self._known[digest] = kept, count
        if not kept.digests:
            return
        self._texts[kept] = None
        self._bytes += _TEXT_BYTES + len(raw) + _CUT_BYTES * len(kept.digests)
        while self._bytes > self._size_bytes:
            self._forget(next(iter(self._texts)))

    def _forget(self, text: _Text) -> None:
        del self._texts[text]
        self._bytes -= _TEXT_BYTES + len(text.raw) + _CUT_BYTES * len(text.digests)
        for digest in text.digests:
            del self._known[digest]
