"""What an answer's ``usage`` says of the prompt's cache, found at the answer's end without reading the rest of it.

``usage`` is the last thing in an answer of vLLM, or its last event but ``[DONE]``. What a model writes cannot be taken
for it: inside a JSON string its quotes are escaped.
"""

import re

TAIL_BYTES = 4096
"""How much of an answer's last piece, and of the one before it, is looked at."""
SMALL_BYTES = 64
"""A smaller piece is taken for the end of the one before it: ``[DONE]`` and the last chunk may come one by one behind
``usage``, and would push it out of what is looked at."""
_NAME = b'"cached_tokens"'
_CACHED = re.compile(rb'"cached_tokens"\s*:\s*(\d{1,12})\b')


_PROMPT = re.compile(rb'"prompt_tokens"\s*:\s*(\d{1,12})\b')


def cached_tokens(before_last: bytes, last: bytes) -> int | None:
    """Return how many tokens of the prompt the engine had in a cache; ``None`` where the answer does not say.

    >>> cached_tokens(b"", b'..."usage":{"prompt_tokens":70,"prompt_tokens_details":{"cached_tokens":64}}}')
    64
    """
    tail = before_last[-TAIL_BYTES:] + last[-TAIL_BYTES:]
    place = tail.rfind(_NAME)
    found = _CACHED.match(tail, place) if place >= 0 else None
    return int(found[1]) if found else None


def prompt_tokens(before_last: bytes, last: bytes) -> int | None:
    """Return how many tokens the prompt has; ``None`` where the answer does not say.

    >>> prompt_tokens(b"", b'..."usage":{"prompt_tokens":70,"prompt_tokens_details":{"cached_tokens":64}}}')
    70
    """
    found = _PROMPT.findall(before_last[-TAIL_BYTES:] + last[-TAIL_BYTES:])
    return int(found[-1]) if found else None
