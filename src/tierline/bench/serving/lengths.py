"""What a server makes of text, learnt from prompts whose words are known: so prompts are as long as they are planned.

A prompt's tokens are those of its words and those of the server's chat template. A prompt of one word tells what the
template adds, a long one what a word is; an answer and a word behind the first tell what a turn adds.
"""

from collections.abc import Awaitable, Callable

from tierline.bench.serving.text import MARK_TOKENS, Lengths, Piece, write
from tierline.bench.serving.workloads import goes_on, text_of

Messages = list[dict[str, str]]
_LEAST_WORDS = 256
_OF_THE_CONTEXT = 4
"""A long prompt has so many tokens for each word of the sample: sentences differ, and in many that evens out."""
_OF_A_TRACE = 4096
"""Tokens of a prompt, where nobody says how long they may be."""
_WORD = "yes"
"""One token to most servers."""


async def learn(
    count: Callable[[Messages], Awaitable[int | None]], workload: str, input_tokens: int, salt: str
) -> Lengths | None:
    """Return what a server makes of a workload's text; ``None`` where it counts no tokens.

    Parameters
    ----------
    count
        Says how many tokens the server finds in a prompt.
    input_tokens
        Of the run's longest prompts; 0: nobody says.
    salt
        A new one: what is counted here is in no cache, and finds nothing there.
    """
    words = max(_LEAST_WORDS, (input_tokens or _OF_A_TRACE) // _OF_THE_CONTEXT)
    text = write(Piece(text_of(workload), "sample", words), salt, 1.0)
    word = {"role": "user", "content": _WORD}
    one, many = [await count([{"role": "user", "content": content}]) for content in (_WORD, text)]
    if one is None or many is None or many <= one:
        return None
    opening = one - 1
    per_word = (many - opening - MARK_TOKENS) / (len(text.split()) - MARK_TOKENS)
    with_turn = await count([word, {**word, "role": "assistant"}, word]) if goes_on(workload) else None
    return Lengths(per_word, max(0, opening), 0 if with_turn is None else max(0, with_turn - one - 2))
