"""Text to tokens and back: four UTF-8 bytes are one token, so equal prefixes of text are equal prefixes of tokens.

Messages and answers are padded to whole tokens, so a conversation's next turn begins with the tokens of the last one.
A text that ends in NUL characters loses them.
"""

from collections.abc import Iterable, Sequence

import xxhash

_TOKEN_BYTES = 4
_LETTERS = b"abcdefghijklmnopqrstuvwxyz"


def encode(text: str) -> list[int]:
    """Return the token ids of ``text``."""
    raw = text.encode()
    return [int.from_bytes(raw[at : at + _TOKEN_BYTES], "little") for at in range(0, len(raw), _TOKEN_BYTES)]


def decode(tokens: Iterable[int]) -> str:
    """Return the text of ``tokens``; ids that are no text are shown as replacement characters."""
    raw = b"".join((token & 0xFFFFFFFF).to_bytes(_TOKEN_BYTES, "little") for token in tokens)
    return raw.rstrip(b"\0").decode(errors="replace")


def render_chat(messages: Iterable[tuple[str, str]]) -> str:
    """Return the prompt of a chat of ``(role, content)`` messages; it ends where the answer begins."""
    return "".join(_header(role) + _padded(f"{content}\n") for role, content in messages) + _header("assistant")


def answer(prompt: Sequence[int], length: int) -> list[int]:
    """Return ``length`` tokens, always the same ones for the same prompt: made-up words of three letters."""
    seed = xxhash.xxh3_64_intdigest(b"".join((token & 0xFFFFFFFF).to_bytes(4, "little") for token in prompt))
    words = []
    for index in range(length):
        draw = xxhash.xxh3_64_intdigest(index.to_bytes(8, "little"), seed=seed)
        letters = bytes(_LETTERS[draw // 26**place % 26] for place in range(3))
        words.append(int.from_bytes(b" " + letters, "little"))
    return words


def _header(role: str) -> str:
    return _padded(f"<|{role}|>\n")


def _padded(text: str) -> str:
    return text + " " * (-len(text.encode()) % _TOKEN_BYTES)
